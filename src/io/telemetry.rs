//! The log and the metrics: one line an event, one table of names.
//!
//! Neither shows the content of a message or a password. [`Note`]s of the core come here; each is
//! at most one line, and a kind of line that comes too often is counted instead.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::Level;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

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
    /// Sessions that came by `listen`: rolling clients, by `channel`.
    pub const CLIENTS: &str = "syncmux_clients";
    /// Logins on `listen`, by `channel`: a client that starts over and over.
    pub const CLIENT_LOGINS: &str = "syncmux_client_logins_total";
    /// Age of the oldest acknowledged change that is not confirmed, by `channel`; 0 where there is
    /// none.
    pub const UNCONFIRMED_SECONDS: &str = "syncmux_oldest_unconfirmed_seconds";
    /// Age of the oldest line that is not confirmed, wherever it stands, by `channel`: the larger
    /// of the former and of the age of `log` and `log-run`.
    pub const LAG_SECONDS: &str = "syncmux_lag_seconds";
    /// Age of the oldest line of a file by `channel` and `file` (log, log-run); 0 without lines.
    pub const LOG_SECONDS: &str = "syncmux_log_oldest_seconds";
    /// Size by `channel` and `file` (log, log-run).
    pub const LOG_BYTES: &str = "syncmux_log_bytes";
    /// 1 where the sync directory can be written, else 0, by `channel`.
    pub const DIRECTORY_USABLE: &str = "syncmux_sync_directory_usable";
    /// Lanes that there is work for, up to `lanes` of the configuration, by `channel`.
    pub const LANES_WANTED: &str = "syncmux_lanes_wanted";
    /// Since when the replica can't be reached, by `channel`; 0 where it can.
    pub const AWAY_SECONDS: &str = "syncmux_replica_away_seconds";
    /// Median round-trip time of the lane that is slowest, by `channel`; 0 where none was measured.
    pub const ROUND_TRIP_SECONDS: &str = "syncmux_round_trip_seconds";
    /// Bytes in spill files.
    pub const SPILL_BYTES: &str = "syncmux_spill_bytes";
    /// As many as there may be.
    pub const SPILL_LIMIT: &str = "syncmux_spill_limit_bytes";
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
    /// How long a command of a commit waited for the replica (`rightnow_listen`), by `channel`.
    pub const RIGHTNOW_SECONDS: &str = "syncmux_rightnow_wait_seconds";
    /// Commands of commits that were put off: their lines went into the sync log, by `channel` and
    /// `why` (limit, away, lost, refused, no room, ended, stopping).
    pub const RIGHTNOW_PUT_OFF: &str = "syncmux_rightnow_put_off_total";
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
    /// Starts of the client by `client_command`, by `channel`.
    pub const CLIENT_STARTS: &str = "syncmux_client_starts_total";
    /// Ends of the client of `client_command`, by `channel` and `code` (its exit code, or `signal N`).
    pub const CLIENT_EXITS: &str = "syncmux_client_exits_total";
    /// Lines that `shard` has dealt, by `channel` (whose log it takes over) and `shard`.
    pub const SHARD_LINES: &str = "syncmux_shard_lines_total";
    /// User keys with unfinished lines, by `channel` and `shard`.
    pub const SHARD_USERS: &str = "syncmux_shard_unfinished_users";
    /// Lines that may not be dealt yet, by `channel`.
    pub const SHARD_HELD: &str = "syncmux_shard_held_lines";
    /// Runs of the channel's log that were taken over, by `channel`.
    pub const SHARD_RUNS: &str = "syncmux_shard_runs_total";
    /// Lines that nobody can read, by `channel`.
    pub const SHARD_UNREADABLE: &str = "syncmux_shard_unreadable_lines_total";
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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| filter_of(log.level));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(filter).with(lines);
    if registry.try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// What is written of the log that runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The libraries' own lines are for those who write them.
fn filter_of(level: Level) -> EnvFilter {
    let others = level.min(Level::WARN);
    EnvFilter::new(format!("{others},syncmux={level}"))
}

/// Sets the level of the log that runs, in the place of the configured one and of `RUST_LOG`.
///
/// # Errors
/// In a sentence.
pub fn set_level(word: &str) -> Result<Level, String> {
    const LEVELS: [(&str, Level); 5] = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let found = LEVELS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(word));
    let Some((_, level)) = found else {
        return Err(format!(
            "{word:?} is no log level: send level=error, level=warn, level=info, level=debug or \
             level=trace"
        ));
    };
    let Some(filter) = FILTER.get() else {
        return Err("the log of this program can't be changed".to_owned());
    };
    let reloaded = filter.reload(filter_of(*level));
    reloaded.map_err(|error| format!("the log level can't be changed: {error}"))?;
    Ok(*level)
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
    describe_gauge!(CLIENTS, "Sessions that came by listen: rolling clients");
    describe_counter!(CLIENT_LOGINS, "Logins on listen");
    describe_gauge!(
        UNCONFIRMED_SECONDS,
        Unit::Seconds,
        "Age of the oldest acknowledged change that is not confirmed"
    );
    describe_gauge!(
        LAG_SECONDS,
        Unit::Seconds,
        "Age of the oldest line that is not confirmed"
    );
    describe_gauge!(
        LOG_SECONDS,
        Unit::Seconds,
        "Age of the oldest line of log and of log-run"
    );
    describe_gauge!(LOG_BYTES, Unit::Bytes, "Size of log and of log-run");
    describe_gauge!(
        DIRECTORY_USABLE,
        "1 where the sync directory can be written"
    );
    describe_gauge!(LANES_WANTED, "Lanes that there is work for");
    describe_gauge!(
        AWAY_SECONDS,
        Unit::Seconds,
        "For how long the replica can't be reached"
    );
    describe_gauge!(
        ROUND_TRIP_SECONDS,
        Unit::Seconds,
        "Median round-trip time of the slowest lane"
    );
    describe_gauge!(SPILL_BYTES, Unit::Bytes, "Bytes in spill files");
    describe_gauge!(SPILL_LIMIT, Unit::Bytes, "Bytes that spill files may hold");
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
    describe_histogram!(
        RIGHTNOW_SECONDS,
        Unit::Seconds,
        "How long a command of a commit waited for the replica"
    );
    describe_counter!(
        RIGHTNOW_PUT_OFF,
        "Commands of commits that were put off, by reason"
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
    describe_counter!(CLIENT_STARTS, "Starts of the client by client_command");
    describe_counter!(CLIENT_EXITS, "Ends of the client of client_command");
    describe_counter!(SHARD_LINES, "Lines dealt to a shard");
    describe_gauge!(SHARD_USERS, "Users with unfinished lines in a shard");
    describe_gauge!(SHARD_HELD, "Lines that may not be dealt yet");
    describe_counter!(SHARD_RUNS, "Runs of the channel's log taken over");
    describe_counter!(SHARD_UNREADABLE, "Lines that nobody can read");
    describe_counter!(SUPPRESSED_LINES, "Log lines counted instead of written");
}
