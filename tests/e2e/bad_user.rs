//! A replica that cannot do what it is told: the others go on, and it heals once it can.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::cyrus::Instance;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::process::set_mode;
use crate::support::wait_for;

ways!(unwritable_mailbox: direct, strict, fan_out);
ways!(unwritable_in_a_named_channel: direct, strict, fan_out);
ways!(unreadable_mailbox: strict, fan_out);
ways!(unreadable_in_a_named_channel: strict, fan_out);
ways!(staging_unwritable: direct, strict, fan_out);
ways!(unknown_partition: direct, strict, fan_out);

/// How many messages a mailbox has.
fn count(instance: &Instance, mailbox: &str) -> usize {
    let status = format!("STATUS {mailbox} (MESSAGES)");
    let lines = instance.admin().run(&status);
    let (_, number) = lines[0].rsplit_once(' ').unwrap();
    number.trim_end_matches(')').parse().unwrap()
}

fn wait_for_mail(lab: &Lab, mailbox: &str, messages: usize) {
    wait_for(
        &format!("message {messages} in {mailbox} of the replica"),
        || (count(&lab.replica, mailbox) == messages).then_some(()),
    );
}

/// Stock to stock, and strictly, the client may end again and again: that is all.
fn keep_trying(lab: &mut Lab) {
    for _ in 0..20 {
        lab.rolling().keep_alive();
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn unwritable_mailbox(way: Way) {
    out_of_order(way, "", 0o555);
}

/// Here the client itself knows how to leave a user alone (IMAP_MAILBOX_LOCKED).
fn unwritable_in_a_named_channel(way: Way) {
    out_of_order(way, "second", 0o555);
}

/// GET USER and GET MAILBOXES are refused. Stock to stock the client does its run again without end.
fn unreadable_mailbox(way: Way) {
    out_of_order(way, "", 0);
}

fn unreadable_in_a_named_channel(way: Way) {
    out_of_order(way, "second", 0);
}

fn out_of_order(way: Way, channel: &str, mode: u32) {
    let mut setup = Setup::new(way);
    channel.clone_into(&mut setup.channel);
    let mut lab = setup.start();
    let users = lab.add_users(6);
    lab.mail(&users, "1", 1000);
    let mut admin = lab.master.admin();
    let shared = ["shared.bad", "shared.good"];
    for name in shared {
        admin.create(name);
        admin.set_acl(name, "cyrus", "lrswipkxtecdan");
        admin.append(name, "", &message(&format!("{name} 1"), 1000));
    }
    lab.settle();
    lab.step("a user's mailbox and a shared one are out of order");
    let bad = ["user.u002", "shared.bad"].map(|name| lab.replica.mailbox_folder(name));
    bad.iter().for_each(|path| set_mode(path, mode));
    lab.mail(&users, "2", 1000);
    for name in shared {
        admin.append(name, "", &message(&format!("{name} 2"), 1000));
    }
    if way == Way::FanOut {
        let good: Vec<String> = users
            .iter()
            .filter(|u| *u != "u002")
            .map(|u| format!("user.{u}"))
            .collect();
        good.iter()
            .for_each(|mailbox| wait_for_mail(&lab, mailbox, 2));
        wait_for_mail(&lab, "shared.good", 2);
        lab.step("the others go on meanwhile");
        lab.mail(&users, "3", 1000);
        admin.append("shared.good", "", &message("shared.good 3", 1000));
        good.iter()
            .for_each(|mailbox| wait_for_mail(&lab, mailbox, 3));
        wait_for_mail(&lab, "shared.good", 3);
        assert!(lab.client_has_lived(), "one bad user ended the client");
        if mode != 0 {
            for name in ["user.u002", "shared.bad"] {
                assert_eq!(count(&lab.replica, name), 1, "{name}");
            }
        }
        let verb = [("verb", "GET USER")];
        let before = lab.mux().metric("syncmux_commands_total", &verb);
        std::thread::sleep(Duration::from_secs(4));
        let tries = lab.mux().metric("syncmux_commands_total", &verb) - before;
        assert!(
            tries < 20.0,
            "the client spins: {tries} GET USER in 4 seconds"
        );
        if !channel.is_empty() {
            wait_for("IMAP_MAILBOX_LOCKED for the user", || {
                let text = lab.rolling().output();
                text.contains("IMAP_MAILBOX_LOCKED").then_some(())
            });
        }
    } else {
        keep_trying(&mut lab);
    }
    lab.step("they are in order again");
    bad.iter().for_each(|path| set_mode(path, 0o700));
    if way != Way::FanOut {
        // Stock to stock a refusal of shared mailboxes is forgotten where a later group of the run
        // went well.
        for name in shared {
            admin.append(name, "", &message(&format!("{name} again"), 1000));
        }
    }
    lab.settle();
    lab.one_client_was_enough();
}

/// The replica answers MESSAGE with BAD (capture 62): nothing can be replicated meanwhile.
fn staging_unwritable(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = lab.add_users(3);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("no message can be staged");
    let top = lab.replica.path("spool/sync.");
    let set_all = |mode| {
        for entry in std::fs::read_dir(&top).unwrap().filter_map(Result::ok) {
            let _ = std::fs::set_permissions(entry.path(), PermissionsExt::from_mode(mode));
        }
        set_mode(&top, mode);
    };
    set_all(0o555);
    lab.mail(&users, "2", 1000);
    if way == Way::FanOut {
        wait_for("the refusal", || {
            let labels = [("side", "replica"), ("kind", "refused")];
            (lab.mux().metric("syncmux_failures_total", &labels) > 0.0).then_some(())
        });
        for user in &users {
            assert_eq!(count(&lab.replica, &format!("user.{user}")), 1, "{user}");
        }
        lab.step("what needs no message goes on");
        let mut imap = lab.master.login(&users[0]);
        imap.subscribe("INBOX");
        wait_for("the subscription", || {
            let lines = lab.replica.login(&users[0]).run("LSUB \"\" \"*\"");
            (lines.len() == 1).then_some(())
        });
        assert!(lab.client_has_lived(), "a refused message ended the client");
    } else {
        keep_trying(&mut lab);
    }
    lab.step("messages can be staged again");
    set_all(0o755);
    lab.settle();
    lab.one_client_was_enough();
}

/// A partition that the replica lacks ends its process with a `* Fatal error` (capture 64).
fn unknown_partition(way: Way) {
    let mut setup = Setup::new(way);
    let extra = tempfile::tempdir().unwrap();
    crate::support::process::give(extra.path());
    setup.master_extra = vec![format!("partition-extra: {}", extra.path().display())];
    let mut lab = setup.start();
    let users = lab.add_users(3);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("a mailbox on a partition that the replica lacks");
    let mut admin = lab.master.admin();
    admin.run("CREATE user.u001.far extra");
    let mut u001 = lab.master.login("u001");
    u001.append("INBOX.far", "", &message("far", 1000));
    lab.mail(&users, "2", 1000);
    if way == Way::FanOut {
        for user in ["u000", "u002"] {
            wait_for_mail(&lab, &format!("user.{user}"), 2);
        }
        assert!(lab.client_has_lived(), "one mailbox ended the client");
    } else {
        keep_trying(&mut lab);
    }
    lab.step("it moves to one that the replica has");
    admin.run("RENAME user.u001.far user.u001.far default");
    lab.settle();
    lab.one_client_was_enough();
}
