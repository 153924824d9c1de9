//! Messages: appended, flagged, expunged, copied and moved, many and large.

use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(messages: direct, strict, fan_out);
ways!(copies: direct, strict, fan_out);
ways!(immediate_expunge: direct, strict, fan_out);
ways!(three_thousand: direct, strict, fan_out);
ways!(fifty_megabytes: direct, strict, fan_out);
ways!(many_users_over_a_link: direct, strict, fan_out);

pub(crate) fn messages(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.step("append to mailboxes that the replica does not have");
    for user in ["alice", "bob", "carol"] {
        lab.add_user(user);
        lab.master
            .login(user)
            .append("INBOX", "", &message(user, 4000));
    }
    lab.settle();

    lab.step("append to known mailboxes");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "\\Flagged $Label1", &message("two", 4000));
    alice.append("INBOX", "\\Draft", &message("three", 100));
    for user in ["alice", "bob", "carol"] {
        lab.master
            .login(user)
            .append("INBOX", "", &message("the same for all", 2000));
    }
    lab.settle();

    lab.step("flags and seen");
    alice.select("INBOX");
    alice.store("1:2", "+FLAGS (\\Answered \\Seen $Label2)");
    alice.store("2", "-FLAGS ($Label1)");
    let mut bob = lab.master.login("bob");
    bob.select("INBOX");
    bob.run("FETCH 1:* BODY[]");
    bob.run("UNSELECT");
    lab.settle();

    lab.step("expunge");
    alice.store("1", "+FLAGS (\\Deleted)");
    alice.expunge();
    lab.replicate();
    alice.append("INBOX", "", &message("after the expunge", 500));
    alice.store("2", "+FLAGS (\\Deleted)");
    alice.expunge();
    lab.settle();
}

/// What the replica has must not cross the network again. The client is to see all lines of a copy
/// in one run: the destination alone does not tell it where the replica has the message.
fn copy_of_a_large_message(lab: &mut Lab, mailbox: &str) {
    lab.end_rolling();
    let mut alice = lab.master.login("alice");
    alice.select("INBOX");
    alice.copy("*", mailbox);
    let before = lab.relay.counters().up;
    lab.settle();
    let crossed = lab.relay.counters().up - before;
    assert!(crossed < 100_000, "{crossed} bytes for a copy to {mailbox}");
}

pub fn copies(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        for i in 0..6 {
            imap.append("INBOX", "", &message(&format!("{user} {i}"), 3000));
        }
    }
    lab.master
        .admin()
        .set_acl("user.bob", "alice", "lrswipkxtecda");
    lab.settle();

    let mut alice = lab.master.login("alice");
    lab.step("copy within a user, to a new mailbox");
    alice.create("INBOX.copies");
    alice.select("INBOX");
    alice.copy("1:3", "INBOX.copies");
    lab.settle();
    lab.step("copy within a user, to a known mailbox");
    alice.copy("4", "INBOX.copies");
    lab.settle();
    lab.step("copy of a large message: the replica has it");
    alice.append("INBOX", "", &message("large", 300_000));
    alice.create("INBOX.new");
    lab.settle();
    copy_of_a_large_message(&mut lab, "INBOX.copies");
    copy_of_a_large_message(&mut lab, "INBOX.new");
    lab.step("copy to another user");
    alice.copy("1:2", "user.bob");
    lab.settle();
    lab.step("move within a user");
    alice.move_to("1", "INBOX.copies");
    lab.settle();
    lab.step("move to another user");
    alice.move_to("1:2", "user.bob");
    lab.settle();
    lab.step("copy of what is new itself");
    alice.append("INBOX", "", &message("fresh", 3000));
    alice.copy("*", "user.bob");
    alice.copy("*", "INBOX.copies");
    lab.settle();
}

fn immediate_expunge(way: Way) {
    let mut setup = Setup::new(way);
    setup.both.immediate = true;
    let mut lab = setup.start();
    lab.add_user("alice");
    let mut alice = lab.master.login("alice");
    for i in 0..5 {
        alice.append("INBOX", "", &message(&format!("m{i}"), 1000));
    }
    lab.settle();
    lab.step("expunge at once");
    alice.select("INBOX");
    alice.store("2:3", "+FLAGS (\\Deleted)");
    alice.expunge();
    lab.settle();
    lab.step("delete a mailbox at once");
    alice.create("INBOX.gone");
    alice.append("INBOX.gone", "", &message("gone", 1000));
    lab.settle();
    alice.delete("INBOX.gone");
    lab.settle();
    lab.step("delete a user at once");
    lab.add_user("bob");
    lab.settle();
    lab.master.admin().delete("user.bob");
    lab.settle();
}

pub fn three_thousand(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.add_user("alice");
    let mut alice = lab.master.login("alice");
    let messages: Vec<_> = (0..3000)
        .map(|i| message(&format!("number {i}"), 700))
        .collect();
    for part in messages.chunks(1000) {
        alice.append_many("INBOX", part);
    }
    lab.settle();
    let said = lab.rolling().output();
    let uploads = said.matches("APPLY MESSAGE (%{").count();
    assert!(uploads >= 3, "at most 1,024 in one MESSAGE, not {uploads}");
    lab.step("copy all of them");
    alice.create("INBOX.all");
    alice.select("INBOX");
    alice.copy("1:*", "INBOX.all");
    lab.settle();
    lab.step("flag all of them, and one more");
    alice.store("1:*", "+FLAGS.SILENT (\\Flagged)");
    alice.append("INBOX", "", &message("one more", 700));
    lab.settle();
}

fn fifty_megabytes(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
    }
    lab.settle();
    lab.step("a large message, and small ones of another user");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("large", 50 << 20));
    for i in 0..3 {
        lab.master
            .login("bob")
            .append("INBOX", "", &message(&format!("small {i}"), 2000));
    }
    lab.settle();
}

pub(crate) fn many_users_over_a_link(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = std::time::Duration::from_millis(10);
    setup.lanes = 8;
    let mut lab = setup.start();
    let users: Vec<String> = (0..25).map(|i| format!("u{i:03}")).collect();
    for user in &users {
        lab.add_user(user);
        lab.master
            .login(user)
            .append("INBOX", "", &message(user, 4000));
    }
    lab.replicate();
    for round in 0..2 {
        lab.step(&format!("one message for everybody, round {round}"));
        for user in &users {
            let id = format!("{user} {round}");
            lab.master
                .login(user)
                .append("INBOX", "", &message(&id, 4000));
        }
        lab.replicate();
    }
    if way == Way::FanOut {
        let early = lab
            .mux()
            .metric("syncmux_commands_total", &[("early", "true")]);
        assert!(early > 0.0, "nothing was acknowledged early");
    }
    assert!(lab.client_has_lived());
    lab.assert_same();
}
