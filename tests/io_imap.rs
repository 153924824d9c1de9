//! Replication over IMAP: a listener whose clients say what the stock client says, and worse; lanes
//! to an imapd that does what a test says. The test plays the core.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_fake::site::{Setup, Site};
use io_fake::{Fake, Peer, pool, settings, spill};
use syncmux::core::event::{Event, LaneId, SessionId};
use syncmux::io::ask::Asker;
use syncmux::io::credentials::{Credentials, Passwords};
use syncmux::io::lane::{self, LaneHandle};
use syncmux::io::lane_connect::{ConnectError, Replica, ReplicaSettings, TlsMode};
use syncmux::protocol::{Body, Dialect, Get, Kind, Reply, StatusKind};

const BEFORE: &str = "IMAP4rev1 LITERAL+ ID LOGINDISABLED AUTH=PLAIN SASL-IR";
const AFTER: &str = "IMAP4rev1 LITERAL+ ID LOGINDISABLED X-REPLICATION X-SIEVE-MAILBOX";
const LOGIN: &[u8] = b"A01 AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";

fn banner(capabilities: &str) -> String {
    format!("* OK [CAPABILITY {capabilities}] syncmux, for replication only, server ready\r\n")
}

fn welcome() -> String {
    format!("A01 OK [CAPABILITY {AFTER}] Success (no protection)\r\n")
}

fn setup() -> Setup {
    Setup {
        dialect: Dialect::Imap,
        ..Setup::default()
    }
}

async fn logged_in(site: &mut Site) -> (Peer, SessionId) {
    let mut client = site.connect().await;
    client.expect(&banner(BEFORE)).await;
    client.send(LOGIN).await;
    client.expect(&welcome()).await;
    let session = site.opened().await;
    (client, session)
}

/// Each said and answered.
async fn dialog(client: &mut Peer, lines: &[(&str, &str)]) {
    for (said, answer) in lines {
        client.send(said.as_bytes()).await;
        client.expect(answer).await;
    }
}

#[tokio::test]
async fn before_login_a_listener_answers_as_imapd() {
    let site = setup().start().await;
    let mut client = site.connect().await;
    client.expect(&banner(BEFORE)).await;
    let capabilities = format!("* CAPABILITY {BEFORE}\r\nC01 OK Completed\r\n");
    let only = "this is syncmux, for replication only\r\n";
    let please = format!("a BAD Please login first, by AUTHENTICATE: {only}");
    dialog(
        &mut client,
        &[
            ("C01 CAPABILITY\r\n", &capabilities),
            (
                "i ID (\"name\" \"mail client\")\r\n",
                "* ID (\"name\" \"syncmux\")\r\ni OK Completed\r\n",
            ),
            (
                "i ID NIL\r\n",
                "* ID (\"name\" \"syncmux\")\r\ni OK Completed\r\n",
            ),
            ("n NOOP\r\n", "n OK Noop completed\r\n"),
            ("a SELECT INBOX\r\n", &please),
            ("a SYNCGET USER joe\r\n", &please),
            ("a SYNCRESTART\r\n", &please),
            (
                "a LOGIN joe secret\r\n",
                "a NO this is syncmux, for replication between Cyrus servers only: a mail client \
                 must be told the mail server's own port\r\n",
            ),
            (
                "S01 STARTTLS\r\n",
                "S01 BAD IMAP_PROTOCOL_ERROR Unrecognized command\r\n",
            ),
            (
                "A01 AUTHENTICATE CRAM-MD5\r\n",
                "A01 NO SASL(-4): no mechanism available\r\n",
            ),
            (
                "A01 AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n",
                "A01 NO authentication failure\r\n",
            ),
            // A csync client that has been sent to the wrong port.
            (
                "AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n",
                "AUTHENTICATE BAD ",
            ),
        ],
    )
    .await;
    client.line().await;
    dialog(
        &mut client,
        &[
            ("EXIT\r\n", "* BAD Invalid tag\r\n"),
            (
                "Q01 LOGOUT\r\n",
                "* BYE LOGOUT received\r\nQ01 OK Completed\r\n",
            ),
        ],
    )
    .await;
    assert_eq!(client.rest().await, b"");
    assert!(site.events.is_empty());
}

#[tokio::test]
async fn a_session_gets_its_tags_back() {
    let mut site = setup().start().await;
    let (mut client, session) = logged_in(&mut site).await;
    let answer = |site: &Site, text: &'static str| site.registry.answer(session, text.into());
    client
        .send(b"S0 SYNCAPPLY CAPABILITIES (SIEVE-MAILBOX)\r\n")
        .await;
    let command = site.command().await;
    assert_eq!(
        command.raw.to_vec().unwrap(),
        b"APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n"
    );
    answer(&site, "* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n");
    client
        .expect("* ENABLED (SIEVE-MAILBOX)\r\nS0 OK success\r\n")
        .await;
    client.send(b"S1 SYNCGET USER {3+}\r\njoe\r\n").await;
    let command = site.command().await;
    assert!(matches!(command.kind, Kind::Get(Get::User(name)) if name == "joe"));
    answer(&site, "NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n");
    client
        .expect("S1 NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n")
        .await;
    client.send(b"S2 SYNCRESTART\r\n").await;
    assert!(matches!(site.command().await.kind, Kind::Restart));
    answer(&site, "OK Restarting\r\n");
    client.expect("S2 OK Restarting\r\n").await;
    let capabilities = format!("* CAPABILITY {AFTER}\r\nC01 OK Completed\r\n");
    dialog(
        &mut client,
        &[
            ("C01 CAPABILITY\r\n", &capabilities),
            ("N01 NOOP\r\n", "N01 OK Noop completed\r\n"),
            (
                "i ID NIL\r\n",
                "* ID (\"name\" \"syncmux\")\r\ni OK Completed\r\n",
            ),
            (
                "Z01 COMPRESS DEFLATE\r\n",
                "Z01 NO compression is not offered here\r\n",
            ),
            (
                "s SELECT INBOX\r\n",
                "s BAD Unrecognized command: this is syncmux, for replication only\r\n",
            ),
            (
                "s SYNCAPPLY MAILBOX )\r\n",
                "s BAD Replication parse failure in Syncapply\r\n",
            ),
            (
                "A01 AUTHENTICATE PLAIN x\r\n",
                "A01 BAD Already authenticated\r\n",
            ),
        ],
    )
    .await;
    client.send(b"Q01 LOGOUT\r\n").await;
    assert!(matches!(site.command().await.kind, Kind::Exit));
    site.registry.end(session, "OK Finished\r\n".into());
    client
        .expect("* BYE LOGOUT received\r\nQ01 OK Completed\r\n")
        .await;
    assert_eq!(client.rest().await, b"");
}

/// The stock client understands it behind the tag of its command: of the one under way, or of the one
/// that it will send next.
#[tokio::test]
async fn a_drain_says_bye_as_the_client_understands_it() {
    let bye = || Body::from("BYE syncmux is shutting down\r\n");
    let said = |tag: &str| {
        format!("* BYE \"syncmux is shutting down\"\r\n{tag} BYE syncmux is shutting down\r\n")
    };
    // Before its first command.
    let mut site = setup().start().await;
    let (mut client, session) = logged_in(&mut site).await;
    site.registry.end(session, bye());
    client.expect(&said("S0")).await;
    assert_eq!(client.rest().await, b"");
    // Between two.
    let (mut client, session) = logged_in(&mut site).await;
    client.send(b"S41 SYNCRESTART\r\n").await;
    site.command().await;
    site.registry.answer(session, "OK Restarting\r\n".into());
    client.expect("S41 OK Restarting\r\n").await;
    site.registry.end(session, bye());
    client.expect(&said("S42")).await;
    assert_eq!(client.rest().await, b"");
    // In the middle of one.
    let (mut client, session) = logged_in(&mut site).await;
    client
        .send(b"S6 SYNCRESTART\r\nS7 SYNCGET USER {100+}\r\njo")
        .await;
    site.command().await;
    site.registry.answer(session, "OK Restarting\r\n".into());
    client.expect("S6 OK Restarting\r\n").await;
    // What has come is read before the end is told.
    tokio::time::sleep(Duration::from_millis(100)).await;
    site.registry.end(session, bye());
    client.expect(&said("S7")).await;
    // In one.
    let (mut client, session) = logged_in(&mut site).await;
    client.send(b"S7 SYNCGET USER joe\r\n").await;
    site.command().await;
    site.registry.end(session, bye());
    client.expect(&said("S7")).await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn what_cannot_be_followed_ends_with_bye() {
    let mut site = setup().start().await;
    let (mut client, session) = logged_in(&mut site).await;
    client
        .send(b"S0 SYNCGET MAILBOXES ((((((((((((((((((((((((")
        .await;
    assert!(client.line().await.starts_with("* BYE "));
    assert_eq!(client.rest().await, b"");
    site.closed(session).await;
    for (said, wanted) in [
        (vec![b'x'; 300_000], "* BYE Fatal error: [TOOBIG] "),
        (b"a LOGIN {3+}\r\nxyz {3+}\r\nabc\r\n".to_vec(), "* BYE "),
    ] {
        let mut client = site.connect().await;
        client.expect(&banner(BEFORE)).await;
        client.send(&said).await;
        let line = client.line().await;
        assert!(line.starts_with(wanted), "{line}");
    }
    // A long tag is not repeated.
    let (mut client, _session) = logged_in(&mut site).await;
    let long = ["x".repeat(60_000).as_str(), " NOOP\r\n"].concat();
    client.send(long.as_bytes()).await;
    client.expect("* BAD Invalid tag\r\n").await;
    client.send(b"a NOOP\r\n").await;
    client.expect("a OK Noop completed\r\n").await;
}

/// What protects a csync listener protects this one.
#[tokio::test]
async fn strangers_are_bounded() {
    let mut setup = setup();
    setup.limits.strangers = 2;
    setup.limits.login_time = Duration::from_millis(500);
    setup.limits.failed_logins = 2;
    let site = setup.start().await;
    let mut first = site.connect().await;
    first.expect(&banner(BEFORE)).await;
    let mut second = site.connect().await;
    second.expect(&banner(BEFORE)).await;
    let mut third = site.connect().await;
    third.expect(&banner(BEFORE)).await;
    assert_eq!(first.rest().await, b"");
    second.expect("* BYE the login took too long\r\n").await;
    assert_eq!(second.rest().await, b"");
    drop(third);
    let mut guesser = site.connect().await;
    guesser.expect(&banner(BEFORE)).await;
    let no = "a NO authentication failure\r\n";
    let wrong = "a AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n";
    dialog(&mut guesser, &[(wrong, no), (wrong, no)]).await;
    guesser.expect("* BYE too many failed logins\r\n").await;
    site.greeting.send_replace(None);
    let mut client = site.connect().await;
    client.expect("* BYE the replica is away\r\n").await;
}

#[tokio::test]
async fn a_password_may_come_on_a_line_of_its_own() {
    let mut site = setup().start().await;
    let mut client = site.connect().await;
    client.expect(&banner(BEFORE)).await;
    dialog(
        &mut client,
        &[
            ("A01 AUTHENTICATE PLAIN\r\n", "+ \r\n"),
            ("*\r\n", "A01 BAD Client canceled authentication\r\n"),
            ("A01 AUTHENTICATE PLAIN\r\n", "+ \r\n"),
            ("AHJlcGwAcmVwbHB3\r\n", &welcome()),
        ],
    )
    .await;
    site.opened().await;
}

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
            "is it an imapd?",
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
    let mut setup = setup();
    setup.passwords = Passwords::ByReplica(replica.login_check());
    setup.limits.away_wait = Duration::from_secs(5);
    let site = setup.start().await;
    let began = Instant::now();
    let mut client = site.connect().await;
    client.expect(&banner(BEFORE)).await;
    client.send(LOGIN).await;
    let mut peer = Imapd::greet(&fake).await;
    peer.send(b"S0 OK [CAPABILITY X-REPLICATION] Success\r\n")
        .await;
    peer.expect("S1 SYNCRESTART\r\n").await;
    peer.send(b"S1 BAD Unrecognized command\r\n").await;
    client.expect("A01 NO authentication failure\r\n").await;
    client.send(LOGIN).await;
    Imapd::let_in(&fake).await;
    client.expect(&welcome()).await;
    assert!(began.elapsed() < Duration::from_secs(10));
}
