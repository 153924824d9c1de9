//! The configuration file as written: every key that there is, none of them checked yet.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::units::{Size, Span};

/// A key that may be absent, with its place in the file.
pub(super) type Key<T> = Option<Spanned<T>>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) channel: Vec<Channel>,
    pub(super) client: Client,
    pub(super) site: Site,
    pub(super) limits: Limits,
    pub(super) admin: Admin,
    pub(super) log: Log,
    pub(super) terminate: Option<Spanned<Terminate>>,
    pub(super) shard: Option<Spanned<Shard>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Shard {
    pub(super) channel: Key<String>,
    pub(super) sync_directory: Key<PathBuf>,
    pub(super) name: Key<String>,
    pub(super) shards: Key<u32>,
    pub(super) deal: Key<String>,
    pub(super) held_lines: Key<u32>,
    pub(super) mailbox_pairs: Key<bool>,
    pub(super) client_command: Key<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Terminate {
    pub(super) listen: Vec<Spanned<String>>,
    pub(super) server: Key<String>,
    pub(super) dialect: Key<String>,
    pub(super) cert_file: Key<PathBuf>,
    pub(super) key_file: Key<PathBuf>,
    pub(super) client_ca_file: Key<PathBuf>,
    pub(super) allowed_names: Key<Vec<String>>,
    pub(super) tls: Key<String>,
    pub(super) compress: Key<bool>,
    pub(super) connections: Key<u32>,
    pub(super) login_time: Key<Span>,
    pub(super) drain_grace: Key<Span>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Channel {
    pub(super) name: Key<String>,
    pub(super) sync_directory: Key<PathBuf>,
    pub(super) mode: Key<String>,
    pub(super) listen: Vec<Spanned<String>>,
    pub(super) strict_listen: Vec<Spanned<String>>,
    pub(super) rightnow_listen: Vec<Spanned<String>>,
    pub(super) client_command: Key<Vec<String>>,
    pub(super) transparent: Key<bool>,
    pub(super) dialect: Key<String>,
    pub(super) replica: Replica,
    pub(super) master: Option<Replica>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replica {
    pub(super) address: Key<String>,
    pub(super) dialect: Key<String>,
    pub(super) tls: Key<String>,
    pub(super) ca_file: Key<PathBuf>,
    pub(super) server_name: Key<String>,
    pub(super) cert_file: Key<PathBuf>,
    pub(super) key_file: Key<PathBuf>,
    pub(super) mechanism: Key<String>,
    pub(super) username: Key<String>,
    pub(super) password_file: Key<PathBuf>,
    pub(super) lanes: Key<u32>,
    pub(super) compress: Key<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Client {
    pub(super) allowed_uids: Key<Vec<Spanned<Uid>>>,
    pub(super) passwords: Key<String>,
    pub(super) username: Key<String>,
    pub(super) password_file: Key<PathBuf>,
    pub(super) cert_file: Key<PathBuf>,
    pub(super) key_file: Key<PathBuf>,
    pub(super) passwords_without_tls: Key<bool>,
}

/// A user of this machine, by number or by name.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a user's number or name")]
pub(super) enum Uid {
    Number(u32),
    Name(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Site {
    pub(super) imapd_conf: Key<PathBuf>,
    pub(super) unixhierarchysep: Key<bool>,
    pub(super) virtdomains: Key<Virtdomains>,
    pub(super) defaultdomain: Key<String>,
    pub(super) deletedprefix: Key<String>,
}

/// As in imapd.conf, where `yes` and `no` are understood too.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"off\", \"userid\" or \"on\"")]
pub(super) enum Virtdomains {
    Switch(bool),
    Name(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) sessions: Key<u32>,
    pub(super) unconfirmed_users: Key<u32>,
    pub(super) queued_bytes: Key<Size>,
    pub(super) known_state: Key<Size>,
    pub(super) reserve_above: Key<Size>,
    pub(super) staged_memory: Key<Size>,
    pub(super) spill_directory: Key<PathBuf>,
    pub(super) spill_size: Key<Size>,
    pub(super) command_size: Key<Size>,
    pub(super) message_size: Key<Size>,
    pub(super) login_time: Key<Span>,
    pub(super) answer_timeout: Key<Span>,
    pub(super) rightnow_answer_timeout: Key<Span>,
    pub(super) replica_absence: Key<Span>,
    pub(super) lane_idle: Key<Span>,
    pub(super) drain_grace: Key<Span>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: Key<String>,
    pub(super) open_to_network: Key<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Key<String>,
    pub(super) level: Key<String>,
}
