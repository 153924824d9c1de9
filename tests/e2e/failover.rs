//! The master goes, the replica takes over: in a planned switch, where syncmux says when it is
//! safe, and in an unplanned one, where the sync directory names all that may be missing.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::client::{Client, leftovers};
use crate::support::compare;
use crate::support::cyrus::{PASSWORD, REPL};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::wait_for;

ways!(planned: strict, fan_out);

fn is_safe(lab: &mut Lab) -> bool {
    lab.mux().status()["safe_to_promote"].as_bool().unwrap()
}

/// A stock client from what was the replica to what was the master.
fn backwards(lab: &Lab) -> Client {
    let target = lab.master.csync.address();
    let (host, port) = target.split_once(':').unwrap();
    let lines = format!(
        "sync_host: {host}\nsync_port: {port}\nsync_authname: {REPL}\n\
         sync_password: {PASSWORD}\nsync_try_imap: no\n"
    );
    Client {
        conf: lab.replica.variant("client-backwards", &lines),
        version: lab.replica.version.clone(),
        ..lab.direct_client()
    }
}

/// README, "Fail-over", the planned switch.
fn planned(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = lab.add_users(8);
    lab.mail(&users, "1", 3000);
    assert!(!is_safe(&mut lab), "nobody has taken the log");
    lab.settle();
    lab.step("the replica answers nothing");
    // It is to take all of it at once.
    lab.end_rolling();
    lab.relay.stall(true);
    lab.mail(&users, "2", 3000);
    lab.rolling();
    let directory = lab.sync_directory();
    wait_for("the client to be in need of the replica", || {
        // With fan-out it may be done with the log already: then its runs are linked.
        let taken = directory.join("log-run").exists() || lab.mux().status()["runs_linked"] != 0;
        (taken && !directory.join("log").exists()).then_some(())
    });
    assert!(!is_safe(&mut lab));
    lab.step("no more work comes in, the replica answers again");
    lab.relay.stall(false);
    wait_for("syncmux to say that it is safe", || {
        lab.rolling().keep_alive();
        is_safe(&mut lab).then_some(())
    });
    let status = lab.mux().status();
    for zero in ["unconfirmed_users", "owed_lines", "runs_linked", "queued"] {
        assert_eq!(status[zero], 0, "{status:#}");
    }
    let directory = lab.sync_directory();
    assert_eq!(leftovers(&directory), Vec::<String>::new());
    lab.end_rolling();
    assert_eq!(lab.mux().stop(), Some(0));
    assert_eq!(leftovers(&directory), Vec::<String>::new());
    lab.assert_same();
    lab.step("the roles are swapped");
    lab.master.stop();
    lab.master.become_replica();
    lab.master.resume();
    lab.master.ready();
    for user in &users[..4] {
        let mut imap = lab.replica.login(user);
        imap.append("INBOX", "", &message(&format!("{user} new master"), 3000));
        imap.select("INBOX");
        imap.store("1:*", "+FLAGS (\\Flagged)");
        imap.create("INBOX.new");
    }
    let backwards = backwards(&lab);
    backwards.all().expect_ok("-A");
    let found = compare::differences(&lab.replica, &lab.master, &backwards, &lab.sieve_users);
    assert!(found.is_empty(), "{found:#?}");
}

/// The users that lines of the sync log name.
fn named(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in leftovers(directory) {
        let text = std::fs::read_to_string(directory.join(file)).unwrap();
        for word in text.split_whitespace() {
            let user = word.strip_prefix("user.").unwrap_or(word);
            names.insert(user.split('.').next().unwrap().to_owned());
        }
    }
    names
}

/// README, "Fail-over", the unplanned one.
#[test]
fn unplanned() {
    let mut setup = Setup::new(Way::FanOut);
    setup.tls = false;
    let mut lab = setup.start();
    let mut users = lab.add_users(8);
    let slow = [String::from("slow")];
    lab.add_user(&slow[0]);
    users.extend_from_slice(&slow);
    lab.master.login("slow").create("INBOX.sub");
    lab.mail(&users, "1", 3000);
    lab.settle();
    let directory = lab.sync_directory();
    lab.step("a user whom the replica refuses: owed");
    let folder = lab.replica.mailbox_folder("user.u000");
    let mode = |mode| std::fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
    // A process of Cyrus 3.2 ends at a file that it can't write, and the lanes below with it.
    mode(if lab.old_replica() { 0 } else { 0o555 });
    lab.mail(&users[..1], "2", 3000);
    lab.rolling();
    wait_for("a line that waits out its pause", || {
        lab.rolling().keep_alive();
        let owed = std::fs::read_to_string(directory.join("syncmux-owed"));
        owed.is_ok_and(|text| text.contains("u000")).then_some(())
    });
    lab.step("work that is acknowledged and not confirmed: a link");
    lab.end_rolling();
    // One is held, another one is for GET.
    lab.open_lanes(&["u001", "u002"]);
    lab.relay.hold_answers_to(Some("MBOXNAME user.slow"));
    // The second unit of a user does not leave before the first one is confirmed.
    lab.mail(&slow, "2", 3000);
    let text = message("behind it", 3000);
    lab.master.login("slow").append("INBOX.sub", "", &text);
    lab.rolling();
    wait_for("unconfirmed users and the end of their run", || {
        let unconfirmed = lab.mux().status()["unconfirmed_users"] == 1;
        let taken = !directory.join("log").exists() && !directory.join("log-run").exists();
        (unconfirmed && taken).then_some(())
    });
    lab.step("a client in the middle of its run, and changes that it has not yet seen");
    lab.relay.stall(true);
    lab.mail(&users[2..4], "2", 3000);
    wait_for("log-run", || {
        directory.join("log-run").exists().then_some(())
    });
    lab.mail(&users[5..6], "2", 3000);
    assert!(!is_safe(&mut lab));
    lab.step("the master is lost");
    lab.mux().kill();
    lab.rolling().kill();
    lab.relay.reset();
    let left = leftovers(&directory);
    println!("left: {left:?}");
    assert!(
        left.iter().any(|n| n.starts_with("syncmux-run-")),
        "{left:?}"
    );
    let named = named(&directory);
    let all = users.iter().cloned().collect();
    let ours = compare::snapshot(&lab.master, &all, &lab.sieve_users);
    let theirs = compare::snapshot(&lab.replica, &all, &lab.sieve_users);
    let differ: Vec<String> = compare::diff(&ours, &theirs);
    let missing: BTreeSet<String> = users
        .iter()
        .filter(|user| differ.iter().any(|found| found.contains(user.as_str())))
        .cloned()
        .collect();
    println!("differ: {missing:?}\nnamed: {named:?}");
    assert!(
        ["u000", "slow", "u005"]
            .iter()
            .all(|user| missing.contains(*user)),
        "{missing:?}"
    );
    assert!(missing.is_subset(&named), "{missing:?} not in {named:?}");
    assert!(!named.contains("u007"), "names everybody: {named:?}");
    lab.step("the master is back after all");
    mode(0o755);
    lab.relay.stall(false);
    lab.relay.hold_answers_to(None);
    lab.mux().start();
    lab.settle();
}
