//! A replica's bytes as whole replies, in bounded memory.

use bytes::Bytes;

use super::handshake::shown;
use super::memory::Share;
use super::spill::SpillWriter;
use super::wire::{REMARKS, is_remark};
use crate::protocol::reply_reader::Line;
use crate::protocol::{
    Body, Dialect, Piece, ReaderLimits, Reply, ReplyReader, StatusKind, Untagged,
};

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
    dialect: Dialect,
    untagged: Vec<Untagged>,
    /// Remarks since the last answer.
    remarks: usize,
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
    pub(super) fn new(memory: u64, spill: SpillWriter, dialect: Dialect) -> Self {
        Self {
            reader: ReplyReader::new(ReaderLimits::default()).speaking(dialect),
            dialect,
            untagged: Vec::new(),
            remarks: 0,
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
                Some(Line::Untagged(line)) if is_remark(self.dialect, &line) => {
                    let said = line.raw.to_vec().unwrap_or_default();
                    tracing::info!(said = shown(&said), "the replica remarks");
                    self.remarks += 1;
                    if self.remarks > REMARKS {
                        let why = "the replica's remarks do not end".to_owned();
                        return Err(Broken::Garbage(why));
                    }
                }
                // It has not understood what the next tag was: there will be no answer.
                Some(Line::Untagged(line))
                    if self.dialect == Dialect::Imap && &line.kind[..] == b"BAD" =>
                {
                    let said = line.raw.to_vec().unwrap_or_default();
                    let why = format!("the replica says {}", shown(&said));
                    return Err(Broken::Garbage(why));
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
                    self.remarks = 0;
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
        // Only a greeting's are asked for, and those of APPLY CAPABILITIES in it.
        line.words = Vec::new();
        if self.held + line.raw.memory() > self.memory && line.raw.memory() > SMALL {
            self.spill_body(&mut line.raw);
        }
        self.held += LINE + line.memory();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use super::*;
    use crate::io::spill::Spill;

    const MEMORY: u64 = 1000;
    const LINE: &[u8] = b"* SEEN %(USERID joe UNIQUEID abc)\r\n";

    fn spill(limit: u64) -> Arc<Spill> {
        Spill::new(&std::env::temp_dir(), limit).unwrap()
    }

    fn feed(replies: &mut Replies, text: &[u8]) -> Result<Option<Reply>, Broken> {
        replies.feed(&mut Bytes::copy_from_slice(text))
    }

    fn is_too_large(result: &Result<Option<Reply>, Broken>) -> bool {
        matches!(result, Err(Broken::Garbage(why)) if why.ends_with("too large for memory"))
    }

    #[test]
    fn an_answer_of_more_lines_than_memory_takes_is_not_read_on() {
        let mut replies = Replies::new(MEMORY, spill(1 << 20).writer(), Dialect::Csync);
        let mut most = 0;
        let broken = (0..10_000).map(|_| feed(&mut replies, LINE)).find(|done| {
            most += 1;
            done.is_err()
        });
        assert!(is_too_large(&broken.unwrap()));
        assert!(most < MEMORY * MOST / 256, "{most}");
    }

    #[test]
    fn lines_of_words_are_bounded_as_well() {
        let words = format!("* X{}\r\n", " a".repeat(30_000));
        let name = format!("* MAILBOX %(UNIQUEID {})\r\n", "u".repeat(8000));
        let enabled = format!("* ENABLED ({}b)\r\n", "a ".repeat(30_000));
        for line in [words, name, enabled] {
            let spill = spill(1 << 30);
            let mut replies = Replies::new(MEMORY, spill.writer(), Dialect::Csync);
            for _ in 0..MEMORY {
                if feed(&mut replies, line.as_bytes()).is_err() {
                    break;
                }
            }
            let one = |line: &Untagged| {
                let words: usize = line.words.iter().map(|word| word.len() + 32).sum();
                let names = line.mailbox.iter().chain(&line.uniqueid).map(Bytes::len);
                line.raw.memory() + (words + names.sum::<usize>()) as u64
            };
            let kept: u64 = replies.untagged.iter().map(one).sum();
            assert!(kept <= MEMORY * (MOST + 10), "{kept}: {:.20}", line);
        }
    }

    #[test]
    fn all_large_answers_together_are_bounded() {
        let spill = spill(1 << 20);
        let mut others = spill.writer().answers();
        others.set(u64::from(u32::MAX));
        let mut replies = Replies::new(MEMORY, spill.writer(), Dialect::Csync);
        // What any answer may take does not depend on others.
        assert!(feed(&mut replies, LINE).unwrap().is_none());
        let broken = (0..100).map(|_| feed(&mut replies, LINE));
        assert!(is_too_large(&broken.take(10).find(Result::is_err).unwrap()));
        drop(replies);
        // With the end of an answer, or of its lane, its part of that memory is free again.
        others.set(1);
        let mut replies = Replies::new(MEMORY, spill.writer(), Dialect::Csync);
        for _ in 0..20 {
            for _ in 0..20 {
                assert!(feed(&mut replies, LINE).unwrap().is_none());
            }
            assert!(replies.partial() && replies.held > MEMORY);
            let reply = feed(&mut replies, b"OK success\r\n").unwrap().unwrap();
            assert_eq!((reply.untagged.len(), replies.held), (20, 0));
        }
    }

    #[test]
    fn one_line_without_end_goes_to_disk_and_where_that_is_full_no_further() {
        let header = b"* MESSAGE %{default 0101010101010101010101010101010101010101 50000000}\r\n";
        for (room, most) in [(1 << 30, 1000), (0, MEMORY * MOST / 512)] {
            let spill = spill(room);
            let mut replies = Replies::new(MEMORY, spill.writer(), Dialect::Csync);
            assert!(feed(&mut replies, header).unwrap().is_none());
            let mut pieces = 0;
            let broken = (0..1000).map(|_| feed(&mut replies, &[b'x'; 512]));
            let broken = broken.inspect(|_| pieces += 1).find(Result::is_err);
            assert!(pieces <= most, "{pieces}");
            assert_eq!(broken.as_ref().is_some_and(is_too_large), room == 0);
            assert!(replies.reader.held() <= MEMORY * (MOST + 1));
        }
    }
}
