//! The demo and the benchmark (see `--help`, and README.md beside this).

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

#[path = "../e2e/support/mod.rs"]
mod support;

mod contender;
mod lag;
mod measure;
mod report;
mod rightnow;
mod termination;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use contender::{Contender, Load};
use measure::{Bench, median};
use termination::Between;

use report::{Csv, Row, charts, table};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(Demo),
    Matrix(Matrix),
    Lag(Lag),
    Beside(Beside),
    Terminate(Termination),
    Rightnow(Synchronous),
}

/// The stock client alone beside syncmux, once each, and proof that both ends agree.
#[derive(Args)]
struct Demo {
    #[arg(long, default_value_t = 200)]
    users: usize,
    /// Round-trip time of the link in milliseconds.
    #[arg(long, default_value_t = 20.0)]
    rtt: f64,
    #[arg(long, default_value_t = 8)]
    lanes: usize,
    /// The stock client alone, without syncmux.
    #[arg(long)]
    stock_only: bool,
    #[command(flatten)]
    expect: Expect,
}

/// All contenders at several round-trip times, for each load; medians, ratios, CSV and charts.
#[derive(Args)]
struct Matrix {
    #[arg(long, value_delimiter = ',', default_value = "append")]
    load: Vec<Load>,
    /// Users; where not given 200, and 50 for a first copy.
    #[arg(long)]
    users: Option<usize>,
    #[arg(long, value_delimiter = ',', default_value = "0,5,20,50,100")]
    rtt: Vec<f64>,
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    lanes: Vec<usize>,
    /// Stock clients that share the users, by hand or by `syncmux shard`.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16")]
    shards: Vec<usize>,
    /// What takes longer than 5 s is measured once.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// A file for every single run.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// A folder for SVG files.
    #[arg(long)]
    charts: Option<PathBuf>,
    /// 40 users, 0 and 20 ms, 8 lanes and shards, once each.
    #[arg(long)]
    quick: bool,
    /// The master's Cyrus, and so the client's: 3.2, 3.6 or 3.10; the host's own where not given. The
    /// replica stays the host's.
    #[arg(long)]
    client: Option<String>,
    /// Without syncmux.
    #[arg(long)]
    stock_only: bool,
    /// Only contenders with this in their name, the first of which is what others are compared with.
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    expect: Expect,
}

/// From append on the master to visible on the replica, under a steady load.
#[derive(Args)]
struct Lag {
    #[arg(long, default_value_t = 200)]
    users: usize,
    #[arg(long, default_value_t = 20.0)]
    rtt: f64,
    #[arg(long, default_value_t = 8)]
    lanes: usize,
    /// Appends a second: one that the stock client can carry, and one that it can't.
    #[arg(long, value_delimiter = ',', default_value = "5,40")]
    rates: Vec<f64>,
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

/// One user with a lot of new mail beside many small ones: when are these done?
#[derive(Args)]
struct Beside {
    #[arg(long, default_value_t = 200)]
    users: usize,
    #[arg(long, default_value_t = 20.0)]
    rtt: f64,
    #[arg(long, default_value_t = 8)]
    lanes: usize,
    #[arg(long, default_value_t = 500)]
    megabytes: usize,
}

/// `terminate` beside stunnel, on one connection: bytes, commands, processor time.
#[derive(Args)]
struct Termination {
    #[arg(long, default_value_t = 2000)]
    megabytes: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// How long an IMAP client waits for APPEND where imapd syncs its own commits; and where the replica
/// is silent for a while.
#[derive(Args)]
struct Synchronous {
    #[arg(long, value_delimiter = ',', default_value = "20,100")]
    rtt: Vec<f64>,
    /// IMAP clients at once.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Appends of each.
    #[arg(long, default_value_t = 40)]
    appends: usize,
    /// Seconds for which the replica is stopped in the middle of the last table.
    #[arg(long, default_value_t = 20.0)]
    silence: f64,
}

/// Fails the run where a ratio to the stock client alone is smaller.
#[derive(Args, Clone, Copy, Default)]
struct Expect {
    #[arg(long)]
    expect_fan_out: Option<f64>,
    #[arg(long)]
    expect_strict: Option<f64>,
}

impl Expect {
    fn met(self, contender: Contender, ratio: f64) -> bool {
        let least = match contender {
            Contender::Stock { .. } | Contender::Shard { .. } => None,
            Contender::Strict { .. } => self.expect_strict,
            Contender::FanOut { .. } => self.expect_fan_out,
        };
        least.is_none_or(|least| ratio >= least)
    }

    fn all_met(self, rows: &[Row]) -> bool {
        let met = |row: &Row| self.met(row.contender, rows[0].seconds / row.seconds);
        rows.iter().all(met)
    }

    fn table(self, rows: &[Row]) -> bool {
        table(rows, |row, ratio| {
            if self.met(row.contender, ratio) {
                ""
            } else {
                "  less than expected"
            }
        });
        self.all_met(rows)
    }
}

fn main() -> ExitCode {
    let ok = match Arguments::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Matrix(matrix) => matrix.run(),
        Command::Lag(lag) => lag.run(),
        Command::Beside(beside) => beside.run(),
        Command::Terminate(termination) => termination.run(),
        Command::Rightnow(synchronous) => synchronous.run(),
    };
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A run that took more seconds than this is not repeated: chance has no part in it.
const LONG: f64 = 5.0;

fn milliseconds(value: f64) -> Duration {
    Duration::from_secs_f64(value / 1e3)
}

impl Demo {
    fn run(self) -> bool {
        let Demo {
            users, rtt, lanes, ..
        } = self;
        println!("Starting a master and a replica, delivering mail to {users} users ...");
        let mut bench = Bench::start(Load::Append, users, milliseconds(rtt), false);
        let mut contenders = vec![Contender::ALONE];
        if !self.stock_only {
            let known = false;
            contenders.push(Contender::Strict { lanes, known });
            contenders.push(Contender::FanOut { lanes, known });
        }
        let mut rows = Vec::new();
        for contender in contenders {
            println!("Replicating one new message for each of {users} users: {contender} ...");
            let seconds = bench.run(contender).seconds;
            println!("  {seconds:.2} s");
            let load = Load::Append;
            rows.push(Row {
                load,
                rtt,
                contender,
                seconds,
            });
        }
        println!("Comparing both ends ...");
        let differences = bench.differences();
        drop(bench);
        println!("\n{users} users, one message of 4 KB each, a link of {rtt} ms\n");
        let ok = self.expect.table(&rows);
        if differences.is_empty() {
            println!(
                "\nBoth ends hold the same: a direct stock sync_client (-A, -u) has nothing to send,\n\
                 and mailboxes, messages, flags, annotations, subscriptions are equal over IMAP."
            );
        } else {
            println!("\nTHE ENDS DIFFER:\n{}", differences.join("\n"));
        }
        ok && differences.is_empty()
    }
}

impl Matrix {
    fn run(mut self) -> bool {
        if self.quick {
            self.users = self.users.or(Some(40));
            self.rtt = vec![0.0, 20.0];
            (self.lanes, self.shards, self.repeats) = (vec![8], vec![8], 1);
        }
        let mut csv = self.csv.as_deref().map(Csv::create);
        let mut all = Vec::new();
        let mut ok = true;
        for load in &self.load {
            ok &= self.load(*load, &mut csv, &mut all);
        }
        if let Some(folder) = &self.charts {
            charts(folder, &all);
        }
        ok
    }

    fn contenders(&self, load: Load) -> Vec<Contender> {
        let mut all = vec![Contender::ALONE];
        all.extend(self.shards.iter().map(|n| Contender::Stock { clients: *n }));
        if !self.stock_only {
            let shard = |clients: &usize| {
                let clients = *clients;
                [false, true].map(|strict| Contender::Shard { clients, strict })
            };
            all.extend(self.shards.iter().flat_map(shard));
            for known in [false, true] {
                let strict = |n: &usize| Contender::Strict { lanes: *n, known };
                let fan_out = |n: &usize| Contender::FanOut { lanes: *n, known };
                // What is known does not depend on how many lanes there are.
                let lanes = || self.lanes.iter().filter(|n| !known || **n == 8);
                all.extend(lanes().map(strict));
                all.extend(lanes().map(fan_out));
            }
        }
        let only = self.only.as_deref().unwrap_or_default();
        all.retain(|one| load.is_for(*one) && one.to_string().contains(only));
        all
    }

    fn load(&self, load: Load, csv: &mut Option<Csv>, all: &mut Vec<Row>) -> bool {
        let users = self.users.unwrap_or(load.users());
        let contenders = self.contenders(load);
        if contenders.is_empty() {
            return true;
        }
        let client = self.client.as_deref();
        let mut bench = Bench::of_version(client, load, users, Duration::ZERO, true);
        let mut ok = true;
        for rtt in self.rtt.iter().copied() {
            bench.set_round_trip(milliseconds(rtt));
            let mut rows = Vec::new();
            for contender in contenders.iter().copied() {
                let mut row = Row {
                    load,
                    rtt,
                    contender,
                    seconds: 0.0,
                };
                let mut times = Vec::new();
                for run in 0..self.repeats {
                    let measured = bench.run(contender);
                    times.push(measured.seconds);
                    if let Some(csv) = csv {
                        csv.row(&row, users, run, measured);
                    }
                    if measured.seconds > LONG {
                        break;
                    }
                }
                row.seconds = median(times);
                rows.push(row);
            }
            let repeats = self.repeats;
            let what = load.describe(users);
            let version = &bench.lab.master.version;
            println!(
                "\n{rtt} ms, client {version}, {what}, median of {repeats} where below {LONG} s"
            );
            // What is expected is said of a link with a distance; at 0 ms see the ratios.
            let expect = if rtt > 0.0 {
                self.expect
            } else {
                Expect::default()
            };
            ok &= expect.table(&rows);
            all.extend(rows);
        }
        let differences = bench.differences();
        println!("\n{} differences between both ends", differences.len());
        ok && differences.is_empty()
    }
}

impl Synchronous {
    fn run(self) -> bool {
        let Synchronous {
            clients, appends, ..
        } = self;
        let silence = Duration::from_secs_f64(self.silence);
        let quiet = self.rtt.iter().map(|rtt| (*rtt, None));
        let silent = self.rtt.first().map(|rtt| (*rtt, Some(silence)));
        for (rtt, silence) in quiet.chain(silent) {
            let round_trip = milliseconds(rtt);
            let work = rightnow::Work {
                clients,
                appends,
                round_trip,
                silence,
            };
            println!(
                "\n{rtt} ms, {clients} IMAP clients, {appends} appends each, in ms; replica silent: {silence:?}"
            );
            println!("| | first | p50 | p99 | longest |\n| --- | --- | --- | --- | --- |");
            for how in rightnow::How::all() {
                let [first, p50, p99, longest] = how.run(work).summary();
                println!("| {how} | {first:.1} | {p50:.1} | {p99:.1} | {longest:.0} |");
            }
        }
        true
    }
}

impl Lag {
    fn run(self) -> bool {
        let Lag {
            users,
            rtt,
            lanes,
            seconds,
            ..
        } = self;
        let mut bench = Bench::start(Load::Append, users, milliseconds(rtt), true);
        println!(
            "{rtt} ms, {users} users, messages of 4 KB for {seconds} s, seconds until each was seen"
        );
        println!(
            "{:42} {:>9} {:>9} {:>9} {:>9}",
            "", "per s", "p50", "p99", "longest"
        );
        for rate in self.rates {
            let known = false;
            for contender in [Contender::ALONE, Contender::FanOut { lanes, known }] {
                let lags = lag::steady(&mut bench, contender, rate, seconds);
                let [p50, p99, most] = [50.0, 99.0, 100.0].map(|p| lags.percentile(p));
                println!("{contender:42} {rate:>9} {p50:>9.2} {p99:>9.2} {most:>9.2}");
            }
        }
        let differences = bench.differences();
        println!("\n{} differences between both ends", differences.len());
        differences.is_empty()
    }
}

impl Termination {
    fn run(self) -> bool {
        let dir = tempfile::tempdir().unwrap();
        support::process::give(dir.path());
        println!(
            "One connection; for 1 GB seconds and processor seconds, for commands that wait for each \
             other how many a second and processor seconds of 10,000; medians of {}",
            self.repeats
        );
        println!(
            "{:20} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8}",
            "", "up", "cpu", "down", "cpu", "commands", "cpu"
        );
        for between in [Between::Syncmux, Between::Stunnel] {
            let run = |i| {
                let at = dir.path().join(format!("{between:?}{i}"));
                let cost = termination::measure(between, &at, self.megabytes);
                [cost.up, cost.down, cost.commands].concat()
            };
            let runs: Vec<Vec<f64>> = (0..self.repeats).map(run).collect();
            let all = |i: usize| median(runs.iter().map(|run| run[i]).collect());
            let [up, up_cpu, down, down_cpu, commands, cpu] = [0, 1, 2, 3, 4, 5].map(all);
            let name = match between {
                Between::Syncmux => "syncmux terminate",
                Between::Stunnel => "stunnel",
            };
            println!(
                "{name:20} {up:>8.2} {up_cpu:>8.2} {down:>8.2} {down_cpu:>8.2} {commands:>10.0} {cpu:>8.2}"
            );
        }
        true
    }
}

impl Beside {
    fn run(self) -> bool {
        let Beside {
            users,
            rtt,
            lanes,
            megabytes,
        } = self;
        let small = users - 1;
        let mut bench = Bench::start(Load::Append, users, milliseconds(rtt), true);
        println!("{rtt} ms, seconds until the new message of each of {small} users was seen");
        println!("{:42} {:>9} {:>12} {:>7}", "", "alone", "beside", "ratio");
        let known = false;
        for contender in [Contender::ALONE, Contender::FanOut { lanes, known }] {
            let alone = lag::beside(&mut bench, contender, 0);
            let beside = lag::beside(&mut bench, contender, megabytes << 20);
            let ratio = beside / alone;
            println!("{contender:42} {alone:>9.2} {beside:>9.2} ({megabytes} MB) {ratio:>7.2}");
        }
        let differences = bench.differences();
        println!("\n{} differences between both ends", differences.len());
        differences.is_empty()
    }
}
