//! The program between clients and replicas that mean no good: what it holds, whom it answers,
//! and whether it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod io_fake;

use std::fmt::Write as _;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_fake::program::{Mux, ok, replica};

fn message(number: usize, size: usize) -> Vec<u8> {
    let mut text = format!("APPLY MESSAGE (%{{default {number:040x} {size}}}\r\n").into_bytes();
    text.resize(text.len() + size, b'x');
    text.extend_from_slice(b")\r\n");
    text
}

fn mailbox(user: &str) -> String {
    format!(
        "APPLY MAILBOX %(UNIQUEID u{user} MBOXNAME user.{user} PARTITION default LAST_UID 1 \
         SYNC_CRC 1 RECORD (%(UID 1 GUID {:040x})))\r\n",
        7
    )
}

#[test]
fn what_a_stranger_says_is_answered_or_ends_the_connection() {
    let mux = Mux::start(replica(Arc::new(ok)), "", false);
    let long = "x".repeat(200_000);
    let literal = "GET USER {5+}\r\nEXIT\r\n";
    for (said, answer) in [
        ("\0\0\r\n", "BAD "),
        ("\r\r\r\n", "BAD Null command"),
        ("((((\r\n", "BAD Null command"),
        ("NOOP\rEXIT\r\n", "BAD Unexpected extra arguments"),
        ("AUTHENTICATE PLAIN *\r\n", "BAD Client canceled"),
        ("GET USER {99999999999}\r\n", "NO Please authenticate"),
        ("APPLY MESSAGE (%{a b 4}\r\nabcd)\r\n", "BYE "),
        (literal, "BYE a literal before the login"),
        (&long, "* Fatal error: [TOOBIG]"),
        ("STARTTLS\r\nNOOP\r\n", "BAD "),
    ] {
        let mut client = mux.connect();
        let found = client.ask(said);
        assert!(found.starts_with(answer), "{said:.40}: {found}");
    }
    // A name cannot write lines of its own into the log, nor as many bytes as it likes.
    let mut client = mux.connect();
    let name = format!("\0joe\r\nERROR forged{}\0secretpw", "y".repeat(20_000));
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, name);
    assert!(
        client
            .ask(format!("AUTHENTICATE PLAIN {encoded}\r\n"))
            .starts_with("NO ")
    );
    let errors = mux.errors();
    assert!(
        !errors
            .lines()
            .any(|line| line.starts_with("ERROR") || line.len() > 500)
    );
    assert!(errors.contains("forged") && !errors.contains("secretpw"));
}

#[test]
fn sessions_get_their_own_answers_whatever_others_do() {
    let answers = |command: &str| {
        let user = command.split_whitespace().nth(2).unwrap_or_default();
        // A header of a literal is no name: an answer with one would end the lane, and three of these
        // under one read are the read's end (ARCHITECTURE, "A GET").
        let user = if user.starts_with('{') {
            "literal"
        } else {
            user
        };
        format!("* SEEN %(USERID {user})\r\nOK for {user}\r\n")
    };
    let mux = Mux::start(replica(Arc::new(answers)), "", false);
    let mut clients: Vec<_> = (0..60).map(|_| mux.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let said = match i % 4 {
            0 => format!("GET USER u{i}\r\n"),
            // Two at once, one of them with a literal that looks like commands.
            1 => format!("GET USER u{i}\r\nGET USER {{14+}}\r\nx\r\nGET USER a\r\n\r\n"),
            2 => format!("GET USER u{i} x\r\nGET USER u{i}\r\n"),
            _ => "APPLY MESSAGE (%{default ".to_owned(),
        };
        client.send(said.as_bytes());
    }
    for i in (3..60).step_by(4) {
        clients[i]
            .0
            .get_ref()
            .shutdown(std::net::Shutdown::Both)
            .unwrap();
    }
    for (i, client) in clients.iter_mut().enumerate().filter(|(i, _)| i % 4 != 3) {
        if i % 4 == 2 {
            assert!(client.line().starts_with("BAD "));
        }
        assert_eq!(client.line(), format!("* SEEN %(USERID u{i})\r\n"));
        assert_eq!(client.line(), format!("OK for u{i}\r\n"));
    }
}

#[test]
fn a_session_that_waits_keeps_no_space_on_disk() {
    let limits = "staged_memory = \"1MiB\"\nspill_size = \"8MiB\"";
    let mux = Mux::start(replica(Arc::new(ok)), limits, false);
    let mut idle = mux.client();
    assert!(idle.ask(message(1, 6_000_000)).starts_with("OK"));
    assert!(idle.ask("RESTART\r\n").starts_with("OK"));
    let mut other = mux.client();
    assert!(other.ask(message(2, 6_000_000)).starts_with("OK"));
}

#[test]
fn an_answer_without_end_costs_the_lane_and_not_the_memory() {
    let answers = |command: &str| {
        let mut lines = String::new();
        if command.contains("flood") {
            for number in 0..1_000_000 {
                let _ = writeln!(lines, "* SEEN %(USERID joe UNIQUEID {number})\r");
            }
        }
        lines + "OK success\r\n"
    };
    let mux = Mux::start(replica(Arc::new(answers)), "", false);
    let mut client = mux.client();
    let before = mux.memory();
    client.send(b"GET USER flood\r\n");
    let mut most = 0;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(50));
        most = most.max(mux.memory() - before);
    }
    assert!(most < 200, "{most} MiB");
    let mut other = mux.client();
    assert!(other.ask("GET USER joe\r\n").starts_with("OK success"));
}

#[test]
fn a_flood_of_the_admin_port_leaves_descriptors_to_clients() {
    let mux = Mux::start(replica(Arc::new(ok)), "", false);
    drop(mux.client());
    let mut flood = Vec::new();
    for _ in 0..110 {
        let mut stream = TcpStream::connect(("127.0.0.1", mux.ports[1])).unwrap();
        stream.write_all(b"GET /met").unwrap();
        flood.push(stream);
    }
    std::thread::sleep(Duration::from_millis(300));
    let found = mux.descriptors();
    assert!(found < 100, "{found}");
    assert!(mux.client().ask("GET USER joe\r\n").starts_with("OK"));
}

/// Locks `log` as a Cyrus that was stopped would.
fn lock(path: &Path) -> std::fs::File {
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let log = log.unwrap();
    rustix::fs::fcntl_lock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    log
}

#[test]
fn a_locked_log_does_not_keep_the_program_that_starts_from_ending() {
    let port = replica(Arc::new(ok));
    let folder = tempfile::tempdir().unwrap();
    let sync = folder.path().join("sync");
    std::fs::create_dir(&sync).unwrap();
    std::fs::write(sync.join("syncmux-run-77"), "MAILBOX user.joe\n").unwrap();
    let _log = lock(&sync.join("log"));
    let mut mux = Mux::start_in(folder, port, "", true);
    std::thread::sleep(Duration::from_millis(500));
    mux.stop(Duration::from_secs(5));
    assert!(mux.path("sync/syncmux-run-77").exists());
}

#[test]
fn a_sync_directory_that_is_gone_does_not_keep_the_program_from_ending() {
    let refuse = |command: &str| {
        let answer = if command.starts_with("APPLY MAILBOX") {
            "NO IMAP_IOERROR x"
        } else {
            "OK"
        };
        format!("{answer}\r\n")
    };
    let mut mux = Mux::start(replica(Arc::new(refuse)), "drain_grace = \"1s\"", true);
    std::fs::write(mux.path("sync/log-run"), "MAILBOX user.bad\n").unwrap();
    let mut client = mux.client();
    assert!(client.ask("GET MAILBOXES (user.bad)\r\n").starts_with("OK"));
    std::fs::remove_dir_all(mux.path("sync")).unwrap();
    client.send(mailbox("bad").as_bytes());
    std::thread::sleep(Duration::from_millis(300));
    mux.stop(Duration::from_secs(12));
}
