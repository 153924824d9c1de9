//! The log and the metrics: one line an event, one table of names.
//!
//! Neither shows the content of a message or a password. [`Note`]s of the core come here; each is
//! at most one line, and a kind of line that comes too often is counted instead.

use std::io::IsTerminal;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::config::{Log, LogFormat};

mod floods;
mod notes;

pub use floods::Floods;
pub use notes::Notes;

/// Names of the metrics. A label `channel` is "" for the default channel.
pub mod metric {
    /// Commands by `channel`, `verb`, `answer` (ok, no, bad, bye) and `early` (true, false).
    pub const COMMANDS: &str = "syncmux_commands_total";
    /// Units sent to the replica and not answered, by `channel`.
    pub const UNITS_IN_FLIGHT: &str = "syncmux_units_in_flight";
    /// Units that wait for a lane or for another unit of their user, by `channel`.
    pub const UNITS_QUEUED: &str = "syncmux_units_queued";
    /// Users with acknowledged work that the replica has not confirmed, by `channel`.
    pub const UNCONFIRMED_USERS: &str = "syncmux_unconfirmed_users";
    /// Sessions that are logged in, by `channel`.
    pub const SESSIONS: &str = "syncmux_sessions";
    /// Connections to the replica by `channel` and `state` (connecting, idle, busy).
    pub const LANES: &str = "syncmux_lanes";
    /// Bytes by `channel`, `side` (client, replica) and `direction` (in, out).
    pub const BYTES: &str = "syncmux_bytes_total";
    /// Bytes of messages that are staged, in memory and spilled, by `channel`.
    pub const STAGED_BYTES: &str = "syncmux_staged_bytes";
    /// Bytes of commands that wait for a lane, by `channel`.
    pub const QUEUED_BYTES: &str = "syncmux_queued_bytes";
    /// From a unit's arrival to the replica's answer, by `channel` and `outcome`.
    pub const UNIT_SECONDS: &str = "syncmux_unit_seconds";
    /// From a command's arrival to its answer, by `channel` and `early`.
    pub const ACKNOWLEDGEMENT_SECONDS: &str = "syncmux_acknowledgement_seconds";
    /// Failures by `channel`, `side` (client, replica, disk) and `kind`: of a client cache, and what
    /// ends a session; of the replica refused, in_doubt, away, and what ends a lane; of the disk
    /// not_covered, not_written, no_room.
    pub const FAILURES: &str = "syncmux_failures_total";
    /// Lines written into the sync log to heal, by `channel`.
    pub const HEALING_LINES: &str = "syncmux_healing_lines_total";
    /// Commands with a verb that syncmux does not know, by `channel`.
    pub const UNKNOWN_VERBS: &str = "syncmux_unknown_verbs_total";
    /// Users on probation, by `channel`.
    pub const PROBATION_USERS: &str = "syncmux_probation_users";
    /// Lines in the owed file, by `channel`.
    pub const OWED_LINES: &str = "syncmux_owed_lines";
    /// Links of runs, by `channel`.
    pub const RUNS_LINKED: &str = "syncmux_runs_linked";
    /// Mailboxes of GET MAILBOXES that were answered from known state (`outcome` "hit"), were asked
    /// for ("miss"), or about which a client was told what was not so ("wrong"), by `channel`.
    pub const KNOWN: &str = "syncmux_known_total";
    /// Bytes of known state, by `channel`.
    pub const KNOWN_BYTES: &str = "syncmux_known_bytes";
    /// When the certificates of a `file` run out, in seconds since 1970: the first of a chain, the
    /// last of the authorities.
    pub const CERTIFICATE_EXPIRY: &str = "syncmux_certificate_expiry_seconds";
    /// Certificates read anew, by `result` (ok, refused).
    pub const CERTIFICATE_RELOADS: &str = "syncmux_certificate_reloads_total";
    /// Connections that `terminate` carries at the moment.
    pub const TERMINATED: &str = "syncmux_terminated_connections";
    /// Connections that came to `terminate`, by `result` (carried, and why not: full, tls, name,
    /// login, server, client).
    pub const TERMINATED_TOTAL: &str = "syncmux_terminated_connections_total";
    /// Log lines that were counted instead of written, by `kind`.
    pub const SUPPRESSED_LINES: &str = "syncmux_log_lines_suppressed_total";
}

/// Upper bounds of the histograms' buckets: from an early answer to a replica that is away.
const SECONDS: [f64; 17] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    15.0, 60.0, 300.0,
];

/// Starts the log, on standard error. `RUST_LOG` goes before the configured level. Does nothing
/// where there is a log already.
pub fn start_log(log: &Log) {
    // The libraries' own lines are for those who write them.
    let others = log.level.min(tracing::Level::WARN);
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{others},syncmux={}", log.level)));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Starts the metrics. The handle renders them; [`upkeep`] must run beside it.
pub fn start_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("the metrics can't be set up: {error}"))?;
    describe();
    Ok(handle)
}

/// Folds what histograms have gathered, which would grow without bound where nobody asks for
/// them. Never returns.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut pause = tokio::time::interval(Duration::from_secs(5));
    loop {
        pause.tick().await;
        handle.run_upkeep();
    }
}

fn describe() {
    use metric::*;
    describe_counter!(COMMANDS, "Commands of clients");
    describe_gauge!(
        UNITS_IN_FLIGHT,
        "Units sent to the replica and not answered"
    );
    describe_gauge!(UNITS_QUEUED, "Units that wait");
    describe_gauge!(
        UNCONFIRMED_USERS,
        "Users with acknowledged, unconfirmed work"
    );
    describe_gauge!(SESSIONS, "Sessions that are logged in");
    describe_gauge!(LANES, "Connections to the replica");
    describe_counter!(BYTES, Unit::Bytes, "Bytes from and to clients and replicas");
    describe_gauge!(STAGED_BYTES, Unit::Bytes, "Bytes of staged messages");
    describe_gauge!(QUEUED_BYTES, Unit::Bytes, "Bytes of commands that wait");
    describe_histogram!(
        UNIT_SECONDS,
        Unit::Seconds,
        "From a unit's arrival to its end"
    );
    describe_histogram!(
        ACKNOWLEDGEMENT_SECONDS,
        Unit::Seconds,
        "From a command's arrival to its answer"
    );
    describe_counter!(FAILURES, "Failures by kind");
    describe_counter!(HEALING_LINES, "Lines written into the sync log to heal");
    describe_counter!(UNKNOWN_VERBS, "Commands with an unknown verb");
    describe_gauge!(PROBATION_USERS, "Users on probation");
    describe_gauge!(OWED_LINES, "Lines that wait to go into the sync log");
    describe_gauge!(RUNS_LINKED, "Links of runs in the sync directory");
    describe_counter!(KNOWN, "Mailboxes answered from known state, or not");
    describe_gauge!(KNOWN_BYTES, Unit::Bytes, "Bytes of known state");
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "When certificates run out"
    );
    describe_counter!(CERTIFICATE_RELOADS, "Certificates read anew");
    describe_gauge!(TERMINATED, "Connections that terminate carries");
    describe_counter!(TERMINATED_TOTAL, "Connections that came to terminate");
    describe_counter!(SUPPRESSED_LINES, "Log lines counted instead of written");
}
