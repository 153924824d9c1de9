//! A bound on log lines: whoever can make this program write one must not fill the disk with them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::metric;

/// So many lines of one kind a second; the others are counted.
const LINES_A_SECOND: u32 = 10;

/// What was written lately, by kind.
#[derive(Debug, Default)]
pub struct Floods(Mutex<HashMap<&'static str, Window>>);

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Floods {
    /// How many lines of this kind were suppressed before this one, or `None` where this one is
    /// too; that is counted.
    pub fn admit(&self, kind: &'static str) -> Option<u64> {
        let admitted = self.at(kind, Instant::now());
        if admitted.is_none() {
            metrics::counter!(metric::SUPPRESSED_LINES, "kind" => kind).increment(1);
        }
        admitted
    }

    fn at(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(kind).or_insert(Window {
            since: now,
            lines: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(window.since) >= Duration::from_secs(1) {
            (window.since, window.lines) = (now, 0);
        }
        if window.lines < LINES_A_SECOND {
            window.lines += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let floods = Floods::default();
        let start = Instant::now();
        for i in 0..100 {
            let admitted = floods.at("probation", start + Duration::from_millis(i));
            assert_eq!(admitted, (i < 10).then_some(0));
        }
        // Other kinds are not held back by it.
        assert_eq!(floods.at("healed", start), Some(0));
        let later = start + Duration::from_secs(1);
        assert_eq!(floods.at("probation", later), Some(90));
        assert_eq!(floods.at("probation", later), Some(0));
    }
}
