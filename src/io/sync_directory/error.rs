//! What can go wrong in the sync directory, in words.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::words;
use crate::core::event::RunId;

/// A failed action on the sync directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system said no.
    #[error("can't {action} {}: {}", path.display(), words(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another syncmux works here.
    #[error("{} is held by {}: two syncmux can't share a sync directory", path.display(), holder(*pid))]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who, as far as it has said so.
        pid: Option<u32>,
    },
    /// Files made here would not belong to Cyrus.
    #[error(
        "{} belongs to uid {owner}, and syncmux runs as uid {euid}: a `log` made by another user \
         stops replication, so run syncmux as the directory's owner or as root",
        path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        euid: u32,
    },
    /// `log-run` is another file by now, or gone.
    #[error("run {} is not log-run any more", run.0)]
    Changed {
        /// The run asked for.
        run: RunId,
    },
    /// What we work on was taken away.
    #[error(
        "{} is not the file any more that was taken over: another client works on this log, end it \
         (a sync_client of this channel in cyrus.conf or in systemd)",
        path.display()
    )]
    TakenAway {
        /// `log-run`.
        path: PathBuf,
    },
    /// The stock client of the log that is to be taken over.
    #[error(
        "the client of the log in {} still runs{}, and two clients of one log spoil each other's work: \
         end it for good, and what starts it (DAEMON in cyrus.conf, systemctl disable --now \
         cyrus-sync-client, client_command of syncmux run); lines are dealt as soon as it has ended",
        path.display(),
        pid.map_or(String::new(), |pid| format!(" (process {pid})"))
    )]
    ClientRuns {
        /// The folder.
        path: PathBuf,
        /// Its process, where that is known.
        pid: Option<i32>,
    },
    /// A link of this name is there and is no link of this run.
    #[error("{} is in the way and is no link of log-run", path.display())]
    InTheWay {
        /// The link.
        path: PathBuf,
    },
    /// `log` was renamed each time before it was locked.
    #[error("{} was renamed again and again before it could be locked", path.display())]
    Busy {
        /// The log.
        path: PathBuf,
    },
    /// Less was written than asked for.
    #[error("only {written} of {wanted} bytes went into {}; taken back", path.display())]
    Short {
        /// The log.
        path: PathBuf,
        /// So many.
        written: usize,
        /// Of so many.
        wanted: usize,
    },
}

impl Error {
    /// What the system said of a folder.
    pub(crate) fn in_words(action: &'static str, path: &Path, source: io::Error) -> Self {
        Error::io(action, path)(source)
    }

    /// For `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}
