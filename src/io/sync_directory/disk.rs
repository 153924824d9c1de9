//! The system calls of the sync directory, one method each: what a simulated disk must offer to
//! try a crash between any two of them (`tests/simulation`). The real ones are in `real.rs`.
//!
//! Names are those of files in the directory. A method does one thing, and after an error it has
//! done nothing; but a write may have come short, and after a failed fsync anything may be on disk.

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::SystemTime;

/// How a file is opened. Symbolic links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To be read; anything but a plain file is an error.
    Read,
    /// As Cyrus opens `log`, to be read as well.
    Append,
    /// The same for a file that must not be there yet.
    AppendNew,
    /// To be read and written from its beginning; it must not be there yet.
    New,
}

/// What stat says. Of a symbolic link it is the link's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The device and the inode: the same file has the same.
    pub id: (u64, u64),
    /// In bytes.
    pub len: u64,
    /// Neither a folder nor a link, pipe or the like.
    pub plain: bool,
    /// When its content last changed.
    pub modified: Option<SystemTime>,
}

/// The folder of one channel's `log`.
pub trait Disk: Debug + Send + Sync {
    /// Where it is, for messages.
    fn path(&self) -> &Path;
    /// Files that we make belong to the folder's owner by themselves.
    fn makes_files_of_cyrus(&self) -> bool;
    /// Opens or makes a file.
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>>;
    /// Looks at a name.
    fn stat(&self, name: &str) -> io::Result<Stat>;
    /// All names, in no order; what is no UTF-8 is not ours and left out.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file a second name; fails where that name is taken.
    fn hard_link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file another name, whose file is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// The same; fails where that name is taken.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// A mark that is another one after any name has changed. `None` where that can't be told, as a
    /// name has changed so lately that the next change might leave the same mark.
    fn names_mark(&self) -> io::Result<Option<(i64, i64)>>;
    /// Makes the names outlive a power loss, as they are now; says nothing about any file's content.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file; closing it gives its lock back.
pub trait DiskFile: Debug + Send + Sync {
    /// Gives it to the folder's owner: a file that belongs to anybody but Cyrus stops replication,
    /// as `sync_client` opens it for writing.
    fn give(&self) -> io::Result<()>;
    /// Looks at it.
    fn stat(&self) -> io::Result<Stat>;
    /// Waits for a lock as Cyrus takes it; an exclusive one needs a file opened for writing.
    fn lock(&self, exclusive: bool) -> io::Result<()>;
    /// Gives it back.
    fn unlock(&self);
    /// Reads from there on; 0 is the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// One write at the end of the file; says how much of it was taken.
    fn append(&self, text: &[u8]) -> io::Result<usize>;
    /// Puts newlines in the place of so many bytes.
    fn blank(&self, at: u64, len: u64) -> io::Result<()>;
    /// Cuts it off.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes its content outlive a power loss; says nothing about its name.
    fn sync(&self) -> io::Result<()>;
}

/// Writes all of it, in as many writes as that takes.
pub(super) fn write_all(file: &dyn DiskFile, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match file.append(text) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A file read from its beginning, or from anywhere.
pub(super) struct Reader<'a> {
    file: &'a dyn DiskFile,
    at: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a dyn DiskFile) -> Self {
        Self::from(file, 0)
    }

    pub(super) fn from(file: &'a dyn DiskFile, at: u64) -> Self {
        Reader { file, at }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buffer, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
