//! Split brain: somebody changed the replica. The client's own recovery must run and both ends
//! agree afterwards.

use crate::support::client::put_log;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(message_on_the_replica: direct, strict, fan_out);
ways!(flags_on_the_replica: direct, strict, fan_out);
ways!(mailboxes_on_the_replica: direct, strict, fan_out);

fn start(way: Way) -> Lab {
    start_with(way, false)
}

/// Where deletes are immediate, what is deleted on the replica leaves no trace there.
fn start_with(way: Way, immediate: bool) -> Lab {
    let mut setup = Setup::new(way);
    setup.both.immediate = immediate;
    let mut lab = setup.start();
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

fn bob_goes_on(lab: &Lab, what: &str) {
    lab.master
        .login("bob")
        .append("INBOX", "", &message(&format!("bob {what}"), 1000));
}

fn message_on_the_replica(way: Way) {
    let mut lab = start(way);
    lab.step("a message there and another one here, with the same UID");
    lab.replica
        .login("alice")
        .append("INBOX", "", &message("only there", 1000));
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("only here", 1000));
    bob_goes_on(&lab, "1");
    lab.settle();
    alice.select("INBOX");
    let found = alice.run("SEARCH SUBJECT \"only\"");
    assert_eq!(
        found.first().map(|l| l.split(' ').count()),
        Some(4),
        "copied back: {found:?}"
    );
    lab.step("a message there, and nothing but a flag here");
    lab.replica
        .login("alice")
        .append("INBOX.box", "", &message("there again", 1000));
    alice.select("INBOX.box");
    alice.store("1", "+FLAGS (\\Flagged)");
    bob_goes_on(&lab, "2");
    lab.settle();
    lab.step("a message expunged there");
    let mut there = lab.replica.login("alice");
    there.select("INBOX");
    there.store("2", "+FLAGS (\\Deleted)");
    there.expunge();
    alice.append("INBOX", "", &message("after the expunge there", 1000));
    bob_goes_on(&lab, "3");
    lab.settle();
}

fn flags_on_the_replica(way: Way) {
    let mut lab = start(way);
    lab.step("flags changed there, then a message here");
    let mut there = lab.replica.login("alice");
    there.select("INBOX");
    there.store("1:2", "+FLAGS (\\Flagged $There)");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("here", 1000));
    bob_goes_on(&lab, "1");
    lab.settle();
    lab.step("flags changed on both sides");
    there.store("1", "+FLAGS (\\Answered)");
    alice.select("INBOX");
    alice.store("1", "-FLAGS (\\Flagged)");
    bob_goes_on(&lab, "2");
    lab.settle();
    lab.step("an annotation and a subscription there");
    there.set_metadata("INBOX", "/private/comment", Some(b"there"));
    there.subscribe("INBOX.box");
    alice.append("INBOX", "", &message("here again", 1000));
    put_log(&lab.master.sync_directory(""), &["USER alice".to_owned()]);
    lab.settle();
}

fn mailboxes_on_the_replica(way: Way) {
    let mut lab = start_with(way, true);
    let mut alice = lab.master.login("alice");
    let mut there = lab.replica.login("alice");
    // An empty one: where it holds a message, stock to stock MAILBOX is refused without end.
    lab.step("a mailbox created on both sides");
    there.create("INBOX.both");
    alice.create("INBOX.both");
    alice.append("INBOX.both", "", &message("here", 1000));
    bob_goes_on(&lab, "1");
    lab.settle();
    lab.step("a mailbox created there only");
    there.create("INBOX.there");
    there.append("INBOX.there", "", &message("there", 1000));
    alice.append("INBOX", "", &message("here", 1000));
    lab.replicate();
    put_log(&lab.master.sync_directory(""), &["USER alice".to_owned()]);
    lab.replicate();
    // The stock client finds no tombstone of it and lets it be; nothing else may differ.
    let found = lab.differences().join("\n");
    let mut told = found
        .lines()
        .filter(|l| l.contains("master: ") || l.contains("replica: "));
    assert!(told.all(|l| l.contains("replica: ")), "{found}");
    there.delete("INBOX.there");
    lab.settle();
    lab.step("a mailbox there under another name");
    there.rename("INBOX.box", "INBOX.elsewhere");
    alice.append("INBOX.box", "", &message("after the rename there", 1000));
    bob_goes_on(&lab, "3");
    lab.settle();
    lab.step("a mailbox deleted there and created again");
    there.delete("INBOX.box");
    there.create("INBOX.box");
    alice.append(
        "INBOX.box",
        "",
        &message("after another one came there", 1000),
    );
    bob_goes_on(&lab, "3b");
    lab.settle();
    lab.step("a mailbox deleted there");
    there.delete("INBOX.both");
    alice.append("INBOX.both", "", &message("after the delete there", 1000));
    bob_goes_on(&lab, "4");
    lab.settle();
}
