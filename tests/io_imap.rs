//! Replication over IMAP: a listener whose clients say what the stock client says, and worse. The
//! test plays the core.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::time::Duration;

use io_fake::Peer;
use io_fake::site::{Setup, Site};
use syncmux::core::event::SessionId;
use syncmux::io::certificates::Reloaded;
use syncmux::io::tls::{ServerFiles, server_config};
use syncmux::protocol::{Body, Dialect, Get, Kind};

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
    // Behind a command that is not counted.
    let (mut client, session) = logged_in(&mut site).await;
    client.send(b"S41 SYNCRESTART\r\n").await;
    site.command().await;
    site.registry.answer(session, "OK Restarting\r\n".into());
    client.expect("S41 OK Restarting\r\n").await;
    let noop = [
        ("N01 NOOP\r\n", "N01 OK Noop completed\r\n"),
        ("(\r\n", "* BAD Invalid tag\r\n"),
    ];
    dialog(&mut client, &noop).await;
    site.registry.end(session, bye());
    client.expect(&said("S42")).await;
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

/// A write of a strict session whose lane was lost has no answer, and must not seem to have one.
#[tokio::test]
async fn an_end_without_words_says_nothing() {
    let mut site = setup().start().await;
    let (mut client, session) = logged_in(&mut site).await;
    client.send(b"S0 SYNCAPPLY UNUSER joe\r\n").await;
    site.command().await;
    site.registry.end(session, Body::new());
    assert_eq!(client.rest().await, b"");
}

/// Told behind its login, a client looks for it behind the tag of its first command.
#[tokio::test]
async fn too_many_sessions_are_refused_as_the_client_understands_it() {
    let mut setup = setup();
    setup.limits.sessions = 0;
    let site = setup.start().await;
    let mut client = site.connect().await;
    client.expect(&banner(BEFORE)).await;
    client.send(LOGIN).await;
    client.expect(&welcome()).await;
    let bye = "* BYE \"too many sessions\"\r\nS0 BYE too many sessions\r\n";
    client.expect(bye).await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn nothing_counts_that_was_sent_before_tls() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("c"), directory.path().join("k"));
    let made = rcgen::generate_simple_self_signed(vec!["syncmux".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut setup = setup();
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
        .expect(&banner("IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED"))
        .await;
    client.send(LOGIN).await;
    client
        .expect("A01 NO SASL(-4): no mechanism available\r\n")
        .await;
    // A command, and one that is not complete.
    client
        .send(b"S01 STARTTLS\r\nA01 AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\nA02 NOOP")
        .await;
    client.expect("S01 OK Begin TLS negotiation now\r\n").await;
    let mut client = client.in_tls(certificate).await;
    // There is no second greeting, and STARTTLS is gone.
    let capabilities = format!("* CAPABILITY {BEFORE}\r\nC01 OK Completed\r\n");
    let already = "S01 BAD Already did a successful Starttls\r\n";
    dialog(
        &mut client,
        &[
            ("C01 CAPABILITY\r\n", &capabilities),
            ("S01 STARTTLS\r\n", already),
        ],
    )
    .await;
    client.send(LOGIN).await;
    client
        .expect(&format!(
            "A01 OK [CAPABILITY {AFTER}] Success (tls protection)\r\n"
        ))
        .await;
    site.opened().await;
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
