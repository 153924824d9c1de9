//! Who waits for whom, which lane takes what.

use std::time::Duration;

use super::driver::{driver, limits, mailbox, message, rolling, strict};
use crate::core::{Event, Limits, Mode, SessionId};

const OK: &str = "OK success\r\n";

#[test]
fn a_get_over_many_users_goes_out_in_parallel_and_comes_back_in_order() {
    let (mut d, s) = strict();
    d.say(
        s,
        "GET MAILBOXES (user.a user.b user.a.x shared user.b.y)\r\n",
    );
    assert_eq!(d.count("GET MAILBOXES"), 3);
    let line = |name: &str| format!("* MAILBOX %(UNIQUEID i MBOXNAME {name} LAST_UID 1)\r\n");
    let both = format!("{}{}{OK}", line("user.a"), line("user.a.x"));
    d.reply_to("GET MAILBOXES (user.a user.a.x)", &both);
    // user.b does not exist.
    d.reply_to(
        "GET MAILBOXES (user.b user.b.y)",
        &format!("{}{OK}", line("user.b.y")),
    );
    assert_eq!(d.answer(s), None);
    d.reply_to("GET MAILBOXES (shared)", &format!("{}{OK}", line("shared")));
    let names = ["user.a", "user.a.x", "shared", "user.b.y"];
    let wanted: String = names.map(line).concat() + OK;
    assert_eq!(d.answer(s).unwrap(), wanted);
}

#[test]
fn one_refused_part_refuses_the_whole() {
    let (mut d, s) = strict();
    d.say(s, "GET MAILBOXES (user.a user.b)\r\n");
    d.reply_to("GET MAILBOXES (user.a)", OK);
    d.reply_to("GET MAILBOXES (user.b)", "NO IMAP_INVALID_USER Nobody\r\n");
    assert_eq!(d.answer(s).unwrap(), "NO IMAP_INVALID_USER Nobody\r\n");
}

#[test]
fn a_question_without_names_and_an_unknown_verb_wait_for_everybody_and_hold_everybody() {
    for text in [
        "GET UNIQUEIDS (x)\r\n",
        "GET NEWTHING user.z\r\n",
        "APPLY NEWTHING %(A b)\r\n",
    ] {
        let (mut d, a) = strict();
        let (b, c) = (d.open(2, Mode::Strict), d.open(3, Mode::Strict));
        d.say(a, "GET USER a\r\n");
        d.say(b, text);
        d.say(c, "GET USER c\r\n");
        assert_eq!(d.on_lanes(), ["GET USER a\r\n"], "{text}");
        d.reply_to("GET USER a", OK);
        assert_eq!(d.on_lanes(), [text]);
        d.reply_to(text, OK);
        assert_eq!(d.on_lanes(), ["GET USER c\r\n"]);
    }
}

#[test]
fn a_rename_over_two_users_waits_for_both_and_has_its_lane_to_itself() {
    let mut d = driver(
        Limits {
            lanes: 1,
            ..limits()
        },
        false,
    );
    let sessions: Vec<SessionId> = (1..=4).map(|id| d.open(id, Mode::Strict)).collect();
    d.say(sessions[0], "GET USER a\r\n");
    d.say(sessions[1], "GET USER b\r\n");
    let rename = "APPLY RENAME %(OLDMBOXNAME user.a.x NEWMBOXNAME user.b.x PARTITION default)\r\n";
    d.say(sessions[2], rename);
    assert_eq!(d.on_lanes(), ["GET USER a\r\n", "GET USER b\r\n"]);
    d.reply_to("GET USER a", OK);
    assert_eq!(d.on_lanes(), ["GET USER b\r\n"]);
    d.reply_to("GET USER b", OK);
    assert_eq!(d.on_lanes(), [rename]);
    // Nothing is put behind it.
    d.say(sessions[3], "GET USER c\r\n");
    assert_eq!(d.on_lanes(), [rename]);
    d.reply_to("APPLY RENAME", OK);
    assert_eq!(d.on_lanes(), ["GET USER c\r\n"]);
}

#[test]
fn names_of_one_user_are_one_key() {
    let (mut d, a) = strict();
    let b = d.open(2, Mode::Strict);
    d.say(a, "GET USER john.doe\r\n");
    d.say(b, "GET MAILBOXES (DELETED.user.john^doe.x.5A5A5A5A)\r\n");
    assert_eq!(d.on_lanes(), ["GET USER john.doe\r\n"]);
}

#[test]
fn lanes_are_pooled_by_what_was_enabled_on_them() {
    let (mut d, plain) = strict();
    let sieve = d.open(2, Mode::Strict);
    d.say(plain, "GET USER a\r\n");
    assert_eq!(
        d.ask(sieve, "APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n"),
        "* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n"
    );
    d.say(sieve, "GET USER b\r\n");
    let (of_a, of_b) = (d.lane_with("GET USER a"), d.lane_with("GET USER b"));
    assert!(d.pools[&of_a].capabilities.is_empty());
    assert_eq!(d.pools[&of_b].capabilities, ["SIEVE-MAILBOX"]);
    // A lane that is opened later has it as well, and the answer is known by then.
    d.lose(of_b);
    d.pass(Duration::from_secs(1));
    let of_b = d.lane_with("GET USER b");
    assert_eq!(d.pools[&of_b].capabilities, ["SIEVE-MAILBOX"]);
}

#[test]
fn a_pool_without_a_lane_gets_one_at_the_cost_of_another() {
    let mut d = driver(
        Limits {
            lanes: 1,
            ..limits()
        },
        false,
    );
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    d.say(a, "GET USER a\r\n");
    d.say(b, "APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n");
    assert_eq!(d.answer(b), None);
    d.reply_to("GET USER a", OK);
    let lane = *d.closing.first().expect("the old lane goes");
    d.event(Event::LaneLost {
        lane,
        why: "closed".into(),
        orderly: true,
    });
    assert!(d.answer(b).unwrap().starts_with("* ENABLED"));
}

#[test]
fn force_is_said_on_lanes_of_its_session_only_and_they_go_with_it() {
    let (mut d, a) = strict();
    let b = d.open(2, Mode::Strict);
    d.say(a, "APPLY FORCE %()\r\n");
    assert_eq!(d.answer(a), None, "the replica's own answer is waited for");
    d.reply_to("APPLY FORCE", OK);
    assert_eq!(d.answer(a).unwrap(), OK);
    d.say(a, "GET USER a\r\n");
    d.say(b, "GET USER b\r\n");
    let (of_a, of_b) = (d.lane_with("GET USER a"), d.lane_with("GET USER b"));
    assert_eq!(d.pools[&of_a].force, Some(a));
    assert_eq!(d.pools[&of_b].force, None);
    d.reply_to("GET USER a", OK);
    d.event(Event::SessionClosed { session: a });
    assert_eq!(d.closing, [of_a]);
}

#[test]
fn a_replica_that_does_not_know_force_is_quoted() {
    let (mut d, a) = strict();
    d.say(a, "APPLY FORCE %()\r\n");
    d.reply_to("APPLY FORCE", "NO IMAP_PROTOCOL_ERROR Protocol error\r\n");
    assert_eq!(
        d.answer(a).unwrap(),
        "NO IMAP_PROTOCOL_ERROR Protocol error\r\n"
    );
}

#[test]
fn exit_waits_for_what_was_acknowledged() {
    let (mut d, s) = rolling("USER a\n", false);
    d.say(s, "GET USER a\r\n");
    d.reply_to("GET USER a", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    assert_eq!(d.ask(s, &mailbox("user.a", None)), OK);
    d.say(s, "EXIT\r\n");
    assert!(d.ended.is_empty());
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.ended[&s], "OK Finished\r\n");
}

#[test]
fn a_read_is_repeated_on_another_lane_and_a_strict_write_ends_the_session() {
    let (mut d, s) = strict();
    d.say(s, "GET USER a\r\n");
    d.lose(d.lane_with("GET USER a"));
    d.pass(Duration::from_secs(1));
    d.reply_to("GET USER a", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.say(s, "APPLY SUB %(USERID a MBOXNAME user.a)\r\n");
    d.lose(d.lane_with("APPLY SUB"));
    assert_eq!(d.ended[&s], "", "no answer, and no BYE either");
}

#[test]
fn a_unit_that_was_not_committed_goes_to_another_lane() {
    let (mut d, s) = strict();
    let guid = super::driver::hex(1);
    d.say(
        s,
        &format!("APPLY RESERVE %(PARTITION default MBOXNAME (user.a user.b) GUID ({guid}))\r\n"),
    );
    d.answer(s);
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    d.lose(d.lane_with("APPLY RESERVE"));
    d.pass(Duration::from_secs(1));
    d.reply_to("APPLY RESERVE", &format!("* MISSING ({guid})\r\n{OK}"));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn a_replica_that_stays_away_sends_the_client_away() {
    let (mut d, s) = strict();
    d.smooth = false;
    d.say(s, "GET USER a\r\n");
    let lane = *d.pools.keys().next().expect("a lane is tried");
    d.event(Event::LaneRefused {
        lane,
        why: "refused".into(),
    });
    d.pass(limits().absence - Duration::from_secs(1));
    assert!(d.ended.is_empty());
    d.pass(Duration::from_secs(2));
    assert!(d.ended[&s].starts_with("BYE "));
}

#[test]
fn a_silent_lane_counts_as_lost() {
    let (mut d, s) = strict();
    d.say(s, "GET USER a\r\n");
    let lane = d.lane_with("GET USER a");
    d.pass(limits().answer_timeout);
    assert_eq!(d.closing, [lane]);
    d.lose(lane);
    d.pass(Duration::from_secs(1));
    assert_eq!(d.count("GET USER a"), 1);
}
