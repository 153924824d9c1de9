//! A replica's bytes as whole replies, in bounded memory.

use bytes::Bytes;

use super::lane_connect::shown;
use super::memory::Share;
use super::spill::SpillWriter;
use crate::protocol::reply_reader::Line;
use crate::protocol::{Body, Piece, ReaderLimits, Reply, ReplyReader, StatusKind, Untagged};

/// What a line costs beside its bytes.
const LINE: u64 = 256;

/// A line that is shorter costs more on disk than in memory.
const SMALL: u64 = 1024;

/// So many times the memory that an answer should take ends the lane: where the disk takes no
/// more, or the lines are too many.
const MOST: u64 = 64;

/// Gathers untagged lines and the status line that ends them.
pub(super) struct Replies {
    reader: ReplyReader,
    untagged: Vec<Untagged>,
    /// Bytes of `untagged` in memory.
    held: u64,
    memory: u64,
    /// What is held beyond `memory`.
    share: Share,
    spill: SpillWriter,
    /// `* Fatal error: ...`, which a server says before it closes.
    last_words: Option<String>,
    /// The spill directory is full, which was said once.
    full: bool,
}

/// Why a replica's answers cannot be followed any further.
#[derive(Debug)]
pub(super) enum Broken {
    /// It said BYE.
    Bye(String),
    /// It said something that is no answer.
    Garbage(String),
}

impl Replies {
    /// Holds about `memory` bytes of one reply; what is beyond goes to `spill`.
    pub(super) fn new(memory: u64, spill: SpillWriter) -> Self {
        Self {
            reader: ReplyReader::new(ReaderLimits::default()),
            untagged: Vec::new(),
            held: 0,
            memory,
            share: spill.answers(),
            spill,
            last_words: None,
            full: false,
        }
    }

    /// The next reply that is complete, as far as `input` goes.
    pub(super) fn feed(&mut self, input: &mut Bytes) -> Result<Option<Reply>, Broken> {
        loop {
            let item = self
                .reader
                .feed(input)
                .map_err(|fatal| Broken::Garbage(format!("the replica's answer: {fatal}")))?;
            match item {
                None => {
                    self.spill_line();
                    self.check()?;
                    return Ok(None);
                }
                Some(Line::Untagged(line)) => {
                    self.keep(line);
                    self.check()?;
                }
                Some(Line::Continuation(_)) => {
                    return Err(Broken::Garbage(
                        "the replica asks for a continuation that nobody needs".to_owned(),
                    ));
                }
                Some(Line::Status(status)) if status.kind == StatusKind::Bye => {
                    return Err(Broken::Bye(format!(
                        "the replica says {}",
                        shown(&status.line())
                    )));
                }
                Some(Line::Status(status)) => {
                    self.held = 0;
                    self.share.set(0);
                    return Ok(Some(Reply {
                        untagged: std::mem::take(&mut self.untagged),
                        status,
                    }));
                }
            }
        }
    }

    /// Whether an answer has begun and is not complete.
    pub(super) fn partial(&self) -> bool {
        !self.untagged.is_empty() || self.reader.mid_line()
    }

    /// Whether there are lines that are only said in an answer.
    pub(super) fn unasked(&self) -> bool {
        let asked = |line: &Untagged| &line.kind[..] != b"FATAL";
        self.untagged.iter().any(asked)
    }

    /// What the replica said of its own end, if it did.
    pub(super) fn last_words(&self) -> Option<&str> {
        self.last_words.as_deref()
    }

    fn keep(&mut self, mut line: Untagged) {
        if &line.kind[..] == b"FATAL" {
            let said = line.raw.to_vec().unwrap_or_default();
            self.last_words = Some(shown(&said));
        }
        if self.held + line.raw.memory() > self.memory && line.raw.memory() > SMALL {
            self.spill_body(&mut line.raw);
        }
        self.held += LINE + line.raw.memory() + size_of_val(&line.guids[..]) as u64;
        self.untagged.push(line);
    }

    fn check(&mut self) -> Result<(), Broken> {
        let held = self.held + self.reader.held();
        self.share.set(held.saturating_sub(self.memory));
        if held <= self.memory || (held <= self.memory.saturating_mul(MOST) && self.share.fits()) {
            return Ok(());
        }
        let lines = self.untagged.len();
        Err(Broken::Garbage(format!(
            "the replica's answer has {lines} lines so far and is too large for memory"
        )))
    }

    /// Spills what there is of a line that is still arriving.
    fn spill_line(&mut self) {
        // In small pieces it would cost more there than here.
        if self.held + self.reader.held() <= self.memory || self.reader.spillable() <= SMALL {
            return;
        }
        let spill = &mut self.spill;
        let spilled = self
            .reader
            .spill(&mut |pieces| spill.append(pieces).map_err(std::io::Error::other));
        self.note(spilled);
    }

    fn spill_body(&mut self, body: &mut Body) {
        let pieces: Option<Vec<Bytes>> = body
            .pieces()
            .iter()
            .map(|piece| match piece {
                Piece::Memory(bytes) => Some(bytes.clone()),
                Piece::Spilled(_) => None,
            })
            .collect();
        // Where a piece is spilled already, the small rest of the line may stay.
        let Some(pieces) = pieces else { return };
        match self.spill.append(&pieces) {
            Ok(spilled) => {
                *body = Body::new();
                body.push_spilled(spilled);
            }
            Err(error) => self.note(Err(std::io::Error::other(error))),
        }
    }

    /// An answer cannot be refused as a command can: what does not fit on disk stays in memory.
    fn note(&mut self, spilled: std::io::Result<()>) {
        if let Err(error) = spilled
            && !std::mem::replace(&mut self.full, true)
        {
            tracing::error!(%error, "a large answer of the replica stays in memory");
        }
    }
}
