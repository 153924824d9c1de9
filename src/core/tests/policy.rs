//! What a client is told when the replica refuses (design.md, promise 7), row by row.

use super::driver::{Driver, rolling, strict};
use super::words::{CHECKSUM, GONE, LOCKED, NO, OK, SEEN, mailbox};
use crate::core::SessionId;

/// A fan-out session without a run: nothing of it is covered.
fn uncovered(named: bool) -> (Driver, SessionId) {
    let (mut d, s) = rolling("", named);
    d.run = None;
    (d, s)
}

/// The answer to a command that the replica answers with `no`.
fn refuse(d: &mut Driver, s: SessionId, text: &str, no: &str) -> String {
    d.say(s, text);
    loop {
        d.reply_to(text, no);
        if let Some(answer) = d.answer(s) {
            return answer;
        }
        // LOCKED is tried again first.
        d.wait_for(text);
    }
}

/// The same in a group that was begun by `question`.
fn refused(named: bool, question: &str, text: &str, no: &str) -> (String, Driver) {
    let (mut d, s) = uncovered(named);
    d.get(s, question);
    (refuse(&mut d, s, text, no), d)
}

#[test]
fn in_a_group_of_one_user_the_replicas_own_no_makes_the_client_promote() {
    let question = "GET MAILBOXES (user.a user.a.x)\r\n";
    for named in [false, true] {
        let (answer, d) = refused(named, question, &mailbox("user.a.x", &[]), NO);
        assert_eq!(answer, NO);
        let owed = "write [Mailbox(b\"user.a.x\")]";
        assert_eq!(d.disk, [owed], "before the answer");
    }
}

#[test]
fn a_checksum_failure_is_handed_on_until_fullmailbox_was_read() {
    let (locked, user) = ("NO IMAP_MAILBOX_LOCKED ", "write [User(b\"a\")]");
    let (of_a, of_shared) = (
        "write [Mailbox(b\"user.a\")]",
        "write [Mailbox(b\"shared\")]",
    );
    for (named, question, name, last, owed) in [
        (
            false,
            "GET MAILBOXES (user.a)\r\n",
            "user.a",
            CHECKSUM,
            of_a,
        ),
        (true, "GET MAILBOXES (user.a)\r\n", "user.a", CHECKSUM, of_a),
        (false, "GET USER a\r\n", "user.a", OK, user),
        (true, "GET USER a\r\n", "user.a", locked, user),
        (false, "GET MAILBOXES (shared)\r\n", "shared", OK, of_shared),
        (true, "GET MAILBOXES (shared)\r\n", "shared", OK, of_shared),
    ] {
        let (mut d, s) = uncovered(named);
        d.get(s, question);
        let update = mailbox(name, &[]);
        for _ in 0..2 {
            assert_eq!(refuse(&mut d, s, &update, CHECKSUM), CHECKSUM);
        }
        d.get(s, &format!("GET FULLMAILBOX {name}\r\n"));
        assert_eq!(d.disk, [""; 0], "the client repairs it");
        let answer = refuse(&mut d, s, &update, CHECKSUM);
        assert!(answer.starts_with(last), "{named} {question} {answer}");
        assert_eq!(d.disk, [owed]);
    }
}

#[test]
fn with_force_a_checksum_failure_is_handed_on_once() {
    let (mut d, s) = uncovered(true);
    d.say(s, "APPLY FORCE %()\r\n");
    d.reply_to("APPLY FORCE", OK);
    d.answer(s);
    d.get(s, "GET MAILBOXES (shared)\r\n");
    let update = mailbox("shared", &[]);
    assert_eq!(refuse(&mut d, s, &update, CHECKSUM), CHECKSUM);
    assert_eq!(refuse(&mut d, s, &update, CHECKSUM), OK);
}

#[test]
fn inside_a_user_sync_a_named_channel_defers_and_the_default_channel_goes_on() {
    let (answer, _) = refused(true, "GET USER a\r\n", &mailbox("user.a", &[]), NO);
    assert!(answer.starts_with("NO IMAP_MAILBOX_LOCKED "));
    let (mut d, s) = uncovered(false);
    d.get(s, "GET USER a\r\n");
    assert_eq!(refuse(&mut d, s, &mailbox("user.a", &[]), NO), OK);
    assert_eq!(d.disk, ["write [User(b\"a\")]"]);
    // What is read can't be made up.
    assert_eq!(refuse(&mut d, s, "GET FULLMAILBOX user.a\r\n", NO), NO);
}

#[test]
fn in_a_group_of_several_one_refusal_does_not_fail_the_others() {
    for (question, name) in [
        ("GET MAILBOXES (shared)\r\n", "shared"),
        ("GET MAILBOXES (shared other)\r\n", "shared"),
        ("GET MAILBOXES (user.a user.b)\r\n", "user.a"),
    ] {
        for named in [false, true] {
            let (answer, d) = refused(named, question, &mailbox(name, &[]), NO);
            assert_eq!(answer, OK, "{question}");
            assert_eq!(d.disk, [format!("write [Mailbox(b\"{name}\")]")]);
        }
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
        for no in [NO, LOCKED] {
            let (answer, d) = refused(true, "GET MAILBOXES (user.z)\r\n", text, no);
            assert_eq!((answer.as_str(), &d.disk[..]), (OK, &[line.to_owned()][..]));
        }
    }
}

#[test]
fn what_was_never_there_is_no_failure() {
    for text in [
        "APPLY UNMAILBOX user.a.x\r\n",
        "APPLY UNUSER a\r\n",
        "GET USER a\r\n",
    ] {
        for named in [false, true] {
            let (mut d, s) = uncovered(named);
            assert_eq!(refuse(&mut d, s, text, GONE), GONE);
            assert_eq!(d.disk, [""; 0]);
            assert_eq!(d.core.snapshot().probation_subjects, 0);
        }
    }
}

#[test]
fn locked_never_reaches_what_it_would_stick_to() {
    for text in [
        SEEN,
        "APPLY SUB %(USERID a MBOXNAME user.a)\r\n",
        "APPLY SIEVE %(USERID a FILENAME x LAST_UPDATE 1 CONTENT y)\r\n",
        "GET META a\r\n",
    ] {
        for asked_before in [false, true] {
            let (mut d, s) = uncovered(true);
            if asked_before {
                d.get(s, "GET META z\r\n");
            }
            let answer = refuse(&mut d, s, text, LOCKED);
            assert!(
                answer.starts_with("NO ") && !answer.contains("LOCKED"),
                "{text}: {answer}"
            );
        }
    }
    let (question, update) = ("GET MAILBOXES (user.a)\r\n", mailbox("user.a", &[]));
    let (answer, _) = refused(true, question, &update, LOCKED);
    assert_eq!(answer, LOCKED, "here the client defers by itself");
}

#[test]
fn what_can_not_be_owed_is_not_answered_ok() {
    let removal = "APPLY UNMAILBOX \"user.a\u{b}x\"\r\n";
    // A line break in a name.
    let name = "{8}\r\nshared\na";
    let question = format!("GET MAILBOXES ({name})\r\n");
    for (question, text) in [
        ("GET MAILBOXES (user.z)\r\n", removal),
        (&question, &mailbox(name, &[])),
    ] {
        let (mut d, s) = uncovered(true);
        d.get(s, question);
        d.say(s, text);
        d.reply_to("APPLY", NO);
        assert_eq!(d.answer(s).unwrap(), NO);
        assert_eq!(d.disk, [""; 0]);
    }
}

#[test]
fn a_strict_listener_gets_every_word() {
    let (mut d, s) = strict();
    for text in [
        "APPLY UNUSER a\r\n",
        "APPLY UNMAILBOX shared\r\n",
        "GET USER a\r\n",
    ] {
        assert_eq!(refuse(&mut d, s, text, NO), NO);
    }
    assert_eq!(d.disk, [""; 0]);
}
