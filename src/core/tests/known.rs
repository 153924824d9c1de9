//! Known state: what is answered without the replica, when never, and what becomes of it.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, limits, rolling};
use super::words::{CAPABILITIES, NO, OK, SEEN, answer, ask_for, line, update};
use crate::core::{Event, Limits, Mode, SessionId};

/// A 3.6 client by the rolling client's listener, in strict mode: nothing is read ahead.
pub(super) fn known() -> (Driver, SessionId) {
    let mut d = driver(limits(), false);
    let s = d.open_by(1, Mode::Strict, true);
    d.say(s, CAPABILITIES);
    assert!(d.answer(s).unwrap().starts_with("* ENABLED"));
    (d, s)
}

/// The same in fan-out, whose run names these.
pub(super) fn fan_out(log: &'static str) -> (Driver, SessionId) {
    let (mut d, s) = rolling(log, false);
    d.run = None;
    d.say(s, CAPABILITIES);
    assert!(d.answer(s).unwrap().starts_with("* ENABLED"));
    d.run = Some(RUN);
    (d, s)
}

/// Asks for real.
pub(super) fn really(d: &mut Driver, s: SessionId, names: &str, reply: &str) {
    d.say(s, &ask_for(names));
    assert_eq!(d.answer(s), None, "{names} is known");
    d.reply_to("GET MAILBOXES", reply);
    assert_eq!(d.answer(s).unwrap(), reply);
}

/// Whether it is asked for real; the replica has no such mailbox.
pub(super) fn is_real(d: &mut Driver, s: SessionId, names: &str) -> bool {
    d.say(s, &ask_for(names));
    let real = d.answer(s).is_none();
    while d.count("NOOP") > 0 {
        d.reply_to("NOOP", "OK Noop completed\r\n");
    }
    if real {
        while d.count("GET MAILBOXES") > 0 {
            d.reply_to("GET MAILBOXES", OK);
        }
        d.answer(s).expect("an answer");
    }
    real
}

#[test]
fn a_real_answer_is_known_also_that_there_is_no_such_mailbox() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a user.a.x", &answer(&["user.a"], 7));
    assert_eq!(
        d.ask(s, &ask_for("user.a.x user.a")),
        answer(&["user.a"], 7)
    );
    assert_eq!(d.ask(s, &ask_for("user.a.x")), OK);
    assert_eq!(d.core.snapshot().known_mailboxes, 2);
    assert!(d.core.snapshot().known_bytes > 0);
}

#[test]
fn an_update_is_known_by_its_own_fields_once_it_is_acknowledged() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, &update("user.a", 2));
    assert_eq!(
        d.core.snapshot().known_mailboxes,
        0,
        "not while it is under way"
    );
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 2));
    // Early: at once, with the unit still under way.
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert_eq!(d.ask(s, &update("user.a", 2)), OK);
    assert_eq!(d.count("APPLY MAILBOX"), 1);
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 2));
}

#[test]
fn the_short_form_of_an_intermediate_says_too_little() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, "APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a MBOXTYPE i HIGHESTMODSEQ 1 CREATEDMODSEQ 1 FOLDERMODSEQ 1)\r\n");
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    assert!(is_real(&mut d, s, "user.a"));
}

#[test]
fn what_is_known_is_answered_and_only_the_rest_is_asked_in_the_order_asked() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a.y", &answer(&["user.a.y"], 1));
    d.say(s, &ask_for("user.a.x user.a.y user.a.z"));
    assert_eq!(d.on_lanes(), [ask_for("user.a.x user.a.z")]);
    d.reply_to("GET", &answer(&["user.a.x", "user.a.z"], 1));
    assert_eq!(
        d.answer(s).unwrap(),
        answer(&["user.a.x", "user.a.y", "user.a.z"], 1)
    );
}

#[test]
fn never_for_others() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    // Not by the rolling client's listener.
    let other = d.capable(2, Mode::Strict, false);
    assert!(is_real(&mut d, other, "user.a"));
    // With other capabilities, or a client that says nothing of what it believes.
    let old = d.open_by(3, Mode::Strict, true);
    assert!(is_real(&mut d, old, "user.a"));
    let other = d.open_by(4, Mode::Strict, true);
    d.say(other, "APPLY CAPABILITIES (OTHER)\r\n");
    d.answer(other).unwrap();
    assert!(is_real(&mut d, other, "user.a"));
    // FORCE is one session's.
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, "APPLY FORCE %()\r\n");
    d.reply_to("APPLY FORCE", OK);
    d.answer(s).unwrap();
    assert!(is_real(&mut d, s, "user.a") && is_real(&mut d, s, "user.a"));
    // Inside a USER sync the client is repairing.
    let (mut d, s) = known();
    d.say(s, "GET USER a\r\n");
    d.reply_to("GET USER", OK);
    d.answer(s).unwrap();
    assert!(is_real(&mut d, s, "user.b") && is_real(&mut d, s, "user.b"));
}

#[test]
fn only_where_both_ends_use_since() {
    let (mut d, s) = rolling("USER a\n", false);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert!(
        is_real(&mut d, s, "user.a"),
        "nothing shows what the client is"
    );
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 2));
    // An old replica.
    let (mut d, s) = rolling("USER z\n", false);
    let old = answer(&["user.a"], 1).replace(" FOLDERMODSEQ 1", "");
    really(&mut d, s, "user.a", &old);
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    assert!(is_real(&mut d, s, "user.a"));
    // The replica that comes back may be one.
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    lanes.into_iter().for_each(|lane| d.lose(lane));
    d.pass(Duration::from_secs(1));
    assert_eq!(d.ask(s, &update("user.a", 2)), OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert!(is_real(&mut d, s, "user.a"));
}

#[test]
fn never_to_a_client_with_a_cache_of_its_own() {
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, &update("user.a.x", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s).unwrap();
    assert!(is_real(&mut d, s, "user.a"));
}

#[test]
fn an_update_behind_which_another_is_queued_says_nothing() {
    let (mut d, s) = known();
    let other = d.open_by(2, Mode::Strict, false);
    d.say(s, &update("user.a", 2));
    d.say(other, &update("user.a", 3));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s).unwrap();
    assert_eq!(d.core.snapshot().known_mailboxes, 0);
}

#[test]
fn reads_of_another_kind_are_always_real() {
    let (mut d, s) = known();
    for text in [
        "GET USER a\r\n",
        "GET META a\r\n",
        "GET FULLMAILBOX user.a\r\n",
        "GET FETCH %(MBOXNAME user.a PARTITION p UNIQUEID id GUID g UID 1)\r\n",
        "GET ANNOTATION user.a\r\n",
        "GET UNIQUEIDS (id)\r\n",
    ] {
        for _ in 0..2 {
            d.say(s, text);
            assert_eq!(d.answer(s), None, "{text}");
            d.reply_to("GET", OK);
            assert_eq!(d.answer(s).unwrap(), OK);
        }
    }
}

#[test]
fn any_other_write_drops_what_is_known_of_its_keys() {
    let rows: [(&str, &[&str], &[&str]); 10] = [
        (
            "APPLY RENAME %(OLDMBOXNAME user.a.x NEWMBOXNAME user.b.x PARTITION p)\r\n",
            &["user.a", "user.b"],
            &["shared"],
        ),
        ("APPLY UNMAILBOX user.a.x\r\n", &["user.a"], &["user.b"]),
        ("APPLY UNUSER a\r\n", &["user.a"], &["user.b"]),
        (
            "APPLY EXPUNGE %(MBOXNAME user.a UNIQUEID id UID (1))\r\n",
            &["user.a"],
            &["user.b"],
        ),
        (
            "APPLY ANNOTATION %(MBOXNAME user.a ENTRY /x USERID a VALUE b)\r\n",
            &["user.a"],
            &["user.b"],
        ),
        (
            "APPLY QUOTA %(ROOT user.a LIMIT 1)\r\n",
            &["user.a"],
            &["user.b"],
        ),
        (
            "APPLY SIEVE %(USERID a FILENAME x LAST_UPDATE 1 CONTENT y)\r\n",
            &["user.a"],
            &["user.b"],
        ),
        (
            "APPLY WHATEVER %(MBOXNAME user.a)\r\n",
            &["user.a", "user.b", "shared"],
            &[],
        ),
        (SEEN, &[], &["user.a"]),
        ("GET FULLMAILBOX user.a.x\r\n", &["user.a"], &["user.b"]),
    ];
    for (text, gone, stay) in rows {
        let (mut d, s) = known();
        for name in ["user.a", "user.b", "shared"] {
            really(&mut d, s, name, &answer(&[name], 1));
        }
        // By another session, by another listener.
        let other = d.open_by(2, Mode::Strict, false);
        d.say(other, text);
        let first = text.split(' ').take(2).collect::<Vec<_>>().join(" ");
        d.reply_to(&first, OK);
        d.answer(other).unwrap();
        for name in stay {
            assert!(!is_real(&mut d, s, name), "{text} {name}");
        }
        for name in gone {
            assert!(is_real(&mut d, s, name), "{text} {name}");
        }
    }
}

#[test]
fn an_answer_under_way_says_nothing_behind_which_a_write_is_queued() {
    let (mut d, s) = known();
    let other = d.open_by(2, Mode::Strict, false);
    d.say(s, &ask_for("user.a"));
    d.say(other, "APPLY QUOTA %(ROOT user.a LIMIT 1)\r\n");
    d.reply_to("GET", &answer(&["user.a"], 1));
    d.answer(s).unwrap();
    d.reply_to("APPLY QUOTA", OK);
    assert!(is_real(&mut d, s, "user.a"));
}

#[test]
fn a_refused_or_failed_write_drops_its_user() {
    let (mut d, s) = known();
    really(
        &mut d,
        s,
        "user.a user.a.x",
        &answer(&["user.a", "user.a.x"], 1),
    );
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", NO);
    d.answer(s).unwrap();
    assert!(is_real(&mut d, s, "user.a.x"));
    // A strict write on a lost lane; another lane lives on.
    let (mut d, s) = known();
    really(
        &mut d,
        s,
        "user.a user.a.x",
        &answer(&["user.a", "user.a.x"], 1),
    );
    let other = d.capable(2, Mode::Strict, true);
    d.say(other, "GET USER z\r\n");
    d.say(s, &update("user.a", 2));
    d.lose(d.lane_with("GET USER z"));
    assert_eq!(d.ended[&s], "");
    d.reply_to("GET USER", OK);
    d.answer(other).unwrap();
    d.ask(other, "RESTART\r\n");
    assert!(is_real(&mut d, other, "user.a.x"));
}

#[test]
fn on_probation_reads_are_real() {
    let (mut d, s) = fan_out("USER a\n");
    really(
        &mut d,
        s,
        "user.a user.a.x",
        &answer(&["user.a", "user.a.x"], 1),
    );
    d.ask(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.core.snapshot().probation_subjects, 1);
    for _ in 0..2 {
        assert!(is_real(&mut d, s, "user.a"));
    }
}

#[test]
fn the_loss_of_all_lanes_drops_everything_and_so_does_age() {
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    for lane in lanes {
        d.lose(lane);
    }
    d.pass(Duration::from_secs(1));
    assert!(is_real(&mut d, s, "user.a"));
    let (mut d, s) = known();
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.now += limits().known_age;
    assert!(!is_real(&mut d, s, "user.a"));
    d.now += Duration::from_millis(1);
    assert!(is_real(&mut d, s, "user.a"));
}

#[test]
fn memory_is_bounded_and_what_was_least_of_use_goes_first() {
    let few = Limits {
        known_bytes: 1100,
        ..limits()
    };
    let mut d = driver(few, false);
    let s = d.capable(1, Mode::Strict, true);
    for name in ["user.a", "user.b"] {
        really(&mut d, s, name, &answer(&[name], 1));
    }
    assert!(!is_real(&mut d, s, "user.a"));
    really(&mut d, s, "user.c", &answer(&["user.c"], 1));
    assert!(!is_real(&mut d, s, "user.a") && !is_real(&mut d, s, "user.c"));
    assert!(d.core.snapshot().known_bytes <= 1100);
    assert!(is_real(&mut d, s, "user.b"));
}

#[test]
fn nothing_is_told_before_the_run_is_linked_nor_where_it_can_not_be() {
    let (mut d, s) = fan_out("USER a\n");
    d.run = None;
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.run = Some(RUN);
    d.disk_works = false;
    d.say(s, &ask_for("user.a"));
    assert_eq!((d.answer(s), d.count("GET")), (None, 0));
    d.catch_up();
    assert_eq!(d.answer(s).unwrap(), answer(&["user.a"], 1));
    d.reply_to("GET USER a", OK);
    // Without a run no line would bring a wrong answer back.
    d.run = None;
    assert!(is_real(&mut d, s, "user.a"));
    let (mut d, s) = fan_out("USER a\n");
    d.run = None;
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.run = Some(RUN);
    d.disk_works = false;
    d.say(s, &ask_for("user.a"));
    d.disk_fails();
    d.catch_up();
    assert_eq!(d.count("GET MAILBOXES"), 1);
}

#[test]
fn what_the_run_does_not_name_is_told_only_where_that_makes_the_client_send_it() {
    // The link would not bring it back: it may be another client's run.
    let (mut d, s) = fan_out("MAILBOX user.b\n");
    d.run = None;
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    really(&mut d, s, "user.b", &answer(&["user.b"], 1));
    d.run = Some(RUN);
    d.say(s, &ask_for("user.a user.b"));
    assert_eq!(d.answer(s), None);
    assert_eq!(d.on_lanes(), [ask_for("user.a")]);
    d.reply_to("GET", &answer(&["user.a"], 2));
    let both = [line("user.a", 2), line("user.b", 1), OK.to_owned()];
    assert_eq!(d.answer(s).unwrap(), both.concat());
    // A former name that the replica has no more is no reason to ask.
    let (mut d, s) = fan_out("MAILBOX user.b\n");
    d.run = None;
    really(&mut d, s, "user.a", OK);
    really(&mut d, s, "user.b", &answer(&["user.b"], 1));
    d.run = Some(RUN);
    assert_eq!(d.ask(s, &ask_for("user.b user.a")), answer(&["user.b"], 1));
}

/// Cyrus before 3.6 asks for no capabilities: that it says SINCE_MODSEQ is seen with its first update
/// only. Its next session needs no update to be told what is known.
#[test]
fn an_older_client_is_known_again() {
    let mut d = driver(limits(), false);
    let s = d.open_by(1, Mode::Strict, true);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert!(is_real(&mut d, s, "user.a"), "nothing shows who it is yet");
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    d.event(Event::SessionClosed { session: s });
    let s = d.open_by(2, Mode::Strict, true);
    assert!(!is_real(&mut d, s, "user.a"));
    // Another listener's client is another matter.
    let s = d.open(3, Mode::Strict);
    assert!(is_real(&mut d, s, "user.a"));
}
