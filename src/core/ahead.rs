//! Questions outside of the users' queues: what the run says the client is about to ask, and
//! whether a client that was told something known, and sent nothing, was told the truth.
//!
//! They are GET MAILBOXES with several names each, on lanes that run nothing but reads where there
//! are such; one lane has none of them. An answer counts only for names whose key had no write
//! queued, running or begun since the question went out (`Known::distrust`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Core;
use super::burst;
use super::event::{Action, LaneId, Mode, Note, RunId};
use super::known::{self, Doubt, Eyes, QuestionId};
use super::lanes::{Lane, State as LaneState, What};
use super::plan::Subject;
use crate::protocol::synclog::{Coverage, Line, Named};
use crate::protocol::{Reply, StatusKind, UserKey, print};

/// Questions on one lane: what comes behind them waits for so many times `ahead_names` mailboxes to
/// be opened.
const DEEP: usize = 4;

/// So many doubts do not wait for an idle lane any more.
const MANY: usize = 256;

/// A mailbox that can't be read is tried so often before its line is owed.
const TRIES: u32 = 3;

/// So long a doubt waits for an idle lane.
const LONG: Duration = Duration::from_secs(30);

/// So long one does that had trouble before; then its line is owed.
const GIVEN_UP: Duration = Duration::from_secs(5 * 60);

/// The pause for all doubts after one could not be read.
const REST: Duration = Duration::from_secs(1);

/// So many doubts are looked at in one go: those whose user is being written to come again.
const AT_ONCE: usize = 64;

/// What a lane may be at that is asked something.
#[derive(Clone, Copy)]
enum Busy {
    /// Nothing.
    Idle,
    /// Questions, of clients or our own.
    Reading,
    /// Units.
    Writing,
}

impl Core {
    /// A run is linked: what it names is about to be asked about by the rolling client.
    pub(super) fn read_ahead(&mut self, run: RunId, coverage: &Arc<Coverage>) {
        let coverage = Some(coverage).filter(|_| !self.runs.is_gone(run));
        self.upcoming.begin(run, coverage);
    }

    /// The client is done with a run.
    pub(super) fn not_ahead(&mut self, run: RunId) {
        self.upcoming.end(run);
    }

    /// What `log` names: the next run, as far as it is not known already.
    pub(super) fn read_on(&mut self, named: Named) {
        for name in named.mailboxes {
            if !self.known.knows(&name) {
                self.upcoming.mailboxes.add(name);
            }
        }
        for user in named.users {
            self.upcoming.users.add(user);
        }
    }

    /// `log` is looked at as long as the client is there that will ask: in strict mode whoever uses
    /// the rolling client's listener.
    pub(super) fn watch_log(&mut self) {
        let on = self.draining.is_none() && self.rolling_eyes().is_some();
        if on != std::mem::replace(&mut self.known.watching, on) {
            self.upcoming.forget_later();
            self.act(Action::WatchLog { on });
        }
    }

    /// In whose eyes the rolling client is about to ask.
    pub(super) fn rolling_eyes(&mut self) -> Option<Eyes> {
        if self.setup.limits.known_bytes == 0 {
            return None;
        }
        let rolling = |session: &&super::Session| {
            let strict = session.mode == Mode::Strict;
            let asks = strict || (session.fans_out() && session.under_run);
            session.rolling && session.since && asks
        };
        let session = self.sessions.values().find(rolling)?;
        self.known.eyes(&session.pool)
    }

    /// Asks as much as there are lanes to spare for.
    pub(super) fn ask_ahead(&mut self) {
        while self.draining.is_none() && !self.upcoming.mailboxes.is_empty() {
            let Some(eyes) = self.rolling_eyes() else {
                break;
            };
            let Some(lane) = self.lane_for_ahead(eyes) else {
                break;
            };
            let mut names = Vec::new();
            while names.len() < self.setup.limits.ahead_names
                && let Some(name) = self.upcoming.mailboxes.next()
            {
                self.upcoming.mailboxes.pass();
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
        !self.known.knows(name)
            && !self.known.is_under_way(name)
            && self.known.trouble(name) == 0
            && self.is_at_rest(&Subject::of_mailbox(&self.setup.site, name), key)
    }

    /// Whether it may be asked about ahead: whose jobs are queued is being asked about already, or
    /// being written to, and who is on probation is asked about by the client alone.
    pub(super) fn is_at_rest(&self, subject: &Subject, key: &UserKey) -> bool {
        !self.ledger.on_probation(subject)
            && self.queue.of_key(key).next().is_none()
            && self.queue.barriers().next().is_none()
    }

    /// What was told and led to nothing is read for real.
    pub(super) fn ask_doubtful(&mut self) {
        let rests = self.known.doubts_rest.is_some_and(|until| self.now < until);
        if self.known.doubtful.is_empty() || rests {
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
                // What had trouble is asked about by itself, and stands in nobody's way.
                let troubled = self.known.trouble(&name) > 0;
                if troubled && !names.is_empty() {
                    self.known.doubtful.push_front(name);
                    looked += 1;
                    break;
                }
                let waited = self.now.saturating_sub(doubt.since);
                if troubled && waited >= GIVEN_UP {
                    if let Some(doubt) = self.known.settle(&name) {
                        self.owe_doubt(&name, doubt, "it could not be read for a long time");
                    }
                    continue;
                }
                let lane = match of {
                    Some((eyes, lane)) if eyes == doubt.eyes => Some(lane),
                    Some(_) => None,
                    None => {
                        self.open_for_doubt(doubt.eyes);
                        self.lane_for_doubts(doubt.eyes, troubled, waited)
                    }
                };
                match lane {
                    Some(lane) if !self.known.is_under_way(&name) && !self.is_written(&key) => {
                        of = Some((doubt.eyes, lane));
                        names.push((name, key));
                        if troubled {
                            break;
                        }
                    }
                    _ => self.known.doubtful.push_back(name),
                }
            }
            let Some((eyes, lane)) = of else { return };
            self.ask(lane, names, eyes);
        }
    }

    /// A client waits for nothing meanwhile: only where its kind of lane is not there at all. It
    /// may have come back as another kind of client, and the doubt holds a run.
    fn open_for_doubt(&mut self, eyes: Eyes) {
        let Some(pool) = self.known.pool(eyes).cloned() else {
            return;
        };
        if self.lanes.of(&pool).next().is_none() && !self.sessions.is_empty() {
            self.lanes.pools.entry(pool.clone()).or_default().wanted = true;
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

    /// A lane for what the client is about to ask. Where all are writing, one more; where there are
    /// as many as there may be, one question on each.
    pub(super) fn lane_for_ahead(&mut self, eyes: Eyes) -> Option<LaneId> {
        let questions = self.known.questions() + self.users_ahead.questions();
        if questions >= self.setup.limits.ahead_requests || self.waits_for_lane(eyes) {
            return None;
        }
        let lane = self.lane_to_spare(eyes, Busy::Reading);
        if lane.is_some() {
            return lane;
        }
        let pool = self.known.pool(eyes)?.clone();
        let opening = self.lanes.count(&pool, LaneState::Opening) > 0;
        let has_lane = self.lanes.of(&pool).next().is_some();
        if !has_lane || opening || self.open_lane(&pool, 0) {
            return None;
        }
        self.lane_to_spare(eyes, Busy::Writing)
    }

    /// A lane for doubts. They wait for an idle one, unless there are many, or for long: they hold
    /// runs.
    fn lane_for_doubts(&self, eyes: Eyes, troubled: bool, waited: Duration) -> Option<LaneId> {
        if self.known.questions() >= self.setup.limits.ahead_requests.max(1) {
            return None;
        }
        if (self.known.doubts() >= MANY || waited >= LONG) && !troubled {
            return self.lane_to_spare(eyes, Busy::Writing);
        }
        let waits = self.waits_for_lane(eyes);
        let idle = || self.lane_to_spare(eyes, Busy::Idle);
        if waits { None } else { idle() }
    }

    /// Whether the users' own work waits for a lane: then no question goes before it.
    fn waits_for_lane(&self, eyes: Eyes) -> bool {
        let pool = self.known.pool(eyes);
        let state = pool.and_then(|pool| self.lanes.pools.get(pool));
        state.is_some_and(|state| !state.ready.is_empty() || !state.ready_alone.is_empty())
    }

    /// The lane with the least in flight that is no busier than this.
    fn lane_to_spare(&self, eyes: Eyes, most: Busy) -> Option<LaneId> {
        let pool = self.known.pool(eyes)?;
        let asked = |lane: &Lane| lane.questions;
        // One lane stays free of questions: what comes is not to stand behind them everywhere.
        let up = || {
            self.lanes
                .of(pool)
                .map(|(_, lane)| lane)
                .filter(|lane| lane.state == LaneState::Up)
        };
        let without = up().filter(|lane| asked(lane) == 0).count();
        let opening = self.lanes.count(pool, LaneState::Opening) > 0;
        // The only one has few.
        let only_one = up().count() == 1 && !opening && !self.may_open(pool);
        let deep = if only_one { 1 } else { DEEP };
        let one_left = |lane: &Lane| only_one || without > usize::from(asked(lane) == 0);
        let reads = |lane: &Lane| {
            let read = |job| self.jobs.get(job).is_some_and(|job| job.read);
            lane.jobs.iter().all(read)
        };
        let spare = |lane: &Lane| {
            let room = || lane.has_room(&self.setup.limits) && asked(lane) < deep;
            match most {
                Busy::Idle => lane.is_idle() && !lane.reserved,
                Busy::Reading => room() && reads(lane) && one_left(lane),
                // The client would ask by itself, one mailbox at a time, and wait for each.
                Busy::Writing => room() && asked(lane) == 0 && one_left(lane),
            }
        };
        let lanes = self.lanes.of(pool).filter(|(_, lane)| spare(lane));
        lanes
            .min_by_key(|(_, lane)| lane.in_flight.len())
            .map(|(id, _)| *id)
    }

    /// A question has its answer.
    pub(super) fn question_answered(&mut self, id: QuestionId, reply: &Reply) {
        let Some((counted, eyes, alone)) = self.known.answered(id) else {
            return;
        };
        if reply.status.kind == StatusKind::Ok {
            self.check_told(&counted, reply);
            self.learn_lines(&counted, reply, eyes);
            return;
        }
        for name in &counted {
            self.known.forget(name);
        }
        let locked = reply.status.token() == Some(b"IMAP_MAILBOX_LOCKED");
        let words = String::from_utf8_lossy(&reply.status.line()).into_owned();
        self.unread(&counted, &words, alone && !locked);
    }

    /// A question's lane is gone; `first` tells that the replica was at this very question.
    pub(super) fn question_lost(&mut self, id: QuestionId, first: bool) {
        if let Some((counted, ..)) = self.known.answered(id)
            && first
        {
            self.unread(&counted, "the connection to the replica was lost", false);
        }
    }

    /// These mailboxes could not be read, or one of them: they are not asked about ahead again
    /// until the client has asked. A doubt is asked about by itself a few times; then the client's
    /// own question has to show what is wrong: its line brings it.
    fn unread(&mut self, names: &[Bytes], words: &str, surely: bool) {
        for name in names {
            let often = self.known.had_trouble(name);
            if self.known.doubt_of(name).is_none() {
                continue;
            }
            self.known.doubts_rest = Some(self.now + REST);
            if (surely || often >= TRIES)
                && let Some(doubt) = self.known.settle(name)
            {
                self.owe_doubt(name, doubt, words);
            }
        }
    }

    /// Whether clients that sent nothing were told the truth.
    fn check_told(&mut self, names: &[Bytes], reply: &Reply) {
        for name in names {
            let Some(doubt) = self.known.settle(name) else {
                continue;
            };
            self.note(Note::Known {
                outcome: "checked",
                names: 1,
            });
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
            if same {
                self.end_doubt(Some(doubt));
            } else {
                self.told_wrong(name, doubt);
            }
        }
    }

    /// A client was told what is not so, and sent nothing. Without a sync log (strict mode alone
    /// may be without one) the next question about it has the right answer.
    fn told_wrong(&mut self, name: &Bytes, doubt: Doubt) {
        self.note(Note::Known {
            outcome: "wrong",
            names: 1,
        });
        let words = "the replica holds another state than was known here";
        self.owe_doubt(name, doubt, words);
    }

    /// The end of a drain: what could not be read for real is owed.
    pub(super) fn give_up_doubts(&mut self) {
        for name in self.known.all_doubts() {
            if let Some(doubt) = self.known.settle(&name) {
                self.owe_doubt(&name, doubt, "not read before syncmux stopped");
            }
        }
    }

    pub(super) fn owe_doubt(&mut self, name: &Bytes, doubt: Doubt, words: &str) {
        let line = Line::Mailbox(name.clone());
        let Some(run) = doubt.run.filter(|_| line.check().is_ok()) else {
            return self.end_doubt(Some(doubt));
        };
        let subject = Subject::of_mailbox(&self.setup.site, name);
        let due = self.fail(&subject, words, false);
        self.ledger.owe(&subject, &line, due, vec![run], None);
        self.drop_behind(&subject, due);
    }
}
