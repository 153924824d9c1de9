//! From the core's notes to log lines and metrics.

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
}

impl Notes {
    /// For the channel of this name.
    #[must_use]
    pub fn new(channel: &str) -> Self {
        Notes {
            channel: channel.to_owned(),
            floods: Floods::default(),
        }
    }

    /// Writes the note's line, unless there were too many of its kind, and counts it.
    pub fn record(&self, note: &Note) {
        self.count(note);
        let kind = kind(note);
        if matches!(
            note,
            Note::UnitDone { .. } | Note::Answered { .. } | Note::Known { .. }
        ) {
            self.line(note, 0);
        } else if let Some(suppressed) = self.floods.admit(kind) {
            self.line(note, suppressed);
        }
    }

    /// Shows how things stand.
    pub fn show(&self, now: &Snapshot) {
        let channel = || self.channel.clone();
        for (state, lanes) in [
            ("connecting", now.lanes_opening),
            ("idle", now.lanes_idle),
            ("busy", now.lanes_busy),
        ] {
            gauge!(metric::LANES, "channel" => channel(), "state" => state).set(lanes as f64);
        }
        for (name, value) in [
            (metric::SESSIONS, now.sessions as u64),
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
                histogram!(metric::UNIT_SECONDS, "channel" => channel(), "outcome" => *outcome)
                    .record(took.as_secs_f64());
            }
            Note::Answered {
                verb,
                answer,
                took,
                early,
            } => {
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
            notes.show(&Snapshot {
                lanes_busy: 3,
                owed_lines: 2,
                ..Snapshot::default()
            });
        });
        let text = recorder.handle().render();
        for line in [
            "syncmux_healing_lines_total{channel=\"far\"} 7",
            "syncmux_lanes{channel=\"far\",state=\"busy\"} 3",
            "syncmux_owed_lines{channel=\"far\"} 2",
            "syncmux_failures_total{channel=\"far\",side=\"replica\",kind=\"refused\"} 1",
            "verb=\"APPLY MAILBOX\",answer=\"ok\",early=\"true\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
