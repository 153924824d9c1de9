//! Taking a channel's log over as its client does (`sync_log_reader_begin` and `sync_log_reader_end`
//! in Cyrus's `sync_log.c`), for `syncmux shard`; and the lines that it holds back.

use std::cell::Cell;
use std::io::{BufReader, ErrorKind, Read};

use bytes::Bytes;

use super::disk::{DiskFile, Mode, Reader};
use super::text::{Shape, each_line};
use super::{BACK, Error, HELD, SyncDirectory};
use crate::core::shard::{FileId, LogLine};
use crate::protocol::Site;
use crate::protocol::synclog::{ItemKind, Line, LineReader};

/// A run that is ours. It is kept open, so that nothing else gets its inode.
#[derive(Debug)]
pub struct TakenRun {
    name: &'static str,
    file: Box<dyn DiskFile>,
    id: FileId,
    /// Its name is gone, but perhaps only until a power loss.
    removed: Cell<bool>,
}

/// What a run held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadRun {
    /// Lines that were handed out.
    pub lines: u64,
    /// Lines that nobody can read: torn, garbage.
    pub unreadable: u64,
    /// The first of these, for the log.
    pub example: Option<String>,
}

/// So much is written at once.
const CHUNK: usize = 8 << 20;

impl TakenRun {
    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }
}

impl SyncDirectory {
    /// Takes over what there is to do: a `log-run` that a crash, or the client before us, has left;
    /// else `log`, which becomes `log-run`. `None` where there is neither. When this returns, no
    /// writer is in that file any more.
    pub fn take_run(&self) -> Result<Option<TakenRun>, Error> {
        let _work = self.work();
        if !self.is_there("log-run")? {
            if !self.is_there("log")? {
                return Ok(None);
            }
            let renamed = self.disk.rename("log", "log-run");
            renamed.map_err(Error::io("rename", &self.at("log")))?;
        }
        self.taken("log-run").map(Some)
    }

    /// Takes everything that is there away from a client that is not there any more, in the order in
    /// which it is to be done: its `log-run`, and its `log`, which becomes `syncmux-back`.
    ///
    /// They are to be [finished](Self::finish_run) in reverse: what is left then after a crash comes
    /// before what the first time has made of it.
    pub fn take_back(&self) -> Result<Vec<TakenRun>, Error> {
        let mut taken = Vec::new();
        let _work = self.work();
        if self.is_there("log-run")? {
            taken.push(self.taken("log-run")?);
        }
        if !self.is_there(BACK)? && self.is_there("log")? {
            let renamed = self.disk.rename("log", BACK);
            renamed.map_err(Error::io("rename", &self.at("log")))?;
        }
        if self.is_there(BACK)? {
            taken.push(self.taken(BACK)?);
        }
        Ok(taken)
    }

    /// What a [`take_back`](Self::take_back) that was interrupted has left; the client that works here
    /// now does not see it.
    pub fn left_from_take_back(&self) -> Result<Option<TakenRun>, Error> {
        let _work = self.work();
        match self.is_there(BACK)? {
            true => self.taken(BACK).map(Some),
            false => Ok(None),
        }
    }

    fn is_there(&self, name: &str) -> Result<bool, Error> {
        match self.disk.stat(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("look at", &self.at(name))(error)),
        }
    }

    fn taken(&self, name: &'static str) -> Result<TakenRun, Error> {
        let path = self.at(name);
        let file = self.disk.open(name, Mode::Read);
        let file = file.map_err(Error::io("open", &path))?;
        // Whoever had the lock over the rename is waited out; all later ones see that it was renamed.
        file.lock(false).map_err(Error::io("lock", &path))?;
        file.unlock();
        let id = file.stat().map_err(Error::io("look at", &path))?.id;
        let removed = Cell::new(false);
        Ok(TakenRun {
            name,
            file,
            id,
            removed,
        })
    }

    /// Hands out the lines of a run, each with whom it concerns. Nothing was handed out where this
    /// returns an error.
    pub fn read_run(
        &self,
        run: &TakenRun,
        site: &Site,
        take: impl FnMut(LogLine),
    ) -> Result<ReadRun, Error> {
        let _work = self.work();
        let text = text_of(&*run.file).map_err(Error::io("read", &self.at(run.name)))?;
        Ok(hand_out(&text, site, take))
    }

    /// The work is done: the run goes, and stays away after a power loss.
    pub fn finish_run(&self, run: &TakenRun) -> Result<(), Error> {
        let _work = self.work();
        let path = self.at(run.name);
        if run.removed.get() {
            return self.sync_names();
        }
        match self.disk.stat(run.name) {
            Ok(stat) if stat.id == run.id => {}
            Ok(_) => return Err(Error::TakenAway { path }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::TakenAway { path });
            }
            Err(error) => return Err(Error::io("look at", &path)(error)),
        }
        let removed = self.disk.remove(run.name);
        removed.map_err(Error::io("remove", &path))?;
        run.removed.set(true);
        self.sync_names()
    }

    /// Appends lines to `log` as they are, and fsyncs it. After an error nothing, or a first part, of
    /// them stands there: they are to be appended again.
    pub fn append_raw(&self, lines: &[Bytes]) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let _work = self.work();
        let mut log = self.lock_log()?;
        let mut text = Vec::new();
        for line in lines {
            text.extend_from_slice(line);
            text.push(b'\n');
            if text.len() >= CHUNK {
                log.append(&text)?;
                text.clear();
            }
        }
        if !text.is_empty() {
            log.append(&text)?;
        }
        log.finish()
    }

    /// Makes the file of held lines hold exactly these, in order, fsynced; without lines it goes.
    pub fn store_held<'a>(&self, lines: impl Iterator<Item = &'a Bytes>) -> Result<(), Error> {
        let _work = self.work();
        let mut text = Vec::new();
        for line in lines {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        self.replace(HELD, &text)
    }

    /// Hands out the held lines, in order.
    pub fn load_held(&self, site: &Site, take: impl FnMut(LogLine)) -> Result<ReadRun, Error> {
        let _work = self.work();
        let path = self.at(HELD);
        let file = match self.disk.open(HELD, Mode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ReadRun::default()),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let text = text_of(&*file).map_err(Error::io("read", &path))?;
        Ok(hand_out(&text, site, take))
    }
}

fn text_of(file: &dyn DiskFile) -> std::io::Result<Bytes> {
    let mut text = Vec::new();
    Reader::new(file).read_to_end(&mut text)?;
    Ok(text.into())
}

/// A line that the client would stop at is left out, and those behind it are not: it is each line by
/// itself that is looked at here.
fn hand_out(text: &Bytes, site: &Site, mut take: impl FnMut(LogLine)) -> ReadRun {
    let mut read = ReadRun::default();
    let mut at = 0;
    // Reading from memory does not fail.
    let _ = each_line(
        BufReader::with_capacity(64 << 10, &text[..]),
        |line, shape, len| {
            let whole = text.slice(at..at + line.len().min(len as usize));
            at += len as usize;
            if line.is_empty() && shape == Shape::Harmless {
                return Ok(());
            }
            let before = read.lines;
            if shape == Shape::Harmless {
                for line in log_lines(&whole, site) {
                    read.lines += 1;
                    take(line);
                }
            }
            if read.lines == before {
                read.unreadable += 1;
                let shown = || {
                    let end = whole.len().min(200);
                    whole[..end].escape_ascii().to_string()
                };
                read.example.get_or_insert_with(shown);
            }
            Ok(())
        },
    );
    read
}

/// A line, read by itself.
fn log_lines(line: &Bytes, site: &Site) -> Vec<LogLine> {
    let end = line.len() - usize::from(line.ends_with(b"\r"));
    let line = line.slice(..end);
    let mut input = Bytes::from([&line[..], b"\n"].concat());
    let Ok(Some(item)) = LineReader::new().feed(&mut input) else {
        return Vec::new();
    };
    // The second name is that of the next line, behind one that was torn. Not every client looks at
    // it there, so each gets a line.
    if let (ItemKind::Mailbox | ItemKind::Append, Some(second)) = (item.kind, &item.second) {
        let each = [item.first.clone(), second.clone()];
        return each
            .into_iter()
            .filter_map(|name| {
                let mut text = Vec::new();
                let first = site.key_of_mailbox(&name);
                Line::Mailbox(name).print(&mut text).ok()?;
                text.pop();
                Some(LogLine {
                    text: text.into(),
                    first,
                    more: Vec::new(),
                })
            })
            .collect();
    }
    let (first, second) = item.keys(site);
    vec![LogLine {
        text: line,
        first,
        more: second.into_iter().collect(),
    }]
}

/// Whom a line concerns, where it can be read. Behind a torn name it may be two lines.
pub(super) fn keys_of(line: &[u8], site: &Site) -> Vec<LogLine> {
    log_lines(&Bytes::copy_from_slice(line), site)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{read_to_string, rename, write};

    use super::*;

    fn open() -> (tempfile::TempDir, SyncDirectory) {
        let folder = tempfile::tempdir().unwrap();
        let directory = SyncDirectory::open(folder.path()).unwrap();
        (folder, directory)
    }

    fn read(directory: &SyncDirectory, run: &TakenRun) -> (Vec<String>, ReadRun) {
        let mut lines = Vec::new();
        let shown = |line: LogLine| {
            let text = line.text.escape_ascii().to_string();
            let more = line.more.iter().map(|key| format!(" and {key}"));
            format!("{}{}: {text}", line.first, more.collect::<String>())
        };
        let read = directory.read_run(run, &Site::default(), |line| lines.push(shown(line)));
        (lines, read.unwrap())
    }

    #[test]
    fn whom_lines_concern() {
        let (folder, directory) = open();
        assert!(directory.take_run().unwrap().is_none());
        let text = "APPEND user.joe\nSEEN eve 12-34\nUSER eve\nQUOTA user.joe\nMAILBOX \"shared a\"\n\
                    RENAME user.joe.a user.joe.b\nDOUBLEMAILBOX user.joe user.eve.x\n\
                    RENAME user.joe shared.b\nANNOTATION \"\"\nFUTURE user.joe 7\n";
        write(folder.path().join("log"), text).unwrap();
        let run = directory.take_run().unwrap().unwrap();
        let (lines, read) = read(&directory, &run);
        assert_eq!(
            lines,
            [
                "joe: APPEND user.joe",
                "eve: SEEN eve 12-34",
                "eve: USER eve",
                "joe: QUOTA user.joe",
                "(shared): MAILBOX \\\"shared a\\\"",
                "joe: RENAME user.joe.a user.joe.b",
                "joe and eve: DOUBLEMAILBOX user.joe user.eve.x",
                "joe and (shared): RENAME user.joe shared.b",
                "(shared): ANNOTATION \\\"\\\"",
                // Of a newer Cyrus: as it is.
                "(shared): FUTURE user.joe 7",
            ]
        );
        assert_eq!((read.lines, read.unreadable), (10, 0));
        // Whoever logs now makes another file; a crash leaves the run, which comes first.
        write(folder.path().join("log"), "APPEND user.eve\n").unwrap();
        let again = directory.take_run().unwrap().unwrap();
        assert_eq!(again.id(), run.id());
        directory.finish_run(&again).unwrap();
        assert!(matches!(
            directory.finish_run(&run),
            Err(Error::TakenAway { .. })
        ));
        let next = directory.take_run().unwrap().unwrap();
        assert_eq!(
            super::tests::read(&directory, &next).0,
            ["eve: APPEND user.eve"]
        );
    }

    #[test]
    fn what_is_behind_a_torn_line_is_not_forgotten() {
        let (folder, directory) = open();
        let text = "APPEND user.a\nMAILBOX \"user.b\nAPPEND user.c\n\nrubbish\nMAILBOX user.dMAILBOX \
                    user.e\n\0\0\0\0\nSEEN f \nAPPEND user.g";
        write(folder.path().join("log"), text).unwrap();
        let run = directory.take_run().unwrap().unwrap();
        let (lines, read) = read(&directory, &run);
        assert_eq!(
            lines,
            [
                "a: APPEND user.a",
                "c: APPEND user.c",
                "dMAILBOX: MAILBOX user.dMAILBOX",
                "e: MAILBOX user.e",
                "g: APPEND user.g",
            ]
        );
        assert_eq!((read.lines, read.unreadable), (5, 4));
        assert_eq!(read.example.unwrap(), "MAILBOX \\\"user.b");
    }

    #[test]
    fn everything_is_taken_back_in_order() {
        let (folder, directory) = open();
        let at = |name: &str| folder.path().join(name);
        write(at("log-run"), "APPEND user.a\n").unwrap();
        write(at("log"), "APPEND user.b\n").unwrap();
        let taken = directory.take_back().unwrap();
        let lines = |runs: &[TakenRun]| -> Vec<String> {
            let each = runs.iter().map(|run| super::tests::read(&directory, run).0);
            each.flatten().collect()
        };
        assert_eq!(lines(&taken), ["a: APPEND user.a", "b: APPEND user.b"]);
        // A crash; and somebody has written again.
        write(at("log"), "APPEND user.c\n").unwrap();
        let taken = directory.take_back().unwrap();
        assert_eq!(lines(&taken), ["a: APPEND user.a", "b: APPEND user.b"]);
        taken
            .iter()
            .rev()
            .for_each(|run| directory.finish_run(run).unwrap());
        assert_eq!(lines(&directory.take_back().unwrap()), ["c: APPEND user.c"]);
        assert!(directory.left_from_take_back().unwrap().is_some());
        assert!(!at("log").exists());
    }

    #[test]
    fn held_lines_come_back_in_order_and_go_to_one_client() {
        let (folder, directory) = open();
        let held = ["RENAME user.a user.b", "APPEND user.b"].map(Bytes::from);
        directory.store_held(held.iter()).unwrap();
        let mut lines = Vec::new();
        directory
            .load_held(&Site::default(), |line| lines.push(line.text))
            .unwrap();
        assert_eq!(lines, held);
        write(folder.path().join("log"), "APPEND user.c\n").unwrap();
        assert_eq!(directory.recover_but_held().unwrap().lines, 0);
        assert_eq!(directory.recover().unwrap().lines, 2);
        let log = read_to_string(folder.path().join("log")).unwrap();
        assert_eq!(log, "APPEND user.c\nRENAME user.a user.b\nAPPEND user.b\n");
        assert!(!folder.path().join(HELD).exists());
        directory.store_held(held.iter()).unwrap();
        directory.store_held([].iter()).unwrap();
        assert!(!folder.path().join(HELD).exists());
    }

    #[test]
    fn lines_are_appended_as_they_are() {
        let (folder, directory) = open();
        let at = |name: &str| folder.path().join(name);
        write(at("log"), "APPEND user.torn").unwrap();
        directory.append_raw(&[]).unwrap();
        directory
            .append_raw(&["FUTURE x".into(), "APPEND \"user.a b\"".into()])
            .unwrap();
        let log = read_to_string(at("log")).unwrap();
        assert_eq!(log, "APPEND user.torn\nFUTURE x\nAPPEND \"user.a b\"\n");
        rename(at("log"), at("log-run")).unwrap();
        directory.append_raw(&["USER a".into()]).unwrap();
        assert_eq!(read_to_string(at("log")).unwrap(), "USER a\n");
    }
}
