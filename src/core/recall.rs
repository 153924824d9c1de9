//! Known state in use: GET MAILBOXES answered from it, and what makes and unmakes it.
//!
//! It serves the rolling client's listener only, and only where client and replica compare
//! SINCE_MODSEQ: then a wrong belief that makes the client send something is caught by the
//! replica. One that makes it send nothing is caught by [`super::ahead`].

use bytes::Bytes;

use super::Core;
use super::event::{Action, Mode, Note, Pool, RunId, SessionId};
use super::job::{Job, Work};
use super::known::{self, Doubt, Eyes, State};
use super::plan::{Class, Plan, Subject, covered};
use super::queue::{JobId, Keys};
use super::runs::Cover;
use super::session::{AskedMailboxes, Pending, Session};
use crate::protocol::synclog::Line;
use crate::protocol::{
    Apply, Body, Command, Get, Kind, Reply, Status, StatusKind, Untagged, UserKey,
};

/// Where so many mailboxes wait to be read for real, nothing known is told any more.
const DOUBTS: usize = 10_000;

impl Core {
    /// Answers a GET MAILBOXES as far as its names are known, and asks for the rest. Gives the
    /// command back where none is.
    pub(super) fn recall(
        &mut self,
        id: SessionId,
        command: Command,
        plan: Plan,
        run: Option<RunId>,
    ) -> Option<(Command, Plan)> {
        let Kind::Get(Get::Mailboxes(names)) = &command.kind else {
            return Some((command, plan));
        };
        let session = self.sessions.get(&id)?;
        // What a client is told may turn out wrong: then the line by which it asks is owed.
        let repairable = !self.has_log(session) || run.is_some();
        if !session.may_recall()
            || !repairable
            || !self.known.since
            || self.known.doubts() >= DOUBTS
        {
            return Some((command, plan));
        }
        let Some(eyes) = self.known.eyes(&session.pool) else {
            return Some((command, plan));
        };
        let oldest = self.now.saturating_sub(self.setup.limits.known_age);
        let mut known: Vec<(Bytes, State)> = Vec::new();
        let mut rest = Vec::new();
        let mut under_way = false;
        for name in names {
            let subject = Subject::of_mailbox(&self.setup.site, name);
            if self.ledger.on_probation(&subject) {
                rest.push(name.clone());
            } else if let Some(state) = self.known.recall(name, eyes, oldest) {
                known.push((name.clone(), state));
            } else if self.known.is_asked(name, eyes) {
                under_way = true;
            } else {
                rest.push(name.clone());
            }
        }
        if under_way {
            self.wait_for_ahead(id, command, plan, run);
            return None;
        }
        if known.is_empty() {
            self.count_known("miss", rest.len());
            return Some((command, plan));
        }
        let run = run.filter(|_| self.sessions.get(&id).is_some_and(|one| self.has_log(one)));
        if let Some(run) = run {
            match self.runs.cover(run, self.now) {
                Cover::Linked(coverage) => {
                    let site = &self.setup.site;
                    // After a crash only the run's own lines come back, and `log-run` may be
                    // another client's. That there is no such mailbox (a former name) may be told
                    // all the same: whoever has one sends it then, and the replica looks.
                    known.retain(|(name, state)| {
                        let line = Line::Mailbox(name.clone());
                        let brings_it_back =
                            || line.check().is_ok() && covered(&line, &coverage, site);
                        let told = state.is_none() || brings_it_back();
                        if !told {
                            rest.push(name.clone());
                        }
                        told
                    });
                    if known.is_empty() {
                        self.count_known("miss", rest.len());
                        return Some((command, plan));
                    }
                }
                cover @ (Cover::Link | Cover::Wait) => {
                    if matches!(cover, Cover::Link) {
                        self.act(Action::LinkRun { run });
                    }
                    let session = self.sessions.get_mut(&id)?;
                    session.pending = Some(Pending::Cover { command, plan, run });
                    return None;
                }
                Cover::Never => {
                    self.count_known("miss", names.len());
                    return Some((command, plan));
                }
            }
        }
        self.count_known("hit", known.len());
        self.count_known("miss", rest.len());
        for (name, state) in &known {
            let doubt = Doubt {
                eyes,
                told: self.known.told(state),
                at: self.known.clock(),
                since: self.now,
                run,
            };
            self.tell(id, name.clone(), doubt);
        }
        if rest.is_empty() {
            let mut body = Body::new();
            for line in known.into_iter().filter_map(|(_, state)| state) {
                body.push(line);
            }
            body.append("OK success\r\n".into());
            self.answer(id, plan.verb, "ok", body, true);
            return None;
        }
        let asked = AskedMailboxes {
            names: names.clone(),
            known,
            ..AskedMailboxes::default()
        };
        self.send_mailboxes(id, plan, asked);
        None
    }

    /// The answer was asked for ahead and is under way.
    pub(super) fn wait_for_ahead(
        &mut self,
        id: SessionId,
        command: Command,
        plan: Plan,
        run: Option<RunId>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.pending = Some(Pending::Ahead { command, plan, run });
        if session.ahead_since.is_none() {
            session.ahead_since = Some(self.now);
            self.impatient.push_back((self.now, id));
        }
    }

    /// Whether what the rolling client was told wrongly can be put into its log.
    fn has_log(&self, session: &Session) -> bool {
        session.fans_out() || self.setup.sync_log
    }

    fn count_known(&mut self, outcome: &'static str, names: usize) {
        if names > 0 {
            self.note(Note::Known { outcome, names });
        }
    }

    /// A real answer to GET MAILBOXES for one key, before its job is taken out of the queue. It
    /// says nothing where a write was queued behind it: that one's state is known already, or not
    /// to be known.
    pub(super) fn learn_from(&mut self, id: JobId, reply: &Reply) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.asks.is_empty() || reply.status.kind != StatusKind::Ok {
            return;
        }
        let (names, pool) = (job.asks.clone(), job.pool.clone());
        if self.is_followed(id) {
            return;
        }
        if let Some(eyes) = self.known.eyes(&pool) {
            self.learn_lines(&names, reply, eyes);
        }
    }

    /// What a whole answer says of these names.
    pub(super) fn learn_lines(&mut self, names: &[Bytes], reply: &Reply, eyes: Eyes) {
        let mut lines: hashbrown::HashMap<&Bytes, &Untagged> = hashbrown::HashMap::new();
        for line in &reply.untagged {
            self.known.since |= line.since;
            if let Some(name) = &line.mailbox {
                lines.insert(name, line);
            }
        }
        for name in names {
            match lines.get(name) {
                None => self.learn(name, None, eyes),
                Some(line) => match known::kept(&line.raw) {
                    Some(line) => self.learn(name, Some(line), eyes),
                    None => self.known.forget(name),
                },
            }
        }
    }

    fn learn(&mut self, name: &Bytes, state: State, eyes: Eyes) {
        let key = self.setup.site.key_of_mailbox(name);
        let limit = self.setup.limits.known_bytes;
        self.known.learn(name, &key, state, eyes, self.now, limit);
    }

    /// The replica will say this of a mailbox whose update was acknowledged. It compares what the
    /// client was told, now or before: that need not be read for real any more.
    pub(super) fn learn_made(&mut self, name: &Bytes, made: Option<Bytes>, pool: &Pool) {
        self.settled(name);
        match (made, self.known.eyes(pool)) {
            (Some(line), Some(eyes)) => {
                self.learn(name, Some(line), eyes);
                self.known.mark_made(name);
            }
            _ => self.known.forget(name),
        }
    }

    /// An unacknowledged job has its answer, before it is taken out of the queue.
    pub(super) fn learn_from_write(&mut self, id: JobId, ok: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.read || job.acked.is_some() {
            return;
        }
        // The answer to what was given up says nothing of what its client has sent since.
        let session = Some(job.session).filter(|_| job.left.is_none());
        if !ok {
            self.forget_failed(id);
            if let Some(session) = session {
                self.acted(session, true);
            }
            return;
        }
        if let Work::Unit(unit) = &mut job.work {
            let (name, made) = (unit.mailbox.clone(), unit.made.take());
            let pool = job.pool.clone();
            if self.is_followed(id) {
                // What follows is known already, or not to be known.
                self.settled(&name);
            } else {
                self.learn_made(&name, made, &pool);
            }
        }
        if let Some(session) = session {
            self.acted(session, false);
        }
    }

    /// A write was refused or is in doubt: whom it concerns is as unknown as what it did.
    pub(super) fn forget_failed(&mut self, id: JobId) {
        let subjects = match self.jobs.get(&id) {
            Some(job) if !job.read => job.subjects.clone(),
            _ => return,
        };
        for subject in &subjects {
            self.forget_subject(subject);
        }
    }

    /// Nothing is known of a subject any more. One bad shared mailbox does not concern the others.
    pub(super) fn forget_subject(&mut self, subject: &Subject) {
        match subject {
            Subject::User(key) => {
                self.known.forget_key(key);
                self.forget_user_ahead(key);
            }
            Subject::Mailbox(name) => {
                self.known.forget(name);
                self.known.distrust(&UserKey::shared());
            }
        }
    }

    /// A write is queued. An update concerns its own mailbox; SEEN and SUB change no mailbox; any
    /// other write concerns all of its keys.
    pub(super) fn wrote(&mut self, plan: &Plan, work: &Work) {
        if plan.class == Class::Read {
            return;
        }
        if let Keys::Of(keys) = &plan.keys {
            keys.iter().for_each(|key| self.forget_user_ahead(key));
        }
        if matches!(plan.line, Some(Line::Seen(..) | Line::Sub(..))) {
            return;
        }
        match (work, &plan.keys) {
            (Work::Unit(unit), Keys::Of(keys)) => {
                self.known.forget(&unit.mailbox);
                for key in keys {
                    self.known.distrust(key);
                }
            }
            (_, Keys::Of(keys)) => {
                for key in keys {
                    self.known.forget_key(key);
                }
            }
            (_, Keys::Barrier) => self.forget_everything(),
        }
    }

    /// Nothing is known of anybody any more, nor to be asked about.
    pub(super) fn forget_everything(&mut self) {
        self.known.forget_all();
        self.forget_users_ahead();
        self.upcoming.clear();
    }

    /// A client that reads all of a user is repairing him: what is known may be what is wrong. One
    /// that writes to a mailbox has not been led to nothing by what it was told.
    pub(super) fn repairs(&mut self, id: SessionId, command: &Command, plan: &Plan) {
        let written: &[&Bytes] = match &command.kind {
            Kind::Get(Get::User(_) | Get::FullMailbox(_)) => {
                if let Keys::Of(keys) = &plan.keys {
                    keys.iter().for_each(|key| self.known.forget_key(key));
                }
                return;
            }
            Kind::Apply(Apply::Mailbox(mailbox)) => &[&mailbox.name],
            Kind::Apply(Apply::Rename { old, new }) => &[old, new],
            Kind::Apply(Apply::Unmailbox(name)) => &[name],
            Kind::Apply(Apply::Expunge { mailbox }) => &[mailbox],
            _ => return,
        };
        for name in written {
            let Some(session) = self.sessions.get_mut(&id) else {
                return;
            };
            let told = session.group.told.remove(*name);
            if let (Some(doubt), Mode::Strict) = (told, session.mode) {
                session.acting.push(((*name).clone(), doubt));
            } else {
                self.end_doubt(told);
            }
        }
    }

    /// What a client sent by what it was told has the replica's answer, or will have none: then it
    /// does its run again. A refusal it may forget (one of a shared mailbox, where another user's
    /// comes behind: `sync_do_reader`), but with the replica's own state there would have been none.
    pub(super) fn acted(&mut self, id: SessionId, refused: bool) {
        let session = self.sessions.get_mut(&id);
        let acting = session.map(|one| std::mem::take(&mut one.acting));
        for (name, doubt) in acting.into_iter().flatten() {
            if refused {
                let words = "the replica refused what was sent by what was known here";
                self.owe_doubt(&name, doubt, words);
            } else {
                self.end_doubt(Some(doubt));
            }
        }
    }

    /// A client is told something known.
    fn tell(&mut self, id: SessionId, name: Bytes, doubt: Doubt) {
        if let Some(run) = doubt.run {
            self.runs.pin(run);
        }
        let session = self.sessions.get_mut(&id);
        let before = session.and_then(|one| one.group.told.insert(name, doubt));
        self.end_doubt(before);
    }

    /// The client is done with what it was told: where it sent nothing, that is to be read for
    /// real.
    pub(super) fn group_ended(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for (name, doubt) in std::mem::take(&mut session.group.told) {
            // Another client has changed it since, and the replica said OK to that, or will.
            if self.known.made_since(&name, doubt.at) {
                self.end_doubt(Some(doubt));
                continue;
            }
            let before = self.known.doubt(name, doubt);
            self.end_doubt(before);
        }
    }

    /// The doubt about a mailbox is over.
    fn settled(&mut self, name: &Bytes) {
        let doubt = self.known.settle(name);
        self.end_doubt(doubt);
    }

    /// The run that this doubt held is needed for it no more.
    pub(super) fn end_doubt(&mut self, doubt: Option<Doubt>) {
        if let Some(run) = doubt.and_then(|doubt| doubt.run) {
            self.runs.unpin(run);
        }
    }

    /// Whether a write waits behind this job.
    fn is_followed(&self, id: JobId) -> bool {
        self.queue.behind(id).any(|other| self.is_write(other))
    }

    /// Whether a write of this key is queued or running.
    pub(super) fn is_written(&self, key: &UserKey) -> bool {
        let jobs = self.queue.of_key(key).chain(self.queue.barriers());
        jobs.into_iter().any(|other| self.is_write(other))
    }

    fn is_write(&self, id: JobId) -> bool {
        self.jobs.get(&id).is_some_and(|job: &Job| !job.read)
    }

    /// Those who wait for an answer under way look again.
    pub(super) fn wake_readers(&mut self) {
        if !std::mem::take(&mut self.known.news) {
            return;
        }
        let waits = |session: &Session| matches!(session.pending, Some(Pending::Ahead { .. }));
        let waiting: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| waits(session))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.resubmit(id);
        }
    }

    /// The known part of an answer that is put together.
    pub(super) fn known_part(known: &[(Bytes, State)]) -> Reply {
        let line = |(name, state): &(Bytes, State)| {
            state.clone().map(|line| Untagged {
                kind: Bytes::from_static(b"MAILBOX"),
                mailbox: Some(name.clone()),
                uniqueid: None,
                since: true,
                guids: Vec::new(),
                words: Vec::new(),
                raw: line.into(),
            })
        };
        Reply {
            untagged: known.iter().filter_map(line).collect(),
            status: Status {
                kind: StatusKind::Ok,
                text: "success".into(),
            },
        }
    }
}

impl Session {
    /// Whether its questions may be answered from known state.
    fn may_recall(&self) -> bool {
        self.rolling && self.since && !self.has_cache && self.group.user.is_none()
    }
}
