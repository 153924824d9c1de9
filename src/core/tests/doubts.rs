//! What a client was told from known state and led to nothing: it is checked, or owed.

use std::time::Duration;

use super::driver::{Driver, RUN, driver_of, limits};
use super::known::{fan_out, is_real, known, really};
use super::words::{NO, OK, answer, ask_for, update};
use crate::core::{Event, Mode, Note, RunId, SessionId};

fn wrong(d: &Driver) -> usize {
    let wrong = |note: &&Note| {
        matches!(
            note,
            Note::Known {
                outcome: "wrong",
                ..
            }
        )
    };
    d.notes.iter().filter(wrong).count()
}

// What was told and led to nothing.

/// A client was told version 1 and sent nothing.
pub(super) fn told_nothing() -> (Driver, SessionId) {
    // It names no mailbox that is read ahead.
    let (mut d, s) = fan_out("USER a\n");
    really(
        &mut d,
        s,
        "user.a user.a.x",
        &answer(&["user.a", "user.a.x"], 1),
    );
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    assert_eq!(d.count("GET"), 0, "not before it is certain");
    (d, s)
}

#[test]
fn what_was_told_and_led_to_nothing_is_read_for_real() {
    for end in [
        "RESTART\r\n",
        "GET MAILBOXES (user.a.x)\r\n",
        "EXIT\r\n",
        "",
    ] {
        let (mut d, s) = told_nothing();
        match end {
            "" => d.event(Event::SessionClosed { session: s }),
            end => d.say(s, end),
        }
        assert_eq!(d.on_lanes(), [ask_for("user.a")], "{end}");
        d.reply_to("GET", &answer(&["user.a"], 1));
        assert_eq!((wrong(&d), d.core.snapshot().probation_subjects), (0, 0));
        assert_eq!(d.core.snapshot().known_doubts, 0);
    }
}

#[test]
fn a_wrong_belief_that_led_to_nothing_is_owed_and_the_next_read_is_real() {
    // Another version, no such mailbox, or an answer that says nothing.
    for real in [answer(&["user.a"], 0), OK.to_owned(), NO.to_owned()] {
        let (mut d, s) = told_nothing();
        d.ask(s, "RESTART\r\n");
        d.reply_to("GET", &real);
        assert_eq!(wrong(&d), usize::from(real != NO));
        assert_eq!(d.disk, ["link", "write [Mailbox(b\"user.a\")]"]);
        let one = d.core.snapshot().probation[0].clone();
        assert_eq!((one.subject.as_str(), one.failures), ("a", 0));
        assert!(is_real(&mut d, s, "user.a"));
    }
}

#[test]
fn an_update_needs_no_such_read() {
    let (mut d, s) = told_nothing();
    d.run = Some(RUN);
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    assert!(!d.on_lanes().contains(&ask_for("user.a").as_str()));
    // But one of another mailbox says nothing of this one.
    let (mut d, s) = told_nothing();
    d.say(s, &update("user.a.x", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
}

#[test]
fn a_write_under_way_puts_it_off_and_its_lane_lost_as_well() {
    let (mut d, s) = told_nothing();
    let other = d.open_by(2, Mode::Strict, false);
    d.say(other, "APPLY SUB %(USERID a MBOXNAME user.a)\r\n");
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.count("GET"), 0);
    d.reply_to("APPLY SUB", OK);
    assert_eq!(d.count("GET"), 1);
    d.lose(d.lane_with("GET"));
    d.pass(Duration::from_secs(1));
    assert_eq!(d.on_lanes(), [ask_for("user.a")], "on another lane");
    // A write while it is under way: once more.
    d.say(other, &update("user.a.x", 3));
    d.reply_to("GET MAILBOXES", OK);
    assert_eq!(wrong(&d), 0);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
}

#[test]
fn in_strict_mode_without_a_sync_log_there_is_none_to_write_to() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.ask(s, &ask_for("user.a"));
    d.ask(s, "RESTART\r\n");
    d.reply_to("GET", &answer(&["user.a"], 0));
    assert_eq!((wrong(&d), d.disk.len()), (1, 0));
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 0));
}

/// A strict rolling client under a run, with a sync log beside it.
fn strict_with_log(log: &'static str) -> (Driver, SessionId) {
    let mut d = driver_of(limits(), false, true);
    d.log = log;
    let s = d.capable(1, Mode::Strict, true);
    d.run = Some(RUN);
    (d, s)
}

#[test]
fn in_strict_mode_with_a_sync_log_it_is_as_in_fan_out() {
    let (mut d, s) = strict_with_log("MAILBOX user.a\nMAILBOX user.b\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.ask(s, "RESTART\r\n");
    d.all_ok();
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    // The link stays until the doubt is over.
    d.ask(s, "RESTART\r\n");
    d.event(Event::RunGone { run: RUN });
    d.run = None;
    assert!(!d.disk.contains(&"drop".to_owned()), "{:?}", d.disk);
    d.reply_to("GET MAILBOXES (user.a)", &answer(&["user.a"], 0));
    assert_eq!(wrong(&d), 1);
    assert!(d.disk.contains(&"write [Mailbox(b\"user.a\")]".to_owned()));
    // The next run heals it, with the replica's own answers.
    d.run = Some(RunId(8));
    d.log = "MAILBOX user.a\n";
    really(&mut d, s, "user.a", &answer(&["user.a"], 0));
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.core.snapshot().probation_subjects, 0);
    assert_eq!(d.core.snapshot().owed_lines, 0);
}

#[test]
fn a_run_without_anything_to_send_ends_a_strict_probation_too() {
    let (mut d, s) = strict_with_log("MAILBOX user.a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    d.ask(s, "RESTART\r\n");
    d.reply_to("GET MAILBOXES (user.a)", &answer(&["user.a"], 0));
    d.event(Event::RunGone { run: RUN });
    d.pass(Duration::from_secs(1));
    d.run = Some(RunId(8));
    really(&mut d, s, "user.a", &answer(&["user.a"], 2));
    d.ask(s, "RESTART\r\n");
    d.event(Event::RunGone { run: RunId(8) });
    d.run = None;
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().owed_lines, 0);
}

#[test]
fn a_run_is_held_until_what_was_told_under_it_is_checked() {
    // By RESTART, by a client that goes, and by one whose next run has begun.
    for end in ["RESTART\r\n", "", "next"] {
        for right in [true, false] {
            let (mut d, s) = told_nothing();
            match end {
                "" => d.event(Event::SessionClosed { session: s }),
                "next" => {}
                end => drop(d.ask(s, end)),
            }
            d.event(Event::RunGone { run: RUN });
            d.run = Some(RunId(8));
            d.log = "USER a\n";
            if end == "next" {
                d.ask(s, "RESTART\r\n");
            }
            assert!(!d.disk.contains(&"drop link".to_owned()), "{end}");
            d.reply_to("GET", &answer(&["user.a"], u64::from(right)));
            let written = "write [Mailbox(b\"user.a\")]".to_owned();
            assert_eq!(d.disk.contains(&written), !right, "{end}");
            assert_eq!(d.disk.iter().filter(|one| *one == "drop link").count(), 1);
        }
    }
}

#[test]
fn an_update_takes_the_run_over_from_what_was_told() {
    let (mut d, s) = told_nothing();
    assert_eq!(d.ask(s, &update("user.a", 2)), OK);
    d.ask(s, "RESTART\r\n");
    d.event(Event::RunGone { run: RUN });
    assert_eq!(d.disk, ["link"]);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.disk, ["link", "drop link"]);
}

#[test]
fn a_later_update_ends_the_doubt() {
    let (mut d, s) = told_nothing();
    d.ask(s, "RESTART\r\n");
    d.ask(s, &ask_for("user.a"));
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().known_doubts, 1);
    d.ask(s, &ask_for("user.a"));
    assert_eq!(d.ask(s, &update("user.a", 2)), OK);
    assert_eq!(d.core.snapshot().known_doubts, 0);
}

#[test]
fn an_answer_asked_for_before_the_client_was_told_is_no_check() {
    let (mut d, s) = told_nothing();
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.count("GET"), 1);
    d.ask(s, &ask_for("user.a"));
    d.ask(s, "RESTART\r\n");
    d.reply_to("GET", &answer(&["user.a"], 1));
    assert_eq!(d.core.snapshot().known_doubts, 1);
    d.reply_to("GET", &answer(&["user.a"], 0));
    assert_eq!((wrong(&d), d.core.snapshot().known_doubts), (1, 0));
}

#[test]
fn a_write_to_one_mailbox_leaves_what_was_told_of_others_to_be_checked() {
    let (mut d, s) = fan_out("USER a\n");
    let both = answer(&["user.a", "user.a.x"], 1);
    really(&mut d, s, "user.a user.a.x", &both);
    assert_eq!(d.ask(s, &ask_for("user.a user.a.x")), both);
    d.say(
        s,
        "APPLY RENAME %(OLDMBOXNAME user.a.x NEWMBOXNAME user.a.y PARTITION p)\r\n",
    );
    d.reply_to("APPLY RENAME", OK);
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
}

#[test]
fn who_comes_back_as_another_kind_of_client_leaves_no_run_held_for_ever() {
    let (mut d, s) = told_nothing();
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    d.lanes_open = false;
    lanes.into_iter().for_each(|lane| d.lose(lane));
    d.event(Event::SessionClosed { session: s });
    d.event(Event::RunGone { run: RUN });
    d.lanes_open = true;
    d.pass(Duration::from_secs(20));
    d.run = None;
    let new = d.open_by(2, Mode::FanOut, true);
    d.say(new, "APPLY CAPABILITIES (OTHER)\r\n");
    d.answer(new).unwrap();
    d.pass(Duration::from_secs(600));
    assert_eq!(
        d.count("GET MAILBOXES (user.a)"),
        1,
        "{:?}",
        d.core.snapshot()
    );
}
