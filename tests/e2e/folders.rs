//! Mailboxes: created, renamed, moved, deleted, with odd names.

use crate::support::imap::message;
use crate::support::lab::{Setup, Way};

ways!(mailboxes: direct, strict, fan_out);
ways!(odd_names: direct, strict, fan_out);

fn mailboxes(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
    }
    let mut admin = lab.master.admin();
    let mut alice = lab.master.login("alice");
    lab.step("create, with children and intermediate mailboxes");
    for name in ["INBOX.sub", "INBOX.sub.deep", "INBOX.a.b.c", "INBOX.t"] {
        alice.create(name);
        alice.append(name, "", &message(name, 1000));
    }
    alice.run("CREATE INBOX.Sent (USE (\\Sent))");
    lab.settle();
    lab.step("rename a mailbox with a child");
    alice.rename("INBOX.sub", "INBOX.renamed");
    alice.append("INBOX.renamed", "", &message("after the rename", 1000));
    lab.settle();
    lab.step("append to a mailbox that had another name");
    alice.append("INBOX.renamed.deep", "", &message("later", 1000));
    lab.settle();
    lab.step("rename that makes an intermediate mailbox");
    alice.rename("INBOX.renamed", "INBOX.m.n");
    lab.settle();
    lab.step("ACL");
    alice.set_acl("INBOX.m.n", "bob", "lrs");
    lab.settle();
    lab.step("rename to another user");
    admin.rename("user.alice.m.n", "user.bob.taken");
    lab.settle();
    lab.step("append to the mailbox that was another user's");
    admin.set_acl("user.bob.taken", "bob", "lrswipkxtecdan");
    lab.master
        .login("bob")
        .append("INBOX.taken", "", &message("mine now", 1000));
    lab.settle();
    lab.step("two renames in one run");
    alice.rename("INBOX.t", "INBOX.x");
    alice.rename("INBOX.x", "INBOX.y");
    alice.create("INBOX.t");
    alice.append("INBOX.t", "", &message("the new one", 1000));
    lab.settle();
    lab.step("delete");
    alice.delete("INBOX.a.b.c");
    alice.delete("INBOX.y");
    lab.settle();
    lab.step("create again what was deleted");
    alice.create("INBOX.y");
    alice.append("INBOX.y", "", &message("again", 1000));
    lab.settle();
    lab.step("to another partition");
    admin.run("RENAME user.bob user.bob fast");
    // Cyrus 3.2 does not say in its log that the user has moved, stock to stock: -A finds it.
    let moved: &[&str] = if lab.old_master() {
        &["APPLY RENAME %(OLDMBOXNAME user.bob NEWMBOXNAME user.bob PARTITION fast"]
    } else {
        &[]
    };
    lab.settle_but(moved);
    lab.master
        .login("bob")
        .append("INBOX", "", &message("on the fast one", 1000));
    lab.settle();
    lab.step("one user on two partitions, in one run");
    admin.run("RENAME user.bob.taken user.bob.taken default");
    let moved: &[&str] = if lab.old_master() {
        &["APPLY RENAME %(OLDMBOXNAME user.bob.taken NEWMBOXNAME user.bob.taken PARTITION default"]
    } else {
        &[]
    };
    lab.settle_but(moved);
    let mut bob = lab.master.login("bob");
    for name in ["INBOX", "INBOX.taken"] {
        bob.append(name, "", &message(&format!("{name} both"), 1000));
        bob.append(name, "", &message("the same on both", 1000));
    }
    lab.settle();
}

pub fn odd_names(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.add_user("alice");
    // The INBOX first: stock to stock, a child that comes before it is refused (protocol.md 22).
    lab.settle();
    let mut alice = lab.master.login("alice");
    lab.step("create and append");
    let long = "x".repeat(200);
    let names = [
        "INBOX.with space",
        "INBOX.a(b)c",
        "INBOX.M&APw-ller",
        "INBOX.NIL",
        "INBOX.it's",
        "INBOX.a[b]",
        "INBOX.a+b=c",
        "INBOX.#hash",
        &format!("INBOX.{long}"),
    ];
    for name in names {
        alice.create(name);
        alice.append(name, "", &message(name, 500));
        alice.subscribe(name);
    }
    lab.settle();
    lab.step("append to known ones");
    for name in names {
        alice.append(name, "", &message(&format!("{name} 2"), 500));
    }
    lab.settle();
    lab.step("rename and unsubscribe");
    alice.rename("INBOX.with space", "INBOX.more (space)");
    alice.unsubscribe("INBOX.a(b)c");
    alice.delete("INBOX.a[b]");
    lab.settle();
}
