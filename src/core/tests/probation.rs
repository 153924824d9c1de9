//! Probation: how long it lasts, and when an owed line is done with.

use std::time::Duration;

use super::driver::{Driver, RUN, limits, rolling};
use super::failures::two_units;
use super::words::{CHECKSUM, GONE, NO, OK, mailbox, message};
use crate::core::{Event, Note, RunId, SessionId};

/// An acknowledged update of a user was refused; its line stands in `log`.
fn refused() -> (Driver, SessionId) {
    let (mut d, s) = rolling("MAILBOX user.a\nMAILBOX user.b\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    d.reply_to("APPLY MAILBOX", CHECKSUM);
    assert_eq!(d.disk, ["link", "write [Mailbox(b\"user.a\")]"]);
    d.ask(s, "RESTART\r\n");
    (d, s)
}

fn subjects(d: &Driver) -> usize {
    d.core.snapshot().probation_subjects
}

#[test]
fn on_probation_writes_are_real_until_the_line_is_done_with() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.answer(s), None);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.core.snapshot().probation[0].lines, 1);
    d.say(s, &mailbox("user.a.x", &[]));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert!(d.core.snapshot().probation.is_empty());
    // And early again.
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
}

#[test]
fn an_ok_to_anything_but_that_very_command_ends_nothing() {
    let (mut d, s) = refused();
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    let expunge = "APPLY EXPUNGE %(MBOXNAME user.a UNIQUEID id UID (1))\r\n";
    for (text, left) in [
        (&mailbox("user.a.x", &[])[..], 1),
        (expunge, 1),
        (&mailbox("user.a", &[]), 0),
    ] {
        d.say(s, text);
        d.reply_to(text, OK);
        assert_eq!(d.answer(s).unwrap(), OK);
        assert_eq!(subjects(&d), left, "{text}");
    }
}

#[test]
fn an_ok_to_one_annotation_does_not_drop_the_line_of_another() {
    let (mut d, s) = rolling("", false);
    d.run = None;
    let entry =
        |n: u8| format!("APPLY ANNOTATION %(MBOXNAME user.a ENTRY /{n} USERID a VALUE x)\r\n");
    d.disk_works = false;
    d.say(s, &entry(1));
    d.reply_to("APPLY ANNOTATION", NO);
    assert_eq!(d.answer(s), None, "before its line is durable");
    d.disk_does();
    assert_eq!(d.answer(s).unwrap(), OK);
    d.say(s, &entry(2));
    d.reply_to("APPLY ANNOTATION", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!((d.disk.len(), subjects(&d)), (1, 1));
}

#[test]
fn an_owed_removal_is_done_with_once_it_is_gone_however_it_went() {
    for text in ["APPLY UNMAILBOX user.a.x\r\n", "APPLY UNUSER a\r\n"] {
        let (mut d, s) = rolling("", true);
        d.run = None;
        d.say(s, text);
        d.reply_to(text, NO);
        assert_eq!(d.answer(s).unwrap(), OK);
        assert_eq!(subjects(&d), 1);
        d.say(s, text);
        d.reply_to(text, GONE);
        assert_eq!(d.answer(s).unwrap(), GONE);
        assert_eq!(subjects(&d), 0);
    }
}

#[test]
fn a_refused_message_of_a_user_on_probation_keeps_the_mailbox_back() {
    for refusal in [
        "NO No space\r\n",
        "BAD IMAP_PROTOCOL_ERROR Failed to parse APPLY line\r\n",
    ] {
        let (mut d, s) = refused();
        d.get(s, "GET MAILBOXES (user.a)\r\n");
        d.ask(s, &message(1));
        d.say(s, &mailbox("user.a", &[1]));
        assert_eq!(d.on_lanes(), [message(1)]);
        d.reply_to("APPLY MESSAGE", refusal);
        assert_eq!(d.on_lanes(), [""; 0]);
        assert_eq!(d.answer(s).unwrap(), refusal);
    }
}

#[test]
fn a_line_for_which_the_client_sends_nothing_is_done_with_its_run() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    d.pass(Duration::from_secs(1));
    (d.run, d.log) = (Some(RunId(8)), "MAILBOX user.a\nMAILBOX user.a.x\n");
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().owed_lines, 2);
    d.event(Event::RunGone { run: RunId(8) });
    assert_eq!(d.core.snapshot().owed_lines, 0);
}

#[test]
fn a_run_renamed_before_the_line_was_written_ends_nothing() {
    let (mut d, s) = refused();
    d.end_run();
    d.pass(Duration::from_secs(1));
    // Renamed long ago, seen only now: the line is in the next one.
    (d.run, d.log) = (Some(RunId(8)), "MAILBOX user.b\n");
    d.get(s, "GET MAILBOXES (user.b)\r\n");
    d.end_run();
    assert_eq!(subjects(&d), 1);
    (d.run, d.log) = (Some(RunId(9)), "MAILBOX user.a\n");
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(subjects(&d), 1);
    d.end_run();
    assert_eq!(subjects(&d), 0);
}

#[test]
fn a_run_seen_before_the_line_was_written_does_not_hold_it() {
    let (mut d, s) = rolling("MAILBOX user.a\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.disk_works = false;
    d.reply_to("APPLY MAILBOX", NO);
    d.run = Some(RunId(8));
    d.get(s, "GET MAILBOXES (user.b)\r\n");
    d.pass(Duration::from_secs(1));
    d.catch_up();
    d.get(s, "GET MAILBOXES (user.b)\r\n");
    let links = d.disk.iter().filter(|what| *what == "link");
    assert_eq!(links.count(), 2);
    d.end_run();
    assert_eq!(subjects(&d), 1);
}

#[test]
fn a_run_that_ends_before_its_link_is_reported_leaves_nobody_on_probation() {
    let (mut d, s) = refused();
    d.end_run();
    d.pass(Duration::from_secs(1));
    (d.run, d.log) = (Some(RunId(8)), "MAILBOX user.a\n");
    d.disk_works = false;
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, "RESTART\r\n");
    d.run = None;
    d.get(s, "GET USER b\r\n");
    assert_eq!(subjects(&d), 1);
    d.disk_does();
    assert_eq!(subjects(&d), 0);
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
        d.get(s, "GET META z\r\n");
        d.ask(s, "RESTART\r\n");
        d.log = "MAILBOX user.z\n";
    }
    assert!(d.core.snapshot().probation.is_empty());
}

#[test]
fn pauses_grow_and_stand_in_the_owed_file() {
    let (mut d, s) = two_units(false);
    d.reply_to("APPLY MAILBOX", NO);
    for _ in 0..2 {
        d.say(s, &mailbox("user.a", &[]));
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
