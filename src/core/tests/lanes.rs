//! Which lane takes what, and what becomes of it when a lane or the replica is gone.

use std::time::Duration;

use super::driver::{driver, limits, one_lane, strict, strict_within};
use super::words::{CAPABILITIES, NO, OK, mailbox, message, missing, reserve};
use crate::core::{Event, Limits, Mode, SessionId};

#[test]
fn lanes_are_pooled_by_what_was_enabled_on_them() {
    let (mut d, plain) = strict();
    let sieve = d.open(2, Mode::Strict);
    d.say(plain, "GET USER a\r\n");
    assert_eq!(
        d.ask(sieve, CAPABILITIES),
        "* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n"
    );
    d.say(sieve, "GET USER b\r\n");
    let (of_a, of_b) = (d.lane_with("GET USER a"), d.lane_with("GET USER b"));
    assert!(d.pools[&of_a].capabilities.is_empty());
    assert_eq!(d.pools[&of_b].capabilities, ["SIEVE-MAILBOX"]);
    // A lane that is opened later has it as well, and the answer is known by then.
    d.lose(of_b);
    d.pass(Duration::from_secs(1));
    let of_b = d.lane_with("GET USER b");
    assert_eq!(d.pools[&of_b].capabilities, ["SIEVE-MAILBOX"]);
}

#[test]
fn a_pool_without_a_lane_gets_one_at_the_cost_of_another() {
    let (mut d, a) = strict_within(one_lane());
    let b = d.open(2, Mode::Strict);
    d.say(a, "GET USER a\r\n");
    d.say(b, CAPABILITIES);
    assert_eq!(d.answer(b), None);
    d.reply_to("GET USER a", OK);
    assert_eq!(d.closing.len(), 1, "the old lane goes");
    d.close_lanes();
    assert!(d.answer(b).unwrap().starts_with("* ENABLED"));
}

#[test]
fn a_pool_that_is_never_idle_starves_no_other() {
    // Whichever of the two comes first where pools are gone through.
    for busy_is_capable in [false, true] {
        let mut d = driver(one_lane(), false);
        let busy: Vec<SessionId> = (1..=8).map(|id| d.open(id, Mode::Strict)).collect();
        let starved = d.open(9, Mode::Strict);
        if busy_is_capable {
            for session in &busy {
                d.ask(*session, CAPABILITIES);
            }
        }
        for session in &busy {
            d.say(*session, &format!("GET USER u{}\r\n", session.0));
        }
        if busy_is_capable {
            d.say(starved, "GET USER a\r\n");
        } else {
            d.say(starved, CAPABILITIES);
        }
        let mut turns = 0;
        while d.answer(starved).is_none() {
            turns += 1;
            assert!(turns < 20, "starved");
            let oldest = d.on_lanes()[0].to_owned();
            d.reply_to(&oldest, OK);
            // Who was answered comes again at once.
            for session in &busy {
                if d.answer(*session).is_some() {
                    d.say(*session, &format!("GET USER u{}\r\n", session.0));
                }
            }
            d.close_lanes();
        }
    }
}

#[test]
fn force_is_said_on_lanes_of_its_session_only_and_they_go_with_it() {
    for vanishes in [false, true] {
        let (mut d, a) = strict();
        let b = d.open(2, Mode::Strict);
        d.say(a, "APPLY FORCE %()\r\n");
        assert_eq!(d.answer(a), None, "the replica's own answer is waited for");
        d.reply_to("APPLY FORCE", OK);
        assert_eq!(d.answer(a).unwrap(), OK);
        d.say(a, "GET USER a\r\n");
        d.say(b, "GET USER b\r\n");
        let (of_a, of_b) = (d.lane_with("GET USER a"), d.lane_with("GET USER b"));
        assert_eq!(d.pools[&of_a].force, Some(a));
        assert_eq!(d.pools[&of_b].force, None);
        if vanishes {
            d.event(Event::SessionClosed { session: a });
            assert_eq!(d.closing, [], "its job still runs");
            d.reply_to("GET USER a", OK);
        } else {
            d.reply_to("GET USER a", OK);
            d.event(Event::SessionClosed { session: a });
        }
        assert_eq!(d.closing, [of_a]);
    }
}

#[test]
fn a_replica_that_does_not_know_force_is_quoted() {
    // Also where a lane was lost first, before it had answered.
    for lost in [false, true] {
        let (mut d, a) = strict();
        d.say(a, "APPLY FORCE %()\r\n");
        if lost {
            d.lose(d.lane_with("APPLY FORCE"));
            d.pass(Duration::from_secs(1));
        }
        d.reply_to("APPLY FORCE", NO);
        assert_eq!(d.answer(a).unwrap(), NO);
        d.say(a, "GET USER a\r\n");
        assert_eq!(d.pools[&d.lane_with("GET USER a")].force, None);
    }
}

#[test]
fn a_read_is_repeated_on_another_lane_and_a_strict_write_ends_the_session() {
    let (mut d, s) = strict();
    d.say(s, "GET USER a\r\n");
    d.lose(d.lane_with("GET USER a"));
    d.pass(Duration::from_secs(1));
    d.reply_to("GET USER a", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.say(s, "APPLY SUB %(USERID a MBOXNAME user.a)\r\n");
    d.lose(d.lane_with("APPLY SUB"));
    assert_eq!(d.ended[&s], "", "no answer, and no BYE either");
}

#[test]
fn who_stands_behind_what_ends_lanes_is_not_refused_for_it() {
    let (mut d, killer) = strict_within(one_lane());
    let other = d.open(2, Mode::Strict);
    d.say(killer, "GET USER a\r\n");
    d.say(other, "GET USER b\r\n");
    let mut lost = 0;
    while d.answer(killer).is_none() {
        d.lose(d.lane_with("GET USER a"));
        d.pass(Duration::from_secs(1));
        lost += 1;
        assert!(lost < 20, "without end");
    }
    assert_eq!(lost, limits().read_tries);
    assert_eq!(d.answer(other), None);
    // From here on it is the oldest itself.
    d.reply_to("GET USER b", OK);
    assert_eq!(d.answer(other).unwrap(), OK);
}

#[test]
fn a_unit_that_was_not_committed_goes_to_another_lane() {
    let (mut d, s) = strict();
    d.ask(s, &reserve("user.a user.b", &[1]));
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    d.lose(d.lane_with("APPLY RESERVE"));
    d.pass(Duration::from_secs(1));
    d.reply_to("APPLY RESERVE", &missing(&[1]));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn a_failing_lane_is_sent_nothing_more_and_its_unit_goes_elsewhere() {
    let (mut d, s) = strict();
    // What came as NIL is asked for first.
    d.ask(s, "APPLY MESSAGE (NIL)\r\n");
    d.say(s, &mailbox("user.a", &[1]));
    let lane = d.lane_with("APPLY RESERVE");
    d.event(Event::LaneFailing { lane });
    d.reply(lane, OK);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    // Nothing new either, although it is not lost yet.
    let other = d.open(2, Mode::Strict);
    d.say(other, "GET USER joe\r\n");
    assert!(d.lane_with("GET USER") != lane);
    d.lose(lane);
    d.reply_to("GET USER", OK);
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn a_silent_lane_counts_as_lost() {
    let (mut d, s) = strict();
    d.say(s, "GET USER a\r\n");
    let lane = d.lane_with("GET USER a");
    d.pass(limits().answer_timeout);
    assert_eq!(d.closing, [lane]);
    d.lose(lane);
    d.pass(Duration::from_secs(1));
    assert_eq!(d.count("GET USER a"), 1);
}

#[test]
fn a_replica_that_stays_away_sends_the_client_away() {
    // It refuses once and is silent then, or refuses whenever it is asked.
    for silent in [true, false] {
        let (mut d, s) = strict();
        d.lanes_open = false;
        let end = d.now + limits().absence;
        d.say(s, "GET USER a\r\n");
        d.refuse_lanes();
        if silent {
            d.pass(end - d.now - Duration::from_secs(1));
            assert!(d.ended.is_empty());
            d.pass(Duration::from_secs(2));
        }
        while d.ended.is_empty() {
            d.refuse_lanes();
            d.wait();
        }
        assert!(d.now >= end);
        assert!(d.ended[&s].starts_with("BYE "));
    }
}

#[test]
fn a_replica_that_comes_back_in_time_is_waited_for() {
    let (mut d, s) = strict();
    d.lanes_open = false;
    let half = d.now + limits().absence / 2;
    d.say(s, "GET USER a\r\n");
    while d.now < half {
        d.refuse_lanes();
        d.wait();
    }
    d.lanes_open = true;
    d.pass(limits().reconnect_max);
    d.reply_to("GET USER a", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn a_pool_that_alone_is_refused_does_not_wait_for_ever() {
    let (mut d, s) = strict();
    let other = d.open(2, Mode::Strict);
    d.get(other, "GET USER a\r\n");
    d.lanes_open = false;
    d.say(s, CAPABILITIES);
    while d.ended.is_empty() {
        assert!(d.now < limits().absence * 3, "for ever");
        d.refuse_lanes();
        // The lane of the other pool lives on.
        d.all_ok();
        d.wait();
    }
    assert!(d.ended[&s].starts_with("BYE "));
}

#[test]
fn lanes_refused_at_once_are_one_failure() {
    let (mut d, _) = strict_within(Limits::default());
    d.lanes_open = false;
    for id in 2..10 {
        let s = d.open(id, Mode::Strict);
        d.say(s, &format!("GET USER u{id}\r\n"));
    }
    assert_eq!(d.opening.len(), 8);
    d.refuse_lanes();
    let retry = d.core.deadline().expect("a retry");
    assert!(retry - d.now <= limits().reconnect);
}

#[test]
fn time_never_stands_still_while_a_lane_opens_late() {
    let (mut d, s) = strict();
    d.lanes_open = false;
    d.say(s, "GET USER a\r\n");
    d.refuse_lanes();
    let retry = d.core.deadline().expect("a retry");
    assert!(retry > d.now);
    d.wait();
    assert_eq!(d.opening.len(), 1);
    let next = d.core.deadline();
    assert!(next.is_none_or(|at| at > d.now), "it would spin");
}

#[test]
fn a_hung_job_that_has_a_lane_to_itself_does_not_keep_the_others_from_theirs() {
    let two = Limits {
        lanes: 2,
        ..limits()
    };
    let mut d = driver(two, false);
    let sessions: Vec<SessionId> = (1..=4).map(|id| d.open(id, Mode::Strict)).collect();
    d.say(sessions[0], "APPLY UNUSER hung\r\n");
    d.say(sessions[1], "GET USER a\r\n");
    d.say(sessions[2], "APPLY UNUSER b\r\n");
    d.say(sessions[3], "GET USER c\r\n");
    d.reply_to("GET USER a", OK);
    assert_eq!(d.count("APPLY UNUSER b"), 1);
}

#[test]
fn each_job_that_stands_behind_others_opens_one_more_lane() {
    let (mut d, first) = strict();
    d.say(first, "GET USER u1\r\n");
    d.lanes_open = false;
    for id in 2..=6 {
        let session = d.open(id, Mode::Strict);
        d.say(session, &format!("GET USER u{id}\r\n"));
    }
    assert_eq!(d.count("GET USER"), 6, "none waits for the new lanes");
    assert_eq!(d.opening.len(), 3, "up to the limit");
}
