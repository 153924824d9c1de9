//! The replica's side: TLS in front of a `sync_server` that has none, or that nobody but this
//! machine can reach.
//!
//! A connection is let in here (TLS, the client's certificate, on a UNIX socket the login too) and
//! is then handed to the `sync_server` byte for byte. Nothing here knows what a command means.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::Reloaded;
use super::lobby::Lobby;
use super::stream::{self, Meter};
use super::telemetry::{Floods, metric};

mod dialog;
mod pump;
mod server;

pub use server::Server;

/// The pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// So many connections are named in `/status`.
const SHOWN: usize = 100;

/// How TLS begins on the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Either way. Who says nothing for so long is greeted in the clear and offered STARTTLS.
    Both(Duration),
    /// From the first byte.
    Implicit,
    /// By STARTTLS.
    Starttls,
}

/// Everything that connections have in common.
pub struct Terminator {
    /// The certificate, and whom it asks for one.
    pub tls: Arc<Reloaded<ServerConfig>>,
    /// Who may come, by a name in the certificate; `None` is everybody who has one.
    pub names: Option<Vec<String>>,
    /// How TLS begins.
    pub begin: Begin,
    /// Offer COMPRESS DEFLATE. The stock client takes it wherever it is offered.
    pub compress: bool,
    /// From the connection to the end of the login.
    pub login_time: Duration,
    /// The `sync_server` behind.
    pub server: Server,
    /// One for each connection that has logged in.
    pub permits: Arc<Semaphore>,
    /// Connections that have not logged in.
    pub lobby: Arc<Lobby>,
    /// Connections that are served.
    pub guests: Guests,
    /// All connections.
    pub tasks: TaskTracker,
    /// Cancelled: connections end as soon as nothing is under way on them.
    pub drain: CancellationToken,
    /// Bytes to and from the `sync_server`.
    pub meter: Meter,
    /// Bounds the log lines that strangers cause.
    pub floods: Floods,
}

/// Why a connection was not carried.
#[derive(Debug)]
enum Refused {
    /// There are enough of them.
    Full,
    /// No TLS, or not with a certificate that counts.
    Tls(String),
    /// The certificate has none of the names.
    Name(Vec<String>),
    /// It did not log in.
    Login(&'static str),
    /// The `sync_server` is not there, or is none.
    Server(String),
    /// The connection broke, or was given up, before anything else.
    Client(String),
    /// Nothing that an administrator needs to see.
    Quiet(&'static str),
}

/// Who is connected.
#[derive(Debug, Default)]
pub struct Guests(Mutex<(u64, BTreeMap<u64, Guest>)>);

#[derive(Debug)]
struct Guest {
    peer: SocketAddr,
    names: Vec<String>,
    since: Instant,
}

impl Terminator {
    /// Accepts connections until `stop`.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let this = Arc::clone(&self);
                    self.tasks
                        .spawn(async move { this.serve(stream, peer).await });
                }
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        stream::tune(&stream);
        let result = match self.carry(stream, peer).await {
            Ok(()) => "carried",
            Err(refused) => {
                let kind = refused.kind();
                if let Refused::Quiet(why) = refused {
                    tracing::debug!(%peer, "a connection is refused: {why}");
                } else if let Some(suppressed) = self.floods.admit(kind) {
                    let suppressed = (suppressed > 0).then_some(suppressed);
                    tracing::warn!(%peer, suppressed, "a connection is refused: {refused}");
                }
                kind
            }
        };
        metrics::counter!(metric::TERMINATED_TOTAL, "result" => result).increment(1);
    }

    async fn carry(&self, stream: TcpStream, peer: SocketAddr) -> Result<(), Refused> {
        let seat = self.lobby.enter();
        let deadline = Instant::now() + self.login_time;
        let admitted = tokio::select! {
            admitted = timeout_at(deadline, dialog::admit(self, stream)) => admitted,
            () = seat.needed() => return Err(Refused::others_wait()),
            () = self.drain.cancelled() => return Err(Refused::Quiet("terminate is stopping")),
        };
        let admitted = admitted.unwrap_or_else(|_| Err(Refused::late()))?;
        let login = match admitted.permit {
            Some(permit) => pump::Login::Done(permit),
            None => pump::Login::Awaited {
                seat,
                deadline,
                permits: Arc::clone(&self.permits),
            },
        };
        let entry = self.guests.enter(peer, &admitted.names);
        let suppressed = self.floods.admit("carried");
        if suppressed.is_some() {
            tracing::info!(%peer, names = ?admitted.names, "a connection is carried");
        }
        metrics::gauge!(metric::TERMINATED).increment(1);
        let end = pump::pump(admitted.ends, login, self.meter.clone(), &self.drain).await;
        metrics::gauge!(metric::TERMINATED).decrement(1);
        self.guests.leave(entry);
        let end = end?;
        if suppressed.is_some() {
            tracing::info!(%peer, "a connection has ended: {end}");
        }
        Ok(())
    }
}

impl Guests {
    fn enter(&self, peer: SocketAddr, names: &[String]) -> u64 {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.0 += 1;
        let entry = guests.0;
        let guest = Guest {
            peer,
            names: names.to_vec(),
            since: Instant::now(),
        };
        guests.1.insert(entry, guest);
        entry
    }

    fn leave(&self, entry: u64) {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.1.remove(&entry);
    }

    /// For `/status`: how many, and the oldest of them.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let show = |guest: &Guest| {
            let (peer, seconds) = (guest.peer.to_string(), guest.since.elapsed().as_secs());
            serde_json::json!({ "peer": peer, "names": guest.names, "seconds": seconds })
        };
        let shown: Vec<_> = guests.1.values().take(SHOWN).map(show).collect();
        serde_json::json!({ "connections": guests.1.len(), "oldest": shown })
    }
}

impl Refused {
    fn others_wait() -> Self {
        Refused::Client("others wait to be let in".to_owned())
    }

    fn late() -> Self {
        Refused::Client("it did not log in in time (login_time)".to_owned())
    }

    /// For metrics.
    fn kind(&self) -> &'static str {
        match self {
            Refused::Full => "full",
            Refused::Tls(_) => "tls",
            Refused::Name(_) => "name",
            Refused::Login(_) => "login",
            Refused::Server(_) => "server",
            Refused::Client(_) | Refused::Quiet(_) => "client",
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Full => {
                f.write_str("there are `connections` of them; raise that if they are wanted")
            }
            Refused::Tls(why) | Refused::Server(why) | Refused::Client(why) => f.write_str(why),
            Refused::Name(names) => write!(
                f,
                "its certificate is for {names:?}, of which none stands in allowed_names"
            ),
            Refused::Login(why) | Refused::Quiet(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Client(format!("the connection broke: {error}"))
    }
}
