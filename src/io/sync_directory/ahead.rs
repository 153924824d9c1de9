//! Looking into `log` while the client has not taken it yet: which mailboxes come next. Nothing
//! depends on it, so no lock is taken: what is half written is read with the next look.

use std::io::{ErrorKind, Read};

use bytes::Bytes;
use hashbrown::HashSet;

use super::SyncDirectory;
use super::disk::{Mode, Reader};
use crate::protocol::synclog::LineReader;

/// So much is read at one look: a `log` of a million lines keeps nobody else waiting.
const AT_ONCE: u64 = 256 << 10;

/// How far `log` has been read.
#[derive(Debug, Default)]
pub struct LookedAt {
    /// Which file.
    id: (u64, u64),
    at: u64,
    reader: LineReader,
}

impl SyncDirectory {
    /// The mailboxes that lines name which came into `log` since the last look, each once. The
    /// first look, and the first at a new `log`, is from its beginning.
    pub fn look_ahead(&self, looked: &mut LookedAt) -> Vec<Bytes> {
        let mut names = HashSet::new();
        // Closing the file gives back our own lock of it, if there were one: see `Work`.
        let _work = self.work();
        let is_news = |stat: &super::disk::Stat, looked: &LookedAt| {
            stat.plain && (stat.id, stat.len) != (looked.id, looked.at)
        };
        if !self
            .disk
            .stat("log")
            .is_ok_and(|stat| is_news(&stat, looked))
        {
            return Vec::new();
        }
        let Ok(file) = self.disk.open("log", Mode::Read) else {
            return Vec::new();
        };
        let Ok(stat) = file.stat() else {
            return Vec::new();
        };
        if stat.id != looked.id || stat.len < looked.at {
            *looked = LookedAt {
                id: stat.id,
                ..LookedAt::default()
            };
        }
        let mut input = Reader::from(&*file, looked.at).take(AT_ONCE);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match input.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(len) if len > 0 => len,
                _ => break,
            };
            looked.at += len as u64;
            let mut piece = Bytes::copy_from_slice(&buffer[..len]);
            // From a torn line on the client reads nothing either.
            while let Ok(Some(item)) = looked.reader.feed(&mut piece) {
                names.extend(item.mailboxes().cloned());
            }
        }
        names.into_iter().collect()
    }
}
