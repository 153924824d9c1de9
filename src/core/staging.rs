//! Messages received with APPLY MESSAGE, kept by GUID for the session.
//!
//! Freed by that session's RESTART, EXIT or GET USER, not by use: after a checksum failure the
//! client repeats MAILBOX without uploading again, and one upload can serve several mailboxes
//! (protocol.md 3). Queued units keep the messages that they need.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::protocol::command::Mailbox;
use crate::protocol::{File, Guid, Site, UserKey};

/// What one session has staged since its last RESTART.
#[derive(Debug, Default)]
pub(super) struct Staging {
    files: HashMap<(Bytes, Guid), Arc<File>>,
    reserved: HashMap<(Bytes, Guid), usize>,
    reserves: Vec<Reserved>,
    /// Something came as NIL, or reservations were forgotten.
    uncertain: bool,
    bytes: u64,
    /// Names of mailboxes and partitions beside what each entry costs.
    names: u64,
}

/// What an entry costs in memory beside names and content: its place in a map, its key, and for a
/// message the body and its pieces.
const ENTRY: u64 = 256;

/// So many mailboxes in one RESERVE are a copy or a move between them, most likely. More are a client
/// that asks for many users at once (Cyrus before 3.4: up to 1,001 mailboxes), or for all shared
/// mailboxes: there each unit asks with what is its own. Asked with the whole list, each of N units
/// would make the replica look through N mailboxes.
const TOGETHER: usize = 8;
/// Mailboxes of one user, or shared ones, in a longer list that are asked together.
const OF_ONE_KEY: usize = 32;

/// The mailboxes that one RESERVE of the client named.
#[derive(Debug)]
struct Reserved {
    all: Arc<[Bytes]>,
    /// Of a long list, what belongs to each user key.
    by_key: HashMap<UserKey, Arc<[Bytes]>>,
}

impl Reserved {
    fn new(mailboxes: Vec<Bytes>, site: &Site) -> Self {
        let mut by_key: HashMap<UserKey, Vec<Bytes>> = HashMap::new();
        if mailboxes.len() > TOGETHER {
            for name in &mailboxes {
                let key = site.key_of_mailbox(name);
                by_key.entry(key).or_default().push(name.clone());
            }
        }
        let by_key = by_key
            .into_iter()
            .map(|(key, names)| (key, names.into()))
            .collect();
        Self {
            all: mailboxes.into(),
            by_key,
        }
    }

    /// What to ask with for an update of `mailbox`, whose message is here.
    fn about(&self, mailbox: &Bytes, key: &UserKey) -> Arc<[Bytes]> {
        if self.all.len() <= TOGETHER {
            return self.all.clone();
        }
        match self.by_key.get(key) {
            Some(names) if names.len() <= OF_ONE_KEY => names.clone(),
            _ => Arc::from([mailbox.clone()]),
        }
    }
}

/// One message that a unit needs on the lane before its APPLY MAILBOX.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) guid: Guid,
    /// `None`: it was reserved and never came (NIL, or not needed for another reason), so only
    /// the replica itself can have it.
    pub(super) file: Option<Arc<File>>,
    /// Mailboxes of the replica where the client expects it: what to ask with.
    pub(super) mailboxes: Option<Arc<[Bytes]>>,
}

impl Staging {
    /// Notes what the client reserved.
    pub(super) fn reserve(
        &mut self,
        partition: &Bytes,
        mailboxes: Vec<Bytes>,
        guids: &[Guid],
        site: &Site,
    ) {
        let index = self.reserves.len();
        let names = mailboxes.iter().map(|name| name.len() as u64 + ENTRY);
        // A long list is there twice.
        let times = if mailboxes.len() > TOGETHER { 2 } else { 1 };
        self.names += times * names.sum::<u64>() + partition.len() as u64;
        self.reserves.push(Reserved::new(mailboxes, site));
        for guid in guids {
            self.reserved.insert((partition.clone(), *guid), index);
        }
    }

    /// Takes messages in; returns by how many bytes the staging grew.
    pub(super) fn add(&mut self, files: Vec<File>, nil: usize) -> u64 {
        self.uncertain |= nil > 0;
        let before = self.bytes;
        for file in files {
            self.bytes += file.content.len();
            self.names += file.partition.len() as u64;
            let old = self
                .files
                .insert((file.partition.clone(), file.guid), Arc::new(file));
            if let Some(old) = old {
                self.bytes -= old.content.len();
                self.names -= old.partition.len() as u64;
            }
        }
        self.bytes - before.min(self.bytes)
    }

    /// What an update of this mailbox needs on its lane.
    pub(super) fn needs(&self, mailbox: &Mailbox, site: &Site) -> Vec<Need> {
        let mut needs = Vec::new();
        let key = site.key_of_mailbox(&mailbox.name);
        // One list for all of its messages: they are asked for by one command.
        let mut lists: HashMap<usize, Arc<[Bytes]>> = HashMap::new();
        let mut seen = hashbrown::HashSet::new();
        for guid in &mailbox.guids {
            let name = (mailbox.partition.clone(), *guid);
            let file = self.files.get(&name).cloned();
            let reserve = self.reserved.get(&name);
            // A message that nobody has would kill the replica's process (protocol.md 6): what
            // may be one and is not here is asked for.
            if (file.is_some() || reserve.is_some() || self.uncertain) && seen.insert(*guid) {
                let mailboxes = reserve.and_then(|index| {
                    let reserved = self.reserves.get(*index)?;
                    if file.is_none() {
                        // Only the replica has it, and where is not known.
                        return Some(reserved.all.clone());
                    }
                    let list = lists.entry(*index);
                    let list = list.or_insert_with(|| reserved.about(&mailbox.name, &key));
                    Some(list.clone())
                });
                needs.push(Need {
                    guid: *guid,
                    file,
                    mailboxes,
                });
            }
        }
        needs
    }

    /// Bytes of messages.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What its entries cost in memory beside the content of messages, about.
    pub(super) fn noted(&self) -> u64 {
        let entries = self.files.len() + self.reserved.len() + self.reserves.len();
        entries as u64 * ENTRY + self.names
    }

    /// Forgets what was reserved: from now on whatever is not staged is asked for, as after a NIL.
    pub(super) fn forget_reserved(&mut self) {
        self.uncertain |= !self.reserved.is_empty();
        self.reserved = HashMap::new();
        self.reserves = Vec::new();
        let partitions = self.files.keys().map(|(name, _)| name.len() as u64);
        self.names = partitions.sum();
    }

    /// Forgets everything; returns how many bytes that freed.
    pub(super) fn clear(&mut self) -> u64 {
        let bytes = self.bytes;
        *self = Staging::default();
        bytes
    }
}
