//! From the configuration to what sessions and lanes want to know. The configuration knows
//! nothing of them, and they know nothing of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{self, Address, Channel, Config, Limits, Listen, Login, Tls};
use crate::core::{self, event::Mode};
use crate::io::address;
use crate::io::certificates::Reloaded;
use crate::io::credentials::{Credentials, Passwords, Verifier};
use crate::io::lane_connect::{Replica, ReplicaSettings, TlsMode};
use crate::io::registry::{ClientSettings, ListenerSettings, SessionLimits};
use crate::io::sync_directory::RunLookup;
use crate::io::tls::{self, ClientFiles, ServerFiles, TlsError};
use crate::io::transparent::Target;
use crate::protocol::{Dialect, ReaderLimits};

/// Where something is, as those who connect there want to know it.
#[must_use]
pub fn address(at: &Address) -> address::Address {
    match at {
        Address::Tcp { host, port } => address::Address::Tcp {
            host: host.clone(),
            port: *port,
        },
        Address::Unix(path) => address::Address::Unix(path.clone()),
    }
}

/// What a lane is told about the replica of this channel.
#[must_use]
pub fn replica(channel: &Channel, limits: &Limits) -> ReplicaSettings {
    let replica = &channel.replica;
    let identity = replica.identity.as_ref();
    ReplicaSettings {
        channel: channel.name.clone(),
        address: address(&replica.address),
        dialect: replica.dialect,
        tls: match replica.tls {
            Tls::Off => TlsMode::Off,
            Tls::StartTls => TlsMode::Starttls,
            Tls::Implicit => TlsMode::Implicit,
        },
        files: ClientFiles {
            ca_file: replica.ca_file.clone(),
            identity: identity.map(|files| (files.cert_file.clone(), files.key_file.clone())),
        },
        server_name: replica.server_name.clone(),
        mechanism: replica.mechanism.map(|mechanism| mechanism.to_string()),
        compress: replica.compress,
        connect_timeout: Duration::from_secs(10),
        login_timeout: Duration::from_secs(30),
        linger: limits.answer_timeout.min(Duration::from_secs(30)),
        exit_wait: Duration::from_secs(2),
        reply_memory: 1 << 20,
    }
}

/// The name and password of a lane; `None` where the certificate speaks alone.
#[must_use]
pub fn credentials(login: &Login) -> Option<Credentials> {
    let password = login.password.as_ref()?;
    Some(Credentials::new(login.username.as_str(), password.expose()))
}

/// The listeners that a channel has to itself; `run` is its sync directory's.
#[must_use]
pub fn listeners(
    channel: &Channel,
    limits: &Limits,
    run: Option<&RunLookup>,
) -> Vec<ListenerSettings> {
    let own = channel
        .listen
        .iter()
        .filter(|listen| !channel.transparent_listen().any(|other| other == *listen))
        .map(|listen| rolling(channel, listen, run));
    let strict = channel
        .strict_listen
        .iter()
        .map(|listen| listener(listen, Mode::Strict, channel.dialect));
    // A replica that is away from the start is waited for once, and not by every imapd.
    let by = Instant::now() + limits.rightnow_answer_timeout;
    let right_now = channel
        .rightnow_listen
        .iter()
        .map(|listen| ListenerSettings {
            greeted_by: Some(by),
            ..listener(listen, Mode::RightNow, channel.dialect)
        });
    own.chain(strict).chain(right_now).collect()
}

/// Those to which its connections are redirected; other channels may have the same.
#[must_use]
pub fn transparent_listeners(channel: &Channel, run: Option<&RunLookup>) -> Vec<ListenerSettings> {
    let listen = channel.transparent_listen();
    listen.map(|listen| rolling(channel, listen, run)).collect()
}

/// Where a channel's redirected connections were to go.
#[must_use]
pub fn target(channel: &Channel) -> Option<Target> {
    match &channel.replica.address {
        Address::Tcp { host, port } => Some(Target::new(host, *port)),
        Address::Unix(_) => None,
    }
}

fn rolling(channel: &Channel, listen: &Listen, run: Option<&RunLookup>) -> ListenerSettings {
    ListenerSettings {
        rolling: true,
        run: run.map(|run| {
            let run = run.clone();
            Arc::new(move || run.current()) as _
        }),
        ..listener(listen, channel.mode, channel.dialect)
    }
}

fn listener(listen: &Listen, mode: Mode, dialect: Dialect) -> ListenerSettings {
    ListenerSettings {
        address: match listen {
            Listen::Tcp(address) => address::Address::Tcp {
                host: address.ip().to_string(),
                port: address.port(),
            },
            Listen::Unix(path) => address::Address::Unix(path.clone()),
        },
        dialect,
        mode,
        rolling: false,
        greeted_by: None,
        run: None,
    }
}

/// How the clients of a channel are let in.
pub fn client(config: &Config, channel: &Channel) -> Result<ClientSettings, TlsError> {
    let client = &config.client;
    let starttls = client.identity.as_ref().map(|identity| {
        let files = ServerFiles {
            cert_file: identity.cert_file.clone(),
            key_file: identity.key_file.clone(),
            client_ca_file: None,
        };
        let roles = files.roles();
        let load = move || tls::server_config(&files);
        Reloaded::new("the certificate for clients", roles, load)
    });
    Ok(ClientSettings {
        allowed_uids: client.allowed_uids.clone(),
        // Who has a certificate for it means it to be used: the stock client takes STARTTLS only
        // where nothing else is offered.
        require_starttls: starttls.is_some() && !client.passwords_without_tls,
        starttls: starttls.transpose()?,
        lanes_as_client: channel.replica.login.is_none(),
    })
}

/// Who checks the passwords of a channel's clients.
#[must_use]
pub fn verifier(config: &Config, replica: &Arc<Replica>) -> Verifier {
    let configured = match &config.client.passwords {
        config::Passwords::Configured(login) => credentials(login),
        config::Passwords::ByReplica => None,
    };
    Verifier::new(match configured {
        Some(credentials) => Passwords::Configured(credentials),
        None => Passwords::ByReplica(replica.login_check()),
    })
}

/// What bounds the core of a channel.
#[must_use]
pub fn core_limits(config: &Config, channel: &Channel) -> core::Limits {
    let limits = &config.limits;
    core::Limits {
        lanes: channel.replica.lanes,
        unconfirmed_users: limits.unconfirmed_users,
        queued_bytes: limits.queued_bytes,
        known_bytes: limits.known_state,
        ask_bytes: limits.reserve_above,
        staged_bytes: limits.staged_memory.saturating_add(limits.spill_size),
        noted_bytes: limits.staged_memory,
        absence: limits.replica_absence,
        answer_timeout: limits.answer_timeout,
        rightnow: (!channel.rightnow_listen.is_empty()).then_some(limits.rightnow_answer_timeout),
        drain_grace: limits.drain_grace,
        idle_lane: limits.lane_idle,
        ..core::Limits::default()
    }
}

/// What bounds a session.
#[must_use]
pub fn session_limits(limits: &Limits) -> SessionLimits {
    SessionLimits {
        sessions: limits.sessions,
        login_time: limits.login_time,
        reader: ReaderLimits {
            text: limits.command_size,
            message: limits.message_size,
            ..ReaderLimits::default()
        },
        ..SessionLimits::default()
    }
}
