//! Clients before and while they log in: passwords, probes, STARTTLS, who may be there. The test plays the core.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_fake::site::{BANNER, LOGIN, Setup};
use io_fake::spill;
use syncmux::core::event::{Event, Identity, Mode};
use syncmux::io::address::Address;
use syncmux::io::certificates::Reloaded;
use syncmux::io::credentials::{Credentials, Passwords, Verifier};
use syncmux::io::listener::Listener;
use syncmux::io::lobby::Lobby;
use syncmux::io::memory::MemoryGauge;
use syncmux::io::registry::{ClientSettings, ListenerSettings, SessionContext, SessionLimits};
use syncmux::io::stream::Meter;
use syncmux::io::tls::{ServerFiles, server_config};
use syncmux::protocol::Body;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::task::TaskTracker;

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
async fn strangers_make_way_for_each_other_and_take_nobodys_place() {
    let mut setup = Setup::default();
    setup.limits.strangers = 2;
    setup.limits.sessions = 2;
    let mut site = setup.start().await;
    let (mut inside, _) = site.logged_in().await;
    let mut crowd = Vec::new();
    for _ in 0..5 {
        let mut stranger = site.connect().await;
        stranger.expect(BANNER).await;
        crowd.push(stranger);
    }
    let (mut other, _) = site.logged_in().await;
    for mut gone in crowd.drain(..4) {
        assert_eq!(gone.rest().await, b"");
    }
    for client in [&mut inside, &mut other, &mut crowd[0]] {
        client.send(b"NOOP\r\n").await;
        client.expect("OK Noop completed\r\n").await;
    }
}

#[tokio::test]
async fn bytes_that_come_one_by_one_do_not_make_the_login_last() {
    let mut setup = Setup::default();
    setup.limits.login_time = Duration::from_millis(500);
    let site = setup.start().await;
    let mut client = site.connect().await;
    client.expect(BANNER).await;
    let began = Instant::now();
    while client.0.write_all(b"x").await.is_ok() && began.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5));
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

/// What imapds have to say goes into the sync log then.
#[tokio::test]
async fn imapds_are_greeted_without_the_replicas_greeting() {
    let mut setup = Setup {
        right_now: true,
        ..Setup::default()
    };
    setup.limits.away_wait = Duration::from_secs(3600);
    let site = setup.start().await;
    site.greeting.send_replace(None);
    let mut client = site.connect().await;
    client
        .expect("* SASL PLAIN\r\n* OK syncmux, for a replica that was never there\r\n")
        .await;
    client.send(LOGIN).await;
    client.expect("OK Success (no protection)\r\n").await;
}

#[tokio::test]
async fn too_many_sessions_are_refused() {
    let mut setup = Setup::default();
    setup.limits.sessions = 1;
    let mut site = setup.start().await;
    let (client, session) = site.logged_in().await;
    let mut other = site.connect().await;
    other.expect(BANNER).await;
    other.send(LOGIN).await;
    other.expect("OK Success (no protection)\r\n").await;
    other.expect("BYE too many sessions\r\n").await;
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
    let files = ServerFiles {
        cert_file: certificate.clone(),
        key_file: key,
        client_ca_file: None,
    };
    let config = Reloaded::new("", files.roles(), move || server_config(&files));
    setup.client.starttls = Some(config.unwrap());
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
    let mut client = client.in_tls(certificate).await;
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
        dialect: syncmux::protocol::Dialect::Csync,
        address: Address::Unix(path.clone()),
        mode: Mode::Strict,
        rolling: false,
        greeted_by: None,
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
        lobby: Lobby::new(1),
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
