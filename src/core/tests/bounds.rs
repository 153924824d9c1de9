//! Bounds that are reached: what is said then, and that no more is held.

use std::time::Duration;

use super::driver::{Driver, driver, limits, rolling_within};
use super::words::{LOCKED, NO, OK, mailbox, message, reserve};
use crate::core::{Limits, Mode, RunId, SessionId};

const TOO_MUCH: &str = "BYE Too much of the sync log is owed already\r\n";

/// Two lines are owed, and no more may be.
fn owing(log: &'static str, named: bool) -> (Driver, SessionId) {
    let limits = Limits {
        owed_lines: 2,
        ..limits()
    };
    let (mut d, s) = rolling_within(limits, log, named);
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    assert_eq!(d.ask(s, &mailbox("user.a.x", &[])), OK);
    d.reply_to("APPLY MAILBOX", NO);
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().owed_lines, 2);
    (d, s)
}

#[test]
fn nothing_is_acknowledged_early_while_too_much_is_owed() {
    let (mut d, s) = owing("USER a\nUSER b\n", false);
    d.get(s, "GET MAILBOXES (user.b)\r\n");
    d.say(s, &mailbox("user.b", &[]));
    assert_eq!(d.answer(s), None, "the replica is waited for");
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.ask(s, "RESTART\r\n");
    // Until there is room again.
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.say(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().owed_lines, 1);
    d.get(s, "GET MAILBOXES (user.b)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.b", &[])), OK);
}

#[test]
fn a_refusal_that_would_owe_too_much_ends_the_session() {
    // A write; a user; a shared mailbox; what a named client defers by itself.
    for (asked, refusal, named) in [
        (&mailbox("user.b", &[])[..], NO, false),
        ("GET USER b\r\n", NO, false),
        ("GET USER b\r\n", NO, true),
        ("GET MAILBOXES (shared.a)\r\n", NO, false),
        ("GET MAILBOXES (user.b)\r\n", LOCKED, true),
    ] {
        let (mut d, s) = owing("USER a\nUSER b\nMAILBOX shared.a\n", named);
        if asked.starts_with("APPLY") {
            d.get(s, "GET MAILBOXES (user.b)\r\n");
        }
        d.say(s, asked);
        let verb = &asked[..8];
        d.reply_to(verb, refusal);
        while d.ended.is_empty() && refusal == LOCKED {
            d.wait_for(verb);
            d.reply_to(verb, refusal);
        }
        assert_eq!(d.ended[&s], TOO_MUCH, "{asked} {named}");
        assert_eq!(d.core.snapshot().owed_lines, 2);
        assert_eq!(d.core.snapshot().probation_subjects, 1);
    }
}

#[test]
fn who_is_refused_again_and_owes_nothing_new_hears_of_it_as_always() {
    for named in [false, true] {
        let (mut d, s) = owing("USER a\n", named);
        for nth in 1..4 {
            d.pass(Duration::from_secs(60));
            d.run = Some(RunId(100 + nth));
            d.log = "MAILBOX user.a\nMAILBOX user.a.x\n";
            d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
            for name in ["user.a", "user.a.x"] {
                d.say(s, &mailbox(name, &[]));
                d.reply_to("APPLY MAILBOX", NO);
                assert_eq!(d.answer(s).unwrap(), NO);
            }
            d.ask(s, "RESTART\r\n");
            assert_eq!(d.core.snapshot().owed_lines, 2);
        }
        assert_eq!(d.ended.len(), 0);
    }
}

#[test]
fn parts_of_answers_are_kept_up_to_a_bound() {
    let limits = Limits {
        partial_answers: 10_000,
        ..limits()
    };
    let mut d = driver(limits, false);
    let answer = |size| format!("* SEEN %(X {})\r\n{OK}", "x".repeat(size));
    let sessions: Vec<_> = (1..=3).map(|id| d.open(id, Mode::Strict)).collect();
    for s in &sessions {
        let name = format!("user.u{}", s.0);
        d.say(*s, &format!("GET MAILBOXES ({name} user.v{})\r\n", s.0));
        d.reply_to(&format!("GET MAILBOXES ({name})"), &answer(4000));
    }
    // The one whose next part comes has to go; the others get theirs.
    let bye = "BYE The replica's answers are too large for memory\r\n";
    assert_eq!(d.ended.len(), 1);
    assert_eq!(d.ended[&sessions[2]], bye);
    for s in &sessions[..2] {
        // A part that completes an answer is not kept, however large it is.
        d.reply_to(&format!("GET MAILBOXES (user.v{})", s.0), &answer(20_000));
        assert!(d.answer(*s).unwrap().ends_with(OK));
    }
    d.reply_to("GET MAILBOXES (user.v3)", OK);
    assert_eq!(d.core.snapshot().queued, 0);
    let s = d.open(4, Mode::Strict);
    d.say(s, "GET MAILBOXES (user.a user.b)\r\n");
    d.reply_to("GET MAILBOXES (user.a)", &answer(9000));
    d.reply_to("GET MAILBOXES (user.b)", OK);
    assert!(d.answer(s).unwrap().ends_with(OK));
}

#[test]
fn what_is_noted_of_all_sessions_together_is_bounded() {
    let limits = Limits {
        noted_bytes: 10_000,
        ..limits()
    };
    let mut d = driver(limits, false);
    let sessions: Vec<_> = (1..=10).map(|id| d.open(id, Mode::Strict)).collect();
    // Beyond the limit by what can't be forgotten: messages.
    while d.ask(sessions[0], &message(1)) == OK {
        let guid = d.core.snapshot().staged_bytes as u8;
        if d.ask(sessions[1], &message(guid)) != OK {
            break;
        }
    }
    let held = d.core.snapshot().noted_bytes;
    assert!(held > 10_000 && held < 11_000, "{held}");
    for guid in 1..=20 {
        for s in &sessions {
            assert!(d.ask(*s, &reserve("user.a", &[guid])).ends_with(OK));
            let noted = d.core.snapshot().noted_bytes;
            assert!(noted < held + 1000, "{noted}");
        }
    }
    for s in &sessions {
        d.ask(*s, "RESTART\r\n");
    }
    assert_eq!(d.core.snapshot().noted_bytes, 0);
}
