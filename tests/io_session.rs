//! Sessions that are logged in: commands, answers, and clients that misbehave. The test plays the core.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::time::Duration;

use io_fake::site::Setup;
use syncmux::io::spill::collect;
use syncmux::protocol::{Apply, Body, Get, Kind};

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

/// A write of a strict session whose lane was lost has no answer, and must not seem to have one.
#[tokio::test]
async fn an_end_without_words_says_nothing() {
    let mut site = Setup::default().start().await;
    let (mut client, session) = site.logged_in().await;
    client.send(b"APPLY UNUSER joe\r\n").await;
    site.command().await;
    site.registry.end(session, Body::new());
    assert_eq!(client.rest().await, b"");
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

/// The core is told, since a line is to be written.
#[tokio::test]
async fn what_does_not_fit_is_put_off_where_somebody_waits() {
    let setup = Setup {
        spill: 1_000_000,
        right_now: true,
        ..Setup::default()
    };
    let mut site = setup.start().await;
    let (mut client, session) = site.logged_in().await;
    client.send(&message(5_000_000).0).await;
    assert!(matches!(site.command().await.kind, Kind::Bad { .. }));
    site.registry.answer(session, "NO put off\r\n".into());
    client.expect("NO put off\r\n").await;
}
