//! Sessions, lanes, TLS, the sync directory, the admin endpoint. Thin: `core` decides.
//!
//! Nothing in here knows what a command means for another: sessions hand commands over and write
//! the answers they are given, lanes send what they are told to and tell what came back.

pub mod address;
mod compress;
mod conversation;
pub mod credentials;
pub mod lane;
pub mod lane_connect;
pub mod listener;
mod login;
pub mod registry;
mod replies;
mod sasl;
mod session;
pub mod spill;
pub mod stream;
pub mod tls;
mod wire;
