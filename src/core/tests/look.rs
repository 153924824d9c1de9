//! What an operator is shown: lag, who waits longest, lanes and their round trips, sessions.

use std::time::Duration;

use super::driver::{driver, limits, one_lane, rolling, strict};
use super::failures::two_units;
use super::words::{NO, OK, mailbox};
use crate::core::{LaneShown, Mode};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_lag_is_the_age_of_the_oldest_change_that_is_not_confirmed() {
    let (mut d, s) = two_units(false);
    d.pass(3 * SECOND);
    assert_eq!(d.core.snapshot().lag_milliseconds, Some(3_000));
    d.reply_to("APPLY MAILBOX", OK);
    // The second one came at the same time.
    assert_eq!(d.core.snapshot().lag_milliseconds, Some(3_000));
    // What is refused is as old as it is.
    d.reply_to("APPLY MAILBOX", NO);
    d.pass(2 * SECOND);
    assert_eq!(d.core.snapshot().lag_milliseconds, Some(5_000));
    // A question is nobody's change.
    let (mut other, t) = strict();
    other.say(t, "GET USER a\r\n");
    other.pass(SECOND);
    assert_eq!(other.core.snapshot().lag_milliseconds, None);
    // Healed: the replica says OK to the very command.
    d.say(s, "GET MAILBOXES (user.a.x)\r\n");
    d.all_ok();
    d.say(s, &mailbox("user.a.x", &[]));
    d.all_ok();
    assert_eq!(d.core.snapshot().lag_milliseconds, None);
}

#[test]
fn users_who_have_waited_longest_come_first() {
    let mut d = driver(one_lane(), false);
    let first = d.open(1, Mode::Strict);
    d.say(first, "GET USER late\r\n");
    for id in 2..=40 {
        d.pass(SECOND);
        let session = d.open(id, Mode::Strict);
        d.say(session, &format!("GET USER u{}\r\n", id % 30));
    }
    let users = d.core.snapshot().users;
    assert_eq!(users.len(), 20);
    let shown = (users[0].user.as_str(), users[0].jobs, users[0].milliseconds);
    assert_eq!(shown, ("late", 1, 39_000));
    let shown = (users[1].user.as_str(), users[1].jobs, users[1].milliseconds);
    assert_eq!(shown, ("u2", 2, 38_000));
    let falls = users.is_sorted_by_key(|user| std::cmp::Reverse(user.milliseconds));
    assert!(falls, "{users:?}");
    d.all_ok();
    assert_eq!(d.core.snapshot().users, []);
}

#[test]
fn lanes_and_their_round_trips() {
    let (mut d, s) = strict();
    assert_eq!(d.core.snapshot().lanes_wanted, 0);
    d.say(s, "GET USER a\r\n");
    assert_eq!(d.core.snapshot().lanes_wanted, 1);
    d.pass(Duration::from_millis(30));
    let lane = d.core.snapshot().lane_list[0].clone();
    assert_eq!(
        (lane.state, lane.in_flight, lane.waiting_milliseconds),
        ("busy", 1, 30)
    );
    assert_eq!(lane.round_trip_microseconds, None);
    d.reply_to("GET", OK);
    for millis in [10, 50, 20, 20] {
        d.say(s, "GET USER a\r\n");
        d.pass(Duration::from_millis(millis));
        d.reply_to("GET", OK);
    }
    let lane = d.core.snapshot().lane_list[0].clone();
    let expected = LaneShown {
        lane: lane.lane,
        state: "idle",
        in_flight: 0,
        waiting_milliseconds: 0,
        round_trip_microseconds: Some(20_000),
        last_round_trip_microseconds: Some(20_000),
    };
    assert_eq!(lane, expected);
    // Not more than there may be.
    for id in 2..=10 {
        let session = d.open(id, Mode::Strict);
        d.say(session, &format!("GET USER u{id}\r\n"));
    }
    assert_eq!(d.core.snapshot().lanes_wanted, limits().lanes);
}

#[test]
fn what_waited_behind_others_is_no_round_trip() {
    let mut d = driver(one_lane(), false);
    for id in 1..=2 {
        let session = d.open(id, Mode::Strict);
        d.say(session, &format!("GET USER u{id}\r\n"));
    }
    d.pass(Duration::from_millis(10));
    d.reply_to("GET USER u1", OK);
    d.pass(Duration::from_millis(1));
    d.reply_to("GET USER u2", OK);
    let lane = d.core.snapshot().lane_list[0].clone();
    assert_eq!(lane.last_round_trip_microseconds, Some(10_000));
}

#[test]
fn rolling_clients_are_shown_first_and_what_they_wait_for() {
    let (mut d, s) = rolling("USER a\n", false);
    for id in 2..=30 {
        d.open(id, Mode::Strict);
    }
    d.say(s, "GET USER a\r\n");
    d.pass(4 * SECOND);
    let now = d.core.snapshot();
    assert_eq!(
        (now.sessions, now.clients, now.session_list.len()),
        (30, 1, 20)
    );
    let first = &now.session_list[0];
    assert_eq!(
        (first.session, first.rolling, first.mode),
        (1, true, "fan-out")
    );
    assert_eq!(
        (first.waits_for, first.waiting_milliseconds),
        (Some("the replica's answer"), 4_000)
    );
    let second = &now.session_list[1];
    assert_eq!(
        (second.mode, second.waits_for, second.seconds),
        ("strict", None, 4)
    );
}
