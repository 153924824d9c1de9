//! At start: what was acknowledged and may not have arrived goes back into `log`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, BufReader, ErrorKind};

use hashbrown::HashSet;

use super::append::LockedLog;
use super::disk::{Mode, Reader};
use super::text::{Shape, each_line};
use super::{Error, HELD, OWED, RUN_PREFIX, SyncDirectory, TEMP_PREFIX};

/// So much is gathered before it is written; a chunk is one write.
const CHUNK: usize = 8 << 20;
/// So many different lines are remembered (about 40 MB). Beyond that lines may be written twice,
/// which costs the client a question and nothing else.
const REMEMBERED: usize = 2_000_000;

/// What was put back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Links of runs and the owed file.
    pub files: usize,
    /// Lines written into `log`.
    pub lines: usize,
    /// Lines that stood there already, or came more than once.
    pub repeated: usize,
    /// Lines that the client can't have read, and would stop at: left out.
    pub unreadable: usize,
}

impl SyncDirectory {
    /// Puts the lines of every link left over and all owed lines back into `log`, each once, and
    /// removes these files. To be called before the first client is let in. Interrupted at any
    /// point it is done again, without harm.
    ///
    /// This is done for a link of the `log-run` that is still there too. It would seem needless, as
    /// the client does log-run again, but it may as well be about to unlink it: it has all its
    /// answers, the last of them early ones of the syncmux that died.
    ///
    /// Lines that a `syncmux shard` held back come last: they too are for the one client that works
    /// here now.
    pub fn recover(&self) -> Result<Recovered, Error> {
        self.recover_files(&[OWED, HELD])
    }

    /// The same, but for the held lines: these have their place before what stands in `log`.
    pub fn recover_but_held(&self) -> Result<Recovered, Error> {
        self.recover_files(&[OWED])
    }

    fn recover_files(&self, owed: &[&str]) -> Result<Recovered, Error> {
        let mut work = self.work();
        work.originals.clear();
        let left = self.left_over(owed)?;
        if left.is_empty() {
            return Ok(Recovered::default());
        }
        let done = self.put_back_all(&left)?;
        for (name, _) in &left {
            self.remove(name)?;
        }
        self.sync_names()?;
        Ok(done)
    }

    /// The lines of all these files, each from the given line on, counted from 0, stand in `log`,
    /// fsynced, when this returns `Ok`.
    pub(super) fn put_back_all(&self, files: &[(String, usize)]) -> Result<Recovered, Error> {
        let mut log = self.lock_log()?;
        // A torn last line does not count as being there, lacks it only its newline; and behind one
        // in the middle nothing would.
        log.mend()?;
        let mut seen = Seen::default();
        remember(&log, &mut seen).map_err(Error::io("read", &self.at("log")))?;
        let mut back = Back {
            directory: self,
            log,
            seen,
            chunk: Vec::new(),
            done: Recovered::default(),
        };
        for (name, from_line) in files {
            back.put(name, *from_line)?;
        }
        let Back {
            mut log,
            chunk,
            done,
            ..
        } = back;
        if !chunk.is_empty() {
            log.write(&chunk)?;
        }
        // Also where nothing was written: the lines that stood there may not be on disk yet.
        log.finish()?;
        Ok(done)
    }

    /// Links in the order of their last change, then these files. Files that were being made are
    /// removed: they were never counted on.
    fn left_over(&self, owed: &[&str]) -> Result<Vec<(String, usize)>, Error> {
        let mut links = Vec::new();
        let mut found = Vec::new();
        let names = self.disk.list();
        for name in names.map_err(Error::io("list", self.disk.path()))? {
            if name.starts_with(TEMP_PREFIX) {
                self.remove(&name)?;
            } else if let Some(at) = owed.iter().position(|owed| *owed == name) {
                found.push((at, name));
            } else if name.starts_with(RUN_PREFIX) {
                let stat = self.disk.stat(&name);
                let stat = stat.map_err(Error::io("look at", &self.at(&name)))?;
                links.push((stat.modified, name));
            }
        }
        links.sort();
        found.sort();
        let found = found.into_iter().map(|(_, name)| name);
        let names = links.into_iter().map(|(_, name)| name).chain(found);
        Ok(names.map(|name| (name, 0)).collect())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.disk
            .remove(name)
            .map_err(Error::io("remove", &self.at(name)))
    }
}

/// Lines that stand in `log` need not be put there again; so a start that was interrupted, or a
/// syncmux that is killed again and again, does not make it grow.
fn remember(log: &LockedLog<'_>, seen: &mut Seen) -> io::Result<()> {
    let from = BufReader::with_capacity(64 << 10, log.reader());
    each_line(from, |line, shape, _| {
        debug_assert_eq!(shape, Shape::Harmless, "it was mended");
        seen.insert(line);
        Ok(())
    })
}

/// Lines on their way back into `log`.
struct Back<'a> {
    directory: &'a SyncDirectory,
    log: LockedLog<'a>,
    seen: Seen,
    chunk: Vec<u8>,
    done: Recovered,
}

impl Back<'_> {
    fn put(&mut self, name: &str, from_line: usize) -> Result<(), Error> {
        let path = self.directory.at(name);
        let file = self.directory.disk.open(name, Mode::Read);
        let file = file.map_err(Error::io("open", &path))?;
        self.done.files += 1;
        let mut failed = None;
        let mut number = 0;
        let from = BufReader::with_capacity(64 << 10, Reader::new(&*file));
        let read = each_line(from, |line, shape, _| {
            number += 1;
            if number > from_line {
                self.take(line, shape).map_err(|error| {
                    failed = Some(error);
                    ErrorKind::Other
                })?;
            }
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => read.map_err(Error::io("read", &path)),
        }
    }

    fn take(&mut self, line: &[u8], shape: Shape) -> Result<(), Error> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if shape == Shape::Poison {
            self.done.unreadable += 1;
        } else if !line.is_empty() && !self.seen.insert(line) {
            self.done.repeated += 1;
        } else if !line.is_empty() {
            self.done.lines += 1;
            self.chunk.extend_from_slice(line);
            self.chunk.push(b'\n');
            if self.chunk.len() >= CHUNK {
                self.log.write(&self.chunk)?;
                self.chunk.clear();
            }
        }
        Ok(())
    }
}

/// Which lines came by, in bounded memory. Two independent hashes with secret keys: a line is not
/// taken for another one, by chance or by somebody's will.
#[derive(Default)]
struct Seen {
    keys: [RandomState; 2],
    hashes: HashSet<(u64, u64)>,
}

impl Seen {
    /// Whether it is new, as far as that is remembered.
    fn insert(&mut self, line: &[u8]) -> bool {
        let hash = (self.keys[0].hash_one(line), self.keys[1].hash_one(line));
        if self.hashes.len() < REMEMBERED {
            self.hashes.insert(hash)
        } else {
            !self.hashes.contains(&hash)
        }
    }
}
