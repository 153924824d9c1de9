//! What is put off stands in the sync log, whatever is full, slow or forgotten meanwhile.

use std::time::Duration;

use super::driver::{Driver, RUN, driver_of, limits};
use super::rightnow::{LIMIT, PUT_OFF, put_off, right_now, right_now_within, written};
use super::words::{
    CHECKSUM, NO, OK, SEEN, answer, ask_for, file, mailbox, message, missing, reserve, update,
};
use crate::core::{Event, Limits, Mode, Note, SessionId};

const LINE: &str = "[Mailbox(b\"user.a\")]";

fn not_written(d: &Driver) -> usize {
    let says = |note: &&Note| matches!(note, Note::NotWritten { .. });
    d.notes.iter().filter(says).count()
}

/// An imapd with a cache of its own asks nothing: it has reserved and sent its message.
fn cached(d: &mut Driver, s: SessionId) {
    assert_eq!(d.ask(s, &reserve("user.a", &[1])), missing(&[1]));
    assert_eq!(d.ask(s, &message(1)), OK);
}

/// A disk that is full is found out once, and not by each piece of each commit.
#[test]
fn a_full_disk_is_waited_for_once() {
    let (mut d, s) = right_now();
    d.disk_works = false;
    d.lanes_open = false;
    d.say(s, &ask_for("user.a"));
    d.pass(LIMIT);
    assert_eq!(d.answer(s), None);
    d.disk_fails();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert_eq!(d.ask(s, SEEN), PUT_OFF);
    // Also while it is being tried again.
    d.pass(Duration::from_secs(2));
    assert_eq!(d.ask(s, "GET META a\r\n"), PUT_OFF);
    d.catch_up();
    let all = written(&d).concat();
    let lines = [
        "Mailbox(b\"user.a\")",
        "Seen(b\"a\", b\"id\")",
        "Meta(b\"a\")",
    ];
    assert!(lines.iter().all(|line| all.contains(line)), "{all}");
    assert_eq!(d.core.snapshot().owed_lines, 0);
    // The next one stands before its answer goes out.
    d.disk_works = false;
    d.say(s, SEEN);
    d.pass(LIMIT);
    assert_eq!(d.answer(s), None);
    d.disk_does();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
}

/// It does not even say that it can't write.
#[test]
fn a_disk_that_hangs_is_not_waited_for_without_end() {
    let (mut d, s) = right_now();
    d.disk_works = false;
    d.say(s, &ask_for("user.a"));
    d.lanes_open = false;
    d.pass(LIMIT);
    d.pass(LIMIT - Duration::from_millis(1));
    assert_eq!(d.answer(s), None);
    d.pass(Duration::from_millis(1));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(not_written(&d), 1);
    assert!(d.core.snapshot().not_written);
    // Nor by those who come after that.
    let other = d.open(2, Mode::RightNow);
    assert_eq!(d.ask(other, &ask_for("user.b")), PUT_OFF);
    d.catch_up();
    assert_eq!(written(&d), [LINE, "[Mailbox(b\"user.b\")]"]);
    assert!(!d.core.snapshot().not_written);
}

/// The line of an earlier answer, which comes late, is not the one that is waited for now.
#[test]
fn a_late_line_answers_nobody() {
    let (mut d, s) = right_now();
    d.disk_works = false;
    d.say(s, &ask_for("user.a"));
    d.pass(LIMIT);
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    // Something else has been written: the disk is believed to work.
    d.event(Event::OwedStored {
        batch: crate::core::BatchId(u64::MAX),
    });
    d.lanes_open = false;
    d.say(s, SEEN);
    assert_eq!(d.answer(s), None);
    d.disk_does();
    assert_eq!(d.answer(s), None, "answered before its own line stood");
    d.disk_does();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
}

/// What is owed for users on probation takes no room from lines that are gone at once.
#[test]
fn a_line_is_written_however_much_is_owed() {
    let (mut d, s) = right_now_within(Limits {
        owed_lines: 1,
        ..limits()
    });
    let rolling = d.open(2, Mode::FanOut);
    d.say(rolling, "APPLY QUOTA %(ROOT user.x LIMIT 2)\r\n");
    d.reply_to("APPLY QUOTA", NO);
    assert!(d.core.snapshot().owed_lines >= 1);
    let before = written(&d).len();
    d.say(s, &ask_for("user.a"));
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert!(written(&d)[before..].contains(&LINE), "{:?}", written(&d));
}

#[test]
fn a_cached_client_that_is_killed_in_the_middle_owes_what_it_was_at() {
    let (mut d, s) = right_now();
    cached(&mut d, s);
    d.event(Event::SessionClosed { session: s });
    assert_eq!(written(&d), [LINE]);
    assert_eq!(put_off(&d), ["ended"]);
}

#[test]
fn a_drain_lets_a_cached_client_come_to_its_end() {
    let (mut d, s) = right_now();
    cached(&mut d, s);
    d.event(Event::Drain);
    assert!(!d.ended.contains_key(&s));
    assert_eq!(d.ask(s, &mailbox("user.a", &[1])), PUT_OFF);
    d.ask(s, "RESTART\r\n");
    assert!(d.ended.contains_key(&s));
    assert_eq!(written(&d)[0], LINE);
}

/// Each of its commits has the whole limit.
#[test]
fn the_commits_of_a_cached_client_are_told_apart() {
    let (mut d, s) = right_now();
    for _ in 0..3 {
        cached(&mut d, s);
        d.say(s, &mailbox("user.a", &[1]));
        d.pass(Duration::from_secs(4));
        d.all_ok();
        assert_eq!(d.answer(s).unwrap(), OK);
        d.ask(s, "RESTART\r\n");
    }
    assert_eq!(put_off(&d), [""; 0]);
}

/// There is no room to stage: the RESERVE goes to the replica, and the message finds none.
#[test]
fn what_finds_no_room_is_put_off() {
    for asks in [true, false] {
        let (mut d, s) = right_now_within(Limits {
            staged_bytes: 0,
            ..limits()
        });
        if asks {
            d.get(s, &ask_for("user.a"));
        }
        d.say(s, &reserve("user.a", &[1]));
        d.reply_to("APPLY RESERVE", &missing(&[1]));
        assert_eq!(d.answer(s).unwrap(), missing(&[1]));
        assert_eq!(d.ask(s, &message(1)), PUT_OFF);
        assert_eq!(written(&d), [LINE]);
        assert_eq!(put_off(&d), ["no room"]);
        assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    }
}

#[test]
fn a_reserve_that_is_not_answered_owes_the_mailbox() {
    let (mut d, s) = right_now_within(Limits {
        staged_bytes: 0,
        ..limits()
    });
    d.say(s, &reserve("user.a", &[1]));
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(written(&d), [LINE]);
}

/// What `io` found no room for comes as this.
#[test]
fn what_io_finds_no_room_for_is_put_off() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a"));
    d.bad(s);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(written(&d), [LINE]);
}

/// Others have noted so much that all is forgotten that can be.
#[test]
fn what_a_commit_is_at_is_not_forgotten() {
    let (mut d, s) = right_now_within(Limits {
        noted_bytes: 1,
        ..limits()
    });
    d.get(s, &ask_for("user.a user.a.x"));
    let other = d.open(2, Mode::Strict);
    d.ask(other, &reserve("user.b", &[1]));
    d.ask(other, "RESTART\r\n");
    d.event(Event::SessionClosed { session: s });
    let lines = "[Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]";
    assert_eq!(written(&d), [lines]);
}

/// The answers of all together are too large: a BYE would make it forget the rest.
#[test]
fn too_large_an_answer_puts_it_off() {
    let (mut d, s) = right_now_within(Limits {
        partial_answers: 10,
        ..limits()
    });
    d.say(s, &ask_for("user.a user.b"));
    d.reply_to("GET MAILBOXES (user.a)", &answer(&["user.a"], 1));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert!(d.ended.is_empty());
    d.reply_to("GET MAILBOXES (user.b)", &answer(&["user.b"], 1));
    assert_eq!(d.answer(s), None);
    assert_eq!(written(&d).len(), 1);
}

/// The question was answered in time; only then the replica fell silent. The next one does not wait.
#[test]
fn a_replica_that_falls_silent_in_the_middle_is_waited_for_once() {
    let (mut d, s) = right_now();
    d.say(s, &ask_for("user.a"));
    d.pass(Duration::from_millis(100));
    d.reply_to("GET", OK);
    d.answer(s).unwrap();
    d.say(s, &mailbox("user.a", &[]));
    d.lanes_open = false;
    d.pass(LIMIT - Duration::from_millis(100));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let other = d.open(2, Mode::RightNow);
    assert_eq!(d.ask(other, &ask_for("user.b")), PUT_OFF);
    assert_eq!(put_off(&d), ["limit", "away"]);
}

/// The rest of the limit was short, and nothing was asked before: that says nothing of the replica.
#[test]
fn a_replica_that_was_asked_nothing_is_not_silent() {
    let (mut d, s) = right_now();
    d.say(s, &ask_for("user.a"));
    d.pass(LIMIT - Duration::from_millis(100));
    d.reply_to("GET", OK);
    d.answer(s).unwrap();
    // A long upload to here.
    for _ in 0..10 {
        d.pass(Duration::from_millis(900));
        assert_eq!(d.ask(s, &format!("APPLY MESSAGE ({})\r\n", file(1))), OK);
    }
    d.say(s, &mailbox("user.a", &[1]));
    d.pass(Duration::from_millis(100));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let other = d.open(2, Mode::RightNow);
    d.say(other, &ask_for("user.b"));
    assert_eq!(d.answer(other), None, "it was not even asked");
    assert_eq!(put_off(&d), ["limit"]);
}

/// What a rolling client in strict mode was told was wrong, and the refusal of what it sends by that
/// has its line, also where an answer to what it had given up comes in between.
#[test]
fn a_late_answer_does_not_confirm_what_was_sent_since() {
    let limits = Limits {
        rightnow: Some(LIMIT),
        ..limits()
    };
    let mut d = driver_of(limits, true, true);
    let told = d.capable(2, Mode::Strict, true);
    d.run = Some(RUN);
    d.log = "MAILBOX shared.a\nMAILBOX shared.b\n";
    d.say(told, &ask_for("shared.b"));
    d.reply_to("GET", &answer(&["shared.b"], 1));
    d.answer(told).unwrap();
    d.ask(told, "RESTART\r\n");
    // Of another user, so that what comes then need not wait for it.
    d.lanes_open = false;
    d.say(told, SEEN);
    for _ in 0..8 {
        d.refuse_lanes();
        d.pass(Duration::from_secs(2));
    }
    assert_eq!(d.answer(told).unwrap(), PUT_OFF);
    d.lanes_open = true;
    d.pass(Duration::from_secs(16));
    let hits = d.ask(told, &ask_for("shared.b"));
    assert_eq!(hits, answer(&["shared.b"], 1), "from known state");
    d.say(told, &update("shared.b", 2));
    d.reply_to("APPLY SEEN", OK);
    d.reply_to("APPLY MAILBOX", CHECKSUM);
    assert_eq!(d.answer(told).unwrap(), CHECKSUM);
    let all = written(&d).concat();
    assert!(all.contains("Mailbox(b\"shared.b\")"), "{all}");
}

/// After an outage the rolling client brings thousands of units; nobody waits behind all of them.
#[test]
fn what_somebody_waits_for_goes_before_a_backlog() {
    let within = Limits {
        depth: 1,
        ..super::driver::one_lane()
    };
    let (mut d, s) = right_now_within(within);
    d.run = Some(RUN);
    d.log = "USER a\nUSER b\nUSER c\nUSER d\n";
    let rolling = d.open(2, Mode::FanOut);
    d.get(rolling, "GET MAILBOXES (user.a user.b user.c user.d)\r\n");
    for user in ["a", "b", "c", "d"] {
        let one = mailbox(&format!("user.{user}"), &[]);
        assert_eq!(d.ask(rolling, &one), OK, "acknowledged early");
    }
    let (other, third) = (d.open(3, Mode::RightNow), d.open(4, Mode::RightNow));
    d.say(s, &ask_for("user.x"));
    d.say(other, "APPLY UNMAILBOX user.y.z\r\n");
    d.say(third, &ask_for("user.z"));
    d.reply_to("APPLY MAILBOX", OK);
    d.reply_to("GET MAILBOXES (user.x)", OK);
    d.reply_to("APPLY UNMAILBOX", OK);
    d.reply_to("GET MAILBOXES (user.z)", OK);
    for session in [s, other, third] {
        assert_eq!(d.answer(session).unwrap(), OK);
    }
    assert_eq!(d.count("APPLY MAILBOX"), 1, "the others in their turn");
    d.all_ok();
    assert_eq!(d.core.snapshot().unconfirmed_users, 0);
}
