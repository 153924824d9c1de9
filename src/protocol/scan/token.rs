//! What a scanner hands on, and the bytes that end words.

use bytes::Bytes;

use crate::protocol::command::Guid;

/// Longest atom or quoted string, in bytes (`maxword` and `maxquoted` in Cyrus's `imapoptions`).
pub const MAX_WORD: u64 = 128 * 1024;

/// As much of a string is kept for a [`Token`]; longer ones are marked as cut. Names and ids are
/// at most 1,024 bytes long in Cyrus (`MAX_MAILBOX_BUFFER`); what is longer is only carried.
pub const KEPT_TEXT: usize = 8 * 1024;

/// How the header of a literal is written into the raw bytes that are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiteralForm {
    /// `{n+}`: the only form that a recent server reads.
    Plus,
    /// `{n}`: the only form that a recent client reads.
    Plain,
}

/// Limits of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Nesting of lists.
    pub depth: usize,
    /// Bytes, literals included, contents of files not.
    pub text: u64,
    /// Bytes of one file.
    pub file: u64,
}

/// The two kinds of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `(a b)`
    Plain,
    /// `%(K v ...)`
    Pairs,
}

/// A string: an atom, quoted, or a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) cut: bool,
    pub(super) literal: bool,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// The key of the whole value (its verb), or a key in a list of pairs.
    Key(Text<'a>),
    /// A string.
    Text(Text<'a>),
    /// `NIL`
    Nil,
    /// A list begins.
    Open(List),
    /// The innermost list ends.
    Close,
    /// `%{partition guid size}`; the content follows through [`Sink::content`].
    File {
        /// The partition.
        partition: &'a [u8],
        /// The GUID.
        guid: Guid,
        /// How many bytes follow.
        size: u64,
    },
    /// The content of a file is complete.
    FileEnd,
}

/// Takes what the scanner reads.
pub trait Sink {
    /// The next raw bytes in order, literal headers in the wanted form; contents of files come
    /// through [`Self::content`] instead.
    fn raw(&mut self, bytes: Bytes);
    /// The next piece of a file's content.
    fn content(&mut self, bytes: Bytes);
    /// The next token.
    ///
    /// # Errors
    /// In words, where the value is not wanted any further; this ends the connection.
    fn token(&mut self, token: Token<'_>) -> Result<(), String>;
}

/// Why scanning stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Not a dlist. The input stands where Cyrus's parser stands: the rest of the line is to be
    /// read over.
    Malformed,
    /// Where the value ends can't be known, or a limit was exceeded.
    Fatal {
        /// In words.
        why: String,
        /// What a stock server would say after `* Fatal error: `, where it would.
        stock: Option<&'static str>,
    },
}

/// White space as C's `isspace` has it.
#[must_use]
pub const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// What ends an atom or a word (`getword`, `getxstring`).
pub const ENDS_ATOM: [bool; 256] = table(b"()\"", true);
pub(super) const ENDS_QUOTED_RUN: [bool; 256] = table(b"\"\\\r\n", false);

const fn table(bytes: &[u8], spaces: bool) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = spaces && is_space(byte as u8);
        byte += 1;
    }
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
}

/// How many bytes come before the first one that `ends` marks.
pub(super) fn run(bytes: &[u8], ends: &[bool; 256]) -> usize {
    let found = bytes.iter().position(|&byte| ends[byte as usize]);
    found.unwrap_or(bytes.len())
}

impl<'a> Text<'a> {
    /// The string as Cyrus would use it as a name or id: `None` where it is too long for that or
    /// a literal with a NUL (`dlist_toatom`); other strings end at a NUL, as C strings do.
    #[must_use]
    pub fn usable(&self) -> Option<&'a [u8]> {
        if self.cut {
            return None;
        }
        match memchr::memchr(0, self.bytes) {
            None => Some(self.bytes),
            Some(_) if self.literal => None,
            Some(end) => Some(&self.bytes[..end]),
        }
    }
}

impl<'a> Text<'a> {
    /// As much of the string as is kept.
    pub(crate) fn kept(&self) -> &'a [u8] {
        self.bytes
    }

    /// The string as it is; `None` where it is longer than what is kept.
    pub(crate) fn whole(&self) -> Option<&'a [u8]> {
        (!self.cut).then_some(self.bytes)
    }
}

impl Trouble {
    pub(super) fn fatal(why: impl Into<String>) -> Self {
        Trouble::Fatal {
            why: why.into(),
            stock: None,
        }
    }

    pub(super) fn too_big(what: &'static str) -> Self {
        Trouble::Fatal {
            why: format!("{what} (more than {MAX_WORD} bytes)"),
            stock: Some(what),
        }
    }
}

/// How a string was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Atom,
    Quoted,
    Literal,
}

pub(super) fn number_too_big() -> Trouble {
    Trouble::Fatal {
        why: "the size of a literal or message is too big".into(),
        stock: Some("num too big"),
    }
}

pub(super) fn bad_file_header() -> Trouble {
    Trouble::fatal("the header of a message is malformed")
}
