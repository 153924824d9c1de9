//! Users and shared mailboxes that are left alone (design.md, promise 7).
//!
//! A refused GET USER, or a refused GET MAILBOXES over shared mailboxes or several users, ends the
//! rolling client's run (`sync_do_reader` in Cyrus's `sync_support.c`): it does `log-run` again at
//! once, without end, and everybody else's mail waits in `log`. The replica's state can't be made
//! up, and going on without the right one could harm what the replica holds. So the client is
//! answered as if the replica had nothing of whom it refused, what it then sends for him goes
//! nowhere, and a line that brings all of it back after a growing pause is owed before that answer
//! goes out.
//!
//! The client of a named channel can leave a user alone by itself (`IMAP_MAILBOX_LOCKED`), but it
//! writes his line into `log` at once and tries again after `sync_repeat_interval`, for ever: so it
//! is told that once for each try, and what it asks until the pause is over is answered as above.

use std::time::Duration;

use bytes::Bytes;

use super::Core;
use super::event::SessionId;
use super::mailboxes::merge;
use super::outcome::{TOO_MUCH, body_of, outcome};
use super::plan::{Plan, Subject};
use super::session::{Asked, AskedMailboxes, Group, Session, Waiting};
use crate::protocol::synclog::Line;
use crate::protocol::{Apply, Body, Command, Get, Kind, Reply, StatusKind, print};

impl Core {
    /// A command that concerns somebody who is left alone is answered here; any other is given
    /// back.
    pub(super) fn set_aside(
        &mut self,
        id: SessionId,
        command: Command,
        plan: &Plan,
    ) -> Option<Command> {
        let session = self.sessions.get(&id)?;
        match &command.kind {
            Kind::Get(Get::User(user)) => {
                let Some(due) = self.paused(session, &plan.subjects) else {
                    return Some(command);
                };
                let line = Line::User(user.clone());
                if line.check().is_err() {
                    return Some(command);
                }
                let subject = plan.subjects.first();
                if !subject.is_some_and(|subject| self.may_owe(subject, &line)) {
                    self.end_session(id, TOO_MUCH.into());
                    return None;
                }
                if let Some(subject) = plan.subjects.first() {
                    self.ledger.owe(subject, &line, due, Vec::new(), Some(id));
                }
                self.wait_for_lines(id, 1, plan.verb, "ok", nothing_there());
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.group.user_left_alone = true;
                }
                None
            }
            Kind::Get(Get::Mailboxes(names)) if session.spans_others(&plan.subjects) => {
                let left_out = |name: &Bytes| {
                    let subject = Subject::of_mailbox(&self.setup.site, name);
                    self.paused(session, &[subject]).is_some() && is_writable(name)
                };
                let (left_out, names): (Vec<_>, Vec<_>) = names.iter().cloned().partition(left_out);
                if left_out.is_empty() {
                    return Some(command);
                }
                self.ask_without(id, names, left_out);
                None
            }
            Kind::Apply(apply) if session.group.leaves_alone(apply, plan) => {
                self.answer(id, plan.verb, "ok", "OK success\r\n".into(), false);
                None
            }
            _ => Some(command),
        }
    }

    /// Until when one of these is left alone, in the eyes of this session.
    fn paused(&self, session: &Session, subjects: &[Subject]) -> Option<Duration> {
        if !session.fans_out() || !session.under_run {
            return None;
        }
        let probation = subjects
            .iter()
            .filter_map(|subject| self.ledger.probation(subject));
        let until = probation.map(|probation| probation.until).max();
        until.filter(|until| *until > self.now)
    }

    /// GET MAILBOXES without some of its names.
    fn ask_without(&mut self, id: SessionId, names: Vec<Bytes>, left_out: Vec<Bytes>) {
        let plan = Plan::mailboxes(names.clone(), &self.setup.site);
        let asked = AskedMailboxes {
            names,
            left_out,
            ..AskedMailboxes::default()
        };
        if asked.names.is_empty() {
            let waiting = Waiting::new(plan, Asked::Mailboxes(asked), 0, Vec::new());
            let _ = self.mailboxes_done(id, waiting);
            return;
        }
        self.send_mailboxes(id, plan, asked);
    }

    /// GET MAILBOXES has its answers. Gives it back where nobody is to be left alone.
    pub(super) fn mailboxes_done(&mut self, id: SessionId, waiting: Waiting) -> Option<Waiting> {
        let Asked::Mailboxes(asked) = &waiting.command else {
            return Some(waiting);
        };
        let session = self.sessions.get(&id)?;
        let others = session.spans_others(&waiting.plan.subjects);
        let parts = waiting.parts.iter().flatten();
        let any_refused = parts.clone().any(is_refused);
        if !others || (!any_refused && asked.left_out.is_empty()) {
            return Some(waiting);
        }
        let singly = asked.singly || asked.names.len() == 1;
        if any_refused && !singly {
            // To find out whom the replica refuses.
            let asked = AskedMailboxes {
                singly: true,
                ..asked.clone()
            };
            self.send_mailboxes(id, waiting.plan, asked);
            return None;
        }
        let mut refused: Vec<(Bytes, String)> = Vec::new();
        for (name, part) in asked.names.iter().zip(parts) {
            if !is_refused(part) {
                continue;
            }
            if !is_writable(name) {
                // Nothing would bring it back.
                let (verb, answer) = (waiting.plan.verb, outcome(&part.status));
                self.answer(id, verb, answer, body_of(part.clone()), false);
                return None;
            }
            let words = String::from_utf8_lossy(&part.status.line()).into_owned();
            refused.push((name.clone(), words));
        }
        let left_out = asked.left_out.clone();
        let mut owed = left_out.iter().chain(refused.iter().map(|(name, _)| name));
        if !owed.all(|name| {
            let subject = Subject::of_mailbox(&self.setup.site, name);
            self.may_owe(&subject, &Line::Mailbox(name.clone()))
        }) {
            self.end_session(id, TOO_MUCH.into());
            return None;
        }
        let verb = waiting.plan.verb;
        let good: Vec<Reply> = waiting
            .parts
            .into_iter()
            .flatten()
            .filter(|part| !any_refused || !is_refused(part))
            .collect();
        let nothing_else = refused.len() == asked.names.len();
        let order = if singly { &[][..] } else { &waiting.order };
        let mut body = Body::new();
        for line in merge(good, order).untagged {
            body.append(line.raw);
        }
        if body.is_empty() && nothing_else {
            // Not where the replica lacks one of the others: its messages are needed here.
            body = print::placeholder();
        }
        body.append("OK success\r\n".into());
        let lines = self.leave_mailboxes_alone(id, left_out, refused);
        self.wait_for_lines(id, lines, verb, "ok", body);
        None
    }

    /// A refusal that fails the shared mailboxes of a group without naming one to the client: it
    /// does its run again. Next time they are left alone. Whether that is so here.
    pub(super) fn leaves_alone_next(
        &mut self,
        id: SessionId,
        plan: &Plan,
        asked: &Asked,
        reply: &Reply,
    ) -> bool {
        let names = match asked {
            Asked::FullMailbox(name) => std::slice::from_ref(name),
            Asked::Rename(names) => &names[..],
            _ => return false,
        };
        let shared = |subject: &Subject| matches!(subject, Subject::Mailbox(_));
        let session = self.sessions.get(&id);
        if !session.is_some_and(|session| session.spans_others(&plan.subjects))
            || !plan.subjects.iter().any(shared)
            || !names.iter().all(is_writable)
        {
            return false;
        }
        let words = String::from_utf8_lossy(&reply.status.line()).into_owned();
        let refused = names.iter().map(|name| (name.clone(), words.clone()));
        let lines = self.leave_mailboxes_alone(id, Vec::new(), refused.collect());
        // The client makes a RENAME of it again only where it finds both names in one run.
        let until = plan.subjects.iter().filter_map(|subject| {
            let probation = self.ledger.probation(subject);
            probation.map(|probation| probation.until)
        });
        let until = until.fold(self.now, Duration::max);
        for name in names {
            let subject = Subject::of_mailbox(&self.setup.site, name);
            let line = Line::Mailbox(name.clone());
            self.ledger.leave_alone(&subject, until);
            self.ledger.owe(&subject, &line, until, Vec::new(), None);
        }
        let (outcome, body) = (outcome(&reply.status), body_of(reply.clone()));
        self.wait_for_lines(id, lines, plan.verb, outcome, body);
        true
    }

    /// Owes the lines of mailboxes; returns how many must be durable before the answer goes out.
    fn leave_mailboxes_alone(
        &mut self,
        id: SessionId,
        left_out: Vec<Bytes>,
        refused: Vec<(Bytes, String)>,
    ) -> usize {
        let mut lines = 0;
        let left_out = left_out.into_iter().map(|name| (name, None));
        let refused = refused.into_iter().map(|(name, words)| (name, Some(words)));
        for (name, words) in left_out.chain(refused) {
            let Some(session) = self.sessions.get_mut(&id) else {
                return lines;
            };
            if !session.group.left_alone.insert(name.clone()) {
                // Named twice.
                continue;
            }
            let subject = Subject::of_mailbox(&self.setup.site, &name);
            let until = self.ledger.probation(&subject).map(|one| one.until);
            let due = match (words, until) {
                (Some(words), _) => {
                    let due = self.fail(&subject, &words, true);
                    self.ledger.leave_alone(&subject, due);
                    due
                }
                (None, Some(until)) => until.max(self.now),
                // It has healed meanwhile.
                (None, None) => self.fail(&subject, "left out of a GET MAILBOXES", false),
            };
            let line = Line::Mailbox(name);
            self.ledger.owe(&subject, &line, due, Vec::new(), Some(id));
            self.drop_behind(&subject, due);
            lines += 1;
        }
        lines
    }
}

impl Session {
    /// Whether one refusal to a GET MAILBOXES of the rolling client would fail others too.
    fn spans_others(&self, subjects: &[Subject]) -> bool {
        let group = &self.group;
        let rolling = self.fans_out() && self.under_run;
        rolling && group.user.is_none() && group.concerns_others(subjects)
    }
}

impl Group {
    /// Whether this changes nothing but what is left alone.
    fn leaves_alone(&self, apply: &Apply, plan: &Plan) -> bool {
        if let (true, Some((_, key))) = (self.user_left_alone, &self.user) {
            let his = |subject: &Subject| matches!(subject, Subject::User(user) if user == key);
            let placeholder = matches!(apply, Apply::Unmailbox(name) if name == print::PLACEHOLDER);
            // What names nobody is not understood, and concerns everybody.
            let only_his = !plan.subjects.is_empty() && plan.subjects.iter().all(his);
            return placeholder || only_his;
        }
        matches!(apply, Apply::Mailbox(mailbox) if self.left_alone.contains(&mailbox.name))
    }

    /// Whether a RESERVE is for nothing but what is left alone: only such an answer names the
    /// placeholder, and no other mailbox.
    pub(super) fn reserves_nothing(&self, mailboxes: &[Bytes]) -> bool {
        (self.user_left_alone || !self.left_alone.is_empty())
            && mailboxes.iter().all(|name| name == print::PLACEHOLDER)
    }
}

/// The answer to GET USER for somebody who is left alone.
pub(super) fn nothing_there() -> Body {
    let mut body = print::placeholder();
    body.append("OK success\r\n".into());
    body
}

/// A mailbox that is not there is no refusal: the client makes it.
fn is_refused(reply: &Reply) -> bool {
    reply.status.kind != StatusKind::Ok && reply.status.token() != Some(b"IMAP_MAILBOX_NONEXISTENT")
}

fn is_writable(name: &Bytes) -> bool {
    Line::Mailbox(name.clone()).check().is_ok()
}
