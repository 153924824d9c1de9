//! When a peer can't be read any further.

use super::scan::Trouble;

/// The stream can't be read any further: where the bad command ends can't be known, or a limit
/// was exceeded. The connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}, byte {at}: {why}")]
pub struct Fatal {
    /// What was read: `APPLY MAILBOX`, `a command`, `an answer`.
    pub what: String,
    /// How many bytes of it had been read, contents of messages left out.
    pub at: u64,
    /// In words, for the log.
    pub why: String,
    /// The line for the client (no CRLF): what a stock server says before it closes
    /// (`fatal` in `sync_server.c`), or `BYE ...`. Nothing is to be sent to a replica.
    pub answer: String,
}

impl Fatal {
    pub(crate) fn new(what: impl Into<String>, at: u64, why: impl Into<String>) -> Self {
        let why = why.into();
        Fatal {
            what: what.into(),
            at,
            answer: format!("BYE {why}"),
            why,
        }
    }

    /// One that a stock server has as well.
    pub(crate) fn stock(what: impl Into<String>, at: u64, why: &str) -> Self {
        Fatal {
            answer: format!("* Fatal error: {why}"),
            ..Fatal::new(what, at, why)
        }
    }

    pub(crate) fn from_trouble(what: impl Into<String>, at: u64, trouble: Trouble) -> Self {
        match trouble {
            Trouble::Malformed => Fatal::new(what, at, "malformed"),
            Trouble::Fatal { why, stock: None } => Fatal::new(what, at, why),
            Trouble::Fatal {
                why,
                stock: Some(stock),
            } => Fatal {
                why,
                ..Fatal::stock(what, at, stock)
            },
        }
    }
}
