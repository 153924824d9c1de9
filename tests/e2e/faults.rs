//! A replica that goes away, a link that breaks, syncmux itself killed.

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::support::client::leftovers;
use crate::support::csync::Csync;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::relay::Direction;
use crate::support::wait_for;

ways!(replica_killed: direct, strict, fan_out);
ways!(replica_away: strict, fan_out);
ways!(sync_servers_killed: direct, strict, fan_out);
ways!(replica_silent: strict, fan_out);
ways!(replica_talks_nonsense: strict, fan_out);
ways!(cut_inside_a_message: strict, fan_out);
ways!(client_vanishes: strict, fan_out);
ways!(terminated_in_a_loop: strict, fan_out);
ways!(link_drips: direct, strict, fan_out);
ways!(link_breaks: direct, strict, fan_out);
ways!(syncmux_killed: strict, fan_out);
ways!(syncmux_terminated: strict, fan_out);

pub fn replica_killed(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = lab.add_users(20);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for (round, kill) in [(2, true), (3, false)] {
        lab.step(&format!(
            "the replica goes away in the middle, round {round}"
        ));
        lab.end_rolling();
        lab.mail(&users, &round.to_string(), 20_000);
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
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("away for a while, the client works on");
    lab.replica.stop();
    lab.mail(&users, "2", 1000);
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
    lab.mail(&users, "3", 1000);
    lab.settle();
    lab.replica.stop();
    lab.mail(&users, "4", 1000);
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
    let users = lab.add_users(3);
    lab.relay.drip(true);
    lab.step("everything comes one byte at a time");
    lab.mail(&users, "1", 3000);
    lab.settle();
    lab.mail(&users, "2", 3000);
    lab.settle();
}

fn link_breaks(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = lab.add_users(8);
    lab.mail(&users, "1", 3000);
    lab.settle();
    for (round, direction, after) in [
        (2, Direction::Up, 9_000),
        (3, Direction::Down, 2_500),
        (4, Direction::Up, 31_000),
    ] {
        lab.step(&format!("cut {direction:?} after {after} bytes"));
        lab.relay.cut_after(direction, after);
        lab.mail(&users, &round.to_string(), 6000);
        lab.replicate();
        if !lab.relay.has_cut(direction) {
            lab.relay.cut_after(direction, 0);
        }
        lab.mail(&users, "after the cut", 1000);
        lab.settle();
    }
    lab.step("reset of everything, again and again");
    lab.rolling();
    for round in 0..5 {
        lab.mail(&users, &format!("reset {round}"), 3000);
        lab.relay.reset();
        lab.rolling().keep_alive();
    }
    lab.settle();
    lab.one_client_was_enough();
}

pub fn syncmux_killed(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = lab.add_users(20);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for round in 2..4 {
        lab.step(&format!("kill -9 in the middle, round {round}"));
        lab.end_rolling();
        lab.mail(&users, &round.to_string(), 20_000);
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

pub fn syncmux_terminated(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(20);
    let mut lab = setup.start();
    let users = lab.add_users(20);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("SIGTERM in the middle");
    lab.mail(&users, "2", 20_000);
    let before = lab.relay.counters().up;
    lab.rolling();
    wait_for("some of the work to be under way", || {
        (lab.relay.counters().up > before + 60_000).then_some(())
    });
    assert_eq!(lab.mux().stop(), Some(0), "drains and ends well");
    let log = lab.mux().log_text();
    assert!(!log.contains("on probation"), "all was confirmed: {log}");
    // A client that was just done with its run notices with the next change.
    lab.mail(&users[..1], "3", 1000);
    wait_for("the client to be sent away", || {
        (!lab.rolling().is_alive()).then_some(())
    });
    lab.mux().start();
    lab.settle();
}

/// Cyrus's master starts another process for the next connection: only what was under way is lost.
pub fn sync_servers_killed(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(10);
    let mut lab = setup.start();
    let users = lab.add_users(12);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for round in 0..4 {
        lab.step(&format!("one process is killed, round {round}"));
        lab.rolling().keep_alive();
        let before = lab.relay.counters().up;
        lab.mail(&users, &format!("kill {round}"), 10_000);
        let killed = wait_for("a process at work", || {
            lab.rolling().keep_alive();
            let under_way = lab.relay.counters().up > before + 20_000 * (round % 3);
            let found = lab.replica_at_work();
            let one = found.get(fastrand::usize(..found.len().max(1)))?;
            (under_way && kill_process(*one, Signal::KILL).is_ok()).then_some(*one)
        });
        wait_for("its end", || {
            (!lab.replica_at_work().contains(&killed)).then_some(())
        });
    }
    lab.settle();
    lab.one_client_was_enough();
}

/// It takes everything and answers nothing.
fn replica_silent(way: Way) {
    let mut setup = Setup::new(way);
    setup.tls = false;
    setup.mux_extra = "[limits]\nanswer_timeout = \"1s\"\n".to_owned();
    let mut lab = setup.start();
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for command in ["GET MAILBOXES", "APPLY MAILBOX"] {
        lab.step(&format!("no answer to {command}"));
        lab.end_rolling();
        lab.mail(&users, command, 3000);
        lab.relay.hold_answers_to(Some(command));
        let before = lab.relay.counters().ends;
        wait_for("syncmux to give a lane up", || {
            lab.rolling().keep_alive();
            (lab.relay.counters().ends > before).then_some(())
        });
        // What it has answered by now still counts.
        lab.relay.hold_answers_to(None);
        lab.settle();
    }
}

/// Not `direct`: the stock client compresses, and the relay finds no command in that.
fn replica_talks_nonsense(way: Way) {
    let mut setup = Setup::new(way);
    setup.tls = false;
    let mut lab = setup.start();
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    let words: [&[u8]; 4] = [
        b"BYE the replica is going down\r\n",
        b"\x00\xff\xfe{99999999999999999999}\r\n",
        b"* MAILBOX %(UNIQUEID x MBOXNAME user.u000 (((\r\nOK success\r\n",
        b"220 mail.example.com ESMTP\r\n",
    ];
    for command in ["APPLY MAILBOX", "GET MAILBOXES"] {
        for words in words {
            let shown = words.escape_ascii().to_string();
            lab.step(&format!("{shown} to {command}"));
            lab.relay.answer_with(command, words);
            lab.mail(&users, &format!("{command} {shown}"), 1000);
            wait_for("it to be said", || {
                lab.rolling().keep_alive();
                lab.relay.has_lied().then_some(())
            });
            lab.replicate();
        }
        lab.settle();
    }
}

fn cut_inside_a_message(way: Way) {
    let mut setup = Setup::new(way);
    setup.tls = false;
    let mut lab = setup.start();
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for behind in [90, 700, 15_000] {
        lab.step(&format!("cut {behind} bytes behind APPLY MESSAGE"));
        lab.relay.cut_behind("APPLY MESSAGE", behind);
        lab.mail(&users, &format!("cut {behind}"), 20_000);
        wait_for("the cut", || {
            lab.rolling().keep_alive();
            lab.relay.has_cut_behind().then_some(())
        });
        lab.settle();
    }
    lab.one_client_was_enough();
}

fn client_vanishes(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(10);
    let mut lab = setup.start();
    let users = lab.add_users(6);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("in the middle of a message");
    lab.end_rolling();
    wait_for("the client's end", || {
        (lab.mux().metric("syncmux_sessions", &[]) == 0.0).then_some(())
    });
    for listen in [lab.mux().listen.clone(), lab.mux().strict_listen.clone()] {
        let mut csync = Csync::login(&listen);
        let guid = "0123456789012345678901234567890123456789";
        let head = format!("APPLY MESSAGE (%{{default {guid} 1000000}}\r\n");
        csync.send(head.as_bytes());
        csync.send(&[b'x'; 300_000]);
        wait_for("the session", || {
            (lab.mux().metric("syncmux_sessions", &[]) == 1.0).then_some(())
        });
        drop(csync);
        wait_for("its end, and that of what it left", || {
            let nothing_left = ["syncmux_sessions", "syncmux_staged_bytes"]
                .iter()
                .all(|name| lab.mux().metric(name, &[]) == 0.0);
            nothing_left.then_some(())
        });
    }
    lab.step("kill -9 of the stock client while it uploads");
    for round in 0..3 {
        lab.mail(&users, &format!("vanish {round}"), 200_000);
        let bytes = |lab: &mut Lab| {
            let labels = [("side", "client"), ("direction", "in")];
            lab.mux().metric("syncmux_bytes_total", &labels)
        };
        let before = bytes(&mut lab);
        lab.rolling();
        wait_for("an upload", || {
            (bytes(&mut lab) > before + 150_000.0).then_some(())
        });
        lab.rolling().kill();
        lab.end_rolling();
    }
    lab.settle();
}

pub fn terminated_in_a_loop(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(10);
    let mut lab = setup.start();
    let users = lab.add_users(10);
    lab.mail(&users, "1", 1000);
    lab.settle();
    for round in 0..6 {
        lab.step(&format!("SIGTERM, round {round}"));
        lab.rolling().keep_alive();
        let before = lab.relay.counters().up;
        lab.mail(&users, &format!("term {round}"), 6000);
        wait_for("some of the work to be under way", || {
            lab.rolling().keep_alive();
            (lab.relay.counters().up > before + 7000 * round).then_some(())
        });
        assert_eq!(lab.mux().stop(), Some(0), "drains and ends well");
        lab.mux().start();
    }
    lab.settle();
    let log = lab.mux().log_text();
    assert!(!log.contains("on probation"), "all was confirmed: {log}");
}

#[test]
fn second_syncmux_is_refused() {
    let mut lab = Setup::new(Way::FanOut).start();
    let users = lab.add_users(3);
    let holder = lab.mux().pid();
    let (code, said) = lab.mux().run_in_vain();
    assert_eq!(code, Some(64), "{said}");
    let wanted = format!("is held by process {holder}");
    assert!(said.contains(&wanted), "{said}");
    lab.step("the first one works on");
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("one that was killed holds nothing");
    lab.mux().kill();
    lab.mux().start();
    lab.mail(&users, "2", 1000);
    lab.settle();
}
