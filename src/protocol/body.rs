//! Bytes in transit: a command, a message, a reply line, as pieces in memory or spilled to disk.

use std::fs::File;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::gather::{self, Write};

/// Bodies up to this many bytes are copied into one allocation of their own when they are
/// complete, so that a small command does not keep a whole read buffer alive.
const COMPACT: u64 = 32 * 1024;

/// A run of bytes made of pieces. Cloning is cheap: the pieces are shared.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pieces: Vec<Piece>,
    len: u64,
}

/// One piece of a [`Body`].
#[derive(Clone, Debug)]
pub enum Piece {
    /// Held in memory.
    Memory(Bytes),
    /// Written to a spill file by `io`.
    Spilled(Spilled),
}

/// A stretch of a spill file. Only `io` reads from or writes to the file; everybody else passes
/// the handle on. The space is free again when the last handle of the file is dropped.
#[derive(Clone, Debug)]
pub struct Spilled {
    /// The (unlinked) spill file.
    pub file: Arc<File>,
    /// Where the stretch begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// Released when the last clone of this stretch is dropped: `io` accounts for the spill
    /// space with it.
    pub lease: Arc<dyn std::any::Any + Send + Sync>,
}

impl Body {
    /// An empty body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `bytes`; adjoining pieces are not merged.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len() as u64;
            self.pieces.push(Piece::Memory(bytes));
        }
    }

    /// Appends a spilled stretch.
    pub fn push_spilled(&mut self, spilled: Spilled) {
        self.len += spilled.len;
        self.pieces.push(Piece::Spilled(spilled));
    }

    /// Appends all pieces of `other`.
    pub fn append(&mut self, other: Body) {
        self.len += other.len;
        self.pieces.extend(other.pieces);
    }

    /// Length in bytes, spilled pieces included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held in memory.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let memory = |piece: &Piece| match piece {
            Piece::Memory(bytes) => bytes.len() as u64,
            Piece::Spilled(_) => 0,
        };
        self.pieces.iter().map(memory).sum()
    }

    /// The pieces in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Takes the pieces out, leaving the body empty.
    pub fn take_pieces(&mut self) -> Vec<Piece> {
        self.len = 0;
        std::mem::take(&mut self.pieces)
    }

    /// Copies a small body into one allocation of its own; large or spilled ones stay as they are.
    pub fn compact(&mut self) {
        let in_memory = self
            .pieces
            .iter()
            .all(|piece| matches!(piece, Piece::Memory(_)));
        if self.len > COMPACT || !in_memory || self.pieces.is_empty() {
            return;
        }
        let mut whole = BytesMut::with_capacity(self.len as usize);
        for piece in &self.pieces {
            if let Piece::Memory(bytes) = piece {
                whole.put_slice(bytes);
            }
        }
        self.pieces = vec![Piece::Memory(whole.freeze())];
    }

    /// Moves what of it is in memory to a spill file; see [`super::CommandReader::spill`].
    ///
    /// # Errors
    /// Those of `write`; nothing has changed then.
    pub fn spill(&mut self, write: &mut Write<'_>) -> std::io::Result<()> {
        gather::spill(&mut [], &mut [self], write)
    }

    /// The whole body as one slice of memory, or `None` where a piece is spilled. Copies; meant
    /// for small bodies and tests.
    #[must_use]
    pub fn to_vec(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(self.len as usize);
        for piece in &self.pieces {
            match piece {
                Piece::Memory(bytes) => out.extend_from_slice(bytes),
                Piece::Spilled(_) => return None,
            }
        }
        Some(out)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let mut body = Body::new();
        body.push(bytes);
        body
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}
