//! Collects the bytes of a body that is still arriving, and hands what it holds to a spill file.

use std::io;

use bytes::{Bytes, BytesMut};

use super::body::{Body, Piece, Spilled};

/// Pieces below this many bytes are copied together, so that a peer that sends a byte at a time
/// costs no more memory than one that does not.
const SMALL: usize = 1024;

/// The copied pieces are handed on when there are this many bytes of them.
const TAIL: usize = 16 * 1024;

/// A body under construction.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    body: Body,
    tail: BytesMut,
    /// Bytes in memory, the tail included.
    memory: u64,
}

impl Gather {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.memory += bytes.len() as u64;
        if bytes.len() >= SMALL {
            self.settle();
            self.body.push(bytes);
            return;
        }
        self.tail.extend_from_slice(&bytes);
        if self.tail.len() >= TAIL {
            self.settle();
        }
    }

    pub(crate) fn push_slice(&mut self, bytes: &[u8]) {
        self.memory += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
    }

    /// Bytes held in memory.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    /// Begins anew, in the same buffer.
    pub(crate) fn clear(&mut self) {
        self.body.take_pieces();
        self.tail.clear();
        self.memory = 0;
    }

    /// The complete body, compacted; begins anew.
    pub(crate) fn finish(&mut self) -> Body {
        if self.body.is_empty() && self.tail.len() < TAIL {
            // A small command: it gets its own memory, and the buffer stays.
            let body = Bytes::copy_from_slice(&self.tail).into();
            self.clear();
            return body;
        }
        self.settle();
        self.memory = 0;
        let mut body = std::mem::take(&mut self.body);
        body.compact();
        body
    }

    /// All of it as a body, to be spilled.
    fn settled(&mut self) -> &mut Body {
        self.settle();
        &mut self.body
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.body.push(self.tail.split().freeze());
        }
    }
}

/// What writes to the spill file: takes bytes in order, returns the one stretch that holds them.
pub type Write<'a> = dyn FnMut(&[Bytes]) -> io::Result<Spilled> + 'a;

/// Moves what `gathers` and `bodies` hold in memory to a spill file with one call of `write`.
/// Where that fails nothing has changed.
pub(crate) fn spill(
    gathers: &mut [&mut Gather],
    bodies: &mut [&mut Body],
    write: &mut Write<'_>,
) -> io::Result<()> {
    let all: Vec<&mut Body> = gathers
        .iter_mut()
        .map(|gather| gather.settled())
        .chain(bodies.iter_mut().map(|body| &mut **body))
        .collect();
    let in_memory = |piece: &Piece| match piece {
        Piece::Memory(bytes) => Some(bytes.clone()),
        Piece::Spilled(_) => None,
    };
    let run: Vec<Bytes> = all
        .iter()
        .flat_map(|body| body.pieces().iter().filter_map(in_memory))
        .collect();
    let total: u64 = run.iter().map(|bytes| bytes.len() as u64).sum();
    if total == 0 {
        return Ok(());
    }
    let whole = write(&run)?;
    if whole.len != total {
        return Err(io::Error::other("the spill file took another length"));
    }
    let mut offset = whole.offset;
    for body in all {
        let mut stretch = 0;
        let mut place = |body: &mut Body, len: &mut u64| {
            if *len > 0 {
                let spilled = Spilled {
                    offset,
                    len: *len,
                    ..whole.clone()
                };
                body.push_spilled(spilled);
                offset += *len;
                *len = 0;
            }
        };
        for piece in body.take_pieces() {
            match piece {
                Piece::Memory(bytes) => stretch += bytes.len() as u64,
                Piece::Spilled(spilled) => {
                    place(body, &mut stretch);
                    body.push_spilled(spilled);
                }
            }
        }
        place(body, &mut stretch);
    }
    for gather in gathers {
        gather.memory = 0;
    }
    Ok(())
}
