//! What sessions share: where they are found by the core's actions, and what they are told.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rustls::ServerConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use super::address::Address;
use super::certificates::Reloaded;
use super::credentials::{CredentialStore, Verifier};
use super::lobby::Lobby;
use super::memory::MemoryGauge;
use super::spill::Spill;
use super::stream::Meter;
use crate::core::event::{Event, Mode, RunId, SessionId};
use crate::protocol::{Body, Dialect, Greeting, ReaderLimits};

/// Looks up the inode of `log-run`.
pub type RunLookup = Arc<dyn Fn() -> Option<RunId> + Send + Sync>;

/// One listener of a channel.
#[derive(Clone)]
pub struct ListenerSettings {
    /// Where to listen.
    pub address: Address,
    /// What is spoken there.
    pub dialect: Dialect,
    /// How its sessions are answered.
    pub mode: Mode,
    /// The rolling client's: its questions may be answered from known state.
    pub rolling: bool,
    /// From then on its clients are greeted at once even where the replica's greeting is not known:
    /// what they have to say is written into the sync log.
    pub greeted_by: Option<Instant>,
    /// For fan-out listeners.
    pub run: Option<RunLookup>,
}

/// How clients are let in.
#[derive(Clone, Default)]
pub struct ClientSettings {
    /// Who may connect to UNIX sockets.
    pub allowed_uids: Vec<u32>,
    /// STARTTLS towards clients, where there is a certificate for it.
    pub starttls: Option<Arc<Reloaded<ServerConfig>>>,
    /// STARTTLS must come before a password.
    pub require_starttls: bool,
    /// Lanes log in with the client's own name and password: the replica has no `username`.
    pub lanes_as_client: bool,
}

/// Limits of sessions.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// Sessions at once, over all listeners of a context.
    pub sessions: usize,
    /// TCP connections at once that have not logged in; the oldest makes way for a new one.
    pub strangers: usize,
    /// From the connection to the end of the login.
    pub login_time: Duration,
    /// How long an unknown greeting or an unanswered password check is waited for: less than the
    /// client's own 10 seconds.
    pub away_wait: Duration,
    /// Before a wrong password is answered.
    pub failed_pause: Duration,
    /// Wrong passwords in one connection.
    pub failed_logins: usize,
    /// Without a byte from the client while it is its turn.
    pub idle: Duration,
    /// Without progress while an answer is written.
    pub write_timeout: Duration,
    /// Bytes of one unfinished command in memory; what is beyond spills.
    pub command_memory: u64,
    /// Limits of one command.
    pub reader: ReaderLimits,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions: 1000,
            strangers: 100,
            login_time: Duration::from_secs(60),
            away_wait: Duration::from_secs(8),
            failed_pause: Duration::from_secs(3),
            failed_logins: 3,
            // The server's sync_timeout is 30 minutes; the client is the one to give up.
            idle: Duration::from_secs(32 * 60),
            write_timeout: Duration::from_secs(300),
            command_memory: 1024 * 1024,
            reader: ReaderLimits::default(),
        }
    }
}

/// What the sessions of one channel have in common.
pub struct SessionContext {
    /// The channel's name, for the log.
    pub channel: String,
    /// To the core. Unbounded, and yet not without bound: a session sends its next command only
    /// after the answer to the last one.
    pub events: mpsc::UnboundedSender<Event>,
    /// Where the core's answers find their session.
    pub registry: Arc<SessionRegistry>,
    /// The replica's greeting, once known.
    pub greeting: watch::Receiver<Option<Arc<Greeting>>>,
    /// Checks passwords.
    pub verifier: Arc<Verifier>,
    /// Keeps passwords for lanes.
    pub credentials: Arc<CredentialStore>,
    /// How clients are let in.
    pub client: ClientSettings,
    /// Limits.
    pub limits: SessionLimits,
    /// For what does not fit into memory.
    pub spill: Arc<Spill>,
    /// When to use it.
    pub memory: Arc<MemoryGauge>,
    /// Counts bytes.
    pub meter: Meter,
    /// One permit a session; [`Semaphore::new`] with `limits.sessions`.
    pub permits: Arc<Semaphore>,
    /// Connections before their login; [`Lobby::new`] with `limits.strangers`.
    pub lobby: Arc<Lobby>,
    /// All sessions.
    pub tasks: TaskTracker,
}

/// What a session is told.
#[derive(Debug)]
pub enum SessionOutput {
    /// Write this; the next command may come.
    Answer(Body),
    /// Write this and close.
    End(Body),
}

/// Finds sessions by their id, and gives ids out.
#[derive(Debug, Default)]
pub struct SessionRegistry {
    next: AtomicU64,
    sessions: Mutex<HashMap<SessionId, mpsc::UnboundedSender<SessionOutput>>>,
}

/// A session's place in the registry; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) session: SessionId,
    pub(super) outputs: mpsc::UnboundedReceiver<SessionOutput>,
    registry: Arc<SessionRegistry>,
}

impl SessionRegistry {
    /// Carries out `Action::Answer`. A session that is gone is passed over.
    pub fn answer(&self, session: SessionId, body: Body) {
        self.tell(session, SessionOutput::Answer(body));
    }

    /// Carries out `Action::EndSession`.
    pub fn end(&self, session: SessionId, body: Body) {
        self.tell(session, SessionOutput::End(body));
    }

    /// How many sessions are logged in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions().len()
    }

    /// Whether nobody is logged in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let session = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, outputs) = mpsc::unbounded_channel();
        self.sessions().insert(session, sender);
        Place {
            session,
            outputs,
            registry: Arc::clone(self),
        }
    }

    fn tell(&self, session: SessionId, output: SessionOutput) {
        if let Some(sender) = self.sessions().get(&session) {
            let _ = sender.send(output);
        }
    }

    fn sessions(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<SessionId, mpsc::UnboundedSender<SessionOutput>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.sessions().remove(&self.session);
    }
}

/// Who is at the other end, for the log.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    Tcp(std::net::SocketAddr),
    Unix { path: PathBuf, uid: u32 },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix { path, uid } => write!(f, "uid {uid} on {}", path.display()),
        }
    }
}
