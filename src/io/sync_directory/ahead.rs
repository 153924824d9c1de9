//! Looking into `log` while the client has not taken it yet, and into a `log-run` that is not
//! linked: which mailboxes come next. Nothing depends on it, so no lock is taken: what is half
//! written is read with the next look.

use std::io::{ErrorKind, Read};

use bytes::Bytes;
use hashbrown::HashSet;

use super::SyncDirectory;
use super::disk::{Mode, Reader};
use crate::protocol::synclog::{Item, ItemKind, LineReader, Named};

/// So much is read at one look: a `log` of a million lines keeps nobody else waiting.
const AT_ONCE: u64 = 256 << 10;

/// How far `log` and `log-run` have been read.
#[derive(Debug, Default)]
pub struct LookedAt {
    log: Position,
    run: Position,
}

/// How far a file has been read.
#[derive(Debug, Default)]
struct Position {
    /// Which file.
    id: (u64, u64),
    at: u64,
    reader: LineReader,
}

/// Each name once, in order of appearance.
#[derive(Debug, Default)]
struct Names {
    named: Named,
    mailboxes: HashSet<Bytes>,
    users: HashSet<Bytes>,
}

impl SyncDirectory {
    /// What lines name which came into `log` since the last look. The first look, and the first at a
    /// new `log`, is from its beginning. With
    /// `run` also those that `log-run` names, which come first; what was read while it was `log` is
    /// not read again.
    pub fn look_ahead(&self, looked: &mut LookedAt, run: bool) -> Named {
        let mut names = Names::default();
        // Closing the file gives back our own lock of it, if there were one: see `Work`.
        let _work = self.work();
        if run {
            let taken = self.disk.stat("log-run").map(|stat| stat.id);
            if taken.is_ok_and(|id| id == looked.log.id) {
                looked.run = std::mem::take(&mut looked.log);
            }
            self.read_on("log-run", &mut looked.run, &mut names);
        }
        self.read_on("log", &mut looked.log, &mut names);
        names.named
    }

    fn read_on(&self, name: &str, looked: &mut Position, names: &mut Names) {
        let is_news = |stat: &super::disk::Stat, looked: &Position| {
            stat.plain && (stat.id, stat.len) != (looked.id, looked.at)
        };
        if !self
            .disk
            .stat(name)
            .is_ok_and(|stat| is_news(&stat, looked))
        {
            return;
        }
        let Ok(file) = self.disk.open(name, Mode::Read) else {
            return;
        };
        let Ok(stat) = file.stat() else {
            return;
        };
        if stat.id != looked.id || stat.len < looked.at {
            *looked = Position {
                id: stat.id,
                ..Position::default()
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
                names.add(&item);
            }
        }
    }
}

impl Names {
    fn add(&mut self, item: &Item) {
        for name in item.mailboxes() {
            if self.mailboxes.insert(name.clone()) {
                self.named.mailboxes.push(name.clone());
            }
        }
        if item.kind == ItemKind::User && self.users.insert(item.first.clone()) {
            self.named.users.push(item.first.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{OpenOptions, rename, write};
    use std::io::Write;

    use super::*;

    fn look(directory: &SyncDirectory, looked: &mut LookedAt, run: bool) -> Vec<String> {
        let named = directory.look_ahead(looked, run);
        let text = |name: &Bytes| String::from_utf8(name.to_vec()).unwrap();
        let users = named
            .users
            .iter()
            .map(|user| format!("USER {}", text(user)));
        named.mailboxes.iter().map(text).chain(users).collect()
    }

    #[test]
    fn each_line_is_read_once_whatever_becomes_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let directory = SyncDirectory::open(folder.path()).unwrap();
        let mut looked = LookedAt::default();
        assert!(look(&directory, &mut looked, true).is_empty());
        write(at("log-run"), "MAILBOX run\n").unwrap();
        write(
            at("log"),
            "APPEND z\nMAILBOX a\nAPPEND z\nRENAME b c\nUSER joe\n",
        )
        .unwrap();
        assert_eq!(
            look(&directory, &mut looked, true),
            ["run", "z", "a", "b", "c", "USER joe"]
        );
        assert!(look(&directory, &mut looked, true).is_empty());
        // What comes into it just before the client takes it.
        let mut log = OpenOptions::new().append(true).open(at("log")).unwrap();
        log.write_all(b"MAILBOX late\nMAILBOX ha").unwrap();
        rename(at("log"), at("log-run")).unwrap();
        write(at("log"), "MAILBOX next\n").unwrap();
        assert_eq!(look(&directory, &mut looked, true), ["late", "next"]);
        log.write_all(b"lf\n").unwrap();
        assert_eq!(look(&directory, &mut looked, true), ["half"]);
        // A whole log between two looks.
        rename(at("log"), at("log-run")).unwrap();
        write(at("log"), "MAILBOX unseen\n").unwrap();
        rename(at("log"), at("log-run")).unwrap();
        assert_eq!(look(&directory, &mut looked, true), ["unseen"]);
        // A run that is linked was read for that.
        write(at("log"), "MAILBOX linked\n").unwrap();
        rename(at("log"), at("log-run")).unwrap();
        assert!(look(&directory, &mut looked, false).is_empty());
    }
}
