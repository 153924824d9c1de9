//! Sessions, lanes, TLS, the sync directory, the admin endpoint. Thin: `core` decides.

pub mod address;
pub mod admin;
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
pub mod sync_directory;
pub mod telemetry;
pub mod tls;
mod wire;
