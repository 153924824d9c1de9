//! What a `sync_server` says first (`dobanner` in Cyrus's `sync_server.c`).

use bytes::Bytes;

/// A replica's greeting, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// Of `* SASL PLAIN SCRAM-SHA-256`.
    pub mechanisms: Vec<String>,
    /// `* STARTTLS`
    pub starttls: bool,
    /// `* COMPRESS DEFLATE`
    pub compress: bool,
    /// Every other capability line in order, without `* `: `SIEVE-MAILBOX`, `REPLICATION-ARCHIVE`.
    pub capabilities: Vec<Bytes>,
    /// The text of the last line after `* OK `: `NAME Cyrus sync server VERSION`.
    pub text: Bytes,
}
