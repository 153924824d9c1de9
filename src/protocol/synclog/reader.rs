//! Reads a sync log as the client does (`sync_log_reader_getitem` in Cyrus's `sync_log.c`).
//!
//! What is read decides what may be acknowledged early. So where the client would read on and
//! this reader can't tell how (literals, which Cyrus never writes), it stops instead: what comes
//! after is then not covered, which is always safe.

use bytes::{Buf, Bytes};

use super::{Line, Unwritable};
use crate::protocol::names::{Site, UserKey};
use crate::protocol::scan::ENDS_ATOM;

/// Longest line that is read, in bytes. Cyrus writes at most 4,096 (`BUFSIZE`).
const MAX_LINE: usize = 64 * 1024;

/// One line, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its first word.
    pub kind: ItemKind,
    /// The first argument, unquoted.
    pub first: Bytes,
    /// The second argument, where there is one.
    pub second: Option<Bytes>,
}

/// The first word of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ItemKind {
    /// `MAILBOX name`
    Mailbox,
    /// `APPEND name`
    Append,
    /// `DOUBLEMAILBOX name name`: a copy or move.
    DoubleMailbox,
    /// `RENAME old new`
    Rename,
    /// `USER userid`
    User,
    /// `UNUSER userid`
    Unuser,
    /// `META userid`
    Meta,
    /// `SIEVE userid`: the same as META.
    Sieve,
    /// `SEEN userid uniqueid`
    Seen,
    /// `SUB userid name`
    Sub,
    /// `UNSUB userid name`
    Unsub,
    /// `UNMAILBOX name`
    Unmailbox,
    /// `QUOTA root`
    Quota,
    /// `ANNOTATION name`
    Annotation,
    /// Anything else: the client says "Unknown action type" and goes on.
    Other,
}

const KINDS: [(&str, ItemKind); 14] = [
    ("MAILBOX", ItemKind::Mailbox),
    ("APPEND", ItemKind::Append),
    ("DOUBLEMAILBOX", ItemKind::DoubleMailbox),
    ("RENAME", ItemKind::Rename),
    ("USER", ItemKind::User),
    ("UNUSER", ItemKind::Unuser),
    ("META", ItemKind::Meta),
    ("SIEVE", ItemKind::Sieve),
    ("SEEN", ItemKind::Seen),
    ("SUB", ItemKind::Sub),
    ("UNSUB", ItemKind::Unsub),
    ("UNMAILBOX", ItemKind::Unmailbox),
    ("QUOTA", ItemKind::Quota),
    ("ANNOTATION", ItemKind::Annotation),
];

/// The client takes this place for the end of the file and forgets the rest (and so does this
/// reader): an argument that is missing or does not end on its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the sync log is torn: the client does not read on from there")]
pub struct Torn {
    /// Which line, from 1.
    pub line: u64,
}

/// Reads the lines of a sync log from pieces of any size. A last line without a line feed is no
/// line, as for the client.
#[derive(Debug, Default)]
pub struct LineReader {
    /// The part of a line that came in earlier pieces.
    partial: Vec<u8>,
    lines: u64,
    skipped: u64,
    torn: Option<Torn>,
}

impl Item {
    /// Appends it as a line, line feed included. [`ItemKind::Other`] writes nothing.
    ///
    /// # Errors
    /// Where a name can't stand in a sync log; `out` is unchanged then.
    pub fn print(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        match KINDS.iter().find(|(_, kind)| *kind == self.kind) {
            Some((word, _)) => super::print(out, word, &self.first, self.second.as_ref()),
            None => Ok(()),
        }
    }

    /// Whom it concerns: the owner of the first mailbox, or the user, or whose quota root it is; and
    /// the owner of the second mailbox where that is somebody else. What nobody owns, and whatever a
    /// newer Cyrus may write, is the shared key's.
    #[must_use]
    pub fn keys(&self, site: &Site) -> (UserKey, Option<UserKey>) {
        let first = match self.kind {
            ItemKind::User
            | ItemKind::Unuser
            | ItemKind::Meta
            | ItemKind::Sieve
            | ItemKind::Seen
            | ItemKind::Sub
            | ItemKind::Unsub => return (site.key_of_user(&self.first), None),
            ItemKind::Other => return (UserKey::shared(), None),
            ItemKind::Mailbox
            | ItemKind::Append
            | ItemKind::DoubleMailbox
            | ItemKind::Rename
            | ItemKind::Unmailbox
            | ItemKind::Quota
            | ItemKind::Annotation => site.key_of_mailbox(&self.first),
        };
        let second = self.second.as_ref().map(|name| site.key_of_mailbox(name));
        let second = second.filter(|second| *second != first);
        (first, second)
    }

    /// The mailboxes about which it makes the client ask the replica by name.
    pub fn mailboxes(&self) -> impl Iterator<Item = &Bytes> {
        let (first, second) = match self.kind {
            ItemKind::Mailbox | ItemKind::Append => (Some(&self.first), None),
            ItemKind::DoubleMailbox => (Some(&self.first), self.second.as_ref()),
            ItemKind::Rename if self.second.is_some() => (Some(&self.first), self.second.as_ref()),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// The lines of syncmux's own kind that make the client do the same work. RENAME and
    /// DOUBLEMAILBOX become one line for each mailbox, which loses that the client looks at them
    /// together. A second name behind MAILBOX or APPEND is not every client's work: see
    /// [`super::Coverage::add`].
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let first = self.first.clone();
        let one = match (self.kind, self.second.clone()) {
            (ItemKind::Mailbox | ItemKind::Append, _) | (ItemKind::DoubleMailbox, None) => {
                Line::Mailbox(first)
            }
            (ItemKind::DoubleMailbox | ItemKind::Rename, Some(second)) => {
                return vec![Line::Mailbox(first), Line::Mailbox(second)];
            }
            (ItemKind::User, _) => Line::User(first),
            (ItemKind::Unuser, _) => Line::Unuser(first),
            (ItemKind::Meta | ItemKind::Sieve, _) => Line::Meta(first),
            (ItemKind::Seen, Some(second)) => Line::Seen(first, second),
            (ItemKind::Sub | ItemKind::Unsub, Some(second)) => Line::Sub(first, second),
            (ItemKind::Unmailbox, _) => Line::Unmailbox(first),
            (ItemKind::Quota, _) => Line::Quota(first),
            (ItemKind::Annotation, _) => Line::Annotation(first),
            _ => return Vec::new(),
        };
        vec![one]
    }
}

/// What a physical line holds.
enum Parsed {
    Item(Item),
    /// Nothing that the client uses.
    Skip,
    Torn,
}

impl LineReader {
    /// A reader at the beginning of a file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on, taking bytes from the front of `input`. Returns the next item, with the rest
    /// left in `input`; else `input` is empty.
    ///
    /// # Errors
    /// See [`Torn`]; every later call returns it again.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Item>, Torn> {
        if let Some(torn) = &self.torn {
            return Err(torn.clone());
        }
        while !input.is_empty() {
            let end = memchr::memchr(b'\n', input);
            let len = end.unwrap_or(input.len());
            if self.partial.len() + len > MAX_LINE {
                return Err(self.tear());
            }
            let part = input.split_to(len);
            if end.is_none() {
                self.partial.extend_from_slice(&part);
                return Ok(None);
            }
            input.advance(1);
            self.lines += 1;
            let parsed = if self.partial.is_empty() {
                parse(&part)
            } else {
                self.partial.extend_from_slice(&part);
                let parsed = parse(&self.partial);
                self.partial.clear();
                parsed
            };
            match parsed {
                Parsed::Item(item) => return Ok(Some(item)),
                Parsed::Skip => self.skipped += 1,
                Parsed::Torn => {
                    self.lines -= 1;
                    return Err(self.tear());
                }
            }
        }
        Ok(None)
    }

    /// Whether the file, as far as it was read, ends in the middle of a line.
    #[must_use]
    pub fn mid_line(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Lines that the client reads over: blank ones and garbage.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn tear(&mut self) -> Torn {
        let torn = Torn {
            line: self.lines + 1,
        };
        self.partial = Vec::new();
        self.torn = Some(torn.clone());
        torn
    }
}

/// Reads a line, given without its line feed.
fn parse(line: &[u8]) -> Parsed {
    let end = line.iter().position(|&byte| ENDS_ATOM[byte as usize]);
    let word = &line[..end.unwrap_or(line.len())];
    let rest = &line[word.len()..];
    let Some(rest) = rest.strip_prefix(b" ") else {
        // A word alone, a blank line, or "Invalid input".
        return garbage(rest);
    };
    let Some((first, rest)) = argument(rest) else {
        return Parsed::Torn;
    };
    let (second, rest) = match rest.strip_prefix(b" ") {
        Some(rest) => match argument(rest) {
            Some((second, rest)) => (Some(second), rest),
            None => return Parsed::Torn,
        },
        None => (None, rest),
    };
    if !matches!(rest, b"" | b"\r") {
        return garbage(rest);
    }
    let nul = |text: &[u8]| text.contains(&0);
    if nul(word) || nul(&first) || second.as_deref().is_some_and(nul) {
        // The client would see a shorter name: not worth a promise.
        return Parsed::Skip;
    }
    let known = KINDS
        .iter()
        .find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
    Parsed::Item(Item {
        kind: known.map_or(ItemKind::Other, |(_, kind)| *kind),
        first: first.into(),
        second: second.map(Bytes::from),
    })
}

/// The rest of a line that is read over; `eatline` would read over a literal as well.
fn garbage(rest: &[u8]) -> Parsed {
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    if rest.ends_with(b"+}") {
        Parsed::Torn
    } else {
        Parsed::Skip
    }
}

/// Reads an argument (`getastring`); returns it and what follows it on the line.
fn argument(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    match text.first()? {
        b' ' | b'(' | b')' | b'\r' | b'{' => None,
        b'"' => {
            let mut out = Vec::new();
            let mut at = 1;
            loop {
                match text.get(at)? {
                    b'"' => return Some((out, &text[at + 1..])),
                    b'\r' => return None,
                    b'\\' => {
                        at += 1;
                        out.push(*text.get(at)?);
                    }
                    byte => out.push(*byte),
                }
                at += 1;
            }
        }
        _ => {
            let end = text.iter().position(|&byte| ENDS_ATOM[byte as usize]);
            let end = end.unwrap_or(text.len());
            Some((text[..end].to_vec(), &text[end..]))
        }
    }
}
