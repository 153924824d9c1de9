//! Users: renamed and deleted, with everything that is theirs.

use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(rename_user: direct, strict, fan_out);
ways!(delete_user: direct, strict, fan_out);

/// Stock to stock, UNUSER of the old name takes the subscriptions of the new one with it: both have
/// the uniqueid of the INBOX, and Cyrus 3.6 files a user's data by that. A later -u mends it.
const LOST_SUBSCRIPTIONS: &[&str] = &["LSUB", "APPLY SUB"];

fn furnish(lab: &mut Lab, user: &str) {
    lab.add_user(user);
    let mut imap = lab.master.login(user);
    imap.append("INBOX", "\\Seen", &message(&format!("{user} 1"), 2000));
    imap.create("INBOX.box");
    imap.append("INBOX.box", "", &message(&format!("{user} 2"), 2000));
    imap.subscribe("INBOX");
    imap.subscribe("INBOX.box");
    imap.set_metadata("INBOX.box", "/private/comment", Some(b"my box"));
    lab.master
        .admin()
        .set_quota(&format!("user.{user}"), "STORAGE 100000");
    let mut sieve = lab.master.manage_sieve(user);
    sieve.put(
        "main",
        "require \"fileinto\";\r\nfileinto \"INBOX.box\";\r\n",
    );
    sieve.activate("main");
    lab.sieve_users.insert(user.to_owned());
}

pub fn rename_user(way: Way) {
    let mut lab = Setup::new(way).start();
    furnish(&mut lab, "alice");
    furnish(&mut lab, "bob");
    lab.master.admin().set_acl("user.alice.box", "bob", "lrs");
    let mut bob = lab.master.login("bob");
    bob.select("user.alice.box");
    bob.store("1", "+FLAGS (\\Seen)");
    bob.run("UNSELECT");
    lab.settle();
    lab.step("rename the user");
    lab.master.admin().rename("user.alice", "user.erin");
    lab.sieve_users.remove("alice");
    lab.sieve_users.insert("erin".to_owned());
    lab.settle_but(LOST_SUBSCRIPTIONS);
    lab.step("append to a mailbox of the renamed user");
    lab.master
        .login("erin")
        .append("INBOX.box", "", &message("for erin", 2000));
    lab.settle();
    lab.step("another user with the old name");
    furnish(&mut lab, "alice");
    lab.settle();
    lab.step("rename again, with new mail in the same run");
    lab.master
        .login("erin")
        .append("INBOX", "", &message("before", 2000));
    lab.master.admin().rename("user.erin", "user.frank");
    lab.master
        .login("frank")
        .append("INBOX", "", &message("behind", 2000));
    lab.sieve_users.remove("erin");
    lab.sieve_users.insert("frank".to_owned());
    lab.settle_but(LOST_SUBSCRIPTIONS);
}

fn delete_user(way: Way) {
    let mut lab = Setup::new(way).start();
    furnish(&mut lab, "alice");
    furnish(&mut lab, "bob");
    lab.settle();
    lab.step("delete the user");
    lab.master.admin().delete("user.alice");
    lab.sieve_users.remove("alice");
    lab.settle();
    lab.step("create the user again");
    furnish(&mut lab, "alice");
    lab.settle();
    lab.step("delete and create in one run");
    lab.master.admin().delete("user.bob");
    lab.add_user("bob");
    lab.sieve_users.remove("bob");
    lab.master
        .login("bob")
        .append("INBOX", "", &message("a new life", 2000));
    // Stock to stock, the quota of the deleted user stays on the replica until -u sends UNQUOTA; and
    // with Cyrus 3.2, which files them by the user's name, the subscriptions until it sends UNSUB.
    let mut left = vec!["APPLY UNQUOTA user.bob", "GETQUOTAROOT"];
    if lab.old_master() || lab.old_replica() {
        left.extend(["bob: LSUB", "APPLY UNSUB"]);
    }
    lab.settle_but(&left);
}
