//! `/status` in 80 columns.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::printable;
use super::status::{Channel, Directory, File, Lane, Sharded, State, Status, Terminate};

/// No line is longer.
const COLUMNS: usize = 80;

/// So many rows of one table: the rest is a number.
const ROWS: usize = 20;

/// After so many seconds without one a rolling client is missing; a restart takes less.
const MISSING: u64 = 60;

/// The whole page.
pub(super) fn status(status: &Status) -> String {
    let mut page = Page::default();
    if let Some(terminate) = &status.terminate {
        page.terminate(terminate);
        return page.0;
    }
    if let Some(shard) = &status.shard {
        page.shard(shard);
        return page.0;
    }
    let spill = &status.spill;
    page.line(format!(
        "syncmux {}, running for {}; {} of {} spilled to disk",
        status.version,
        seconds(status.running_seconds),
        bytes(spill.bytes),
        bytes(spill.limit),
    ));
    for channel in &status.channels {
        page.line("");
        page.channel(channel);
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        let text = cut(&printable(text.as_ref()), COLUMNS);
        self.0.push_str(text.trim_end());
        self.0.push('\n');
    }

    fn terminate(&mut self, terminate: &Terminate) {
        let connections = plural(terminate.connections, "connection");
        self.line(format!("syncmux terminate: {connections}"));
        if terminate.oldest.is_empty() {
            return;
        }
        self.line("     FOR  FROM (THE NAMES OF ITS CERTIFICATE)");
        for guest in terminate.oldest.iter().take(ROWS) {
            let names = guest.names.join(", ");
            let names = if names.is_empty() {
                names
            } else {
                format!(" ({names})")
            };
            let time = seconds(guest.seconds);
            self.line(format!("  {time:>6}  {}{names}", guest.peer));
        }
        let shown = terminate.oldest.len().min(ROWS);
        if terminate.connections > shown {
            let more = terminate.connections - shown;
            self.line(format!("           and {more} more"));
        }
    }

    fn shard(&mut self, shard: &Sharded) {
        let name = match shard.channel.as_str() {
            "" => "the default channel".to_owned(),
            name => format!("channel {name}"),
        };
        let held = plural(shard.held_lines, "line");
        self.line(format!(
            "syncmux shard: the log of {name}, {held} held back"
        ));
        if shard.full {
            self.line("  SO MANY LINES ARE HELD BACK THAT THE LOG IS NOT TAKEN OVER");
        }
        if let Some(trouble) = &shard.trouble {
            self.line(format!("  LINES CAN'T BE DEALT: {trouble}"));
        }
        self.line("     USERS      LINES      DEALT  SHARD");
        for one in &shard.shards {
            if one.retired && one.lines == 0 {
                continue;
            }
            let what = if one.retired {
                " (no shard any more)"
            } else {
                ""
            };
            self.line(format!(
                "  {:>8}  {:>9}  {:>9}  {}{what}",
                one.users, one.lines, one.dealt, one.name
            ));
        }
    }

    fn channel(&mut self, channel: &Channel) {
        let state = &channel.state;
        let name = if channel.name.is_empty() {
            "the default channel".to_owned()
        } else {
            format!("channel {}", channel.name)
        };
        self.line(format!("{name}, {}: {}", channel.mode, verdict(channel)));
        if let Some(directory) = &channel.directory {
            self.directory(directory);
        }
        let lag = state
            .lag_milliseconds
            .map_or("none".to_owned(), milliseconds);
        self.fact(
            "unconfirmed",
            format!(
                "{} users, oldest {lag}; {} ({}) under way",
                state.unconfirmed_users,
                plural(state.in_flight + state.queued, "job"),
                bytes(state.queued_bytes),
            ),
        );
        self.fact(
            "owed",
            format!(
                "{}; {} failing; {} linked; {} staged",
                plural(state.owed_lines, "line"),
                state.probation_subjects,
                plural(state.runs_linked, "run"),
                bytes(state.staged_bytes),
            ),
        );
        let rates = &channel.per_second;
        self.fact(
            "per second",
            format!(
                "{:.1} commands, {:.1} units confirmed, {} to the replica",
                rates.commands,
                rates.units,
                bytes(rates.bytes as u64)
            ),
        );
        self.fact("lanes", lanes(state));
        let trips = state.lane_list.iter();
        if let Some(worst) = trips.filter_map(|lane| lane.round_trip_microseconds).max() {
            let worst = microseconds(worst);
            self.fact("round trip", format!("{worst} on the slowest lane"));
        }
        self.lanes(&state.lane_list);
        let gone = channel.no_client_seconds.map(seconds);
        let gone = gone.map_or_else(String::new, |time| {
            format!("; no rolling client for {time}")
        });
        self.fact(
            "sessions",
            format!("{}, {} rolling{gone}", state.sessions, state.clients),
        );
        self.sessions(state);
        self.users(state);
        self.failing(state);
    }

    fn fact(&mut self, name: &str, text: String) {
        self.line(format!("  {name:<12} {text}"));
    }

    fn directory(&mut self, directory: &Directory) {
        let file = |file: &File| match file.oldest_seconds {
            Some(age) => format!("{}, oldest line {}", bytes(file.bytes), seconds(age)),
            None => "empty".to_owned(),
        };
        let (log, run) = (file(&directory.log), file(&directory.log_run));
        self.fact("sync log", format!("log {log}; log-run {run}"));
        if let Some(why) = &directory.trouble {
            self.fact("", format!("CAN'T BE WRITTEN: {why}"));
        }
    }

    fn lanes(&mut self, lanes: &[Lane]) {
        if lanes.is_empty() {
            return;
        }
        self.line("    LANE STATE       IN FLIGHT      WAITS  ROUND TRIP        LAST");
        for lane in lanes.iter().take(ROWS) {
            let time = |micros: Option<u64>| micros.map_or("-".to_owned(), microseconds);
            self.line(format!(
                "  {:>6} {:<12} {:>8} {:>10} {:>11} {:>11}",
                lane.lane,
                lane.state,
                lane.in_flight,
                milliseconds(lane.waiting_milliseconds),
                time(lane.round_trip_microseconds),
                time(lane.last_round_trip_microseconds),
            ));
        }
        self.more(lanes.len());
    }

    fn sessions(&mut self, state: &State) {
        if state.session_list.is_empty() {
            return;
        }
        self.line(" SESSION KIND              FOR  UNCONFIRMED  WAITS FOR");
        for session in &state.session_list {
            let kind = if session.rolling { "rolling" } else { "other" };
            let waits = match &session.waits_for {
                Some(what) => format!("{what}, {}", milliseconds(session.waiting_milliseconds)),
                None => "the client".to_owned(),
            };
            let user = session.user.as_deref().unwrap_or_default();
            let user = if user.is_empty() {
                String::new()
            } else {
                format!(" ({user})")
            };
            self.line(format!(
                "  {:>6} {:<15} {:>5} {:>12}  {waits}{user}",
                session.session,
                format!("{kind}, {}", session.mode),
                seconds(session.seconds),
                session.unconfirmed,
            ));
        }
        self.more(state.sessions);
    }

    fn users(&mut self, state: &State) {
        if state.users.is_empty() {
            return;
        }
        self.line("      JOBS      WAITS  USER");
        for user in &state.users {
            self.line(format!(
                "  {:>8} {:>10}  {}",
                user.jobs,
                milliseconds(user.milliseconds),
                user.user
            ));
        }
        if state.users.len() >= ROWS {
            self.line("           and maybe more, who have waited for less time");
        }
    }

    fn failing(&mut self, state: &State) {
        if state.probation.is_empty() {
            return;
        }
        self.line("     TRIES LINES    FOR  FAILING USER: THE REPLICA'S WORDS");
        for failing in state.probation.iter().take(ROWS) {
            self.line(format!(
                "  {:>8} {:>5} {:>6}  {}:",
                failing.failures,
                failing.lines,
                seconds(failing.seconds),
                failing.subject,
            ));
            self.line(format!("{:26}{}", "", failing.words));
        }
        self.more(state.probation_subjects);
    }

    fn more(&mut self, all: usize) {
        if all > ROWS {
            self.line(format!("           and {} more", all - ROWS));
        }
    }
}

fn verdict(channel: &Channel) -> String {
    let state = &channel.state;
    let away = state.replica_away_seconds.map(seconds);
    if state.draining {
        "DRAINING".to_owned()
    } else if let Some(time) = away {
        format!("THE REPLICA HAS BEEN AWAY FOR {time}")
    } else if let Some(time) = channel.no_client_seconds.filter(|time| *time >= MISSING) {
        format!("NO ROLLING CLIENT FOR {}", seconds(time))
    } else if state.not_covered {
        "the last run could not be linked: as strict until one can".to_owned()
    } else if state.safe_to_promote {
        "the replica has everything".to_owned()
    } else {
        "the replica does not have everything yet".to_owned()
    }
}

fn lanes(state: &State) -> String {
    let open = state.lanes_idle + state.lanes_busy;
    format!(
        "{open} open ({} busy, {} idle), {} connecting, work for {}",
        state.lanes_busy, state.lanes_idle, state.lanes_opening, state.lanes_wanted
    )
}

fn plural(count: usize, what: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {what}{end}")
}

/// `512 B`, `1.5 KiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// `5s`, `3m20s`, `2h05m`, `3d04h`: two units at most.
pub(super) fn seconds(count: u64) -> String {
    match count {
        0..60 => format!("{count}s"),
        60..3_600 => format!("{}m{:02}s", count / 60, count % 60),
        3_600..86_400 => format!("{}h{:02}m", count / 3_600, count / 60 % 60),
        _ => format!("{}d{:02}h", count / 86_400, count / 3_600 % 24),
    }
}

fn milliseconds(count: u64) -> String {
    match count {
        0..1_000 => format!("{count}ms"),
        1_000..60_000 => format!("{:.1}s", Duration::from_millis(count).as_secs_f64()),
        _ => seconds(count / 1_000),
    }
}

fn microseconds(count: u64) -> String {
    match count {
        0..10_000 => format!("{:.2}ms", count as f64 / 1e3),
        _ => milliseconds(count / 1_000),
    }
}

/// At most so many columns; what is cut ends with `~`.
fn cut(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let mut width = 0;
    let fits = |c: &char| {
        width += c.width().unwrap_or(0);
        width < most
    };
    let kept: String = text.chars().take_while(fits).collect();
    format!("{kept}~")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn page(state: &serde_json::Value) -> String {
        let all = serde_json::json!({
            "version": "1.2.3",
            "running_seconds": 11_000,
            "spill": { "bytes": 0, "limit": 4_294_967_296_u64 },
            "channels": [{
                "name": "far",
                "mode": "fan-out",
                "state": state,
                "per_second": { "commands": 1234.56, "units": 99.9, "bytes": 1.5e9 },
                "no_client_seconds": state["no_client"],
                "directory": {
                    "trouble": "no space left on device",
                    "log": { "bytes": 123_456_789, "oldest_seconds": 90_000 },
                    "log_run": { "bytes": 0, "oldest_seconds": null },
                },
            }],
        });
        status(&serde_json::from_value(all).unwrap())
    }

    #[test]
    fn no_line_is_too_long_and_nothing_obeys() {
        let long = "x\u{1b}[31m\u{202e}\u{2028}漢".repeat(50);
        let many = |one: serde_json::Value| vec![one; 25];
        let text = page(&serde_json::json!({
            "no_client": 400, "sessions": 1_000_000, "clients": 25, "owed_lines": 1_000_000,
            "lag_milliseconds": 86_400_000_u64, "unconfirmed_users": 1_000_000,
            "queued_bytes": u64::MAX, "staged_bytes": u64::MAX, "probation_subjects": 1_000_000,
            "lanes_busy": 256, "lanes_wanted": 256, "in_flight": 100_000, "queued": 100_000,
            "users": many(serde_json::json!({ "user": long, "jobs": 1_000_000,
                "milliseconds": 1_000_000_000_u64 })),
            "lane_list": many(serde_json::json!({ "lane": 123_456, "state": "connecting",
                "in_flight": 64, "waiting_milliseconds": 1_200_000,
                "round_trip_microseconds": 1_000_000, "last_round_trip_microseconds": 1 })),
            "session_list": many(serde_json::json!({ "session": 123_456, "rolling": true,
                "mode": "fan-out", "user": long, "seconds": 1_000_000, "unconfirmed": 1_000_000,
                "waits_for": "all of its work to be confirmed",
                "waiting_milliseconds": 1_200_000 })),
            "probation": many(serde_json::json!({ "subject": long, "lines": 1_000_000,
                "failures": 1_000_000, "seconds": 1_000_000, "words": long })),
        }));
        for line in text.lines() {
            assert!(line.width() <= COLUMNS, "{line}");
        }
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{2028}']), "{text}");
        assert!(
            text.contains("  round trip   1.0s on the slowest lane\n"),
            "{text}"
        );
        assert!(
            text.contains("CAN'T BE WRITTEN: no space left on device"),
            "{text}"
        );
        assert!(text.contains("no rolling client for 6m40s"), "{text}");
        assert!(text.contains("and 5 more"), "{text}");
        assert!(text.contains("oldest line 1d01h"), "{text}");
    }

    #[test]
    fn what_shard_says() {
        let one = |number: u32, users: u32| {
            serde_json::json!({ "name": format!("far-{number}"), "retired": number > 1,
                                "users": users, "lines": users * 2, "dealt": 70 })
        };
        let all = serde_json::json!({ "shard": { "channel": "far", "held_lines": 1, "full": true,
            "trouble": "the disk is full", "shards": [one(0, 3), one(1, 0), one(2, 1), one(3, 0)] } });
        let status: Status = serde_json::from_value(all).unwrap();
        assert_eq!(
            super::status(&status),
            "syncmux shard: the log of channel far, 1 line held back\n  \
             SO MANY LINES ARE HELD BACK THAT THE LOG IS NOT TAKEN OVER\n  \
             LINES CAN'T BE DEALT: the disk is full\n     \
             USERS      LINES      DEALT  SHARD\n         \
             3          6         70  far-0\n         \
             0          0         70  far-1\n         \
             1          2         70  far-2 (no shard any more)\n"
        );
    }

    #[test]
    fn what_terminate_says() {
        let all = serde_json::json!({ "terminate": { "connections": 22, "oldest": [
            { "peer": "192.0.2.7:40000", "names": ["a.example.com", "b.example.com"],
              "seconds": 61 },
            { "peer": "192.0.2.8:40000", "names": [], "seconds": 5 },
        ] } });
        assert_eq!(
            status(&serde_json::from_value(all).unwrap()),
            "syncmux terminate: 22 connections\n     FOR  FROM (THE NAMES OF ITS CERTIFICATE)\n   \
             1m01s  192.0.2.7:40000 (a.example.com, b.example.com)\n      5s  192.0.2.8:40000\n  \
             \x20        and 20 more\n"
        );
    }

    #[test]
    fn the_worst_is_said_first() {
        let first = |state: serde_json::Value| page(&state).lines().nth(2).unwrap().to_owned();
        let safe = first(serde_json::json!({ "safe_to_promote": true }));
        assert_eq!(safe, "channel far, fan-out: the replica has everything");
        let away = serde_json::json!({ "replica_away_seconds": 70 });
        assert!(first(away).ends_with("THE REPLICA HAS BEEN AWAY FOR 1m10s"));
        let missing = first(serde_json::json!({ "safe_to_promote": true, "no_client": 60 }));
        assert!(
            missing.ends_with("NO ROLLING CLIENT FOR 1m00s"),
            "{missing}"
        );
        let draining = serde_json::json!({ "draining": true, "replica_away_seconds": 70 });
        assert!(first(draining).ends_with("DRAINING"));
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [0, 1023, 1024, 1 << 20].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"]
        );
        assert_eq!(
            [59, 61, 7_380, 97_200].map(seconds),
            ["59s", "1m01s", "2h03m", "1d03h"]
        );
        assert_eq!(
            [5, 1_500, 61_000].map(milliseconds),
            ["5ms", "1.5s", "1m01s"]
        );
        assert_eq!([250, 20_300].map(microseconds), ["0.25ms", "20ms"]);
    }
}
