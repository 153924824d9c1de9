//! Linking `log-run` beside itself: what makes an early answer safe.

use std::io::{self, ErrorKind, Read};

use bytes::Bytes;

use super::disk::{DiskFile, Mode, Reader, write_all};
use super::{Error, RUN_PREFIX, Recovered, SyncDirectory, Work};
use crate::core::event::RunId;
use crate::protocol::Site;
use crate::protocol::synclog::{Coverage, LineReader};

impl SyncDirectory {
    /// Links the run as `syncmux-run-INODE`, fsyncs the directory, and reads what it names. When
    /// this returns `Ok` the lines outlive the client's unlink and a power loss. After an error
    /// there is no link, unless there was one before.
    ///
    /// Where the file system has no hard links the run is copied. Then the original is kept open,
    /// so that its inode, which is the run's name, is not given to the next `log`.
    pub fn link(&self, run: RunId, site: &Site) -> Result<Coverage, Error> {
        let mut work = self.work();
        let link = link_name(run);
        let (file, is_new) = self.name(run, &link, &mut work)?;
        let covered = self
            .secure(run, &*file, &link, &mut work)
            .and_then(|()| read(&*file, site).map_err(Error::io("read", &self.at(&link))));
        let covered = covered.map(|(coverage, stop)| {
            if let Some(line) = stop {
                self.rescue(&link, line);
            }
            coverage
        });
        if covered.is_err() && is_new {
            work.originals.remove(&run);
            let _ = self.disk.remove(&link);
        }
        covered
    }

    /// Removes the link of a run: all that was acknowledged under it is confirmed or owed. A crash
    /// may bring it back, and then its lines are done again, which does no harm.
    pub fn drop_link(&self, run: RunId) -> Result<(), Error> {
        let mut work = self.work();
        work.originals.remove(&run);
        work.not_on_disk.remove(&run);
        let link = link_name(run);
        match self.disk.remove(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &self.at(&link))(error))
            }
            _ => Ok(()),
        }
    }

    /// The client takes a torn line for the end of the file, and forgets it and the lines of others
    /// behind it: they go into `log` once more. Nothing of this run is covered by them, so a
    /// failure costs no promise.
    fn rescue(&self, link: &str, from_line: usize) {
        match self.put_back_all(&[(link.to_owned(), from_line)]) {
            Ok(Recovered { lines, .. }) => {
                tracing::warn!(
                    lines,
                    "the client stops at a torn line: the rest was put back"
                );
            }
            Err(error) => tracing::warn!(%error, "the client stops at a torn line of log-run"),
        }
    }

    /// Gives the run its second name. Says whether that is new.
    fn name(
        &self,
        run: RunId,
        link: &str,
        work: &mut Work,
    ) -> Result<(Box<dyn DiskFile>, bool), Error> {
        let open = || {
            let file = self.disk.open(link, Mode::Read);
            file.map_err(Error::io("open", &self.at(link)))
        };
        let copy = |work: &mut Work| {
            let [original, copy] = self.copy(run, link)?;
            work.originals.insert(run, original);
            Ok((copy, true))
        };
        if work.not_on_disk.contains(&run) {
            return copy(work);
        }
        match self.disk.hard_link("log-run", link) {
            // The client may have unlinked one run and begun the next since the lookup.
            Ok(()) => match open().map(|file| (is(&*file, run), file)) {
                Ok((true, file)) => Ok((file, true)),
                other => {
                    let _ = self.disk.remove(link);
                    Err(other.err().unwrap_or(Error::Changed { run }))
                }
            },
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let file = open()?;
                if is(&*file, run) || work.originals.contains_key(&run) {
                    Ok((file, false))
                } else {
                    Err(Error::InTheWay {
                        path: self.at(link),
                    })
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::Changed { run }),
            Err(error) if without_links(&error) => copy(work),
            Err(error) => Err(Error::io("link", &self.at("log-run"))(error)),
        }
    }

    /// The original and its copy, which has its name but whose name is not fsynced.
    fn copy(&self, run: RunId, link: &str) -> Result<[Box<dyn DiskFile>; 2], Error> {
        let log_run = self.at("log-run");
        let original = self.disk.open("log-run", Mode::Read);
        let original = original.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::Changed { run },
            _ => Error::io("open", &log_run)(error),
        })?;
        if !is(&*original, run) {
            return Err(Error::Changed { run });
        }
        wait_for_writers(&*original).map_err(Error::io("lock", &log_run))?;
        let (temp, copy) = self.create_temp("run")?;
        let copied = copy_all(&*original, &*copy)
            .and_then(|()| copy.sync())
            .and_then(|()| self.disk.rename(&temp, link));
        match copied {
            Ok(()) => Ok([original, copy]),
            Err(error) => {
                let _ = self.disk.remove(&temp);
                Err(Error::io("copy", &log_run)(error))
            }
        }
    }

    /// Everything on disk: the last writer's lines, then the name.
    fn secure(
        &self,
        run: RunId,
        file: &dyn DiskFile,
        link: &str,
        work: &mut Work,
    ) -> Result<(), Error> {
        let path = self.at(link);
        wait_for_writers(file).map_err(Error::io("lock", &path))?;
        if let Err(error) = file.sync() {
            work.not_on_disk.insert(run);
            return Err(Error::io("fsync", &path)(error));
        }
        self.sync_names()
    }
}

fn link_name(run: RunId) -> String {
    format!("{RUN_PREFIX}{}", run.0)
}

fn copy_all(from: &dyn DiskFile, to: &dyn DiskFile) -> io::Result<()> {
    let mut from = Reader::new(from);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => write_all(to, &buffer[..len])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the run names, and how many lines the client reads, where it stops before the end.
fn read(file: &dyn DiskFile, site: &Site) -> io::Result<(Coverage, Option<usize>)> {
    let mut coverage = Coverage::default();
    let mut reader = LineReader::new();
    let mut buffer = vec![0; 64 << 10];
    let mut lines = 0;
    let mut file = Reader::new(file);
    loop {
        let len = match file.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            len => len?,
        };
        if len == 0 {
            return Ok((coverage, reader.mid_line().then_some(lines)));
        }
        let mut piece = Bytes::copy_from_slice(&buffer[..len]);
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(item)) => coverage.add(&item, site),
                Ok(None) => break,
                Err(torn) => return Ok((coverage, Some(torn.line as usize - 1))),
            }
        }
        lines += memchr::memchr_iter(b'\n', &buffer[..len]).count();
    }
}

/// As `sync_log_reader_begin` does: an imapd that had the lock when the client renamed `log` is
/// waited out, and all later ones see that it was renamed.
fn wait_for_writers(file: &dyn DiskFile) -> io::Result<()> {
    file.lock(false)?;
    file.unlock();
    Ok(())
}

fn is(file: &dyn DiskFile, run: RunId) -> bool {
    file.stat().is_ok_and(|stat| stat.id.1 == run.0)
}

/// The file system can't, or won't for this file (`fs.protected_hardlinks`).
fn without_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    [
        Errno::PERM,
        Errno::XDEV,
        Errno::MLINK,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
    ]
    .into_iter()
    .any(|no| errno == Some(no))
}
