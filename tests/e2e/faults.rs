//! A replica that goes away, a link that breaks, syncmux itself killed.

use std::time::Duration;

use crate::support::client::leftovers;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::relay::Direction;
use crate::support::wait_for;

ways!(replica_killed: direct, strict, fan_out);
ways!(replica_away: strict, fan_out);
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
        if way != Way::Direct {
            let (code, said) = lab.mux().check();
            assert_eq!(code, Some(69), "the replica is down: {said}");
            assert!(said.contains("can't be reached"), "{said}");
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

/// A short absence is waited out; one that exceeds its limit sends the client away, with its log
/// kept.
fn replica_away(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = users(&lab, 4);
    mail(&lab, &users, "1", 1000);
    lab.settle();
    lab.step("away for a while, the client works on");
    lab.replica.stop();
    mail(&lab, &users, "2", 1000);
    wait_for("the client to be in need of the replica", || {
        lab.sync_directory().join("log-run").exists().then_some(())
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert!(lab.client_has_lived(), "the client did not wait");
    lab.replica.resume();
    lab.settle();
    assert!(lab.client_has_lived(), "the client did not wait");
    let said = lab.rolling().output();
    assert!(!said.contains("NO ") && !said.contains("BYE"), "{said}");

    lab.step("away for longer than the limit");
    lab.end_rolling();
    lab.mux().stop();
    let mut options = lab.mux_options();
    options.extra = "[limits]\nreplica_absence = \"2s\"\n".to_owned();
    lab.mux().configure(&options);
    lab.mux().start();
    mail(&lab, &users, "3", 1000);
    lab.settle();
    lab.replica.stop();
    mail(&lab, &users, "4", 1000);
    wait_for("the client to be sent away", || {
        (!lab.rolling().is_alive()).then_some(())
    });
    let left = leftovers(&lab.sync_directory());
    assert!(left.iter().any(|name| name == "log-run"), "kept: {left:?}");
    lab.replica.resume();
    lab.replica.ready();
    lab.settle();
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
    let before = lab.relay.counters().up;
    lab.rolling();
    wait_for("some of the work to be under way", || {
        (lab.relay.counters().up > before + 60_000).then_some(())
    });
    assert_eq!(lab.mux().stop(), Some(0), "drains and ends well");
    let log = lab.mux().log_text();
    assert!(!log.contains("on probation"), "all was confirmed: {log}");
    wait_for("the client to be sent away", || {
        (!lab.rolling().is_alive()).then_some(())
    });
    lab.mux().start();
    lab.settle();
}
