//! `IMAP_MAILBOX_LOCKED` is tried again a few times before it counts.

use std::time::Duration;

use super::driver::{Driver, driver, hex, limits, mailbox, message, rolling, strict};
use crate::core::{Event, Limits, Mode, SessionId};

const OK: &str = "OK success\r\n";
const LOCKED: &str = "NO IMAP_MAILBOX_LOCKED Mailbox locked\r\n";

fn get(d: &mut Driver, s: SessionId, text: &str) {
    d.say(s, text);
    while d.count("GET") > 0 {
        d.reply_to("GET", OK);
    }
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn an_acknowledged_unit_is_sent_again_and_then_counts_as_refused() {
    let (mut d, s) = rolling("USER a\n", false);
    get(&mut d, s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", None)), OK);
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
    get(&mut d, s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &mailbox("user.a", None));
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.wait_for("APPLY MAILBOX");
    d.reply_to("APPLY MAILBOX", OK);
    let snapshot = d.core.snapshot();
    assert_eq!((snapshot.owed_lines, snapshot.unconfirmed_users), (0, 0));
}

#[test]
fn nothing_of_the_user_overtakes_it_and_its_lane_is_free_for_others() {
    let mut d = driver(
        Limits {
            lanes: 1,
            ..limits()
        },
        false,
    );
    (d.run, d.log) = (Some(super::driver::RUN), "USER a\nUSER b\n");
    let s = d.open(1, Mode::FanOut);
    get(&mut d, s, "GET MAILBOXES (user.a user.a.x user.b)\r\n");
    d.ask(s, &mailbox("user.a", None));
    d.ask(s, &mailbox("user.a.x", None));
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ", LOCKED);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    assert_eq!(d.ask(s, &mailbox("user.b", None)), OK);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.b ", OK);
    d.wait_for("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ");
    assert_eq!(d.count("APPLY MAILBOX"), 1, "in order");
    d.reply_to("APPLY MAILBOX", OK);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x ", OK);
}

#[test]
fn what_has_a_lane_to_itself_gives_it_back_meanwhile() {
    let mut d = driver(
        Limits {
            lanes: 1,
            ..limits()
        },
        false,
    );
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
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.wait_for("APPLY MAILBOX");
    assert_eq!(d.on_lanes(), [mailbox("user.a", Some(1))]);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn what_a_restart_took_from_the_lane_is_sent_again() {
    let limits = Limits {
        lanes: 1,
        lane_staged_bytes: 3,
        ..limits()
    };
    let mut d = driver(limits, false);
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    d.ask(a, &message(1));
    d.say(a, &mailbox("user.a", Some(1)));
    assert_eq!(d.count("RESTART"), 1, "behind it: {:?}", d.on_lanes());
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.reply_to("RESTART", "OK Restarting\r\n");
    d.wait_for("APPLY ME");
    assert_eq!(d.on_lanes()[..2], [message(1), mailbox("user.a", Some(1))]);
    assert_eq!(d.answer(b), None);
}

#[test]
fn on_another_lane_everything_is_sent_again() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY MESSAGE", OK);
    let lane = d.lane_with("APPLY MAILBOX");
    d.reply(lane, LOCKED);
    d.lose(lane);
    assert_eq!(d.ended.get(&s), None, "nothing of it was on that lane");
    d.wait_for("APPLY ME");
    assert_eq!(d.on_lanes(), [message(1), mailbox("user.a", Some(1))]);
}

#[test]
fn what_was_asked_for_by_a_reserve_is_asked_for_again() {
    let (mut d, s) = strict();
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.a user.a.x) GUID ({}))\r\n",
        hex(1)
    );
    d.ask(s, &reserve);
    d.say(s, &mailbox("user.a.x", Some(1)));
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

#[test]
fn a_drain_owes_what_is_still_locked_at_its_end() {
    let limits = Limits {
        locked: Duration::from_secs(60),
        locked_max: Duration::from_secs(60),
        ..limits()
    };
    let mut d = driver(limits.clone(), false);
    (d.run, d.log) = (Some(super::driver::RUN), "USER a\n");
    let s = d.open(1, Mode::FanOut);
    get(&mut d, s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &mailbox("user.a", None));
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.event(Event::Drain);
    assert!(!d.drained);
    d.pass(limits.drain_grace);
    assert_eq!(d.disk[1], "write [Mailbox(b\"user.a\")]");
    assert!(d.drained);
}
