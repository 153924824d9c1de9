//! Sessions: logins, probes, answers, and clients that misbehave. The test plays the core.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_fake::{Peer, spill};
use syncmux::core::event::{Event, Identity, Mode, RunId, SessionId};
use syncmux::io::address::Address;
use syncmux::io::credentials::{CredentialStore, Credentials, Passwords, Verifier};
use syncmux::io::listener::Listener;
use syncmux::io::memory::MemoryGauge;
use syncmux::io::registry::{
    ClientSettings, ListenerSettings, SessionContext, SessionLimits, SessionRegistry,
};
use syncmux::io::spill::collect;
use syncmux::io::stream::Meter;
use syncmux::protocol::{Apply, Body, Command, Get, Greeting, Kind};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const BANNER: &str = "* SASL PLAIN\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n";
const LOGIN: &[u8] = b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";

struct Site {
    events: UnboundedReceiver<Event>,
    registry: Arc<SessionRegistry>,
    greeting: watch::Sender<Option<Arc<Greeting>>>,
    address: Address,
    stop: CancellationToken,
    credentials: Arc<CredentialStore>,
}

struct Setup {
    limits: SessionLimits,
    client: ClientSettings,
    address: Address,
    spill: u64,
    passwords: Passwords,
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
            address: "127.0.0.1:0".parse().unwrap(),
            spill: 1 << 30,
            passwords: Passwords::Configured(Credentials::new("repl", "replpw")),
        }
    }
}

impl Setup {
    async fn start(self) -> Site {
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
            limits: self.limits,
            memory: MemoryGauge::new(u64::MAX, spill(1)),
            spill: spill(self.spill),
            meter: Meter::new("", "client"),
            tasks: TaskTracker::new(),
        };
        let settings = ListenerSettings {
            address: self.address.clone(),
            mode: Mode::FanOut,
            rolling: true,
            run: Some(Arc::new(|| Some(RunId(42)))),
        };
        let listener = Listener::bind(settings, Arc::new(context)).await.unwrap();
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
    async fn connect(&self) -> Peer {
        match &self.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                Peer(Box::new(stream.unwrap()))
            }
            Address::Unix(path) => Peer(Box::new(UnixStream::connect(path).await.unwrap())),
        }
    }

    async fn logged_in(&mut self) -> (Peer, SessionId) {
        let mut client = self.connect().await;
        client.expect(BANNER).await;
        client.send(LOGIN).await;
        client.expect("OK Success (no protection)\r\n").await;
        let session = self.opened().await;
        (client, session)
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .expect("an event in time")
            .expect("an event")
    }

    async fn opened(&mut self) -> SessionId {
        match self.event().await {
            Event::SessionOpened {
                session,
                mode: Mode::FanOut,
                rolling: true,
                identity: Identity::Configured,
            } => session,
            other => panic!("{other:?}"),
        }
    }

    async fn command(&mut self) -> Command {
        match self.event().await {
            Event::Command { command, run, .. } => {
                assert_eq!(run, Some(RunId(42)));
                command
            }
            other => panic!("{other:?}"),
        }
    }

    async fn closed(&mut self, id: SessionId) {
        match self.event().await {
            Event::SessionClosed { session } => assert_eq!(session, id),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn before_login_a_session_answers_as_a_stock_server() {
    let site = Setup::default().start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    for (said, answer) in [
        ("GET USER joe\r\n", "NO Please authenticate first\r\n"),
        ("APPLY UNUSER joe\r\n", "NO Please authenticate first\r\n"),
        ("NOOP\r\n", "OK Noop completed\r\n"),
        ("RESTART\r\n", "OK Restarting\r\n"),
        (
            "HELLO you\r\n",
            "BAD IMAP_PROTOCOL_ERROR Unrecognized command\r\n",
        ),
        (
            "STARTTLS\r\n",
            "BAD IMAP_PROTOCOL_ERROR Unrecognized command\r\n",
        ),
        (
            "AUTHENTICATE CRAM-MD5\r\n",
            "NO SASL(-4): no mechanism available\r\n",
        ),
        (
            "AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n",
            "NO authentication failure\r\n",
        ),
        ("EXIT\r\n", "OK Finished\r\n"),
    ] {
        client.send(said.as_bytes()).await;
        client.expect(answer).await;
    }
    assert_eq!(client.rest().await, b"");
    assert!(site.events.is_empty());
}

#[tokio::test]
async fn a_response_may_come_on_a_line_of_its_own() {
    let mut site = Setup::default().start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    client.send(b"AUTHENTICATE PLAIN\r\n").await;
    client.expect("+ \r\n").await;
    client.send(b"*\r\n").await;
    client
        .expect("BAD Client canceled authentication\r\n")
        .await;
    client.send(b"AUTHENTICATE PLAIN\r\n").await;
    client.expect("+ \r\n").await;
    client.send(b"AHJlcGwAcmVwbHB3\r\n").await;
    client.expect("OK Success (no protection)\r\n").await;
    site.opened().await;
    client.send(LOGIN).await;
    client.expect("BAD Already authenticated\r\n").await;
}

#[tokio::test]
async fn guessing_passwords_ends_soon() {
    let site = Setup::default().start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    for _ in 0..3 {
        client
            .send(b"AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n")
            .await;
        client.expect("NO authentication failure\r\n").await;
    }
    client.expect("BYE too many failed logins\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn an_imap_probe_is_answered_at_once() {
    let site = Setup::default().start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    client.send(b"C01 CAPABILITY\r\n").await;
    assert!(client.line().await.starts_with("C01 BAD "));
    client.send(b"Q01 LOGOUT\r\n").await;
    assert!(!client.line().await.starts_with("* "));
}

#[tokio::test]
async fn a_slow_login_ends() {
    let mut setup = Setup::default();
    setup.limits.login_time = Duration::from_millis(300);
    let site = setup.start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    client.expect("BYE the login took too long\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_greeting_that_is_not_known_is_waited_for_a_while() {
    let site = Setup::default().start().await;
    let known = site.greeting.send_replace(None);
    let began = Instant::now();
    let mut client = site.connect().await;
    client.expect("BYE the replica is away\r\n").await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    let mut client = site.connect().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    site.greeting.send_replace(known);
    client.expect(BANNER).await;
}

#[tokio::test]
async fn commands_go_to_the_core_one_at_a_time() {
    let mut site = Setup::default().start().await;
    let (mut client, session) = site.logged_in().await;
    // The second one comes too early; nothing of it is lost.
    client.send(b"GET USER joe\r\nGET META j").await;
    let command = site.command().await;
    assert!(matches!(command.kind, Kind::Get(Get::User(ref user)) if &user[..] == b"joe"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send(b"oe\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(site.events.is_empty());
    site.registry.answer(session, Body::from("OK one\r\n"));
    client.expect("OK one\r\n").await;
    let command = site.command().await;
    assert!(matches!(command.kind, Kind::Get(Get::Meta(ref user)) if &user[..] == b"joe"));
    site.registry.answer(session, Body::from("NO two\r\n"));
    client.expect("NO two\r\n").await;
    client.send(b"COMPRESS DEFLATE\r\nNOOP\r\n").await;
    client
        .expect("NO compression is not offered here\r\nOK Noop completed\r\n")
        .await;
    client.send(b"EXIT\r\n").await;
    assert!(matches!(site.command().await.kind, Kind::Exit));
    site.registry.end(session, Body::from("OK Finished\r\n"));
    client.expect("OK Finished\r\n").await;
    assert_eq!(client.rest().await, b"");
    assert!(site.events.is_empty() && site.registry.is_empty());
}

#[tokio::test]
async fn the_core_hears_of_a_client_that_goes_away() {
    let mut site = Setup::default().start().await;
    // While it waits, between two commands, and in the middle of one.
    for said in ["GET USER joe\r\n", "", "GET US"] {
        let (mut client, session) = site.logged_in().await;
        client.send(said.as_bytes()).await;
        if said.ends_with('\n') {
            site.command().await;
        }
        drop(client);
        site.closed(session).await;
        site.registry.answer(session, Body::from("OK too late\r\n"));
    }
}

#[tokio::test]
async fn a_session_can_be_ended_between_two_commands() {
    let mut site = Setup::default().start().await;
    let (mut client, session) = site.logged_in().await;
    site.registry
        .end(session, Body::from("BYE shutting down\r\n"));
    client.expect("BYE shutting down\r\n").await;
    assert_eq!(client.rest().await, b"");
    assert!(site.events.is_empty());
}

#[tokio::test]
async fn an_idle_client_is_sent_away() {
    let mut setup = Setup::default();
    setup.limits.idle = Duration::from_millis(200);
    let mut site = setup.start().await;
    let (mut client, session) = site.logged_in().await;
    client.expect("BYE nothing came for too long\r\n").await;
    site.closed(session).await;
}

#[tokio::test]
async fn what_cannot_be_followed_ends_the_session_with_a_line() {
    let mut site = Setup::default().start().await;
    let (mut client, session) = site.logged_in().await;
    client.send(b"APPLY MESSAGE (%{default abc\r\n").await;
    let line = client.line().await;
    assert!(
        line.starts_with("BYE ") || line.starts_with("* Fatal error"),
        "{line}"
    );
    assert_eq!(client.rest().await, b"");
    site.closed(session).await;
}

fn message(size: usize) -> (Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    let guid = "0123456789012345678901234567890123456789";
    let head = format!("APPLY MESSAGE (%{{default {guid} {size}}}\r\n");
    let command = [head.as_bytes(), &content, b")\r\n"].concat();
    (command, content)
}

#[tokio::test]
async fn a_large_message_lies_on_disk() {
    let mut site = Setup::default().start().await;
    let (mut client, session) = site.logged_in().await;
    let (command, content) = message(5_000_000);
    client.send(&command).await;
    let Kind::Apply(Apply::Message { files, .. }) = site.command().await.kind else {
        panic!("a message was sent");
    };
    assert!(
        files[0].content.memory() < 300_000,
        "{}",
        files[0].content.memory()
    );
    assert!(collect(&files[0].content).await.unwrap() == content);
    // And back out, as an answer.
    site.registry.answer(session, files[0].content.clone());
    let mut back = vec![0; content.len()];
    tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut back)
        .await
        .unwrap();
    assert!(back == content);
}

#[tokio::test]
async fn what_does_not_fit_on_disk_gets_no_and_the_session_goes_on() {
    let setup = Setup {
        spill: 1_000_000,
        ..Setup::default()
    };
    let mut site = setup.start().await;
    let (mut client, _) = site.logged_in().await;
    client.send(&message(5_000_000).0).await;
    client
        .expect("NO syncmux has no room for this command, try again later\r\n")
        .await;
    client.send(&message(500_000).0).await;
    assert!(matches!(
        site.command().await.kind,
        Kind::Apply(Apply::Message { .. })
    ));
}

#[tokio::test]
async fn too_many_sessions_are_refused() {
    let mut setup = Setup::default();
    setup.limits.sessions = 1;
    let mut site = setup.start().await;
    let (client, session) = site.logged_in().await;
    site.connect()
        .await
        .expect("BYE too many sessions\r\n")
        .await;
    drop(client);
    site.closed(session).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    site.logged_in().await;
}

#[tokio::test]
async fn starttls_comes_before_a_password_where_it_is_required() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("c"), directory.path().join("k"));
    let made = rcgen::generate_simple_self_signed(vec!["syncmux".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut setup = Setup::default();
    let config = syncmux::io::tls::server_config(&certificate, &key).unwrap();
    setup.client.starttls = Some(config.into());
    setup.client.require_starttls = true;
    let mut site = setup.start().await;
    let mut client = site.connect().await;
    client
        .expect("* STARTTLS\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n")
        .await;
    client.send(LOGIN).await;
    client
        .expect("NO SASL(-4): no mechanism available\r\n")
        .await;
    // What is sent in the clear behind STARTTLS counts for nothing.
    client
        .send(b"STARTTLS\r\nAUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n")
        .await;
    client.expect("OK Begin TLS negotiation now\r\n").await;
    let files = syncmux::io::tls::ClientFiles {
        ca_file: Some(certificate),
        identity: None,
    };
    let connector: tokio_rustls::TlsConnector =
        syncmux::io::tls::client_config(&files).unwrap().into();
    let name = syncmux::io::tls::server_name("syncmux").unwrap();
    let mut client = Peer(Box::new(connector.connect(name, client.0).await.unwrap()));
    client.expect(BANNER).await;
    client.send(b"STARTTLS\r\n").await;
    client
        .expect("BAD Already did a successful Starttls\r\n")
        .await;
    client.send(LOGIN).await;
    client.expect("OK Success (tls protection)\r\n").await;
    let session = site.opened().await;
    client.send(b"GET USER joe\r\n").await;
    site.command().await;
    site.registry.answer(session, Body::from("OK one\r\n"));
    client.expect("OK one\r\n").await;
}

#[tokio::test]
async fn unix_sockets_know_who_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csync.sock");
    // A process that died left its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let setup = |uids| Setup {
        address: Address::Unix(path.clone()),
        client: ClientSettings {
            allowed_uids: uids,
            ..ClientSettings::default()
        },
        ..Setup::default()
    };
    let me = rustix::process::geteuid().as_raw();
    let mut site = setup(vec![me]).start().await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut client = site.connect().await;
    client
        .expect("* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n")
        .await;
    site.opened().await;
    client.send(LOGIN).await;
    client.expect("BAD Already authenticated\r\n").await;
    // A socket in use is left alone.
    let other = ListenerSettings {
        address: Address::Unix(path.clone()),
        mode: Mode::Strict,
        rolling: false,
        run: None,
    };
    let (sender, _events) = unbounded_channel();
    let context = SessionContext {
        channel: String::new(),
        events: sender,
        registry: Arc::default(),
        greeting: site.greeting.subscribe(),
        verifier: Arc::new(Verifier::new(Passwords::Configured(Credentials::new(
            "", "",
        )))),
        credentials: Arc::default(),
        client: ClientSettings::default(),
        limits: SessionLimits::default(),
        memory: MemoryGauge::new(u64::MAX, spill(1)),
        spill: spill(1),
        meter: Meter::new("", "client"),
        permits: Arc::new(Semaphore::new(1)),
        tasks: TaskTracker::new(),
    };
    let error = Listener::bind(other, Arc::new(context))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("another process"), "{error}");
    site.stop.cancel();
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!path.exists());
    // Somebody who is not allowed.
    let site = setup(vec![me + 1]).start().await;
    let mut client = site.connect().await;
    client.expect("BYE you may not connect here\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_password_that_nobody_can_check_is_answered_in_time() {
    let never: syncmux::io::credentials::LoginCheck =
        Arc::new(|_| Box::pin(std::future::pending()));
    let setup = Setup {
        passwords: Passwords::ByReplica(never),
        ..Setup::default()
    };
    let site = setup.start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    client.send(LOGIN).await;
    client
        .expect("NO the replica is away, try again later\r\n")
        .await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_client_that_logs_in_by_the_replica_lends_its_name_to_lanes() {
    let mut setup = Setup {
        passwords: Passwords::ByReplica(Arc::new(|_| Box::pin(async { Ok(()) }))),
        ..Setup::default()
    };
    setup.client.lanes_as_client = true;
    let mut site = setup.start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    client.send(LOGIN).await;
    client.expect("OK Success (no protection)\r\n").await;
    let event = site.event().await;
    let Event::SessionOpened { identity, .. } = event else {
        panic!("{event:?}");
    };
    assert_eq!(identity, Identity::Client(Bytes::from("repl")));
    let kept = site.credentials.find(b"repl");
    assert_eq!(kept, Some(Credentials::new("repl", "replpw")));
}
