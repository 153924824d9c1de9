//! What an operator wants to see of users, lanes and sessions: short lists, the worst first.

use std::time::Duration;

use super::Core;
use super::event::{Identity, Mode};
use super::lanes::{Lane, State};
use super::queue::Keys;
use super::session::{Pending, Session};

/// So many users, and so many sessions, are shown.
const SHOWN: usize = 20;

/// So many jobs are looked at for them: those that have waited longest.
const LOOKED_AT: usize = 10_000;

/// A user with work that the replica has not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueuedUser {
    /// Who; `(shared)` for everything without an owner.
    pub user: String,
    /// How many jobs.
    pub jobs: usize,
    /// For how many milliseconds the oldest of them has waited.
    pub milliseconds: u64,
}

/// A connection to the replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneShown {
    /// Its number.
    pub lane: u64,
    /// `connecting`, `idle`, `busy` or `closing`.
    pub state: &'static str,
    /// Commands that the replica has not answered.
    pub in_flight: usize,
    /// For how many milliseconds it has been waiting for its next answer.
    pub waiting_milliseconds: u64,
    /// Round-trip time in microseconds: the median of the last 15 answers to commands that were
    /// sent while nothing else was under way. It holds the replica's own work as well.
    pub round_trip_microseconds: Option<u64>,
    /// That of the last one.
    pub last_round_trip_microseconds: Option<u64>,
}

/// A connection from a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SessionShown {
    /// Its number, as in the log.
    pub session: u64,
    /// It came by `listen`, where the rolling client comes.
    pub rolling: bool,
    /// How it is answered: `strict` or `fan-out`.
    pub mode: &'static str,
    /// Whose name its lanes log in by, where it is the client's own.
    pub user: Option<String>,
    /// For how many seconds it has been there.
    pub seconds: u64,
    /// What its command waits for; nothing where the client is to send the next one.
    pub waits_for: Option<&'static str>,
    /// For how many milliseconds.
    pub waiting_milliseconds: u64,
    /// What was acknowledged to it and is not confirmed.
    pub unconfirmed: usize,
}

impl Core {
    /// Users with work, those first who have waited longest.
    pub(super) fn worst_users(&self) -> Vec<QueuedUser> {
        let mut shown: Vec<QueuedUser> = Vec::new();
        let mut seen = hashbrown::HashSet::new();
        for id in self.queue.in_order().take(LOOKED_AT) {
            let Some(job) = self.jobs.get(&id) else {
                continue;
            };
            let Some(Keys::Of(keys)) = self.queue.keys_of(id) else {
                continue;
            };
            for key in keys {
                if shown.len() < SHOWN && seen.insert(key) {
                    shown.push(QueuedUser {
                        user: key.to_string(),
                        jobs: self.queue.count(key),
                        milliseconds: milliseconds(self.now.saturating_sub(job.arrived)),
                    });
                }
            }
            if shown.len() >= SHOWN {
                break;
            }
        }
        shown
    }

    /// Every lane: there are few.
    pub(super) fn lanes_shown(&self) -> Vec<LaneShown> {
        let shown = |(id, lane): (&super::LaneId, &Lane)| LaneShown {
            lane: id.0,
            state: match lane.state {
                State::Opening => "connecting",
                State::Up if lane.is_idle() => "idle",
                State::Up => "busy",
                State::Retiring | State::Closing => "closing",
            },
            in_flight: lane.in_flight.len(),
            waiting_milliseconds: lane
                .in_flight
                .front()
                .map_or(0, |sent| milliseconds(self.now.saturating_sub(sent.at))),
            round_trip_microseconds: lane.round_trips.median().map(microseconds),
            last_round_trip_microseconds: lane.round_trips.last().map(microseconds),
        };
        self.lanes.all.iter().map(shown).collect()
    }

    /// Sessions, the rolling ones first, of those that which has waited longest.
    pub(super) fn sessions_shown(&self) -> Vec<SessionShown> {
        let waits = |session: &Session| {
            let waits = session.pending.is_some();
            if waits {
                self.now.saturating_sub(session.arrived)
            } else {
                Duration::ZERO
            }
        };
        let mut all: Vec<_> = self.sessions.iter().collect();
        all.sort_by_key(|(id, session)| {
            (!session.rolling, std::cmp::Reverse(waits(session)), **id)
        });
        let shown = all
            .into_iter()
            .take(SHOWN)
            .map(|(id, session)| SessionShown {
                session: id.0,
                rolling: session.rolling,
                mode: match session.mode {
                    Mode::RightNow => "rightnow",
                    Mode::FanOut if !session.has_cache => "fan-out",
                    _ => "strict",
                },
                user: match &session.pool.identity {
                    Identity::Configured => None,
                    Identity::Client(name) => Some(String::from_utf8_lossy(name).into_owned()),
                },
                seconds: self.now.saturating_sub(session.opened).as_secs(),
                waits_for: session.pending.as_ref().map(waits_for),
                waiting_milliseconds: milliseconds(waits(session)),
                unconfirmed: session.unconfirmed,
            });
        shown.collect()
    }

    /// For how many milliseconds the oldest acknowledged change has not been confirmed: a unit that
    /// is under way, or what was acknowledged of those who are on probation.
    pub(super) fn lag(&self) -> Option<u64> {
        let unit = self.acked.first().and_then(|id| self.jobs.get(id));
        let unit = unit.map(|job| job.arrived);
        let owed = self
            .ledger
            .subjects()
            .map(|(_, probation)| probation.oldest);
        let oldest = unit.into_iter().chain(owed).min()?;
        Some(milliseconds(self.now.saturating_sub(oldest)))
    }
}

fn waits_for(pending: &Pending) -> &'static str {
    match pending {
        Pending::Jobs(_) => "the replica's answer",
        Pending::Cover { .. } => "the link of the run",
        Pending::Ahead { .. } => "an answer asked for ahead",
        Pending::Room { .. } => "room for unconfirmed work",
        Pending::Enabled | Pending::Forced => "a lane",
        Pending::Durable { .. } => "owed lines to be on disk",
        Pending::Exit => "all of its work to be confirmed",
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
