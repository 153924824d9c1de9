//! What the end-to-end tests, the demo and the benchmark stand on: a real Cyrus master, a real
//! Cyrus replica, the stock `sync_client`, a link with faults, and a comparison of both ends.
//!
//! Nothing here knows how syncmux works inside; [`mux`] knows its command line, its configuration
//! file and its admin endpoint, as an operator would.

#![allow(dead_code)]

pub mod certs;
pub mod client;
pub mod compare;
pub mod csync;
pub mod cyrus;
pub mod imap;
pub mod lab;
pub mod literals;
pub mod mount;
pub mod mux;
pub mod netns;
pub mod process;
pub mod relay;
pub mod sieve;
pub mod syslog;
pub mod traps;
pub mod unlike;
pub mod version;

use std::time::{Duration, Instant};

/// Guards against hanging only: nothing is expected to come near it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again until `probe` answers, or panics with `what`.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
