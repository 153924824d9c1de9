//! Ways to set up a site: names with domains, UNIX sockets, no TLS, compression, a client cache.

use crate::support::cyrus::{PASSWORD, REPL};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(virtual_domains: direct, strict, fan_out);
ways!(unix_listener: strict, fan_out);
ways!(conversations_without_tls: direct, strict, fan_out);
ways!(compressed_lanes: strict, fan_out);
ways!(client_with_a_cache: direct, strict, fan_out);
ways!(client_that_tries_imap_first: strict, fan_out);
ways!(replica_on_a_unix_socket: strict, fan_out);

fn some_work(lab: &mut Lab) {
    for user in ["alice", "bob"] {
        lab.add_user(user);
        lab.master
            .login(user)
            .append("INBOX", "", &message(&format!("{user} 1"), 4000));
    }
    lab.settle();
    lab.step("known mailboxes");
    for user in ["alice", "bob"] {
        let mut imap = lab.master.login(user);
        imap.append("INBOX", "", &message(&format!("{user} 2"), 4000));
        imap.create("INBOX.box");
        imap.select("INBOX");
        imap.copy("1:*", "INBOX.box");
        imap.store("1", "+FLAGS (\\Flagged)");
        imap.subscribe("INBOX.box");
    }
    lab.settle();
}

fn virtual_domains(way: Way) {
    let mut setup = Setup::new(way);
    setup.both.virtual_domains = true;
    let mut lab = setup.start();
    let users = [
        "a@example.com",
        "c.dot@example.com",
        "b@example.org",
        "b@example.com",
    ];
    for user in users {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.append("INBOX", "", &message(&format!("{user} 1"), 1000));
        imap.create("INBOX/sub.box");
        imap.append("INBOX/sub.box", "", &message(&format!("{user} 2"), 1000));
        imap.subscribe("INBOX/sub.box");
    }
    let mut admin = lab.master.admin();
    admin.create("shared@example.com");
    admin.set_acl("shared@example.com", "anyone", "lrswipkxte");
    lab.settle();
    lab.step("append, seen, quota, deep names");
    for user in users {
        let mut imap = lab.master.login(user);
        imap.append("INBOX/sub.box", "", &message(&format!("{user} 3"), 1000));
        admin.set_quota(&lab.master.mailbox(user, ""), "STORAGE 90000");
    }
    admin.set_acl("user/c.dot@example.com", "a@example.com", "lrs");
    let mut a = lab.master.login("a@example.com");
    a.select("user/c.dot");
    a.store("1", "+FLAGS (\\Seen)");
    a.run("UNSELECT");
    lab.settle();
    lab.step("rename and delete of users");
    admin.rename("user/a@example.com", "user/z.z@example.com");
    admin.delete("user/b@example.com");
    // As in `users`: subscriptions of a renamed user are lost stock to stock.
    lab.settle_but(&["LSUB", "APPLY SUB"]);
    lab.step("-u of users with domains");
    let mut z = lab.master.login("z.z@example.com");
    z.append("INBOX", "", &message("z", 1000));
    let client = lab.strict_client();
    client
        .user(&["z.z@example.com", "c.dot@example.com"])
        .expect_ok("-u");
    lab.assert_same();
    lab.settle();
}

fn unix_listener(way: Way) {
    let mut setup = Setup::new(way);
    setup.unix = true;
    let mut lab = setup.start();
    some_work(&mut lab);
    lab.step("one-shot by the other socket");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("alice 3", 4000));
    lab.strict_client().user(&["alice", "bob"]).expect_ok("-u");
    lab.settle();
}

fn conversations_without_tls(way: Way) {
    let mut setup = Setup::new(way);
    setup.tls = false;
    setup.both.conversations = true;
    let mut lab = setup.start();
    some_work(&mut lab);
}

fn compressed_lanes(way: Way) {
    let mut setup = Setup::new(way);
    setup.compress = true;
    let mut lab = setup.start();
    some_work(&mut lab);
}

/// Its imapd.conf alone says so; syncmux is not told and must see it by itself.
fn client_with_a_cache(way: Way) {
    let mut setup = Setup::new(way);
    let cache = tempfile::tempdir().unwrap();
    crate::support::process::give(cache.path());
    let path = cache.path().join("cache.db");
    setup.client_extra = format!("sync_cache_db_path: {}\n", path.display());
    let mut lab = setup.start();
    some_work(&mut lab);
    assert!(path.exists(), "the client did not use its cache");
    lab.step("the replica changes behind the cache");
    let mut there = lab.replica.login("alice");
    there.select("INBOX");
    there.store("1", "-FLAGS (\\Flagged)");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("alice 3", 4000));
    lab.settle();
}

/// Stock to stock the probe costs `client_timeout`: it is set far beyond what a run takes here.
fn client_that_tries_imap_first(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
        lab.master
            .login(user)
            .append("INBOX", "", &message(&format!("{user} 1"), 4000));
    }
    let target = lab.mux().strict_listen.clone();
    let extra = "sync_try_imap: yes\nclient_timeout: 150\n";
    let client = lab.client_to("imap", &target, PASSWORD, extra);
    let outcome = client.user(&["alice", "bob"]).expect_ok("-u");
    assert!(
        outcome.seconds < 140.0,
        "the probe cost {} s",
        outcome.seconds
    );
    lab.assert_same();
    lab.settle();
}

fn replica_on_a_unix_socket(way: Way) {
    let mut setup = Setup::new(way);
    setup.tls = false;
    let mut lab = setup.start();
    let mut options = lab.mux_options();
    options.replica = format!("unix:{}", lab.replica.csync_socket().display());
    // Such a replica checks no passwords, so syncmux does.
    let password = lab.mux().folder.join("password");
    options.extra = format!(
        "[client]\nusername = \"{REPL}\"\npassword_file = \"{}\"\n",
        password.display()
    );
    lab.mux().stop();
    lab.mux().configure(&options);
    lab.mux().start();
    some_work(&mut lab);
}
