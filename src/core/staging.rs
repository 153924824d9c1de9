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
    nil: bool,
    bytes: u64,
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
    pub(super) fn reserve(&mut self, partition: &Bytes, mailboxes: Vec<Bytes>, guids: &[Guid]) {
        let index = self.reserves.len();
        self.reserves.push(mailboxes.into());
        for guid in guids {
            self.reserved.insert((partition.clone(), *guid), index);
        }
    }

    /// Takes messages in; returns by how many bytes the staging grew.
    pub(super) fn add(&mut self, files: Vec<File>, nil: usize) -> u64 {
        self.nil |= nil > 0;
        let before = self.bytes;
        for file in files {
            self.bytes += file.content.len();
            let old = self
                .files
                .insert((file.partition.clone(), file.guid), Arc::new(file));
            self.bytes -= old.map_or(0, |old| old.content.len());
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
            // After a NIL nothing is certain: a message that nobody has would kill the replica's
            // process (protocol.md 6), so whatever is not here is asked for.
            if (file.is_some() || reserve.is_some() || self.nil) && seen.insert(*guid) {
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

    /// Forgets everything; returns how many bytes that freed.
    pub(super) fn clear(&mut self) -> u64 {
        let bytes = self.bytes;
        *self = Staging::default();
        bytes
    }
}
