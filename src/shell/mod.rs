//! What does: sockets, files, clocks, threads.

#![allow(clippy::disallowed_methods, reason = "the shell is where time comes from")]

pub mod logging;
pub mod process;

use crate::config::Config;

/// Why a server ended other than by being asked to; each with the exit code it has in ZooKeeper.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory is missing, or not ours to use.
    #[error("{0}")]
    DataDir(String),
    #[error("{0}")]
    Bind(String),
    #[error("{0}")]
    Admin(String),
    /// The log or a snapshot could not be written.
    #[error("{0}")]
    Storage(String),
    #[error("{0}")]
    Other(String),
}

impl RunError {
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::DataDir(_) => 3,
            RunError::Admin(_) => 4,
            RunError::Storage(_) => 10,
            RunError::Bind(_) | RunError::Other(_) => 1,
        }
    }
}

/// Runs a server until it is asked to end.
pub fn run(_config: Config) -> Result<(), RunError> {
    Err(RunError::Other("this build holds no server".to_owned()))
}
