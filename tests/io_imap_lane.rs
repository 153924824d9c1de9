//! Replication over IMAP: lanes, and tools, to an imapd that does what a test says.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_fake::site::Setup;
use io_fake::{Fake, Peer, pool, settings, spill};
use syncmux::core::event::{Event, LaneId};
use syncmux::io::ask::Asker;
use syncmux::io::credentials::{Credentials, Passwords};
use syncmux::io::lane::{self, LaneHandle};
use syncmux::io::lane_connect::{ConnectError, Replica, ReplicaSettings, TlsMode};
use syncmux::protocol::{Dialect, Reply, StatusKind};

const LANE: LaneId = LaneId(7);

struct Lane {
    handle: LaneHandle,
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
}

fn imap(fake: &Fake) -> ReplicaSettings {
    ReplicaSettings {
        dialect: Dialect::Imap,
        ..settings(&fake.address)
    }
}

impl Lane {
    fn open(settings: ReplicaSettings, capabilities: &[&'static str]) -> Self {
        let replica = Replica::new(settings, spill(1 << 30)).unwrap();
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        let credentials = Some(Credentials::new("repl", "replpw"));
        let mut pool = pool();
        let names = capabilities.iter().copied();
        pool.capabilities = names
            .map(|name| Bytes::from_static(name.as_bytes()))
            .collect();
        let handle = lane::open(LANE, pool, replica, credentials, sender);
        Self { handle, events }
    }

    async fn event(&mut self) -> Event {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await;
            match event.expect("an event in time").expect("an event") {
                Event::LaneFailing { lane: LANE } => {}
                event => return event,
            }
        }
    }

    async fn opened(&mut self) -> Option<Vec<Bytes>> {
        match self.event().await {
            Event::LaneOpened { enabled, .. } => enabled,
            other => panic!("{other:?}"),
        }
    }

    async fn reply(&mut self) -> Reply {
        match self.event().await {
            Event::LaneReply { reply, .. } => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&mut self) -> (String, bool) {
        match self.event().await {
            Event::LaneLost { why, orderly, .. } => (why, orderly),
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self) -> String {
        match self.event().await {
            Event::LaneRefused { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }
}

const GREETING: &str = "* OK [CAPABILITY IMAP4rev1 LITERAL+ AUTH=PLAIN SASL-IR] replica Cyrus IMAP \
                        3.6.1 server ready\r\n";
const ADMIN: &str = "[CAPABILITY IMAP4rev1 X-REPLICATION X-SIEVE-MAILBOX COMPRESS=DEFLATE]";

impl Imapd {
    /// With a word for everybody behind the greeting, as of a `motd` file.
    async fn let_in(fake: &Fake) -> Peer {
        let mut peer = Self::greet(fake).await;
        peer.send(format!("S0 OK {ADMIN} Success (no protection)\r\n").as_bytes())
            .await;
        peer.expect("S1 SYNCRESTART\r\n").await;
        peer.send(b"S1 OK Restarting\r\n").await;
        peer
    }

    async fn greet(fake: &Fake) -> Peer {
        let mut peer = fake.accept().await;
        peer.send(GREETING.as_bytes()).await;
        peer.send(b"* OK [ALERT] down for repair at ten\r\n").await;
        peer.expect("S0 AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n")
            .await;
        peer
    }
}

/// A fake one.
struct Imapd;

/// A lane to an imapd that does what `then` says.
async fn opened<F, T>(then: F) -> Lane
where
    F: FnOnce(Peer) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let fake = Fake::bind().await;
    let mut lane = Lane::open(imap(&fake), &[]);
    tokio::spawn(async move { then(Imapd::let_in(&fake).await).await });
    assert_eq!(lane.opened().await, Some(Vec::new()));
    lane
}

#[tokio::test]
async fn commands_are_tagged_and_answers_read_in_order() {
    let mut lane = opened(async |mut peer| {
        peer.expect("S0 SYNCGET USER a\r\nS1 SYNCGET USER b\r\nS2 SYNCRESTART\r\nS3 NOOP\r\n")
            .await;
        let answer =
            b"* OK [ALERT] soon\r\n* MAILBOX %(UNIQUEID 1 MBOXNAME user.a X {3}\r\na\r\n)\r\n\
                       S0 OK one\r\n* NO [ALERT] later\r\nS1 NO IMAP_MAILBOX_LOCKED two\r\n\
                       S2 OK Restarting\r\nS3 OK Completed\r\n* OK still here\r\n";
        for byte in answer {
            peer.send(&[*byte]).await;
        }
        peer.expect("S4 LOGOUT\r\n").await;
        peer.send(b"* BYE LOGOUT received\r\nS4 OK Completed\r\n")
            .await;
    })
    .await;
    for command in [
        "GET USER a\r\n",
        "GET USER b\r\n",
        "RESTART\r\n",
        "NOOP\r\n",
    ] {
        lane.handle.send(command.into());
    }
    let first = lane.reply().await;
    // Remarks are nobody's answer.
    assert_eq!(first.untagged.len(), 1);
    assert_eq!(first.untagged[0].mailbox.as_deref(), Some(&b"user.a"[..]));
    assert_eq!(first.status.line(), b"OK one");
    let second = lane.reply().await;
    assert!(second.untagged.is_empty());
    assert_eq!(second.status.token(), Some(&b"IMAP_MAILBOX_LOCKED"[..]));
    lane.reply().await;
    assert_eq!(lane.reply().await.status.kind, StatusKind::Ok);
    lane.handle.close(true);
    let (why, orderly) = lane.lost().await;
    assert!(orderly, "{why}");
}

/// The core asks for capabilities as in csync.
#[tokio::test]
async fn a_lane_is_set_up_as_its_pool_wants() {
    let fake = Fake::bind().await;
    let mut lane = Lane::open(imap(&fake), &["SIEVE-MAILBOX"]);
    let mut peer = Imapd::greet(&fake).await;
    // Not all servers tell with the OK.
    peer.send(b"S0 OK Success\r\n").await;
    peer.expect("S1 CAPABILITY\r\n").await;
    peer.send(b"* CAPABILITY IMAP4rev1 X-REPLICATION\r\nS1 OK Completed\r\n")
        .await;
    peer.expect("S2 SYNCRESTART\r\nS3 SYNCAPPLY CAPABILITIES (SIEVE-MAILBOX)\r\n")
        .await;
    peer.send(b"S2 OK Restarting\r\n* ENABLED (SIEVE-MAILBOX)\r\nS3 OK success\r\n")
        .await;
    assert_eq!(
        lane.opened().await,
        Some(vec![Bytes::from("SIEVE-MAILBOX")])
    );
}

#[tokio::test]
async fn compression_where_it_is_wanted_and_offered() {
    let fake = Fake::bind().await;
    let settings = ReplicaSettings {
        compress: true,
        ..imap(&fake)
    };
    let mut lane = Lane::open(settings, &[]);
    let mut peer = Imapd::greet(&fake).await;
    peer.send(format!("S0 OK {ADMIN} Success\r\n").as_bytes())
        .await;
    peer.expect("S1 COMPRESS DEFLATE\r\n").await;
    peer.send(b"S1 NO not today\r\n").await;
    peer.expect("S2 SYNCRESTART\r\n").await;
    peer.send(b"S2 OK Restarting\r\n").await;
    lane.opened().await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    for (said, then, why) in [
        (
            "S0 NO authentication failure\r\n",
            None,
            "refuses the login of \"repl\"",
        ),
        (
            "S0 OK [CAPABILITY IMAP4rev1 ACL] Success\r\n",
            None,
            "offers no X-REPLICATION",
        ),
        (
            // imapd shows X-REPLICATION to everybody.
            "S0 OK [CAPABILITY IMAP4rev1 X-REPLICATION] Success\r\n",
            Some("S1 BAD Unrecognized command\r\n"),
            "lets \"repl\" in but does not serve it: \"BAD Unrecognized command\". Is it among admins",
        ),
        ("S1 OK Success\r\n", None, "S1 where S0 was to be answered"),
        ("* BYE Fatal error: no\r\n", None, "* BYE Fatal error: no"),
        ("* BYE too many\r\n", None, "BYE too many"),
    ] {
        let fake = Fake::bind().await;
        let mut lane = Lane::open(imap(&fake), &[]);
        let mut peer = Imapd::greet(&fake).await;
        peer.send(said.as_bytes()).await;
        if let Some(then) = then {
            peer.expect("S1 SYNCRESTART\r\n").await;
            peer.send(then.as_bytes()).await;
        }
        let refused = lane.refused().await;
        assert!(refused.contains(why), "{said}: {refused}");
    }
    for (greeting, why) in [
        ("* BYE the sky falls\r\n", "the sky falls"),
        ("* PREAUTH hello\r\n", "is it an imapd?"),
        (
            "* SASL PLAIN\r\n* OK replica Cyrus sync server\r\n",
            "that is a sync_server",
        ),
        ("220 mail.example.com ESMTP\r\n", "not an imapd"),
        (
            "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] ready\r\n",
            "no mechanism that syncmux can log in with",
        ),
    ] {
        let fake = Fake::bind().await;
        let mut lane = Lane::open(imap(&fake), &[]);
        let mut peer = fake.accept().await;
        peer.send(greeting.as_bytes()).await;
        let refused = lane.refused().await;
        assert!(refused.contains(why), "{greeting}: {refused}");
    }
    // STARTTLS is insisted on, and nothing is said before it.
    let fake = Fake::bind().await;
    let settings = ReplicaSettings {
        tls: TlsMode::Starttls,
        ..imap(&fake)
    };
    let mut lane = Lane::open(settings, &[]);
    let mut peer = fake.accept().await;
    peer.send(GREETING.as_bytes()).await;
    assert!(lane.refused().await.contains("does not offer STARTTLS"));
    assert_eq!(peer.rest().await, b"");
}

#[tokio::test]
async fn remarks_without_end_are_not_read_on() {
    let fake = Fake::bind().await;
    let mut lane = Lane::open(imap(&fake), &[]);
    let mut peer = Imapd::greet(&fake).await;
    let remarks = "* OK [ALERT] again\r\n".repeat(1000);
    peer.send(remarks.as_bytes()).await;
    assert!(lane.refused().await.contains("remarks do not end"));
    // Nor on a lane that has nothing to do.
    let mut lane = opened(async move |mut peer| {
        peer.send(remarks.as_bytes()).await;
        peer.rest().await;
    })
    .await;
    let (why, orderly) = lane.lost().await;
    assert!(why.contains("remarks do not end") && !orderly, "{why}");
    // Some for each answer are no flood.
    let mut lane = opened(async |mut peer| {
        for nth in 0..10 {
            peer.expect(&format!("S{nth} NOOP\r\n")).await;
            let remarks = "* OK [ALERT] again\r\n".repeat(50);
            let answer = format!("{remarks}S{nth} OK Completed\r\n");
            peer.send(answer.as_bytes()).await;
        }
        peer.hold().await;
    })
    .await;
    for _ in 0..10 {
        lane.handle.send("NOOP\r\n".into());
        lane.reply().await;
    }
}

/// The other dialect, or the other port, is what was meant.
#[tokio::test]
async fn the_wrong_dialect_is_named() {
    let imapd = GREETING;
    let sync_server = "* SASL PLAIN\r\n* OK replica Cyrus sync server 3.6.1\r\n";
    let bare = "* OK replica Cyrus sync server 3.6.1\r\n";
    for (dialect, greeting, why) in [
        (
            Dialect::Csync,
            imapd,
            "that is an imapd: write the port of its sync_server (csync) as address, or set \
             dialect = \"imap\"",
        ),
        (Dialect::Imap, sync_server, "or remove dialect"),
        (Dialect::Imap, bare, "or remove dialect"),
    ] {
        for tls in [TlsMode::Off, TlsMode::Starttls] {
            let fake = Fake::bind().await;
            let settings = ReplicaSettings {
                dialect,
                tls,
                ..settings(&fake.address)
            };
            let mut lane = Lane::open(settings, &[]);
            let mut peer = fake.accept().await;
            peer.send(greeting.as_bytes()).await;
            let refused = lane.refused().await;
            assert!(refused.contains(why), "{greeting}: {refused}");
            assert_eq!(peer.rest().await, b"");
        }
    }
}

#[tokio::test]
async fn a_wrong_word_breaks_a_lane() {
    for (said, orderly, why) in [
        ("S1 OK success\r\n", false, "S1 where S0 was to be answered"),
        ("OK success\r\n", false, "OK where S0 was to be answered"),
        ("* BAD Invalid tag\r\n", false, "* BAD Invalid tag"),
        ("+ go on\r\n", false, "continuation"),
        ("* MAILBOX )(\r\n", false, "MAILBOX"),
        ("* BYE idle for too long\r\n", true, "idle for too long"),
        (
            "* MAILBOX %(UNIQUEID 1 MBOXNAME user.a)\r\n* BYE going\r\n",
            true,
            "BYE going",
        ),
        (
            "* BYE Fatal error: assertion failed\r\n",
            false,
            "assertion failed",
        ),
        ("* BYE [TOOBIG] Literal too long\r\n", false, "TOOBIG"),
        ("S0 BYE going\r\n", true, "BYE going"),
        ("S0 O", false, "middle"),
        ("", false, "middle"),
    ] {
        let mut lane = opened(async move |mut peer| {
            peer.expect("S0 SYNCGET USER a\r\n").await;
            peer.send(said.as_bytes()).await;
        })
        .await;
        lane.handle.send("GET USER a\r\n".into());
        let (told, was_orderly) = lane.lost().await;
        assert!(
            told.contains(why) && orderly == was_orderly,
            "{said}: {told}"
        );
    }
    // An answer to what was not asked, under the tag that will come.
    for said in ["S0 OK success\r\n", "* SEEN %(USERID joe UNIQUEID a)\r\n"] {
        let mut lane = opened(async move |mut peer| {
            peer.send(said.as_bytes()).await;
            assert_eq!(peer.rest().await, b"");
        })
        .await;
        let (why, orderly) = lane.lost().await;
        assert!(why.contains("without being asked") && !orderly, "{why}");
    }
}

/// A tag in what a mailbox is called is no answer.
#[tokio::test]
async fn a_tag_in_a_literal_is_none() {
    let mut lane = opened(async |mut peer| {
        peer.expect("S0 SYNCGET USER a\r\n").await;
        peer.send(
            b"* MAILBOX %(UNIQUEID 1 MBOXNAME {16}\r\na\r\nS0 OK success X Y)\r\nS0 NO no\r\n",
        )
        .await;
        peer.hold().await;
    })
    .await;
    lane.handle.send("GET USER a\r\n".into());
    let (why, orderly) = match lane.event().await {
        Event::LaneReply { reply, .. } => {
            assert_eq!(reply.status.kind, StatusKind::No);
            return;
        }
        Event::LaneLost { why, orderly, .. } => (why, orderly),
        other => panic!("{other:?}"),
    };
    panic!("{why} {orderly}");
}

#[tokio::test]
async fn tools_ask_as_lanes_do() {
    let fake = Fake::bind().await;
    let replica = Replica::new(imap(&fake), spill(1 << 30)).unwrap();
    let server = async {
        let mut peer = Imapd::let_in(&fake).await;
        peer.expect("S0 SYNCGET USER joe\r\n").await;
        peer.send(b"* OK [ALERT] x\r\n* LSUB (user.joe)\r\nS0 OK success\r\n")
            .await;
        peer.expect("S1 SYNCGET USER jim\r\n").await;
        peer.send(b"S1 NO no\r\n").await;
        peer.expect("S2 LOGOUT\r\n").await;
    };
    let tool = async {
        let credentials = Credentials::new("repl", "replpw");
        let patience = Duration::from_secs(5);
        let mut asker = Asker::connect(&replica, Some(&credentials), patience)
            .await
            .unwrap();
        let reply = asker.ask(&"GET USER joe\r\n".into()).await.unwrap();
        assert_eq!(reply.untagged.len(), 1);
        let reply = asker.ask(&"GET USER jim\r\n".into()).await.unwrap();
        assert_eq!(reply.status.kind, StatusKind::No);
        asker.leave().await;
    };
    tokio::join!(server, tool);
}

/// A client can be told what the replica has only by somebody who has logged in there.
#[tokio::test]
async fn the_greeting_for_clients_is_learnt_by_a_login() {
    let fake = Fake::bind().await;
    let replica = Replica::new(imap(&fake), spill(1 << 30)).unwrap();
    let known = replica.greeting();
    let credentials = Credentials::new("repl", "replpw");
    let server = async {
        let mut peer = Imapd::greet(&fake).await;
        assert!(known.borrow().is_none());
        peer.send(format!("S0 OK {ADMIN} Success\r\n").as_bytes())
            .await;
        peer.expect("S1 LOGOUT\r\n").await;
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(Some(&credentials)), server);
    let greeting = probed.unwrap();
    assert_eq!(known.borrow().clone(), Some(Arc::clone(&greeting)));
    assert_eq!(greeting.capabilities, ["SIEVE-MAILBOX"]);
    // As a csync client is greeted.
    assert_eq!(
        greeting.render(&["PLAIN"], false),
        "* SASL PLAIN\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus IMAP 3.6.1 server ready\r\n"
    );
    let server = async {
        let mut peer = Imapd::greet(&fake).await;
        peer.send(b"S0 NO authentication failure\r\n").await;
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(Some(&credentials)), server);
    assert!(matches!(probed, Err(ConnectError::Login { .. })));
}

/// Passwords of clients are checked by a login there, too.
#[tokio::test]
async fn passwords_are_checked_at_imapd() {
    let fake = Fake::bind().await;
    let replica = Replica::new(imap(&fake), spill(1 << 30)).unwrap();
    let mut setup = Setup {
        dialect: Dialect::Imap,
        ..Setup::default()
    };
    setup.passwords = Passwords::ByReplica(replica.login_check());
    setup.limits.away_wait = Duration::from_secs(5);
    let site = setup.start().await;
    let began = Instant::now();
    let mut client = site.connect().await;
    assert!(client.line().await.starts_with("* OK [CAPABILITY "));
    let login = b"A01 AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";
    client.send(login).await;
    let mut peer = Imapd::greet(&fake).await;
    peer.send(b"S0 OK [CAPABILITY X-REPLICATION] Success\r\n")
        .await;
    peer.expect("S1 SYNCRESTART\r\n").await;
    peer.send(b"S1 BAD Unrecognized command\r\n").await;
    client.expect("A01 NO authentication failure\r\n").await;
    client.send(login).await;
    Imapd::let_in(&fake).await;
    assert!(client.line().await.starts_with("A01 OK [CAPABILITY "));
    assert!(began.elapsed() < Duration::from_secs(10));
}
