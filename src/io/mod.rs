//! Sessions, lanes, TLS, the sync directory, the admin endpoint. Thin: `core` decides.

pub mod admin;
pub mod sync_directory;
pub mod telemetry;
