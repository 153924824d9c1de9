//! Wires sessions, lanes, the core and the sync directory, and runs until SIGTERM.

use crate::config::Config;

/// Why `run` ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine does not let us do what the configuration asks for: a port is taken, the sync
    /// directory is held by another process.
    #[error("{0}")]
    Setup(String),
    /// A mistake in syncmux itself.
    #[error("{0}")]
    Internal(String),
}

/// Serves until SIGTERM and the drain after it.
pub async fn run(_config: Config) -> Result<(), RunError> {
    Err(RunError::Internal("there is nothing to run yet".to_owned()))
}
