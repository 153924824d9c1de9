//! What the fuzz targets do with their input: one function each, called by cargo-fuzz
//! (`fuzz/fuzz_targets`) and by an ordinary test on the stable toolchain (`tests/fuzz_corpus.rs`).
//!
//! An input begins with a header of [`HEADER`] bytes, of which the bodies take flags and the seed
//! of cuts, so that bytes of a real conversation can be put behind it as they are.

#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod commands;
pub mod names;
pub mod replies;
pub mod session;
pub mod synclog;

use std::fs::File;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use syncmux::protocol::{Body, Piece, ReaderLimits, Spilled};

/// Flags, and three bytes of a seed.
pub const HEADER: usize = 4;

/// A fuzz target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by name.
pub const TARGETS: [Target; 5] = [
    ("commands", commands::run),
    ("replies", replies::run),
    ("session", session::run),
    ("names", names::run),
    ("synclog", synclog::run),
];

/// The header and the rest of an input.
pub fn split(data: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (header, rest) = data.split_at_checked(HEADER)?;
    let seed = u64::from_be_bytes([0, 0, 0, 0, 0, header[1], header[2], header[3]]);
    Some((header[0], seed, rest))
}

/// Cuts `bytes` by a seed; 0 leaves them whole.
pub fn pieces(bytes: &[u8], seed: u64) -> Vec<Bytes> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rest = Bytes::copy_from_slice(bytes);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let len = match seed {
            0 => rest.len(),
            _ if rng.bool() => rng.usize(1..=4),
            _ => rng.usize(1..=300),
        };
        pieces.push(rest.split_to(len.min(rest.len())));
    }
    pieces
}

/// What holds of a reader that has taken in a piece of `fed` bytes in all.
pub fn check(left: &Bytes, held: u64, spillable: u64, scanned: u64, fed: u64) {
    assert!(
        left.is_empty(),
        "bytes are left although nothing is complete"
    );
    // At most the bytes themselves and a table of what they name.
    assert!(held <= fed * 40 + 4096, "{held} of {fed}");
    assert!(spillable <= held);
    assert!(scanned <= fed, "a byte is looked at twice");
}

/// Limits that an input of a few hundred bytes can reach.
pub fn limits(small: bool) -> ReaderLimits {
    if !small {
        return ReaderLimits {
            text: 1 << 20,
            message: 1 << 20,
            ..ReaderLimits::default()
        };
    }
    ReaderLimits {
        text: 600,
        message: 100,
        files: 3,
        elements: 5,
        names: 4,
        depth: 4,
        line: 120,
    }
}

/// A spill file: a buffer behind offsets.
#[derive(Default)]
pub struct SpillFile(Vec<u8>);

impl SpillFile {
    pub fn write(&mut self, pieces: &[Bytes]) -> std::io::Result<Spilled> {
        static NOTHING: OnceLock<Arc<File>> = OnceLock::new();
        let file = NOTHING.get_or_init(|| Arc::new(File::open("/dev/null").unwrap()));
        let offset = self.0.len() as u64;
        pieces
            .iter()
            .for_each(|piece| self.0.extend_from_slice(piece));
        Ok(Spilled {
            file: Arc::clone(file),
            offset,
            len: self.0.len() as u64 - offset,
            lease: Arc::new(()),
        })
    }

    /// All of a body, spilled or not.
    pub fn read(&self, body: &Body) -> Bytes {
        let mut out = Vec::new();
        for piece in body.pieces() {
            match piece {
                Piece::Memory(bytes) => out.extend_from_slice(bytes),
                Piece::Spilled(spilled) => {
                    let from = spilled.offset as usize;
                    out.extend_from_slice(&self.0[from..from + spilled.len as usize]);
                }
            }
        }
        assert_eq!(out.len() as u64, body.len());
        out.into()
    }
}
