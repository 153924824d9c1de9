//! What does not fit into memory: unlinked temporary files with a limit for all of them, and the
//! writing of a [`Body`] that may lie there.
//!
//! Each session and each lane has a [`SpillWriter`] of its own, so that a file dies with the
//! things of one session and its space is really free then. The limit counts what the files hold
//! on disk, not what is still wanted of it: that is what fills the disk.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::memory::{Budget, Share};
use crate::protocol::{Body, Piece, Spilled};

/// A file takes no more stretches once it holds this much, or the [`FILES`]th part of the limit
/// where that is more; one stretch may be longer.
const SEGMENT: u64 = 16 * 1024 * 1024;

/// Descriptors are few (1,024 by default): full files are not more than this.
const FILES: u64 = 256;

/// How much of a spilled stretch is in memory at once while it is written out.
const CHUNK: u64 = 256 * 1024;

/// So many pieces are written at once.
const AT_ONCE: usize = 64;

/// Memory for answers that are large and can't be spilled: bytes, over all sessions and lanes.
const ANSWERS: u64 = 128 * 1024 * 1024;

/// The spill directory and how full it is.
#[derive(Debug)]
pub struct Spill {
    directory: PathBuf,
    limit: u64,
    used: AtomicU64,
    held: AtomicU64,
    answers: Arc<Budget>,
}

/// Why something could not be spilled.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The limit is reached.
    #[error("the spill directory holds {used} bytes and may hold {limit}")]
    Full {
        /// Bytes in it.
        used: u64,
        /// Bytes it may hold.
        limit: u64,
    },
    /// The file system refuses.
    #[error("cannot write to a temporary file in {}: {source}", directory.display())]
    Io {
        /// The spill directory.
        directory: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

/// Appends to spill files on behalf of one session or lane.
#[derive(Debug)]
pub struct SpillWriter {
    spill: Arc<Spill>,
    /// Lives for as long as somebody wants a stretch of it.
    segment: Weak<Segment>,
    at: u64,
}

/// The lease of one stretch.
#[derive(Debug)]
struct Stretch {
    segment: Arc<Segment>,
    len: u64,
    /// It is part of a complete command: see [`Spill::held`].
    complete: AtomicBool,
}

/// One file. Every stretch in it holds on to it; the last one gives the space back.
#[derive(Debug)]
struct Segment {
    spill: Arc<Spill>,
    file: Arc<File>,
    held: AtomicU64,
}

impl Spill {
    /// Spills into `directory`, `limit` bytes at most. Tries it out: a directory that takes no
    /// file is found at start and not with the first large message.
    pub fn new(directory: &Path, limit: u64) -> Result<Arc<Self>, SpillError> {
        let spill = Arc::new(Self {
            directory: directory.to_owned(),
            limit,
            used: AtomicU64::new(0),
            held: AtomicU64::new(0),
            answers: Budget::new(ANSWERS),
        });
        spill.create()?;
        Ok(spill)
    }

    /// Bytes on disk.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that there may be.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of complete commands: of what lies here, that which the core holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts what of this body is spilled among [`Self::held`], until it is dropped.
    pub fn complete(body: &Body) {
        for piece in body.pieces() {
            if let Piece::Spilled(spilled) = piece
                && let Some(stretch) = spilled.lease.downcast_ref::<Stretch>()
                && !stretch.complete.swap(true, Ordering::Relaxed)
            {
                let held = &stretch.segment.spill.held;
                held.fetch_add(stretch.len, Ordering::Relaxed);
            }
        }
    }

    /// A writer with a file of its own.
    #[must_use]
    pub fn writer(self: &Arc<Self>) -> SpillWriter {
        SpillWriter {
            spill: Arc::clone(self),
            segment: Weak::new(),
            at: 0,
        }
    }

    fn create(&self) -> Result<File, SpillError> {
        tempfile::tempfile_in(&self.directory).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> SpillError {
        SpillError::Io {
            directory: self.directory.clone(),
            source,
        }
    }

    /// Takes `len` bytes of the limit.
    fn take(&self, len: u64) -> Result<(), SpillError> {
        let take = |used: u64| used.checked_add(len).filter(|after| *after <= self.limit);
        match self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        {
            Ok(_) => Ok(()),
            Err(used) => Err(SpillError::Full {
                used,
                limit: self.limit,
            }),
        }
    }
}

impl SpillWriter {
    /// Appends `pieces` as one stretch. Blocks for as long as the page cache takes to swallow
    /// them; callers spill in steps of their read buffer, so this stays short.
    pub fn append(&mut self, pieces: &[Bytes]) -> Result<Spilled, SpillError> {
        let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.spill.take(len)?;
        let full = SEGMENT.max(self.spill.limit / FILES);
        let segment = match self.segment.upgrade() {
            Some(segment) if self.at < full => segment,
            _ => match self.open() {
                Ok(segment) => segment,
                Err(error) => {
                    self.spill.used.fetch_sub(len, Ordering::Relaxed);
                    return Err(error);
                }
            },
        };
        segment.held.fetch_add(len, Ordering::Relaxed);
        let offset = self.at;
        // A stretch that failed half-way leaves a hole: the next one begins behind it.
        self.at += len;
        let mut at = offset;
        for piece in pieces {
            segment
                .file
                .write_all_at(piece, at)
                .map_err(|source| self.spill.failed(source))?;
            at += piece.len() as u64;
        }
        Ok(Spilled {
            file: Arc::clone(&segment.file),
            offset,
            len,
            lease: Arc::new(Stretch {
                segment,
                len,
                complete: AtomicBool::new(false),
            }),
        })
    }

    /// For what of a large answer stays in memory.
    pub(super) fn answers(&self) -> Share {
        self.spill.answers.share()
    }

    fn open(&mut self) -> Result<Arc<Segment>, SpillError> {
        let segment = Arc::new(Segment {
            spill: Arc::clone(&self.spill),
            file: Arc::new(self.spill.create()?),
            held: AtomicU64::new(0),
        });
        self.segment = Arc::downgrade(&segment);
        self.at = 0;
        Ok(segment)
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        if *self.complete.get_mut() {
            let held = &self.segment.spill.held;
            held.fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let held = self.held.load(Ordering::Relaxed);
        self.spill.used.fetch_sub(held, Ordering::Relaxed);
    }
}

/// Writes `body`, reading spilled pieces in chunks. Does not flush.
pub async fn write_body<W>(to: &mut W, body: &Body) -> std::io::Result<()>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut writing = Writing::new(body);
    while writing.step(to).await? {}
    Ok(())
}

/// A body that is being written. What is in memory goes out from where it lies, many pieces at
/// once.
pub(super) struct Writing<'a> {
    pieces: &'a [Piece],
    /// What of the first piece is written already.
    done: usize,
    /// What was read from disk last; its memory is used again.
    chunk: Vec<u8>,
}

impl<'a> Writing<'a> {
    pub(super) fn new(body: &'a Body) -> Self {
        let pieces = body.pieces();
        Writing {
            pieces,
            done: 0,
            chunk: Vec::new(),
        }
    }

    /// Writes some of it: as much as goes out at once, or a chunk of a spilled piece. Returns whether there
    /// may be more. Does not flush.
    pub(super) async fn step<W>(&mut self, to: &mut W) -> std::io::Result<bool>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.pieces) {
            let Piece::Memory(bytes) = piece else { break };
            let done = if count == 0 { self.done } else { 0 };
            *slice = IoSlice::new(&bytes[done..]);
            count += 1;
        }
        if count > 0 {
            let written = to.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        } else if let Some((Piece::Spilled(spilled), rest)) = self.pieces.split_first() {
            self.read(spilled).await?;
            to.write_all(&self.chunk).await?;
            self.done += self.chunk.len();
            if self.done as u64 >= spilled.len {
                (self.pieces, self.done) = (rest, 0);
            }
        }
        Ok(!self.pieces.is_empty())
    }

    /// Reads the next chunk of the first piece.
    async fn read(&mut self, spilled: &Spilled) -> std::io::Result<()> {
        let file = Arc::clone(&spilled.file);
        let done = self.done as u64;
        let offset = spilled.offset + done;
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.resize(CHUNK.min(spilled.len.saturating_sub(done)) as usize, 0);
        let read = move || file.read_exact_at(&mut chunk, offset).map(|()| chunk);
        let read = tokio::task::spawn_blocking(read).await;
        self.chunk = read.map_err(std::io::Error::other)??;
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        self.done += written;
        while let Some((Piece::Memory(bytes), rest)) = self.pieces.split_first()
            && self.done >= bytes.len()
        {
            self.done -= bytes.len();
            self.pieces = rest;
        }
    }
}

/// The whole of a body that may be spilled, for tests and for small bodies.
pub async fn collect(body: &Body) -> std::io::Result<Vec<u8>> {
    let mut all = std::io::Cursor::new(Vec::new());
    write_body(&mut all, body).await?;
    Ok(all.into_inner())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn spill(limit: u64) -> Arc<Spill> {
        Spill::new(&std::env::temp_dir(), limit).expect("a temporary directory")
    }

    #[tokio::test]
    async fn what_was_spilled_comes_back_in_order() {
        let spill = spill(10_000_000);
        let mut writer = spill.writer();
        let large = Bytes::from(vec![7; 600_000]);
        let mut body = Body::from("a");
        body.push_spilled(writer.append(&[Bytes::from("bc"), large.clone()]).unwrap());
        body.push_spilled(writer.append(&[Bytes::from("d")]).unwrap());
        body.push(Bytes::from("e"));
        let expected = [b"abc".as_slice(), &large, b"de"].concat();
        assert_eq!(collect(&body).await.unwrap(), expected);
    }

    /// A wire that takes a few bytes at a time, of several pieces at once.
    #[tokio::test]
    async fn pieces_go_out_whole_whatever_is_taken_at_once() {
        let spill = spill(10_000_000);
        let mut body = Body::new();
        for n in 0..500u16 {
            let text = n.to_string().repeat(usize::from(n % 7));
            match n % 50 {
                13 => body.push_spilled(spill.writer().append(&[Bytes::from("disk")]).unwrap()),
                _ => body.push(Bytes::from(text)),
            }
        }
        let (mut here, mut there) = tokio::io::duplex(11);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            there.read_to_end(&mut all).await.map(|_| all)
        });
        write_body(&mut here, &body).await.unwrap();
        drop(here);
        let expected = collect(&body).await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), expected);
        assert_eq!(expected.len() as u64, body.len());
    }

    #[test]
    fn the_limit_holds_and_space_comes_back_with_the_last_handle() {
        let spill = spill(1000);
        let mut writer = spill.writer();
        let first = writer.append(&[Bytes::from(vec![0; 600])]).unwrap();
        let full = writer.append(&[Bytes::from(vec![0; 600])]);
        assert!(matches!(full, Err(SpillError::Full { used: 600, .. })));
        let again = first.clone();
        drop(first);
        assert_eq!(spill.used(), 600);
        drop(again);
        // Although the writer is still there: a session that waits for its next command must not
        // keep the space of the last one.
        assert_eq!(spill.used(), 0);
        drop(writer.append(&[Bytes::from(vec![0; 600])]).unwrap());
        assert_eq!(spill.used(), 0);
    }

    #[test]
    fn only_complete_commands_count_as_held() {
        let spill = spill(1000);
        let mut writer = spill.writer();
        let stretch = writer.append(&[Bytes::from(vec![0; 600])]).unwrap();
        assert_eq!((spill.used(), spill.held()), (600, 0));
        let mut body = Body::new();
        body.push_spilled(stretch.clone());
        Spill::complete(&body);
        Spill::complete(&body);
        assert_eq!(spill.held(), 600);
        drop(body);
        drop(stretch);
        assert_eq!((spill.used(), spill.held()), (0, 0));
    }

    #[test]
    fn a_directory_that_takes_no_file_is_found_at_start() {
        let missing = Spill::new(Path::new("/nonexistent/spill"), 1);
        assert!(matches!(missing, Err(SpillError::Io { .. })));
    }
}
