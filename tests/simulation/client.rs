//! A model of the stock client: works through `log-run` as `sync_do_reader` does, one command at a
//! time, and reacts to answers as Cyrus's `sync_support.c` does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use syncmux::protocol::synclog::{Item, ItemKind};

use super::disk::SharedDisk;

/// The master's mailboxes, and its disk with the sync directory.
#[derive(Default)]
pub(crate) struct Master {
    /// Highest modseq, which is also the number of messages.
    pub(crate) mailboxes: BTreeMap<String, u64>,
    pub(crate) seen: BTreeMap<(String, String), u64>,
    pub(crate) disk: SharedDisk,
    pub(crate) tag: u64,
    /// Nobody changes anything any more but what is logged.
    pub(crate) rests: bool,
}

/// One side of a connection.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// A session is wanted.
    pub(crate) connect: bool,
    pub(crate) connected: bool,
    /// Capabilities were asked for.
    pub(crate) capable: bool,
    /// A command to be sent.
    pub(crate) command: Option<String>,
    pub(crate) answers: VecDeque<Option<String>>,
    /// The client waits for work, or for its own restart.
    pub(crate) idle: bool,
}

pub(crate) struct Client {
    pub(crate) master: Rc<RefCell<Master>>,
    pub(crate) wire: Rc<RefCell<Wire>>,
    pub(crate) named: bool,
    /// One refusal does not end a run.
    pub(crate) fan_out: bool,
    /// Asks for capabilities.
    pub(crate) capable: bool,
    /// Imapds wait for its locks, so it is told LOCKED where the replica is silent.
    pub(crate) hurried: bool,
}

const CAPABILITIES: &str = "APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n";
const RENAME: &str = "APPLY RENAME %(OLDMBOXNAME user.u0.x NEWMBOXNAME user.u1.x PARTITION default UIDVALIDITY 1)\r\n";

/// How a command ended.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Error {
    Closed,
    Locked,
    Checksum,
    Nonexistent,
    Refused,
    /// The replica's state of this mailbox could not be read again in the middle of its group. Nothing
    /// can be made up then: it ends the run, and the next one leaves the mailbox alone.
    Reread(String),
}

fn guid(name: &str, n: u64) -> String {
    let hash = name
        .bytes()
        .fold(7_u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte));
    format!("{hash:024x}{n:016x}")
}

pub(crate) fn owner(name: &str) -> &str {
    name.strip_prefix("user.")
        .map_or("", |rest| rest.split('.').next().unwrap())
}

impl Client {
    async fn wait(&self, ready: impl Fn(&Wire) -> bool) {
        poll_fn(|_| {
            if ready(&self.wire.borrow()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    async fn pause(&self) {
        self.wire.borrow_mut().idle = true;
        self.wait(|wire| !wire.idle).await;
    }

    async fn ask(&self, command: String) -> Result<String, Error> {
        if !self.wire.borrow().connected && self.wire.borrow().answers.is_empty() {
            return Err(Error::Closed);
        }
        self.wire.borrow_mut().command = Some(command);
        self.wait(|wire| !wire.answers.is_empty()).await;
        let answer = self
            .wire
            .borrow_mut()
            .answers
            .pop_front()
            .unwrap()
            .ok_or(Error::Closed)?;
        let status = answer.lines().last().unwrap().to_owned();
        match status.split(' ').collect::<Vec<_>>()[..] {
            ["OK", ..] => Ok(answer),
            ["NO", "IMAP_MAILBOX_LOCKED", ..] => Err(Error::Locked),
            ["NO", "IMAP_SYNC_CHECKSUM", ..] => Err(Error::Checksum),
            ["NO", "IMAP_MAILBOX_NONEXISTENT", ..] => Err(Error::Nonexistent),
            ["BYE", ..] => Err(Error::Closed),
            _ => Err(Error::Refused),
        }
    }

    /// The rolling client, and whoever starts it again when it ends.
    pub(crate) async fn roll(self) {
        let disk = self.master.borrow().disk.clone();
        let mut reread = None;
        loop {
            self.wire.borrow_mut().connect = true;
            self.wait(|wire| wire.connected).await;
            let mut started = true;
            while self.is_ready().await {
                let run = disk.state().client_run(std::mem::take(&mut started));
                if !self.wire.borrow().connected {
                    break;
                }
                let Some(lines) = run else {
                    self.pause().await;
                    continue;
                };
                match self.work(&lines).await {
                    Ok(()) => reread = None,
                    Err(Error::Refused) if self.fan_out => {
                        panic!("one refusal ended a run: nobody else gets on")
                    }
                    Err(Error::Reread(name)) if self.fan_out => {
                        let before = reread.replace(name.clone());
                        assert_ne!(before, Some(name), "it ended the next run too");
                        break;
                    }
                    Err(_) => break,
                }
                disk.state().cyrus.unlinks = true;
                self.wait(|_| !disk.state().cyrus.unlinks).await;
            }
            {
                let mut wire = self.wire.borrow_mut();
                wire.connected = false;
                wire.capable = false;
                wire.answers.clear();
            }
            self.pause().await;
        }
    }

    /// A line for the next run, by the client itself, which does not look whether that succeeds.
    fn defer(&self, line: &str) {
        let disk = self.master.borrow().disk.clone();
        disk.state().client_defers(line);
    }

    /// Asks for capabilities in a new session.
    async fn is_ready(&self) -> bool {
        if !self.capable || std::mem::replace(&mut self.wire.borrow_mut().capable, true) {
            return true;
        }
        self.ask(CAPABILITIES.into()).await.is_ok()
    }

    /// One-shot runs with `-u`, one after the other.
    pub(crate) async fn visit(self) {
        loop {
            self.pause().await;
            self.wire.borrow_mut().connect = true;
            self.wait(|wire| wire.connected).await;
            if self.capable {
                let _ = self.ask(CAPABILITIES.into()).await;
            }
            let _ = self.ask(RENAME.into()).await;
            let _ = self.ask("GET UNIQUEIDS (x)\r\n".into()).await;
            let users: BTreeSet<String> = self
                .master
                .borrow()
                .mailboxes
                .keys()
                .map(|name| owner(name).to_owned())
                .collect();
            for user in users.iter().filter(|user| !user.is_empty()).step_by(2) {
                if self.user(user).await.is_err() {
                    break;
                }
            }
            if self.wire.borrow().connected {
                let _ = self.ask("EXIT\r\n".into()).await;
            }
            let mut wire = self.wire.borrow_mut();
            wire.connected = false;
            wire.answers.clear();
        }
    }

    /// An imapd, one change after the other: what it changes is not logged but sent at once
    /// (`sync_checkpoint`). However that ends, its user is told OK and nothing is remembered; only
    /// after LOCKED the rest of the commit goes on. (It also writes what is LOCKED into `log` by
    /// itself, and does not look whether that worked: it is left out here.)
    pub(crate) async fn commit(self) {
        loop {
            self.pause().await;
            if self.master.borrow().rests {
                continue;
            }
            if !self.wire.borrow().connected {
                self.wire.borrow_mut().answers.clear();
                self.wire.borrow_mut().connect = true;
                self.wait(|wire| wire.connected).await;
                if self.capable {
                    let _ = self.ask(CAPABILITIES.into()).await;
                }
            }
            let tag = self.tag();
            let mut names: BTreeSet<String> = BTreeSet::new();
            {
                let mut master = self.master.borrow_mut();
                let user = format!("user.u{}", tag % 5);
                let all = [user.clone(), format!("{user}.sub"), "shared.a".to_owned()];
                let some = match tag % 4 {
                    0 => &all[2..],
                    1 => &all[..2],
                    _ => &all[..1],
                };
                for name in some {
                    *master.mailboxes.entry(name.clone()).or_default() += 1;
                    names.insert(name.clone());
                }
                let pair = (format!("u{}", tag % 5), "id.shared.a".to_owned());
                *master.seen.entry(pair).or_default() += 1;
            }
            let user = format!("u{}", tag % 5);
            let mut whole = false;
            match self.mailboxes(&names).await {
                Ok(()) | Err(Error::Locked) => {}
                Err(Error::Closed) => continue,
                Err(_) if names.contains("shared.a") => continue,
                Err(_) => whole = true,
            }
            let _ = self.ask("RESTART\r\n".into()).await;
            let _ = self.seen(&user, "id.shared.a").await;
            if whole {
                let _ = self.user(&user).await;
                let _ = self.ask("RESTART\r\n".into()).await;
            }
        }
    }

    async fn work(&self, lines: &[Item]) -> Result<(), Error> {
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut users = BTreeSet::new();
        let mut seens = BTreeSet::new();
        let mut unmailboxes = BTreeSet::new();
        for line in lines {
            let text = |name: &[u8]| {
                // What a torn line says is nobody's name.
                let text = std::str::from_utf8(name).unwrap_or_default();
                let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
                (if plain { text } else { "" }).to_owned()
            };
            let first = text(&line.first);
            let second = line.second.as_ref().map(|name| text(name));
            let master = self.master.borrow();
            match (line.kind, second) {
                (ItemKind::Mailbox | ItemKind::Append, _)
                    if master.mailboxes.contains_key(&first) =>
                {
                    let owner = owner(&first).to_owned();
                    groups.entry(owner).or_default().insert(first);
                }
                (ItemKind::Unmailbox, _) if first.ends_with(".gone") => {
                    unmailboxes.insert(first);
                }
                (ItemKind::User, _) if first.len() == 2 => drop(users.insert(first)),
                (ItemKind::Seen, Some(id)) => {
                    let pair = (first, id);
                    if master.seen.contains_key(&pair) {
                        seens.insert(pair);
                    }
                }
                _ => {}
            }
        }
        let mut last = Ok(());
        for (user, names) in groups {
            last = Ok(());
            match self.mailboxes(&names).await {
                Ok(()) => {}
                Err(Error::Closed) => return Err(Error::Closed),
                Err(Error::Locked) if self.named => {
                    for name in &names {
                        self.defer(&format!("MAILBOX {name}"));
                    }
                }
                Err(_) if !user.is_empty() => drop(users.insert(user)),
                Err(error) => last = Err(error),
            }
            if last.is_ok() {
                self.ask("RESTART\r\n".into()).await?;
            }
        }
        last?;
        for (user, id) in seens {
            match self.seen(&user, &id).await {
                Err(Error::Locked) if self.hurried => {
                    self.defer(&format!("SEEN {user} {id}"));
                }
                Err(Error::Locked) if self.named => panic!("LOCKED to SEEN sticks"),
                Err(Error::Closed) => return Err(Error::Closed),
                Err(_) => drop(users.insert(user)),
                Ok(()) => {}
            }
        }
        for name in unmailboxes {
            match self.ask(format!("APPLY UNMAILBOX {name}\r\n")).await {
                Ok(_) | Err(Error::Nonexistent) => {}
                Err(Error::Locked) if self.hurried => self.defer(&format!("UNMAILBOX {name}")),
                Err(Error::Locked) => panic!("LOCKED to UNMAILBOX sticks"),
                Err(error) => return Err(error),
            }
        }
        for user in users {
            match self.user(&user).await {
                Err(Error::Locked) if self.named => {
                    self.defer(&format!("USER {user}"));
                }
                other => other?,
            }
            self.ask("RESTART\r\n".into()).await?;
        }
        Ok(())
    }

    async fn user(&self, user: &str) -> Result<(), Error> {
        let answer = self.ask(format!("GET USER {user}\r\n")).await?;
        let names: Vec<String> = {
            let master = self.master.borrow();
            master
                .mailboxes
                .keys()
                .filter(|name| owner(name) == user)
                .cloned()
                .collect()
        };
        let there = self.reserve(names.iter(), &answer).await?;
        for name in names {
            self.update(&name, &answer, &there, 0).await?;
        }
        let seens: Vec<_> = {
            let master = self.master.borrow();
            master
                .seen
                .keys()
                .filter(|(reader, _)| reader == user)
                .cloned()
                .collect()
        };
        for (user, id) in seens {
            self.seen(&user, &id).await?;
        }
        Ok(())
    }

    async fn seen(&self, user: &str, id: &str) -> Result<(), Error> {
        let uid = self.master.borrow().seen[&(user.to_owned(), id.to_owned())];
        let tag = self.tag();
        let text = format!(
            "APPLY SEEN %(USERID {user} UNIQUEID {id} LASTREAD 1 LASTUID {uid} LASTCHANGE {tag} SEENUIDS 1:{uid})\r\n"
        );
        self.ask(text).await.map(drop)
    }

    async fn mailboxes(&self, names: &BTreeSet<String>) -> Result<(), Error> {
        let list = names.iter().cloned().collect::<Vec<_>>().join(" ");
        let answer = self.ask(format!("GET MAILBOXES ({list})\r\n")).await?;
        let there = self.reserve(names.iter(), &answer).await?;
        for name in names {
            self.update(name, &answer, &there, 0).await?;
        }
        Ok(())
    }

    /// As `sync_reserve_partition` does: asks for the mailboxes that the answer names, and where
    /// it names none everything is uploaded. Returns what need not be uploaded.
    async fn reserve(
        &self,
        names: impl Iterator<Item = &String>,
        answer: &str,
    ) -> Result<Vec<String>, Error> {
        let mut guids = Vec::new();
        for name in names {
            let (from, to) = (remote(answer, name).unwrap_or(0), self.version(name));
            guids.extend((from + 1..=to).map(|n| guid(name, n)));
        }
        let there: Vec<&str> = answer.lines().filter_map(mailbox_of).collect();
        if there.is_empty() || guids.is_empty() {
            return Ok(Vec::new());
        }
        let (list, all) = (there.join(" "), guids.join(" "));
        let text = format!("APPLY RESERVE %(PARTITION default MBOXNAME ({list}) GUID ({all}))\r\n");
        let answer = self.ask(text).await?;
        guids.retain(|guid| !answer.contains(guid));
        Ok(guids)
    }

    /// Makes every write another text, to tell them apart.
    fn tag(&self) -> u64 {
        let mut master = self.master.borrow_mut();
        master.tag += 1;
        master.tag
    }

    fn version(&self, name: &str) -> u64 {
        self.master.borrow().mailboxes[name]
    }

    async fn update(
        &self,
        name: &str,
        answer: &str,
        there: &[String],
        uploaded: u64,
    ) -> Result<(), Error> {
        let (from, to) = (remote(answer, name).unwrap_or(0), self.version(name));
        if from == to {
            return Ok(());
        }
        let files: Vec<String> = (from.max(uploaded) + 1..=to)
            .map(|n| guid(name, n))
            .filter(|guid| !there.contains(guid))
            .map(|guid| format!("%{{default {guid} 4}}\r\nbody"))
            .collect();
        if !files.is_empty() {
            self.ask(format!("APPLY MESSAGE ({})\r\n", files.join(" ")))
                .await?;
        }
        let records: Vec<String> = (from + 1..=to)
            .map(|n| format!("%(UID {n} MODSEQ {n} FLAGS () GUID {})", guid(name, n)))
            .collect();
        let tag = self.tag();
        let text = format!(
            "APPLY MAILBOX %(UNIQUEID id.{name} MBOXNAME {name} LAST_UID {to} HIGHESTMODSEQ {to} PARTITION default FOLDERMODSEQ 1 SINCE_MODSEQ {from} POP3_SHOW_AFTER {tag} RECORD ({}))\r\n",
            records.join(" ")
        );
        match self.ask(text).await {
            Err(Error::Checksum) if uploaded == 0 => {
                // Once more with the replica's state read again and no new upload; the second
                // failure is the caller's.
                let answer = self.ask(format!("GET MAILBOXES ({name})\r\n")).await;
                let answer = answer.map_err(|error| match error {
                    Error::Refused => Error::Reread(name.to_owned()),
                    other => other,
                })?;
                Box::pin(self.update(name, &answer, there, to)).await
            }
            other => other.map(drop),
        }
    }
}

fn mailbox_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("MBOXNAME ")?;
    rest.split(' ').next()
}

/// The replica's version of a mailbox, from an answer.
fn remote(answer: &str, name: &str) -> Option<u64> {
    let line = answer
        .lines()
        .find(|line| line.contains(&format!("MBOXNAME {name} ")))?;
    super::replica::number(line.as_bytes(), " HIGHESTMODSEQ")
}
