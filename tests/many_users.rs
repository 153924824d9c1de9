//! Many users in one session, with default limits: what they leave behind in memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod io_fake;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_fake::program::{LOGIN, Mux, replica};

const USERS: usize = 100_000;

/// Users whose commands are sent without waiting for the answers.
const AT_ONCE: usize = 100;

/// What is promised, in KiB.
const MOST: u64 = 64 << 10;

/// As the replica says it, or the client.
fn mailbox(name: &str, modseq: u64) -> String {
    format!(
        "%(UNIQUEID {name}.id MBOXNAME {name} SYNC_CRC 2809677419 SYNC_CRC_ANNOT 0 LAST_UID 9 \
         HIGHESTMODSEQ {modseq} RECENTUID 0 RECENTTIME 0 LAST_APPENDDATE 1795536482 \
         POP3_LAST_LOGIN 0 UIDVALIDITY 1795536482 PARTITION default ACL \"u\tlrswipkxtecdan\t\" \
         OPTIONS P FOLDERMODSEQ 7"
    )
}

/// Has all mailboxes, and takes what comes.
fn answer(command: &str) -> String {
    let mut words = command.split(|c: char| c.is_whitespace() || c == '(' || c == ')');
    let mut answer = String::new();
    match (words.next(), words.next()) {
        (Some("GET"), Some("MAILBOXES")) => {
            for name in words.filter(|word| !word.is_empty()) {
                answer += &format!("* MAILBOX {})\r\n", mailbox(name, 8));
            }
        }
        (Some("APPLY"), Some("CAPABILITIES")) => answer += "* ENABLED (SIEVE-MAILBOX)\r\n",
        _ => {}
    }
    answer + "OK success\r\n"
}

/// What the client says for one user, and how many answers that has.
fn user(n: usize) -> String {
    // In no order that the run has.
    let name = format!("user.u{:06}", n * 7919 % USERS);
    format!(
        "GET MAILBOXES ({name})\r\nAPPLY MAILBOX {} SINCE_MODSEQ 8 SINCE_CRC 1 RECORD (%(UID 1 \
         MODSEQ 9 LAST_UPDATED 1795536482 FLAGS (\\Seen) INTERNALDATE 1795536482 SIZE 4096 GUID \
         {n:040x})))\r\nRESTART\r\n",
        mailbox(&name, 9)
    )
}
const COMMANDS: usize = 3;

/// KiB, as `/proc/PID/status` says.
fn memory(mux: &Mux) -> BTreeMap<String, u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mux.child.id())).unwrap();
    let fields = status.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().strip_suffix(" kB")?))
    });
    fields
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

#[test]
fn they_leave_little_behind() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sync")).unwrap();
    let lines = (0..USERS).map(|n| format!("MAILBOX user.u{n:06}\n"));
    let run = folder.path().join("sync/log-run");
    std::fs::write(&run, lines.collect::<String>()).unwrap();
    let mux = Mux::start_in(folder, replica(Arc::new(answer)), "", true);
    let mut client = mux.connect();
    assert!(client.ask(LOGIN).starts_with("OK"));
    let enabled = client.ask("APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n");
    assert!(enabled.starts_with("OK"), "{enabled}");
    let (began, before) = (Instant::now(), memory(&mux)["VmRSS"]);
    let mut line = String::new();
    for first in (0..USERS).step_by(AT_ONCE) {
        let block: String = (first..first + AT_ONCE).map(user).collect();
        client.0.get_mut().write_all(block.as_bytes()).unwrap();
        let mut missing = AT_ONCE * COMMANDS;
        while missing > 0 {
            line.clear();
            client.0.read_line(&mut line).unwrap();
            assert!(
                line.starts_with("OK") || line.starts_with("* MAILBOX"),
                "{line}"
            );
            missing -= usize::from(line.starts_with("OK"));
        }
    }
    let took = began.elapsed();
    // The replica has it all when the link of the run goes.
    std::fs::remove_file(run).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(mux.path("sync")).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().starts_with("syncmux-run-")
    }) {
        assert!(Instant::now() < until, "the run is still linked");
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = memory(&mux);
    println!(
        "{USERS} users in {took:.1?}: resident {before} KiB before, {} after, {} at most",
        after["VmRSS"], after["VmHWM"]
    );
    assert!(after["VmHWM"] < MOST, "{} KiB", after["VmHWM"]);
    assert!(!mux.errors().contains("panicked"), "{}", mux.errors());
}
