//! What a client still has to do, by its files: `log`, `log-run`, and where it goes through a syncmux
//! that works in the same folder, what that has not done for it yet (`syncmux-owed`, `syncmux-run-*`).
//!
//! The client renames `log` to `log-run`, works through it, and unlinks it. What it can't do now it
//! writes into `log` again (the client of a named channel, told IMAP_MAILBOX_LOCKED), and does so
//! before the unlink. So an unfinished line stands in `log`, in `log-run` or in both at any moment, but
//! two files can't be looked at in one moment. Each look therefore looks at the names twice, and reads
//! in between. It is exact, that is, every line that was unfinished at its end has been read, in three
//! cases; every file that was seen is kept open, so that no other gets its inode:
//!
//! 1. `log-run` is the same file both times. Then it was there all the time, since a file that was
//!    unlinked never comes back. So `log` was not renamed meanwhile, and what was written into it
//!    meanwhile are lines of that `log-run`.
//! 2. There is no `log-run` either time, and `log` is the same file, and not longer than what was read.
//!    Without `log-run` an unfinished line can only be in `log`, and at the second look at `log-run`
//!    it was in this one, which was read to its end.
//! 3. There is neither either time, and no name in the folder has changed meanwhile
//!    ([`Disk::names_mark`]). Without that it could be that a line was in the one file whenever the
//!    other one was looked at.
//!
//! [`Disk::names_mark`]: super::disk::Disk::names_mark
//!
//! In all three what syncmux keeps there must be the same both times as well: lines go from a run to
//! there before the run is unlinked, and back into `log` before they leave it.
//!
//! In any other case it is looked again, and at last told that the look was not exact. A client that is
//! busy soon gives the first case, one that is not the third.

use std::io::{self, ErrorKind, Read};

use super::disk::{DiskFile, Mode, Reader};
use super::take::keys_of;
use super::{BACK, Error, LOCK, OWED, RUN_PREFIX, SyncDirectory};
use crate::core::shard::{FileId, Keys, Look};
use crate::protocol::Site;

/// How often a look is tried before it is told as it is.
const TRIES: usize = 4;

/// More without a line feed is no line of Cyrus's.
const LONGEST: usize = 64 << 10;

/// How far the files of one folder have been read.
#[derive(Debug, Default)]
pub struct Unfinished {
    open: Vec<Open>,
    /// Read, and not told yet.
    named: Vec<(FileId, Vec<Keys>)>,
    /// Names were made durable since this process began to look, and since it has appended.
    synced: bool,
    /// What the last exact look saw.
    last: Option<Seen>,
}

#[derive(Debug)]
struct Open {
    id: FileId,
    file: Box<dyn DiskFile>,
    /// Up to there, which is the beginning of a line.
    at: u64,
}

/// The names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    run: Option<FileId>,
    log: Option<(FileId, u64)>,
    others: Vec<(String, FileId, u64)>,
}

impl Unfinished {
    /// Something was appended to `log`. The next look is told even where all is as it was before: the
    /// client may have been through with it in between.
    pub fn appended(&mut self) {
        self.last = None;
        // The file that it went with was perhaps never seen.
        self.synced = false;
    }
}

impl Seen {
    fn there(&self) -> Vec<FileId> {
        let others = self.others.iter().map(|(_, id, _)| *id);
        let log = self.log.map(|(id, _)| id);
        self.run.into_iter().chain(log).chain(others).collect()
    }
}

impl SyncDirectory {
    /// Looks at what is unfinished, reading only what is new. `None`: as at the last look.
    pub fn look(&self, known: &mut Unfinished, site: &Site) -> Result<Option<Look>, Error> {
        let _work = self.work();
        let fail = |error| Error::io("look into", self.disk.path())(error);
        let first = self.names().map_err(fail)?;
        if known.named.is_empty() && known.last.as_ref() == Some(&first) {
            return Ok(None);
        }
        let mut exact = None;
        for _ in 0..TRIES {
            exact = self.try_to_look(known, site).map_err(fail)?;
            if exact.is_some() {
                break;
            }
        }
        let Some(seen) = exact else {
            known.last = None;
            return Ok(Some(Look {
                named: std::mem::take(&mut known.named),
                there: known.open.iter().map(|open| open.id).collect(),
                exact: false,
            }));
        };
        let there = seen.there();
        let gone = known.open.iter().any(|open| !there.contains(&open.id));
        if gone || !known.synced {
            // A power loss must not bring back what is going to be taken for finished; what went before
            // we came neither.
            self.sync_names()?;
            known.synced = true;
            known.open.retain(|open| there.contains(&open.id));
        }
        known.last = Some(seen);
        Ok(Some(Look {
            named: std::mem::take(&mut known.named),
            there,
            exact: true,
        }))
    }

    /// What was seen, where that is exact.
    fn try_to_look(&self, known: &mut Unfinished, site: &Site) -> io::Result<Option<Seen>> {
        let mark = self.disk.names_mark()?;
        let before = self.names()?;
        for (name, _, _) in &before.others {
            self.open_and_read(name, known, site)?;
        }
        let run = self.open_and_read("log-run", known, site)?;
        let log = self.open_and_read("log", known, site)?;
        let after = self.names()?;
        let run = run.map(|(id, _)| id);
        if before.others != after.others || run != before.run || run != after.run {
            return Ok(None);
        }
        let exact = match (run, log) {
            (Some(_), _) => true,
            (None, Some(log)) => after.log == Some(log),
            (None, None) => {
                after.log.is_none() && mark.is_some() && self.disk.names_mark()? == mark
            }
        };
        // With a run `log` may have been made, or have grown, since it was read: the next look is not
        // to take it for known.
        let seen = Seen { log, ..after };
        Ok(exact.then_some(seen))
    }

    /// Which files there are.
    fn names(&self) -> io::Result<Seen> {
        let mut others = Vec::new();
        if let Some((id, len)) = self.stat_of(BACK)? {
            others.push((BACK.to_owned(), id, len));
        }
        // Only where a syncmux is, or was.
        if self.stat_of(LOCK)?.is_some() {
            let mut names = self.disk.list()?;
            names.retain(|name| name == OWED || name.starts_with(RUN_PREFIX));
            names.sort();
            for name in names {
                if let Some((id, len)) = self.stat_of(&name)? {
                    others.push((name, id, len));
                }
            }
        }
        Ok(Seen {
            run: self.stat_of("log-run")?.map(|(id, _)| id),
            log: self.stat_of("log")?,
            others,
        })
    }

    fn stat_of(&self, name: &str) -> io::Result<Option<(FileId, u64)>> {
        match self.disk.stat(name) {
            Ok(stat) => Ok(Some((stat.id, stat.len))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads what is new in the file of this name; says which it is, and how long it was then.
    ///
    /// What is closed here is not locked by us: whoever locks holds `work` until it has unlocked.
    fn open_and_read(
        &self,
        name: &str,
        known: &mut Unfinished,
        site: &Site,
    ) -> io::Result<Option<(FileId, u64)>> {
        let Some((id, _)) = self.stat_of(name)? else {
            return Ok(None);
        };
        let at = match known.open.iter().position(|open| open.id == id) {
            Some(at) => at,
            None => {
                let file = match self.disk.open(name, Mode::Read) {
                    Ok(file) => file,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                };
                // It may be another one by now.
                let id = file.stat()?.id;
                match known.open.iter().position(|open| open.id == id) {
                    Some(at) => at,
                    None => {
                        known.open.push(Open { id, file, at: 0 });
                        known.open.len() - 1
                    }
                }
            }
        };
        let open = &mut known.open[at];
        let (lines, len) = open.read_on(site)?;
        let id = open.id;
        if !lines.is_empty() {
            known.named.push((id, lines));
        }
        Ok(Some((id, len)))
    }
}

impl Open {
    /// The lines that came in since the last time; and how long the file was.
    fn read_on(&mut self, site: &Site) -> io::Result<(Vec<Keys>, u64)> {
        let mut text = Vec::new();
        // A torn line at its end may have been cut off.
        self.at = self.at.min(self.file.stat()?.len);
        Reader::from(&*self.file, self.at).read_to_end(&mut text)?;
        let len = self.at + text.len() as u64;
        let Some(end) = memchr::memrchr(b'\n', &text) else {
            if text.len() > LONGEST {
                self.at = len;
            }
            return Ok((Vec::new(), len));
        };
        let lines = text[..end].split(|byte| *byte == b'\n');
        // The client does not read a torn line either.
        let keys = lines
            .filter(|line| !line.is_empty())
            .flat_map(|line| keys_of(line, site))
            .map(|line| (line.first, line.more.into_iter().next()))
            .collect();
        self.at += end as u64 + 1;
        Ok((keys, len))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{OpenOptions, remove_file, rename, write};
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        directory: SyncDirectory,
        known: Unfinished,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let directory = SyncDirectory::beside(folder.path()).unwrap();
            Place {
                folder,
                directory,
                known: Unfinished::default(),
            }
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join(name)
        }

        fn append(&self, text: &str) {
            let mut options = OpenOptions::new();
            let mut log = options
                .append(true)
                .create(true)
                .open(self.at("log"))
                .unwrap();
            log.write_all(text.as_bytes()).unwrap();
        }

        fn look(&mut self) -> Option<Look> {
            self.directory
                .look(&mut self.known, &Site::default())
                .unwrap()
        }

        /// The users of new lines, and how many files are there.
        fn exact(&mut self) -> (Vec<String>, usize) {
            let mut users = Vec::new();
            loop {
                let look = self.look().unwrap();
                let named = look.named.into_iter().flat_map(|(_, lines)| lines);
                users.extend(named.map(|(user, _)| user.to_string()));
                if look.exact {
                    return (users, look.there.len());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn users(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn each_line_is_told_once_and_files_until_they_are_gone() {
        let mut place = Place::new();
        assert_eq!(place.exact(), (users(&[]), 0));
        assert!(place.look().is_none(), "as it was");
        place.append("APPEND user.a\nAPPEND user.b\nAPPEND us");
        assert_eq!(place.exact(), (users(&["a", "b"]), 1));
        assert!(place.look().is_none());
        place.append("er.c\n");
        assert_eq!(place.exact(), (users(&["c"]), 1));
        place.append("MAILBOX user.dMAILBOX user.e\n");
        assert_eq!(place.exact(), (users(&["dMAILBOX", "e"]), 1));
        rename(place.at("log"), place.at("log-run")).unwrap();
        assert_eq!(place.exact(), (users(&[]), 1));
        // The client defers, and ends its run.
        place.append("APPEND user.b\n");
        assert_eq!(place.exact(), (users(&["b"]), 2));
        remove_file(place.at("log-run")).unwrap();
        assert_eq!(place.exact(), (users(&[]), 1));
        rename(place.at("log"), place.at("log-run")).unwrap();
        remove_file(place.at("log-run")).unwrap();
        assert_eq!(place.exact(), (users(&[]), 0));
    }

    #[test]
    fn nothing_is_finished_while_names_change() {
        let mut place = Place::new();
        place.append("APPEND user.a\n");
        place.exact();
        remove_file(place.at("log")).unwrap();
        // A name has changed this very moment, and the next change might leave no trace.
        let look = place.look().unwrap();
        assert!(!look.exact);
        assert_eq!(place.exact(), (users(&[]), 0));
    }

    #[test]
    fn what_came_and_went_between_two_looks_is_told() {
        let mut place = Place::new();
        place.exact();
        place.known.appended();
        assert_eq!(place.exact(), (users(&[]), 0));
        assert!(place.look().is_none());
    }

    #[test]
    fn what_a_syncmux_has_not_done_yet_is_unfinished() {
        let mut place = Place::new();
        write(place.at("syncmux-owed"), "USER owed\n").unwrap();
        assert_eq!(place.exact(), (users(&[]), 0), "no syncmux was ever here");
        write(place.at("syncmux-lock"), "").unwrap();
        write(place.at("syncmux-run-7"), "USER linked\n").unwrap();
        assert_eq!(place.exact(), (users(&["owed", "linked"]), 2));
        remove_file(place.at("syncmux-owed")).unwrap();
        remove_file(place.at("syncmux-run-7")).unwrap();
        assert_eq!(place.exact(), (users(&[]), 0));
        write(place.at("syncmux-back"), "USER back\n").unwrap();
        assert_eq!(place.exact(), (users(&["back"]), 1));
    }
}
