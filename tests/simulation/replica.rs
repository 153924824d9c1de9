//! A model of the replica: applies what it is sent, refuses, dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use syncmux::core::LaneId;
use syncmux::protocol::{
    Apply, Body, Command, CommandReader, Get, Guid, Kind, ReaderLimits, Reply, ReplyReader,
};

use super::client::owner;

/// A lane as the replica's process sees it.
#[derive(Default)]
pub(crate) struct Process {
    pub(crate) open: bool,
    pub(crate) capabilities: Vec<Bytes>,
    pub(crate) requests: VecDeque<Body>,
    pub(crate) staged: BTreeSet<Guid>,
}

/// What the replica holds.
#[derive(Default)]
pub(crate) struct Replica {
    pub(crate) mailboxes: BTreeMap<Bytes, u64>,
    /// What else an update said of them.
    pub(crate) tags: BTreeMap<Bytes, u64>,
    pub(crate) seen: BTreeMap<(Bytes, Bytes), u64>,
    pub(crate) messages: BTreeSet<Guid>,
    pub(crate) processes: BTreeMap<LaneId, Process>,
    /// Refuses every write of this user.
    pub(crate) bad: Option<Bytes>,
    /// Can't tell about mailboxes that begin like this.
    pub(crate) unreadable: Option<Bytes>,
    /// Names that somebody else there holds the lock of, and until when: of a user with all that
    /// is his (`user.u1`), or of one mailbox.
    pub(crate) locks: BTreeMap<String, Duration>,
    /// Chances in 1,000: a refusal, death before a command, death after it.
    pub(crate) chances: (u32, u32, u32),
}

const IO_ERROR: &str = "NO System I/O error";

pub(crate) const LOCKED: &[u8] = b"IMAP_MAILBOX_LOCKED";

/// What became of one command.
pub(crate) enum Done {
    Reply(Reply),
    Died,
}

pub(crate) fn parse(body: &Body) -> Command {
    let mut reader = CommandReader::new(ReaderLimits::default());
    reader.set_authenticated(true);
    let mut input = Bytes::from(body.to_vec().unwrap());
    reader.feed(&mut input).unwrap().expect("a whole command")
}

pub(crate) fn reply(text: &str) -> Reply {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let mut input = Bytes::from(text.to_owned());
    let mut untagged = Vec::new();
    loop {
        match reader.feed(&mut input).unwrap().expect("a whole reply") {
            syncmux::protocol::reply_reader::Line::Untagged(line) => untagged.push(line),
            syncmux::protocol::reply_reader::Line::Status(status) => {
                return Reply { untagged, status };
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// The number behind a word in the text of a command.
pub(crate) fn number(text: &[u8], word: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let rest = &text[text.find(&format!("{word} "))? + word.len() + 1..];
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The mailboxes, and the users by their INBOX, whose locks a command takes.
fn wanted(kind: &Kind) -> impl Iterator<Item = String> + '_ {
    let inbox = |user: &Bytes| Bytes::from([b"user.", &user[..]].concat());
    let names = match kind {
        Kind::Get(Get::Mailboxes(names)) => names.clone(),
        Kind::Get(Get::User(user)) | Kind::Apply(Apply::Seen { user, .. }) => vec![inbox(user)],
        Kind::Apply(Apply::Mailbox(mailbox)) => vec![mailbox.name.clone()],
        Kind::Apply(Apply::Unmailbox(name)) => vec![name.clone()],
        Kind::Apply(Apply::Rename { old, new }) => vec![old.clone(), new.clone()],
        _ => Vec::new(),
    };
    let text = |name: Bytes| String::from_utf8(name.to_vec()).unwrap();
    names.into_iter().map(text)
}

impl Replica {
    /// Whether nothing waits to be carried out.
    pub(crate) fn is_idle(&self) -> bool {
        self.processes
            .values()
            .all(|process| process.open && process.requests.is_empty())
    }

    /// Carries out the oldest request of a lane.
    pub(crate) fn step(
        &mut self,
        lane: LaneId,
        now: Duration,
        random: &mut fastrand::Rng,
    ) -> Option<Done> {
        let body = self.processes.get_mut(&lane)?.requests.pop_front()?;
        let command = parse(&body);
        let (no, before, after) = self.chances;
        if random.u32(..1000) < before {
            return Some(Done::Died);
        }
        self.locks.retain(|_, until| now < *until);
        if !self.locks.is_empty() && wanted(&command.kind).any(|name| self.is_locked(&name)) {
            return Some(Done::Reply(reply(
                "NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n",
            )));
        }
        let text = body.to_vec().unwrap();
        let writes = matches!(
            &command.kind,
            Kind::Apply(Apply::Mailbox(_) | Apply::Seen { .. } | Apply::Unmailbox(_))
        );
        if writes && random.u32(..1000) < no {
            let words = ["NO IMAP_SYNC_CHECKSUM Checksum Failure", "NO Unknown error"];
            return Some(Done::Reply(reply(&format!(
                "{}\r\n",
                words[random.usize(..2)]
            ))));
        }
        let done = self.apply(lane, &command, &text, random);
        if random.u32(..1000) < after {
            return Some(Done::Died);
        }
        Some(done)
    }

    fn is_locked(&self, name: &str) -> bool {
        self.locks.contains_key(name) || self.locks.contains_key(&format!("user.{}", owner(name)))
    }

    fn is_unreadable(&self, name: &[u8]) -> bool {
        let bad = self.unreadable.as_ref();
        bad.is_some_and(|bad| name.starts_with(bad))
    }

    fn line(&self, name: &Bytes) -> String {
        let Some(version) = self.mailboxes.get(name) else {
            return String::new();
        };
        let tag = self.tags.get(name).copied().unwrap_or(0);
        let name = std::str::from_utf8(name).unwrap();
        format!(
            "* MAILBOX %(UNIQUEID id.{name} MBOXNAME {name} LAST_UID {version} \
             HIGHESTMODSEQ {version} PARTITION default FOLDERMODSEQ 1 POP3_SHOW_AFTER {tag})\r\n"
        )
    }

    /// Somebody changes a mailbox behind everybody's back: it is what it was before, or gone.
    pub(crate) fn tamper(&mut self, random: &mut fastrand::Rng) -> Option<Bytes> {
        if self.mailboxes.is_empty() {
            return None;
        }
        let at = random.usize(..self.mailboxes.len());
        let (name, version) = self.mailboxes.iter_mut().nth(at).unwrap();
        let name = name.clone();
        *version = random.u64(..*version);
        self.tags.remove(&name);
        if *version == 0 {
            self.mailboxes.remove(&name);
        }
        Some(name)
    }

    fn apply(
        &mut self,
        lane: LaneId,
        command: &Command,
        text: &[u8],
        random: &mut fastrand::Rng,
    ) -> Done {
        let process = self.processes.get_mut(&lane).expect("a process");
        let answer = match &command.kind {
            Kind::Restart => {
                process.staged.clear();
                "OK Restarting\r\n".to_owned()
            }
            Kind::Get(Get::Mailboxes(names)) => {
                let readable = names.iter().take_while(|name| !self.is_unreadable(name));
                let lines: Vec<String> = readable.map(|name| self.line(name)).collect();
                let all = lines.len() == names.len();
                let status = if all { "OK success" } else { IO_ERROR };
                format!("{}{status}\r\n", lines.concat())
            }
            Kind::Get(Get::User(user)) => {
                let prefix = format!("user.{}", std::str::from_utf8(user).unwrap());
                let all = self.mailboxes.keys().filter(|name| {
                    name.starts_with(prefix.as_bytes())
                        && matches!(name.get(prefix.len()), None | Some(b'.'))
                });
                let lines: String = all.map(|name| self.line(name)).collect();
                let bad = self.is_unreadable(prefix.as_bytes());
                let status = if bad { IO_ERROR } else { "OK success" };
                format!("{lines}{status}\r\n")
            }
            Kind::Apply(Apply::Message { files, .. }) => {
                process.staged.extend(files.iter().map(|file| file.guid));
                "OK success\r\n".to_owned()
            }
            Kind::Apply(Apply::Reserve { guids, .. }) => {
                let (here, missing): (Vec<Guid>, Vec<Guid>) = guids
                    .iter()
                    .copied()
                    .partition(|guid| self.messages.contains(guid));
                process.staged.extend(here);
                let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
                format!("* MISSING ({})\r\nOK success\r\n", missing.join(" "))
            }
            Kind::Apply(Apply::Mailbox(mailbox)) => {
                if self
                    .bad
                    .as_ref()
                    .is_some_and(|bad| mailbox.name.starts_with(bad))
                {
                    return Done::Died;
                }
                let lacks =
                    |guid: &Guid| !process.staged.contains(guid) && !self.messages.contains(guid);
                let lacking = mailbox.guids.iter().find(|guid| lacks(guid));
                // protocol.md 6: the process would end, and all that is on the lane with it.
                assert!(
                    lacking.is_none(),
                    "{lacking:?} is not there for {mailbox:?}"
                );
                let since = number(text, "SINCE_MODSEQ").unwrap_or(0);
                let here = self.mailboxes.get(&mailbox.name).copied().unwrap_or(0);
                if since != here {
                    "NO IMAP_SYNC_CHANGED Changed since last sync\r\n".to_owned()
                } else {
                    let version = number(text, " HIGHESTMODSEQ").expect("a version");
                    assert!(
                        version >= here,
                        "{mailbox:?} goes back from {here} to {version}"
                    );
                    self.mailboxes.insert(mailbox.name.clone(), version);
                    let tag = number(text, "POP3_SHOW_AFTER").expect("a tag");
                    self.tags.insert(mailbox.name.clone(), tag);
                    self.messages.extend(&mailbox.guids);
                    "OK success\r\n".to_owned()
                }
            }
            Kind::Apply(Apply::Seen { user, uniqueid }) => {
                let uid = number(text, "LASTUID").expect("a uid");
                self.seen.insert((user.clone(), uniqueid.clone()), uid);
                "OK success\r\n".to_owned()
            }
            // Gone already, or never there.
            Kind::Apply(Apply::Unmailbox(_)) if random.bool() => {
                "NO IMAP_MAILBOX_NONEXISTENT Mailbox does not exist\r\n".to_owned()
            }
            Kind::Apply(Apply::Unmailbox(_) | Apply::Rename { .. }) | Kind::Get(Get::UniqueIds) => {
                "OK success\r\n".to_owned()
            }
            Kind::Noop => "OK Noop completed\r\n".to_owned(),
            other => panic!("the replica was sent {other:?}"),
        };
        Done::Reply(reply(&answer))
    }
}
