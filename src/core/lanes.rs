//! The lanes: which there are, what is in flight on each, and when to open, ping and close them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use super::event::{LaneId, Pool};
use super::known::QuestionId;
use super::limits::Limits;
use super::queue::JobId;
use super::users_ahead::Ticket;
use crate::protocol::Guid;

/// A message in a lane's staging on the replica.
pub(super) type Staged = (Bytes, Guid);

/// All lanes, by pool.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub(super) all: BTreeMap<LaneId, Lane>,
    pub(super) pools: BTreeMap<Pool, PoolState>,
    next: u64,
    /// Since when no lane could be opened and none was up.
    pub(super) away: Option<Duration>,
    /// How often in a row a lane could not be opened.
    pub(super) refusals: u32,
    /// No lane is opened before this.
    pub(super) retry_at: Option<Duration>,
    /// The same for more lanes of a pool that has one: the replica may grant no more.
    pub(super) more_refusals: u32,
    pub(super) more_at: Option<Duration>,
    /// The next turn of a pool that waits for its first lane.
    pub(super) next_turn: u64,
}

impl PoolState {
    /// Whether anything waits for a lane.
    pub(super) fn wants(&self) -> bool {
        self.wanted || !self.ready.is_empty() || !self.ready_alone.is_empty()
    }
}

/// What waits for lanes of a pool.
#[derive(Debug, Default)]
pub(super) struct PoolState {
    /// Jobs that may run, in order.
    pub(super) ready: VecDeque<JobId>,
    /// Jobs that may run, on a lane with nothing in flight.
    pub(super) ready_alone: VecDeque<JobId>,
    /// What the replica enabled when asked for this pool's capabilities; `None` where it is not
    /// known, `Some(None)` where it refused.
    pub(super) enabled: Option<Option<Vec<Bytes>>>,
    /// A session waits for `enabled` or for FORCE.
    pub(super) wanted: bool,
    /// Jobs of this pool, wherever they are.
    pub(super) jobs: usize,
    /// Since when it waits for its first lane because others have all there may be: the turn
    /// that it has among those that wait so.
    pub(super) starved: Option<u64>,
    /// Since when no lane of it could be opened and none was up.
    pub(super) away: Option<Duration>,
}

/// One connection to the replica.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) pool: Pool,
    pub(super) state: State,
    /// Requests without an answer, in order.
    pub(super) in_flight: VecDeque<Sent>,
    /// How many of them are questions outside of the queues.
    pub(super) questions: usize,
    /// Jobs that are not done with.
    pub(super) jobs: HashSet<JobId>,
    pub(super) bytes: u64,
    /// What stands in this lane's staging on the replica since the last RESTART.
    pub(super) staged: HashSet<Staged>,
    pub(super) staged_bytes: u64,
    /// Units between their RESERVE and their MAILBOX: no RESTART may come between.
    pub(super) open_units: usize,
    /// One job has the lane to itself.
    pub(super) alone: bool,
    /// Kept free for such a job.
    pub(super) reserved: bool,
    /// Since when nothing is in flight.
    pub(super) idle: Duration,
    /// When something was last sent or received.
    pub(super) active: Duration,
    pub(super) round_trips: RoundTrips,
}

/// The state of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Connecting, logging in.
    Opening,
    /// In use.
    Up,
    /// Takes nothing new; closed when nothing is in flight.
    Retiring,
    /// Told to close.
    Closing,
}

/// A request on a lane.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) job: Option<JobId>,
    pub(super) what: What,
    pub(super) at: Duration,
    pub(super) bytes: u64,
    /// Nothing else was under way when it was sent.
    pub(super) alone: bool,
}

/// How long the last answers took that waited for nothing else.
#[derive(Debug, Default)]
pub(super) struct RoundTrips(VecDeque<Duration>);

impl RoundTrips {
    /// So many are kept.
    const KEPT: usize = 15;

    fn push(&mut self, took: Duration) {
        if self.0.len() == Self::KEPT {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    pub(super) fn last(&self) -> Option<Duration> {
        self.0.back().copied()
    }

    pub(super) fn median(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// What was asked.
#[derive(Debug)]
pub(super) enum What {
    /// A real RESERVE; `last` where no other follows for this unit.
    Reserve {
        partition: Bytes,
        guids: Vec<Guid>,
        last: bool,
    },
    /// Messages, which count as staged unless this fails.
    Message {
        staged: Vec<Staged>,
        last: bool,
    },
    /// The command itself: its answer is the job's answer.
    Command,
    /// RESTART, NOOP or FORCE of the lane's own.
    Restart,
    Noop,
    Force,
    /// A question outside of the users' queues.
    Question(QuestionId),
    /// GET USER before the client asks.
    UserAhead(Ticket),
}

impl What {
    /// Whether it is one outside of the users' queues.
    pub(super) fn is_question(&self) -> bool {
        matches!(self, What::Question(_) | What::UserAhead(_))
    }
}

impl Lane {
    /// Whether another job may be put behind what is in flight.
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.state == State::Up
            && !self.alone
            && !self.reserved
            && self.in_flight.len() < limits.depth
            && self.bytes < limits.lane_bytes
    }

    /// When something is to be done about it though nothing happens.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Duration> {
        match (self.state, self.in_flight.front()) {
            (State::Up | State::Retiring, Some(sent)) => Some(sent.at + limits.answer_timeout),
            (State::Up, None) if !self.staged.is_empty() => Some(self.idle + limits.idle_restart),
            (State::Up, None) => Some(self.active + limits.ping),
            _ => None,
        }
    }

    /// Whether nothing at all is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Up && self.in_flight.is_empty() && self.jobs.is_empty()
    }

    /// Jobs, and questions that a job would wait behind.
    pub(super) fn load(&self) -> usize {
        self.jobs.len() + self.questions
    }

    /// Notes a request.
    pub(super) fn sent(&mut self, job: Option<JobId>, what: What, bytes: u64, now: Duration) {
        self.questions += usize::from(what.is_question());
        let alone = self.in_flight.is_empty();
        self.in_flight.push_back(Sent {
            job,
            what,
            at: now,
            bytes,
            alone,
        });
        self.bytes += bytes;
        self.active = now;
    }

    /// Takes the oldest request, whose answer has come.
    pub(super) fn answered(&mut self, now: Duration) -> Option<Sent> {
        let sent = self.in_flight.pop_front()?;
        self.questions -= usize::from(sent.what.is_question());
        self.bytes -= sent.bytes.min(self.bytes);
        self.active = now;
        if sent.alone {
            self.round_trips.push(now.saturating_sub(sent.at));
        }
        // The next answer is due from now on: what waited behind a long command was not slow.
        if let Some(next) = self.in_flight.front_mut() {
            next.at = now;
        }
        if self.in_flight.is_empty() {
            self.idle = now;
        }
        Some(sent)
    }
}

impl Lanes {
    /// A new lane's id; the lane counts as opening.
    pub(super) fn open(&mut self, pool: &Pool, now: Duration) -> LaneId {
        self.next += 1;
        let id = LaneId(self.next);
        let lane = Lane {
            pool: pool.clone(),
            state: State::Opening,
            in_flight: VecDeque::new(),
            questions: 0,
            jobs: HashSet::new(),
            bytes: 0,
            staged: HashSet::new(),
            staged_bytes: 0,
            open_units: 0,
            alone: false,
            reserved: false,
            idle: now,
            active: now,
            round_trips: RoundTrips::default(),
        };
        self.all.insert(id, lane);
        id
    }

    /// The pool's lanes.
    pub(super) fn of<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = (&'a LaneId, &'a Lane)> {
        self.all.iter().filter(move |(_, lane)| lane.pool == *pool)
    }

    /// How many lanes of a pool are in this state.
    pub(super) fn count(&self, pool: &Pool, state: State) -> usize {
        self.of(pool)
            .filter(|(_, lane)| lane.state == state)
            .count()
    }

    /// The lane with room and the least in flight.
    pub(super) fn with_room(&self, pool: &Pool, limits: &Limits) -> Option<LaneId> {
        let room = self.of(pool).filter(|(_, lane)| lane.has_room(limits));
        room.min_by_key(|(_, lane)| (lane.load(), lane.in_flight.len(), lane.bytes))
            .map(|(id, _)| *id)
    }

    /// A lane of the pool with nothing in flight.
    pub(super) fn idle(&self, pool: &Pool) -> Option<LaneId> {
        self.of(pool)
            .find(|(_, lane)| lane.is_idle() && !lane.alone)
            .map(|(id, _)| *id)
    }

    /// Whether any lane is up.
    pub(super) fn any_up(&self) -> bool {
        self.all
            .values()
            .any(|lane| matches!(lane.state, State::Up | State::Retiring))
    }

    /// A lane of another pool that can make room for one of `pool`: an idle one, else one of the
    /// pool that has most.
    pub(super) fn to_retire(&self, pool: &Pool) -> Option<LaneId> {
        if self
            .all
            .values()
            .any(|lane| matches!(lane.state, State::Retiring | State::Closing))
        {
            return None;
        }
        let others = || self.all.iter().filter(|(_, lane)| lane.pool != *pool);
        let idle = others().find(|(_, lane)| lane.is_idle());
        let up = || others().filter(|(_, lane)| lane.state == State::Up);
        let most = || up().max_by_key(|(_, lane)| self.of(&lane.pool).count());
        idle.or_else(most).map(|(id, _)| *id)
    }
}
