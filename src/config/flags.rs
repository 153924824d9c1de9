//! The settings of the first channel, its replica and the admin endpoint as flags: a simple
//! set-up needs no file. A flag goes before the file's key of the same name.

use std::path::PathBuf;

/// Flags that `run` and `check` share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The configuration file; without it the flags below are all there is
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The folder of Cyrus's sync `log`, such as /var/lib/cyrus/sync; needed for fan-out
    #[arg(long, value_name = "DIR")]
    pub sync_directory: Option<PathBuf>,

    /// `fan-out` acknowledges what the sync log covers at once; `strict` waits for the replica
    #[arg(long, value_name = "fan-out|strict")]
    pub mode: Option<String>,

    /// Where the rolling client connects: IP:PORT or unix:/PATH; can be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,

    /// Where other clients connect, always answered strictly; can be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub strict_listen: Vec<String>,

    /// The replica: HOST:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    pub replica: Option<String>,

    /// TLS to the replica: `starttls` (the default), `implicit` or `off`
    #[arg(long, value_name = "starttls|implicit|off")]
    pub replica_tls: Option<String>,

    /// The CA certificates that the replica's is verified with; without it the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// The name in the replica's certificate; without it the host of its address
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,

    /// A certificate for the replica to verify
    #[arg(long, value_name = "FILE")]
    pub cert_file: Option<PathBuf>,

    /// The key of --cert-file
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// How to log in: `PLAIN`, `SCRAM-SHA-256` or `EXTERNAL`; without it the best offered
    #[arg(long, value_name = "MECHANISM")]
    pub mechanism: Option<String>,

    /// Who logs in to the replica; without it each client's own name and password
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,

    /// A file that holds the password of --username
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// How many connections to the replica, 1 to 256 [default: 8]
    #[arg(long, value_name = "N")]
    pub lanes: Option<u32>,

    /// Cyrus's configuration [default: /etc/imapd.conf where there is one]
    #[arg(long, value_name = "FILE")]
    pub imapd_conf: Option<PathBuf>,

    /// Where /metrics, /ready, /live and /status are served: IP:PORT on loopback, or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<String>,

    /// Let --admin-listen be an address that the network can reach; drain and log level stay local
    #[arg(long)]
    pub admin_open_to_network: bool,

    /// `text` or `json` [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,

    /// `error`, `warn`, `info`, `debug` or `trace` [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}
