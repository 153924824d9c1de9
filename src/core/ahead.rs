//! Questions outside of the users' queues: what the run says the client is about to ask, and
//! whether a client that was told something known, and sent nothing, was told the truth.
//!
//! They are GET MAILBOXES with several names each, on lanes that have nothing else to do. An
//! answer counts only for names whose key had no write queued, running or begun since the question
//! went out (`Known::distrust`).

use bytes::Bytes;

use super::Core;
use super::burst;
use super::event::{LaneId, Note, RunId};
use super::known::{self, Eyes, QuestionId};
use super::lanes::{Lane, State as LaneState, What};
use super::plan::Subject;
use crate::protocol::synclog::{Coverage, Line};
use crate::protocol::{Reply, StatusKind, UserKey, print};

/// Questions on one lane: what comes behind them waits for so many times `ahead_names` mailboxes to
/// be opened.
const DEEP: usize = 4;

/// So many doubts are looked at in one go: those whose user is being written to come again.
const AT_ONCE: usize = 64;

impl Core {
    /// A run is linked: what it names is about to be asked about by the rolling client.
    pub(super) fn read_ahead(&mut self, run: RunId, coverage: &Coverage) {
        self.known.wanted.clear();
        if !self.runs.is_gone(run) {
            self.known.wanted_for = Some(run);
            self.known.wanted.extend(coverage.names().iter().cloned());
        }
    }

    /// The client is done with a run.
    pub(super) fn not_ahead(&mut self, run: RunId) {
        if self.known.wanted_for == Some(run) {
            self.known.wanted.clear();
        }
    }

    /// In whose eyes the rolling client is about to ask.
    fn rolling_eyes(&mut self) -> Option<Eyes> {
        let rolling = |session: &&super::Session| {
            session.rolling && session.since && session.fans_out() && session.under_run
        };
        let session = self.sessions.values().find(rolling)?;
        self.known.eyes(&session.pool)
    }

    /// Asks as much as there are lanes to spare for.
    pub(super) fn ask_ahead(&mut self) {
        if self.draining.is_some() {
            return;
        }
        while !self.known.wanted.is_empty() {
            let Some(eyes) = self.rolling_eyes() else {
                break;
            };
            let Some(lane) = self.lane_to_spare(eyes, false) else {
                break;
            };
            let mut names = Vec::new();
            while names.len() < self.setup.limits.ahead_names
                && let Some(name) = self.known.wanted.pop_front()
            {
                let key = self.setup.site.key_of_mailbox(&name);
                if self.is_to_be_asked(&name, &key) {
                    names.push((name, key));
                }
            }
            self.ask(lane, names, eyes);
        }
        self.ask_doubtful();
    }

    fn is_to_be_asked(&mut self, name: &Bytes, key: &UserKey) -> bool {
        let subject = Subject::of_mailbox(&self.setup.site, name);
        // Whose jobs are queued is being asked about already, or being written to.
        !self.known.knows(name)
            && !self.known.is_under_way(name)
            && !self.ledger.on_probation(&subject)
            && self.queue.of_key(key).next().is_none()
            && self.queue.barriers().next().is_none()
    }

    /// What was told and led to nothing is read for real.
    fn ask_doubtful(&mut self) {
        if self.known.doubtful.is_empty() {
            return;
        }
        let mut looked = self.known.doubtful.len().min(AT_ONCE);
        while looked > 0 {
            let mut names: Vec<(Bytes, UserKey)> = Vec::new();
            let mut of: Option<(Eyes, LaneId)> = None;
            while names.len() < self.setup.limits.ahead_names && looked > 0 {
                looked -= 1;
                let Some(name) = self.known.doubtful.pop_front() else {
                    break;
                };
                let Some(doubt) = self.known.doubt_of(&name) else {
                    continue;
                };
                let key = self.setup.site.key_of_mailbox(&name);
                let lane = match of {
                    Some((eyes, lane)) if eyes == doubt.eyes => Some(lane),
                    Some(_) => None,
                    None => {
                        self.open_for_doubt(doubt.eyes);
                        self.lane_to_spare(doubt.eyes, true)
                    }
                };
                match lane {
                    Some(lane) if !self.known.is_under_way(&name) && !self.is_written(&key) => {
                        of = Some((doubt.eyes, lane));
                        names.push((name, key));
                    }
                    _ => self.known.doubtful.push_back(name),
                }
            }
            let Some((eyes, lane)) = of else { return };
            self.ask(lane, names, eyes);
        }
    }

    /// A client waits for nothing meanwhile: only where its kind of lane is not there at all.
    fn open_for_doubt(&mut self, eyes: Eyes) {
        let Some(pool) = self.known.pool(eyes).cloned() else {
            return;
        };
        if self.lanes.of(&pool).next().is_none()
            && self.sessions.values().any(|session| session.pool == pool)
        {
            self.lanes.pools.entry(pool.clone()).or_default();
            self.open_lane(&pool, 0);
        }
    }

    fn ask(&mut self, id: LaneId, names: Vec<(Bytes, UserKey)>, eyes: Eyes) {
        if names.is_empty() {
            return;
        }
        let body = print::get_mailboxes(names.iter().map(|(name, _)| name.as_ref()));
        let question = self.known.ask(names, eyes);
        if let Some(lane) = self.lanes.all.get_mut(&id) {
            let output = burst::own(lane, What::Question(question), body, self.now);
            self.send(id, output);
        }
    }

    /// A lane that nothing is in need of.
    fn lane_to_spare(&self, eyes: Eyes, idle: bool) -> Option<LaneId> {
        let most = self.setup.limits.ahead_requests;
        if self.known.questions() >= if idle { most.max(1) } else { most } {
            return None;
        }
        let pool = self.known.pool(eyes)?;
        let state = self.lanes.pools.get(pool)?;
        if !state.ready.is_empty() || !state.ready_alone.is_empty() {
            return None;
        }
        let questions = |lane: &Lane| {
            let sent = lane.in_flight.iter();
            sent.filter(|sent| matches!(sent.what, What::Question(_)))
                .count()
        };
        let reads = |lane: &Lane| {
            let read = |job| self.jobs.get(job).is_some_and(|job| job.read);
            lane.jobs.iter().all(read)
        };
        let spare = |lane: &Lane| {
            if idle {
                return lane.is_idle() && !lane.reserved;
            }
            lane.state == LaneState::Up
                && lane.has_room(&self.setup.limits)
                && reads(lane)
                && questions(lane) < DEEP
        };
        let lanes = self.lanes.of(pool).filter(|(_, lane)| spare(lane));
        lanes
            .min_by_key(|(_, lane)| lane.in_flight.len())
            .map(|(id, _)| *id)
    }

    /// A question has its answer.
    pub(super) fn question_answered(&mut self, id: QuestionId, reply: &Reply) {
        let site = self.setup.site.clone();
        let key = |name: &Bytes| site.key_of_mailbox(name);
        let Some((names, eyes)) = self.known.answered(id, key) else {
            return;
        };
        let ok = reply.status.kind == StatusKind::Ok;
        let counted: Vec<Bytes> = names
            .into_iter()
            .filter_map(|(name, counts)| counts.then_some(name))
            .collect();
        if ok {
            self.check_told(&counted, reply);
            self.learn_lines(&counted, reply, eyes);
            return;
        }
        for name in &counted {
            self.known.forget(name);
            // The client's own question shows what is wrong: its line brings it.
            if let Some(doubt) = self.known.doubt_of(name) {
                self.known.settle(name);
                self.told_wrong(name, doubt.owes);
            }
        }
    }

    /// A question's lane is gone.
    pub(super) fn question_lost(&mut self, id: QuestionId) {
        let site = self.setup.site.clone();
        let _ = self.known.answered(id, |name| site.key_of_mailbox(name));
    }

    /// Whether clients that sent nothing were told the truth.
    fn check_told(&mut self, names: &[Bytes], reply: &Reply) {
        for name in names {
            let Some(doubt) = self.known.doubt_of(name) else {
                continue;
            };
            self.known.settle(name);
            let line = reply
                .untagged
                .iter()
                .find(|line| line.mailbox.as_ref() == Some(name));
            // A line that is too long to be kept can't have been told.
            let real = line.map(|line| known::kept(&line.raw));
            let same = match real {
                None => self.known.told(&None) == doubt.told,
                Some(None) => false,
                Some(real) => self.known.told(&real) == doubt.told,
            };
            if !same {
                self.told_wrong(name, doubt.owes);
            }
        }
    }

    /// A client was told what is not so, and sent nothing. In strict mode there is no sync log to
    /// write to; there the next question about it has the right answer.
    fn told_wrong(&mut self, name: &Bytes, owes: bool) {
        self.note(Note::Known {
            outcome: "wrong",
            names: 1,
        });
        let line = Line::Mailbox(name.clone());
        if !owes || line.check().is_err() {
            return;
        }
        let subject = Subject::of_mailbox(&self.setup.site, name);
        let words = "the replica holds another state than was known here";
        let due = self.fail(&subject, words, false);
        self.ledger.owe(&subject, &line, due, Vec::new(), None);
        self.drop_behind(&subject, due);
    }
}
