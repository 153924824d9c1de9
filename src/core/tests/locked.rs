//! `IMAP_MAILBOX_LOCKED` is tried again a few times before it counts.

use std::time::Duration;

use super::driver::{RUN, driver, limits, one_lane, rolling, rolling_within, strict};
use super::words::{LOCKED, NO, OK, mailbox, message, reserve};
use crate::core::{Event, Limits, Mode, RunId};

#[test]
fn an_acknowledged_unit_is_sent_again_and_then_counts_as_refused() {
    let (mut d, s) = rolling("USER a\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    let started = d.now;
    for _ in 0..limits().locked_retries {
        d.reply_to("APPLY MAILBOX", LOCKED);
        assert_eq!(d.count("APPLY MAILBOX"), 0, "not at once");
        assert!(d.core.snapshot().probation.is_empty());
        d.wait_for("APPLY MAILBOX");
    }
    let took = d.now - started;
    assert!(
        took > limits().locked * 4 && took < limits().locked * 8,
        "{took:?}"
    );
    d.reply_to("APPLY MAILBOX", LOCKED);
    assert_eq!(d.core.snapshot().probation.len(), 1);
    assert_eq!(d.disk.last().unwrap(), "write [Mailbox(b\"user.a\")]");
}

#[test]
fn what_is_free_again_in_time_is_no_failure() {
    let (mut d, s) = rolling("USER a\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.wait_for("APPLY MAILBOX");
    d.reply_to("APPLY MAILBOX", OK);
    let snapshot = d.core.snapshot();
    assert_eq!((snapshot.owed_lines, snapshot.unconfirmed_users), (0, 0));
}

#[test]
fn nothing_of_the_user_overtakes_it_and_its_lane_is_free_for_others() {
    let (mut d, s) = rolling_within(one_lane(), "USER a\nUSER b\n", false);
    d.get(s, "GET MAILBOXES (user.a user.a.x user.b)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, &mailbox("user.a.x", &[]));
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ", LOCKED);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    assert_eq!(d.ask(s, &mailbox("user.b", &[])), OK);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.b ", OK);
    d.wait_for("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ");
    assert_eq!(d.count("APPLY MAILBOX"), 1, "in order");
    d.reply_to("APPLY MAILBOX", OK);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x ", OK);
}

#[test]
fn what_has_a_lane_to_itself_gives_it_back_meanwhile() {
    let mut d = driver(one_lane(), false);
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    d.say(a, "APPLY UNMAILBOX user.a.x\r\n");
    d.reply_to("APPLY UNMAILBOX", LOCKED);
    d.say(b, "GET USER b\r\n");
    d.reply_to("GET USER", OK);
    assert_eq!(d.answer(b).unwrap(), OK);
    d.wait_for("APPLY UNMAILBOX");
    d.reply_to("APPLY UNMAILBOX", OK);
    assert_eq!(d.answer(a).unwrap(), OK);
}

#[test]
fn reads_are_tried_again_each_user_by_itself() {
    let (mut d, s) = strict();
    d.say(s, "GET MAILBOXES (user.a user.b)\r\n");
    d.reply_to("GET MAILBOXES (user.a)", LOCKED);
    d.reply_to("GET MAILBOXES (user.b)", OK);
    d.wait_for("GET MAILBOXES");
    assert_eq!(d.on_lanes(), ["GET MAILBOXES (user.a)\r\n"]);
    d.reply_to("GET MAILBOXES", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn in_the_end_the_client_is_told() {
    let (mut d, s) = strict();
    d.say(s, "GET USER a\r\n");
    for _ in 0..limits().locked_retries {
        d.reply_to("GET USER", LOCKED);
        d.wait_for("GET USER");
    }
    d.reply_to("GET USER", LOCKED);
    assert_eq!(d.answer(s).unwrap(), LOCKED);
}

#[test]
fn what_is_still_staged_on_the_lane_is_not_sent_again() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.wait_for("APPLY MAILBOX");
    assert_eq!(d.on_lanes(), [mailbox("user.a", &[1])]);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn what_a_restart_took_from_the_lane_is_sent_again() {
    let limits = Limits {
        lane_staged_bytes: 3,
        ..one_lane()
    };
    let mut d = driver(limits, false);
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    d.ask(a, &message(1));
    d.say(a, &mailbox("user.a", &[1]));
    assert_eq!(d.count("RESTART"), 1, "behind it: {:?}", d.on_lanes());
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.reply_to("RESTART", "OK Restarting\r\n");
    d.wait_for("APPLY ME");
    assert_eq!(d.on_lanes()[..2], [message(1), mailbox("user.a", &[1])]);
    assert_eq!(d.answer(b), None);
}

#[test]
fn on_another_lane_everything_is_sent_again() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY MESSAGE", OK);
    let lane = d.lane_with("APPLY MAILBOX");
    d.reply(lane, LOCKED);
    d.lose(lane);
    assert_eq!(d.ended.get(&s), None, "nothing of it was on that lane");
    d.wait_for("APPLY ME");
    assert_eq!(d.on_lanes(), [message(1), mailbox("user.a", &[1])]);
}

#[test]
fn what_was_asked_for_by_a_reserve_is_asked_for_again() {
    let (mut d, s) = strict();
    d.ask(s, &reserve("user.a user.a.x", &[1]));
    d.say(s, &mailbox("user.a.x", &[1]));
    d.reply_to("APPLY RESERVE", OK);
    let lane = d.lane_with("APPLY MAILBOX");
    d.reply(lane, LOCKED);
    d.lose(lane);
    d.wait_for("APPLY RE");
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn nobody_waits_for_a_client_that_has_gone() {
    let (mut d, s) = strict();
    d.say(s, "APPLY SUB %(USERID a MBOXNAME user.a)\r\n");
    d.event(Event::SessionClosed { session: s });
    d.reply_to("APPLY SUB", LOCKED);
    assert_eq!(d.core.snapshot().queued, 0);
    // And one that goes during the pause.
    let s = d.open(2, Mode::Strict);
    d.say(s, "APPLY SUB %(USERID a MBOXNAME user.a)\r\n");
    d.reply_to("APPLY SUB", LOCKED);
    d.event(Event::SessionClosed { session: s });
    assert_eq!(d.core.snapshot().queued, 0);
    d.pass(Duration::from_secs(1));
    assert_eq!(d.count("APPLY"), 0);
}

/// The client of a named channel writes what it could not do back into its log by itself, without
/// looking whether that succeeds, and unlinks its run.
#[test]
fn what_a_named_client_defers_by_itself_is_still_owed() {
    let (mut d, s) = rolling("USER a\n", true);
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, &mailbox("user.a.x", &[]));
    d.reply_to("APPLY MAILBOX", NO);
    let both = "write [Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]";
    assert_eq!(d.disk.last().unwrap(), both);
    // A read: both mailboxes are put off.
    d.pass(Duration::from_secs(1));
    let lines = "MAILBOX user.a\nMAILBOX user.a.x\n";
    (d.run, d.log) = (Some(RunId(8)), lines);
    d.say(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    for _ in 0..limits().locked_retries {
        d.reply_to("GET", LOCKED);
        d.wait_for("GET");
    }
    d.disk_works = false;
    d.reply_to("GET", LOCKED);
    assert_eq!(d.answer(s), None, "not before its lines are durable");
    d.catch_up();
    assert_eq!(d.answer(s).unwrap(), LOCKED);
    d.event(Event::RunGone { run: RunId(8) });
    assert_eq!(d.core.snapshot().owed_lines, 2);
    d.pass(Duration::from_secs(5));
    assert_eq!(d.disk.iter().filter(|what| **what == both).count(), 2);
    // A write: what the client would have sent behind it is put off too.
    (d.run, d.log) = (Some(RunId(9)), lines);
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    d.say(s, &mailbox("user.a", &[]));
    for _ in 0..limits().locked_retries {
        d.reply_to("APPLY MAILBOX", LOCKED);
        d.wait_for("APPLY MAILBOX");
    }
    d.reply_to("APPLY MAILBOX", LOCKED);
    assert_eq!(d.answer(s).unwrap(), LOCKED);
    d.event(Event::RunGone { run: RunId(9) });
    assert_eq!(d.core.snapshot().owed_lines, 2);
}

/// After a start nothing is known of what its lines were for.
#[test]
fn what_a_named_client_defers_by_itself_is_owed_whatever_was_before() {
    let (mut d, s) = rolling("USER a\n", true);
    d.say(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    for _ in 0..limits().locked_retries {
        d.reply_to("GET", LOCKED);
        d.wait_for("GET");
    }
    d.reply_to("GET", LOCKED);
    assert_eq!(d.answer(s).unwrap(), LOCKED);
    let both = "write [Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]";
    assert_eq!(d.disk.last().unwrap(), both);
    // Its own channel's client alone does that.
    for (named, mode) in [(false, Mode::FanOut), (true, Mode::Strict)] {
        let mut d = driver(limits(), named);
        (d.run, d.log) = (Some(RUN), "USER a\n");
        let s = d.open(1, mode);
        d.say(s, "GET MAILBOXES (user.a user.a.x)\r\n");
        for _ in 0..limits().locked_retries {
            d.reply_to("GET", LOCKED);
            d.wait_for("GET");
        }
        d.reply_to("GET", LOCKED);
        assert_eq!(d.answer(s).unwrap(), LOCKED);
        assert_eq!(d.core.snapshot().owed_lines, 0);
    }
}
