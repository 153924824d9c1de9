//! Cyrus's sync directory: links of the runs, lines put back into `log`, lines owed.
//!
//! Everything here blocks and is called from one thread. What is promised: a line that was
//! written stands fsynced in a file that the client or the next start will read; a function that
//! fails has changed nothing, but for what can be done twice without harm.
//!
//! One rule is easily broken from outside: Cyrus locks `log` by POSIX locks, which a process loses
//! when it closes *any* descriptor of that file. Nothing else in this program may open `log`,
//! `log-run` or a link of it.

mod append;
mod error;
mod link;
mod lock;
mod owed;
mod recover;
mod text;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::Error;
pub use recover::Recovered;

use crate::core::event::RunId;

/// What a link of a run is called, before the run's inode.
const RUN_PREFIX: &str = "syncmux-run-";
/// Files that are being made; worthless after a crash.
const TEMP_PREFIX: &str = "syncmux-tmp-";
/// Lines that wait out a pause.
const OWED: &str = "syncmux-owed";
/// Held while a syncmux works on this directory.
const LOCK: &str = "syncmux-lock";

/// The folder belongs to Cyrus's user, and we may be root: what is opened for writing must be in
/// it, not where a symbolic link leads.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Of no consequence for plain files.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// The folder of one channel's `log`, held against other syncmux.
#[derive(Debug)]
pub struct SyncDirectory {
    path: PathBuf,
    /// For fsync of names.
    dir: File,
    /// Its lock lasts as long as it is open.
    _lock: File,
    /// Cyrus and we must own the same files: the folder's uid and gid, and whether these are ours.
    owner: Owner,
    /// Whoever works holds this: see the rule about POSIX locks above.
    work: Mutex<Work>,
    /// [`std::fs::hard_link`], or what a test puts in its place.
    hard_link: fn(&Path, &Path) -> std::io::Result<()>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
    /// Files that we make get this owner by themselves.
    ours: bool,
}

#[derive(Debug, Default)]
struct Work {
    /// Where a run could only be copied, its original is kept open, so that the next `log` can't
    /// get the same inode and be taken for this run.
    originals: HashMap<RunId, File>,
}

/// Looks up which run the client works on. Cheap; may be used from any thread.
#[derive(Clone, Debug)]
pub struct RunLookup {
    log_run: Arc<Path>,
}

impl SyncDirectory {
    /// Takes the directory: fails where another syncmux holds it, or where files made here would
    /// not belong to Cyrus.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let dir = File::open(path).map_err(Error::io("open", path))?;
        let meta = dir.metadata().map_err(Error::io("look at", path))?;
        if !meta.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(Error::io("open", path)(source));
        }
        let euid = rustix::process::geteuid().as_raw();
        if euid != 0 && euid != meta.uid() {
            return Err(Error::Owner {
                path: path.to_owned(),
                owner: meta.uid(),
                euid,
            });
        }
        let owner = Owner {
            uid: meta.uid(),
            gid: meta.gid(),
            ours: euid == meta.uid(),
        };
        let lock = take(path, owner)?;
        Ok(SyncDirectory {
            path: path.to_owned(),
            dir,
            _lock: lock,
            owner,
            work: Mutex::default(),
            hard_link: |from, to| std::fs::hard_link(from, to),
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The inode of `log-run`, where there is one.
    #[must_use]
    pub fn current_run(&self) -> Option<RunId> {
        self.lookup().current()
    }

    /// For threads that only need to know the current run.
    #[must_use]
    pub fn lookup(&self) -> RunLookup {
        RunLookup {
            log_run: self.path.join("log-run").into(),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        // Nothing is left half done that a later call would stumble over.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.dir.sync_all().map_err(Error::io("fsync", &self.path))
    }

    /// Makes a file beside the others, with Cyrus as its owner.
    fn create_temp(&self, name: &str) -> Result<(PathBuf, File), Error> {
        let path = self.path.join(format!("{TEMP_PREFIX}{name}"));
        // Left by a crash. Made anew and never opened: as root we follow nobody's symbolic link.
        let _ = std::fs::remove_file(&path);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        self.owner
            .give(&file)
            .map_err(Error::io("change the owner of", &path))?;
        Ok((path, file))
    }
}

/// Opens a file of Cyrus's for reading: neither a FIFO, at which we would wait for ever, nor what
/// a symbolic link leads to, which Cyrus itself may not be allowed to read.
fn open_plain(path: &Path) -> std::io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(NOFOLLOW | NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::other("it is not a plain file"))
}

impl RunLookup {
    /// The inode of `log-run`, where there is one.
    #[must_use]
    pub fn current(&self) -> Option<RunId> {
        std::fs::symlink_metadata(&self.log_run)
            .ok()
            .filter(std::fs::Metadata::is_file)
            .map(|meta| RunId(meta.ino()))
    }
}

impl Owner {
    /// A file that belongs to anybody but Cyrus stops replication: `sync_client` opens it for
    /// writing.
    fn give(self, file: &File) -> std::io::Result<()> {
        if self.ours {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))
    }
}

/// Locks `syncmux-lock` and writes our process id into it.
fn take(directory: &Path, owner: Owner) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(NOFOLLOW)
        .mode(0o640)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).ok();
            let pid = pid.and_then(|text| text.trim().parse().ok());
            return Err(Error::Held {
                path: directory.to_owned(),
                pid,
            });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
    }
    owner
        .give(&file)
        .map_err(Error::io("change the owner of", &path))?;
    // Only for the other one's error message: a disk too full for it is no reason to stop.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests;
