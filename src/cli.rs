//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Flags;

/// Replicates a Cyrus IMAP master over many connections at once
///
/// syncmux stands between the stock sync_client of a Cyrus master and the sync_server of its
/// replica: sync_host of imapd.conf names syncmux, and syncmux knows the replica.
#[derive(Debug, Parser)]
#[command(name = "syncmux", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients until SIGTERM
    ///
    /// Everything is set in a TOML file (--config), by the flags below, or by both: a flag goes
    /// before the file's key of the same name, and speaks of the first channel.
    ///
    /// The simplest set-up, on the master:
    ///   syncmux run --listen 127.0.0.1:2005 --replica replica.example.com:2005
    ///       --sync-directory /var/lib/cyrus/sync
    #[command(verbatim_doc_comment, after_help = EXIT_CODES)]
    Run(Flags),
    /// Look whether `run` would work: configuration, sync directory, a login to the replica
    ///
    /// Where the file has a [terminate], whether `terminate` would: certificate, sync_server.
    ///
    /// Says in plain words what is wrong and how to mend it. Changes nothing; one empty file is made
    /// in the sync directory and removed. The ports are not tried, so it can run beside syncmux.
    #[command(after_help = EXIT_CODES)]
    Check(Flags),
    /// Stand in front of a replica's sync_server: TLS, and certificates instead of passwords
    ///
    /// Runs on the replica's side. Listens with TLS, asks for the client's certificate where it is
    /// told to, and hands each connection to the sync_server of this machine. What it needs stands
    /// under [terminate] in the file.
    #[command(after_help = EXIT_CODES)]
    Terminate {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Fine,
    /// Wrong usage or configuration.
    Usage,
    /// `check` could not reach the replica.
    Unreachable,
    /// An internal error.
    Internal,
}

const EXIT_CODES: &str = "Exit codes: 0 fine; 64 wrong usage or configuration; 69 `check` could \
                          not reach the replica; 70 internal error.";

impl Cli {
    /// Reads the command line; where that is wrong, or asks for help, says so and hands back how
    /// to end.
    pub fn read() -> Result<Self, Exit> {
        Self::try_parse().map_err(|error| {
            // Help goes to standard output and is no error.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Fine
            };
            // Nobody is left to tell when even this can't be written.
            let _ = error.print();
            exit
        })
    }
}

impl Exit {
    /// The number (`sysexits.h`).
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Fine => 0,
            Exit::Usage => 64,
            Exit::Unreachable => 69,
            Exit::Internal => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
