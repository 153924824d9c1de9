//! `syncmux status`: what `/status` says, for people.

use std::io::IsTerminal;
use std::time::Duration;

use serde::Deserialize;

use super::{Endpoint, Failed, http, paint, say};
use crate::config::Listen;

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(2);

/// What can be asked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Which syncmux.
    #[command(flatten)]
    pub endpoint: Endpoint,

    /// Look again every 2 seconds, until interrupted
    #[arg(short, long)]
    pub watch: bool,

    /// As JSON, as /status has it; with --watch one line each time
    #[arg(long)]
    pub json: bool,
}

/// Asks and shows.
///
/// # Errors
/// It can't be reached.
pub async fn run(args: &Args) -> Result<(), Failed> {
    let at = args.endpoint.address()?;
    if !args.watch {
        let text = shown(&at, args.json, false).await?;
        say(&text);
        return Ok(());
    }
    let redraws = std::io::stdout().is_terminal() && !args.json;
    let mut first = true;
    loop {
        let text = match shown(&at, args.json, true).await {
            Ok(text) => text,
            // What was there may come back.
            Err(Failed(_, why)) if !first && !args.json => format!("{why}\n"),
            Err(failed) => return Err(failed),
        };
        let (before, after) = match (redraws, args.json) {
            // To the top, and all that stands below is cleared; nothing scrolls.
            (true, _) => ("\x1b[H\x1b[J", ""),
            (false, true) => ("", ""),
            (false, false) => ("", "\n"),
        };
        if !say(&format!("{before}{text}{after}")) {
            return Ok(());
        }
        first = false;
        tokio::time::sleep(LOOK).await;
    }
}

async fn shown(at: &Listen, json: bool, one_line: bool) -> Result<String, Failed> {
    let (code, text) = http::ask(at, "GET", "/status").await?;
    let strange = |why: &dyn std::fmt::Display| {
        Failed::unreachable(format!("what answers at {at} is no syncmux: {why}"))
    };
    if code != 200 {
        return Err(strange(&format!("it answers /status with {code}")));
    }
    match (json, one_line) {
        (true, false) => Ok(text),
        (true, true) => {
            let value: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| strange(&error))?;
            Ok(format!("{value}\n"))
        }
        (false, _) => {
            let status: Status = serde_json::from_str(&text).map_err(|error| strange(&error))?;
            Ok(paint::status(&status))
        }
    }
}

/// As much of `/status` as is shown. What an older syncmux does not say is as if there were none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) running_seconds: u64,
    pub(super) spill: Spill,
    pub(super) channels: Vec<Channel>,
    /// `syncmux terminate` says this alone.
    pub(super) terminate: Option<Terminate>,
    /// `syncmux shard` says this alone.
    pub(super) shard: Option<Sharded>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sharded {
    pub(super) channel: String,
    pub(super) shards: Vec<OneShard>,
    pub(super) held_lines: usize,
    pub(super) full: bool,
    pub(super) trouble: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OneShard {
    pub(super) name: String,
    pub(super) retired: bool,
    pub(super) users: usize,
    pub(super) lines: u64,
    pub(super) dealt: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Terminate {
    pub(super) connections: usize,
    pub(super) oldest: Vec<Guest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Guest {
    pub(super) peer: String,
    pub(super) names: Vec<String>,
    pub(super) seconds: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spill {
    pub(super) bytes: u64,
    pub(super) limit: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) state: State,
    pub(super) per_second: PerSecond,
    pub(super) no_client_seconds: Option<u64>,
    pub(super) directory: Option<Directory>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PerSecond {
    pub(super) commands: f64,
    pub(super) units: f64,
    pub(super) bytes: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Directory {
    pub(super) trouble: Option<String>,
    pub(super) log: File,
    pub(super) log_run: File,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub(super) bytes: u64,
    pub(super) oldest_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) sessions: usize,
    pub(super) clients: usize,
    pub(super) lanes_opening: usize,
    pub(super) lanes_idle: usize,
    pub(super) lanes_busy: usize,
    pub(super) lanes_wanted: usize,
    pub(super) in_flight: usize,
    pub(super) queued: usize,
    pub(super) safe_to_promote: bool,
    pub(super) unconfirmed_users: usize,
    pub(super) lag_milliseconds: Option<u64>,
    pub(super) queued_bytes: u64,
    pub(super) staged_bytes: u64,
    pub(super) runs_linked: usize,
    pub(super) owed_lines: usize,
    pub(super) not_covered: bool,
    pub(super) users: Vec<User>,
    pub(super) lane_list: Vec<Lane>,
    pub(super) session_list: Vec<Session>,
    pub(super) probation: Vec<Failing>,
    pub(super) probation_subjects: usize,
    pub(super) replica_away_seconds: Option<u64>,
    pub(super) draining: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    pub(super) user: String,
    pub(super) jobs: usize,
    pub(super) milliseconds: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lane {
    pub(super) lane: u64,
    pub(super) state: String,
    pub(super) in_flight: usize,
    pub(super) waiting_milliseconds: u64,
    pub(super) round_trip_microseconds: Option<u64>,
    pub(super) last_round_trip_microseconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Session {
    pub(super) session: u64,
    pub(super) rolling: bool,
    pub(super) mode: String,
    pub(super) user: Option<String>,
    pub(super) seconds: u64,
    pub(super) waits_for: Option<String>,
    pub(super) waiting_milliseconds: u64,
    pub(super) unconfirmed: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failing {
    pub(super) subject: String,
    pub(super) lines: usize,
    pub(super) failures: u32,
    pub(super) seconds: u64,
    pub(super) words: String,
}
