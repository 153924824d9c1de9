//! Sessions, lanes, TLS, the sync directory, the admin endpoint. Thin: `core` decides.
//!
//! Nothing in here knows what a command means for another: sessions hand commands over and write
//! the answers they are given, lanes send what they are told to and tell what came back.

pub mod address;
pub mod admin;
pub mod ask;
pub mod certificates;
pub mod client_process;
mod compress;
mod conversation;
pub mod credentials;
pub mod dial;
pub mod directory_watch;
mod first_greeting;
mod handshake;
pub mod journal;
pub mod lane;
pub mod lane_connect;
pub mod listener;
pub mod lobby;
mod login;
pub mod memory;
pub mod rates;
pub mod registry;
mod replies;
mod sasl;
mod session;
pub mod shard;
pub mod shell;
pub mod spill;
pub mod stream;
pub mod sync_directory;
pub mod telemetry;
pub mod terminate;
pub mod tls;
pub mod transparent;
mod wire;
