//! Jobs onto lanes: which lane takes which job, and when lanes are opened, pinged and closed.
//!
//! Work-conserving: a job is bound to a lane only while it runs, any lane with room takes the next
//! waiting job of its pool, and jobs of different users are pipelined on one lane.

use std::collections::BTreeMap;
use std::time::Duration;

use hashbrown::HashMap;

use super::Core;
use super::burst;
use super::event::{Action, LaneId, Mode, Note, Pool, SessionId};
use super::job::{Job, State};
use super::lanes::{State as LaneState, What};
use super::limits::pause;
use super::queue::JobId;
use super::rightnow::Silence;
use super::session::Pending;
use crate::protocol::print;

impl Core {
    /// The job may run: it waits for a lane from now on.
    pub(super) fn make_ready(&mut self, id: JobId) {
        self.line_up(id, false);
    }

    /// The same for one that was on a lane already. Nothing younger goes before it: what ends lanes can't
    /// keep on doing so in front of it.
    pub(super) fn make_ready_again(&mut self, id: JobId) {
        self.line_up(id, true);
    }

    fn line_up(&mut self, id: JobId, again: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.state != State::Waiting {
            return;
        }
        job.state = State::Ready;
        // Its user may have come on probation, or off it, while it waited.
        let careful = job
            .subjects
            .iter()
            .any(|whom| self.ledger.on_probation(whom));
        job.careful |= careful && job.acked.is_none();
        job.alone |= job.careful && !job.read;
        let alone = job.alone;
        let pool = self.lanes.pools.entry(job.pool.clone()).or_default();
        let queue = if alone {
            &mut pool.ready_alone
        } else {
            &mut pool.ready
        };
        let urgent = |id: &JobId| is_urgent(&self.jobs, &self.sessions, *id);
        let mine = urgent(&id);
        if !mine && !again {
            return queue.push_back(id);
        }
        let goes_before = |other: &&JobId| match (urgent(other), mine) {
            (true, false) => true,
            (false, true) => false,
            _ => !again || **other < id,
        };
        let at = queue.iter().take_while(goes_before).count();
        queue.insert(at, id);
    }

    /// Takes a job out of everything; those behind it may run.
    pub(super) fn drop_job(&mut self, id: JobId) -> Option<Job> {
        let state = self.jobs.get(&id)?.state;
        self.leave_lane(id, state);
        let job = self.jobs.remove(&id)?;
        self.acked.remove(&id);
        if let State::Locked(until) = state {
            self.locked.remove(&(until, id));
        }
        for next in self.queue.remove(id) {
            self.make_ready(next);
        }
        if let Some(pool) = self.lanes.pools.get_mut(&job.pool) {
            pool.jobs -= 1;
            if pool.jobs == 0 && job.pool.force.is_some() {
                self.forget_pool(&job.pool);
            }
        }
        Some(job)
    }

    /// A job does not need the lane any more that it was running on.
    pub(super) fn leave_lane(&mut self, id: JobId, state: State) {
        if let (State::Running(lane), Some(job)) = (state, self.jobs.get(&id))
            && let Some(lane) = self.lanes.all.get_mut(&lane)
        {
            lane.jobs.remove(&id);
            // Refused or given up before its MAILBOX was out.
            lane.open_units -= usize::from(job.work.is_open());
            lane.alone &= !lane.jobs.is_empty();
        }
    }

    /// Puts as many ready jobs on lanes as there is room for.
    pub(super) fn dispatch(&mut self) {
        // After most events nothing waits.
        let waiting = self.lanes.pools.iter().filter(|(_, state)| state.wants());
        let waiting: Vec<Pool> = waiting.map(|(pool, _)| pool.clone()).collect();
        for pool in waiting {
            self.dispatch_alone(&pool);
            self.dispatch_shared(&pool);
            let wanted = self
                .lanes
                .pools
                .get(&pool)
                .is_some_and(|state| state.wanted);
            if wanted && self.lanes.of(&pool).next().is_none() {
                self.open_lane(&pool, 0);
            } else if wanted {
                self.probe(&pool);
            }
        }
    }

    fn dispatch_shared(&mut self, pool: &Pool) {
        loop {
            let state = self.lanes.pools.get(pool);
            let Some(id) = state.and_then(|state| state.ready.front().copied()) else {
                return;
            };
            if !self.is_ready(id) {
                self.pop_ready(pool, false);
                continue;
            }
            self.open_lanes(pool);
            let Some(lane) = self.lanes.with_room(pool, &self.setup.limits) else {
                return;
            };
            self.pop_ready(pool, false);
            self.start(lane, id);
        }
    }

    /// One lane for each job that could have one to itself, up to the limit: what is put behind
    /// others on a lane need not wait for them the next time.
    fn open_lanes(&mut self, pool: &Pool) {
        let mut jobs = self.lanes.pools.get(pool).map_or(0, |p| p.ready.len());
        let mut lanes = 0;
        for (_, lane) in self.lanes.of(pool) {
            jobs += lane.load();
            lanes += usize::from(matches!(lane.state, LaneState::Opening | LaneState::Up));
        }
        for _ in lanes..jobs.min(self.setup.limits.lanes) {
            if !self.open_lane(pool, 0) {
                return;
            }
        }
    }

    fn dispatch_alone(&mut self, pool: &Pool) {
        loop {
            let state = self.lanes.pools.get(pool);
            let Some(id) = state.and_then(|state| state.ready_alone.front().copied()) else {
                return self.unreserve(pool);
            };
            if !self.is_ready(id) {
                self.pop_ready(pool, true);
                continue;
            }
            // Who came earlier goes first: an idle lane may be the only one.
            let shared = state.and_then(|state| state.ready.front().copied());
            let urgent = |id| is_urgent(&self.jobs, &self.sessions, id);
            let first = |shared| shared < id && (urgent(shared) || !urgent(id));
            if shared.is_some_and(|shared| first(shared) && self.is_ready(shared)) {
                return self.unreserve(pool);
            }
            let Some(lane) = self.lanes.idle(pool) else {
                let careful = self.jobs.get(&id).is_some_and(|job| job.careful);
                let extra = if careful {
                    self.setup.limits.probation_lanes
                } else {
                    0
                };
                if self.lanes.count(pool, LaneState::Opening) == 0 {
                    self.open_lane(pool, extra);
                }
                // Also while one is opening or waits for its pause: it may never come.
                self.keep_one_free(pool);
                return;
            };
            self.pop_ready(pool, true);
            if let Some(lane) = self.lanes.all.get_mut(&lane) {
                lane.alone = true;
                lane.reserved = false;
            }
            self.start(lane, id);
        }
    }

    fn unreserve(&mut self, pool: &Pool) {
        let lanes = self.lanes.all.values_mut();
        for lane in lanes.filter(|lane| lane.pool == *pool) {
            lane.reserved = false;
        }
    }

    /// No lane is idle and none can be opened: nothing more is put on the least busy one, so that
    /// it becomes idle.
    fn keep_one_free(&mut self, pool: &Pool) {
        if self.lanes.of(pool).any(|(_, lane)| lane.reserved) {
            return;
        }
        let up = self
            .lanes
            .of(pool)
            .filter(|(_, lane)| lane.state == LaneState::Up);
        let least = up
            // What has a lane to itself may take long.
            .min_by_key(|(_, lane)| (lane.alone, lane.in_flight.len()))
            .map(|(id, _)| *id);
        if let Some(lane) = least.and_then(|id| self.lanes.all.get_mut(&id)) {
            lane.reserved = true;
        }
    }

    fn is_ready(&self, id: JobId) -> bool {
        self.jobs
            .get(&id)
            .is_some_and(|job| job.state == State::Ready)
    }

    fn pop_ready(&mut self, pool: &Pool, alone: bool) {
        if let Some(state) = self.lanes.pools.get_mut(pool) {
            let queue = if alone {
                &mut state.ready_alone
            } else {
                &mut state.ready
            };
            queue.pop_front();
        }
    }

    fn start(&mut self, lane_id: LaneId, id: JobId) {
        let (Some(lane), Some(job)) = (self.lanes.all.get_mut(&lane_id), self.jobs.get_mut(&id))
        else {
            return;
        };
        job.state = State::Running(lane_id);
        match burst::start(lane, id, job, &self.setup.limits, self.now) {
            Ok(output) => {
                self.send(lane_id, output);
                self.restart(lane_id, false);
            }
            Err(refusal) => self.job_done(id, refusal),
        }
    }

    /// Hands requests to io.
    pub(super) fn send(&mut self, lane: LaneId, output: burst::Output) {
        for body in output.0 {
            self.act(Action::Send { lane, body });
        }
    }

    /// Empties the lane's staging on the replica where it has grown large or the lane is idle.
    pub(super) fn restart(&mut self, id: LaneId, idle: bool) {
        let lane = self.lanes.all.get_mut(&id);
        if let Some(lane) = lane.filter(|lane| lane.state != LaneState::Closing) {
            let output = burst::restart(lane, &self.setup.limits, idle, self.now);
            self.send(id, output);
        }
    }

    /// Opens a lane if there may be one more, or makes room for it; whether one is opening.
    pub(super) fn open_lane(&mut self, pool: &Pool, extra: usize) -> bool {
        if self.lanes.retry_at.is_some_and(|at| self.now < at) || self.drained {
            return true;
        }
        let has_one = self.lanes.count(pool, LaneState::Up) > 0;
        if has_one && self.lanes.more_at.is_some() {
            return false;
        }
        let count = self.lanes.all.len();
        let turn = self.lanes.pools.get(pool).and_then(|state| state.starved);
        if count >= self.setup.limits.lanes + extra {
            if self.lanes.of(pool).next().is_none() {
                if let (None, Some(state)) = (turn, self.lanes.pools.get_mut(pool)) {
                    self.lanes.next_turn += 1;
                    state.starved = Some(self.lanes.next_turn);
                }
                if let Some(id) = self.lanes.to_retire(pool) {
                    self.retire(id);
                }
            }
            return false;
        }
        // A lane was closed for a pool that has none: busy others must not take its place.
        let earlier = |state: &super::lanes::PoolState| {
            let before = |its| turn.is_none_or(|mine| its < mine);
            state.wants() && state.starved.is_some_and(before)
        };
        if self.lanes.pools.values().any(earlier) {
            return false;
        }
        // FORCE is one session's, which sends one command at a time.
        if pool.force.is_some() && self.lanes.of(pool).next().is_some() {
            return false;
        }
        let lane = self.lanes.open(pool, self.now);
        if let Some(state) = self.lanes.pools.get_mut(pool) {
            state.starved = None;
        }
        self.act(Action::OpenLane {
            lane,
            pool: pool.clone(),
        });
        true
    }

    /// Whether this pool might have one more lane just now.
    pub(super) fn may_open(&self, pool: &Pool) -> bool {
        let paused = self.lanes.retry_at.is_some() || self.lanes.more_at.is_some();
        !paused && pool.force.is_none() && self.lanes.all.len() < self.setup.limits.lanes
    }

    /// The lane takes nothing new and closes when it is idle.
    pub(super) fn retire(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.all.get_mut(&id) else {
            return;
        };
        match lane.state {
            LaneState::Up | LaneState::Retiring => {
                lane.state = LaneState::Retiring;
                if lane.in_flight.is_empty() && lane.jobs.is_empty() {
                    lane.state = LaneState::Closing;
                    self.act(Action::CloseLane {
                        lane: id,
                        polite: true,
                    });
                }
            }
            LaneState::Opening | LaneState::Closing => {}
        }
    }

    /// A lane had an answer: it may be due to close.
    pub(super) fn retire_if_due(&mut self, id: LaneId) {
        if self
            .lanes
            .all
            .get(&id)
            .is_some_and(|lane| lane.state == LaneState::Retiring)
        {
            self.retire(id);
        }
    }

    /// The lane takes nothing new; io has begun to close it.
    pub(super) fn lane_failing(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.all.get_mut(&id) {
            lane.state = LaneState::Closing;
        }
    }

    pub(super) fn lane_opened(&mut self, id: LaneId, enabled: Option<Vec<bytes::Bytes>>) {
        let Some(lane) = self.lanes.all.get_mut(&id) else {
            return;
        };
        debug_assert_eq!(lane.state, LaneState::Opening, "a lane opened twice");
        lane.state = LaneState::Up;
        lane.idle = self.now;
        lane.active = self.now;
        let pool = lane.pool.clone();
        let force = pool.force.is_some();
        if force {
            let output = burst::own(lane, What::Force, print::FORCE.into(), self.now);
            self.send(id, output);
        }
        self.silence = Silence::heard(self.now);
        self.lanes.refusals = 0;
        self.lanes.retry_at = None;
        self.lanes.more_refusals = 0;
        self.lanes.more_at = None;
        if self.lanes.away.take().is_some() {
            self.note(Note::ReplicaBack);
        }
        let state = self.lanes.pools.entry(pool.clone()).or_default();
        // FORCE is still to be answered, and the lane may be lost before that.
        state.wanted &= force;
        state.away = None;
        state.enabled = Some(enabled);
        if !force {
            self.answer_enabled(&pool);
        }
        // The ordinary pools' lanes stay warm for the next session.
        if force && !self.pool_in_use(&pool) {
            self.retire(id);
        }
        // It serves those it was opened for before another pool may ask for its place.
        self.dispatch_alone(&pool);
        self.dispatch_shared(&pool);
        self.ask_doubtful();
    }

    /// Answers those who asked for the capabilities of this pool.
    fn answer_enabled(&mut self, pool: &Pool) {
        let Some(Some(enabled)) = self
            .lanes
            .pools
            .get(pool)
            .map(|state| state.enabled.clone())
        else {
            return;
        };
        let waits = |session: &super::Session| {
            session.pool == *pool && matches!(session.pending, Some(Pending::Enabled))
        };
        let waiting: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| waits(session))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            match &enabled {
                Some(names) => {
                    // Only 3.6 and later know of capabilities, at either end.
                    if let (false, Some(session)) = (names.is_empty(), self.sessions.get_mut(&id)) {
                        session.since = true;
                        self.known.since = true;
                    }
                    let mut body = print::enabled(names.iter().map(AsRef::as_ref));
                    body.append("OK success\r\n".into());
                    self.answer(id, "APPLY CAPABILITIES", "ok", body, false);
                }
                None => {
                    let no = "NO Capabilities refused by the replica\r\n";
                    self.answer(id, "APPLY CAPABILITIES", "no", no.into(), false);
                }
            }
        }
    }

    /// A session asked for lanes of another kind.
    pub(super) fn change_pool(
        &mut self,
        id: SessionId,
        pending: Pending,
        change: impl FnOnce(&mut Pool),
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let old = session.pool.clone();
        change(&mut session.pool);
        let pool = session.pool.clone();
        let enabling = matches!(pending, Pending::Enabled);
        session.pending = Some(pending);
        if old != pool {
            self.forget_pool(&old);
        }
        let state = self.lanes.pools.entry(pool.clone()).or_default();
        if enabling && state.enabled.is_some() {
            self.answer_enabled(&pool);
        } else {
            state.wanted = true;
        }
    }

    /// Closes what only a session that has gone needed.
    pub(super) fn forget_pool(&mut self, pool: &Pool) {
        if self.pool_in_use(pool) {
            return;
        }
        if pool.force.is_some() {
            let lanes: Vec<LaneId> = self.lanes.of(pool).map(|(id, _)| *id).collect();
            for lane in lanes {
                self.retire(lane);
            }
        }
        if self.lanes.of(pool).next().is_none() {
            self.lanes.pools.remove(pool);
        } else if let Some(state) = self.lanes.pools.get_mut(pool) {
            state.wanted = false;
        }
    }

    fn pool_in_use(&self, pool: &Pool) -> bool {
        self.lanes
            .pools
            .get(pool)
            .is_some_and(|state| state.jobs > 0)
            || self.sessions.values().any(|session| session.pool == *pool)
    }

    pub(super) fn lane_refused(&mut self, id: LaneId, why: &str) {
        let Some(lane) = self.lanes.all.remove(&id) else {
            return;
        };
        if self.lanes.count(&lane.pool, LaneState::Up) > 0 {
            // The replica may take no more connections: no reason to wait when all are lost.
            return self.no_more_lanes(why);
        }
        // Lanes that were tried at once and are refused at once are one failure.
        let wait = match self.lanes.retry_at {
            Some(at) => at - self.now,
            None => self.back_off(),
        };
        if !self.lanes.any_up() && self.lanes.away.is_none() {
            self.lanes.away = Some(self.now);
        }
        if let Some(state) = self.lanes.pools.get_mut(&lane.pool) {
            state.away.get_or_insert(self.now);
        }
        self.note(Note::ReplicaAway {
            why: why.to_owned(),
            pause: wait,
        });
        self.forget_pool(&lane.pool);
    }

    /// The pause after so many refusals.
    fn reconnect_pause(&mut self, nth: u32) -> Duration {
        let limits = &self.setup.limits;
        let (first, longest) = (limits.reconnect, limits.reconnect_max);
        pause(first, longest, nth, &mut self.random)
    }

    /// A lane beside others was refused.
    fn no_more_lanes(&mut self, why: &str) {
        if self.lanes.more_at.is_some() {
            return;
        }
        let wait = self.reconnect_pause(self.lanes.more_refusals);
        if self.lanes.more_refusals == 0 {
            let why = why.to_owned();
            self.note(Note::NoMoreLanes { why });
        }
        self.lanes.more_refusals = self.lanes.more_refusals.saturating_add(1);
        self.lanes.more_at = Some(self.now + wait);
    }

    /// Lanes are not tried again before a pause.
    pub(super) fn back_off(&mut self) -> Duration {
        let wait = self.reconnect_pause(self.lanes.refusals);
        self.lanes.refusals = self.lanes.refusals.saturating_add(1);
        self.lanes.retry_at = Some(self.now + wait);
        wait
    }
}

/// Somebody waits for it: it goes before the work of a rolling client, of which there may be very
/// much after an outage.
fn is_urgent(
    jobs: &HashMap<JobId, Job>,
    sessions: &BTreeMap<SessionId, super::Session>,
    id: JobId,
) -> bool {
    let job = jobs.get(&id).filter(|job| job.left.is_none());
    let session = job.and_then(|job| sessions.get(&job.session));
    session.is_some_and(|session| session.mode == Mode::RightNow)
}
