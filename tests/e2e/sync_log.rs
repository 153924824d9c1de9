//! What stands in the sync log: torn and hostile lines, odd names that come back after a kill, and
//! very many lines. All of it is read by the real client.

use std::fmt::Write as _;
use std::time::Instant;

use crate::support::client::{leftovers, take_log};
use crate::support::imap::message;
use crate::support::lab::{Setup, Way};
use crate::support::process::write;
use crate::support::wait_for;

/// The stock client takes many of these for the end of the file, and forgets what is behind them:
/// so this is for fan-out alone.
#[test]
fn hostile_lines_cost_nobody_anything() {
    let mut lab = Setup::new(Way::FanOut).start();
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    let long = [b"MAILBOX ".as_slice(), &[b'y'; 1000]].concat();
    let lines: [(&[u8], bool); 14] = [
        (b"MAILBOX \"user.u000\nuser.u001\"", true),
        (b"MAILBOX \"user.u000", true),
        (b"MAILBOX \"user.u000\\", true),
        (b"MAILBOX user.u000 \"a\rb\"", true),
        (b"MAILBOX {9}\r\nuser.u000", true),
        (b"MAILBOX {999999999}", true),
        (b"MAILBOX {", true),
        (b"MAILBOX caf\xc3\xa9.\xff\xfe", true),
        (b"MAILBOX \"nul\0nul\"", true),
        (&long, true),
        (b"(((", true),
        (b"USER", true),
        (b"APPEND", true),
        // The last line without its newline.
        (b"", false),
    ];
    let directory = lab.sync_directory();
    for (line, newline) in lines {
        // The client of Cyrus 3.2 ends at a literal by SIGSEGV, each time anew (`getxstring` answers
        // "+ go ahead" to a file); and it fails the whole run, each time anew, where it can't make a
        // lock of a mailbox's name ("IOERROR: locking"). Cyrus logs no such lines.
        let literal = line.contains(&b'{') && line.contains(&b'\r');
        if lab.old_master() && (literal || line == long) {
            continue;
        }
        let shown = line.escape_ascii().to_string();
        lab.step(&format!("after {shown:.60}"));
        lab.end_rolling();
        lab.mail(&users[..3], &shown, 1000);
        let mut log = take_log(&directory);
        log.sort();
        log.dedup();
        let (first, rest) = log.split_first().unwrap();
        let end = if newline { "\n" } else { "" };
        let text = [
            first.as_bytes(),
            b"\n",
            line,
            if line.is_empty() { b"" } else { b"\n" },
            rest.join("\n").as_bytes(),
            end.as_bytes(),
        ]
        .concat();
        write(&directory.join("log"), text);
        lab.replicate();
        // What is waited for is that the lines behind it were put back and taken.
        let found = lab.differences();
        assert!(found.is_empty(), "{shown}: {found:#?}");
    }
}

/// Killed with all of it acknowledged and nothing confirmed: the lines are put back, and it is the
/// stock client that reads them.
#[test]
fn odd_names_come_back() {
    let mut setup = Setup::new(Way::FanOut);
    setup.tls = false;
    let mut lab = setup.start();
    let users = lab.add_users(2);
    lab.settle();
    // Cyrus 3.2 takes names of 200 characters at most, and has them for names of folders (255 bytes).
    let old = lab.old_master() || lab.old_replica();
    let long = format!("INBOX.{}", "x".repeat(if old { 200 } else { 400 }));
    let names = [
        "INBOX.with space",
        "INBOX.a(b)c",
        "INBOX.M&APw-ller",
        "INBOX.NIL",
        "INBOX.it's",
        "INBOX.a[b]{5}",
        "INBOX.{10+}",
        "INBOX.say \"hi\"",
        "INBOX.\\\"",
        "INBOX.back\\slash",
        "INBOX.a+b=c",
        "INBOX.#hash",
        &long,
    ];
    let mut made = Vec::new();
    let mut alice = lab.master.login(&users[0]);
    for name in names {
        let quoted = crate::support::imap::quote(name);
        let command = format!("CREATE {quoted}");
        let part = crate::support::imap::Part::Text(&command);
        let (_, answer) = alice.attempt(&[part]);
        // Cyrus itself allows no braces, quotes or backslashes by default.
        if answer.starts_with("OK") {
            made.push(name);
        }
    }
    println!("{} of {} names: {made:?}", made.len(), names.len());
    assert!(made.len() >= 8, "{made:?}");
    lab.settle();
    for name in &made {
        alice.append(name, "", &message(name, 500));
        alice.subscribe(name);
    }
    lab.end_rolling();
    let directory = lab.sync_directory();
    lab.relay.hold_answers_to(Some("APPLY MAILBOX"));
    lab.rolling();
    wait_for("the run to be linked", || {
        let left = leftovers(&directory);
        left.iter()
            .any(|name| name.starts_with("syncmux-run-"))
            .then_some(())
    });
    lab.step("killed");
    lab.mux().kill();
    lab.end_rolling();
    lab.relay.hold_answers_to(None);
    // As if the client had been about to unlink it: only the link knows.
    let _ = std::fs::remove_file(directory.join("log-run"));
    lab.mux().start();
    lab.settle();
}

/// The client remembers each name once; syncmux must not keep the lines either.
#[test]
fn million_lines() {
    const LINES: usize = 1_000_000;
    let mut setup = Setup::new(Way::FanOut);
    setup.tls = false;
    let mut lab = setup.start();
    let users = lab.add_users(20);
    lab.settle();
    let idle = lab.mux().memory("VmRSS:");
    lab.end_rolling();
    lab.mail(&users, "1", 1000);
    let directory = lab.sync_directory();
    take_log(&directory);
    let mut text = String::new();
    for i in 0..LINES {
        writeln!(text, "MAILBOX user.{}", users[i % users.len()]).unwrap();
    }
    lab.relay.hold_answers_to(Some("APPLY MAILBOX"));
    let size = text.len() as u64;
    write(&directory.join("log"), text);
    let start = Instant::now();
    lab.rolling();
    let links = || {
        let mut left = leftovers(&directory);
        left.retain(|name| name.starts_with("syncmux-run-"));
        left.pop()
    };
    let link = wait_for("the run to be linked", links);
    assert_eq!(directory.join(&link).metadata().unwrap().len(), size);
    wait_for("an early answer", || {
        let status = lab.mux().status();
        (status["unconfirmed_users"].as_u64() > Some(0)).then_some(())
    });
    let peak = lab.mux().memory("VmHWM:");
    println!(
        "{LINES} lines in {link}: linked and read after {:?}; {idle} kB idle, {peak} kB at most",
        start.elapsed()
    );
    assert!(peak < idle + (300 << 10), "{idle} kB idle, {peak} kB");
    lab.step("killed in the middle");
    lab.mux().kill();
    lab.end_rolling();
    lab.relay.hold_answers_to(None);
    let _ = std::fs::remove_file(directory.join("log-run"));
    let start = Instant::now();
    lab.mux().start();
    let peak = lab.mux().memory("VmHWM:");
    println!(
        "started again after {:?}, {peak} kB at most",
        start.elapsed()
    );
    assert!(peak < idle + (300 << 10), "{idle} kB idle, {peak} kB");
    lab.settle();
}
