//! The tests' link as a program: `relay LISTEN TARGET MILLISECONDS`, until it is ended.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, missing_docs)]

#[path = "../e2e/support/relay.rs"]
mod relay;
#[path = "../e2e/support/traps.rs"]
mod traps;

use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, target, milliseconds] = arguments.as_slice() else {
        eprintln!("usage: relay 127.0.0.1:PORT HOST:PORT ROUND-TRIP-MILLISECONDS");
        std::process::exit(64);
    };
    let Ok(milliseconds) = milliseconds.parse::<f64>() else {
        eprintln!("{milliseconds:?} is not a number of milliseconds");
        std::process::exit(64);
    };
    let relay = relay::Relay::bind(listen, target, Duration::from_secs_f64(milliseconds / 1e3));
    println!("{} to {target}, {milliseconds} ms", relay.address());
    loop {
        std::thread::park();
    }
}
