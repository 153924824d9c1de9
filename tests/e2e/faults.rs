//! A replica that refuses or goes away, a link that breaks, syncmux itself killed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::cyrus::{BIN, Instance};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::process::as_cyrus;
use crate::support::relay::Direction;
use crate::support::wait_for;

ways!(unwritable_mailbox: direct, strict, fan_out);
ways!(unwritable_mailbox_of_a_named_channel: fan_out);
ways!(refused_messages: strict, fan_out);
ways!(replica_killed: direct, strict, fan_out);
ways!(link_drips: direct, strict, fan_out);
ways!(link_breaks: direct, strict, fan_out);
ways!(syncmux_killed: strict, fan_out);
ways!(syncmux_terminated: strict, fan_out);

fn users(lab: &Lab, count: usize) -> Vec<String> {
    let users: Vec<String> = (0..count).map(|i| format!("u{i:03}")).collect();
    for user in &users {
        lab.add_user(user);
    }
    users
}

fn mail(lab: &Lab, users: &[String], what: &str, size: usize) {
    for user in users {
        let text = message(&format!("{user} {what}"), size);
        lab.master.login(user).append("INBOX", "", &text);
    }
}

/// How many messages an INBOX has.
fn count(instance: &Instance, user: &str) -> usize {
    let lines = instance.login(user).run("STATUS INBOX (MESSAGES)");
    let digits: String = lines[0]
        .chars()
        .rev()
        .skip(1)
        .take_while(char::is_ascii_digit)
        .collect();
    digits.chars().rev().collect::<String>().parse().unwrap()
}

/// The folder with the messages of a mailbox.
fn mailbox_folder(instance: &Instance, mailbox: &str) -> PathBuf {
    let mut command = as_cyrus(format!("{BIN}/mbpath"));
    let output = command
        .arg("-C")
        .arg(instance.conf())
        .arg(mailbox)
        .output()
        .unwrap();
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.is_dir(), "mbpath of {mailbox}: {output:?}");
    path
}

/// Only the client of a named channel defers a user by itself when told that he is locked.
fn unwritable_mailbox_of_a_named_channel(way: Way) {
    let mut setup = Setup::new(way);
    "second".clone_into(&mut setup.channel);
    setup.both.channels = vec!["second".to_owned()];
    unwritable(setup);
}

fn unwritable_mailbox(way: Way) {
    unwritable(Setup::new(way));
}

fn unwritable(setup: Setup) {
    let way = setup.way;
    let mut lab = setup.start();
    let users = users(&lab, 6);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    lab.step("one mailbox cannot be written");
    let bad = mailbox_folder(&lab.replica, "user.u002");
    std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o555)).unwrap();
    mail(&lab, &users, "2", 1000);
    if way == Way::FanOut {
        for (i, user) in users.iter().enumerate().filter(|(i, _)| *i != 2) {
            wait_for(&format!("the mail of {user} ({i})"), || {
                (count(&lab.replica, user) == 2).then_some(())
            });
        }
        lab.step("the others go on while it still cannot be written");
        mail(&lab, &users, "3", 1000);
        for user in users.iter().filter(|u| *u != "u002") {
            wait_for(&format!("the second mail of {user}"), || {
                (count(&lab.replica, user) == 3).then_some(())
            });
        }
        assert!(lab.client_has_lived(), "one bad user ended the client");
        assert_eq!(count(&lab.replica, "u002"), 1);
    } else {
        // Stock to stock, and strictly, the client may end here again and again: that is all.
        for _ in 0..20 {
            lab.rolling().keep_alive();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    lab.step("it can be written again");
    std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o700)).unwrap();
    lab.settle();
    if way == Way::FanOut {
        assert!(lab.client_has_lived());
    }
}

/// The replica can't stage messages: BAD to MESSAGE, and a MAILBOX behind it ends its process.
fn refused_messages(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = users(&lab, 4);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    lab.step("the replica stages nothing");
    let inbox = mailbox_folder(&lab.replica, "user.u000");
    let staging = inbox.ancestors().map(|folder| folder.join("sync."));
    let staging = staging
        .into_iter()
        .find(|folder| folder.is_dir())
        .expect("a staging folder");
    // A process that has staged something has a folder there until it is told to RESTART.
    wait_for("an empty staging folder", || {
        (std::fs::read_dir(&staging).unwrap().count() == 0).then_some(())
    });
    let mode = |mode| {
        std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o555);
    mail(&lab, &users, "2", 1000);
    let before = lab.relay.counters().up;
    lab.rolling();
    wait_for("a try", || {
        lab.rolling().keep_alive();
        (lab.relay.counters().up > before + 1000).then_some(())
    });
    for _ in 0..20 {
        lab.rolling().keep_alive();
        std::thread::sleep(Duration::from_millis(50));
    }
    for user in &users {
        assert_eq!(count(&lab.replica, user), 1);
    }
    lab.step("it stages again");
    mode(0o755);
    lab.settle();
    if way == Way::FanOut {
        assert!(lab.client_has_lived());
    }
}

fn replica_killed(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = users(&lab, 20);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    for (round, kill) in [(2, true), (3, false)] {
        lab.step(&format!(
            "the replica goes away in the middle, round {round}"
        ));
        lab.end_rolling();
        mail(&lab, &users, &round.to_string(), 20_000);
        let before = lab.relay.counters().up;
        lab.rolling();
        wait_for("some of the work to be under way", || {
            (lab.relay.counters().up > before + 100_000).then_some(())
        });
        if kill {
            lab.replica.kill();
        } else {
            lab.replica.stop();
        }
        std::thread::sleep(Duration::from_millis(300));
        lab.replica.resume();
        lab.replica.ready();
        lab.replicate();
        if way == Way::FanOut {
            assert!(
                lab.client_has_lived(),
                "the client must outlive the replica's restart"
            );
        }
        lab.assert_same();
    }
}

fn link_drips(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = users(&lab, 3);
    lab.relay.drip(true);
    lab.step("everything comes one byte at a time");
    mail(&lab, &users, "1", 3000);
    lab.settle();
    mail(&lab, &users, "2", 3000);
    lab.settle();
}

fn link_breaks(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = users(&lab, 8);
    mail(&lab, &users, "1", 3000);
    lab.settle();
    for (round, direction, after) in [
        (2, Direction::Up, 9_000),
        (3, Direction::Down, 2_500),
        (4, Direction::Up, 31_000),
    ] {
        lab.step(&format!("cut {direction:?} after {after} bytes"));
        lab.relay.cut_after(direction, after);
        mail(&lab, &users, &round.to_string(), 6000);
        lab.replicate();
        if !lab.relay.has_cut(direction) {
            lab.relay.cut_after(direction, 0);
        }
        mail(&lab, &users, "after the cut", 1000);
        lab.settle();
    }
    lab.step("reset of everything, again and again");
    lab.rolling();
    for round in 0..5 {
        mail(&lab, &users, &format!("reset {round}"), 3000);
        lab.relay.reset();
        lab.rolling().keep_alive();
    }
    lab.settle();
    if way == Way::FanOut {
        assert!(
            lab.client_has_lived(),
            "lanes break, the client need not know"
        );
    }
}

fn syncmux_killed(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = users(&lab, 20);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    for round in 2..4 {
        lab.step(&format!("kill -9 in the middle, round {round}"));
        lab.end_rolling();
        mail(&lab, &users, &round.to_string(), 20_000);
        let before = lab.relay.counters().up;
        lab.rolling();
        wait_for("some of the work to be under way", || {
            (lab.relay.counters().up > before + 60_000).then_some(())
        });
        lab.mux().kill();
        lab.mux().start();
        lab.settle();
    }
}

fn syncmux_terminated(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = users(&lab, 20);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    lab.step("SIGTERM in the middle");
    mail(&lab, &users, "2", 20_000);
    lab.rolling();
    assert_eq!(lab.mux().stop(), Some(0), "drains and ends well");
    lab.mux().start();
    lab.settle();
}
