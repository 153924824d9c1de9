//! Reads what a replica sends (`sync_parse_response` in Cyrus's `sync_support.c` is the stock
//! reader), incrementally.
//!
//! Lines of the known kinds and everything that begins like a dlist are scanned as one; other
//! untagged lines (the banner, `* Fatal error: ...`) are free text up to the line's end.
//!
//! In IMAP a status has the tag of its command before it, and `* BYE Fatal error: ...` (`fatal` in
//! `imapd.c`) is what csync's `* Fatal error: ...` is: an end in the middle of something.

use std::io;

use bytes::{Buf, Bytes};

use super::command_reader::ReaderLimits;
use super::dialect::Dialect;
use super::facts::{Facts, Family, Field};
use super::fatal::Fatal;
use super::gather::Write;
use super::reply::{Status, StatusKind, Untagged};
use super::scan::{LiteralForm, Progress, Scanner};

/// One line of a replica.
#[derive(Clone, Debug)]
pub enum Line {
    /// `* KIND ...`
    Untagged(Untagged),
    /// `OK ...`, `NO ...`, `BAD ...` or `BYE ...`; also `* BYE ...`.
    Status(Status),
    /// `+ ...`: what follows `+ `, base64 as sent (a step of a SASL exchange).
    Continuation(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first word of a line.
    Word,
    /// The word behind a tag.
    Tagged,
    /// The word after `* `.
    Kind,
    /// Behind the space after a kind that is not known: what comes next decides.
    Peek,
    /// A dlist.
    Value,
    /// The rest of an untagged line of free text.
    Free,
    /// The rest of a status line.
    Text(StatusKind),
    /// The rest of a continuation.
    Continuation,
}

/// Reads a replica's lines. See the module.
#[derive(Debug)]
pub struct ReplyReader {
    limits: ReaderLimits,
    dialect: Dialect,
    /// In IMAP: so many statuses have come.
    answered: u64,
    state: State,
    /// Text that is being read: the first word, the kind, or the rest of a line.
    text: Vec<u8>,
    scanner: Scanner,
    facts: Facts,
    dead: Option<Fatal>,
}

/// Kinds that are dlists whatever comes first in them: what Cyrus's `sync_get*` and `sync_apply*`
/// answer with.
const KNOWN: [&[u8]; 10] = [
    b"MAILBOX",
    b"MISSING",
    b"MESSAGE",
    b"QUOTA",
    b"SEEN",
    b"LSUB",
    b"SIEVE",
    b"ANNOTATION",
    b"ENABLED",
    b"UNIQUEID",
];

/// Kinds that are free text whatever comes first in them.
const FREE: [&[u8]; 8] = [
    b"OK",
    b"NO",
    b"BAD",
    b"BYE",
    b"SASL",
    b"STARTTLS",
    b"COMPRESS",
    b"FATAL",
];

impl ReplyReader {
    /// A reader for a new connection, in csync. Of the limits those for messages on their way to a replica
    /// (`files`) do not apply.
    #[must_use]
    pub fn new(limits: ReaderLimits) -> Self {
        ReplyReader {
            dialect: Dialect::Csync,
            answered: 0,
            state: State::Word,
            text: Vec::new(),
            scanner: Scanner::new(LiteralForm::Plain, limits.scan()),
            facts: Facts::new(limits.bounds()),
            dead: None,
            limits,
        }
    }

    /// The same for a connection that speaks this dialect; to be called before anything is read. In
    /// IMAP commands are counted from here, as [`Dialect::prefix`] writes them, and a status with
    /// another tag than the next is an error.
    #[must_use]
    pub fn speaking(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Reads on, taking bytes from the front of `input`. Returns a line as soon as one is
    /// complete, with the rest left in `input`; else `input` is empty.
    ///
    /// # Errors
    /// See [`Fatal`]: the lane is to be closed. From then on every call returns it.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Line>, Fatal> {
        if let Some(fatal) = &self.dead {
            return Err(fatal.clone());
        }
        while !input.is_empty() {
            match self.step(input) {
                Ok(None) => {}
                Ok(Some(line)) => {
                    self.state = State::Word;
                    self.text.clear();
                    return Ok(Some(line));
                }
                Err(fatal) => {
                    self.facts.begin(Family::Reply);
                    self.dead = Some(fatal.clone());
                    return Err(fatal);
                }
            }
        }
        Ok(None)
    }

    /// Bytes held in memory by the line that is being read.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.facts.held() + self.text.len() as u64
    }

    /// Whether a line has begun and is not complete.
    #[must_use]
    pub fn mid_line(&self) -> bool {
        self.state != State::Word || !self.text.is_empty()
    }

    /// As much of [`Self::held`] as [`Self::spill`] moves out of memory.
    #[must_use]
    pub fn spillable(&self) -> u64 {
        self.facts.spillable()
    }

    /// Moves the raw bytes of the line that is being read out of memory; see
    /// [`super::CommandReader::spill`].
    ///
    /// # Errors
    /// Those of `write`; nothing has changed then.
    pub fn spill(&mut self, write: &mut Write<'_>) -> io::Result<()> {
        self.facts.spill(write)
    }

    /// See [`super::CommandReader::scanned_bytes`].
    #[must_use]
    pub fn scanned_bytes(&self) -> u64 {
        self.scanner.scanned_bytes()
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Option<Line>, Fatal> {
        match self.state {
            State::Word => {
                // A tag is the longest: S and 20 digits.
                let Some(end) = self.word(input, 24)? else {
                    return Ok(None);
                };
                let is_imap = self.dialect == Dialect::Imap;
                let status = match &self.text[..] {
                    b"*" if end == b' ' => {
                        input.advance(1);
                        self.text.clear();
                        self.state = State::Kind;
                        return Ok(None);
                    }
                    b"+" => State::Continuation,
                    tag if is_imap && end == b' ' => {
                        let wanted = format!("S{}", self.answered);
                        if tag != wanted.as_bytes() {
                            let tag = tag.escape_ascii();
                            let why = format!("{tag} where {wanted} was to be answered");
                            return Err(self.fatal(&why));
                        }
                        State::Tagged
                    }
                    word if !is_imap && let Some(kind) = status(word) => State::Text(kind),
                    _ => return Err(self.fatal("neither an untagged line nor a status")),
                };
                if end == b' ' {
                    input.advance(1);
                }
                self.text.clear();
                self.state = status;
            }
            State::Tagged => {
                let Some(end) = self.word(input, 24)? else {
                    return Ok(None);
                };
                let Some(kind) = status(&self.text) else {
                    return Err(self.fatal("no status behind the tag"));
                };
                if end == b' ' {
                    input.advance(1);
                }
                self.answered += 1;
                self.text.clear();
                self.state = State::Text(kind);
            }
            State::Kind => {
                let Some(end) = self.word(input, 1024)? else {
                    return Ok(None);
                };
                self.kind(end, input);
            }
            State::Peek => {
                if matches!(input[0], b'(' | b'%' | b'{') {
                    self.scanner.restart(true);
                    self.state = State::Value;
                } else {
                    self.state = State::Free;
                }
            }
            State::Value => match self.scanner.feed(input, &mut self.facts) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return Ok(Some(Line::Untagged(self.untagged()))),
                Err(trouble) => {
                    let at = self.scanner.value_len();
                    return Err(Fatal::from_trouble(self.what(), at, trouble));
                }
            },
            State::Free => {
                if let Some(line) = self.rest(input)? {
                    let is_bye = self.facts.verb == b"BYE"[..];
                    if is_bye && self.dialect == Dialect::Imap && is_fatal(&line) {
                        let mut untagged = self.untagged();
                        untagged.kind = Bytes::from_static(b"FATAL");
                        return Ok(Some(Line::Untagged(untagged)));
                    }
                    if is_bye {
                        let status = Status {
                            kind: StatusKind::Bye,
                            text: line,
                        };
                        return Ok(Some(Line::Status(status)));
                    }
                    let mut untagged = self.untagged();
                    let words = line.split(|&byte| byte == b' ');
                    untagged.words = words
                        .filter(|word| !word.is_empty())
                        .map(|word| line.slice_ref(word))
                        .collect();
                    return Ok(Some(Line::Untagged(untagged)));
                }
            }
            State::Text(kind) => {
                if let Some(text) = self.rest(input)? {
                    return Ok(Some(Line::Status(Status { kind, text })));
                }
            }
            State::Continuation => {
                return Ok(self.rest(input)?.map(Line::Continuation));
            }
        }
        Ok(None)
    }

    /// The kind is complete; `end`, the next byte of `input`, ended it.
    fn kind(&mut self, end: u8, input: &mut Bytes) {
        self.facts.begin(Family::Reply);
        self.facts.set_verb(&self.text);
        self.facts.raw.push_slice(b"* ");
        self.facts.raw.push_slice(&self.text);
        self.text.clear();
        if end != b' ' {
            self.state = State::Free;
            return;
        }
        self.facts.raw.push_slice(&input.split_to(1));
        let verb = &self.facts.verb[..];
        self.state = if KNOWN.contains(&verb) {
            self.scanner.restart(true);
            State::Value
        } else if FREE.contains(&verb) {
            State::Free
        } else {
            State::Peek
        };
    }

    /// Reads up to white space, which stays in the input and is returned.
    fn word(&mut self, input: &mut Bytes, limit: usize) -> Result<Option<u8>, Fatal> {
        let end = memchr::memchr3(b' ', b'\r', b'\n', input);
        let len = end.unwrap_or(input.len());
        if self.text.len() + len > limit {
            return Err(self.fatal("the first word is too long"));
        }
        self.text.extend_from_slice(&input.split_to(len));
        Ok(end.map(|_| input[0]))
    }

    /// Reads the rest of a line; returns it without its end.
    fn rest(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, Fatal> {
        let end = memchr::memchr(b'\n', input);
        let len = end.map_or(input.len(), |end| end + 1);
        if self.text.len() + len > self.limits.line {
            return Err(self.fatal("the line is too long"));
        }
        let part = input.split_to(len);
        self.text.extend_from_slice(&part);
        if self.state == State::Free {
            self.facts.raw.push_slice(&part);
        }
        if end.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.text);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line.into()))
    }

    fn untagged(&mut self) -> Untagged {
        let facts = &mut self.facts;
        let mut guids = std::mem::take(&mut facts.guids);
        guids.shrink_to_fit();
        let is_mailbox = facts.verb == b"MAILBOX"[..];
        let untagged = Untagged {
            kind: std::mem::take(&mut facts.verb),
            mailbox: facts.text(Field::MboxName).filter(|_| is_mailbox),
            uniqueid: facts.text(Field::UniqueId).filter(|_| is_mailbox),
            since: facts.has(Field::FolderModseq) && is_mailbox,
            guids,
            words: std::mem::take(&mut facts.names),
            raw: facts.raw.finish(),
        };
        facts.begin(Family::Reply);
        untagged
    }

    fn fatal(&self, why: &str) -> Fatal {
        Fatal::new(self.what(), self.text.len() as u64, why)
    }

    fn what(&self) -> String {
        match self.state {
            State::Peek | State::Value | State::Free => {
                let kind = &self.facts.verb[..self.facts.verb.len().min(32)];
                format!("the line * {}", kind.escape_ascii())
            }
            _ => "an answer".into(),
        }
    }
}

fn status(word: &[u8]) -> Option<StatusKind> {
    Some(match word {
        b"OK" => StatusKind::Ok,
        b"NO" => StatusKind::No,
        b"BAD" => StatusKind::Bad,
        b"BYE" => StatusKind::Bye,
        _ => return None,
    })
}

/// What imapd says when it gives up: `Fatal error: why`, and from 3.10 on `[TOOBIG] why` (`fatal` in
/// `imapd.c`). An `[ALERT]` is an ordinary end.
fn is_fatal(bye: &[u8]) -> bool {
    bye.starts_with(b"Fatal error") || (bye.starts_with(b"[") && !bye.starts_with(b"[ALERT]"))
}
