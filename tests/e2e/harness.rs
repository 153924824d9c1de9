//! The harness itself: what it would miss, no other test would show.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::compare;
use crate::support::imap::message;
use crate::support::lab::{Setup, Way};
use crate::support::relay::{Direction, Relay};

#[test]
fn comparison_sees_differences() {
    let mut lab = Setup::new(Way::Direct).start();
    lab.add_user("alice");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("one", 4000));
    let found = lab.differences();
    for what in ["mailboxes", "direct sync_client -A", "alice: LIST"] {
        assert!(
            found.iter().any(|f| f.contains(what)),
            "{what} not among {found:#?}"
        );
    }
    lab.settle();
    let one = compare::snapshot(
        &lab.replica,
        &compare::users(&lab.replica),
        &lab.sieve_users,
    );
    lab.step("changes on the replica");
    let mut alice = lab.replica.login("alice");
    alice.select("INBOX");
    alice.store("1", "+FLAGS (\\Flagged)");
    alice.set_message_annotation("1", "/comment", "note");
    alice.set_metadata("INBOX", "/private/comment", Some(b"mine"));
    alice.subscribe("INBOX");
    lab.replica.admin().set_quota("user.alice", "STORAGE 5000");
    lab.replica.admin().set_acl("user.alice", "bob", "lr");
    let two = compare::snapshot(
        &lab.replica,
        &compare::users(&lab.replica),
        &lab.sieve_users,
    );
    let found = compare::diff(&one, &two).join("\n");
    for what in [
        "message",
        "annotations of",
        "LSUB",
        "GETQUOTAROOT",
        "GETACL",
    ] {
        assert!(found.contains(what), "{what} not in {found}");
    }
    assert!(
        one.values().any(|v| v.contains("BODY[]")),
        "no body in {one:#?}"
    );
}

/// A server that sends back what it gets.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(4) {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn relay_delays_without_limiting() {
    let relay = Relay::start(&echo(), Duration::from_millis(40));
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    let start = Instant::now();
    let mut one = [0; 1];
    for _ in 0..5 {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut one).unwrap();
    }
    let lockstep = start.elapsed();
    assert!(lockstep >= Duration::from_millis(200), "{lockstep:?}");
    let start = Instant::now();
    stream.write_all(&[b'y'; 100]).unwrap();
    stream.read_exact(&mut [0; 100]).unwrap();
    let burst = start.elapsed();
    // Only orders of magnitude: a busy machine must not fail this.
    assert!(
        burst >= Duration::from_millis(40) && burst < lockstep,
        "{burst:?} {lockstep:?}"
    );
    let counters = relay.counters();
    assert_eq!(
        (counters.up, counters.down, counters.connections),
        (105, 105, 1)
    );
    assert_eq!(counters.turns, 6);
}

#[test]
fn relay_breaks_what_it_is_told_to() {
    let relay = Relay::start(&echo(), Duration::ZERO);
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    relay.drip(true);
    stream.write_all(b"drop by drop").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    relay.cut_after(Direction::Up, 3);
    stream.write_all(b"abcdef").unwrap();
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() <= 3, "{got:?}");
    assert!(relay.has_cut(Direction::Up));
    assert_eq!(relay.counters().up, 18);
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    relay.reset();
    assert!(
        stream.read(&mut [0; 1]).is_err(),
        "a reset is an error, not an end"
    );
}

/// The way that `sites` lets syncmux take, stock to stock.
#[test]
fn replica_listens_on_a_unix_socket_too() {
    let mut lab = Setup::new(Way::Direct).start();
    lab.add_user("alice");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("one", 4000));
    let socket = lab.replica.csync_socket().display().to_string();
    lab.client_to("unix", &socket, "", "").all().expect_ok("-A");
    lab.assert_same();
}
