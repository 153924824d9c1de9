//! Linking `log-run` beside itself: what makes an early answer safe.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::lock::{lock, unlock};
use super::{Error, RUN_PREFIX, Recovered, SyncDirectory, Work, open_plain};
use bytes::Bytes;

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
        let link = self.link_path(run);
        let (file, is_new) = self.name(run, &link, &mut work)?;
        let covered = self
            .secure(&file, &link)
            .and_then(|()| read(&file, site).map_err(Error::io("read", &link)));
        let covered = covered.map(|(coverage, stop)| {
            if let Some(line) = stop {
                self.rescue(&link, line);
            }
            coverage
        });
        if covered.is_err() && is_new {
            work.originals.remove(&run);
            let _ = std::fs::remove_file(&link);
        }
        covered
    }

    /// Removes the link of a run: all that was acknowledged under it is confirmed or owed. A crash
    /// may bring it back, and then its lines are done again, which does no harm.
    pub fn drop_link(&self, run: RunId) -> Result<(), Error> {
        let mut work = self.work();
        work.originals.remove(&run);
        let link = self.link_path(run);
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &link)(error))
            }
            _ => Ok(()),
        }
    }

    /// The client takes a torn line for the end of the file, and forgets it and the lines of others
    /// behind it: they go into `log` once more. Nothing of this run is covered by them, so a
    /// failure costs no promise.
    fn rescue(&self, link: &Path, from_line: usize) {
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

    fn link_path(&self, run: RunId) -> PathBuf {
        self.path.join(format!("{RUN_PREFIX}{}", run.0))
    }

    /// Gives the run its second name. Says whether that is new.
    fn name(&self, run: RunId, link: &Path, work: &mut Work) -> Result<(File, bool), Error> {
        let log_run = self.path.join("log-run");
        match (self.hard_link)(&log_run, link) {
            Ok(()) => {
                let file = open_plain(link).map_err(Error::io("open", link));
                // The client may have unlinked one run and begun the next since the lookup.
                match file.map(|file| (is(&file, run), file)) {
                    Ok((true, file)) => Ok((file, true)),
                    other => {
                        let _ = std::fs::remove_file(link);
                        Err(other.err().unwrap_or(Error::Changed { run }))
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let file = open_plain(link).map_err(Error::io("open", link))?;
                if is(&file, run) || work.originals.contains_key(&run) {
                    Ok((file, false))
                } else {
                    Err(Error::InTheWay {
                        path: link.to_owned(),
                    })
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::Changed { run }),
            Err(error) if without_links(&error) => {
                let (original, copy) = self.copy(run, &log_run, link)?;
                work.originals.insert(run, original);
                Ok((copy, true))
            }
            Err(error) => Err(Error::io("link", &log_run)(error)),
        }
    }

    /// The original and its copy, which has its name but is not fsynced.
    fn copy(&self, run: RunId, log_run: &Path, link: &Path) -> Result<(File, File), Error> {
        let mut original = open_plain(log_run).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::Changed { run },
            _ => Error::io("open", log_run)(error),
        })?;
        if !is(&original, run) {
            return Err(Error::Changed { run });
        }
        wait_for_writers(&original).map_err(Error::io("lock", log_run))?;
        let (temp, mut copy) = self.create_temp("run")?;
        let copied = std::io::copy(&mut original, &mut copy)
            .and_then(|_| copy.sync_all())
            .and_then(|()| std::fs::rename(&temp, link))
            .and_then(|()| copy.seek(SeekFrom::Start(0)));
        match copied {
            Ok(_) => Ok((original, copy)),
            Err(error) => {
                let _ = std::fs::remove_file(&temp);
                Err(Error::io("copy", log_run)(error))
            }
        }
    }

    /// Everything on disk: the last writer's lines, then the name.
    fn secure(&self, file: &File, link: &Path) -> Result<(), Error> {
        wait_for_writers(file).map_err(Error::io("lock", link))?;
        file.sync_all().map_err(Error::io("fsync", link))?;
        self.sync_names()
    }
}

/// What the run names, and how many lines the client reads, where it stops before the end.
fn read(mut file: &File, site: &Site) -> std::io::Result<(Coverage, Option<usize>)> {
    let mut coverage = Coverage::default();
    let mut reader = LineReader::new();
    let mut buffer = vec![0; 64 << 10];
    let mut lines = 0;
    file.seek(SeekFrom::Start(0))?;
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
fn wait_for_writers(file: &File) -> std::io::Result<()> {
    lock(file, false)?;
    unlock(file);
    Ok(())
}

fn is(file: &File, run: RunId) -> bool {
    file.metadata().is_ok_and(|meta| meta.ino() == run.0)
}

/// The file system can't, or won't for this file (`fs.protected_hardlinks`).
fn without_links(error: &std::io::Error) -> bool {
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
