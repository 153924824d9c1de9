//! What must be true at every step: order, prefix, and nothing acknowledged lost.

use bytes::Bytes;
use syncmux::core::{LaneId, Mode, SessionId};
use syncmux::protocol::synclog::{Item, ItemKind};
use syncmux::protocol::{Apply, Body, Get, Kind};

use super::{Endpoint, World};
use crate::client::owner;
use crate::disk::{State, lines, lines_put_back};
use crate::replica::{Replica, number, parse};

/// A write that was acknowledged before the replica's answer.
pub(super) struct Ack {
    pub(super) text: String,
    /// How many commands there had been when it was acknowledged.
    pub(super) number: u64,
    pub(super) subject: String,
    says: Says,
    pub(super) state: AckState,
}

/// What a write says.
enum Says {
    /// A mailbox and its version.
    Mailbox(Bytes, u64),
    /// A user, a uniqueid, and the last uid.
    Seen((Bytes, Bytes), u64),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum AckState {
    Queued,
    OnLane(LaneId),
    /// Confirmed by the replica.
    Done,
    /// Refused, in doubt, or dropped behind such a one: a line must bring it back.
    Failed,
}

/// The subject of a write's text, and what it says: `None` for other commands.
fn write_of(text: &[u8]) -> Option<(String, Says)> {
    if !text.starts_with(b"APPLY MAILBOX") && !text.starts_with(b"APPLY SEEN") {
        return None;
    }
    match parse(&Body::from(Bytes::copy_from_slice(text))).kind {
        Kind::Apply(Apply::Mailbox(mailbox)) => {
            let name = String::from_utf8(mailbox.name.to_vec()).unwrap();
            let user = owner(&name).to_owned();
            let version = number(text, " HIGHESTMODSEQ").unwrap();
            let says = Says::Mailbox(mailbox.name, version);
            Some((if user.is_empty() { name } else { user }, says))
        }
        Kind::Apply(Apply::Seen { user, uniqueid }) => {
            let subject = String::from_utf8(user.to_vec()).unwrap();
            let uid = number(text, "LASTUID").unwrap();
            Some((subject, Says::Seen((user, uniqueid), uid)))
        }
        _ => None,
    }
}

/// All lines that a client or the next start will read.
fn remembered(disk: &State) -> Vec<Item> {
    let read = |name: &str| lines(disk.read(name).unwrap_or_default());
    let mut found = [read("log"), read("log-run")].concat();
    for name in disk.names("syncmux-").filter(|name| !name.contains("tmp")) {
        found.extend(lines_put_back(disk.read(name).unwrap()));
    }
    found
}

impl Replica {
    /// Whether it has what a write says.
    fn holds(&self, says: &Says) -> bool {
        let (here, wanted) = match says {
            Says::Mailbox(name, version) => (self.mailboxes.get(name), version),
            Says::Seen(whose, uid) => (self.seen.get(whose), uid),
        };
        here.is_some_and(|here| here >= wanted)
    }
}

impl World {
    /// From now on nothing acknowledged for this subject may be sent.
    pub(super) fn fail(&mut self, subject: &str) {
        for ack in self.acks.iter_mut().filter(|ack| ack.subject == subject) {
            if ack.state == AckState::Queued {
                ack.state = AckState::Failed;
            }
        }
    }

    pub(super) fn answered(&mut self, session: SessionId, body: &Body, end: bool) {
        let text = String::from_utf8(body.to_vec().unwrap()).unwrap();
        let of = |endpoint: &&mut Endpoint| endpoint.session == Some(session);
        let Some(endpoint) = self.endpoints.iter_mut().find(of) else {
            return;
        };
        let (asked, mode) = (endpoint.outstanding.take(), endpoint.mode);
        // When it was asked.
        let came = endpoint.number;
        let number = self.counts.commands;
        let mut wire = endpoint.wire.borrow_mut();
        wire.answers
            .push_back((!text.is_empty()).then(|| text.clone()));
        if end {
            wire.connected = false;
            endpoint.session = None;
            // On a lane it is carried on.
            let left = asked.clone().map(|text| (text, endpoint.number));
            self.orphans.extend(left);
        }
        drop(wire);
        let early = std::mem::take(&mut self.early);
        self.check_read(asked.as_deref(), &text, mode);
        let put_off = text.starts_with("NO ") && !text.starts_with("NO IMAP_SYNC_CHECKSUM");
        if let (Mode::RightNow, true, Some(asked)) = (mode, put_off, &asked) {
            // It is carried on where it was on a lane.
            self.orphans.push((asked.clone(), came));
            self.check_put_off(asked, number);
        } else if let (true, Some(asked)) = (text.contains(" Put off: "), &asked) {
            // So was a rolling client, while the replica is silent; on a lane it is carried on too.
            self.orphans.push((asked.clone(), came));
        }
        let Some(asked) = asked.filter(|_| text.starts_with("OK")) else {
            return;
        };
        let Some((subject, says)) = write_of(asked.as_bytes()) else {
            return;
        };
        if early {
            assert_eq!(mode, Mode::FanOut, "a strict listener acknowledged early");
            self.counts.acknowledged_early += 1;
            self.acks.push(Ack {
                text: asked,
                number,
                subject,
                says,
                state: AckState::Queued,
            });
        } else if !self.replica.holds(&says) {
            // OK to what the replica refused: a line must bring it back.
            self.acks.push(Ack {
                text: asked,
                number,
                subject,
                says,
                state: AckState::Failed,
            });
        }
    }

    /// An imapd was told that something is put off, and forgets it: from now on a line must bring it
    /// back.
    fn check_put_off(&mut self, asked: &str, number: u64) {
        // A disk that takes nothing stops nobody's work: the line is tried again.
        if self
            .core
            .as_ref()
            .is_some_and(|core| core.snapshot().not_written)
        {
            return;
        }
        let mut owed: Vec<(String, Says)> = write_of(asked.as_bytes()).into_iter().collect();
        if let Kind::Get(Get::Mailboxes(names)) = parse(&Body::from(asked.to_owned())).kind {
            let master = self.master.borrow();
            owed.extend(names.into_iter().filter_map(|name| {
                let text = String::from_utf8(name.to_vec()).unwrap();
                let version = *master.mailboxes.get(&text)?;
                let user = owner(&text).to_owned();
                let says = Says::Mailbox(name, version);
                Some((if user.is_empty() { text } else { user }, says))
            }));
        }
        for (subject, says) in owed {
            if self.replica.holds(&says) {
                continue;
            }
            self.counts.owed_right_now += 1;
            self.acks.push(Ack {
                text: asked.to_owned(),
                number,
                subject,
                says,
                state: AckState::Failed,
            });
        }
    }

    /// Reads see writes: an answer includes everything that was acknowledged before.
    fn check_read(&self, asked: Option<&str>, text: &str, mode: Mode) {
        let asked = asked.filter(|asked| asked.starts_with("GET MAILBOXES"));
        let (Some(asked), true) = (asked, text.ends_with("OK success\r\n")) else {
            return;
        };
        // What is left alone is answered with a placeholder.
        if mode != Mode::FanOut || text.contains("syncmux.left-alone") {
            return;
        }
        let Kind::Get(Get::Mailboxes(names)) = parse(&Body::from(asked.to_owned())).kind else {
            return;
        };
        let waits = |ack: &&Ack| matches!(ack.state, AckState::Queued | AckState::OnLane(_));
        for ack in self.acks.iter().filter(waits) {
            let Kind::Apply(Apply::Mailbox(mailbox)) = parse(&Body::from(ack.text.clone())).kind
            else {
                continue;
            };
            let name = String::from_utf8(mailbox.name.to_vec()).unwrap();
            let line = text
                .lines()
                .find(|line| line.contains(&format!("MBOXNAME {name} ")));
            let here = line.and_then(|line| number(line.as_bytes(), " HIGHESTMODSEQ"));
            let version = number(ack.text.as_bytes(), " HIGHESTMODSEQ").unwrap();
            assert!(
                !names.contains(&mailbox.name) || here.unwrap_or(0) >= version,
                "{text} knows nothing of {}",
                ack.text
            );
        }
    }

    pub(super) fn sent(&mut self, lane: LaneId, body: Body) {
        let text = String::from_utf8(body.to_vec().unwrap()).unwrap();
        let Some(process) = self.replica.processes.get_mut(&lane) else {
            return;
        };
        let alone = process.requests.is_empty();
        process.requests.push_back(body);
        self.check_barriers(lane, &text, alone);
        let Some((subject, _)) = write_of(text.as_bytes()) else {
            return;
        };
        // One at a time for each user, on all lanes together.
        let same = |request: &Body| {
            let other = request.to_vec().unwrap();
            write_of(&other).is_some_and(|(other, _)| other == subject)
        };
        let all = self
            .replica
            .processes
            .values()
            .flat_map(|process| &process.requests);
        assert_eq!(
            all.filter(|request| same(request)).count(),
            1,
            "two at once for {subject}"
        );
        // The oldest acknowledged write of this subject that was not sent, or else a write
        // whose client still waits for the replica's own answer.
        let queued = |ack: &&mut Ack| ack.subject == subject && ack.state == AckState::Queued;
        let asked = self.endpoints.iter();
        let mut asked = asked.filter(|one| one.outstanding.as_ref() == Some(&text));
        let orphan = self.orphans.iter().find(|(left, _)| *left == text);
        let real = asked.next().map(|one| one.number);
        let real = real.or(orphan.map(|(_, number)| *number));
        match self.acks.iter_mut().find(queued) {
            Some(oldest) if oldest.text == text => oldest.state = AckState::OnLane(lane),
            // It stood in the queue before that.
            Some(oldest) if real.is_some_and(|number| number <= oldest.number) => {}
            Some(oldest) => {
                panic!("{text} overtook {}", oldest.text);
            }
            None => assert!(
                real.is_some(),
                "sent after a failure, or without being asked: {text}"
            ),
        }
    }

    /// A barrier runs when nothing else does; what moves or removes has a lane to itself and no
    /// other work of its users beside it.
    fn check_barriers(&mut self, lane: LaneId, text: &str, alone: bool) {
        let kind = parse(&Body::from(text.to_owned())).kind;
        let users = match &kind {
            Kind::Get(Get::UniqueIds) => None,
            Kind::Apply(Apply::Rename { .. }) => Some(vec!["u0", "u1"]),
            Kind::Apply(Apply::Unmailbox(name)) => {
                Some(vec![owner(std::str::from_utf8(name).unwrap())])
            }
            _ => return,
        };
        assert!(alone || users.is_none(), "{text} behind others");
        self.counts.barriers += 1;
        for (other, process) in &self.replica.processes {
            for request in &process.requests {
                let bytes = request.to_vec().unwrap();
                let own = matches!(&bytes[..], b"RESTART\r\n" | b"NOOP\r\n");
                let question = [&b"GET MAILBOXES"[..], b"GET USER"];
                let question = question.iter().any(|verb| bytes.starts_with(verb));
                let ahead = users.is_none() && question;
                if own || ahead || (*other == lane && bytes == text.as_bytes()) {
                    continue;
                }
                let subject = write_of(&bytes).map(|(subject, _)| subject);
                let beside = match &users {
                    None => true,
                    Some(users) => subject.is_some_and(|user| users.contains(&&user[..])),
                };
                assert!(!beside, "{text} beside {request:?}");
            }
        }
    }

    /// Nothing acknowledged is lost.
    pub(super) fn check(&mut self) {
        if let Some(core) = &self.core {
            let snapshot = core.snapshot();
            assert!(snapshot.unconfirmed_users <= self.setup.limits.unconfirmed_users);
        }
        let held = |ack: &Ack| ack.state == AckState::Done || self.replica.holds(&ack.says);
        let holds: Vec<bool> = self.acks.iter().map(held).collect();
        if holds.iter().all(|held| *held) {
            self.forget(&holds);
            return;
        }
        {
            let disk = self.disk.state();
            if self.remembered.0 != disk.changes {
                self.remembered = (disk.changes, remembered(&disk));
            }
        }
        // And what would be left if the power went just now.
        let mut left = None;
        if self.loses_power && self.random.u8(0..8) == 0 {
            let mut disk = self.disk.state().clone();
            disk.lose_power(&mut |of| self.random.usize(..of));
            left = Some(remembered(&disk));
        }
        for (ack, _) in self.acks.iter().zip(&holds).filter(|(_, held)| !**held) {
            let names = |line: &Item| match (line.kind, &ack.says) {
                (ItemKind::Mailbox | ItemKind::Append, Says::Mailbox(name, _)) => {
                    *name == line.first
                }
                (ItemKind::Seen, Says::Seen((user, _), _)) => *user == line.first,
                (ItemKind::User, _) => ack.subject.as_bytes() == line.first,
                _ => false,
            };
            let now = Some(&self.remembered.1);
            for (lines, when) in [(now, "now"), (left.as_ref(), "at a power loss")] {
                assert!(
                    lines.is_none_or(|lines| lines.iter().any(names)),
                    "lost {when}: {} ({:?})\n{:?}",
                    ack.text,
                    ack.state,
                    self.disk.state(),
                );
            }
        }
        self.forget(&holds);
    }

    /// What was confirmed, and what failed and is there all the same.
    fn forget(&mut self, holds: &[bool]) {
        let mut holds = holds.iter();
        self.acks.retain(|ack| {
            let held = *holds.next().unwrap();
            ack.state != AckState::Done && !(held && ack.state == AckState::Failed)
        });
    }
}
