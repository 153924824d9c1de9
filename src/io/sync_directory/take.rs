//! Taking a channel's log over as its client does (`sync_log_reader_begin` and `sync_log_reader_end`
//! in Cyrus's `sync_log.c`), for `syncmux shard`; and the lines that it holds back.

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
        Ok(TakenRun { name, file, id })
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
    let _ = each_line(BufReader::with_capacity(64 << 10, &text[..]), |line, shape, len| {
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
    });
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
                    second: None,
                })
            })
            .collect();
    }
    let (first, second) = item.keys(site);
    vec![LogLine {
        text: line,
        first,
        second,
    }]
}

/// Whom a line concerns, where it can be read.
pub(super) fn keys_of(line: &[u8], site: &Site) -> Option<LogLine> {
    log_lines(&Bytes::copy_from_slice(line), site)
        .into_iter()
        .next()
}
