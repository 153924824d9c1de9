//! A listener with sessions; the test plays the core.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use syncmux::core::event::{Event, Identity, Mode, RunId, SessionId};
use syncmux::io::address::Address;
use syncmux::io::credentials::{CredentialStore, Credentials, Passwords, Verifier};
use syncmux::io::listener::Listener;
use syncmux::io::lobby::Lobby;
use syncmux::io::memory::MemoryGauge;
use syncmux::io::registry::{
    ClientSettings, ListenerSettings, SessionContext, SessionLimits, SessionRegistry,
};
use syncmux::io::stream::Meter;
use syncmux::io::transparent::{Door, Target};
use syncmux::protocol::{Command, Dialect, Greeting};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Peer, spill};
pub const BANNER: &str =
    "* SASL PLAIN\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n";
pub const LOGIN: &[u8] = b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";

pub struct Site {
    pub events: UnboundedReceiver<Event>,
    pub registry: Arc<SessionRegistry>,
    pub greeting: watch::Sender<Option<Arc<Greeting>>>,
    pub address: Address,
    pub stop: CancellationToken,
    pub credentials: Arc<CredentialStore>,
}

pub struct Setup {
    pub limits: SessionLimits,
    pub client: ClientSettings,
    pub dialect: Dialect,
    pub address: Address,
    pub spill: u64,
    pub passwords: Passwords,
    /// The listener is that of imapds that sync their own commits: a greeting that is not known is
    /// waited for no longer.
    pub right_now: bool,
    /// Of each channel behind a transparent listener; none for a plain one.
    pub targets: Vec<Target>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: SessionLimits {
                failed_pause: Duration::from_millis(10),
                away_wait: Duration::from_millis(300),
                login_time: Duration::from_secs(3),
                command_memory: 64 * 1024,
                ..SessionLimits::default()
            },
            client: ClientSettings::default(),
            dialect: Dialect::Csync,
            address: "127.0.0.1:0".parse().unwrap(),
            spill: 1 << 30,
            passwords: Passwords::Configured(Credentials::new("repl", "replpw")),
            right_now: false,
            targets: Vec::new(),
        }
    }
}

impl Setup {
    pub async fn start(self) -> Site {
        let (events_in, events) = unbounded_channel();
        let registry = Arc::new(SessionRegistry::default());
        let credentials = Arc::new(CredentialStore::default());
        let known = Greeting {
            capabilities: vec![Bytes::from("SIEVE-MAILBOX")],
            text: Bytes::from("replica Cyrus sync server 3.6.1"),
            compress: true,
            ..Greeting::default()
        };
        let (greeting, greetings) = watch::channel(Some(Arc::new(known)));
        let context = SessionContext {
            channel: String::new(),
            events: events_in,
            registry: Arc::clone(&registry),
            greeting: greetings,
            verifier: Arc::new(Verifier::new(self.passwords)),
            credentials: Arc::clone(&credentials),
            client: self.client,
            permits: Arc::new(Semaphore::new(self.limits.sessions)),
            lobby: Lobby::new(self.limits.strangers),
            limits: self.limits,
            memory: MemoryGauge::new(u64::MAX, spill(1)),
            spill: spill(self.spill),
            meter: Meter::new("", "client"),
            tasks: TaskTracker::new(),
        };
        let settings = ListenerSettings {
            greeted_by: self.right_now.then(std::time::Instant::now),
            address: self.address.clone(),
            dialect: self.dialect,
            mode: if self.right_now {
                Mode::RightNow
            } else {
                Mode::FanOut
            },
            rolling: !self.right_now,
            run: Some(Arc::new(|| Some(RunId(42)))),
        };
        let context = Arc::new(context);
        let listener = if self.targets.is_empty() {
            Listener::bind(settings, context).await.unwrap()
        } else {
            let door = |target| Door::new(Arc::clone(&context), settings.clone(), Some(target));
            let doors = self.targets.into_iter().map(door).collect();
            Listener::bind_transparent(self.address.clone(), doors)
                .await
                .unwrap()
        };
        let address = match listener.local_addr() {
            None => self.address,
            Some(address) => address.to_string().parse().unwrap(),
        };
        let stop = CancellationToken::new();
        tokio::spawn(listener.run(stop.clone()));
        Site {
            events,
            registry,
            greeting,
            address,
            stop,
            credentials,
        }
    }
}

impl Site {
    pub async fn connect(&self) -> Peer {
        match &self.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                Peer(Box::new(stream.unwrap()))
            }
            Address::Unix(path) => Peer(Box::new(UnixStream::connect(path).await.unwrap())),
        }
    }

    pub async fn logged_in(&mut self) -> (Peer, SessionId) {
        let mut client = self.connect().await;
        client.expect(BANNER).await;
        client.send(LOGIN).await;
        client.expect("OK Success (no protection)\r\n").await;
        let session = self.opened().await;
        (client, session)
    }

    pub async fn event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .expect("an event in time")
            .expect("an event")
    }

    pub async fn opened(&mut self) -> SessionId {
        match self.event().await {
            Event::SessionOpened {
                session,
                mode: Mode::FanOut,
                rolling: true,
                identity: Identity::Configured,
            }
            | Event::SessionOpened {
                session,
                mode: Mode::RightNow,
                rolling: false,
                identity: Identity::Configured,
            } => session,
            other => panic!("{other:?}"),
        }
    }

    pub async fn command(&mut self) -> Command {
        match self.event().await {
            Event::Command { command, run, .. } => {
                assert_eq!(run, Some(RunId(42)));
                command
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn closed(&mut self, id: SessionId) {
        match self.event().await {
            Event::SessionClosed { session } => assert_eq!(session, id),
            other => panic!("{other:?}"),
        }
    }
}
