//! Refusals, doubt, probation: what is owed, and what the client is told (design.md, promise 7).

use std::time::Duration;

use super::driver::{Driver, RUN, limits, mailbox, message, rolling, strict};
use crate::core::{Event, Mode, Note, RunId, SessionId};

const OK: &str = "OK success\r\n";
const NO: &str = "NO Unknown error\r\n";
const CHECKSUM: &str = "NO IMAP_SYNC_CHECKSUM Checksum Failure\r\n";

fn get(d: &mut Driver, s: SessionId, text: &str) {
    d.say(s, text);
    while d.count("GET") > 0 {
        d.reply_to("GET", OK);
    }
    assert_eq!(d.answer(s).unwrap(), OK);
}

/// Two acknowledged units of one user, the first of which is on its lane.
fn two_units(named: bool) -> (Driver, SessionId) {
    let (mut d, s) = rolling("USER a\nUSER b\nMAILBOX shared\n", named);
    get(&mut d, s, "GET MAILBOXES (user.a user.a.x)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", None)), OK);
    assert_eq!(d.ask(s, &mailbox("user.a.x", None)), OK);
    (d, s)
}

#[test]
fn nothing_acknowledged_is_sent_after_a_failure_and_its_lines_are_owed() {
    let (mut d, _) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    assert_eq!(
        d.disk[1],
        "write [Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]"
    );
    assert_eq!(d.core.snapshot().unconfirmed_users, 0);
    assert_eq!(d.core.snapshot().owed_lines, 2);
}

#[test]
fn safe_to_promote_says_that_nothing_is_open() {
    let (mut d, s) = two_units(false);
    let safe = |d: &Driver| d.core.snapshot().safe_to_promote;
    assert!(!safe(&d), "units are not confirmed");
    d.reply_to("APPLY MAILBOX", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert!(!safe(&d), "the client may send more under this run");
    d.event(Event::RunGone { run: RUN });
    assert!(safe(&d));
    d.run = None;
    d.say(s, "GET USER a\r\n");
    assert!(!safe(&d), "something is under way");
    d.reply_to("GET", OK);
    assert!(safe(&d));
    let (mut d, _) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.event(Event::RunGone { run: RUN });
    assert_eq!(d.core.snapshot().runs_linked, 0);
    assert!(!safe(&d), "lines are owed");
}

#[test]
fn the_link_stays_until_the_owed_lines_are_durable() {
    let (mut d, _) = two_units(false);
    d.smooth = false;
    d.reply_to("APPLY MAILBOX", NO);
    d.event(Event::RunGone { run: RUN });
    assert!(!d.disk.contains(&"drop link".to_owned()));
    d.catch_up();
    assert!(d.disk.contains(&"drop link".to_owned()));
}

#[test]
fn on_probation_writes_are_real_until_the_line_is_done_with() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.say(s, &mailbox("user.a", None));
    assert_eq!(d.answer(s), None);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.core.snapshot().probation[0].lines, 1);
    d.say(s, &mailbox("user.a.x", None));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert!(d.core.snapshot().probation.is_empty());
    // And early again.
    assert_eq!(d.ask(s, &mailbox("user.a", None)), OK);
}

#[test]
fn a_line_for_which_the_client_sends_nothing_is_done_with_its_run() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.pass(Duration::from_secs(1));
    (d.run, d.log) = (Some(RunId(8)), "MAILBOX user.a\nMAILBOX user.a.x\n");
    get(&mut d, s, "GET MAILBOXES (user.a user.a.x)\r\n");
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().owed_lines, 2);
    d.event(Event::RunGone { run: RunId(8) });
    assert_eq!(d.core.snapshot().owed_lines, 0);
}

#[test]
fn a_run_whose_inode_comes_again_is_another_run() {
    let (mut d, s) = rolling("MAILBOX user.z\n", false);
    d.say(s, "APPLY UNMAILBOX user.a.x\r\n");
    d.reply_to("APPLY UNMAILBOX", NO);
    assert_eq!(d.answer(s).unwrap(), OK);
    // Which run holds the line coverage can't tell: the next one, or the one after.
    d.log = "UNMAILBOX user.a.x\n";
    for left in [1, 1, 0] {
        d.event(Event::RunGone { run: RUN });
        assert_eq!(d.core.snapshot().owed_lines, left);
        d.pass(Duration::from_secs(1));
        get(&mut d, s, "GET META z\r\n");
        d.ask(s, "RESTART\r\n");
        d.log = "MAILBOX user.z\n";
    }
    assert!(d.core.snapshot().probation.is_empty());
}

#[test]
fn only_the_oldest_unit_of_a_lost_lane_counts_as_refused() {
    let (mut d, s) = rolling("MAILBOX user.a\nMAILBOX user.b\n", false);
    get(&mut d, s, "GET MAILBOXES (user.a user.b)\r\n");
    // Both on one lane.
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    for lane in &lanes[1..] {
        d.lose(*lane);
    }
    d.smooth = false;
    d.say(s, &mailbox("user.a", None));
    d.catch_up();
    d.smooth = false;
    d.answer(s);
    d.say(s, &mailbox("user.b", None));
    assert_eq!(d.count("APPLY MAILBOX"), 2);
    d.lose(lanes[0]);
    let refused: Vec<bool> = d
        .notes
        .iter()
        .filter_map(|note| match note {
            Note::Probation { refused, .. } => Some(*refused),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [true, false]);
}

#[test]
fn a_line_without_a_version_waits_when_in_doubt() {
    let (mut d, s) = rolling("SEEN a id\n", false);
    let seen =
        "APPLY SEEN %(USERID a UNIQUEID id LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)\r\n";
    get(&mut d, s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, seen), OK);
    d.lose(d.lane_with("APPLY SEEN"));
    assert_eq!(d.disk[1..], ["owe [Seen(b\"a\", b\"id\")]"]);
    d.pass(limits().in_doubt);
    assert_eq!(d.disk[2], "write [Seen(b\"a\", b\"id\")]");
    // The owed file goes when the line stands in the log.
    assert_eq!(d.disk[3..], ["owe []"]);
}

#[test]
fn a_refused_line_without_a_version_does_not_wait() {
    let (mut d, s) = rolling("SUB a user.b\n", false);
    get(&mut d, s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, "APPLY SUB %(USERID a MBOXNAME user.b)\r\n"), OK);
    d.reply_to("APPLY SUB", NO);
    assert_eq!(d.disk[1..], ["write [Sub(b\"a\", b\"user.b\")]"]);
}

#[test]
fn pauses_grow_and_stand_in_the_owed_file() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    for _ in 0..2 {
        d.say(s, &mailbox("user.a", None));
        d.reply_to("APPLY MAILBOX", NO);
        assert_eq!(d.answer(s).unwrap(), NO);
    }
    assert_eq!(d.disk.last().unwrap(), "owe [Mailbox(b\"user.a\")]");
    let waits = |note: &Note| match note {
        Note::Probation { pause, .. } => Some(*pause),
        _ => None,
    };
    let pauses: Vec<Duration> = d.notes.iter().filter_map(waits).collect();
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(pauses[1] > Duration::ZERO);
    d.pass(limits().heal_max);
    let written = d
        .disk
        .iter()
        .filter(|did| did.starts_with("write [Mailbox(b\"user.a\")]"));
    assert_eq!(written.count(), 1);
}

#[test]
fn a_refused_message_of_a_user_on_probation_keeps_the_mailbox_back() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    assert_eq!(d.on_lanes(), [message(1)]);
    d.reply_to(
        "APPLY MESSAGE",
        "BAD IMAP_PROTOCOL_ERROR Failed to parse APPLY line\r\n",
    );
    assert_eq!(d.count("APPLY MAILBOX"), 0);
    assert!(d.answer(s).unwrap().starts_with("BAD IMAP_PROTOCOL_ERROR "));
}

#[test]
fn a_shared_mailbox_does_not_stop_the_others() {
    let (mut d, s) = rolling("MAILBOX shared\nMAILBOX other\n", false);
    get(&mut d, s, "GET MAILBOXES (shared other)\r\n");
    d.ask(s, &mailbox("shared", None));
    d.ask(s, &mailbox("other", None));
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(
        d.count("APPLY MAILBOX %(UNIQUEID id MBOXNAME other "),
        1,
        "it is still sent"
    );
    assert_eq!(d.core.snapshot().probation[0].subject, "shared");
}

// Promise 7, row by row.

/// The answer to a refused write in a group that was begun by `question`.
fn refused(named: bool, question: &str, text: &str, no: &str) -> (String, Driver) {
    let (mut d, s) = rolling("", named);
    d.run = None;
    get(&mut d, s, question);
    d.say(s, text);
    let first = text.split(' ').take(2).collect::<Vec<_>>().join(" ");
    loop {
        d.reply_to(&first, no);
        if let Some(answer) = d.answer(s) {
            return (answer, d);
        }
        // LOCKED is tried again first.
        d.wait_for(&first);
    }
}

#[test]
fn in_a_group_of_one_user_the_replicas_own_no_makes_the_client_promote() {
    for named in [false, true] {
        let (answer, d) = refused(
            named,
            "GET MAILBOXES (user.a)\r\n",
            &mailbox("user.a", None),
            NO,
        );
        assert_eq!(answer, NO);
        assert_eq!(
            d.disk,
            ["write [Mailbox(b\"user.a\")]"],
            "owed before the answer"
        );
    }
}

#[test]
fn a_checksum_failure_is_handed_on_until_fullmailbox_was_read() {
    for question in [
        "GET MAILBOXES (user.a)\r\n",
        "GET USER a\r\n",
        "GET MAILBOXES (shared)\r\n",
    ] {
        let name = if question.contains("shared") {
            "shared"
        } else {
            "user.a"
        };
        let (mut d, s) = rolling("", true);
        get(&mut d, s, question);
        for _ in 0..2 {
            d.say(s, &mailbox(name, None));
            d.reply_to("APPLY MAILBOX", CHECKSUM);
            assert_eq!(d.answer(s).unwrap(), CHECKSUM);
        }
        get(&mut d, s, &format!("GET FULLMAILBOX {name}\r\n"));
        d.say(s, &mailbox(name, None));
        d.reply_to("APPLY MAILBOX", CHECKSUM);
        assert_eq!(
            d.answer(s).unwrap() == CHECKSUM,
            question.contains("(user.a)"),
            "{question}"
        );
    }
}

#[test]
fn inside_a_user_sync_a_named_channel_defers_and_the_default_channel_goes_on() {
    let (answer, _) = refused(true, "GET USER a\r\n", &mailbox("user.a", None), NO);
    assert!(answer.starts_with("NO IMAP_MAILBOX_LOCKED "));
    let (answer, d) = refused(false, "GET USER a\r\n", &mailbox("user.a", None), NO);
    assert_eq!(answer, OK);
    assert_eq!(d.disk, ["write [User(b\"a\")]"]);
}

#[test]
fn in_a_group_of_several_one_refusal_does_not_fail_the_others() {
    for question in [
        "GET MAILBOXES (shared)\r\n",
        "GET MAILBOXES (user.a user.b)\r\n",
    ] {
        let name = if question.contains("shared") {
            "shared"
        } else {
            "user.a"
        };
        let (answer, d) = refused(true, question, &mailbox(name, None), NO);
        assert_eq!(answer, OK, "{question}");
        assert_eq!(d.disk.len(), 1);
    }
}

#[test]
fn what_would_end_the_clients_run_is_answered_ok_and_owed() {
    let rows = [
        (
            "APPLY UNMAILBOX user.a.x\r\n",
            "write [Unmailbox(b\"user.a.x\")]",
        ),
        ("APPLY UNUSER a\r\n", "write [Unuser(b\"a\")]"),
        (
            "APPLY ANNOTATION %(MBOXNAME \"\" ENTRY /x USERID \"\" VALUE b)\r\n",
            "write [Annotation(b\"\")]",
        ),
        (
            "APPLY QUOTA %(ROOT user.a LIMIT 1)\r\n",
            "write [Quota(b\"user.a\")]",
        ),
        ("APPLY UNQUOTA user.a\r\n", "write [Quota(b\"user.a\")]"),
    ];
    for (text, line) in rows {
        let (answer, d) = refused(true, "GET MAILBOXES (user.z)\r\n", text, NO);
        assert_eq!((answer.as_str(), d.disk[0].as_str()), (OK, line));
    }
}

#[test]
fn locked_never_reaches_what_it_would_stick_to() {
    let locked = "NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n";
    for text in [
        "APPLY SEEN %(USERID a UNIQUEID id LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)\r\n",
        "APPLY SUB %(USERID a MBOXNAME user.a)\r\n",
        "APPLY SIEVE %(USERID a FILENAME x LAST_UPDATE 1 CONTENT y)\r\n",
    ] {
        let (answer, _) = refused(true, "GET META z\r\n", text, locked);
        assert!(
            answer.starts_with("NO ") && !answer.contains("LOCKED"),
            "{text}: {answer}"
        );
    }
    let (answer, _) = refused(
        true,
        "GET MAILBOXES (user.a)\r\n",
        &mailbox("user.a", None),
        locked,
    );
    assert_eq!(answer, locked, "here the client defers by itself");
}

#[test]
fn what_can_not_be_owed_is_not_answered_ok() {
    let name = "\"user.a\u{b}x\"";
    let text = format!("APPLY UNMAILBOX {name}\r\n");
    let (answer, d) = refused(true, "GET MAILBOXES (user.z)\r\n", &text, NO);
    assert_eq!(answer, NO);
    assert!(d.disk.is_empty());
}

#[test]
fn a_disk_that_takes_no_owed_line_sends_the_client_away_with_its_log_kept() {
    let (mut d, s) = rolling("", false);
    d.run = None;
    get(&mut d, s, "GET USER a\r\n");
    d.smooth = false;
    d.say(s, &mailbox("user.a", None));
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.answer(s), None);
    d.event(Event::DiskFailed {
        batch: crate::core::BatchId(1),
        why: "full".into(),
    });
    assert!(d.ended[&s].starts_with("BYE "));
    d.pass(Duration::from_secs(3));
    d.event(Event::DiskFailed {
        batch: crate::core::BatchId(2),
        why: "full".into(),
    });
    let told = |note: &&Note| matches!(note, Note::NotWritten { .. });
    assert_eq!(d.notes.iter().filter(told).count(), 1, "once is enough");
}

#[test]
fn a_failing_lane_is_sent_nothing_more_and_its_unit_goes_elsewhere() {
    let (mut d, s) = strict();
    // What came as NIL is asked for first.
    d.ask(s, "APPLY MESSAGE (NIL)\r\n");
    d.say(s, &mailbox("user.a", Some(1)));
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
