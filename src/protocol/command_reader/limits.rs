//! What is read from a peer at most.

use crate::protocol::facts::Bounds;
use crate::protocol::scan::ScanLimits;

/// What is taken from a client at most. What exceeds a limit ends the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderLimits {
    /// Bytes of one command (or answer), contents of messages left out: 256 MiB.
    pub text: u64,
    /// Bytes of one message: 1 GiB.
    pub message: u64,
    /// Elements of one APPLY MESSAGE: 4,096 (the stock client sends up to 1,024).
    pub files: usize,
    /// GUIDs or RECORDs in one list: 4 million.
    pub elements: usize,
    /// Names, or GUIDs of a RESERVE, in one list: 100,000 (the stock client reserves up to 8,193
    /// and names up to 1,001 mailboxes, or those of one user).
    pub names: usize,
    /// Nesting of lists: 16 (the deepest of Cyrus's own, an annotation of a RECORD, is 5).
    pub depth: usize,
    /// Bytes of a line that is not a dlist, and of any line before the client has logged in:
    /// 64 KiB.
    pub line: usize,
}

impl Default for ReaderLimits {
    fn default() -> Self {
        ReaderLimits {
            text: 256 << 20,
            message: 1 << 30,
            files: 4096,
            elements: 4_000_000,
            names: 100_000,
            depth: 16,
            line: 64 << 10,
        }
    }
}

impl ReaderLimits {
    pub(crate) fn scan(&self) -> ScanLimits {
        ScanLimits {
            depth: self.depth,
            text: self.text,
            file: self.message,
        }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            elements: self.elements,
            names: self.names,
            files: self.files,
        }
    }
}
