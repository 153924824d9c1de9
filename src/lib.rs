//! Fans the replication stream of one stock Cyrus `sync_client` out over parallel lanes to the
//! replica, in order per user.
//!
//! Imports run one way: [`io`] -> [`core`] -> [`protocol`].

pub mod check;
pub mod cli;
pub mod config;
pub mod core;
pub mod io;
pub mod protocol;
pub mod run;
pub mod settings;
pub mod shard;
pub mod systemd;
pub mod terminate;
pub mod tools;
