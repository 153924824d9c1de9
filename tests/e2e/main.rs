//! End to end against Debian's Cyrus on both sides and the stock `sync_client`.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod support;

mod mail;
