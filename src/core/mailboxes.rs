//! GET MAILBOXES over several users: it goes out in parallel by user, and its answer comes back in
//! the order asked.

use bytes::Bytes;

use super::Core;
use super::event::SessionId;
use super::job::Work;
use super::plan::Plan;
use super::session::{Asked, AskedMailboxes, Pending, Waiting};
use crate::protocol::{Reply, Status, StatusKind, print};

impl Core {
    /// Sends GET MAILBOXES: a part for each user, or for each name.
    pub(super) fn send_mailboxes(&mut self, id: SessionId, plan: Plan, asked: AskedMailboxes) {
        let mut parts: Vec<Vec<Bytes>> = Vec::new();
        let mut order = Vec::with_capacity(asked.names.len());
        let mut index = hashbrown::HashMap::new();
        // Asked one by one, all of them are.
        let mut known = asked.known.iter().filter(|_| !asked.singly).peekable();
        let mut from_known = Vec::new();
        for name in &asked.names {
            let new = parts.len();
            if let Some(one) = known.next_if(|(known, _)| known == name) {
                from_known.push(one.clone());
                order.push((name.clone(), usize::MAX));
                continue;
            }
            let key = || self.setup.site.key_of_mailbox(name);
            let part = if asked.singly {
                new
            } else {
                *index.entry(key()).or_insert(new)
            };
            if part == new {
                parts.push(Vec::new());
            }
            parts[part].push(name.clone());
            order.push((name.clone(), part));
        }
        let count = parts.len();
        for (part, names) in parts.into_iter().enumerate() {
            // Only its own subjects: the cost of many users must not be that of their square.
            let part_plan = Plan::mailboxes(names.clone(), &self.setup.site);
            let work = Work::Plain(print::get_mailboxes(names.iter().map(AsRef::as_ref)));
            self.push_job(id, part, &part_plan, work, None);
        }
        // The known lines are a part that has come already.
        for (_, part) in order.iter_mut().filter(|(_, part)| *part == usize::MAX) {
            *part = count;
        }
        let mut waiting = Waiting::new(plan, Asked::Mailboxes(asked), count, order);
        if !from_known.is_empty() {
            waiting.parts.push(Some(Core::known_part(&from_known)));
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.pending = Some(Pending::Jobs(waiting));
        }
    }
}

/// One answer from those of the parts: MAILBOX lines in the order in which the names were asked
/// for, as the replica gives them, and the first refusal if there is one.
pub(super) fn merge(parts: Vec<Reply>, order: &[(Bytes, usize)]) -> Reply {
    if let (1, Some(only)) = (parts.len(), parts.first()) {
        return only.clone();
    }
    let refused = parts.iter().find(|part| part.status.kind != StatusKind::Ok);
    let ok = || Status {
        kind: StatusKind::Ok,
        text: "success".into(),
    };
    let status = refused.map_or_else(ok, |part| part.status.clone());
    let mut lines: Vec<_> = parts
        .into_iter()
        .map(|part| part.untagged.into_iter().peekable())
        .collect();
    let mut untagged = Vec::new();
    for (name, part) in order {
        if let Some(lines) = lines.get_mut(*part) {
            untagged.extend(lines.next_if(|line| line.mailbox.as_ref() == Some(name)));
        }
    }
    untagged.extend(lines.into_iter().flatten());
    Reply { untagged, status }
}
