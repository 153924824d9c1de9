//! What is not in a message: seen by others, subscriptions, sieve, quota, annotations, shared
//! mailboxes.

use crate::support::imap::message;
use crate::support::lab::{Setup, Way};

ways!(shared_and_seen: direct, strict, fan_out);
ways!(quota_and_annotations: direct, strict, fan_out);
ways!(sieve_and_subscriptions: direct, strict, fan_out);

pub fn shared_and_seen(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
    }
    let mut admin = lab.master.admin();
    lab.step("shared mailboxes");
    for name in ["shared", "shared.news", "public"] {
        admin.create(name);
        admin.set_acl(name, "anyone", "lrswipkxte");
        admin.append(name, "", &message(&format!("{name} 1"), 2000));
    }
    lab.settle();
    lab.step("append to a known shared mailbox by users");
    let mut alice = lab.master.login("alice");
    let mut bob = lab.master.login("bob");
    alice.append("shared.news", "", &message("from alice", 2000));
    bob.append("shared.news", "", &message("from bob", 2000));
    lab.settle();
    lab.step("seen on a shared mailbox");
    alice.select("shared.news");
    alice.store("1:2", "+FLAGS (\\Seen)");
    bob.select("shared");
    bob.store("1", "+FLAGS (\\Seen)");
    alice.run("UNSELECT");
    bob.run("UNSELECT");
    lab.settle();
    lab.step("seen by another user");
    alice.append("INBOX", "", &message("for both", 2000));
    alice.set_acl("INBOX", "bob", "lrs");
    bob.select("user.alice");
    bob.store("1", "+FLAGS (\\Seen)");
    bob.run("UNSELECT");
    lab.settle();
    lab.step("unseen again, and seen by more");
    alice.select("shared.news");
    alice.store("1", "-FLAGS (\\Seen)");
    alice.run("UNSELECT");
    bob.select("shared.news");
    bob.store("1:*", "+FLAGS (\\Seen)");
    bob.run("UNSELECT");
    lab.settle();
    lab.step("move from shared to own, rename and delete of shared");
    bob.select("shared.news");
    bob.move_to("1", "INBOX");
    bob.run("UNSELECT");
    admin.rename("shared.news", "shared.old");
    admin.delete("public");
    lab.settle();
}

pub fn quota_and_annotations(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.add_user("alice");
    let mut admin = lab.master.admin();
    let mut alice = lab.master.login("alice");
    alice.create("INBOX.box");
    alice.append("INBOX", "", &message("one", 2000));
    alice.append("INBOX", "", &message("two", 2000));
    admin.create("shared");
    lab.settle();
    lab.step("quota");
    admin.set_quota("user.alice", "STORAGE 100000");
    admin.set_quota("shared", "STORAGE 5000 MESSAGE 100");
    lab.settle();
    lab.step("quota of more kinds, and new mail");
    admin.set_quota("user.alice", "STORAGE 200000 MESSAGE 1000");
    alice.append("INBOX", "", &message("three", 2000));
    lab.settle();
    lab.step("unlimited");
    admin.set_quota("user.alice", "");
    lab.settle();
    lab.step("annotation of the server");
    // A replica of Cyrus 3.2 takes none: `versions::annotation_of_the_server` says what happens then.
    if !lab.old_replica() {
        admin.set_metadata("", "/shared/comment", Some(b"the whole site"));
        alice.set_metadata("", "/private/comment", Some(b"my site"));
    }
    lab.settle();
    lab.step("annotations of a mailbox, literals among them");
    for (name, value) in [
        ("INBOX", &b"plain"[..]),
        (
            "INBOX.box",
            b"with \"quotes\" and \\ backslash\r\nand a line",
        ),
    ] {
        alice.set_metadata(name, "/private/comment", Some(value));
    }
    admin.set_metadata(
        "user.alice.box",
        "/shared/comment",
        Some(&b"8-bit: \xc3\xbc "[..]),
    );
    // Not on "shared": imapd 3.6.1 dies of SETMETADATA on a mailbox without an owner.
    admin.set_metadata("user.alice", "/shared/comment", Some(&[b'x'; 3000]));
    lab.settle();
    lab.step("annotation of a message");
    alice.select("INBOX");
    alice.set_message_annotation("1", "/comment", "a note");
    alice.set_message_annotation("2", "/comment", "with \"quotes\"");
    alice.run("STORE 2:3 ANNOTATION (/comment (value.priv \"for me alone\"))");
    lab.settle();
    lab.step("removed again");
    if !lab.old_replica() {
        admin.set_metadata("", "/shared/comment", None);
    }
    alice.set_metadata("INBOX", "/private/comment", None);
    alice.run("STORE 1 ANNOTATION (/comment (value.shared NIL))");
    lab.settle();
}

pub fn sieve_and_subscriptions(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
    }
    lab.settle();
    lab.step("subscriptions");
    lab.master.admin().set_acl("user.bob", "alice", "lrs");
    let mut alice = lab.master.login("alice");
    alice.create("INBOX.box");
    for name in ["INBOX", "INBOX.box", "user.bob"] {
        alice.subscribe(name);
    }
    lab.settle();
    lab.step("unsubscribe, and subscribe in one run");
    alice.unsubscribe("INBOX.box");
    alice.unsubscribe("INBOX");
    alice.subscribe("INBOX");
    lab.settle();
    lab.step("sieve: put and activate");
    lab.sieve_users.insert("alice".to_owned());
    let mut sieve = lab.master.manage_sieve("alice");
    let script = "require [\"fileinto\"];\r\nif header :contains \"Subject\" \"x\" \
                  {\r\n  fileinto \"INBOX.box\";\r\n}\r\n";
    sieve.put("first", script);
    sieve.activate("first");
    lab.settle();
    assert_eq!(lab.replica.manage_sieve("alice").scripts().len(), 1);
    lab.step("sieve: another one, and a change of the first");
    sieve.put("second", "keep;\r\n");
    sieve.put("first", "discard;\r\n");
    sieve.activate("second");
    lab.settle();
    lab.step("sieve: deactivate and delete");
    sieve.activate("");
    sieve.delete("first");
    lab.settle();
}
