//! The csync wire, and the same in IMAP: bytes to commands and replies and back. No sockets, no
//! clock, no disk.
//!
//! Nothing in here knows about sessions, lanes or the scheduler; `core` and `io` import it.

pub mod body;
pub mod command;
pub mod command_reader;
pub mod dialect;
pub mod dlist;
mod eat;
mod facts;
mod fatal;
mod gather;
pub mod greeting;
pub mod names;
pub mod print;
pub mod reply;
pub mod reply_reader;
pub mod scan;
mod state;
pub mod synclog;
mod verbs;

pub use body::{Body, Piece, Spilled};
pub use command::{Apply, Command, File, Get, Guid, Kind};
pub use command_reader::{CommandReader, ReaderLimits};
pub use dialect::Dialect;
pub use fatal::Fatal;
pub use gather::Write;
pub use greeting::Greeting;
pub use names::{Site, UserKey};
pub use reply::{Reply, Status, StatusKind, Untagged};
pub use reply_reader::ReplyReader;
