//! An incremental tokenizer for dlist values (`dlist_parse` in Cyrus's `dlist.c`, with the string
//! readers of `imapparse.c`).
//!
//! Bytes may come in pieces of any size: the tokens, and the raw bytes handed on, are the same.
//! Every byte outside of literals is looked at once; the contents of literals and files are
//! skipped in bulk. Accepted and refused is what Cyrus accepts and refuses, down to the position
//! at which its parser stops, because `sync_eatline` goes on from there.

use bytes::{Buf, Bytes};

use super::command::Guid;

mod token;

pub use token::{
    ENDS_ATOM, KEPT_TEXT, List, LiteralForm, MAX_WORD, ScanLimits, Sink, Text, Token, Trouble,
    is_space,
};
use token::{ENDS_QUOTED_RUN, Form, bad_file_header, number_too_big, run};

/// How far the scanner has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The input is used up and the value is not complete.
    More,
    /// The value and its line end were read; the rest of the input is untouched.
    Done,
}

/// What a string is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Key,
    Value,
    Partition,
    FileGuid,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first byte of a string which must begin here.
    Start(Role),
    /// Between a key and its value: white space is skipped.
    BeforeValue,
    /// In a list: white space is skipped.
    InList,
    Atom(Role),
    Quoted(Role),
    Escape(Role),
    Header(Role, Header),
    Literal(Role, u64),
    /// After `%`.
    Percent,
    /// A space, before the GUID or the size of a file.
    Space(Role),
    FileSize(Option<u64>),
    FileCr(u64),
    FileLf(u64),
    Content(u64),
    /// After the value: the line must end.
    End,
    EndLf,
}

/// The header of a literal, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    size: Option<u64>,
    plus: bool,
    stage: Stage,
    /// Bytes read of it.
    len: usize,
    /// It began in an earlier piece of the input.
    split: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Digits,
    Brace,
    Cr,
    Lf,
}

/// Reads one value, `KEY value` and its line end. See the module.
#[derive(Debug)]
pub struct Scanner {
    form: LiteralForm,
    limits: ScanLimits,
    state: State,
    lists: Vec<List>,
    /// The part of the current string that came in earlier pieces, unescaped, cut at
    /// `kept`.
    text: Vec<u8>,
    /// Length of the current string before this piece.
    text_len: u64,
    partition: Vec<u8>,
    guid: Option<Guid>,
    /// Bytes of this value without contents of files.
    len: u64,
    scanned: u64,
    /// As much of a string is kept for its token.
    kept: usize,
}

/// One call of [`Scanner::feed`].
struct Piece<'a, S> {
    data: &'a Bytes,
    /// The next byte.
    at: usize,
    /// Raw bytes from here on were not handed on yet.
    mark: usize,
    /// Bytes that were skipped in bulk.
    skipped: usize,
    sink: &'a mut S,
}

impl<S: Sink> Piece<'_, S> {
    fn rest(&self) -> &[u8] {
        &self.data[self.at..]
    }

    fn flush(&mut self, end: usize) {
        if self.mark < end {
            self.sink.raw(self.data.slice(self.mark..end));
        }
        self.mark = self.at;
    }
}

impl Scanner {
    /// A scanner for `KEY value`, which writes literal headers in `form`.
    #[must_use]
    pub fn new(form: LiteralForm, limits: ScanLimits) -> Self {
        Scanner {
            form,
            limits,
            state: State::Start(Role::Key),
            lists: Vec::new(),
            text: Vec::new(),
            text_len: 0,
            partition: Vec::new(),
            guid: None,
            len: 0,
            scanned: 0,
            kept: KEPT_TEXT,
        }
    }

    /// The same, which keeps so much of a string in the place of [`KEPT_TEXT`].
    pub(crate) fn keeping(mut self, most: usize) -> Self {
        self.kept = most;
        self
    }

    /// Begins with a new `KEY value`, or with the value alone where the key was read already.
    pub fn restart(&mut self, after_key: bool) {
        self.state = if after_key {
            State::BeforeValue
        } else {
            State::Start(Role::Key)
        };
        self.lists.clear();
        self.text.clear();
        self.text.shrink_to(self.kept);
        self.text_len = 0;
        self.partition.clear();
        self.guid = None;
        self.len = 0;
    }

    /// How many bytes were looked at one by one, over all values: each byte outside of the
    /// contents of literals and files once, however the input was cut.
    #[must_use]
    pub fn scanned_bytes(&self) -> u64 {
        self.scanned
    }

    /// Bytes of the current value so far, contents of files left out.
    pub(crate) fn value_len(&self) -> u64 {
        self.len
    }

    /// Reads on. Takes what was read from the front of `input`.
    ///
    /// # Errors
    /// See [`Trouble`]. After one the scanner must be restarted.
    pub fn feed(&mut self, input: &mut Bytes, sink: &mut impl Sink) -> Result<Progress, Trouble> {
        let data = input.clone();
        let mut piece = Piece {
            data: &data,
            at: 0,
            mark: 0,
            skipped: 0,
            sink,
        };
        let mut result = Ok(Progress::More);
        while piece.at < data.len() {
            match self.step(&mut piece) {
                Ok(Progress::More) => {}
                other => {
                    result = other;
                    break;
                }
            }
        }
        if let (State::Header(_, header), Ok(Progress::More)) = (&mut self.state, &result) {
            // The header is written anew when it is complete.
            if !header.split {
                piece.flush(piece.at - header.len);
            }
            header.split = true;
        } else {
            piece.flush(piece.at);
        }
        let (at, skipped) = (piece.at, piece.skipped);
        self.scanned += (at - skipped) as u64;
        input.advance(at);
        result
    }

    fn step<S: Sink>(&mut self, piece: &mut Piece<'_, S>) -> Result<Progress, Trouble> {
        let byte = piece.data[piece.at];
        match self.state {
            State::Start(role) => self.start(role, byte, piece)?,
            State::BeforeValue | State::InList if is_space(byte) => self.take(piece, 1)?,
            State::BeforeValue => self.start(Role::Value, byte, piece)?,
            State::InList => match (byte, self.lists.last()) {
                (b')', _) => {
                    self.take(piece, 1)?;
                    self.lists.pop();
                    self.emit(piece, Token::Close)?;
                    self.after_value();
                }
                (_, Some(List::Pairs)) => self.start(Role::Key, byte, piece)?,
                _ => self.start(Role::Value, byte, piece)?,
            },
            State::Atom(role) => {
                let len = run(piece.rest(), &ENDS_ATOM);
                let from = piece.at;
                self.take(piece, len)?;
                if piece.at < piece.data.len() {
                    self.finish_text(piece, role, from..from + len, Form::Atom)?;
                } else {
                    self.keep(&piece.data[from..]);
                }
                self.check_word(len, "[TOOBIG] Word too long")?;
            }
            State::Quoted(role) => {
                let len = run(piece.rest(), &ENDS_QUOTED_RUN);
                let from = piece.at;
                self.take(piece, len)?;
                self.check_word(len, "[TOOBIG] Quoted value too long")?;
                match piece.rest().first() {
                    Some(b'"') => {
                        self.take(piece, 1)?;
                        self.finish_text(piece, role, from..from + len, Form::Quoted)?;
                    }
                    Some(b'\\') => {
                        self.keep(&piece.data[from..from + len]);
                        self.take(piece, 1)?;
                        self.state = State::Escape(role);
                    }
                    Some(_) => return Err(Trouble::Malformed),
                    None => self.keep(&piece.data[from..]),
                }
            }
            State::Escape(role) => {
                self.keep(&[byte]);
                self.take(piece, 1)?;
                self.check_word(1, "[TOOBIG] Quoted value too long")?;
                self.state = State::Quoted(role);
            }
            State::Header(role, header) => self.header(role, header, byte, piece)?,
            State::Literal(role, left) => self.literal(role, left, piece)?,
            State::Percent => {
                self.take(piece, 1)?;
                match byte {
                    b'(' => self.open(List::Pairs, piece)?,
                    b'{' => self.state = State::Start(Role::Partition),
                    _ => return Err(Trouble::Malformed),
                }
            }
            State::Space(next) if byte == b' ' => {
                self.take(piece, 1)?;
                self.state = match next {
                    Role::FileGuid => State::Start(next),
                    _ => State::FileSize(None),
                };
            }
            State::FileSize(size) => {
                self.take(piece, 1)?;
                match (byte, size) {
                    (b'0'..=b'9', _) => {
                        let size = size.unwrap_or(0) * 10 + u64::from(byte - b'0');
                        if size > u64::from(u32::MAX) {
                            return Err(number_too_big());
                        }
                        self.state = State::FileSize(Some(size));
                    }
                    (b'}', Some(size)) => self.state = State::FileCr(size),
                    _ => return Err(bad_file_header()),
                }
            }
            State::FileCr(size) if byte == b'\r' => {
                self.take(piece, 1)?;
                self.state = State::FileLf(size);
            }
            State::FileCr(size) | State::FileLf(size) if byte == b'\n' => {
                self.take(piece, 1)?;
                self.begin_file(size, piece)?;
            }
            State::Space(_) | State::FileCr(_) | State::FileLf(_) => return Err(bad_file_header()),
            State::Content(left) => {
                let len = left.min(piece.rest().len() as u64) as usize;
                let from = piece.at;
                piece.at += len;
                piece.skipped += len;
                piece.mark = piece.at;
                piece.sink.content(piece.data.slice(from..from + len));
                self.content_left(left - len as u64, piece)?;
            }
            State::End if byte == b'\r' => {
                self.take(piece, 1)?;
                self.state = State::EndLf;
            }
            State::End | State::EndLf if byte == b'\n' => {
                self.take(piece, 1)?;
                return Ok(Progress::Done);
            }
            State::End | State::EndLf => return Err(Trouble::Malformed),
        }
        Ok(Progress::More)
    }

    /// Counts `len` bytes as read.
    fn take<S>(&mut self, piece: &mut Piece<'_, S>, len: usize) -> Result<(), Trouble> {
        piece.at += len;
        self.count(len as u64)
    }

    fn count(&mut self, len: u64) -> Result<(), Trouble> {
        self.len += len;
        if self.len > self.limits.text {
            return Err(Trouble::fatal(format!(
                "longer than {} bytes",
                self.limits.text
            )));
        }
        Ok(())
    }

    /// Counts the current string, of which `len` more bytes were read.
    fn check_word(&mut self, len: usize, what: &'static str) -> Result<(), Trouble> {
        self.text_len += len as u64;
        if self.text_len > MAX_WORD {
            return Err(Trouble::too_big(what));
        }
        Ok(())
    }

    /// A string, list or file begins with `byte`.
    fn start<S: Sink>(
        &mut self,
        role: Role,
        byte: u8,
        piece: &mut Piece<'_, S>,
    ) -> Result<(), Trouble> {
        self.text.clear();
        self.text_len = 0;
        match byte {
            b'"' => {
                self.take(piece, 1)?;
                self.state = State::Quoted(role);
            }
            b'{' => {
                self.take(piece, 1)?;
                let header = Header {
                    size: None,
                    plus: false,
                    stage: Stage::Digits,
                    len: 1,
                    split: false,
                };
                self.state = State::Header(role, header);
            }
            b'(' if role == Role::Value => {
                self.take(piece, 1)?;
                self.open(List::Plain, piece)?;
            }
            b'%' if role == Role::Value => {
                self.take(piece, 1)?;
                self.state = State::Percent;
            }
            b' ' | b'(' | b')' | b'\r' | b'\n' => {
                return Err(match role {
                    Role::Key | Role::Value => Trouble::Malformed,
                    Role::Partition | Role::FileGuid => bad_file_header(),
                });
            }
            _ => self.state = State::Atom(role),
        }
        Ok(())
    }

    fn open<S: Sink>(&mut self, list: List, piece: &mut Piece<'_, S>) -> Result<(), Trouble> {
        if self.lists.len() >= self.limits.depth {
            let depth = self.limits.depth;
            return Err(Trouble::fatal(format!("nested deeper than {depth} lists")));
        }
        self.lists.push(list);
        self.state = State::InList;
        self.emit(piece, Token::Open(list))
    }

    fn after_value(&mut self) {
        self.state = if self.lists.is_empty() {
            State::End
        } else {
            State::InList
        };
    }

    fn emit<S: Sink>(&self, piece: &mut Piece<'_, S>, token: Token<'_>) -> Result<(), Trouble> {
        piece.sink.token(token).map_err(Trouble::fatal)
    }

    /// Keeps a part of the current string for a later piece.
    fn keep(&mut self, part: &[u8]) {
        let room = self.kept.saturating_add(1).saturating_sub(self.text.len());
        self.text.extend_from_slice(&part[..part.len().min(room)]);
    }

    /// The current string is complete; `last` is its part in this piece.
    fn finish_text<S: Sink>(
        &mut self,
        piece: &mut Piece<'_, S>,
        role: Role,
        last: std::ops::Range<usize>,
        form: Form,
    ) -> Result<(), Trouble> {
        let data = piece.data;
        let last = &data[last];
        let mut joined = std::mem::take(&mut self.text);
        let bytes = if joined.is_empty() {
            last
        } else {
            let room = self.kept.saturating_add(1).saturating_sub(joined.len());
            joined.extend_from_slice(&last[..last.len().min(room)]);
            &joined[..]
        };
        let text = Text {
            bytes: &bytes[..bytes.len().min(self.kept)],
            cut: bytes.len() > self.kept,
            literal: form == Form::Literal,
        };
        match role {
            Role::Key => {
                self.state = State::BeforeValue;
                self.emit(piece, Token::Key(text))?;
            }
            Role::Value => {
                self.after_value();
                let nil = form == Form::Atom && bytes == b"NIL";
                self.emit(piece, if nil { Token::Nil } else { Token::Text(text) })?;
            }
            Role::Partition => {
                self.partition.clear();
                let Some(partition) = text.usable() else {
                    return Err(bad_file_header());
                };
                self.partition.extend_from_slice(partition);
                self.state = State::Space(Role::FileGuid);
            }
            Role::FileGuid => {
                self.guid = text.usable().and_then(Guid::parse);
                if self.guid.is_none() {
                    return Err(bad_file_header());
                }
                self.state = State::Space(Role::Value);
            }
        }
        joined.clear();
        self.text = joined;
        Ok(())
    }

    fn header<S: Sink>(
        &mut self,
        role: Role,
        mut header: Header,
        byte: u8,
        piece: &mut Piece<'_, S>,
    ) -> Result<(), Trouble> {
        self.take(piece, 1)?;
        header.len += 1;
        match (header.stage, byte) {
            (Stage::Digits, b'0'..=b'9') => {
                let size = header.size.unwrap_or(0) * 10 + u64::from(byte - b'0');
                if size > i32::MAX as u64 {
                    return Err(number_too_big());
                }
                header.size = Some(size);
            }
            (Stage::Digits, b'+') if header.size.is_some() => {
                header.plus = true;
                header.stage = Stage::Brace;
            }
            (Stage::Digits | Stage::Brace, b'}') if header.size.is_some() => {
                header.stage = Stage::Cr;
            }
            (Stage::Cr, b'\r') => header.stage = Stage::Lf,
            (Stage::Lf, b'\n') => return self.begin_literal(role, header, piece),
            _ => return Err(Trouble::fatal("the header of a literal is malformed")),
        }
        self.state = State::Header(role, header);
        Ok(())
    }

    fn begin_literal<S: Sink>(
        &mut self,
        role: Role,
        header: Header,
        piece: &mut Piece<'_, S>,
    ) -> Result<(), Trouble> {
        let size = header.size.unwrap_or(0);
        let plus = if self.form == LiteralForm::Plus {
            "+"
        } else {
            ""
        };
        let wanted = format!("{{{size}{plus}}}\r\n");
        let as_wanted = header.plus == (self.form == LiteralForm::Plus)
            && header.len == wanted.len()
            && !header.split;
        if !as_wanted {
            if !header.split {
                piece.flush(piece.at - header.len);
            }
            piece.sink.raw(wanted.into());
            piece.mark = piece.at;
        }
        self.count(size)?;
        self.literal(role, size, piece)
    }

    fn literal<S: Sink>(
        &mut self,
        role: Role,
        left: u64,
        piece: &mut Piece<'_, S>,
    ) -> Result<(), Trouble> {
        let from = piece.at;
        let len = left.min((piece.data.len() - from) as u64) as usize;
        piece.at += len;
        piece.skipped += len;
        if left == len as u64 {
            return self.finish_text(piece, role, from..from + len, Form::Literal);
        }
        self.keep(&piece.data[from..from + len]);
        self.state = State::Literal(role, left - len as u64);
        Ok(())
    }

    fn begin_file<S: Sink>(&mut self, size: u64, piece: &mut Piece<'_, S>) -> Result<(), Trouble> {
        if size > self.limits.file {
            return Err(Trouble::fatal(format!(
                "a message of {size} bytes (at most {} are taken)",
                self.limits.file
            )));
        }
        let guid = self.guid.take().ok_or_else(bad_file_header)?;
        piece.flush(piece.at);
        let partition = &self.partition;
        let token = Token::File {
            partition,
            guid,
            size,
        };
        piece.sink.token(token).map_err(Trouble::fatal)?;
        self.content_left(size, piece)
    }

    fn content_left<S: Sink>(
        &mut self,
        left: u64,
        piece: &mut Piece<'_, S>,
    ) -> Result<(), Trouble> {
        if left > 0 {
            self.state = State::Content(left);
            return Ok(());
        }
        self.after_value();
        self.emit(piece, Token::FileEnd)
    }
}
