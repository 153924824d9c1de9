//! Ways to set up a site: names with domains, UNIX sockets, no TLS, compression, a client cache.

use crate::support::csync::Csync;
use crate::support::cyrus::PASSWORD;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(virtual_domains: direct, strict, fan_out);
ways!(unix_listener: strict, fan_out);
ways!(conversations_without_tls: direct, strict, fan_out);
ways!(compressed_lanes: strict, fan_out);
ways!(client_with_a_cache: direct, strict, fan_out);
ways!(client_that_tries_imap_first: strict, fan_out);
ways!(replica_on_a_unix_socket: direct, strict, fan_out);
ways!(starttls_towards_the_client: strict, fan_out);

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
    lab.settle_but(lab.subscribed_too_early());
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
    lab.step("append to mailboxes with former names, rename of a user with a dot");
    let mut z = lab.master.login("z.z@example.com");
    z.append("INBOX/sub.box", "", &message("after the rename", 1000));
    admin.rename("user/c.dot@example.com", "user/d.dot@example.com");
    lab.settle_but(&["LSUB", "APPLY SUB"]);
    lab.master.login("d.dot@example.com").append(
        "INBOX/sub.box",
        "",
        &message("after it too", 1000),
    );
    lab.settle();
    lab.step("-u of users with domains");
    if lab.old_master() {
        // Of two clients of 3.2 for one user, one is told that the mailbox has changed meanwhile.
        lab.end_rolling();
    }
    z.append("INBOX", "", &message("z", 1000));
    let client = lab.strict_client();
    client
        .user(&["z.z@example.com", "d.dot@example.com"])
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
    // Stock clients lock each other out by the name of the server, which is another one here.
    lab.end_rolling();
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
    if lab.old_master() {
        return assert!(!path.exists(), "Cyrus 3.2 has no cache");
    }
    assert!(path.exists(), "the client did not use its cache");
    lab.step("the replica changes behind the cache");
    let mut there = lab.replica.login("alice");
    there.select("INBOX");
    there.store("1", "-FLAGS (\\Flagged)");
    lab.master
        .login("alice")
        .append("INBOX", "", &message("alice 3", 4000));
    lab.settle();
    if way == Way::FanOut {
        let log = lab.mux().log_text();
        let said = log.matches("a client answers from its own cache").count();
        let sessions = log.matches("logged in").count();
        assert!(said >= 1 && said <= sessions, "said {said} times: {log}");
    }
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

/// There the replica says nothing of SIEVE-MAILBOX, and the client falls back to the older verbs.
fn replica_on_a_unix_socket(way: Way) {
    let mut setup = Setup::new(way);
    setup.replica_socket = true;
    setup.tls = false;
    // It checks no passwords either, so the clients come by a socket too.
    setup.unix = true;
    let mut lab = setup.start();
    some_work(&mut lab);
    // Each end has a mailbox of its own for the scripts, and counts its changes for itself.
    let settle = |lab: &mut Lab| {
        lab.replicate();
        let found = lab.differences();
        let known = |f: &String| f.starts_with("STATUS \"user.alice.#sieve\"");
        assert!(found.iter().all(known), "{found:#?}");
    };
    lab.step("sieve: put and activate");
    lab.sieve_users.insert("alice".to_owned());
    let mut sieve = lab.master.manage_sieve("alice");
    sieve.put("first", "keep;\r\n");
    sieve.activate("first");
    settle(&mut lab);
    lab.step("sieve: another one");
    sieve.put("second", "# \"two\"\r\ndiscard;\r\n");
    sieve.activate("second");
    settle(&mut lab);
    // Stock to stock, UNSIEVE of the compiled script is sent again and again and changes nothing.
    lab.step("sieve: deactivate");
    sieve.activate("");
    lab.replicate();
    lab.step("sieve: activate again and delete the other one");
    sieve.activate("second");
    sieve.delete("first");
    settle(&mut lab);
    let scripts = lab.replica.manage_sieve("alice").scripts();
    assert_eq!(scripts.len(), 1, "{scripts:?}");
    if way != Way::Direct {
        // SIEVE, ACTIVATE_SIEVE and UNSIEVE.
        let labels = [("verb", "APPLY SIEVE"), ("answer", "ok")];
        let seen = lab.mux().metric("syncmux_commands_total", &labels);
        assert!(seen >= 5.0, "{seen} of the older verbs");
    }
}

/// Nothing but STARTTLS is offered before it, which is what makes the stock client use it.
fn starttls_towards_the_client(way: Way) {
    let mut lab = Setup::new(way).start();
    let mut options = lab.mux_options();
    options.extra = format!(
        "[client]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        lab.certs.cert.display(),
        lab.certs.key.display()
    );
    lab.mux().stop();
    lab.mux().configure(&options);
    lab.mux().start();
    let greeting = Csync::tcp(&lab.mux().listen).greeting;
    assert!(greeting.contains("* STARTTLS\r\n"), "{greeting:?}");
    assert!(!greeting.contains("* SASL"), "{greeting:?}");
    some_work(&mut lab);
    lab.strict_client().user(&["alice", "bob"]).expect_ok("-u");
    lab.assert_same();
}
