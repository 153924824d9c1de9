//! Cyrus's sync log: lines, quoting, and what a run covers (`sync_log.c`).

use bytes::Bytes;

/// One line of a sync log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// `MAILBOX name`
    Mailbox(Bytes),
    /// `USER userid`
    User(Bytes),
    /// `META userid`
    Meta(Bytes),
    /// `SEEN userid uniqueid-or-name`
    Seen(Bytes, Bytes),
    /// `SUB userid name`
    Sub(Bytes, Bytes),
    /// `UNMAILBOX name`
    Unmailbox(Bytes),
    /// `UNUSER userid`
    Unuser(Bytes),
    /// `QUOTA root`
    Quota(Bytes),
    /// `ANNOTATION name`
    Annotation(Bytes),
}

/// What the lines of a run name, in bounded memory.
#[derive(Debug, Default)]
pub struct Coverage {}
