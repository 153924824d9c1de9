//! Read-ahead: what a run, or `log`, says that the client is about to ask.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, limits, one_lane, rolling};
use super::known::{fan_out, really};
use super::words::{NO, OK, answer, ask_for, line, update};
use crate::core::{Event, Limits, Mode, RunId, SessionId};

const RUN_OF_THREE: &str = "APPEND user.a\nAPPEND user.b\nMAILBOX shared\nAPPEND user.b\n";

#[test]
fn the_first_command_under_a_run_makes_it_read_and_its_mailboxes_asked_about() {
    let (mut d, s) = fan_out(RUN_OF_THREE);
    d.say(s, &ask_for("user.a"));
    assert_eq!(d.disk, ["link"]);
    let mut asked = d.on_lanes();
    asked.sort_unstable();
    assert_eq!(asked, [ask_for("user.a"), ask_for("user.b shared")]);
    d.reply_to(&ask_for("user.a"), &answer(&["user.a"], 1));
    assert_eq!(d.answer(s).unwrap(), answer(&["user.a"], 1));
    d.reply_to("GET MAILBOXES (user.b", &answer(&["user.b", "shared"], 1));
    assert_eq!(d.ask(s, &ask_for("user.b")), answer(&["user.b"], 1));
    assert_eq!(d.ask(s, &ask_for("shared")), answer(&["shared"], 1));
}

#[test]
fn who_asks_for_what_is_under_way_waits_for_it() {
    let (mut d, s) = fan_out(RUN_OF_THREE);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, &ask_for("user.b"));
    assert_eq!(d.answer(s), None);
    assert_eq!(d.count("GET"), 1, "not asked again");
    d.reply_to("GET", &answer(&["user.b", "shared"], 1));
    assert_eq!(d.answer(s).unwrap(), answer(&["user.b"], 1));
    // Unless that answer is of no use any more.
    let (mut d, s) = fan_out(RUN_OF_THREE);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, &ask_for("user.b"));
    let other = d.open_by(2, Mode::Strict, false);
    d.say(other, "APPLY QUOTA %(ROOT user.b LIMIT 1)\r\n");
    d.reply_to("APPLY QUOTA", OK);
    d.reply_to(
        "GET MAILBOXES (user.b shared)",
        &answer(&["user.b", "shared"], 1),
    );
    assert_eq!(d.answer(s), None, "it was asked before the write");
    d.reply_to("GET MAILBOXES (user.b)", &answer(&["user.b"], 2));
    assert_eq!(d.answer(s).unwrap(), answer(&["user.b"], 2));
    assert_eq!(d.ask(s, &ask_for("shared")), answer(&["shared"], 1));
}

#[test]
fn a_refused_question_is_not_asked_ahead_again_and_a_lost_one_neither() {
    for lost in [false, true] {
        let (mut d, s) = fan_out(RUN_OF_THREE);
        really(&mut d, s, "user.a", &answer(&["user.a"], 1));
        d.say(s, &ask_for("user.b"));
        if lost {
            d.lose(d.lane_with("GET"));
            d.pass(Duration::from_secs(1));
        } else {
            d.reply_to("GET", &format!("{}{NO}", line("user.b", 1)));
        }
        assert_eq!(d.on_lanes(), [ask_for("user.b")], "the client's own");
        d.reply_to("GET", &answer(&["user.b"], 1));
        assert_eq!(d.answer(s).unwrap(), answer(&["user.b"], 1));
    }
}

#[test]
fn what_is_asked_ahead_never_stands_before_a_unit_that_waits() {
    let few = Limits {
        ahead_names: 1,
        ..one_lane()
    };
    let mut d = driver(few, false);
    d.log = "USER z\nAPPEND user.a\nAPPEND user.b\nAPPEND user.c\nAPPEND user.d\nAPPEND user.e\nAPPEND user.f\n";
    let s = d.capable(1, Mode::FanOut, true);
    d.run = Some(RUN);
    d.say(s, "GET USER z\r\n");
    assert_eq!(d.on_lanes()[0], "GET USER z\r\n");
    assert_eq!(d.count("GET MAILBOXES"), 1, "not more on the only lane");
    d.reply_to("GET USER", OK);
    d.answer(s).unwrap();
    assert_eq!(d.ask(s, &update("user.z", 2)), OK);
    d.reply_to("GET MAILBOXES (user.a)", OK);
    let sent = d.on_lanes();
    assert!(sent[0].starts_with("APPLY MAILBOX"), "{sent:?}");
    assert_eq!(d.count("GET MAILBOXES"), 1);
}

#[test]
fn names_that_are_written_to_are_not_asked_ahead() {
    let (mut d, s) = fan_out(RUN_OF_THREE);
    let other = d.open_by(2, Mode::Strict, false);
    d.say(other, "APPLY SUB %(USERID b MBOXNAME user.b)\r\n");
    d.say(s, &ask_for("user.a"));
    assert!(d.on_lanes().contains(&ask_for("shared").as_str()));
}

#[test]
fn nothing_is_asked_ahead_for_a_run_that_is_gone_or_for_an_old_client() {
    let (mut d, s) = rolling(RUN_OF_THREE, false);
    d.say(s, &ask_for("user.a"));
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
    let (mut d, s) = fan_out(RUN_OF_THREE);
    d.disk_works = false;
    d.say(s, &ask_for("user.a"));
    d.event(Event::RunGone { run: RUN });
    d.run = Some(RunId(8));
    d.catch_up();
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
}

/// A rolling client between two runs.
fn between_runs() -> (Driver, SessionId) {
    let (mut d, s) = fan_out("USER a\n");
    d.ask(s, "RESTART\r\n");
    d.reply_to("GET USER a", OK);
    (d, s)
}

#[test]
fn what_log_names_is_asked_about_before_it_is_a_run() {
    let (mut d, s) = between_runs();
    d.log_names(["user.a", "user.b"]);
    assert_eq!(d.on_lanes(), [ask_for("user.a user.b")]);
    // It does not come in the way of the client's own.
    d.say(s, "GET USER c\r\n");
    assert_eq!(d.count("GET USER"), 1);
    d.reply_to("GET MAILBOXES", &answer(&["user.a", "user.b"], 1));
    d.reply_to("GET USER", OK);
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    // Once.
    d.log_names(["user.a"]);
    assert_eq!(d.count("GET"), 0);
}

#[test]
fn in_strict_mode_what_log_names_is_asked_about_on_a_lane_of_its_own() {
    for rolling in [true, false] {
        let mut d = driver(limits(), false);
        let s = d.capable(1, Mode::Strict, rolling);
        d.ask(s, "RESTART\r\n");
        assert_eq!(d.watching, rolling);
        // The client is at work already.
        d.say(s, &update("user.z", 2));
        d.log_names(["user.a", "user.b"]);
        let asked = ask_for("user.a user.b");
        assert_eq!(d.count(&asked), usize::from(rolling));
        if rolling {
            assert_ne!(d.lane_with(&asked), d.lane_with("APPLY MAILBOX"));
            d.reply_to(&asked, &answer(&["user.a"], 1));
            d.reply_to("APPLY MAILBOX", OK);
            assert_eq!(d.answer(s).unwrap(), OK);
            assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
            assert_eq!(d.ask(s, &ask_for("user.b")), OK);
        }
    }
}

#[test]
fn log_is_looked_at_only_while_the_rolling_client_is_there() {
    let (mut d, s) = fan_out("USER a\n");
    assert!(!d.watching, "it may be any client");
    d.ask(s, "RESTART\r\n");
    assert!(d.watching);
    d.event(Event::SessionClosed { session: s });
    assert!(!d.watching);
    let (mut d, _) = between_runs();
    assert!(d.watching);
    d.event(Event::Drain);
    assert!(!d.watching);
    // An old one gets nothing from known state.
    let (mut d, s) = rolling("USER a\n", false);
    d.ask(s, "RESTART\r\n");
    assert!(!d.watching);
}

#[test]
fn behind_a_barrier_and_on_probation_nothing_is_asked_ahead() {
    let (mut d, _) = between_runs();
    let other = d.open_by(2, Mode::Strict, false);
    d.say(other, "APPLY WHATEVER %(MBOXNAME user.a)\r\n");
    d.log_names(["user.b"]);
    assert_eq!(d.count("GET MAILBOXES"), 0);
    let (mut d, s) = between_runs();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.ask(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", NO);
    d.ask(s, "RESTART\r\n");
    d.log_names(["user.a.x"]);
    assert_eq!(d.count("GET MAILBOXES"), 0);
}

#[test]
fn names_of_log_are_bounded() {
    let (mut d, _) = between_runs();
    d.log_names((0..30_000).map(|i| format!("user.u{i:05}")));
    while d.count("GET MAILBOXES") > 0 {
        // No such mailboxes.
        d.reply_to("GET MAILBOXES", OK);
    }
    assert_eq!(d.core.snapshot().known_mailboxes, 20_000);
}
