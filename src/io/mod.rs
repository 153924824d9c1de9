//! Sessions, lanes, TLS, the sync directory, the admin endpoint. Thin: `core` decides.

pub mod sync_directory;
