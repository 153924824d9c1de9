//! Who waits for whom.

use super::driver::{driver, one_lane, rolling, strict};
use super::words::{OK, mailbox};
use crate::core::{Mode, SessionId};

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
    let mut d = driver(one_lane(), false);
    let sessions: Vec<SessionId> = (1..=5).map(|id| d.open(id, Mode::Strict)).collect();
    d.say(sessions[0], "GET USER a\r\n");
    d.say(sessions[1], "GET USER b\r\n");
    let rename = "APPLY RENAME %(OLDMBOXNAME user.a.x NEWMBOXNAME user.b.x PARTITION default)\r\n";
    d.say(sessions[2], rename);
    // Who comes behind it waits for it.
    d.say(sessions[3], "GET USER b\r\n");
    assert_eq!(d.on_lanes(), ["GET USER a\r\n", "GET USER b\r\n"]);
    d.reply_to("GET USER a", OK);
    assert_eq!(d.on_lanes(), ["GET USER b\r\n"]);
    d.reply_to("GET USER b", OK);
    assert_eq!(d.on_lanes(), [rename]);
    // Nobody else's is put behind it on its lane.
    d.say(sessions[4], "GET USER c\r\n");
    assert_eq!(d.on_lanes(), [rename]);
    d.reply_to("APPLY RENAME", OK);
    assert_eq!((d.count("GET USER b"), d.count("GET USER c")), (1, 1));
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
fn units_of_different_users_go_out_together_and_of_one_user_one_at_a_time() {
    let (mut d, s) = rolling("USER a\nMAILBOX shared\n", false);
    d.get(s, "GET MAILBOXES (user.a user.a.x shared)\r\n");
    for name in ["user.a", "user.a.x", "shared"] {
        assert_eq!(d.ask(s, &mailbox(name, &[])), OK);
    }
    assert_eq!(d.count("APPLY MAILBOX"), 2);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ", OK);
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x ", OK);
}

#[test]
fn reads_see_writes() {
    let (mut d, s) = rolling("USER a\n", false);
    d.get(s, "GET MAILBOXES (user.a user.a.x shared)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, "RESTART\r\n");
    d.say(s, "GET MAILBOXES (user.a)\r\n");
    assert_eq!(d.count("GET"), 0);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.count("GET"), 1);
}

#[test]
fn exit_waits_for_what_was_acknowledged() {
    let (mut d, s) = rolling("USER a\n", false);
    d.get(s, "GET USER a\r\n");
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    d.say(s, "EXIT\r\n");
    assert!(d.ended.is_empty());
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.ended[&s], "OK Finished\r\n");
}
