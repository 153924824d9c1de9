//! `syncmux shard`: which line of the channel's log goes to which shard, and when.
//!
//! A shard is a channel of its own, with a `log` and a stock client. No disk and no clock here: lines
//! come in in the order in which Cyrus logged them ([`Dealer::take`]), what the shards still have to
//! do is told by looks at their files ([`Dealer::looked`]), and what comes out are lines to append
//! ([`Dealer::outgoing`]) and lines to keep ([`Dealer::held`]).
//!
//! The rules, for every user key (shared mailboxes, and lines without an owner, are one key):
//!
//! 1. Its lines keep their order.
//! 2. It has unfinished lines in one shard at most; while it has, its next lines go there.
//! 3. Otherwise the way of dealing says where ([`Way`]).
//! 4. A line over two keys goes only where neither has unfinished lines in another shard. Until then it
//!    is held. Once it has gone it is an unfinished line of both, which binds both to that shard.
//!    What a Cyrus before 3.4 may have logged as the two halves of a rename is one such line here.
//! 5. What comes behind a held line of the same key is held behind it. Other keys go on.
//! 6. Nothing is dealt to a folder that is no shard any more (N was made smaller): whoever has unfinished
//!    lines there is held until these are finished, or taken back and dealt again.

mod pairs;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};

pub use pairs::join_renames;

use crate::protocol::UserKey;

/// A file of a shard's folder: device and inode.
pub type FileId = (u64, u64);

/// Whom a line concerns: one, or two.
pub type Keys = (UserKey, Option<UserKey>);

/// One line of the channel's log, or several that must stay together ([`join_renames`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// As Cyrus wrote it, without its last line feed.
    pub text: Bytes,
    /// Whom it concerns.
    pub first: UserKey,
    /// And whom else; each once.
    pub more: Vec<UserKey>,
}

/// How the shard of a user without unfinished lines is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By [`fixed_shard`].
    Fixed,
    /// The shard with the fewest unfinished users; of these the one with the fewest unfinished lines;
    /// of these the first.
    Balanced,
}

/// What was seen in a shard's folder.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Lines that were read for the first time: the file, and whom each line concerns.
    pub named: Vec<(FileId, Vec<Keys>)>,
    /// The files that are there.
    pub there: Vec<FileId>,
    /// All unfinished lines stood in these files at one moment of the look. If false there may be
    /// more, and a file that is not among `there` may not be gone.
    pub exact: bool,
}

/// How a shard stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShardSnapshot {
    /// User keys with unfinished lines.
    pub users: usize,
    /// Unfinished lines.
    pub lines: u64,
    /// Lines dealt to it since the start.
    pub dealt: u64,
}

/// Deals lines out to shards.
#[derive(Debug)]
pub struct Dealer {
    /// Lines go to folders below this number.
    shards: usize,
    way: Way,
    /// See [`Dealer::is_full`].
    limit: usize,
    folders: Vec<Folder>,
    held: VecDeque<Held>,
    /// Lines of these.
    held_lines: u64,
    /// How many held lines concern a key.
    held_keys: HashMap<UserKey, usize>,
    /// Goes up whenever the held lines change.
    held_version: u64,
    /// Somebody whose lines are held has become free since these were last tried.
    freed: bool,
}

#[derive(Debug)]
struct Held {
    line: LogLine,
    /// Taken back from a folder that is no shard any more.
    is_old: bool,
}

/// One folder: a shard, or what was one.
#[derive(Debug, Default)]
struct Folder {
    /// By user, in how many of the places below it is named.
    users: HashMap<UserKey, u32>,
    files: HashMap<FileId, Named>,
    /// Dealt, and not yet read by a look.
    dealt: Named,
    /// Of these, the lines that are not written yet.
    outgoing: Vec<Bytes>,
    /// Since the start.
    count: u64,
    /// There was an exact look.
    known: bool,
}

#[derive(Debug, Default)]
struct Named {
    users: HashSet<UserKey>,
    lines: u64,
}

impl LogLine {
    fn keys(&self) -> impl Iterator<Item = &UserKey> {
        std::iter::once(&self.first).chain(&self.more)
    }

    fn lines(&self) -> u64 {
        1 + self.text.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

impl Dealer {
    /// Deals to `shards` shards (at least one). Beyond `limit` held lines it [is full](Self::is_full).
    #[must_use]
    pub fn new(shards: usize, way: Way, limit: usize) -> Self {
        let shards = shards.max(1);
        let mut folders = Vec::new();
        folders.resize_with(shards, Folder::default);
        Dealer {
            shards,
            way,
            limit,
            folders,
            held: VecDeque::new(),
            held_lines: 0,
            held_keys: HashMap::new(),
            held_version: 0,
            freed: false,
        }
    }

    /// Another folder is there, which nothing is dealt to: see rule 6. It gets the next number.
    pub fn add_retired(&mut self) -> usize {
        self.folders.push(Folder::default());
        self.folders.len() - 1
    }

    /// Whether every folder has been looked at, so that lines may be dealt: who has unfinished lines
    /// and where is not known before.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        self.folders.iter().all(|folder| folder.known)
    }

    /// Whether so many lines are held that no new run should be taken over: Cyrus's own log is the
    /// better place for more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.held_lines() >= self.limit
    }

    /// How many lines are held.
    #[must_use]
    pub fn held_lines(&self) -> usize {
        usize::try_from(self.held_lines).unwrap_or(usize::MAX)
    }

    /// The next line of the log.
    pub fn take(&mut self, line: LogLine) {
        let waits = line.keys().any(|key| self.held_keys.contains_key(key));
        match self.place(&line) {
            Some(shard) if !waits => self.deal(shard, &line),
            _ => self.hold(line, false),
        }
    }

    /// Lines are taken back from a folder, to be dealt again: they are held, before all that was held
    /// until now. That came after them, since whoever has unfinished lines in a folder that is no shard
    /// is held. They are bound to that folder until [`taken_back`](Self::taken_back).
    pub fn take_back(&mut self, lines: Vec<LogLine>) {
        // Behind those that were taken back before.
        let newer = self.held.iter().position(|held| !held.is_old);
        let newer = self.held.split_off(newer.unwrap_or(self.held.len()));
        for line in lines {
            self.hold(line, true);
        }
        self.held.extend(newer);
    }

    /// A file whose lines were taken back is gone. Only now may these go to a shard: in the meantime
    /// they stood in two places, of which only one has a client.
    pub fn taken_back(&mut self, folder: usize, file: FileId) {
        if let Some(folder) = self.folders.get_mut(folder) {
            self.freed |= folder.drop_file(file, &self.held_keys);
        }
        self.release();
    }

    /// What was seen in a folder. Held lines that may go now go.
    pub fn looked(&mut self, folder: usize, look: Look) {
        let Some(folder) = self.folders.get_mut(folder) else {
            return;
        };
        for (file, lines) in look.named {
            folder.name(file, lines);
        }
        if look.exact {
            folder.known = true;
            let gone: Vec<FileId> = folder.files.keys().copied().collect();
            for file in gone.iter().filter(|file| !look.there.contains(file)) {
                self.freed |= folder.drop_file(*file, &self.held_keys);
            }
            // What was written before the look stands in a file that it read, or is done with.
            if folder.outgoing.is_empty() {
                let dealt = std::mem::take(&mut folder.dealt);
                self.freed |= folder.drop_all(&dealt, &self.held_keys);
            }
        }
        self.release();
    }

    /// Tries held lines again, where somebody has become free.
    fn release(&mut self) {
        if !std::mem::take(&mut self.freed) || self.held.is_empty() {
            return;
        }
        let mut waiting: HashSet<UserKey> = HashSet::new();
        let held = std::mem::take(&mut self.held);
        let before = held.len();
        for Held { line, is_old } in held {
            let waits = line.keys().any(|key| waiting.contains(key));
            match self.place(&line) {
                Some(shard) if !waits => {
                    for key in line.keys() {
                        if let Some(count) = self.held_keys.get_mut(key) {
                            *count -= 1;
                        }
                    }
                    self.held_lines -= line.lines();
                    self.deal(shard, &line);
                }
                _ => {
                    waiting.extend(line.keys().cloned());
                    self.held.push_back(Held { line, is_old });
                }
            }
        }
        if self.held.len() < before {
            self.held_keys.retain(|_, count| *count > 0);
            self.held_version += 1;
        }
    }

    /// The lines to be appended to a shard's log. They stay until [`written`](Self::written) is told.
    #[must_use]
    pub fn outgoing(&self, shard: usize) -> &[Bytes] {
        let folder = self.folders.get(shard);
        folder.map_or(&[], |folder| folder.outgoing.as_slice())
    }

    /// They stand, fsynced, in the shard's log.
    pub fn written(&mut self, shard: usize) {
        if let Some(folder) = self.folders.get_mut(shard) {
            folder.outgoing.clear();
        }
    }

    /// The held lines, in order.
    pub fn held(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.held.iter().map(|held| &held.line.text)
    }

    /// Another number whenever the held lines have changed.
    #[must_use]
    pub fn held_version(&self) -> u64 {
        self.held_version
    }

    /// Whether anything is held, or unfinished anywhere.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.folders.iter().all(|folder| folder.users.is_empty())
    }

    /// Whether somebody has unfinished lines in this folder, as far as is known.
    #[must_use]
    pub fn is_at_work(&self, folder: usize) -> bool {
        let folder = self.folders.get(folder);
        folder.is_some_and(|folder| !folder.users.is_empty())
    }

    /// How each folder stands, in order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ShardSnapshot> {
        let one = |folder: &Folder| ShardSnapshot {
            users: folder.users.len(),
            lines: folder.lines(),
            dealt: folder.count,
        };
        self.folders.iter().map(one).collect()
    }

    fn hold(&mut self, line: LogLine, is_old: bool) {
        for key in line.keys() {
            *self.held_keys.entry(key.clone()).or_default() += 1;
        }
        self.held_lines += line.lines();
        self.held.push_back(Held { line, is_old });
        self.held_version += 1;
    }

    /// Where a line may go now, but for lines that are held before it.
    fn place(&self, line: &LogLine) -> Option<usize> {
        let has = |folder: &Folder| line.keys().any(|key| folder.users.contains_key(key));
        let mut bound = (0..self.folders.len()).filter(|at| has(&self.folders[*at]));
        match (bound.next(), bound.next()) {
            (Some(shard), None) => (shard < self.shards).then_some(shard),
            (Some(_), Some(_)) => None,
            (None, _) => Some(self.choose(&line.first)),
        }
    }

    fn choose(&self, key: &UserKey) -> usize {
        match self.way {
            Way::Fixed => fixed_shard(key, self.shards),
            Way::Balanced => {
                let shards = self.folders.iter().take(self.shards).enumerate();
                let emptiest =
                    shards.min_by_key(|(at, folder)| (folder.users.len(), folder.lines(), *at));
                emptiest.map_or(0, |(at, _)| at)
            }
        }
    }

    fn deal(&mut self, shard: usize, line: &LogLine) {
        let folder = &mut self.folders[shard];
        for key in line.keys() {
            if folder.dealt.users.insert(key.clone()) {
                *folder.users.entry(key.clone()).or_default() += 1;
            }
        }
        folder.dealt.lines += line.lines();
        folder.count += line.lines();
        folder.outgoing.push(line.text.clone());
    }
}

impl Folder {
    fn lines(&self) -> u64 {
        let files = self.files.values().map(|file| file.lines);
        files.sum::<u64>() + self.dealt.lines
    }

    fn name(&mut self, file: FileId, lines: Vec<Keys>) {
        let named = self.files.entry(file).or_default();
        named.lines += lines.len() as u64;
        for key in lines
            .into_iter()
            .flat_map(|(one, two)| std::iter::once(one).chain(two))
        {
            if named.users.insert(key.clone()) {
                *self.users.entry(key).or_default() += 1;
            }
        }
    }

    fn drop_file(&mut self, file: FileId, held: &HashMap<UserKey, usize>) -> bool {
        let named = self.files.remove(&file);
        named.is_some_and(|named| self.drop_all(&named, held))
    }

    /// Says whether somebody whose lines are held has nothing unfinished here any more: nobody else
    /// can make one of them go.
    fn drop_all(&mut self, named: &Named, held: &HashMap<UserKey, usize>) -> bool {
        let mut freed = false;
        for key in &named.users {
            if let Some(count) = self.users.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.users.remove(key);
                    freed |= held.contains_key(key);
                }
            }
        }
        freed
    }
}

/// The shard of a user by a hash that is the same on every machine and in every version: FNV-1a of 64
/// bits over the bytes of the user key (the userid in its internal form, without the default domain;
/// no bytes for shared mailboxes), modulo the number of shards.
#[must_use]
pub fn fixed_shard(key: &UserKey, shards: usize) -> usize {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    let hash = key.as_bytes().iter().fold(OFFSET, step);
    (hash % shards.max(1) as u64) as usize
}
