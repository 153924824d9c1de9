//! What the program was told: a TOML file, flags, Cyrus's `imapd.conf`, checked as far as that
//! goes without touching the network.
//!
//! This folder knows files and words. It opens no port and connects to nothing; by the time it
//! hands out a [`Config`], addresses are addresses, certificates fit their keys and passwords are
//! read.

mod address;
mod admin;
mod build;
mod channel;
mod client_command;
mod dialect;
mod error;
mod file;
mod flags;
mod imapd_conf;
mod limits;
mod log;
mod pem;
mod rightnow;
mod secret;
mod shard;
mod terminate;
mod transparent;
mod units;

use std::path::PathBuf;
use std::time::Duration;

pub use address::{Address, Listen, is_same_host};
pub use admin::Outline;
pub(crate) use build::is_user;
pub(crate) use client_command::SyncClient;
pub use error::{Errors, Place, Problem, words};
pub use flags::Flags;
pub use imapd_conf::{ImapdConf, is_on};
pub use pem::Identity;
pub use secret::Password;
pub use shard::Shard;
pub use terminate::{Begin, Terminate};

use crate::core::event::Mode;
use crate::protocol::{Dialect, Site};

/// Everything that `run` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one.
    pub channels: Vec<Channel>,
    /// How clients are let in.
    pub client: Client,
    /// How this site names things.
    pub site: Site,
    /// Cyrus's own configuration, where it could be read.
    pub imapd_conf: Option<ImapdConf>,
    /// What is bounded, and by how much.
    pub limits: Limits,
    /// Where the admin endpoint listens, if at all.
    pub admin: Option<Listen>,
    /// How to log.
    pub log: Log,
    /// What is not wrong but should be seen.
    pub warnings: Vec<Problem>,
}

/// One rolling client and one replica.
#[derive(Clone, Debug)]
pub struct Channel {
    /// As in Cyrus; "" is the default channel.
    pub name: String,
    /// Where `log` of this channel is.
    pub sync_directory: Option<PathBuf>,
    /// How `listen` answers.
    pub mode: Mode,
    /// For the rolling client.
    pub listen: Vec<Listen>,
    /// Always strict.
    pub strict_listen: Vec<Listen>,
    /// For imapds that sync their own commits (`sync_rightnow_channel`): strict, with a limit on
    /// the wait.
    pub rightnow_listen: Vec<Listen>,
    /// Program and arguments of the rolling client that syncmux itself starts; may be empty.
    pub client_command: Vec<String>,
    /// What is spoken with clients.
    pub dialect: Dialect,
    /// Connections that the kernel redirects to `listen` are recognised.
    pub transparent: bool,
    /// Where it goes.
    pub replica: Replica,
    /// The master's own sync_server, which `verify` asks.
    pub master: Option<Replica>,
}

/// A replica and how to get in.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Where it is.
    pub address: Address,
    /// What is spoken there.
    pub dialect: Dialect,
    /// How the connection is protected.
    pub tls: Tls,
    /// Whom to trust; `None` is the system's roots.
    pub ca_file: Option<PathBuf>,
    /// The name that its certificate must carry; `None` without TLS.
    pub server_name: Option<String>,
    /// The client certificate.
    pub identity: Option<Identity>,
    /// How to log in; `None` is the best offered.
    pub mechanism: Option<Mechanism>,
    /// In whose name; `None` is the TCP client's own.
    pub login: Option<Login>,
    /// How many connections at once.
    pub lanes: usize,
    /// COMPRESS DEFLATE where the replica offers it.
    pub compress: bool,
}

/// A name and its password.
#[derive(Clone, Debug)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password; `None` for EXTERNAL, where the certificate speaks.
    pub password: Option<Password>,
}

/// How a connection to a replica is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Off,
    /// By the STARTTLS command.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// `PLAIN`
    Plain,
    /// `SCRAM-SHA-256`
    ScramSha256,
    /// `EXTERNAL`
    External,
}

/// How clients are let in.
#[derive(Clone, Debug)]
pub struct Client {
    /// Who may use the UNIX sockets.
    pub allowed_uids: Vec<u32>,
    /// Who checks the passwords of TCP clients.
    pub passwords: Passwords,
    /// For STARTTLS towards clients.
    pub identity: Option<Identity>,
    /// Passwords may cross the network unprotected: the configuration insists on it.
    pub passwords_without_tls: bool,
}

/// Who checks the passwords of TCP clients.
#[derive(Clone, Debug)]
pub enum Passwords {
    /// The replica, by a login with them.
    ByReplica,
    /// They are compared with these.
    Configured(Login),
}

/// What is bounded, and by how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: usize,
    /// Users with acknowledged but unconfirmed work, of one channel.
    pub unconfirmed_users: usize,
    /// Bytes of commands that wait for a lane, of one channel.
    pub queued_bytes: u64,
    /// Bytes of what is known of the replica's mailboxes, of one channel; 0 for nothing.
    pub known_state: u64,
    /// Bytes of one mailbox's new messages; where there are more the replica is asked first
    /// (RESERVE) which of them it has.
    pub reserve_above: u64,
    /// Message bytes held in memory, of all sessions; what is over this spills.
    pub staged_memory: u64,
    /// Where the unlinked temporary files of the spill are made.
    pub spill_directory: PathBuf,
    /// Bytes of the spill, of all sessions.
    pub spill_size: u64,
    /// The longest command, messages not counted.
    pub command_size: u64,
    /// The longest message.
    pub message_size: u64,
    /// How long a client may take to log in.
    pub login_time: Duration,
    /// How long the replica may take to answer one command.
    pub answer_timeout: Duration,
    /// How long an imapd on `rightnow_listen` waits for one commit.
    pub rightnow_answer_timeout: Duration,
    /// How long the replica may be away before the clients are sent away; under 30 minutes.
    pub replica_absence: Duration,
    /// After how long an unused lane is closed.
    pub lane_idle: Duration,
    /// How long units may take to finish after SIGTERM.
    pub drain_grace: Duration,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// As what.
    pub format: LogFormat,
    /// From which severity on.
    pub level: tracing::Level,
}

/// As what a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: 256,
            unconfirmed_users: 10_000,
            queued_bytes: 256 << 20,
            known_state: 24 << 20,
            reserve_above: 128 << 10,
            staged_memory: 64 << 20,
            spill_directory: spill_directory(),
            spill_size: 4 << 30,
            command_size: 256 << 20,
            message_size: 1 << 30,
            login_time: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(20 * 60),
            rightnow_answer_timeout: Duration::from_secs(5),
            replica_absence: Duration::from_secs(20 * 60),
            lane_idle: Duration::from_secs(5 * 60),
            drain_grace: Duration::from_secs(20),
        }
    }
}

/// `$TMPDIR`, or `/var/tmp`, which is a disk where `/tmp` may be memory.
fn spill_directory() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        None if std::path::Path::new("/var/tmp").is_dir() => "/var/tmp".into(),
        _ => std::env::temp_dir(),
    }
}

impl Default for Log {
    fn default() -> Self {
        Log {
            format: LogFormat::Text,
            level: tracing::Level::INFO,
        }
    }
}

impl Channel {
    /// Where redirected connections come: the TCP addresses of `listen`, if they are recognised.
    pub fn transparent_listen(&self) -> impl Iterator<Item = &Listen> {
        let listen = if self.transparent {
            &self.listen[..]
        } else {
            &[]
        };
        listen
            .iter()
            .filter(|listen| matches!(listen, Listen::Tcp(_)))
    }
}

impl Config {
    /// Reads the file that the flags name, puts the flags on top, and checks everything.
    pub fn load(flags: &Flags) -> Result<Self, Errors> {
        let Some(path) = &flags.config else {
            return build::build(None, flags);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problem::file(path, format!("can't be read: {}", words(&error))))?;
        build::build(Some((path, &text)), flags)
    }

    /// Reads a configuration from text; `path` is what the errors call it.
    pub fn parse(path: &std::path::Path, text: &str) -> Result<Self, Errors> {
        build::build(Some((path, text)), &Flags::default())
    }
}

impl std::fmt::Display for Mechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::External => "EXTERNAL",
        })
    }
}
