//! Known state in use: GET MAILBOXES answered from it, and what makes and unmakes it.
//!
//! It serves the rolling client's listener only, and only where client and replica compare
//! SINCE_MODSEQ: then a wrong belief that makes the client send something is caught by the
//! replica. One that makes it send nothing is caught by [`super::ahead`].

use bytes::Bytes;

use super::Core;
use super::event::{Note, Pool, RunId, SessionId};
use super::job::{Job, Work};
use super::known::{self, Doubt, Eyes, State};
use super::plan::{Class, Plan, Subject};
use super::queue::{JobId, Keys};
use super::session::{AskedMailboxes, Pending, Session};
use crate::protocol::synclog::Line;
use crate::protocol::{Body, Command, Get, Kind, Reply, Status, StatusKind, Untagged, UserKey};

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
        if !session.may_recall() || !self.known.since || self.known.doubts() >= DOUBTS {
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
            let session = self.sessions.get_mut(&id)?;
            session.pending = Some(Pending::Ahead { command, plan, run });
            return None;
        }
        self.count_known("hit", known.len());
        self.count_known("miss", rest.len());
        if known.is_empty() {
            return Some((command, plan));
        }
        let session = self.sessions.get_mut(&id)?;
        for (name, state) in &known {
            let told = self.known.told(state);
            session.group.told.insert(name.clone(), told);
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

    /// The replica will say this of a mailbox whose update was acknowledged.
    pub(super) fn learn_made(&mut self, name: &Bytes, made: Option<Bytes>, pool: &Pool) {
        match (made, self.known.eyes(pool)) {
            (Some(line), Some(eyes)) => self.learn(name, Some(line), eyes),
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
        if !ok {
            return self.forget_failed(id);
        }
        if let Work::Unit(unit) = &mut job.work {
            let (name, made) = (unit.mailbox.clone(), unit.made.take());
            let pool = job.pool.clone();
            if !self.is_followed(id) {
                self.learn_made(&name, made, &pool);
            }
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
            Subject::User(key) => self.known.forget_key(key),
            Subject::Mailbox(name) => {
                self.known.forget(name);
                self.known.distrust(&UserKey::shared());
            }
        }
    }

    /// A write is queued. An update concerns its own mailbox; SEEN and SUB change no mailbox; any
    /// other write concerns all of its keys.
    pub(super) fn wrote(&mut self, id: SessionId, plan: &Plan, work: &Work) {
        if plan.class == Class::Read || matches!(plan.line, Some(Line::Seen(..) | Line::Sub(..))) {
            return;
        }
        let site = &self.setup.site;
        let told = self.sessions.get_mut(&id).map(|one| &mut one.group.told);
        match (work, &plan.keys) {
            (Work::Unit(unit), Keys::Of(keys)) => {
                self.known.forget(&unit.mailbox);
                self.known.settle(&unit.mailbox);
                for key in keys {
                    self.known.distrust(key);
                }
                if let Some(told) = told {
                    told.remove(&unit.mailbox);
                }
            }
            (_, Keys::Of(keys)) => {
                for key in keys {
                    self.known.forget_key(key);
                }
                if let Some(told) = told {
                    told.retain(|name, _| !keys.contains(&site.key_of_mailbox(name)));
                }
            }
            (_, Keys::Barrier) => self.known.forget_all(),
        }
    }

    /// A client that reads all of a user is repairing him: what is known may be what is wrong.
    pub(super) fn repairs(&mut self, command: &Command, plan: &Plan) {
        if let (Kind::Get(Get::User(_) | Get::FullMailbox(_)), Keys::Of(keys)) =
            (&command.kind, &plan.keys)
        {
            for key in keys {
                self.known.forget_key(key);
            }
        }
    }

    /// The client is done with what it was told: where it sent nothing, that is to be read for
    /// real.
    pub(super) fn group_ended(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let told = std::mem::take(&mut session.group.told);
        if told.is_empty() {
            return;
        }
        let (pool, owes) = (session.pool.clone(), session.fans_out());
        if let Some(eyes) = self.known.eyes(&pool) {
            for (name, told) in told {
                self.known.doubt(name, Doubt { eyes, told, owes });
            }
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
