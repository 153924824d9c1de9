//! The demo and the benchmark: `bench demo`, `bench matrix` (see `--help`).

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

#[path = "../e2e/support/mod.rs"]
mod support;

mod measure;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use measure::{Bench, Contender, median};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The stock client alone beside syncmux, once each, and proof that both ends agree.
    Demo {
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
    },
    /// All contenders at several round-trip times; medians, ratios and CSV.
    Matrix {
        #[arg(long, default_value_t = 200)]
        users: usize,
        #[arg(long, value_delimiter = ',', default_value = "0,20,100")]
        rtt: Vec<f64>,
        #[arg(long, value_delimiter = ',', default_value = "4,8,16")]
        lanes: Vec<usize>,
        /// Stock clients that share the users by hand.
        #[arg(long, value_delimiter = ',', default_value = "4,8,16")]
        shards: Vec<usize>,
        #[arg(long, default_value_t = 3)]
        repeats: usize,
        #[arg(long)]
        csv: Option<PathBuf>,
        /// 40 users, 0 and 20 ms, once each.
        #[arg(long)]
        quick: bool,
        /// Without syncmux.
        #[arg(long)]
        stock_only: bool,
        #[command(flatten)]
        expect: Expect,
    },
}

/// Fails the run where a ratio to the stock client alone is smaller.
#[derive(clap::Args, Clone, Copy)]
struct Expect {
    #[arg(long)]
    expect_fan_out: Option<f64>,
    #[arg(long)]
    expect_strict: Option<f64>,
}

impl Expect {
    fn met(self, contender: Contender, ratio: f64) -> bool {
        let least = match contender {
            Contender::Stock { .. } => None,
            Contender::Strict { .. } => self.expect_strict,
            Contender::FanOut { .. } => self.expect_fan_out,
        };
        least.is_none_or(|least| ratio >= least)
    }
}

fn main() -> ExitCode {
    let ok = match Arguments::parse().command {
        Command::Demo {
            users,
            rtt,
            lanes,
            stock_only,
            expect,
        } => {
            let mut contenders = vec![Contender::Stock { clients: 1 }];
            if !stock_only {
                contenders.extend([Contender::Strict { lanes }, Contender::FanOut { lanes }]);
            }
            demo(users, rtt, &contenders, expect)
        }
        Command::Matrix {
            users,
            rtt,
            lanes,
            shards,
            repeats,
            csv,
            quick,
            stock_only,
            expect,
        } => {
            let mut contenders = vec![Contender::Stock { clients: 1 }];
            contenders.extend(shards.iter().map(|n| Contender::Stock { clients: *n }));
            if !stock_only {
                contenders.extend(lanes.iter().map(|n| Contender::Strict { lanes: *n }));
                contenders.extend(lanes.iter().map(|n| Contender::FanOut { lanes: *n }));
            }
            let (users, rtt, repeats) = if quick {
                (40, vec![0.0, 20.0], 1)
            } else {
                (users, rtt, repeats)
            };
            matrix(users, &rtt, &contenders, repeats, csv, expect)
        }
    };
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn milliseconds(value: f64) -> Duration {
    Duration::from_secs_f64(value / 1e3)
}

fn demo(users: usize, rtt: f64, contenders: &[Contender], expect: Expect) -> bool {
    println!("Starting a master and a replica, delivering mail to {users} users ...");
    let mut bench = Bench::start(users, 4096, milliseconds(rtt), false);
    let mut rows = Vec::new();
    for contender in contenders {
        println!("Replicating one new message for each of {users} users: {contender} ...");
        let seconds = bench.run(*contender);
        println!("  {seconds:.2} s");
        rows.push((*contender, seconds));
    }
    println!("Comparing both ends ...");
    let differences = bench.differences();
    drop(bench);
    println!("\n{users} users, one message of 4 KB each, a link of {rtt} ms\n");
    let ok = table(&rows, expect);
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

/// Prints seconds and ratios to the first row; whether they are what was expected.
fn table(rows: &[(Contender, f64)], expect: Expect) -> bool {
    println!("{:34} {:>9} {:>12}", "", "seconds", "times faster");
    let base = rows[0].1;
    let mut ok = true;
    for (contender, seconds) in rows {
        let ratio = base / seconds;
        let met = expect.met(*contender, ratio);
        let remark = if met { "" } else { "  less than expected" };
        println!("{contender:34} {seconds:>9.2} {ratio:>12.1}{remark}");
        ok &= met;
    }
    ok
}

fn matrix(
    users: usize,
    rtts: &[f64],
    contenders: &[Contender],
    repeats: usize,
    csv: Option<PathBuf>,
    expect: Expect,
) -> bool {
    let mut csv = csv.map(|path| std::fs::File::create(path).unwrap());
    if let Some(csv) = &mut csv {
        writeln!(csv, "rtt_ms,users,contender,run,seconds").unwrap();
    }
    let mut bench = Bench::start(users, 4096, Duration::ZERO, true);
    let mut ok = true;
    for rtt in rtts {
        bench.set_round_trip(milliseconds(*rtt));
        let mut rows = Vec::new();
        for contender in contenders {
            let mut times = Vec::new();
            for run in 0..repeats {
                let seconds = bench.run(*contender);
                times.push(seconds);
                if let Some(csv) = &mut csv {
                    writeln!(csv, "{rtt},{users},\"{contender}\",{run},{seconds:.4}").unwrap();
                }
            }
            rows.push((*contender, median(times)));
        }
        println!("\n{rtt} ms, {users} users, one message of 4 KB each, median of {repeats}");
        // What is expected is said of a link with a distance; at 0 ms see the ratios.
        let none = Expect {
            expect_fan_out: None,
            expect_strict: None,
        };
        ok &= table(&rows, if *rtt > 0.0 { expect } else { none });
    }
    let differences = bench.differences();
    println!("\n{} differences between both ends", differences.len());
    ok && differences.is_empty()
}
