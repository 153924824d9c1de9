//! Known state (`core/known.rs`): questions that are not asked, and what was changed on the replica
//! behind syncmux's back.

use std::process::Command;

use crate::support::client::put_log;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::wait_for;

ways!(a_wrong_belief_heals: fan_out);
ways!(renames: strict, fan_out);

fn start(way: Way) -> Lab {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.create("INBOX.box");
        for i in 0..3 {
            imap.append("INBOX", "", &message(&format!("{user} {i}"), 1000));
            imap.append("INBOX.box", "", &message(&format!("{user} box {i}"), 1000));
        }
    }
    lab.settle();
    lab
}

fn known(lab: &mut Lab, outcome: &str) -> f64 {
    let labels = [("outcome", outcome)];
    lab.mux().metric("syncmux_known_total", &labels)
}

/// What was dropped by what went before is known again.
fn learn(lab: &mut Lab, names: &[&str]) {
    look_at(lab, names);
    lab.settle();
}

/// Lines of mailboxes on which nothing has changed here.
fn look_at(lab: &mut Lab, names: &[&str]) {
    let lines: Vec<String> = names.iter().map(|name| format!("MAILBOX {name}")).collect();
    put_log(&lab.sync_directory(), &lines);
}

fn wrong_once_more(lab: &mut Lab, before: f64) {
    wait_for("the wrong belief to be found", || {
        (known(lab, "wrong") > before).then_some(())
    });
    lab.settle();
}

fn a_wrong_belief_heals(way: Way) {
    let mut lab = start(way);
    let mut there = lab.replica.login("alice");
    if lab.old_replica() || lab.old_master() {
        // Without CAPABILITIES the replica is known to compare SINCE_MODSEQ with its first answer that has
        // a mailbox.
        learn(&mut lab, &["user.alice"]);
    }
    lab.step("everything is known");
    look_at(&mut lab, &["user.alice", "user.alice.box", "user.bob"]);
    lab.settle();
    let hits = known(&mut lab, "hit");
    assert!(hits >= 3.0, "{hits}");
    assert_eq!(known(&mut lab, "wrong"), 0.0);

    lab.step("a message there, another here");
    there.append("INBOX", "", &message("only there", 1000));
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("only here", 1000));
    lab.settle();

    lab.step("flags there, and nothing here");
    learn(&mut lab, &["user.alice.box"]);
    there.select("INBOX.box");
    there.store("1", "+FLAGS (\\Flagged)");
    let before = known(&mut lab, "wrong");
    look_at(&mut lab, &["user.alice.box"]);
    wrong_once_more(&mut lab, before);

    lab.step("an expunge there, and nothing here");
    learn(&mut lab, &["user.alice"]);
    there.select("INBOX");
    there.store("1", "+FLAGS (\\Deleted)");
    there.expunge();
    let before = known(&mut lab, "wrong");
    look_at(&mut lab, &["user.alice"]);
    wrong_once_more(&mut lab, before);

    lab.step("a mailbox deleted there, and nothing here");
    learn(&mut lab, &["user.alice.box"]);
    there.run("UNSELECT");
    there.delete("INBOX.box");
    let before = known(&mut lab, "wrong");
    look_at(&mut lab, &["user.alice.box", "user.bob.box"]);
    wrong_once_more(&mut lab, before);

    lab.step("a mailbox deleted there, a message here");
    learn(&mut lab, &["user.alice.box"]);
    there.delete("INBOX.box");
    alice.append(
        "INBOX.box",
        "",
        &message("after it was deleted there", 1000),
    );
    lab.settle();

    lab.step("an old copy of all mailbox folders restored there");
    let (data, copy) = (lab.replica.path("spool"), lab.path("copy"));
    let cp = |from: &std::path::Path, to: &std::path::Path| {
        let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(done.unwrap().success());
    };
    cp(&data, &copy);
    let mut bob = lab.master.login("bob");
    bob.append("INBOX", "", &message("after the copy", 1000));
    bob.append("INBOX.box", "", &message("after the copy", 1000));
    lab.settle();
    learn(&mut lab, &["user.bob", "user.bob.box"]);
    cp(&copy.join("."), &data);
    let before = known(&mut lab, "wrong");
    look_at(&mut lab, &["user.bob"]);
    bob.append("INBOX.box", "", &message("after the restore", 1000));
    wrong_once_more(&mut lab, before);
    assert!(lab.client_has_lived());
}

/// Both names are known, one of them as absent.
fn renames(way: Way) {
    let mut lab = start(way);
    let mut alice = lab.master.login("alice");
    for (from, to) in [("box", "other"), ("other", "box")] {
        let names = [format!("user.alice.{from}"), format!("user.alice.{to}")];
        look_at(&mut lab, &[&names[0], &names[1]]);
        lab.settle();
        let hits = known(&mut lab, "hit");
        look_at(&mut lab, &[&names[0], &names[1]]);
        lab.settle();
        // The client of Cyrus 3.2 does not ask for what the master has not.
        let asked = if lab.old_master() { 1.0 } else { 2.0 };
        assert!(known(&mut lab, "hit") >= hits + asked);
        lab.step("it is renamed");
        alice.rename(&format!("INBOX.{from}"), &format!("INBOX.{to}"));
        let to = format!("INBOX.{to}");
        alice.append(&to, "", &message(&format!("in {to}"), 1000));
        lab.settle();
    }
    assert!(lab.client_has_lived());
}
