//! What time alone brings about: lanes that are pinged, emptied, closed or given up, sessions that
//! have waited long enough, and when the next of it is due.

use std::time::Duration;

use super::Core;
use super::burst;
use super::event::{Action, LaneId, SessionId};
use super::lanes::{PoolState, State as LaneState, What};
use super::session::{Pending, Session};
use crate::protocol::{Body, Get, Kind, print};

/// A client waits so long for what was asked ahead, which may stand behind somebody else's mailbox
/// that the replica can't open just now; then it asks for itself.
const PATIENCE: Duration = Duration::from_secs(2);

impl Core {
    /// What time alone brings about.
    pub(super) fn check_time(&mut self) {
        let due: Vec<LaneId> = self.lanes_due().collect();
        if !due.is_empty() {
            self.check_lanes(due);
        }
        let now = self.now;
        self.known.doubts_rest.take_if(|until| *until <= now);
        self.locked_again();
        self.ask_for_real();
        self.give_up_waiting();
        self.lose_patience();
    }

    /// Lanes for which there may be something to do by now: after most events none.
    fn lanes_due(&self) -> impl Iterator<Item = LaneId> {
        let (now, limits) = (self.now, &self.setup.limits);
        let lanes = self.lanes.all.iter().filter(move |(_, lane)| {
            let due = lane.deadline(limits).is_some_and(|at| at <= now);
            due || lane.idle + limits.idle_lane <= now
        });
        lanes.map(|(id, _)| *id)
    }

    fn check_lanes(&mut self, ids: Vec<LaneId>) {
        let now = self.now;
        let limits = self.setup.limits.clone();
        for id in ids {
            let Some(lane) = self.lanes.all.get(&id) else {
                continue;
            };
            let spare = lane.idle + limits.idle_lane <= now && self.is_spare(id);
            let Some(lane) = self.lanes.all.get_mut(&id) else {
                continue;
            };
            let overdue = |at: Duration| at + limits.answer_timeout <= now;
            match lane.state {
                LaneState::Up | LaneState::Retiring
                    if lane.in_flight.front().is_some_and(|sent| overdue(sent.at)) =>
                {
                    lane.state = LaneState::Closing;
                    self.act(Action::CloseLane {
                        lane: id,
                        polite: false,
                    });
                }
                LaneState::Up if lane.in_flight.is_empty() && lane.jobs.is_empty() => {
                    if lane.idle + limits.idle_restart <= now && !lane.staged.is_empty() {
                        self.restart(id, true);
                    } else if spare {
                        self.retire(id);
                    } else if lane.active + limits.ping <= now {
                        let output = burst::own(lane, What::Noop, print::NOOP.into(), now);
                        self.send(id, output);
                    }
                }
                _ => {}
            }
        }
    }

    /// Who has waited long enough for what was asked ahead does so no more.
    fn ask_for_real(&mut self) {
        while let Some((since, id)) = self.impatient.front().copied()
            && since + PATIENCE <= self.now
        {
            self.impatient.pop_front();
            let Some(session) = self.sessions.get(&id) else {
                continue;
            };
            let Some(Pending::Ahead { command, .. }) = &session.pending else {
                continue;
            };
            if session.ahead_since != Some(since) {
                continue;
            }
            match &command.kind {
                Kind::Get(Get::Mailboxes(names)) => {
                    names.iter().for_each(|name| self.known.unask(name));
                }
                Kind::Get(Get::User(user)) => {
                    let key = self.setup.site.key_of_user(user);
                    self.forget_user_ahead(&key);
                }
                _ => {}
            }
            self.resubmit(id);
        }
    }

    /// Whether the pool has another lane that is up.
    fn is_spare(&self, id: LaneId) -> bool {
        self.lanes
            .all
            .get(&id)
            .is_some_and(|lane| self.lanes.count(&lane.pool, LaneState::Up) > 1)
    }

    /// Sessions do not wait for ever for a replica that is away.
    fn give_up_waiting(&mut self) {
        let now = self.now;
        if self.tired_at().is_none_or(|at| now < at) {
            return;
        }
        let tired: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| self.waits_until(session).is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in tired {
            let body: Body = "BYE The replica has been away for too long\r\n".into();
            self.end_session(id, body);
        }
    }

    /// When a session has waited long enough for a replica that is away: from all, or from its own
    /// pool.
    fn waits_until(&self, session: &Session) -> Option<Duration> {
        session.pending.as_ref()?;
        let pool = self.lanes.pools.get(&session.pool);
        let away = [self.lanes.away, pool.and_then(|state| state.away)];
        let away = away.into_iter().flatten().min()?;
        Some(away.max(session.arrived) + self.setup.limits.absence)
    }

    /// When the first of them has.
    fn tired_at(&self) -> Option<Duration> {
        let away = |state: &PoolState| state.away.is_some();
        if self.lanes.away.is_none() && !self.lanes.pools.values().any(away) {
            return None;
        }
        let sessions = self.sessions.values();
        sessions
            .filter_map(|session| self.waits_until(session))
            .min()
    }

    /// When `handle` has something to do that it has not now: a [`super::Event::Tick`] is due
    /// then.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let limits = &self.setup.limits;
        let lanes = self.lanes.all.values();
        let lanes = lanes.filter_map(|lane| lane.deadline(limits)).min();
        let mut pools = self.lanes.pools.values();
        let wants = pools.any(PoolState::wants) || self.known.doubts() > 0;
        let retry = self.lanes.retry_at.filter(|_| wants);
        let more = self.lanes.more_at.filter(|_| wants);
        let all = [
            lanes,
            retry,
            more,
            self.tired_at(),
            self.impatient.front().map(|(since, _)| *since + PATIENCE),
            self.patient.first().map(|(until, _)| *until),
            self.known.doubts_rest.filter(|_| self.known.doubts() > 0),
            self.ledger.deadline(),
            self.locked.first().map(|(until, _)| *until),
            self.draining_until(),
        ];
        all.into_iter().flatten().min()
    }
}
