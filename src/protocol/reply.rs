//! What a replica answers: untagged lines, then one status line (`sync_parse_response` in
//! Cyrus's `sync_support.c` is the reading side).

use bytes::Bytes;

use super::body::Body;
use super::command::Guid;

/// The whole answer to one command.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The untagged lines in order.
    pub untagged: Vec<Untagged>,
    /// How it ended.
    pub status: Status,
}

impl Reply {
    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let lines = self.untagged.iter().map(Untagged::memory);
        lines.sum::<u64>() + self.status.text.len() as u64
    }
}

/// One untagged line, `* KIND value`.
#[derive(Clone, Debug)]
pub struct Untagged {
    /// The first word after `* `, in upper case: `MAILBOX`, `MISSING`, `MESSAGE`, `ENABLED` ...
    pub kind: Bytes,
    /// MBOXNAME of a `MAILBOX` line.
    pub mailbox: Option<Bytes>,
    /// UNIQUEID of a `MAILBOX` line.
    pub uniqueid: Option<Bytes>,
    /// A `MAILBOX` line with FOLDERMODSEQ: this replica compares SINCE_MODSEQ (3.2 and later).
    pub since: bool,
    /// The GUIDs of a `MISSING` line.
    pub guids: Vec<Guid>,
    /// The words of an `ENABLED`, `SASL` or other line of plain words.
    pub words: Vec<Bytes>,
    /// The whole line as it goes to a client, `* ` and line end included: byte for byte what the
    /// replica sent, but for literal headers, which are written `{n}` (every client reads these).
    pub raw: Body,
}

impl Untagged {
    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let names = [&self.kind].into_iter().chain(&self.mailbox);
        let names = names.chain(&self.uniqueid).chain(&self.words);
        let names: usize = names.map(Bytes::len).sum();
        let lists = size_of_val(&self.guids[..]) + size_of_val(&self.words[..]);
        self.raw.memory() + (size_of::<Self>() + names + lists) as u64
    }
}

/// The line that ends an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its first word.
    pub kind: StatusKind,
    /// The rest of the line: for `NO IMAP_SYNC_CHECKSUM Checksum Failure` this is
    /// `IMAP_SYNC_CHECKSUM Checksum Failure`.
    pub text: Bytes,
}

/// The first word of a status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusKind {
    /// `OK`
    Ok,
    /// `NO`
    No,
    /// `BAD`
    Bad,
    /// `BYE`: the replica closes the connection.
    Bye,
}

impl Status {
    /// The `IMAP_...` token of a NO or BAD, where there is one followed by a space: a token at the
    /// end of the line is not seen by the stock client (`sync_parse_response`).
    #[must_use]
    pub fn token(&self) -> Option<&[u8]> {
        let end = memchr::memchr(b' ', &self.text)?;
        self.text.starts_with(b"IMAP_").then(|| &self.text[..end])
    }

    /// The line as sent, without its end.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let word: &[u8] = match self.kind {
            StatusKind::Ok => b"OK ",
            StatusKind::No => b"NO ",
            StatusKind::Bad => b"BAD ",
            StatusKind::Bye => b"BYE ",
        };
        [word, &self.text].concat()
    }
}
