//! Pools, FORCE, absence, drain.

use std::time::Duration;

use syncmux::core::{Event, Limits, Mode, SessionId};

use super::driver::{Driver, mailbox};

const CAPABILITIES: &str = "APPLY CAPABILITIES (SIEVE-MAILBOX)";

fn one_lane() -> Driver {
    Driver::new(
        true,
        Limits {
            lanes: 1,
            ..Limits::default()
        },
    )
}

#[test]
fn capabilities_reach_lanes_opened_later_and_other_pools_never_serve() {
    let mut d = Driver::new(true, Limits::default());
    let (s, other) = (d.session(Mode::Strict), d.session(Mode::Strict));
    d.say(other, "GET USER ann");
    assert_eq!(
        d.ask(s, CAPABILITIES),
        "* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n"
    );
    for user in ["joe", "bob"] {
        d.say(s, &format!("GET USER {user}"));
        let lane = d.lane_of(&format!("GET USER {user}"));
        assert_eq!(d.lanes[&lane].pool.capabilities, ["SIEVE-MAILBOX"]);
        d.lose(lane);
        let again = d.lane_of(&format!("GET USER {user}"));
        assert_eq!(d.lanes[&again].pool.capabilities, ["SIEVE-MAILBOX"]);
        d.reply(again, "OK success");
        d.heard(s);
    }
    let lane = d.lane_of("GET USER ann");
    assert!(d.lanes[&lane].pool.capabilities.is_empty());
}

#[test]
fn a_pool_without_lanes_gets_one_from_a_busy_pool() {
    // The pool without capabilities comes first in every order, and is never idle.
    for starved_first in [false, true] {
        let mut d = one_lane();
        let (busy, s) = (d.session(Mode::Strict), d.session(Mode::Strict));
        let more: Vec<SessionId> = (0..8).map(|_| d.session(Mode::Strict)).collect();
        let asks = if starved_first { s } else { busy };
        let starved = if starved_first { busy } else { s };
        d.say(asks, CAPABILITIES);
        d.heard(asks);
        if starved_first {
            for (n, id) in more.iter().enumerate() {
                d.say(*id, "APPLY CAPABILITIES (SIEVE-MAILBOX)");
                d.heard(*id);
                d.say(*id, &format!("GET USER u{n}"));
            }
        } else {
            d.say(busy, "GET USER b");
        }
        d.say(starved, "GET USER joe");
        let mut turns = 0;
        while d.waits(starved) {
            turns += 1;
            assert!(turns < 20, "starved");
            let (lane, text) = d.sent()[0].clone();
            d.reply(lane, "OK success");
            for (n, id) in more.iter().enumerate() {
                if starved_first && text == format!("GET USER u{n}") {
                    d.say(*id, &format!("GET USER u{n}"));
                }
            }
        }
    }
}

#[test]
fn force_lanes_serve_one_session_and_close_after_it() {
    let mut d = Driver::new(true, Limits::default());
    let (s, other) = (d.session(Mode::Strict), d.session(Mode::Strict));
    d.say(s, "APPLY FORCE %()");
    let lane = d.lane_of("APPLY FORCE");
    d.reply(lane, "OK success");
    assert_eq!(d.heard(s), "OK success\r\n");
    d.say(s, "GET USER joe");
    d.say(other, "GET USER ann");
    assert_eq!(d.lane_of("GET USER joe"), lane);
    assert_ne!(d.lane_of("GET USER ann"), lane);
    // The session vanishes while its job runs.
    d.tell(Event::SessionClosed { session: s });
    assert!(d.lanes.contains_key(&lane));
    d.reply(lane, "OK success");
    assert!(!d.lanes.contains_key(&lane), "the FORCE lane stays");
}

#[test]
fn a_force_lane_lost_before_its_answer_is_opened_again() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.session(Mode::Strict);
    d.say(s, "APPLY FORCE %()");
    d.lose(d.lane_of("APPLY FORCE"));
    d.pass(Duration::from_secs(1));
    d.reply(d.lane_of("APPLY FORCE"), "NO Unknown verb");
    assert_eq!(d.heard(s), "NO Unknown verb\r\n");
    d.say(s, "GET USER joe");
    let lane = d.lane_of("GET USER joe");
    assert!(d.lanes[&lane].pool.force.is_none());
}

#[test]
fn time_never_stands_still_while_a_lane_opens_late() {
    let mut d = Driver::new(true, Limits::default());
    d.lanes_open = false;
    let s = d.session(Mode::Strict);
    d.say(s, "GET USER joe");
    d.refuse(d.opening[0]);
    let retry = d.core.deadline().expect("a retry");
    assert!(retry > d.now);
    d.pass(retry - d.now);
    assert_eq!(d.opening.len(), 1);
    assert!(
        d.core.deadline().is_none_or(|at| at > d.now),
        "it would spin"
    );
}

#[test]
fn lanes_refused_at_once_are_one_failure() {
    let mut d = Driver::new(true, Limits::default());
    d.lanes_open = false;
    for n in 0..8 {
        let s = d.session(Mode::Strict);
        d.say(s, &format!("GET USER u{n}"));
    }
    assert_eq!(d.opening.len(), 8);
    while let Some(lane) = d.opening.first().copied() {
        d.refuse(lane);
    }
    let retry = d.core.deadline().expect("a retry");
    assert!(retry - d.now <= Limits::default().reconnect);
}

#[test]
fn a_long_absence_ends_with_bye_a_short_one_is_waited_out() {
    for long in [false, true] {
        let mut d = Driver::new(true, Limits::default());
        d.lanes_open = false;
        let s = d.session(Mode::Strict);
        d.say(s, "GET USER joe");
        let end = d.now + Limits::default().absence;
        while d.waits(s) {
            while let Some(lane) = d.opening.first().copied() {
                d.refuse(lane);
            }
            let Some(at) = d.core.deadline() else {
                panic!("nothing wakes it")
            };
            if !long && at > end / 2 {
                d.pass(at - d.now);
                d.lanes_open = true;
                d.pass(Duration::from_secs(60));
                d.all_ok();
                break;
            }
            d.pass(at - d.now);
        }
        let answer = d.heard(s);
        assert_eq!(answer.starts_with("BYE"), long, "{answer}");
        assert!(!long || d.now >= end);
    }
}

#[test]
fn a_pool_that_alone_is_refused_does_not_wait_for_ever() {
    let mut d = Driver::new(true, Limits::default());
    let (s, other) = (d.session(Mode::Strict), d.session(Mode::Strict));
    d.say(other, "GET USER ann");
    d.all_ok();
    d.lanes_open = false;
    d.say(s, CAPABILITIES);
    while d.waits(s) {
        while let Some(lane) = d.opening.first().copied() {
            d.refuse(lane);
        }
        if let Some((lane, _)) = d.sent().first().cloned() {
            d.reply(lane, "OK Noop");
        }
        assert!(d.now < Limits::default().absence * 3, "for ever");
        let at = d.core.deadline().expect("something wakes it");
        d.pass(at - d.now);
    }
    assert!(d.heard(s).starts_with("BYE"));
}

#[test]
fn a_drain_ends_with_the_replica_away_and_the_disk_broken() {
    for disk_works in [true, false] {
        let mut d = Driver::new(true, Limits::default());
        let s = d.rolling("MAILBOX user.joe");
        d.asks_about(s, "user.joe");
        d.ask(s, &mailbox("user.joe", &[]));
        let (lane, _) = d.sent()[0].clone();
        d.disk_works = disk_works;
        d.tell(Event::Drain);
        assert!(d.heard(s).starts_with("BYE"));
        assert!(!d.drained && d.lanes.contains_key(&lane));
        let mut turns = 0;
        while !d.drained {
            turns += 1;
            assert!(turns < 100, "the drain never ends");
            while !d.disk.is_empty() {
                d.disk(disk_works);
            }
            if !d.drained {
                let at = d.core.deadline().expect("something wakes it");
                d.pass(at - d.now);
            }
        }
        assert!(!disk_works || d.log == ["MAILBOX user.joe"]);
        // Where the line could not be written the link is what holds it.
        let kept: &[u64] = if disk_works { &[] } else { &[7] };
        assert_eq!(d.links, kept);
    }
}

#[test]
fn a_hung_exclusive_job_does_not_keep_the_others_from_a_lane() {
    let mut d = Driver::new(
        true,
        Limits {
            lanes: 2,
            ..Limits::default()
        },
    );
    let s: Vec<_> = (0..4).map(|_| d.session(Mode::Strict)).collect();
    d.say(s[0], "APPLY UNUSER hung");
    d.say(s[1], "GET USER joe");
    d.say(s[2], "APPLY UNUSER ann");
    d.say(s[3], "GET USER bob");
    d.reply(d.lane_of("GET USER joe"), "OK success");
    d.lane_of("APPLY UNUSER ann");
}
