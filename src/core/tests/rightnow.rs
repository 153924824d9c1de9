//! Sessions of imapds that sync their own commit: nobody waits longer than the limit, and what the
//! replica has not got by then stands in the sync log before the answer goes out.

use std::time::Duration;

use super::driver::{Driver, RUN, driver_of, limits};
use super::words::{
    CHECKSUM, GONE, LOCKED, NO, OK, SEEN, answer, ask_for, mailbox, message, missing, reserve,
    update,
};
use crate::core::{Event, LaneId, Limits, Mode, Note, SessionId};

pub(super) const LIMIT: Duration = Duration::from_secs(5);
pub(super) const PUT_OFF: &str = "NO IMAP_MAILBOX_LOCKED Put off: the replica has not got it\r\n";
const FULL: &str = "GET FULLMAILBOX user.a\r\n";

pub(super) fn right_now() -> (Driver, SessionId) {
    right_now_within(limits())
}

pub(super) fn right_now_within(limits: Limits) -> (Driver, SessionId) {
    let limits = Limits {
        rightnow: Some(LIMIT),
        ..limits
    };
    let mut d = driver_of(limits, true, true);
    let s = d.open(1, Mode::RightNow);
    (d, s)
}

/// What has gone into `log`, in the order written.
pub(super) fn written(d: &Driver) -> Vec<&str> {
    let lines = d.disk.iter();
    lines
        .filter_map(|order| order.strip_prefix("write "))
        .collect()
}

/// An append up to the update of the mailbox, which is under way.
pub(super) fn append(d: &mut Driver, s: SessionId, name: &str) {
    d.get(s, &ask_for(name));
    assert_eq!(d.ask(s, &reserve(name, &[1])), missing(&[1]));
    assert_eq!(d.ask(s, &message(1)), OK);
    d.say(s, &mailbox(name, &[1]));
}

/// Two lanes are open and idle.
pub(super) fn two_lanes(d: &mut Driver) {
    let two = [d.open(7, Mode::Strict), d.open(8, Mode::Strict)];
    d.all_ask(&two);
    d.all_ok();
    two.iter().for_each(|s| drop(d.answer(*s)));
}

/// The limit goes by, and meanwhile the replica answers somebody else.
fn heard_meanwhile(d: &mut Driver) {
    d.pass(Duration::from_secs(3));
    let other = d.open(9, Mode::Strict);
    d.say(other, "GET USER other\r\n");
    d.reply_to("GET USER other", OK);
    d.pass(Duration::from_secs(2));
}

pub(super) fn put_off(d: &Driver) -> Vec<&'static str> {
    let why = |note: &Note| match note {
        Note::PutOff { why, .. } => Some(*why),
        _ => None,
    };
    d.notes.iter().filter_map(why).collect()
}

#[test]
fn an_append_costs_a_question_and_a_burst() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    assert_eq!(d.count("APPLY MESSAGE"), 1);
    assert_eq!(d.count("APPLY MAILBOX"), 1, "in one burst");
    assert_eq!(d.answer(s), None, "answered before the replica was");
    d.all_ok();
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert_eq!(written(&d), [""; 0]);
}

#[test]
fn the_line_stands_before_the_answer_goes_out() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    d.disk_works = false;
    d.pass(LIMIT - Duration::from_millis(1));
    assert_eq!((d.answer(s), written(&d).len()), (None, 0));
    d.pass(Duration::from_millis(1));
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]"]);
    assert_eq!(d.answer(s), None, "answered before the line stood");
    d.disk_does();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(put_off(&d), ["limit"]);
}

/// Four of five seconds went by with the question.
#[test]
fn the_limit_is_on_the_whole_commit() {
    let (mut d, s) = right_now();
    d.say(s, &ask_for("user.a"));
    d.pass(Duration::from_secs(4));
    d.reply_to("GET", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.say(s, &mailbox("user.a", &[]));
    d.pass(Duration::from_millis(999));
    assert_eq!(d.answer(s), None);
    d.pass(Duration::from_millis(1));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
}

/// What imapd never got to send: it goes on after LOCKED, and each piece has its line at once.
#[test]
fn the_rest_of_the_commit_gets_its_lines_at_once() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a"));
    // Others are answered meanwhile: the replica is not silent.
    two_lanes(&mut d);
    d.say(s, &mailbox("user.a", &[]));
    heard_meanwhile(&mut d);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert_eq!(d.ask(s, SEEN), PUT_OFF);
    assert_eq!(
        d.ask(s, "APPLY SUB %(USERID a MBOXNAME user.a.x)\r\n"),
        PUT_OFF
    );
    assert_eq!(d.ask(s, "APPLY QUOTA %(ROOT user.a LIMIT 2)\r\n"), PUT_OFF);
    assert_eq!(d.ask(s, "APPLY UNMAILBOX user.a.y\r\n"), PUT_OFF);
    assert_eq!(d.ask(s, "GET META a\r\n"), PUT_OFF);
    assert_eq!(d.ask(s, "GET USER a\r\n"), PUT_OFF);
    assert_eq!(
        written(&d),
        [
            "[Mailbox(b\"user.a\")]",
            "[Seen(b\"a\", b\"id\")]",
            "[Sub(b\"a\", b\"user.a.x\")]",
            "[Quota(b\"user.a\")]",
            "[Unmailbox(b\"user.a.y\")]",
            "[Meta(b\"a\")]",
            "[User(b\"a\")]",
        ]
    );
    // The next commit is asked for real.
    d.pass(Duration::from_secs(1));
    d.get(s, &ask_for("user.c"));
}

#[test]
fn every_mailbox_of_the_group_has_its_line() {
    let (mut d, s) = right_now();
    d.say(s, &ask_for("user.a user.a.x"));
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let lines = "[Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]";
    assert_eq!(written(&d), [lines]);
}

#[test]
fn a_user_sync_owes_the_user() {
    let (mut d, s) = right_now();
    d.get(s, "GET USER a\r\n");
    d.say(s, &mailbox("user.a", &[]));
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(written(&d), ["[User(b\"a\")]"]);
}

#[test]
fn a_meta_sync_owes_all_of_it() {
    let (mut d, s) = right_now();
    d.get(s, "GET META a\r\n");
    d.say(s, SEEN);
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(written(&d), ["[Meta(b\"a\"), Seen(b\"a\", b\"id\")]"]);
}

/// One commit waits for a replica that is silent; the next ones do not.
#[test]
fn a_silent_replica_is_waited_for_once() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    d.lanes_open = false;
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let other = d.open(2, Mode::RightNow);
    assert_eq!(d.ask(other, &ask_for("user.b")), PUT_OFF);
    assert_eq!(put_off(&d), ["limit", "away"]);
    // It answers what was on its lane: it is there again.
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    d.ask(other, "RESTART\r\n");
    d.get(other, &ask_for("user.b"));
}

/// The lanes that there are stay silent: only a new one tells.
#[test]
fn another_lane_finds_out_that_the_replica_is_back() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a"));
    d.say(s, &mailbox("user.a", &[]));
    d.lanes_open = false;
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    d.refuse_lanes();
    let other = d.open(2, Mode::RightNow);
    assert_eq!(d.ask(other, &ask_for("user.b")), PUT_OFF);
    d.lanes_open = true;
    d.pass(Duration::from_secs(16));
    d.ask(other, "RESTART\r\n");
    d.get(other, &ask_for("user.b"));
}

#[test]
fn a_replica_that_is_known_to_be_away_is_not_waited_for() {
    let (mut d, s) = right_now();
    d.lanes_open = false;
    d.say(s, &ask_for("user.a"));
    d.refuse_lanes();
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let other = d.open(2, Mode::RightNow);
    let capabilities = super::words::CAPABILITIES;
    assert_eq!(d.ask(other, capabilities), "NO The replica is away\r\n");
    assert_eq!(d.ask(other, &ask_for("user.b")), PUT_OFF);
    assert_eq!(written(&d).len(), 2);
    // Nothing is queued, and yet it is noticed when the replica is back.
    d.refuse_lanes();
    d.lanes_open = true;
    d.pass(Duration::from_secs(16));
    d.ask(other, "RESTART\r\n");
    d.get(other, &ask_for("user.b"));
}

#[test]
fn capabilities_are_not_waited_for_either() {
    let (mut d, _) = right_now();
    d.lanes_open = false;
    let s = d.open(2, Mode::RightNow);
    d.say(s, super::words::CAPABILITIES);
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), "NO The replica is away\r\n");
    assert_eq!(written(&d), [""; 0]);
}

/// It is nobody's; above all it is not the answer to the next command.
#[test]
fn a_late_answer_does_no_harm() {
    let (mut d, s) = right_now();
    two_lanes(&mut d);
    d.say(s, &ask_for("user.a"));
    heard_meanwhile(&mut d);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    d.ask(s, "RESTART\r\n");
    d.say(s, &ask_for("user.c"));
    d.reply_to("GET MAILBOXES (user.a)", &answer(&["user.a"], 1));
    assert_eq!(d.answer(s), None, "the answer to another question");
    d.reply_to("GET MAILBOXES (user.c)", &answer(&["user.c"], 2));
    assert_eq!(d.answer(s).unwrap(), answer(&["user.c"], 2));
}

#[test]
fn later_units_of_the_user_wait_for_the_one_that_was_given_up() {
    let (mut d, s) = right_now();
    two_lanes(&mut d);
    append(&mut d, s, "user.a");
    heard_meanwhile(&mut d);
    let other = d.open(2, Mode::Strict);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    d.say(other, &mailbox("user.a.x", &[]));
    assert_eq!(d.count("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x"), 0);
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.count("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x"), 1);
}

/// What did not come to a lane is not sent any more.
#[test]
fn what_waits_behind_others_is_not_sent_when_it_was_given_up() {
    let (mut d, s) = right_now();
    two_lanes(&mut d);
    let first = d.open(2, Mode::Strict);
    d.say(first, "GET USER a\r\n");
    d.say(s, SEEN);
    heard_meanwhile(&mut d);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    d.reply_to("GET USER a", OK);
    assert_eq!(d.count("APPLY SEEN"), 0);
}

/// It may still be running on the replica, and carries no version.
#[test]
fn a_seen_on_a_lost_lane_is_written_once_more() {
    let (mut d, s) = right_now();
    d.say(s, SEEN);
    d.lose(d.lane_with("APPLY SEEN"));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    let seen = "[Seen(b\"a\", b\"id\")]";
    assert_eq!(written(&d), [seen]);
    d.pass(limits().in_doubt);
    assert_eq!(written(&d), [seen, seen]);
    assert_eq!(put_off(&d), ["lost"]);
}

#[test]
fn the_same_where_it_was_given_up_before() {
    let (mut d, s) = right_now();
    d.say(s, SEEN);
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    d.lose(d.lane_with("APPLY SEEN"));
    d.pass(limits().in_doubt);
    let seen = "[Seen(b\"a\", b\"id\")]";
    assert_eq!(written(&d), [seen, seen]);
}

/// A connection that is closed is of no use to imapd for 30 seconds.
#[test]
fn a_lost_lane_does_not_end_the_session() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    d.lose(d.lane_of("APPLY MAILBOX"));
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert!(d.ended.is_empty());
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]"]);
    d.ask(s, "RESTART\r\n");
    d.pass(Duration::from_secs(1));
    d.get(s, &ask_for("user.a"));
}

#[test]
fn a_session_that_ends_in_the_middle_owes_its_group() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a user.a.x"));
    d.event(Event::SessionClosed { session: s });
    let lines = "[Mailbox(b\"user.a\"), Mailbox(b\"user.a.x\")]";
    assert_eq!(written(&d), [lines]);
    assert_eq!(put_off(&d), ["ended"]);
}

#[test]
fn a_session_that_ends_while_it_waits_owes_what_it_waited_for() {
    let (mut d, s) = right_now();
    d.say(s, SEEN);
    d.event(Event::SessionClosed { session: s });
    assert_eq!(written(&d), ["[Seen(b\"a\", b\"id\")]"]);
}

#[test]
fn a_session_that_ends_between_two_commits_owes_nothing() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    d.all_ok();
    d.answer(s).unwrap();
    d.ask(s, "RESTART\r\n");
    d.say(s, "EXIT\r\n");
    assert_eq!(written(&d), [""; 0]);
}

/// Its own client repairs that: the refusal is handed on. The line is there in case it does not.
#[test]
fn a_refusal_of_one_users_mailboxes_is_handed_on_and_owed() {
    let (mut d, s) = right_now();
    append(&mut d, s, "user.a");
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.answer(s).unwrap(), NO);
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]"]);
    assert_eq!(put_off(&d), ["refused"]);
}

/// NO would make the client forget the rest of its commit.
#[test]
fn a_refusal_that_would_end_the_commit_puts_it_off() {
    for (group, command, lines) in [
        ("shared", mailbox("shared", &[]), "[Mailbox(b\"shared\")]"),
        ("", SEEN.to_owned(), "[Seen(b\"a\", b\"id\")]"),
        ("", "APPLY UNUSER a\r\n".to_owned(), "[Unuser(b\"a\")]"),
        (
            "",
            "APPLY QUOTA %(ROOT user.a LIMIT 2)\r\n".to_owned(),
            "[Quota(b\"user.a\")]",
        ),
        ("", "GET META a\r\n".to_owned(), "[Meta(b\"a\")]"),
        (
            "",
            "GET ANNOTATION user.a\r\n".to_owned(),
            "[Annotation(b\"user.a\")]",
        ),
        ("", "GET USER a\r\n".to_owned(), "[User(b\"a\")]"),
        ("", ask_for("shared"), "[Mailbox(b\"shared\")]"),
    ] {
        let (mut d, s) = right_now();
        if !group.is_empty() {
            d.get(s, &ask_for(group));
        }
        d.say(s, &command);
        let sent = d.on_lanes()[0].to_owned();
        d.reply_to(&sent, NO);
        assert_eq!(d.answer(s).unwrap(), PUT_OFF, "{command}");
        assert_eq!(written(&d), [lines], "{command}");
    }
}

#[test]
fn what_is_not_there_any_more_is_no_refusal() {
    let (mut d, s) = right_now();
    d.say(s, "APPLY UNMAILBOX user.a.x\r\n");
    d.reply_to("APPLY UNMAILBOX", GONE);
    assert_eq!(d.answer(s).unwrap(), GONE);
    assert_eq!(written(&d), [""; 0]);
}

/// The first makes the client fetch FULLMAILBOX and repair; after that it is a refusal.
#[test]
fn a_checksum_runs_the_clients_own_repair() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a"));
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", CHECKSUM);
    assert_eq!(d.answer(s).unwrap(), CHECKSUM);
    assert_eq!(written(&d), [""; 0]);
    d.say(s, FULL);
    d.reply_to("GET FULLMAILBOX", &answer(&["user.a"], 1));
    d.answer(s).unwrap();
    d.say(s, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", CHECKSUM);
    assert_eq!(d.answer(s).unwrap(), CHECKSUM);
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]"]);
}

/// A line that was on its way may have been taken before this change was made.
#[test]
fn a_line_under_way_is_written_again_for_a_later_commit() {
    let (mut d, s) = right_now();
    d.disk_works = false;
    d.say(s, SEEN);
    d.lanes_open = false;
    d.pass(LIMIT);
    let other = d.open(2, Mode::RightNow);
    d.say(other, SEEN);
    assert_eq!(d.answer(other), None);
    d.disk_does();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(d.answer(other), None, "its line is not written");
    d.disk_does();
    assert_eq!(d.answer(other).unwrap(), PUT_OFF);
    assert_eq!(written(&d).len(), 2);
}

/// The client writes what it puts off by itself as well; here it is tried again.
#[test]
fn a_full_disk_keeps_nobody_waiting_and_the_line_is_kept() {
    let (mut d, s) = right_now();
    d.disk_works = false;
    d.say(s, &ask_for("user.a user.a.x"));
    d.pass(LIMIT);
    d.disk_fails();
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert!(d.ended.is_empty());
    assert_eq!(d.core.snapshot().owed_lines, 2);
    d.pass(Duration::from_secs(2));
    d.disk_does();
    assert_eq!(written(&d).len(), 2);
    assert_eq!(d.core.snapshot().owed_lines, 0);
}

/// A BYE would make it forget what it has not sent yet.
#[test]
fn a_drain_lets_a_commit_come_to_its_end_with_lines() {
    let (mut d, s) = right_now();
    let idle = d.open(2, Mode::RightNow);
    d.get(s, &ask_for("user.a"));
    d.event(Event::Drain);
    assert!(d.ended.contains_key(&idle));
    assert!(!d.ended.contains_key(&s) && !d.drained);
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), PUT_OFF);
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert!(d.ended.contains_key(&s));
    // It was sent away before it could say what else there was.
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]", "[Meta(b\"a\")]"]);
    d.close_lanes();
    assert!(d.drained);
}

#[test]
fn the_end_of_the_grace_period_owes_what_is_under_way() {
    let (mut d, s) = right_now_within(Limits {
        drain_grace: Duration::from_secs(2),
        ..limits()
    });
    append(&mut d, s, "user.a");
    d.event(Event::Drain);
    d.pass(Duration::from_secs(2));
    assert!(d.ended.contains_key(&s) && d.drained);
    assert!(written(&d).concat().contains("Mailbox(b\"user.a\")"));
}

/// It holds the lock of the user that it is at, and imapd waits for that.
#[test]
fn a_rolling_client_does_not_wait_for_a_silent_replica() {
    let (mut d, _) = right_now();
    let rolling = d.open_by(2, Mode::FanOut, true);
    d.run = Some(RUN);
    d.log = "MAILBOX user.a\n";
    d.lanes_open = false;
    d.event(Event::Tick);
    d.lanes_open = true;
    d.say(rolling, &ask_for("user.a"));
    d.lanes_open = false;
    for _ in 0..6 {
        d.refuse_lanes();
        d.pass(Duration::from_secs(2));
    }
    assert_eq!(d.answer(rolling).unwrap(), PUT_OFF);
    assert_eq!(written(&d), ["[Mailbox(b\"user.a\")]"]);
}

/// A question may take minutes: a lane beside it shows that the replica is there.
#[test]
fn a_rolling_client_waits_for_a_replica_that_takes_its_time() {
    let (mut d, _) = right_now();
    let rolling = d.open_by(2, Mode::FanOut, true);
    d.say(rolling, "GET USER a\r\n");
    for _ in 0..60 {
        d.pass(Duration::from_secs(2));
        while d.count("NOOP") > 0 {
            d.reply_to("NOOP", OK);
        }
        assert_eq!(d.answer(rolling), None);
    }
    assert!(d.sent.len() <= 2, "lane after lane: {:?}", d.sent);
    d.reply_to("GET USER", OK);
    assert_eq!(d.answer(rolling).unwrap(), OK);
    assert_eq!(written(&d), [""; 0]);
}

/// One lane hangs and the others answer. What an imapd has given up is still before the client, which
/// holds the lock of the user.
#[test]
fn a_rolling_client_does_not_wait_behind_what_was_given_up() {
    for mode in [Mode::FanOut, Mode::Strict] {
        let (mut d, s) = right_now();
        two_lanes(&mut d);
        append(&mut d, s, "user.a");
        d.pass(LIMIT);
        assert_eq!(d.answer(s).unwrap(), PUT_OFF);
        let rolling = d.open_by(2, mode, true);
        d.say(rolling, &ask_for("user.a"));
        // Whether it is there at all.
        d.reply_to("NOOP", OK);
        heard_meanwhile(&mut d);
        assert_eq!(d.answer(rolling).unwrap(), PUT_OFF, "{mode:?}");
        assert!(written(&d).concat().contains("Mailbox(b\"user.a\")"));
        // Another user's question goes on.
        d.get(rolling, &ask_for("user.b"));
        assert_eq!(d.count("APPLY MAILBOX"), 1);
    }
}

/// A lane with nothing to do is asked before another one is opened.
#[test]
fn an_idle_lane_tells_whether_the_replica_is_there() {
    let (mut d, s) = right_now();
    two_lanes(&mut d);
    d.say(s, SEEN);
    d.pass(LIMIT);
    assert_eq!(d.answer(s).unwrap(), PUT_OFF);
    assert_eq!(d.count("NOOP"), 1);
    d.reply_to("NOOP", OK);
    let other = d.open(2, Mode::RightNow);
    d.get(other, &ask_for("user.b"));
    assert!(d.opening.is_empty());
}

/// One-shot runs may wait, and so do rolling clients of channels without such a listener.
#[test]
fn others_are_not_hurried() {
    let (mut d, _) = right_now();
    let strict = d.open(2, Mode::Strict);
    d.say(strict, "GET USER a\r\n");
    d.pass(Duration::from_secs(60));
    assert_eq!(d.answer(strict), None);
    let mut d = driver_of(limits(), true, true);
    let rolling = d.open_by(1, Mode::FanOut, true);
    d.say(rolling, "GET USER a\r\n");
    d.pass(Duration::from_secs(60));
    assert_eq!(d.answer(rolling), None);
}

/// What the replica has locked is tried again as for everybody, within the limit.
#[test]
fn a_lock_on_the_replica_is_tried_again_and_then_put_off() {
    let (mut d, s) = right_now();
    d.get(s, &ask_for("user.a"));
    d.say(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.wait_for("APPLY MAILBOX");
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(written(&d), [""; 0]);
}

/// Each imapd has its own session; they share the lanes.
#[test]
fn many_sessions_share_the_lanes() {
    let (mut d, _) = right_now();
    let sessions: Vec<SessionId> = (10..110).map(|id| d.open(id, Mode::RightNow)).collect();
    for s in &sessions {
        d.say(*s, &ask_for(&format!("user.u{}", s.0)));
    }
    let lanes: Vec<LaneId> = d.busy_lanes();
    assert_eq!(lanes.len(), limits().lanes);
    d.all_ok();
    assert!(sessions.iter().all(|s| d.answers[s] == [OK]));
}
