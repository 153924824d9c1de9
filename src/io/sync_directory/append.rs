//! Appending to `log` by Cyrus's own dance (`sync_log_base` in Cyrus's `sync_log.c`).

use std::io::{self, BufReader, ErrorKind, Read};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::disk::{DiskFile, Mode, Reader};
use super::text::{Shape, Tail, each_line, tail};
use super::{Error, Looked, SyncDirectory};
use crate::protocol::synclog::Line;

/// As often as Cyrus tries (`SYNC_LOG_RETRIES`).
const TRIES: usize = 64;
/// How far back the start of a torn last line is looked for.
const LONGEST_TAIL: u64 = 64 << 10;

impl SyncDirectory {
    /// Appends the lines to `log` and fsyncs it. Lines that can't be written so that Cyrus reads
    /// them again are left out and handed back; the others stand there when this returns `Ok`, and
    /// none of them does when it returns an error.
    pub fn append_lines(&self, lines: &[Line]) -> Result<Vec<Line>, Error> {
        let (text, left_out) = printed(lines);
        if !text.is_empty() {
            let _work = self.work();
            let mut log = self.lock_log()?;
            log.append(&text)?;
            log.finish()?;
        }
        Ok(left_out)
    }

    /// Opens and locks `log`; makes it if it isn't there.
    pub(super) fn lock_log(&self) -> Result<LockedLog<'_>, Error> {
        let path = self.at("log");
        for _ in 0..TRIES {
            let Some(file) = self.open_log()? else {
                continue;
            };
            file.lock(true).map_err(Error::io("lock", &path))?;
            let mut log = LockedLog {
                directory: self,
                path: path.clone(),
                file: Arc::from(file),
                id: (0, 0),
                len: 0,
                before: 0,
                good: 0,
            };
            // The client may have renamed it since it was opened.
            let open = log.file.stat().map_err(Error::io("look at", &path))?;
            match self.disk.stat("log") {
                Ok(named) if named.id == open.id => {
                    (log.id, log.len, log.before) = (open.id, open.len, open.len);
                    log.good = self.good(open.id, open.len);
                    return Ok(log);
                }
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("look at", &path)(error));
                }
                _ => {}
            }
        }
        Err(Error::Busy { path })
    }

    /// How much of `log` need not be looked at again.
    fn good(&self, id: (u64, u64), len: u64) -> u64 {
        let looked = self.looked();
        let same = |looked: &&Looked| looked.id == id && looked.good <= len;
        looked.as_ref().filter(same).map_or(0, |looked| looked.good)
    }

    fn looked(&self) -> MutexGuard<'_, Option<Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: somebody else made it in the meantime, or it was renamed; try again.
    fn open_log(&self) -> Result<Option<Box<dyn DiskFile>>, Error> {
        let path = self.at("log");
        match self.disk.open("log", Mode::Append) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("open", &path)(error)),
        }
        if self.disk.makes_files_of_cyrus() {
            return match self.disk.open("log", Mode::AppendNew) {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
                Err(error) => Err(Error::io("create", &path)(error)),
            };
        }
        // An imapd that meets a `log` which is root's for one moment loses its line: so the file
        // gets its owner first and its name after.
        let (temp, _file) = self.create_temp("log")?;
        let named = match self.disk.rename_new(&temp, "log") {
            Ok(()) => Ok(()),
            Err(_) => self.disk.hard_link(&temp, "log"),
        };
        let _ = self.disk.remove(&temp);
        match named {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            // Beside another syncmux, whose start removes what a crash may have left.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.temps.is_empty() => Ok(None),
            Err(error) => Err(Error::io("create", &path)(error)),
        }
    }
}

/// `log`, locked against Cyrus until this is dropped. The client may rename it meanwhile, but does
/// not read it before it gets the lock itself.
pub(super) struct LockedLog<'a> {
    directory: &'a SyncDirectory,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    id: (u64, u64),
    len: u64,
    /// Its length when it was locked.
    before: u64,
    /// Up to there are whole lines, none of which the client stops at.
    good: u64,
}

impl LockedLog<'_> {
    /// What stands in it.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&*self.file)
    }

    /// Puts lines behind what is there.
    pub(super) fn append(&mut self, text: &[u8]) -> Result<(), Error> {
        self.mend()?;
        self.write(text)
    }

    /// Makes it so that the client reads what is put behind what is there. A crash or a full disk
    /// may have torn somebody's line: the client would take ours for its rest, or, where it is
    /// torn in quotes and others have written behind it, stop there and forget ours.
    pub(super) fn mend(&mut self) -> Result<(), Error> {
        let path = self.path.clone();
        let with = self.mend_tail().map_err(Error::io("mend", &path))?;
        if !with.is_empty() {
            self.write(with)?;
        }
        self.blank_torn_lines().map_err(Error::io("mend", &path))
    }

    /// One write; whole lines, each with its newline. After an error nothing of it is there.
    pub(super) fn write(&mut self, text: &[u8]) -> Result<(), Error> {
        let result = loop {
            match self.file.append(text) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let failed = match result {
            Ok(written) if written == text.len() => {
                self.len += written as u64;
                return Ok(());
            }
            Ok(written) => Error::Short {
                path: self.path.clone(),
                written,
                wanted: text.len(),
            },
            Err(error) => Error::io("write to", &self.path)(error),
        };
        self.take_back();
        Err(failed)
    }

    /// Makes what was appended, and the name, survive a power loss.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        if let Err(error) = self.file.sync() {
            // The system takes what it could not write for written, and the next fsync would not
            // say so: what is written again must be new to it.
            let _ = self.file.set_len(self.before);
            // The tail may be torn again.
            self.good = 0;
            return Err(Error::io("fsync", &self.path)(error));
        }
        // Also where the file is not new: Cyrus made it without this.
        self.directory.sync_names()
    }

    /// Cuts off what was written too little of. If even that fails, the next one mends the tail.
    fn take_back(&self) {
        let _ = self.file.set_len(self.len);
    }

    /// Lines that the client would stop at are no use to anybody: newlines take their place, which
    /// it reads over. Interrupted it is done again before the next append. What was looked at by
    /// an earlier append is not read again: every imapd waits meanwhile.
    fn blank_torn_lines(&mut self) -> io::Result<()> {
        let mut torn = Vec::new();
        let mut at = self.good;
        let new = Reader::from(&*self.file, at);
        each_line(BufReader::with_capacity(64 << 10, new), |_, shape, len| {
            if shape == Shape::Poison {
                torn.push((at, len));
            }
            at += len;
            Ok(())
        })?;
        for (at, len) in torn {
            tracing::warn!(at, len, "a torn line of the sync log was blanked");
            self.file.blank(at, len)?;
        }
        self.good = self.len;
        Ok(())
    }

    /// A torn last line: what must be put behind it, or it is cut off where nothing helps.
    fn mend_tail(&mut self) -> io::Result<&'static [u8]> {
        if self.len == 0 {
            return Ok(b"");
        }
        let start = self.len.saturating_sub(LONGEST_TAIL);
        // The last byte alone tells it nearly always.
        if self.read(self.len - 1)? == b"\n" {
            return Ok(b"");
        }
        let end = self.read(start)?;
        let line = memchr::memrchr(b'\n', &end).map_or(0, |newline| newline + 1);
        match tail(&end[line..]) {
            Tail::Mend(with) => Ok(with),
            Tail::Cut => {
                self.len = start + line as u64;
                self.before = self.before.min(self.len);
                self.good = self.good.min(self.len);
                self.file.set_len(self.len)?;
                Ok(b"")
            }
        }
    }

    /// What stands in it from there on.
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let reader = Reader::from(&*self.file, from);
        reader.take(self.len - from).read_to_end(&mut text)?;
        Ok(text)
    }
}

impl Drop for LockedLog<'_> {
    fn drop(&mut self) {
        self.file.unlock();
        // Only now: with an older descriptor of this file its lock would be gone.
        *self.directory.looked() = Some(Looked {
            _file: Arc::clone(&self.file),
            id: self.id,
            good: self.good,
        });
    }
}

/// The lines as text, and those that can't be.
pub(super) fn printed(lines: &[Line]) -> (Vec<u8>, Vec<Line>) {
    let mut text = Vec::new();
    let mut left_out = Vec::new();
    for line in lines {
        if line.print(&mut text).is_err() {
            left_out.push(line.clone());
        }
    }
    (text, left_out)
}
