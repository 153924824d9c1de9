//! How much is done: rates over the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Totals are noted this often.
const STEP: Duration = Duration::from_secs(5);

/// So many are kept: a minute.
const KEPT: usize = 12;

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Commands of clients that were answered.
    pub commands: u64,
    /// Units that the replica has confirmed.
    pub units: u64,
    /// Bytes sent to the replica.
    pub bytes: u64,
}

/// What was done in a second, on average over the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct PerSecond {
    /// Commands of clients that were answered.
    pub commands: f64,
    /// Units that the replica has confirmed.
    pub units: f64,
    /// Bytes sent to the replica.
    pub bytes: f64,
}

/// Totals of the last minute.
#[derive(Debug, Default)]
pub struct Rates(VecDeque<(Instant, Totals)>);

impl Rates {
    /// Takes in how things stand.
    pub fn update(&mut self, now: Instant, totals: Totals) -> PerSecond {
        let due = |at: &(Instant, Totals)| now.saturating_duration_since(at.0) >= STEP;
        if self.0.back().is_none_or(due) {
            self.0.push_back((now, totals));
            if self.0.len() > KEPT + 1 {
                self.0.pop_front();
            }
        }
        let Some((since, before)) = self.0.front() else {
            return PerSecond::default();
        };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        // To two digits behind the point: more say nothing.
        let rate = |now: u64, before: u64| {
            let each = now.saturating_sub(before) as f64 / seconds.max(1.0);
            (each * 100.0).round() / 100.0
        };
        PerSecond {
            commands: rate(totals.commands, before.commands),
            units: rate(totals.units, before.units),
            bytes: rate(totals.bytes, before.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_counts() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let at = |seconds: u64, units: u64| {
            let totals = Totals {
                units,
                ..Totals::default()
            };
            (start + Duration::from_secs(seconds), totals)
        };
        let mut update = |seconds, units| {
            let (now, totals) = at(seconds, units);
            rates.update(now, totals).units
        };
        assert_eq!(update(0, 0), 0.0);
        assert_eq!(update(10, 100), 10.0);
        for second in 11..100 {
            update(second, 100);
        }
        assert_eq!(update(100, 100), 0.0);
    }
}
