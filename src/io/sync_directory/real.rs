//! The real disk. Thin: whatever is decided is decided by who calls this.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, OFlags, RenameFlags, fcntl_getfl, fcntl_setfl, renameat_with};

use super::disk::{Disk, DiskFile, Mode, Stat};
use super::{Error, LOCK, lock};

/// The folder belongs to Cyrus's user, and we may be root: what is opened for writing must be in
/// it, not where a symbolic link leads.
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();

/// Of no consequence for plain files.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// File systems take the time of a change from a clock that stands still between two ticks of the
/// kernel, which are 10 ms apart at most.
const COARSE: Duration = Duration::from_millis(20);

/// The folder, held against other syncmux as long as this is there.
#[derive(Debug)]
pub(super) struct RealDisk {
    path: PathBuf,
    /// For fsync of names.
    dir: File,
    /// Its lock lasts as long as it is open.
    _lock: Option<File>,
    /// Cyrus and we must own the same files.
    owner: Owner,
}

/// The folder's uid and gid, and whether these are ours.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
    /// Files that we make get this owner by themselves.
    ours: bool,
}

#[derive(Debug)]
struct RealFile {
    file: File,
    owner: Owner,
}

impl RealDisk {
    /// Takes the folder.
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        let mut disk = Self::beside(path)?;
        disk._lock = Some(take(path, disk.owner)?);
        Ok(disk)
    }

    /// The same beside a syncmux that has it.
    pub(super) fn beside(path: &Path) -> Result<Self, Error> {
        let dir = File::open(path).map_err(Error::io("open", path))?;
        let meta = dir.metadata().map_err(Error::io("look at", path))?;
        if !meta.is_dir() {
            let source = io::Error::from(io::ErrorKind::NotADirectory);
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
        Ok(RealDisk {
            path: path.to_owned(),
            dir,
            _lock: None,
            owner,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Disk for RealDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn makes_files_of_cyrus(&self) -> bool {
        self.owner.ours
    }

    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true).mode(0o640);
        match mode {
            Mode::Read => options.custom_flags(NOFOLLOW | NONBLOCK),
            Mode::Append => options.append(true).custom_flags(NOFOLLOW),
            Mode::AppendNew => options.append(true).create_new(true).custom_flags(NOFOLLOW),
            Mode::New => options.write(true).create_new(true),
        };
        let file = options.open(self.at(name))?;
        // Neither a FIFO, at which we would wait for ever, nor what a symbolic link leads to, which
        // Cyrus itself may not be allowed to read.
        if mode == Mode::Read && !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a plain file"));
        }
        if mode == Mode::Append {
            self.owner.take_over(&file)?;
        }
        let owner = self.owner;
        Ok(Box::new(RealFile { file, owner }))
    }

    fn stat(&self, name: &str) -> io::Result<Stat> {
        std::fs::symlink_metadata(self.at(name)).map(|meta| stat(&meta))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name()));
        let names: io::Result<Vec<OsString>> = names.collect();
        Ok(names?
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect())
    }

    fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.at(from), self.at(to))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from), self.at(to))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.at(from), self.at(to));
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.at(name))
    }

    fn names_mark(&self) -> io::Result<Option<(i64, i64)>> {
        let meta = self.dir.metadata()?;
        let changed = meta.modified()?;
        // Either way: a clock that was set back must not make this wait until it has caught up.
        let age = match SystemTime::now().duration_since(changed) {
            Ok(age) => age,
            Err(error) => error.duration(),
        };
        Ok((age > COARSE).then(|| (meta.mtime(), meta.mtime_nsec())))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

impl DiskFile for RealFile {
    fn give(&self) -> io::Result<()> {
        self.owner.give(&self.file)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.file.metadata().map(|meta| stat(&meta))
    }

    fn lock(&self, exclusive: bool) -> io::Result<()> {
        lock::lock(&self.file, exclusive)
    }

    fn unlock(&self) {
        lock::unlock(&self.file);
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn append(&self, text: &[u8]) -> io::Result<usize> {
        (&self.file).write(text)
    }

    fn blank(&self, mut at: u64, mut len: u64) -> io::Result<()> {
        // A file that is open for appending takes writes nowhere else (BUGS in pwrite(2)).
        let flags = fcntl_getfl(&self.file)?;
        fcntl_setfl(&self.file, flags - OFlags::APPEND)?;
        let newlines = [b'\n'; 4096];
        let mut result = Ok(());
        while len > 0 && result.is_ok() {
            let part = len.min(newlines.len() as u64);
            result = self.file.write_all_at(&newlines[..part as usize], at);
            (at, len) = (at + part, len - part);
        }
        fcntl_setfl(&self.file, flags)?;
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn stat(meta: &std::fs::Metadata) -> Stat {
    Stat {
        id: (meta.dev(), meta.ino()),
        len: meta.len(),
        plain: meta.is_file(),
        modified: meta.modified().ok(),
    }
}

impl Owner {
    /// A file that is there already may have been made by root, and Cyrus could not take it. As root
    /// we can give it to Cyrus, but not what stands under another name too: that may be any file of
    /// this machine.
    fn take_over(self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        if self.ours || meta.uid() == self.uid {
            return Ok(());
        }
        if !meta.is_file() || meta.nlink() != 1 {
            return Err(io::Error::other(format!(
                "it belongs to uid {} and not to uid {}, as its folder does, so Cyrus can't take \
                 it, and it is no plain file of this one name: look what it is, and move it away",
                meta.uid(),
                self.uid
            )));
        }
        self.give(file)
    }

    fn give(self, file: &File) -> io::Result<()> {
        if self.ours {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))
    }
}

/// Whether a syncmux holds this folder.
pub(super) fn is_taken(directory: &Path) -> bool {
    let file = File::options()
        .read(true)
        .custom_flags(NOFOLLOW | NONBLOCK)
        .open(directory.join(LOCK));
    let taken = file.map(|file| file.try_lock_shared());
    matches!(taken, Ok(Err(std::fs::TryLockError::WouldBlock)))
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
