//! Tables, CSV and charts of what was measured.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use plotters::prelude::*;

use super::contender::{Contender, Load};
use super::measure::Measured;

/// The median of one contender at one round-trip time.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub load: Load,
    /// Milliseconds.
    pub rtt: f64,
    pub contender: Contender,
    pub seconds: f64,
}

/// Prints seconds and how many times faster than the first row each is.
pub fn table(rows: &[Row], remark: impl Fn(&Row, f64) -> &'static str) {
    println!("{:42} {:>9} {:>12}", "", "seconds", "times faster");
    for row in rows {
        let ratio = rows[0].seconds / row.seconds;
        let remark = remark(row, ratio);
        println!(
            "{:42} {:>9.2} {ratio:>12.1}{remark}",
            row.contender, row.seconds
        );
    }
}

/// One line for each run.
pub struct Csv(File);

impl Csv {
    pub fn create(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        writeln!(
            file,
            "load,users,rtt_ms,contender,run,seconds,bytes_up,bytes_down"
        )
        .unwrap();
        Self(file)
    }

    pub fn row(&mut self, row: &Row, users: usize, run: usize, measured: Measured) {
        let Measured { seconds, up, down } = measured;
        let (load, rtt, contender) = (row.load.name(), row.rtt, row.contender);
        let line = format!("{load},{users},{rtt},\"{contender}\",{run},{seconds:.4},{up},{down}");
        writeln!(self.0, "{line}").unwrap();
    }
}

/// Draws `LOAD-seconds.svg` (seconds over round-trip time) and `LOAD-lanes.svg` (how many times faster
/// than the stock client alone, over lanes) for each load, as far as there is more than one point.
pub fn charts(folder: &Path, rows: &[Row]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut loads: Vec<Load> = rows.iter().map(|row| row.load).collect();
    loads.dedup();
    for load in loads {
        let rows: Vec<Row> = rows.iter().filter(|r| r.load == load).copied().collect();
        let at = |what: &str| folder.join(format!("{}-{what}.svg", load.name()));
        let by_rtt = series(&rows, |row| {
            Some((row.contender.to_string(), row.rtt, row.seconds))
        });
        let axes = ["round-trip time, ms", "seconds"];
        draw(&at("seconds"), load, axes, &by_rtt);
        let by_lanes = series(&rows, |row| {
            let lanes = row.contender.lanes().filter(|_| !row.contender.known())?;
            let alone = |other: &&Row| other.contender == Contender::ALONE && other.rtt == row.rtt;
            let ratio = rows.iter().find(alone)?.seconds / row.seconds;
            let mode = row.contender.to_string();
            let mode = mode.split(',').next().unwrap_or_default();
            Some((format!("{mode}, {} ms", row.rtt), lanes as f64, ratio))
        });
        let axes = ["lanes", "times faster than the stock client alone"];
        draw(&at("lanes"), load, axes, &by_lanes);
    }
}

type Series = Vec<(String, Vec<(f64, f64)>)>;

fn series(rows: &[Row], point: impl Fn(&Row) -> Option<(String, f64, f64)>) -> Series {
    let mut all: Series = Vec::new();
    for (name, x, y) in rows.iter().filter_map(point) {
        match all.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push((x, y)),
            None => all.push((name, vec![(x, y)])),
        }
    }
    all.retain(|(_, points)| points.len() > 1);
    all
}

fn draw(path: &Path, load: Load, axes: [&str; 2], series: &Series) {
    let points = || series.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return;
    }
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN, f64::max);
    let least = points().map(|p| p.1).fold(f64::MAX, f64::min);
    let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let x = 0.0..most(|p| p.0) * 1.02;
    let y = (least / 1.5..most(|p| p.1) * 1.5).log_scale();
    let mut chart = ChartBuilder::on(&root)
        .caption(load.name(), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .unwrap();
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(axes[0])
        .y_desc(axes[1])
        .light_line_style(WHITE.mix(0.0));
    mesh.draw().unwrap();
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2));
        chart.draw_series(line).unwrap().label(name).legend(key);
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft);
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK);
    labels.draw().unwrap();
    root.present().unwrap();
}
