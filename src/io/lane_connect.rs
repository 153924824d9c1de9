//! The way to a replica that is ready for commands: connect, TLS, greeting, login, and what comes
//! behind it (`handshake.rs`).

use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::certificates::{Look, Reloaded};
use super::credentials::{Credentials, LoginCheck};
use super::dial::{self, Own};
use super::handshake::{
    ask_capabilities, compress, harmless, leave, read_greeting, read_harmless, set_up, shown,
    starttls, unexpected,
};
use super::sasl::{self, Exchange};
use super::spill::Spill;
use super::stream::{self, BoxStream, Meter};
use super::tls::{self, ClientFiles, TlsError};
use super::wire::{Wire, server};
use crate::core::event::Pool;
use crate::protocol::reply_reader::Line;
use crate::protocol::{Dialect, Greeting, StatusKind};

/// How lanes are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// STARTTLS, insisted on.
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// No TLS: written out in the configuration, or a UNIX socket.
    Off,
}

/// Everything about the replica of one channel.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The channel's name, for metrics.
    pub channel: String,
    /// Where it is.
    pub address: Address,
    /// What is spoken there.
    pub dialect: Dialect,
    /// How lanes are encrypted; a UNIX socket never is.
    pub tls: TlsMode,
    /// Certificate authorities and client certificate.
    pub files: ClientFiles,
    /// The name that the certificate must carry; absent: the host of `address`.
    pub server_name: Option<String>,
    /// The SASL mechanism; absent: the best offered.
    pub mechanism: Option<String>,
    /// Whether to use COMPRESS DEFLATE where it is offered.
    pub compress: bool,
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// For TLS, greeting, login and set-up together.
    pub login_timeout: Duration,
    /// How long a lost lane waits for the replica's end of file: its last command may still run.
    pub linger: Duration,
    /// How long a lane that says EXIT waits for the replica to close.
    pub exit_wait: Duration,
    /// Bytes of one reply in memory; what is beyond spills.
    pub reply_memory: u64,
}

/// A replica to connect to.
#[derive(Debug)]
pub struct Replica {
    pub(super) settings: ReplicaSettings,
    pub(super) spill: Arc<Spill>,
    pub(super) meter: Meter,
    tls: Option<Tls>,
    pub(super) greeting: watch::Sender<Option<Arc<Greeting>>>,
    /// Since when nobody has been reached there, as long as nobody ever was.
    pub(super) unknown_since: OnceLock<Instant>,
}

struct Tls {
    config: Arc<Reloaded<ClientConfig>>,
    name: ServerName<'static>,
    shown: String,
}

/// A connection that is logged in and set up.
pub(super) struct Connected {
    pub(super) stream: BoxStream,
    /// What the replica has sent since; nothing, from a replica that follows the protocol.
    pub(super) received: Bytes,
    /// As in [`crate::core::event::Event::LaneOpened`].
    pub(super) enabled: Option<Vec<Bytes>>,
}

/// Why there is no connection, in sentences for the log.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is down, does not answer, or says that it is going down.
    #[error("{why}")]
    Unreachable {
        /// In words.
        why: String,
    },
    /// No TLS, or not with the one it should be.
    #[error("{why}")]
    Tls {
        /// In words.
        why: String,
    },
    /// It does not let these credentials in.
    #[error("{why}")]
    Login {
        /// In words.
        why: String,
    },
    /// There is no way to log in that both ends know.
    #[error("{why}")]
    Mechanism {
        /// In words.
        why: String,
    },
    /// It says something that a `sync_server` does not say.
    #[error("{why}")]
    Protocol {
        /// In words.
        why: String,
    },
}

impl ConnectError {
    /// For metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Login { .. } => "login",
            Self::Mechanism { .. } => "mechanism",
            Self::Protocol { .. } => "protocol",
        }
    }

    pub(super) fn unreachable(why: impl Into<String>) -> Self {
        Self::Unreachable { why: why.into() }
    }

    pub(super) fn login(why: impl Into<String>) -> Self {
        Self::Login { why: why.into() }
    }

    pub(super) fn protocol(why: impl Into<String>) -> Self {
        Self::Protocol { why: why.into() }
    }

    pub(super) fn tls(why: impl Into<String>) -> Self {
        Self::Tls { why: why.into() }
    }
}

impl Replica {
    /// Reads the certificates and gets ready; connects to nothing.
    pub fn new(settings: ReplicaSettings, spill: Arc<Spill>) -> Result<Arc<Self>, TlsError> {
        let tls = match (&settings.address, settings.tls) {
            (Address::Unix(_), _) | (_, TlsMode::Off) => None,
            (Address::Tcp { host, .. }, _) => {
                let shown = settings.server_name.clone().unwrap_or_else(|| host.clone());
                let files = settings.files.clone();
                let what = format!("the TLS set-up of the lanes to {}", settings.address);
                let load = move || tls::client_config(&files);
                Some(Tls {
                    config: Reloaded::new(what, settings.files.roles(), load)?,
                    name: tls::server_name(&shown)?,
                    shown,
                })
            }
        };
        Ok(Arc::new(Self {
            meter: Meter::new(&settings.channel, "replica"),
            greeting: watch::Sender::new(None),
            unknown_since: OnceLock::new(),
            settings,
            spill,
            tls,
        }))
    }

    /// What is made of certificates, to be watched.
    #[must_use]
    pub fn certificates(&self) -> Option<Arc<dyn Look>> {
        let tls = self.tls.as_ref()?;
        Some(Arc::clone(&tls.config) as _)
    }

    /// The replica's greeting, as last seen by a lane or a probe.
    #[must_use]
    pub fn greeting(&self) -> watch::Receiver<Option<Arc<Greeting>>> {
        self.greeting.subscribe()
    }

    /// Connects, does TLS, reads the greeting and goes away again. An imapd tells what it offers to
    /// a replication client only after a login with `credentials`.
    pub async fn probe_greeting(
        &self,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Greeting>, ConnectError> {
        let probe = async {
            let (mut wire, greeting) = self.reach().await?;
            match self.settings.dialect {
                Dialect::Csync => Ok((wire, greeting)),
                Dialect::Imap => {
                    let mechanism = self.settings.mechanism.as_deref();
                    let login = self.login(&mut wire, &greeting, mechanism, credentials);
                    login.await.map(|greeting| (wire, greeting))
                }
            }
        };
        let (wire, greeting) = self.within_login_time(probe).await?;
        leave(wire).await;
        Ok(greeting)
    }

    /// Whether the replica lets these credentials in, as an administrator, the way that lanes log
    /// in.
    pub async fn check_login(&self, credentials: Option<&Credentials>) -> Result<(), ConnectError> {
        self.try_login(self.settings.mechanism.as_deref(), credentials)
            .await
    }

    /// Whether a login there says anything about a password: a UNIX socket lets everybody in who
    /// can open it.
    #[must_use]
    pub fn checks_passwords(&self) -> bool {
        matches!(self.settings.address, Address::Tcp { .. })
    }

    /// The check of a client's password by a login to the replica.
    #[must_use]
    pub fn login_check(self: &Arc<Self>) -> LoginCheck {
        let replica = Arc::clone(self);
        Arc::new(move |credentials| {
            let replica = Arc::clone(&replica);
            Box::pin(async move { replica.check_password(&credentials).await })
        })
    }

    async fn check_password(&self, credentials: &Credentials) -> Result<(), ConnectError> {
        if !self.checks_passwords() {
            return Err(ConnectError::Mechanism {
                why: "a replica on a UNIX socket checks no passwords: give clients a username and \
                      password_file of their own under [client]"
                    .to_owned(),
            });
        }
        // EXTERNAL would log in by our own certificate, whatever the password is.
        let configured = self.settings.mechanism.as_deref();
        let mechanism = configured.filter(|name| !name.eq_ignore_ascii_case("EXTERNAL"));
        self.try_login(mechanism, Some(credentials)).await
    }

    async fn try_login(
        &self,
        mechanism: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<(), ConnectError> {
        let login = async {
            let (mut wire, greeting) = self.reach().await?;
            self.login(&mut wire, &greeting, mechanism, credentials)
                .await?;
            let who = credentials.map(|given| &given.username[..]);
            wire.command(harmless(wire.dialect)).await?;
            read_harmless(&mut wire, who).await?;
            Ok(wire)
        };
        leave(self.within_login_time(login).await?).await;
        Ok(())
    }

    /// Connects all the way.
    pub(super) async fn connect(
        &self,
        pool: &Pool,
        credentials: Option<&Credentials>,
    ) -> Result<Connected, ConnectError> {
        let connect = async {
            let (mut wire, greeting) = self.reach().await?;
            let mechanism = self.settings.mechanism.as_deref();
            let greeting = self
                .login(&mut wire, &greeting, mechanism, credentials)
                .await?;
            if self.settings.compress && greeting.compress {
                wire = compress(wire).await?;
            }
            let who = credentials.map(|given| &given.username[..]);
            let enabled = set_up(&mut wire, pool, who).await?;
            let (stream, received) = wire.into_parts();
            Ok(Connected {
                stream,
                received,
                enabled,
            })
        };
        self.within_login_time(connect).await
    }

    async fn within_login_time<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        // The connection's own limit is inside, and shorter where it matters.
        let limit = self.settings.connect_timeout + self.settings.login_timeout;
        timeout(limit, work).await.unwrap_or_else(|_| {
            Err(ConnectError::unreachable(format!(
                "{} accepts connections but was not ready within {} seconds: is it {}?",
                self.settings.address,
                self.settings.login_timeout.as_secs(),
                server(self.settings.dialect)
            )))
        })
    }

    /// A connection after TLS, and the greeting that counts.
    async fn reach(&self) -> Result<(Wire, Arc<Greeting>), ConnectError> {
        let address = &self.settings.address;
        // Known as our own until it has greeted us, or would have been found to be a loop.
        let limit = self.settings.connect_timeout;
        let silent = || {
            format!(
                "{address} does not answer (waited {} seconds)",
                limit.as_secs()
            )
        };
        let dialed = timeout(limit, self.dial()).await;
        let (stream, _own) = match dialed.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(connected) => connected,
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(ConnectError::unreachable(silent()));
            }
            Err(error) => return Err(ConnectError::unreachable(format!("{address}: {error}"))),
        };
        let dialect = self.settings.dialect;
        let mut wire = Wire::new(stream, dialect);
        let mut greeting = None;
        if let Some(tls) = &self.tls {
            if self.settings.tls == TlsMode::Starttls {
                let first = read_greeting(&mut wire).await?;
                starttls(&mut wire, &first).await?;
                // A sync_server greets again, and imapd is asked: of what it said in the clear, which
                // may be anybody's, only words for people are kept.
                greeting = (dialect == Dialect::Imap).then_some(first);
            }
            wire = Wire::new(self.handshake(tls, wire).await?, dialect);
        }
        let greeting = match greeting {
            Some(mut greeting) => {
                ask_capabilities(&mut wire, &mut greeting).await?;
                greeting
            }
            None => read_greeting(&mut wire).await?,
        };
        Ok((wire, self.publish(greeting)))
    }

    async fn dial(&self) -> std::io::Result<(BoxStream, Option<Own>)> {
        match &self.settings.address {
            Address::Tcp { host, port } => {
                let (stream, own) = dial::dial(host, *port, self.settings.connect_timeout).await?;
                stream::tune(&stream);
                Ok((Box::new(stream), Some(own)))
            }
            Address::Unix(path) => Ok((Box::new(UnixStream::connect(path).await?), None)),
        }
    }

    async fn handshake(&self, tls: &Tls, wire: Wire) -> Result<BoxStream, ConnectError> {
        let (stream, received) = wire.into_parts();
        if !received.is_empty() {
            // Plain bytes slipped in before TLS would be taken for the replica's own.
            return Err(ConnectError::tls(
                "something was sent in the clear between STARTTLS and TLS: refused",
            ));
        }
        let config = tls.config.current();
        let connector = TlsConnector::from(Arc::clone(&config));
        match connector.connect(tls.name.clone(), stream).await {
            Ok(stream) => {
                // A session that is resumed brings the certificate along without a look at it.
                let certificates = stream.get_ref().1.peer_certificates();
                if let Some(first) = certificates.and_then(<[_]>::first) {
                    tls::in_time(first, SystemTime::now()).map_err(|why| {
                        // The next one sees what the replica shows by now.
                        let mut fresh = ClientConfig::clone(&config);
                        fresh.resumption = rustls::client::Resumption::default();
                        tls.config.replace(&config, fresh);
                        ConnectError::tls(format!("the replica's certificate {why}"))
                    })?;
                }
                Ok(Box::new(stream))
            }
            Err(error) => Err(ConnectError::tls(tls::explain(&error, &tls.shown))),
        }
    }

    /// Clients are told of it, once it tells what is offered to them.
    fn publish(&self, greeting: Greeting) -> Arc<Greeting> {
        let greeting = Arc::new(greeting);
        if self.settings.dialect == Dialect::Imap && !greeting.replication {
            return greeting;
        }
        self.greeting.send_if_modified(|known| {
            let news = known.as_ref() != Some(&greeting);
            if news {
                *known = Some(Arc::clone(&greeting));
            }
            news
        });
        greeting
    }

    async fn login(
        &self,
        wire: &mut Wire,
        greeting: &Greeting,
        mechanism: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Greeting>, ConnectError> {
        if matches!(self.settings.address, Address::Unix(_)) {
            return Ok(Arc::new(greeting.clone()));
        }
        let no_way = |error: sasl::SaslError| ConnectError::Mechanism {
            why: error.to_string(),
        };
        let mechanism =
            sasl::choose(&greeting.mechanisms, mechanism, credentials.is_some()).map_err(no_way)?;
        let mut exchange = Exchange::start(mechanism, credentials.cloned()).map_err(no_way)?;
        wire.command(exchange.command().map_err(no_way)?.as_bytes())
            .await?;
        let status = loop {
            match wire.line().await? {
                Line::Continuation(challenge) => {
                    let answer = exchange
                        .answer(&challenge)
                        .map_err(|error| ConnectError::protocol(error.to_string()))?;
                    wire.send(answer.as_bytes()).await?;
                }
                Line::Status(status) if status.kind == StatusKind::Ok => {
                    exchange
                        .succeed()
                        .map_err(|error| ConnectError::login(error.to_string()))?;
                    break status;
                }
                Line::Status(status) if status.kind != StatusKind::Bye => {
                    let who = credentials.map(|given| format!(" of {:?}", given.username));
                    return Err(ConnectError::login(format!(
                        "the replica refuses the login{}: {}",
                        who.unwrap_or_default(),
                        shown(&status.line())
                    )));
                }
                line => return Err(unexpected("AUTHENTICATE", &line, wire.dialect)),
            }
        };
        let mut greeting = greeting.clone();
        if self.settings.dialect == Dialect::Csync {
            return Ok(Arc::new(greeting));
        }
        if !greeting.read_code(&status.text) {
            ask_capabilities(wire, &mut greeting).await?;
        }
        if greeting.replication {
            return Ok(self.publish(greeting));
        }
        Err(ConnectError::protocol(
            "the replica lets us in by IMAP but offers no X-REPLICATION: it is no Cyrus of 3.0 or \
             later, or its imapd.conf has it in suppress_capabilities, or what answers is a proxy",
        ))
    }
}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        // With TLS 1.3 a client has done its part before the server looks at its certificate.
        let is_tls = |inner: &(dyn std::error::Error + 'static)| inner.is::<rustls::Error>();
        if error.get_ref().is_some_and(|inner| is_tls(inner)) {
            return Self::tls(tls::explain(&error, "the replica"));
        }
        Self::unreachable(format!("the connection to the replica broke: {error}"))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({})", self.shown)
    }
}
