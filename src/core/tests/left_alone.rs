//! Whom the replica can't tell about is left alone, and nobody else has to wait for it.

use std::time::Duration;

use super::driver::{Driver, RUN, limits, rolling, rolling_within};
use super::words::{OK, SEEN, mailbox, message, missing};
use crate::core::{Limits, Mode, RunId, SessionId};

const NO: &str = "NO System I/O error\r\n";

fn is_nothing(answer: &str) -> bool {
    answer.starts_with("* MAILBOX %(UNIQUEID syncmux.left-alone ")
        && answer.lines().count() == 2
        && answer.ends_with(OK)
}

/// GET USER a was refused, and so again after the first line was healed: a pause lasts.
fn left_alone(named: bool) -> (Driver, SessionId) {
    let (mut d, s) = rolling("USER a\n", named);
    for _ in 0..2 {
        d.say(s, "GET USER a\r\n");
        d.reply_to("GET USER", &format!("* LSUB (user.a)\r\n{NO}"));
        let answer = d.answer(s).unwrap();
        assert_eq!(answer.starts_with("NO IMAP_MAILBOX_LOCKED "), named);
        assert_eq!(is_nothing(&answer), !named, "{answer}");
        d.ask(s, "RESTART\r\n");
    }
    (d, s)
}

#[test]
fn what_the_client_sends_for_a_user_goes_nowhere_and_his_line_is_owed() {
    let (mut d, s) = left_alone(false);
    assert_eq!(
        d.disk,
        ["link", "write [User(b\"a\")]", "owe [User(b\"a\")]"],
        "the second time after a pause"
    );
    assert!(is_nothing(&d.ask(s, "GET USER a\r\n")));
    let guid = "0123456789abcdef0123456789abcdef01234567";
    for text in [
        &format!("APPLY RESERVE %(PARTITION p MBOXNAME (syncmux.left-alone) GUID ({guid}))\r\n"),
        &mailbox("user.a", &[]),
        &mailbox("user.a.x", &[]),
        SEEN,
        "APPLY SUB %(USERID a MBOXNAME user.a)\r\n",
        "APPLY UNMAILBOX syncmux.left-alone\r\n",
    ] {
        assert_eq!(d.ask(s, text), OK, "{text}");
    }
    assert_eq!(d.on_lanes(), [""; 0]);
    // Somebody else's mailbox is another matter.
    d.say(s, "APPLY UNMAILBOX user.b.x\r\n");
    assert_eq!(d.count("APPLY UNMAILBOX user.b.x"), 1);
    d.reply_to("APPLY UNMAILBOX", OK);
    d.answer(s);
    // Nor is what is not understood: no line brings it back.
    d.say(s, "APPLY NOVELTY %(USERID a)\r\n");
    assert_eq!(d.answer(s), None);
    d.reply_to("APPLY NOVELTY", OK);
    d.answer(s);
    d.ask(s, "RESTART\r\n");
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.count("APPLY MAILBOX"), 1, "RESTART ends it");
}

#[test]
fn after_the_pause_it_is_tried_again_and_heals() {
    for named in [false, true] {
        let (mut d, s) = left_alone(named);
        assert!(is_nothing(&d.ask(s, "GET USER a\r\n")));
        d.ask(s, "RESTART\r\n");
        d.pass(limits().heal);
        assert_eq!(d.disk.last().unwrap(), "owe []", "and written before that");
        d.pass(Duration::from_millis(1));
        (d.run, d.log) = (Some(RunId(8)), "USER a\n");
        d.say(s, "GET USER a\r\n");
        d.reply_to("GET USER", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
        d.say(s, &mailbox("user.a", &[]));
        d.reply_to("APPLY MAILBOX", OK);
        d.ask(s, "RESTART\r\n");
        d.run = None;
        d.say(s, "GET META z\r\n");
        assert!(d.core.snapshot().probation.is_empty(), "{:?}", d.disk);
    }
}

#[test]
fn who_is_refused_only_in_writes_of_a_user_sync_is_left_alone_as_well() {
    let (mut d, s) = rolling("MAILBOX user.z\n", true);
    for nth in 1..=3 {
        d.get(s, "GET USER a\r\n");
        d.say(s, &mailbox("user.a", &[]));
        d.reply_to("APPLY MAILBOX", NO);
        assert!(d.answer(s).unwrap().starts_with("NO IMAP_MAILBOX_LOCKED "));
        d.ask(s, "RESTART\r\n");
        if nth > 1 {
            // While the pause lasts, without asking.
            assert_eq!(d.disk.last().unwrap(), "owe [User(b\"a\")]");
            assert!(is_nothing(&d.ask(s, "GET USER a\r\n")));
            d.ask(s, "RESTART\r\n");
            d.pass(limits().heal * 2);
        }
        let written = d.disk.iter().filter(|what| *what == "write [User(b\"a\")]");
        assert_eq!(written.count(), nth);
    }
}

#[test]
fn the_answer_waits_for_the_line() {
    let (mut d, s) = rolling("USER a\n", false);
    d.say(s, "GET USER a\r\n");
    d.disk_works = false;
    d.reply_to("GET USER", NO);
    assert_eq!(d.answer(s), None);
    d.catch_up();
    assert!(is_nothing(&d.answer(s).unwrap()));
}

#[test]
fn a_one_shot_run_hears_the_truth() {
    let (mut d, s) = rolling("USER a\n", false);
    d.run = None;
    d.say(s, "GET USER a\r\n");
    d.reply_to("GET USER", NO);
    assert_eq!(d.answer(s).unwrap(), NO);
    let strict = d.open(2, Mode::Strict);
    d.run = Some(RUN);
    d.say(strict, "GET USER a\r\n");
    d.reply_to("GET USER", NO);
    assert_eq!(d.answer(strict).unwrap(), NO);
}

/// A GET MAILBOXES over three shared mailboxes, of which `bad` are refused.
fn shared(d: &mut Driver, s: SessionId, bad: &[&str]) {
    d.say(s, "GET MAILBOXES (one two three)\r\n");
    d.reply_to("GET MAILBOXES (one two three)", NO);
    assert_eq!(d.answer(s), None);
    for _ in 0..3 {
        let asked = d.on_lanes()[0].to_owned();
        let name = asked
            .trim_start_matches("GET MAILBOXES (")
            .trim_end_matches(")\r\n");
        let line = format!("* MAILBOX %(MBOXNAME {name})\r\n");
        let answer = if bad.contains(&name) {
            format!("{line}{NO}")
        } else {
            format!("{line}{OK}")
        };
        d.reply_to(&asked, &answer);
    }
}

const SHARED: &str = "MAILBOX one\nMAILBOX two\nMAILBOX three\n";

#[test]
fn among_shared_mailboxes_those_are_found_that_are_refused() {
    let (mut d, s) = rolling(SHARED, false);
    shared(&mut d, s, &["two"]);
    assert_eq!(
        d.answer(s).unwrap(),
        format!("* MAILBOX %(MBOXNAME one)\r\n* MAILBOX %(MBOXNAME three)\r\n{OK}")
    );
    assert_eq!(d.disk, ["link", "write [Mailbox(b\"two\")]"]);
    assert_eq!(d.ask(s, &mailbox("two", &[])), OK);
    assert_eq!(d.on_lanes(), [""; 0]);
    assert_eq!(d.ask(s, &mailbox("one", &[])), OK);
    assert_eq!(d.count("APPLY MAILBOX"), 1);
}

#[test]
fn while_its_pause_lasts_a_shared_mailbox_is_not_asked_for() {
    let (mut d, s) = rolling(SHARED, true);
    for _ in 0..2 {
        shared(&mut d, s, &["one"]);
        d.answer(s).unwrap();
        d.ask(s, "RESTART\r\n");
    }
    d.say(s, "GET MAILBOXES (one two)\r\n");
    d.reply_to(
        "GET MAILBOXES (two)",
        &format!("* MAILBOX %(MBOXNAME two)\r\n{OK}"),
    );
    let answer = d.answer(s).unwrap();
    assert_eq!(answer, format!("* MAILBOX %(MBOXNAME two)\r\n{OK}"));
    assert_eq!(d.ask(s, &mailbox("one", &[])), OK);
    d.ask(s, "RESTART\r\n");
    assert!(is_nothing(&d.ask(s, "GET MAILBOXES (one)\r\n")));
    // With something else in its answer the client may ask for uploads: they stay here.
    assert_eq!(d.ask(s, &message(1)), OK);
    d.ask(s, "RESTART\r\n");
    d.pass(limits().heal);
    d.say(s, "GET MAILBOXES (one two)\r\n");
    assert_eq!(d.count("GET MAILBOXES (one two)"), 1);
}

#[test]
fn the_answer_waits_for_the_lines_of_all() {
    let (mut d, s) = rolling(SHARED, false);
    shared(&mut d, s, &["one"]);
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    d.disk_works = false;
    // The line of `one` waits out a pause in the owed file, that of `two` is written at once.
    shared(&mut d, s, &["one", "two"]);
    assert_eq!(d.disk.last().unwrap(), "write [Mailbox(b\"two\")]");
    d.disk_does();
    assert_eq!(d.answer(s), None, "{:?}", d.disk);
    d.catch_up();
    assert_eq!(
        d.answer(s).unwrap(),
        format!("* MAILBOX %(MBOXNAME three)\r\n{OK}")
    );
}

#[test]
fn in_a_group_of_one_user_the_client_makes_a_user_sync_of_it() {
    let (mut d, s) = rolling("MAILBOX user.a\n", false);
    d.say(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    d.reply_to("GET MAILBOXES", NO);
    assert_eq!(d.answer(s).unwrap(), NO);
}

#[test]
fn among_several_users_the_one_is_found_that_is_refused() {
    let (mut d, s) = rolling("MAILBOX user.a\nMAILBOX user.b\n", false);
    d.say(s, "GET MAILBOXES (user.a user.b)\r\n");
    d.reply_to("GET MAILBOXES (user.a)", NO);
    d.reply_to("GET MAILBOXES (user.b)", OK);
    d.reply_to("GET MAILBOXES (user.a)", NO);
    d.reply_to("GET MAILBOXES (user.b)", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    assert_eq!(d.on_lanes(), [""; 0]);
    assert_eq!(d.ask(s, &mailbox("user.b", &[])), OK);
    assert_eq!(d.count("APPLY MAILBOX"), 1);
    assert_eq!(d.core.snapshot().probation[0].subject, "a");
}

/// The client uploads the messages of a mailbox that the replica lacks unasked, unless the answer
/// has a line: then it asks by RESERVE, and without its message a MAILBOX would kill the replica's
/// process.
#[test]
fn a_new_mailbox_beside_one_that_is_left_alone_gets_its_messages() {
    for pause in [false, true] {
        let (mut d, s) = rolling(SHARED, false);
        if pause {
            for _ in 0..2 {
                shared(&mut d, s, &["two"]);
                d.answer(s).unwrap();
                d.ask(s, "RESTART\r\n");
            }
        }
        d.say(s, "GET MAILBOXES (two new)\r\n");
        if !pause {
            d.reply_to("GET MAILBOXES (two new)", NO);
            d.reply_to("GET MAILBOXES (two)", NO);
        }
        d.reply_to("GET MAILBOXES (new)", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
    }
}

/// Cyrus 2.5 says RESTART after 1,001 mailboxes only, and a run of `-m` never.
#[test]
fn without_a_restart_a_mailbox_is_not_left_alone_for_ever() {
    let (mut d, s) = rolling(SHARED, false);
    shared(&mut d, s, &["two"]);
    d.answer(s).unwrap();
    assert_eq!(d.ask(s, &mailbox("two", &[])), OK);
    (d.run, d.log) = (Some(RunId(8)), "MAILBOX two\n");
    d.say(s, "GET MAILBOXES (two)\r\n");
    d.reply_to("GET MAILBOXES (two)", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.say(s, &mailbox("two", &[]));
    assert_eq!(d.count("APPLY MAILBOX"), 1);
}

/// The client fails all shared mailboxes with it, and does the run again without end.
#[test]
fn a_shared_mailbox_that_can_not_be_repaired_is_left_alone_in_the_next_run() {
    for refused in [
        "GET FULLMAILBOX two\r\n",
        "GET FETCH %(MBOXNAME two PARTITION p UNIQUEID id GUID 0000000000000000000000000000000000000002 UID 1)\r\n",
        "APPLY RENAME %(OLDMBOXNAME two NEWMBOXNAME three PARTITION p UIDVALIDITY 1)\r\n",
    ] {
        let (mut d, s) = rolling(SHARED, false);
        for _ in 0..2 {
            d.say(s, "GET MAILBOXES (one two)\r\n");
            d.reply_to("GET MAILBOXES (one two)", OK);
            assert_eq!(d.answer(s).unwrap(), OK);
            d.say(s, refused);
            d.reply_to(&refused[..10], NO);
            assert_eq!(d.answer(s).unwrap(), NO);
            d.ask(s, "RESTART\r\n");
        }
        d.say(s, "GET MAILBOXES (one two)\r\n");
        d.reply_to("GET MAILBOXES (one)", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
        assert_eq!(d.ask(s, &mailbox("two", &[])), OK, "{refused}");
        d.ask(s, "RESTART\r\n");
        if refused.contains("RENAME") {
            d.pass(limits().heal);
            let lines = "write [Mailbox(b\"two\"), Mailbox(b\"three\")]";
            assert!(
                d.disk.iter().any(|what| what == lines),
                "in one run: {:?}",
                d.disk
            );
        }
    }
}

/// The client uploads the messages of who is left alone with those of the others.
#[test]
fn who_is_left_alone_does_not_fill_the_staging_for_the_others() {
    let small = Limits {
        staged_bytes: 6,
        ..limits()
    };
    let (mut d, s) = rolling_within(small, SHARED, false);
    shared(&mut d, s, &["two"]);
    d.answer(s).unwrap();
    for guid in 1..=2 {
        assert_eq!(d.ask(s, &message(guid)), OK);
    }
    assert_eq!(d.ask(s, &mailbox("two", &[1])), OK);
    assert_eq!(d.ask(s, &mailbox("one", &[2])), OK);
    d.reply_to("APPLY RESERVE", &missing(&[2]));
    assert_eq!(d.count("APPLY MAILBOX"), 0, "it would kill the process");
    assert_eq!(d.disk.last().unwrap(), "write [Mailbox(b\"one\")]");
}
