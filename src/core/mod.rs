//! The scheduler: a state machine without sockets, clock or disk. Events in, actions out.
//!
//! Everything that design.md promises about order, loss and limits is decided here, so that it
//! can be tested by simulation. `io` tells it what happened ([`Event`]) and does what it asks
//! ([`Action`]); it must not know how.
//!
//! The way of a command: `commands` takes it in and makes it a job or an answer; `queue` orders
//! jobs by user key; `dispatch` puts them on lanes; `burst` says what goes down a lane; `outcome`
//! takes the replica's answers; `known`, `recall` and `ahead` are about answers that need not be
//! waited for; `locked`, `policy`, `left_alone`, `ledger` and `runs` are about failures and about
//! what stands on disk.

mod ahead;
mod beliefs;
mod burst;
mod commands;
mod commit;
mod dispatch;
pub mod event;
mod job;
mod known;
mod lanes;
mod ledger;
mod left_alone;
mod limits;
mod locked;
mod look;
mod mailboxes;
mod outcome;
mod plan;
mod policy;
mod queue;
mod recall;
mod rightnow;
mod runs;
mod session;
pub mod shard;
mod staging;
mod status;
#[cfg(test)]
mod tests;
mod time;
mod upcoming;
mod users_ahead;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hashbrown::HashMap;

pub use self::event::{
    Action, BatchId, Event, Identity, LaneId, Mode, Note, Pool, RunId, SessionId,
};
use self::job::Job;
use self::known::Known;
use self::lanes::Lanes;
use self::ledger::Ledger;
pub use self::limits::Limits;
pub use self::look::{LaneShown, QueuedUser, SessionShown};
use self::queue::{JobId, Queue};
use self::rightnow::Silence;
use self::runs::Runs;
use self::session::Session;
pub use self::status::{OnProbation, Snapshot};
use self::upcoming::Upcoming;
use self::users_ahead::UsersAhead;
use crate::protocol::{Site, UserKey};

/// What the core has to know about its channel.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The channel has a name: its client defers users by itself when told
    /// `IMAP_MAILBOX_LOCKED`.
    pub named: bool,
    /// There is a sync log: its runs can be linked, and lines be put into it.
    pub sync_log: bool,
    /// How the site names mailboxes and users.
    pub site: Site,
    /// Bounds and pauses.
    pub limits: Limits,
    /// For the randomness in pauses: one seed is one run.
    pub seed: u64,
}

/// The scheduler of one channel and its replica.
#[derive(Debug)]
pub struct Core {
    setup: Setup,
    random: fastrand::Rng,
    now: Duration,
    sessions: BTreeMap<SessionId, Session>,
    queue: Queue,
    jobs: HashMap<JobId, Job>,
    next_job: u64,
    /// Jobs that wait for a lock on the replica, by the time when they are sent again.
    locked: BTreeSet<(Duration, JobId)>,
    lanes: Lanes,
    runs: Runs,
    ledger: Ledger,
    known: Known,
    users_ahead: UsersAhead,
    upcoming: Upcoming,
    /// Users with acknowledged and unconfirmed units, and how many each has.
    unconfirmed: HashMap<UserKey, usize>,
    /// The jobs that were acknowledged, which are numbered in order of arrival.
    acked: BTreeSet<JobId>,
    queued_bytes: u64,
    staged_bytes: u64,
    /// What is noted of all sessions costs so much memory.
    noted_bytes: u64,
    /// Sessions of which something was noted since all was forgotten that can be.
    noting: BTreeSet<SessionId>,
    /// Bytes of parts of answers that others are still to come for, of all sessions.
    partial_bytes: u64,
    /// Sessions that began to wait for what was asked ahead, and when.
    impatient: VecDeque<(Duration, SessionId)>,
    /// Sessions that wait for the replica no longer than until then.
    patient: BTreeSet<(Duration, SessionId)>,
    /// What is known of a replica that does not answer.
    silence: Silence,
    /// Sessions whose acknowledgement waits for room, in order.
    room: VecDeque<SessionId>,
    /// Early acknowledgement is suspended.
    not_covered: bool,
    /// The last try to write what is owed failed.
    not_written: bool,
    actions: VecDeque<Action>,
    /// The end of the grace period of a drain.
    draining: Option<Duration>,
    drained: bool,
}

impl Core {
    /// A core that knows of nobody yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Core {
            random: fastrand::Rng::with_seed(setup.seed),
            setup,
            now: Duration::ZERO,
            sessions: BTreeMap::new(),
            queue: Queue::default(),
            jobs: HashMap::new(),
            next_job: 0,
            locked: BTreeSet::new(),
            lanes: Lanes::default(),
            runs: Runs::default(),
            ledger: Ledger::default(),
            known: Known::default(),
            users_ahead: UsersAhead::default(),
            upcoming: Upcoming::default(),
            unconfirmed: HashMap::new(),
            acked: BTreeSet::new(),
            queued_bytes: 0,
            staged_bytes: 0,
            noted_bytes: 0,
            noting: BTreeSet::new(),
            partial_bytes: 0,
            impatient: VecDeque::new(),
            patient: BTreeSet::new(),
            silence: Silence::default(),
            room: VecDeque::new(),
            not_covered: false,
            not_written: false,
            actions: VecDeque::new(),
            draining: None,
            drained: false,
        }
    }

    /// Takes in what happened. The actions that follow from it are to be fetched with
    /// [`Core::next_action`] before the next event.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = self.now.max(now);
        self.lanes.retry_at.take_if(|at| *at <= self.now);
        self.lanes.more_at.take_if(|at| *at <= self.now);
        match event {
            Event::SessionOpened {
                session,
                mode,
                rolling,
                identity,
            } => {
                self.session_opened(session, mode, rolling, identity);
            }
            Event::Command {
                session,
                command,
                run,
            } => {
                self.command(session, command, run);
                self.be_patient(session);
                self.count_noted(session);
            }
            Event::SessionClosed { session } => self.session_closed(session),
            Event::LaneOpened { lane, enabled } => self.lane_opened(lane, enabled),
            Event::LaneRefused { lane, why } => self.lane_refused(lane, &why),
            Event::LaneReply { lane, reply } => self.lane_reply(lane, reply),
            Event::LaneFailing { lane } => self.lane_failing(lane),
            Event::LaneLost { lane, why, orderly } => self.lane_lost(lane, &why, orderly),
            Event::RunLinked { run, coverage } => self.run_linked(run, coverage),
            Event::RunLinkFailed { run, why } => self.run_link_failed(run, why),
            Event::RunGone { run } => self.run_gone(run),
            Event::LogNames { named } => self.read_on(named),
            Event::LinesWritten { batch } => {
                self.not_written = false;
                let settled = self.ledger.written(batch, self.now);
                self.settle(settled);
            }
            Event::OwedStored { batch } => {
                self.not_written = false;
                let settled = self.ledger.stored(batch);
                self.settle(settled);
            }
            Event::DiskFailed { batch, why } => {
                let settled = self.ledger.disk_failed(batch, self.now);
                if !std::mem::replace(&mut self.not_written, true) {
                    self.note(Note::NotWritten { why });
                }
                self.settle(settled);
            }
            Event::Tick => {}
            Event::Drain => self.drain(),
        }
        self.pump();
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// What is to be done next; `None` until the next event.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn note(&mut self, note: Note) {
        self.act(Action::Note(note));
    }

    /// Does whatever can be done now: room, lanes, disk, links, time.
    fn pump(&mut self) {
        self.check_time();
        self.admit();
        self.wake_readers();
        self.dispatch();
        self.ask_ahead();
        self.ask_users_ahead();
        while let Some(batch) = self.ledger.next_batch(self.now) {
            self.act(match batch {
                ledger::Batch::Log(batch, lines) => Action::WriteLines { batch, lines },
                ledger::Batch::OwedFile(batch, lines) => Action::StoreOwed { batch, lines },
            });
        }
        for run in self.runs.sweep() {
            self.act(Action::DropLink { run });
        }
        self.finish_drain();
    }
}
