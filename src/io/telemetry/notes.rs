//! From the core's notes to log lines and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, info, warn};

use super::floods::Floods;
use super::metric;
use crate::core::{Snapshot, event::Note};

/// Takes the notes of one channel's core.
#[derive(Debug)]
pub struct Notes {
    channel: String,
    floods: Floods,
    commands: AtomicU64,
    units: AtomicU64,
    /// The channel has a `listen`, where a client should be.
    expects_client: bool,
}

impl Notes {
    /// For the channel of this name.
    #[must_use]
    pub fn new(channel: &str) -> Self {
        Notes {
            channel: channel.to_owned(),
            floods: Floods::default(),
            commands: AtomicU64::new(0),
            units: AtomicU64::new(0),
            expects_client: true,
        }
    }

    /// For a channel without `listen`: nobody misses its rolling client.
    #[must_use]
    pub fn without_client(mut self) -> Self {
        self.expects_client = false;
        self
    }

    /// No rolling client has been there for so long.
    pub fn client_missing(&self, time: Duration) {
        warn!(
            channel = self.channel,
            seconds = time.as_secs(),
            "no rolling client is there, so nothing is replicated: something must start \
             sync_client again when it has ended, which it does with exit code 0 (DAEMON in \
             cyrus.conf)"
        );
    }

    /// Whether a rolling client should be there.
    #[must_use]
    pub fn expects_client(&self) -> bool {
        self.expects_client
    }

    /// Writes the note's line, unless there were too many of its kind, and counts it.
    pub fn record(&self, note: &Note) {
        self.count(note);
        let kind = kind(note);
        if matches!(
            note,
            Note::UnitDone { .. }
                | Note::Answered { .. }
                | Note::Known { .. }
                | Note::Waited { .. }
        ) {
            self.line(note, 0);
        } else if let Some(suppressed) = self.floods.admit(kind) {
            self.line(note, suppressed);
        }
    }

    /// A line that the client of `client_command` wrote.
    pub fn client_line(&self, line: &str) {
        let Some(suppressed) = self.floods.admit("client_output") else {
            return;
        };
        let line = line.replace(char::is_control, " ");
        if suppressed > 0 {
            info!(
                channel = self.channel,
                suppressed, "the client says: {line}"
            );
        } else {
            info!(channel = self.channel, "the client says: {line}");
        }
    }

    /// Commands answered and units confirmed since the start.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.commands), read(&self.units))
    }

    /// A client has logged in on `listen`.
    pub fn client_came(&self) {
        counter!(metric::CLIENT_LOGINS, "channel" => self.channel.clone()).increment(1);
    }

    /// Shows how things stand; `log_seconds` is the age of the oldest line in `log` and `log-run`.
    pub fn show(&self, now: &Snapshot, log_seconds: Option<u64>) {
        let channel = || self.channel.clone();
        if self.expects_client {
            gauge!(metric::CLIENTS, "channel" => channel()).set(now.clients as f64);
            // So that it is there before the first one comes, and `increase` sees that.
            counter!(metric::CLIENT_LOGINS, "channel" => channel()).increment(0);
        }
        let unconfirmed = now.lag_milliseconds.unwrap_or(0) as f64 / 1000.0;
        let round_trips = now
            .lane_list
            .iter()
            .filter_map(|it| it.round_trip_microseconds);
        for (name, value) in [
            (metric::UNCONFIRMED_SECONDS, unconfirmed),
            (
                metric::LAG_SECONDS,
                unconfirmed.max(log_seconds.unwrap_or(0) as f64),
            ),
            (
                metric::AWAY_SECONDS,
                now.replica_away_seconds.unwrap_or(0) as f64,
            ),
            (
                metric::ROUND_TRIP_SECONDS,
                round_trips.max().unwrap_or(0) as f64 / 1e6,
            ),
        ] {
            gauge!(name, "channel" => channel()).set(value);
        }
        for (state, lanes) in [
            ("connecting", now.lanes_opening),
            ("idle", now.lanes_idle),
            ("busy", now.lanes_busy),
        ] {
            gauge!(metric::LANES, "channel" => channel(), "state" => state).set(lanes as f64);
        }
        for (name, value) in [
            (metric::SESSIONS, now.sessions as u64),
            (metric::LANES_WANTED, now.lanes_wanted as u64),
            (metric::UNITS_IN_FLIGHT, now.in_flight as u64),
            (metric::UNITS_QUEUED, now.queued as u64),
            (metric::UNCONFIRMED_USERS, now.unconfirmed_users as u64),
            (metric::QUEUED_BYTES, now.queued_bytes),
            (metric::STAGED_BYTES, now.staged_bytes),
            (metric::KNOWN_BYTES, now.known_bytes),
            (metric::RUNS_LINKED, now.runs_linked as u64),
            (metric::OWED_LINES, now.owed_lines as u64),
            (metric::PROBATION_USERS, now.probation_subjects as u64),
        ] {
            gauge!(name, "channel" => channel()).set(value as f64);
        }
    }

    fn count(&self, note: &Note) {
        let channel = || self.channel.clone();
        let failed = |side: &'static str, kind: &'static str| {
            counter!(
                metric::FAILURES, "channel" => channel(), "side" => side, "kind" => kind
            )
            .increment(1);
        };
        match note {
            Note::ClientCache { .. } => failed("client", "cache"),
            Note::UnknownVerb { .. } => {
                counter!(metric::UNKNOWN_VERBS, "channel" => channel()).increment(1);
            }
            Note::Probation { refused, .. } => {
                failed("replica", if *refused { "refused" } else { "in_doubt" });
            }
            Note::LinesWritten { lines } => {
                counter!(metric::HEALING_LINES, "channel" => channel()).increment(*lines as u64);
            }
            Note::NotCovered { .. } => failed("disk", "not_covered"),
            Note::NotWritten { .. } => failed("disk", "not_written"),
            Note::ReplicaAway { .. } => failed("replica", "away"),
            Note::NoMoreLanes { .. } => failed("replica", "lane_refused"),
            Note::UnitDone { took, outcome } => {
                if *outcome == "ok" {
                    self.units.fetch_add(1, Ordering::Relaxed);
                }
                histogram!(metric::UNIT_SECONDS, "channel" => channel(), "outcome" => *outcome)
                    .record(took.as_secs_f64());
            }
            Note::Answered {
                verb,
                answer,
                took,
                early,
            } => {
                self.commands.fetch_add(1, Ordering::Relaxed);
                let early = if *early { "true" } else { "false" };
                counter!(
                    metric::COMMANDS, "channel" => channel(), "verb" => *verb,
                    "answer" => *answer, "early" => early
                )
                .increment(1);
                histogram!(
                    metric::ACKNOWLEDGEMENT_SECONDS, "channel" => channel(), "early" => early
                )
                .record(took.as_secs_f64());
            }
            Note::Known { outcome, names } => {
                counter!(metric::KNOWN, "channel" => channel(), "outcome" => *outcome)
                    .increment(*names as u64);
            }
            Note::PutOff { why, .. } => {
                counter!(metric::RIGHTNOW_PUT_OFF, "channel" => channel(), "why" => *why)
                    .increment(1);
            }
            Note::Waited { took } => {
                histogram!(metric::RIGHTNOW_SECONDS, "channel" => channel())
                    .record(took.as_secs_f64());
            }
            Note::Healed { .. } | Note::ReplicaBack => {}
        }
    }

    fn line(&self, note: &Note, suppressed: u64) {
        let channel = self.channel.as_str();
        // Only where there is something to tell.
        let suppressed = (suppressed > 0).then_some(suppressed);
        match note {
            Note::ClientCache { session } => warn!(
                channel,
                session = session.0,
                suppressed,
                "a client answers from its own cache and can't be healed: it is served strictly; \
                 remove sync_cache_db_path from imapd.conf"
            ),
            Note::UnknownVerb { verb } => {
                warn!(
                    channel,
                    ?verb,
                    suppressed,
                    "a command with an unknown verb was passed on"
                );
            }
            Note::Probation {
                subject,
                why,
                refused,
                pause,
            } => {
                let what = if *refused {
                    "refused by the replica"
                } else {
                    "in doubt"
                };
                let pause = seconds(*pause);
                warn!(
                    channel,
                    ?subject,
                    why,
                    what,
                    pause,
                    suppressed,
                    "on probation"
                );
            }
            Note::Healed { subject } => info!(channel, ?subject, suppressed, "healed"),
            Note::LinesWritten { lines } => {
                info!(
                    channel,
                    lines, suppressed, "lines were written into the sync log"
                );
            }
            Note::NotCovered { why } => warn!(
                channel,
                why,
                suppressed,
                "the sync directory can't be used: every answer waits for the replica meanwhile"
            ),
            Note::NotWritten { why } => warn!(
                channel,
                why,
                suppressed,
                "owed lines can't be written: it is tried again every 2 seconds, and nothing is \
                 forgotten meanwhile"
            ),
            Note::ReplicaAway { why, pause } => {
                let pause = seconds(*pause);
                warn!(channel, why, pause, suppressed, "the replica is away");
            }
            Note::NoMoreLanes { why } => warn!(
                channel,
                why, suppressed, "the replica refuses more connections; those that it has go on"
            ),
            Note::PutOff { verb, why, lines } => warn!(
                channel,
                verb,
                why,
                lines,
                suppressed,
                "a commit is not on the replica yet: its lines go into the sync log, and the \
                 rolling client brings it there"
            ),
            Note::Waited { took } => {
                debug!(channel, seconds = seconds(*took), "a commit waited");
            }
            Note::ReplicaBack => info!(channel, suppressed, "the replica is back"),
            Note::Known { outcome, names } => debug!(channel, outcome, names, "known state"),
            Note::UnitDone { took, outcome } => {
                debug!(channel, outcome, seconds = seconds(*took), "unit done");
            }
            Note::Answered {
                verb,
                answer,
                took,
                early,
            } => {
                let seconds = seconds(*took);
                debug!(channel, verb, answer, early, seconds, "answered");
            }
        }
    }
}

/// To the microsecond: more digits say nothing.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

fn kind(note: &Note) -> &'static str {
    match note {
        Note::ClientCache { .. } => "client_cache",
        Note::UnknownVerb { .. } => "unknown_verb",
        Note::Probation { .. } => "probation",
        Note::Healed { .. } => "healed",
        Note::LinesWritten { .. } => "lines_written",
        Note::NotCovered { .. } => "not_covered",
        Note::NotWritten { .. } => "not_written",
        Note::ReplicaAway { .. } => "replica_away",
        Note::NoMoreLanes { .. } => "no_more_lanes",
        Note::ReplicaBack => "replica_back",
        Note::UnitDone { .. } => "unit_done",
        Note::Answered { .. } => "answered",
        Note::Known { .. } => "known",
        Note::PutOff { .. } => "put_off",
        Note::Waited { .. } => "waited",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_notes() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let notes = Notes::new("far");
            let took = Duration::from_millis(3);
            let (verb, answer) = ("APPLY MAILBOX", "ok");
            notes.record(&Note::Answered {
                verb,
                answer,
                took,
                early: true,
            });
            notes.record(&Note::LinesWritten { lines: 7 });
            let why = "NO IMAP_IOERROR".to_owned();
            let subject = "joe".to_owned();
            notes.record(&Note::Probation {
                subject,
                why,
                refused: true,
                pause: took,
            });
            notes.show(
                &Snapshot {
                    lanes_busy: 3,
                    owed_lines: 2,
                    lag_milliseconds: Some(1500),
                    ..Snapshot::default()
                },
                Some(7),
            );
        });
        let text = recorder.handle().render();
        for line in [
            "syncmux_healing_lines_total{channel=\"far\"} 7",
            "syncmux_lanes{channel=\"far\",state=\"busy\"} 3",
            "syncmux_owed_lines{channel=\"far\"} 2",
            "syncmux_oldest_unconfirmed_seconds{channel=\"far\"} 1.5",
            "syncmux_lag_seconds{channel=\"far\"} 7",
            "syncmux_client_logins_total{channel=\"far\"} 0",
            "syncmux_failures_total{channel=\"far\",side=\"replica\",kind=\"refused\"} 1",
            "verb=\"APPLY MAILBOX\",answer=\"ok\",early=\"true\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
