//! What a replica would say of a mailbox after an APPLY MAILBOX: the line `* MAILBOX %(...)`,
//! made from the command's own fields while it is scanned (Cyrus's `sync_cache` in
//! `sync_support.c` keeps the same for its client).

use bytes::Bytes;

use super::print::astring;
use super::scan::{List, LiteralForm, Text, Token};

/// A longer line is not made: nothing is known of such a mailbox.
const MAX_STATE: usize = 64 << 10;

/// As much of the buffer is kept for the next line.
const KEPT: usize = 4 << 10;

/// Fields that are not the mailbox's state: its messages, and what the sender believed before.
const NOT_STATE: [&[u8]; 4] = [b"RECORD", b"SINCE_MODSEQ", b"SINCE_CRC", b"SINCE_CRC_ANNOT"];

/// The line under construction.
#[derive(Debug, Default)]
pub(crate) struct StateText {
    out: Vec<u8>,
    depth: usize,
    /// What comes is the first of its list.
    first: bool,
    /// The field that comes is left out.
    skip: bool,
    /// The field that comes is SYNC_CRC.
    crc: bool,
    /// There will be no line.
    lost: bool,
}

impl StateText {
    /// Takes the next token of the value.
    pub(crate) fn token(&mut self, token: &Token<'_>) {
        if self.lost {
            return;
        }
        match token {
            Token::Open(List::Pairs) if self.depth == 0 && self.out.is_empty() => {
                self.out.extend_from_slice(b"* MAILBOX %(");
                self.first = true;
                self.depth = 1;
            }
            _ if self.depth == 0 => self.lose(),
            Token::Open(list) => {
                self.depth += 1;
                self.put(match list {
                    List::Plain => b"(",
                    List::Pairs => b"%(",
                });
                self.first = true;
            }
            Token::Close => {
                self.depth -= 1;
                self.first = true;
                match self.depth {
                    0 => self.out.extend_from_slice(b")\r\n"),
                    _ => self.put(b")"),
                }
                self.first = false;
            }
            Token::Key(text) => {
                if self.depth == 1 {
                    let Some(key) = text.whole() else {
                        return self.lose();
                    };
                    self.skip = NOT_STATE.contains(&key);
                    self.crc = key == b"SYNC_CRC";
                }
                self.string(text);
            }
            Token::Text(text) => {
                // "A zero to make older Cyrus happy": a part of the changes only, whose CRC only
                // the replica knows.
                if self.depth == 1 && self.crc && text.whole() == Some(b"0") {
                    self.lose();
                }
                self.string(text);
            }
            Token::Nil => self.put(b"NIL"),
            Token::File { .. } | Token::FileEnd => self.lose(),
        }
        if self.out.len() > MAX_STATE {
            self.lose();
        }
    }

    /// Bytes held in memory.
    pub(crate) fn memory(&self) -> u64 {
        self.out.len() as u64
    }

    /// The whole line, where there is one. Begins anew.
    pub(crate) fn finish(&mut self) -> Option<Bytes> {
        let whole = !self.lost && self.depth == 0 && !self.out.is_empty();
        let made = whole.then(|| Bytes::copy_from_slice(&self.out));
        self.clear();
        made
    }

    /// Begins anew, in the same buffer.
    pub(crate) fn clear(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        out.shrink_to(KEPT);
        *self = StateText {
            out,
            ..StateText::default()
        };
    }

    fn lose(&mut self) {
        self.lost = true;
        self.out.clear();
    }

    fn put(&mut self, text: &[u8]) {
        if self.skip {
            return;
        }
        if !std::mem::take(&mut self.first) {
            self.out.push(b' ');
        }
        self.out.extend_from_slice(text);
    }

    fn string(&mut self, text: &Text<'_>) {
        if self.skip {
            return;
        }
        let Some(text) = text.whole() else {
            return self.lose();
        };
        self.put(b"");
        astring(&mut self.out, text, LiteralForm::Plain);
    }
}
