//! Reads a client's commands (`cmdloop` in Cyrus's `sync_server.c`), incrementally: a command is
//! typed while its bytes arrive and never stands in memory as a tree. In IMAP (`cmdloop` in
//! `imapd.c`) a command has a tag before it, and other names: see `imap.rs`.

mod imap;
mod limits;

use std::io;

use bytes::{Buf, Bytes};
use zeroize::Zeroize;

use super::command::{Command, Kind, Secret};
use super::dialect::Dialect;
use super::eat::{Eater, Stuck};
use super::facts::{Facts, Family};
use super::fatal::Fatal;
use super::gather::{Gather, Write};
use super::scan::{ENDS_ATOM, LiteralForm, MAX_WORD, Progress, Scanner, Trouble};
use super::verbs;
pub use limits::ReaderLimits;

/// A verb without a dlist behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Simple {
    Authenticate,
    /// In IMAP alone.
    Capability,
    Compress,
    Exit,
    Noop,
    Restart,
    Starttls,
}

#[derive(Debug)]
enum State {
    /// The tag, in IMAP.
    Tag,
    /// The first word, or that behind the tag.
    Word,
    /// The value after GET, APPLY, RESTORE.
    Value(Family),
    /// An argument of AUTHENTICATE or COMPRESS: 1 or 2.
    Argument(Simple, usize),
    /// The end of the line, after a CR where the flag says so.
    LineEnd(Simple, bool),
    /// `tag C`, `tag CA` ...: so many bytes of CAPABILITY were seen.
    Probe(usize, &'static str),
    /// The end of such a line, after a CR where the flag says so.
    ProbeEnd(bool, &'static str),
    /// The rest of a line that is not read, and what it is then: bad, for the most part.
    Eat(Kind),
}

/// Reads commands from the bytes of a client. See the module.
pub struct CommandReader {
    limits: ReaderLimits,
    dialect: Dialect,
    /// In IMAP: of the command that is being read, or was read last.
    tag: Vec<u8>,
    authenticated: bool,
    state: State,
    /// The word or argument that is being read.
    word: Vec<u8>,
    /// The first word, as Cyrus writes it in its answers: `Apply`.
    verb: String,
    arguments: Vec<Vec<u8>>,
    /// Bytes of the current command that were not read by the scanner or eaten.
    len: u64,
    scanner: Scanner,
    facts: Facts,
    eater: Eater,
    /// The part of a raw line that has come.
    line: Vec<u8>,
    dead: Option<Fatal>,
}

const PROBE: &[u8] = b"CAPABILITY";
const UNKNOWN: &str = "BAD IMAP_PROTOCOL_ERROR Unrecognized command";
const NO_LOGIN: &str = "NO Please authenticate first";

impl CommandReader {
    /// A reader for a client that has not logged in, and speaks csync.
    #[must_use]
    pub fn new(limits: ReaderLimits) -> Self {
        CommandReader {
            dialect: Dialect::Csync,
            tag: Vec::new(),
            authenticated: false,
            state: State::Word,
            word: Vec::new(),
            verb: String::new(),
            arguments: Vec::new(),
            len: 0,
            scanner: Scanner::new(LiteralForm::Plus, limits.scan()),
            facts: Facts::new(limits.bounds()),
            eater: Eater::default(),
            line: Vec::new(),
            dead: None,
            limits,
        }
    }

    /// The same for a client that speaks this dialect; to be called before anything is read.
    #[must_use]
    pub fn speaking(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self.state = self.start();
        self
    }

    /// The tag of the last command, in IMAP; `*` where it had none that can be repeated.
    #[must_use]
    pub fn tag(&self) -> &[u8] {
        &self.tag
    }

    /// Whether [`Self::tag`] is that of a command that has begun and is not complete.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        !matches!(self.state, State::Tag)
    }

    /// Whether the client has logged in: before, only short lines without literals are read, and
    /// GET, APPLY and RESTORE are refused. To be called between two commands.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Reads on, taking bytes from the front of `input`. Returns a command as soon as one is
    /// complete, with the rest left in `input`; else `input` is empty.
    ///
    /// # Errors
    /// See [`Fatal`]; from then on every call returns it.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Command>, Fatal> {
        if let Some(fatal) = &self.dead {
            return Err(fatal.clone());
        }
        while !input.is_empty() {
            match self.step(input) {
                Ok(None) => {}
                Ok(Some(kind)) => return Ok(Some(self.complete(kind))),
                Err(fatal) => {
                    self.facts.begin(Family::Get);
                    self.dead = Some(fatal.clone());
                    return Err(fatal);
                }
            }
        }
        Ok(None)
    }

    /// Reads one line as it is, for the responses of a SASL exchange; to be called between two
    /// commands. The line comes without its end; with LF or CR LF, as in Cyrus's `prot_fgets`.
    ///
    /// # Errors
    /// Where the line exceeds [`ReaderLimits::line`].
    pub fn feed_line(&mut self, input: &mut Bytes) -> Result<Option<Secret>, Fatal> {
        if let Some(fatal) = &self.dead {
            return Err(fatal.clone());
        }
        let end = memchr::memchr(b'\n', input);
        let len = end.unwrap_or(input.len());
        if self.line.len() + len > self.limits.line {
            let fatal = Fatal::stock("a SASL response", len as u64, "[TOOBIG] Line too long");
            self.dead = Some(fatal.clone());
            return Err(fatal);
        }
        extend(&mut self.line, &input.split_to(len));
        if end.is_none() {
            return Ok(None);
        }
        input.advance(1);
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(Secret(line)))
    }

    /// Bytes held in memory by the command that is being read.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.facts.held()
    }

    /// Whether a command has begun and is not complete.
    #[must_use]
    pub fn mid_command(&self) -> bool {
        let at_start = match self.dialect {
            Dialect::Csync => matches!(self.state, State::Word),
            Dialect::Imap => matches!(self.state, State::Tag),
        };
        !at_start || !self.word.is_empty() || !self.line.is_empty()
    }

    /// As much of [`Self::held`] as [`Self::spill`] moves out of memory.
    #[must_use]
    pub fn spillable(&self) -> u64 {
        self.facts.spillable()
    }

    /// Moves the raw bytes and messages of the command that is being read out of memory: `write`
    /// is called at most once, with all of them in order, and returns the one stretch of the
    /// spill file that holds them. [`Self::held`] is small afterwards; facts such as GUIDs stay.
    ///
    /// # Errors
    /// Those of `write`; nothing has changed then.
    pub fn spill(&mut self, write: &mut Write<'_>) -> io::Result<()> {
        self.facts.spill(write)
    }

    /// How many bytes of dlists were looked at one by one so far: each byte outside of the
    /// contents of literals and messages once, however the input was cut.
    #[must_use]
    pub fn scanned_bytes(&self) -> u64 {
        self.scanner.scanned_bytes()
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Option<Kind>, Fatal> {
        match &self.state {
            State::Tag => {
                let Some(end) = self.word(input)? else {
                    return Ok(None);
                };
                self.tag_done(end, input);
            }
            State::Word => {
                let Some(end) = self.word(input)? else {
                    return Ok(None);
                };
                if self.word.is_empty() {
                    self.eat("BAD Null command");
                    return Ok(None);
                }
                self.verb = capitalised(&self.word);
                match self.dialect {
                    Dialect::Csync => self.word_done(end, input),
                    Dialect::Imap => self.imap_word_done(end, input),
                }
            }
            State::Value(family) => {
                let family = *family;
                return self.value(family, input);
            }
            State::Argument(simple, nth) => {
                let (simple, nth) = (*simple, *nth);
                let Some(end) = self.word(input)? else {
                    return Ok(None);
                };
                let argument = std::mem::take(&mut self.word);
                if simple == Simple::Authenticate && nth == 1 {
                    if !is_atom(&argument) {
                        self.eat("BAD Invalid mechanism");
                        return Ok(None);
                    }
                    if end == b' ' {
                        self.take(input)?;
                        self.state = State::Argument(simple, 2);
                        self.arguments.push(argument);
                        return Ok(None);
                    }
                }
                self.arguments.push(argument);
                self.state = State::LineEnd(simple, false);
            }
            State::LineEnd(simple, after_cr) => {
                let simple = *simple;
                match (input[0], after_cr) {
                    (b'\r', false) => self.state = State::LineEnd(simple, true),
                    (b'\n', _) => {
                        self.take(input)?;
                        return Ok(Some(self.simple(simple)));
                    }
                    _ => {
                        let answer = format!("BAD Unexpected extra arguments to {}", self.verb);
                        self.eat(answer);
                        return Ok(None);
                    }
                }
                self.take(input)?;
            }
            State::Probe(seen, otherwise) => {
                let (seen, otherwise) = (*seen, *otherwise);
                if seen == PROBE.len() {
                    self.state = State::ProbeEnd(false, otherwise);
                } else if input[0].eq_ignore_ascii_case(&PROBE[seen]) {
                    self.state = State::Probe(seen + 1, otherwise);
                    self.take(input)?;
                } else {
                    self.eat(otherwise);
                }
            }
            State::ProbeEnd(after_cr, otherwise) => match (input[0], after_cr) {
                (b'\r', false) => {
                    self.state = State::ProbeEnd(true, otherwise);
                    self.take(input)?;
                }
                (b'\n', _) => {
                    self.take(input)?;
                    let tag = std::mem::take(&mut self.word).into();
                    return Ok(Some(Kind::ImapProbe { tag }));
                }
                _ => {
                    let otherwise = *otherwise;
                    self.eat(otherwise);
                }
            },
            State::Eat(_) => return self.eat_on(input),
        }
        Ok(None)
    }

    /// Reads a word (`getword`). Returns the byte that ends it, which stays in the input.
    fn word(&mut self, input: &mut Bytes) -> Result<Option<u8>, Fatal> {
        let end = input.iter().position(|&byte| ENDS_ATOM[byte as usize]);
        let len = end.unwrap_or(input.len());
        self.count(len)?;
        if (self.word.len() + len) as u64 > MAX_WORD {
            return Err(Fatal::stock(
                self.what(),
                self.len,
                "[TOOBIG] Word too long",
            ));
        }
        extend(&mut self.word, &input.split_to(len));
        Ok(end.map(|_| input[0]))
    }

    fn take(&mut self, input: &mut Bytes) -> Result<(), Fatal> {
        input.advance(1);
        self.count(1)
    }

    fn count(&mut self, len: usize) -> Result<(), Fatal> {
        self.len += len as u64;
        if self.len > self.line_limit() {
            return Err(Fatal::stock(
                self.what(),
                self.len,
                "[TOOBIG] Line too long",
            ));
        }
        Ok(())
    }

    fn line_limit(&self) -> u64 {
        if self.authenticated {
            self.limits.line as u64 + MAX_WORD
        } else {
            self.limits.line as u64
        }
    }

    /// The first word is complete; `end`, the next byte of `input`, ended it.
    fn word_done(&mut self, end: u8, input: &mut Bytes) {
        let simple = match &self.verb[..] {
            "Authenticate" => Simple::Authenticate,
            "Compress" => Simple::Compress,
            "Exit" => Simple::Exit,
            "Noop" => Simple::Noop,
            "Restart" => Simple::Restart,
            "Starttls" => Simple::Starttls,
            "Apply" => return self.begin_value(Family::Apply, input),
            "Get" => return self.begin_value(Family::Get, input),
            "Restore" => return self.begin_value(Family::Restore, input),
            _ => {
                // The order of the cases in `cmdloop`: these letters ask for a login first.
                let otherwise = match self.verb.as_bytes().first() {
                    Some(b'A' | b'G' | b'R') if !self.authenticated => NO_LOGIN,
                    _ => UNKNOWN,
                };
                if end == b' ' {
                    input.advance(1);
                    self.len += 1;
                    self.state = State::Probe(0, otherwise);
                } else {
                    self.eat(otherwise);
                }
                return;
            }
        };
        self.begin_simple(simple, end, input);
    }

    fn begin_simple(&mut self, simple: Simple, end: u8, input: &mut Bytes) {
        match simple {
            Simple::Authenticate | Simple::Compress if end == b' ' => {
                input.advance(1);
                self.len += 1;
                self.word.clear();
                self.state = State::Argument(simple, 1);
            }
            Simple::Authenticate | Simple::Compress => {
                let answer = format!("BAD Missing required argument to {}", self.verb);
                self.eat(answer);
            }
            _ => self.state = State::LineEnd(simple, false),
        }
    }

    /// The byte behind the word is read over whatever it is, as in `cmdloop`.
    fn begin_value(&mut self, family: Family, input: &mut Bytes) {
        if !self.authenticated {
            self.eat(NO_LOGIN);
            return;
        }
        self.facts.begin(family);
        // A replica gets it as csync has it.
        let sync = match self.dialect {
            Dialect::Csync => 0,
            Dialect::Imap => imap::SYNC.len(),
        };
        self.facts.raw.push_slice(&self.word[sync..]);
        self.facts.raw.push_slice(&input.split_to(1));
        self.len += 1;
        self.scanner.restart(false);
        self.state = State::Value(family);
    }

    fn value(&mut self, family: Family, input: &mut Bytes) -> Result<Option<Kind>, Fatal> {
        match self.scanner.feed(input, &mut self.facts) {
            Ok(Progress::More) => Ok(None),
            Ok(Progress::Done) => Ok(Some(verbs::kind(family, &mut self.facts))),
            Err(Trouble::Malformed) => {
                self.facts.begin(family);
                self.eat(match self.dialect {
                    Dialect::Csync => {
                        let verb = self.verb.to_ascii_uppercase();
                        format!("BAD IMAP_PROTOCOL_ERROR Failed to parse {verb} line")
                    }
                    Dialect::Imap => format!("BAD Replication parse failure in {}", self.verb),
                });
                Ok(None)
            }
            Err(trouble) => {
                let at = self.len + self.scanner.value_len();
                Err(Fatal::from_trouble(self.what(), at, trouble))
            }
        }
    }

    fn eat(&mut self, answer: impl Into<String>) {
        let answer = answer.into();
        self.eat_as(Kind::Bad { answer });
    }

    fn eat_as(&mut self, kind: Kind) {
        self.eater.restart();
        self.state = State::Eat(kind);
    }

    fn eat_on(&mut self, input: &mut Bytes) -> Result<Option<Kind>, Fatal> {
        let (limit, literals) = if self.authenticated {
            (self.limits.text, true)
        } else {
            (self.limits.line as u64, false)
        };
        let why = match self.eater.feed(input, limit, literals) {
            Ok(false) => return Ok(None),
            Ok(true) => {
                let State::Eat(kind) = std::mem::replace(&mut self.state, State::Word) else {
                    return Ok(None);
                };
                return Ok(Some(kind));
            }
            Err(Stuck::File) => "a message in a command that can't be read",
            Err(Stuck::Literal) => "a literal before the login",
            Err(Stuck::TooLong) => "[TOOBIG] Line too long",
        };
        Err(Fatal::new(self.what(), self.len, why))
    }

    fn simple(&mut self, simple: Simple) -> Kind {
        let mut arguments = std::mem::take(&mut self.arguments).into_iter();
        match simple {
            Simple::Authenticate if self.authenticated => Kind::Bad {
                answer: "BAD Already authenticated".into(),
            },
            Simple::Authenticate => Kind::Authenticate {
                mechanism: String::from_utf8_lossy(&arguments.next().unwrap_or_default())
                    .to_ascii_uppercase(),
                initial: arguments.next().map(Secret),
            },
            Simple::Capability => Kind::Capability,
            Simple::Compress => Kind::Compress {
                algorithm: arguments.next().unwrap_or_default().into(),
            },
            Simple::Exit => Kind::Exit,
            Simple::Noop => Kind::Noop,
            Simple::Restart => Kind::Restart,
            Simple::Starttls => Kind::Starttls,
        }
    }

    fn complete(&mut self, kind: Kind) -> Command {
        let raw = match &kind {
            Kind::Apply(super::command::Apply::Message { .. }) => Default::default(),
            Kind::Get(_) | Kind::Apply(_) | Kind::Restore { .. } => self.facts.raw.finish(),
            Kind::Restart => "RESTART\r\n".into(),
            Kind::Exit => "EXIT\r\n".into(),
            Kind::Noop => "NOOP\r\n".into(),
            Kind::Starttls => "STARTTLS\r\n".into(),
            Kind::Compress { algorithm } => {
                let mut line = Gather::default();
                line.push_slice(b"COMPRESS ");
                line.push_slice(algorithm);
                line.push_slice(b"\r\n");
                line.finish()
            }
            // Secrets do not travel, nor does what is answered here.
            Kind::Authenticate { .. }
            | Kind::ImapProbe { .. }
            | Kind::Capability
            | Kind::Id
            | Kind::Bad { .. } => Default::default(),
        };
        self.facts.begin(Family::Get);
        self.state = self.start();
        self.word.clear();
        self.arguments.clear();
        self.len = 0;
        Command { kind, raw }
    }

    fn start(&self) -> State {
        match self.dialect {
            Dialect::Csync => State::Word,
            Dialect::Imap => State::Tag,
        }
    }

    /// What is being read, for [`Fatal`]; never a secret.
    fn what(&self) -> String {
        match &self.state {
            State::Value(_) => {
                let verb = &self.facts.verb[..self.facts.verb.len().min(32)];
                let verb = verb.escape_ascii();
                format!("{} {verb}", self.verb.to_ascii_uppercase())
            }
            _ => "a command".into(),
        }
    }
}

impl std::fmt::Debug for CommandReader {
    /// Words may be secrets and are left out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandReader")
            .field("authenticated", &self.authenticated)
            .field("verb", &self.verb)
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// As `cmdloop` writes a verb: the first letter in upper case, the others in lower case.
fn capitalised(word: &[u8]) -> String {
    let mut verb = String::from_utf8_lossy(word).to_ascii_lowercase();
    if let Some(first) = verb.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    verb
}

/// Appends, and wipes what a growing vector leaves behind: it may be a password.
fn extend(to: &mut Vec<u8>, bytes: &[u8]) {
    let len = to.len() + bytes.len();
    if len > to.capacity() {
        let mut larger = Vec::with_capacity(len.next_power_of_two());
        larger.extend_from_slice(to);
        to.zeroize();
        *to = larger;
    }
    to.extend_from_slice(bytes);
}

/// `imparse_isatom` in Cyrus's `imparse.c`.
fn is_atom(word: &[u8]) -> bool {
    let special = |byte: &u8| !matches!(byte, 0x1f..0x7f) || b" {()\"%*\\".contains(byte);
    !word.is_empty() && word.len() < 1024 && !word.iter().any(special)
}
