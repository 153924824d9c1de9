//! The end of a drain, what the admin endpoint shows, and the checks that run after every event
//! in debug builds.

use std::time::Duration;

use super::Core;
use super::event::Action;
use super::job::State;
use super::lanes::State as LaneState;
use super::look::{LaneShown, QueuedUser, SessionShown};
use super::queue::JobId;
use super::session::Pending;

/// A look at the core, for metrics and the admin endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Sessions that are logged in.
    pub sessions: usize,
    /// Those of them that came by `listen`: rolling clients.
    pub clients: usize,
    /// Lanes that are connecting.
    pub lanes_opening: usize,
    /// Lanes with nothing in flight.
    pub lanes_idle: usize,
    /// Lanes with something in flight.
    pub lanes_busy: usize,
    /// Lanes that there is work for just now, up to the limit.
    pub lanes_wanted: usize,
    /// Jobs on lanes.
    pub in_flight: usize,
    /// Jobs that wait for their user's turn or for a lane.
    pub queued: usize,
    /// The replica has everything that was acknowledged: no unit is under way, unconfirmed or
    /// owed, and no link of a run stands. What the client has not yet taken from `log` is not
    /// known here; the admin endpoint looks.
    pub safe_to_promote: bool,
    /// Users with acknowledged units that the replica has not confirmed.
    pub unconfirmed_users: usize,
    /// For how many milliseconds the oldest acknowledged change has not been confirmed, refused
    /// ones included until they are healed.
    pub lag_milliseconds: Option<u64>,
    /// Bytes of acknowledged and unconfirmed units.
    pub queued_bytes: u64,
    /// Bytes of staged messages, spilled ones included.
    pub staged_bytes: u64,
    /// Bytes of memory for names and GUIDs noted of sessions until RESTART, about.
    pub noted_bytes: u64,
    /// Runs that are linked.
    pub runs_linked: usize,
    /// Mailboxes whose state on the replica is known.
    pub known_mailboxes: usize,
    /// Bytes of it.
    pub known_bytes: u64,
    /// Mailboxes that are to be read, since a client was told of them and sent nothing.
    pub known_doubts: usize,
    /// Lines that are owed to the sync log, or stand there and are not done with.
    pub owed_lines: usize,
    /// Nothing is acknowledged early: a run could not be linked.
    pub not_covered: bool,
    /// The last try to write what is owed failed.
    pub not_written: bool,
    /// Users with work, those first who have waited longest; at most 20.
    pub users: Vec<QueuedUser>,
    /// Every lane.
    pub lane_list: Vec<LaneShown>,
    /// Sessions, rolling clients first; at most 20.
    pub session_list: Vec<SessionShown>,
    /// Users and shared mailboxes on probation, those first who have been for longest; at most 100.
    pub probation: Vec<OnProbation>,
    /// How many are on probation.
    pub probation_subjects: usize,
    /// The replica can't be reached, for so many seconds.
    pub replica_away_seconds: Option<u64>,
    /// A drain is under way.
    pub draining: bool,
}

/// A user or shared mailbox on probation.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct OnProbation {
    /// Who.
    pub subject: String,
    /// Lines that are not done with.
    pub lines: usize,
    /// How often the replica refused since it went on probation.
    pub failures: u32,
    /// For how many seconds it is on probation.
    pub seconds: u64,
    /// The replica's own words, or how the lane was lost.
    pub words: String,
}

impl Core {
    /// How things stand.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let lane = |wanted: fn(&super::lanes::Lane) -> bool| {
            self.lanes.all.values().filter(|lane| wanted(lane)).count()
        };
        let running = self.lanes.all.values().map(|lane| lane.jobs.len()).sum();
        let now = self.now;
        let mut subjects: Vec<_> = self.ledger.subjects().collect();
        subjects.sort_by(|a, b| (a.1.since, a.0).cmp(&(b.1.since, b.0)));
        let shown = subjects
            .iter()
            .take(100)
            .map(|(subject, probation)| OnProbation {
                subject: subject.name(),
                lines: probation.lines(),
                failures: probation.failures,
                seconds: now.saturating_sub(probation.since).as_secs(),
                words: probation.words.clone(),
            });
        let all_confirmed = self.unconfirmed.is_empty() && self.ledger.len() == 0;
        Snapshot {
            safe_to_promote: all_confirmed && self.runs.len() == 0 && self.jobs.is_empty(),
            sessions: self.sessions.len(),
            clients: self.sessions.values().filter(|it| it.rolling).count(),
            lanes_opening: lane(|lane| lane.state == LaneState::Opening),
            lanes_idle: lane(|lane| lane.is_idle()),
            lanes_busy: lane(|lane| lane.state != LaneState::Opening && !lane.is_idle()),
            lanes_wanted: self.lanes_wanted(),
            in_flight: running,
            queued: self.jobs.len() - running,
            unconfirmed_users: self.unconfirmed.len(),
            lag_milliseconds: self.lag(),
            queued_bytes: self.queued_bytes,
            staged_bytes: self.staged_bytes,
            noted_bytes: self.noted_bytes,
            runs_linked: self.runs.len(),
            known_mailboxes: self.known.len(),
            known_bytes: self.known.bytes(),
            known_doubts: self.known.doubts(),
            owed_lines: self.ledger.len(),
            not_covered: self.not_covered,
            not_written: self.not_written,
            users: self.worst_users(),
            lane_list: self.lanes_shown(),
            session_list: self.sessions_shown(),
            probation: shown.collect(),
            probation_subjects: subjects.len(),
            replica_away_seconds: self.lanes.away.map(|since| (now - since).as_secs()),
            draining: self.draining.is_some(),
        }
    }

    /// One for each job and question that could have one to itself.
    fn lanes_wanted(&self) -> usize {
        let questions = self.lanes.all.values().map(|lane| lane.questions);
        let work = self.jobs.len() + questions.sum::<usize>();
        work.min(self.setup.limits.lanes)
    }

    /// Bytes of staged and queued messages and commands, spilled ones included; what is both
    /// staged and queued counts twice.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.staged_bytes + self.queued_bytes
    }

    /// Sessions that wait for nothing get BYE now, the others after their answer.
    pub(super) fn drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(self.now + self.setup.limits.drain_grace);
        let idle: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.pending.is_none() && !session.in_the_middle())
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.end_session(id, "BYE syncmux is shutting down\r\n".into());
        }
    }

    pub(super) fn draining_until(&self) -> Option<Duration> {
        self.draining
            .filter(|until| *until > self.now && !self.drained)
    }

    pub(super) fn finish_drain(&mut self) {
        let Some(until) = self.draining else { return };
        if self.drained {
            return;
        }
        if until <= self.now {
            // What is not confirmed by now is in doubt: its lines bring it back.
            let mut unconfirmed: Vec<JobId> = self
                .jobs
                .iter()
                .filter(|(_, job)| job.acked.is_some())
                .map(|(id, _)| *id)
                .collect();
            unconfirmed.sort_unstable();
            for id in unconfirmed {
                self.give_up(id);
            }
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            for id in sessions {
                let exits =
                    |session: &super::Session| matches!(session.pending, Some(Pending::Exit));
                if !self.sessions.get(&id).is_some_and(exits) {
                    self.end_session(id, "BYE syncmux is shutting down\r\n".into());
                }
            }
            // What those sessions were told is among it.
            self.give_up_doubts();
            while let Some(batch) = self.ledger.next_batch(self.now) {
                self.act(match batch {
                    super::ledger::Batch::Log(batch, lines) => Action::WriteLines { batch, lines },
                    super::ledger::Batch::OwedFile(batch, lines) => {
                        Action::StoreOwed { batch, lines }
                    }
                });
            }
        }
        let pending = self
            .sessions
            .values()
            .any(|session| session.pending.is_some() || session.in_the_middle());
        // Where the disk takes nothing, the links and the client's log-run hold what is owed.
        let written = self.ledger.all_durable() || (until <= self.now && self.ledger.disk_fails());
        let checked = !self.known.holds_runs();
        if !pending && self.unconfirmed.is_empty() && checked && written {
            self.drained = true;
            for run in self.runs.not_pinned() {
                self.act(Action::DropLink { run });
            }
            let idle = |lane: &super::lanes::Lane| lane.in_flight.is_empty();
            let lanes = self.lanes.all.iter();
            let lanes: Vec<_> = lanes.map(|(id, lane)| (*id, idle(lane))).collect();
            for (lane, polite) in lanes {
                self.act(Action::CloseLane { lane, polite });
            }
            self.act(Action::Drained);
        }
    }

    /// What must hold after every event.
    pub(super) fn check_invariants(&self) {
        debug_assert_eq!(self.jobs.len(), self.queue.len());
        self.known.check(self.setup.limits.known_bytes);
        let acked = self.jobs.values().filter(|job| job.acked.is_some());
        let (mut count, mut bytes) = (0, 0);
        for job in acked {
            count += 1;
            bytes += job.bytes;
        }
        let queued = |job: &&super::job::Job| !matches!(job.state, State::Running(_));
        let mut queued = self.jobs.values().filter(queued);
        // Prefix: nothing acknowledged is sent once its subject has failed.
        debug_assert!(!queued.any(|job| {
            let subject = job.acked.as_ref().map(|acked| &acked.subject);
            subject.is_some_and(|subject| self.ledger.on_probation(subject))
        }));
        for (pool, state) in &self.lanes.pools {
            let jobs = self.jobs.values().filter(|job| job.pool == *pool);
            debug_assert_eq!(state.jobs, jobs.count());
        }
        debug_assert!(
            self.deadline().is_none_or(|at| at > self.now),
            "time stands still"
        );
        debug_assert_eq!(self.unconfirmed.values().sum::<usize>(), count);
        debug_assert_eq!(self.acked.len(), count);
        debug_assert_eq!(self.queued_bytes, bytes);
        let staged: u64 = self
            .sessions
            .values()
            .map(|session| session.staging.bytes())
            .sum();
        debug_assert_eq!(self.staged_bytes, staged);
        let noted = self.sessions.values().map(super::Session::noted);
        debug_assert_eq!(self.noted_bytes, noted.sum::<u64>());
        let partial = self.sessions.values().map(super::Session::partial_answer);
        debug_assert_eq!(self.partial_bytes, partial.sum::<u64>());
        for lane in self.lanes.all.values() {
            debug_assert_eq!(
                lane.bytes,
                lane.in_flight.iter().map(|sent| sent.bytes).sum::<u64>()
            );
            let questions = lane.in_flight.iter().filter(|sent| sent.what.is_question());
            debug_assert_eq!(lane.questions, questions.count());
            let alone = |id| self.jobs.get(id).is_some_and(|job| job.alone);
            debug_assert!(!lane.jobs.iter().any(alone) || lane.jobs.len() == 1);
            let open = |id: &&JobId| self.jobs.get(*id).is_some_and(|job| job.work.is_open());
            debug_assert_eq!(lane.open_units, lane.jobs.iter().filter(open).count());
        }
        for (id, job) in &self.jobs {
            if let State::Running(lane) = job.state {
                debug_assert!(
                    self.lanes
                        .all
                        .get(&lane)
                        .is_some_and(|lane| lane.jobs.contains(id))
                );
                debug_assert!(self.queue.may_run(*id));
            }
        }
    }
}
