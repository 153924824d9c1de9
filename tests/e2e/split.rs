//! Split brain: somebody changed the replica. The client's own recovery must run and both ends
//! agree afterwards.

use crate::support::client::put_log;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::relay::Direction;

ways!(message_on_the_replica: direct, strict, fan_out);
ways!(flags_on_the_replica: direct, strict, fan_out);
ways!(mailboxes_on_the_replica: direct, strict, fan_out);
ways!(intermediates_on_the_replica: direct, strict, fan_out);

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

pub fn message_on_the_replica(way: Way) {
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
    // That of Cyrus 3.2 has removed it with USER: it compares no tombstones.
    if there.list_names("*").contains(&"INBOX.there".to_owned()) {
        there.delete("INBOX.there");
    } else {
        assert!(lab.old_master(), "it is gone");
    }
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

/// A mailbox on one side that is there only because of its child on the other.
fn intermediates_on_the_replica(way: Way) {
    let mut lab = start_with(way, true);
    let mut alice = lab.master.login("alice");
    let mut there = lab.replica.login("alice");
    lab.step("an intermediate there, a mailbox here");
    there.create("INBOX.a.b");
    alice.create("INBOX.a");
    alice.append("INBOX.a", "", &message("here", 1000));
    there.delete("INBOX.a.b");
    bob_goes_on(&lab, "1");
    lab.settle();
    lab.step("an intermediate here, a mailbox there");
    there.create("INBOX.c");
    alice.create("INBOX.c.d");
    alice.append("INBOX.c.d", "", &message("here", 1000));
    bob_goes_on(&lab, "2");
    // It becomes a mailbox here as well: the client copies it back.
    lab.settle();
    let copied_back = alice.list_names("*").contains(&"INBOX.c".to_owned());
    // The client of Cyrus 3.2 makes it an intermediate there as well.
    assert_eq!(copied_back, !lab.old_master());
    lab.step("an intermediate gone there with its child");
    alice.create("INBOX.e.f");
    alice.append("INBOX.e.f", "", &message("before", 1000));
    lab.settle();
    there.delete("INBOX.e.f");
    alice.append("INBOX.e.f", "", &message("after", 1000));
    bob_goes_on(&lab, "3");
    lab.settle();
}

/// Both ends agreeing is not enough: fan-out must not end with less than stock to stock does, such as
/// a message that only the replica had.
#[test]
fn ends_as_stock_to_stock() {
    let ends = std::thread::scope(|scope| {
        let ways = [Way::Direct, Way::FanOut];
        let ends = ways.map(|way| scope.spawn(move || end_of_all_kinds(way)));
        ends.map(|end| end.join().unwrap())
    });
    assert_eq!(ends[0], ends[1]);
}

/// Goes through all kinds, in one user; what his mailboxes hold in the end.
fn end_of_all_kinds(way: Way) -> Vec<String> {
    let mut setup = Setup::new(way);
    // So that the link can be read: without these the client compresses.
    setup.tls = false;
    setup.traps = true;
    let mut lab = setup.start();
    lab.add_user("alice");
    let mut alice = lab.master.login("alice");
    let boxes = ["INBOX", "INBOX.flags", "INBOX.gone", "INBOX.moved"];
    for (i, name) in boxes.into_iter().enumerate() {
        if i > 0 {
            alice.create(name);
        }
        for number in 0..3 {
            alice.append(name, "", &message(&format!("{name} {number}"), 600));
        }
    }
    lab.settle();
    lab.relay.record();
    let mut there = lab.replica.login("alice");
    lab.step("other messages with the same UIDs");
    // The client is to see all of a step at once: what it sees first gets the lower UIDs.
    lab.end_rolling();
    for number in 0..2 {
        there.append("INBOX", "", &message(&format!("there {number}"), 600));
        alice.append("INBOX", "\\Seen", &message(&format!("here {number}"), 600));
    }
    lab.settle();
    lab.step("more messages there than here");
    lab.end_rolling();
    for number in 0..2 {
        there.append(
            "INBOX",
            "\\Answered",
            &message(&format!("more {number}"), 600),
        );
    }
    alice.append("INBOX", "", &message("less", 600));
    lab.settle();
    lab.step("flags on both sides");
    there.select("INBOX.flags");
    there.store("1:2", "+FLAGS (\\Flagged $There)");
    alice.select("INBOX.flags");
    alice.store("2:3", "+FLAGS (\\Answered $Here)");
    lab.settle();
    lab.step("expunged there, and here another one");
    there.select("INBOX.gone");
    there.store("1", "+FLAGS (\\Deleted)");
    there.expunge();
    alice.select("INBOX.gone");
    alice.store("2", "+FLAGS (\\Deleted)");
    alice.expunge();
    lab.settle();
    lab.step("under another name there");
    there.rename("INBOX.moved", "INBOX.elsewhere");
    there.append("INBOX.elsewhere", "", &message("elsewhere", 600));
    alice.append("INBOX.moved", "", &message("after the move", 600));
    lab.settle();
    let tape = lab.relay.tape();
    let up = tape.iter().filter(|piece| piece.direction == Direction::Up);
    let said: String = up.map(|p| String::from_utf8_lossy(&p.bytes)).collect();
    for verb in [
        "GET FULLMAILBOX",
        "GET FETCH",
        "APPLY EXPUNGE",
        "APPLY RENAME",
    ] {
        assert!(said.contains(verb), "{way:?} went without {verb}");
    }
    let mut end = alice.list_names("*");
    end.sort();
    for name in end.clone() {
        alice.select(&name);
        end.push(name);
        let items = "(UID FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])";
        end.extend(alice.run(&format!("FETCH 1:* {items}")));
    }
    end
}
