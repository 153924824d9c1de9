//! What is in deploy/grafana: the alerts are tried out by Prometheus's own promtool, and dashboard
//! and alerts name only metrics and labels that the program has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::process::Command;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana");

fn promtool(args: &[&str]) {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(FOLDER)
        .output();
    let output = output.expect("promtool (Debian's package prometheus): tests/run.sh installs it");
    assert!(
        output.status.success(),
        "promtool {args:?}:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn alerts_are_well_formed() {
    promtool(&["check", "rules", "alerts.yml"]);
}

#[test]
fn alerts_come_when_they_should() {
    promtool(&["test", "rules", "alerts_test.yml"]);
}

fn read(name: &str) -> String {
    std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap()
}

/// Every word that begins like a metric of ours.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_word(c));
    let ours = words.filter(|word| word.starts_with("syncmux_"));
    let base = |word: &str| {
        let bare = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| word.strip_suffix(end));
        bare.unwrap_or(word).to_owned()
    };
    ours.map(base).collect()
}

#[test]
fn every_metric_is_one_that_there_is() {
    let source = include_str!("../src/io/telemetry.rs");
    let described: BTreeSet<String> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .filter_map(|line| Some(line.split('"').nth(1)?.to_owned()))
        .collect();
    assert!(described.len() > 20, "{described:?}");
    for name in &described {
        let constant = source
            .lines()
            .find(|line| line.contains(&format!("\"{name}\"")));
        let constant = constant.and_then(|line| line.trim().strip_prefix("pub const "));
        let constant = constant.and_then(|line| line.split(':').next()).unwrap();
        assert!(
            source.matches(constant).count() > 1,
            "{name} is not described"
        );
    }
    let known = |name: &String| described.contains(name);
    let named = ["dashboard.json", "alerts.yml", "alerts_test.yml"];
    for file in named {
        let used = metrics(&read(file));
        assert!(used.len() > 10, "{file}: {used:?}");
        let unknown: Vec<&String> = used.iter().filter(|name| !known(name)).collect();
        assert!(
            unknown.is_empty(),
            "{file} names what there is not: {unknown:?}"
        );
    }
}

#[test]
fn every_alert_is_tried_out() {
    let text = read("alerts.yml");
    let alerts = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let tests = read("alerts_test.yml");
    for alert in alerts {
        let name = format!("alertname: {alert}\n");
        let fires = tests.split(&name).skip(1);
        let fires = fires.filter(|rest| rest.trim_start().starts_with("exp_alerts:\n"));
        assert!(fires.count() > 0, "no test makes {alert} fire");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 15);
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(
                    x < 24 && cells.insert((x, y)),
                    "{} overlaps",
                    panel["title"]
                );
            }
        }
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            // What Grafana puts in for its variables.
            let expression = expression.replace("$__rate_interval", "5m");
            let expression = expression
                .replace("$instance", ".*")
                .replace("$channel", ".*");
            let rules =
                format!("groups: [{{name: x, rules: [{{record: x, expr: '{expression}'}}]}}]");
            let file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
            std::fs::write(file.path(), rules).unwrap();
            promtool(&["check", "rules", file.path().to_str().unwrap()]);
        }
    }
}
