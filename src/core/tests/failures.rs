//! A unit is refused, in doubt or lost: what is dropped, what is owed, and what keeps the link.

use std::time::Duration;

use super::driver::{Driver, RUN, limits, one_lane, rolling, rolling_within};
use super::words::{NO, OK, SEEN, mailbox, message, reserve};
use crate::core::{Event, Mode, Note, SessionId};

/// Two acknowledged units of one user, the first of which is on its lane.
pub(super) fn two_units(named: bool) -> (Driver, SessionId) {
    let (mut d, s) = rolling("USER a\nUSER b\nMAILBOX shared\n", named);
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    assert_eq!(d.ask(s, &mailbox("user.a.x", &[])), OK);
    (d, s)
}

#[test]
fn nothing_acknowledged_is_sent_after_a_failure_and_its_lines_are_owed() {
    let (mut d, s) = two_units(false);
    assert_eq!(d.ask(s, SEEN), OK);
    assert_eq!(d.on_lanes(), [mailbox("user.a", &[])]);
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.on_lanes(), [""; 0]);
    let lines = "[Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\"), Seen(b\"a\", b\"id\")]";
    assert_eq!(d.disk[1..], [format!("write {lines}")]);
    assert_eq!(d.core.snapshot().unconfirmed_users, 0);
    assert_eq!(d.core.snapshot().owed_lines, 3);
}

#[test]
fn what_was_acknowledged_behind_a_real_write_that_fails_is_dropped_and_owed() {
    let (mut d, s) = rolling("MAILBOX user.a\n", false);
    let real = d.open(2, Mode::FanOut);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.say(real, "APPLY QUOTA %(ROOT user.a LIMIT 2)\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    d.reply_to("APPLY QUOTA", NO);
    assert_eq!(d.on_lanes(), [""; 0], "sent after a failure was known");
    let owed = |what: &String| what.starts_with("write ") && what.contains("Mailbox(b\"user.a\")");
    assert!(d.disk.iter().any(owed), "{:?}", d.disk);
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
    d.disk_works = false;
    d.reply_to("APPLY MAILBOX", NO);
    d.event(Event::RunGone { run: RUN });
    let dropped = |d: &Driver| d.disk.contains(&"drop link".to_owned());
    assert!(!dropped(&d));
    d.disk_fails();
    d.pass(Duration::from_secs(5));
    assert!(!dropped(&d), "they could not be written");
    d.catch_up();
    assert!(dropped(&d));
}

#[test]
fn only_the_oldest_unit_of_a_lost_lane_counts_as_refused() {
    let (mut d, s) = rolling("MAILBOX user.a\nMAILBOX user.b\n", false);
    d.get(s, "GET MAILBOXES (user.a user.b)\r\n");
    // Both on one lane.
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    for lane in &lanes[1..] {
        d.lose(*lane);
    }
    d.lanes_open = false;
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, &mailbox("user.b", &[]));
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
fn what_was_not_sent_yet_goes_to_another_lane_and_is_not_owed() {
    let (mut d, s) = rolling_within(one_lane(), "MAILBOX user.a\nMAILBOX user.b\n", false);
    d.get(s, "GET MAILBOXES (user.a user.b user.c)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, &reserve("user.b user.c", &[1]));
    d.ask(s, &message(1));
    assert_eq!(d.ask(s, &mailbox("user.b", &[1])), OK);
    assert_eq!(d.count("APPLY RESERVE"), 1);
    d.lose(d.lane_with("APPLY MAILBOX"));
    d.pass(Duration::from_secs(1));
    assert_eq!(d.disk[1..], ["write [Mailbox(b\"user.a\")]"]);
    assert_eq!(d.count("APPLY RESERVE"), 1);
}

/// What ran on the lost lane may still be running.
#[test]
fn a_line_without_a_version_waits_when_in_doubt() {
    // Also where one behind it was dropped, which is not in doubt.
    for dropped in [false, true] {
        let (mut d, s) = rolling("SEEN a id\n", false);
        d.get(s, "GET MAILBOXES (user.a)\r\n");
        assert_eq!(d.ask(s, SEEN), OK);
        if dropped {
            assert_eq!(d.ask(s, SEEN), OK);
        }
        d.lose(d.lane_with("APPLY SEEN"));
        assert_eq!(d.disk[1..], ["owe [Seen(b\"a\", b\"id\")]"]);
        d.pass(limits().in_doubt);
        assert_eq!(d.disk[2], "write [Seen(b\"a\", b\"id\")]");
        // The owed file goes when the line stands in the log.
        assert_eq!(d.disk[3..], ["owe []"]);
    }
}

#[test]
fn a_refused_line_without_a_version_does_not_wait() {
    let (mut d, s) = rolling("SUB a user.b\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.ask(s, "APPLY SUB %(USERID a MBOXNAME user.b)\r\n"), OK);
    d.reply_to("APPLY SUB", NO);
    assert_eq!(d.disk[1..], ["write [Sub(b\"a\", b\"user.b\")]"]);
}

#[test]
fn a_shared_mailbox_does_not_stop_the_others() {
    let (mut d, s) = rolling("MAILBOX shared\nMAILBOX other\n", false);
    d.get(s, "GET MAILBOXES (shared other)\r\n");
    d.ask(s, &mailbox("shared", &[]));
    d.ask(s, &mailbox("other", &[]));
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(
        d.count("APPLY MAILBOX %(UNIQUEID id MBOXNAME other "),
        1,
        "it is still sent"
    );
    assert_eq!(d.core.snapshot().probation[0].subject, "shared");
}

#[test]
fn a_disk_that_takes_no_owed_line_sends_the_client_away_with_its_log_kept() {
    let (mut d, s) = rolling("", false);
    d.run = None;
    d.get(s, "GET USER a\r\n");
    d.disk_works = false;
    d.say(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.answer(s), None);
    d.disk_fails();
    assert!(d.ended[&s].starts_with("BYE "));
    d.pass(Duration::from_secs(3));
    d.disk_fails();
    let told = |note: &&Note| matches!(note, Note::NotWritten { .. });
    assert_eq!(d.notes.iter().filter(told).count(), 1, "once is enough");
}

/// The client may have taken the line from `log` before it was refused again.
#[test]
fn a_line_owed_again_is_not_settled_by_the_write_before() {
    let (mut d, s) = two_units(false);
    d.disk_works = false;
    d.reply_to("APPLY MAILBOX", NO);
    assert!(d.disk.last().unwrap().starts_with("write"));
    d.say(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", NO);
    d.disk_does();
    assert_eq!(d.answer(s), None, "it stands nowhere yet");
    assert_eq!(d.disk.last().unwrap(), "owe [Mailbox(b\"user.a\")]");
    d.catch_up();
    assert_eq!(d.answer(s).unwrap(), NO);
}
