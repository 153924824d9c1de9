//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Flags;
use crate::tools::{drain, resync, status, verify};

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
    /// Where the file has a [terminate], whether `terminate` would: certificate, sync_server; where
    /// it has a [shard], whether `shard` would: folders, and Cyrus's files.
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
    /// Deal one channel's sync log out to several stock clients
    ///
    /// Runs on the master, in the place of that channel's client. Each user's lines go to one client
    /// at a time, in order. What it needs stands under [shard] in the file.
    #[command(after_help = EXIT_CODES)]
    Shard {
        /// The configuration file
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Print what Cyrus's files need for it, and do nothing else
        #[arg(long)]
        print_config: bool,
        /// Put everything that was dealt out back into the channel's log, for one client alone
        ///
        /// First end `syncmux shard` and the shards' clients.
        #[arg(long, conflicts_with = "print_config")]
        put_back: bool,
    },
    /// Show how a running syncmux is doing: lanes, sessions, users, lag, throughput
    ///
    /// Asks the admin endpoint. Users with work are shown by how long they have waited; users that
    /// the replica refuses with the replica's own words.
    #[command(after_help = EXIT_CODES)]
    Status(status::Args),
    /// Let a running syncmux finish what was acknowledged and end, as SIGTERM does
    ///
    /// Whatever starts syncmux again (systemd, Kubernetes) will do so: stop it there instead where
    /// it is to stay down.
    #[command(after_help = EXIT_CODES)]
    Drain(drain::Args),
    /// Have the rolling client compare users with the replica and repair them
    ///
    /// Writes a USER line for each into the channel's sync log, as Cyrus would, whether syncmux
    /// runs or not. Run it as root or as the user that Cyrus runs as.
    #[command(after_help = EXIT_CODES)]
    Resync(resync::Args),
    /// Compare users at both ends: mailboxes, UIDs, modseqs, CRCs, seen, subscriptions, sieve, quota
    ///
    /// Asks the replica and the master's own sync_server, which [channel.master] of the
    /// configuration names. Changes nothing. It is no measure of lag: who has work on the way
    /// differs until that is done. What differs is asked again twice before it counts.
    #[command(after_help = EXIT_CODES)]
    Verify(verify::Args),
    /// Print completions for a shell
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print a man page, of the whole or of one command
    ///
    /// For example: syncmux man status > syncmux-status.1
    Man {
        /// The command.
        command: Option<String>,
    },
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Fine,
    /// `verify` found differences.
    Differs,
    /// Wrong usage or configuration.
    Usage,
    /// Somebody could not be reached: the replica, the master, a running syncmux.
    Unreachable,
    /// An internal error.
    Internal,
}

const EXIT_CODES: &str = "Exit codes: 0 fine; 1 `verify` found differences; 64 wrong usage or \
                          configuration; 69 the replica, the master or the running syncmux could \
                          not be reached; 70 internal error.";

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
            Exit::Differs => 1,
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
