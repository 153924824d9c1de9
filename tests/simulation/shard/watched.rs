//! A folder's disk, whose every call may be the last one of syncmux, or fail.

use std::io;
use std::path::Path;

use syncmux::io::sync_directory::disk::{Disk, DiskFile, Mode, Stat};

use super::Shared;

#[derive(Debug)]
pub(super) struct Watched(pub(super) Box<dyn Disk>, pub(super) Shared);

#[derive(Debug)]
struct WatchedFile(Box<dyn DiskFile>, Shared);

impl Disk for Watched {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn makes_files_of_cyrus(&self) -> bool {
        self.0.makes_files_of_cyrus()
    }

    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        self.1.enter()?;
        let file = self.0.open(name, mode)?;
        Ok(Box::new(WatchedFile(file, self.1.clone())))
    }

    fn stat(&self, name: &str) -> io::Result<Stat> {
        self.1.enter()?;
        self.0.stat(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.1.enter()?;
        self.0.list()
    }

    fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.enter()?;
        self.0.hard_link(from, to)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.enter()?;
        say!("rename {from} {to}");
        self.0.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.enter()?;
        self.0.rename_new(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.1.enter()?;
        say!("remove {name}");
        self.0.remove(name)
    }

    fn names_mark(&self) -> io::Result<Option<(i64, i64)>> {
        self.1.enter()?;
        self.0.names_mark()
    }

    fn sync_names(&self) -> io::Result<()> {
        self.1.enter()?;
        self.0.sync_names()
    }
}

impl DiskFile for WatchedFile {
    fn give(&self) -> io::Result<()> {
        self.1.enter()?;
        self.0.give()
    }

    fn stat(&self) -> io::Result<Stat> {
        self.1.enter()?;
        self.0.stat()
    }

    fn lock(&self, exclusive: bool) -> io::Result<()> {
        self.1.enter()?;
        self.0.lock(exclusive)
    }

    fn unlock(&self) {
        self.0.unlock();
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.enter()?;
        self.0.read_at(buffer, offset)
    }

    fn append(&self, text: &[u8]) -> io::Result<usize> {
        self.1.enter()?;
        say!("written: {:?}", String::from_utf8_lossy(text));
        let written = self.0.append(text);
        self.1.world().check();
        written
    }

    fn blank(&self, at: u64, len: u64) -> io::Result<()> {
        self.1.enter()?;
        self.0.blank(at, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // A write that came short, and can't be taken back either, is Cyrus's own trouble.
        let killed = self.1.world().dead;
        if killed {
            return Err(io::Error::other("killed"));
        }
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.enter()?;
        self.0.sync()
    }
}
