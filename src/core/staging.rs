//! Messages received with APPLY MESSAGE, kept by GUID for the session.
//!
//! Freed by that session's RESTART, EXIT or GET USER, not by use: after a checksum failure the
//! client repeats MAILBOX without uploading again, and one upload can serve several mailboxes
//! (protocol.md 3). Queued units keep the messages that they need.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::protocol::command::Mailbox;
use crate::protocol::{File, Guid};

/// What one session has staged since its last RESTART.
#[derive(Debug, Default)]
pub(super) struct Staging {
    files: HashMap<(Bytes, Guid), Arc<File>>,
    reserved: HashMap<(Bytes, Guid), usize>,
    reserves: Vec<Arc<[Bytes]>>,
    /// Something came as NIL, or reservations were forgotten.
    uncertain: bool,
    bytes: u64,
    /// Names of mailboxes and partitions beside what each entry costs.
    names: u64,
}

/// What an entry costs in memory beside names and content: its place in a map, its key, and for a
/// message the body and its pieces.
const ENTRY: u64 = 256;

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
    pub(super) fn reserve(&mut self, partition: &Bytes, mailboxes: Vec<Bytes>, guids: &[Guid]) {
        let index = self.reserves.len();
        let names = mailboxes.iter().map(|name| name.len() as u64 + ENTRY);
        self.names += names.sum::<u64>() + partition.len() as u64;
        self.reserves.push(mailboxes.into());
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
    pub(super) fn needs(&self, mailbox: &Mailbox) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut seen = hashbrown::HashSet::new();
        for guid in &mailbox.guids {
            let name = (mailbox.partition.clone(), *guid);
            let file = self.files.get(&name).cloned();
            let reserve = self.reserved.get(&name);
            // A message that nobody has would kill the replica's process (protocol.md 6): what
            // may be one and is not here is asked for.
            if (file.is_some() || reserve.is_some() || self.uncertain) && seen.insert(*guid) {
                let mailboxes = reserve.and_then(|index| self.reserves.get(*index)).cloned();
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
