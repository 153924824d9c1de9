//! Cyrus's sync directory: links of the runs, lines put back into `log`, lines owed.
//!
//! Everything here blocks and is called from one thread. What is promised: a line that was
//! written stands fsynced in a file that the client or the next start will read; a function that
//! fails has changed nothing, but for what can be done twice without harm.
//!
//! One rule is easily broken from outside: Cyrus locks `log` by POSIX locks, which a process loses
//! when it closes *any* descriptor of that file. Nothing else in this program may open `log`,
//! `log-run` or a link of it.

mod ahead;
mod append;
pub mod disk;
mod error;
mod link;
mod lock;
mod owed;
mod real;
mod recover;
mod take;
mod text;
mod unfinished;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::disk::{Disk, DiskFile, Mode};
pub use ahead::LookedAt;
pub use error::Error;
pub use recover::Recovered;
pub use take::{ReadRun, TakenRun};
pub use unfinished::Unfinished;

use crate::core::event::RunId;

/// What a link of a run is called, before the run's inode.
const RUN_PREFIX: &str = "syncmux-run-";
/// Files that are being made; worthless after a crash.
const TEMP_PREFIX: &str = "syncmux-tmp-";
/// Lines that wait out a pause.
const OWED: &str = "syncmux-owed";
/// Lines of a channel that `syncmux shard` may not deal yet.
const HELD: &str = "syncmux-held";
/// The `log` of a client that is not there any more, while its lines are dealt again.
const BACK: &str = "syncmux-back";
/// Held while a syncmux works on this directory.
const LOCK: &str = "syncmux-lock";

/// The folder of one channel's `log`, held against other syncmux.
#[derive(Debug)]
pub struct SyncDirectory {
    disk: Box<dyn Disk>,
    /// Whoever works holds this: see the rule about POSIX locks above.
    work: Mutex<Work>,
    /// Stands in the names of our temporary files, where another process may have some too.
    temps: String,
    /// What is known of `log` since it was last locked.
    looked: Mutex<Option<Looked>>,
}

/// `log` as it was left. It is kept open, so that the next `log` can't get the same inode and be
/// taken for this one.
#[derive(Debug)]
struct Looked {
    _file: Arc<dyn DiskFile>,
    id: (u64, u64),
    /// Up to there are whole lines, none of which the client stops at.
    good: u64,
}

#[derive(Debug, Default)]
struct Work {
    /// Where a run could only be copied, its original is kept open, so that the next `log` can't
    /// get the same inode and be taken for this run.
    originals: HashMap<RunId, Box<dyn DiskFile>>,
    /// Runs of which an fsync failed: the next one would say that all is well, and nothing would be
    /// on disk. These are copied.
    not_on_disk: HashSet<RunId>,
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
        Ok(Self::on(Box::new(real::RealDisk::take(path)?)))
    }

    /// The same without taking it: a syncmux may have it, as Cyrus has. For appending and looking;
    /// what takes or puts back is for a folder in which nobody works ([`is_taken`]).
    ///
    /// [`is_taken`]: Self::is_taken
    pub fn beside(path: &Path) -> Result<Self, Error> {
        let mut directory = Self::on(Box::new(real::RealDisk::beside(path)?));
        directory.temps = format!("{}-", std::process::id());
        Ok(directory)
    }

    /// Whether a syncmux has taken this folder, where it is on the real disk.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        real::is_taken(self.path())
    }

    /// The same on a disk of the caller's.
    #[must_use]
    pub fn on(disk: Box<dyn Disk>) -> Self {
        SyncDirectory {
            disk,
            work: Mutex::default(),
            temps: String::new(),
            looked: Mutex::default(),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// The inode of `log-run`, where there is one.
    #[must_use]
    pub fn current_run(&self) -> Option<RunId> {
        let stat = self.disk.stat("log-run").ok();
        stat.filter(|stat| stat.plain).map(|stat| RunId(stat.id.1))
    }

    /// For threads that only need to know the current run.
    #[must_use]
    pub fn lookup(&self) -> RunLookup {
        RunLookup {
            log_run: self.at("log-run").into(),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        // Nothing is left half done that a later call would stumble over.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For messages.
    fn at(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.disk
            .sync_names()
            .map_err(Error::io("fsync", self.disk.path()))
    }

    /// Makes a file beside the others, with Cyrus as its owner.
    fn create_temp(&self, name: &str) -> Result<(String, Box<dyn DiskFile>), Error> {
        let name = format!("{TEMP_PREFIX}{}{name}", self.temps);
        // Left by a crash. Made anew and never opened: as root we follow nobody's symbolic link.
        let _ = self.disk.remove(&name);
        let file = self.disk.open(&name, Mode::New);
        let file = file.map_err(Error::io("create", &self.at(&name)))?;
        file.give()
            .map_err(Error::io("change the owner of", &self.at(&name)))?;
        Ok((name, file))
    }
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

#[cfg(test)]
mod tests;
