//! Promise 7, row by row: what a refusal is turned into.

use syncmux::core::{Limits, Mode, SessionId};

use super::driver::{Driver, mailbox};

const CHECKSUM: &str = "NO IMAP_SYNC_CHECKSUM Checksum";
const GONE: &str = "NO IMAP_MAILBOX_NONEXISTENT Mailbox does not exist";

fn start(named: bool) -> (Driver, SessionId) {
    // What comes of a refusal that counts: LOCKED is not tried again before.
    let limits = Limits {
        locked_retries: 0,
        ..Limits::default()
    };
    let mut d = Driver::new(named, limits);
    let s = d.session(Mode::FanOut);
    (d, s)
}

/// Says a command that nothing covers, and answers it for the replica.
fn refuse(d: &mut Driver, s: SessionId, command: &str, words: &str) -> String {
    d.say(s, command);
    let begin: String = command.chars().take(20).collect();
    d.reply(d.lane_of(&begin), words);
    d.heard(s).trim_end().to_owned()
}

#[test]
fn a_group_of_one_user_gets_the_replicas_own_words() {
    for named in [true, false] {
        let (mut d, s) = start(named);
        d.asks_about(s, "user.joe user.joe.a");
        assert_eq!(
            refuse(&mut d, s, &mailbox("user.joe.a", &[]), "NO Denied"),
            "NO Denied"
        );
        assert_eq!(d.log, ["MAILBOX user.joe.a"], "owed before the answer");
    }
}

#[test]
fn checksum_is_handed_on_until_fullmailbox_was_read() {
    for named in [true, false] {
        let (mut d, s) = start(named);
        d.asks_about(s, "shared.a");
        let update = mailbox("shared.a", &[]);
        for _ in 0..2 {
            assert_eq!(refuse(&mut d, s, &update, CHECKSUM), CHECKSUM);
        }
        d.say(s, "GET FULLMAILBOX shared.a");
        d.all_ok();
        d.heard(s);
        assert!(d.log.is_empty());
        assert!(refuse(&mut d, s, &update, CHECKSUM).starts_with("OK"));
        assert_eq!(d.log, ["MAILBOX shared.a"]);
    }
}

#[test]
fn with_force_checksum_is_handed_on_once() {
    let (mut d, s) = start(true);
    d.say(s, "APPLY FORCE %()");
    d.all_ok();
    d.heard(s);
    d.asks_about(s, "shared.a");
    let update = mailbox("shared.a", &[]);
    assert_eq!(refuse(&mut d, s, &update, CHECKSUM), CHECKSUM);
    assert!(refuse(&mut d, s, &update, CHECKSUM).starts_with("OK"));
}

#[test]
fn in_a_user_sync_a_named_channel_is_told_locked_and_left_alone() {
    let (mut d, s) = start(true);
    d.run = Some((7, "MAILBOX user.other\n".to_owned()));
    for nth in 0..3 {
        d.say(s, "GET USER joe");
        d.all_ok();
        d.heard(s);
        let answer = refuse(&mut d, s, &mailbox("user.joe", &[]), "NO Denied");
        assert!(answer.starts_with("NO IMAP_MAILBOX_LOCKED "), "{answer}");
        d.ask(s, "RESTART");
        if nth > 0 {
            // While the pause lasts, without asking.
            let answer = d.ask(s, "GET USER joe");
            assert!(answer.contains("syncmux.left-alone"), "{answer}");
            d.ask(s, "RESTART");
            assert_eq!(d.owed, ["USER joe"]);
            d.pass(Limits::default().heal * 2);
        }
        assert_eq!(d.log.len(), nth + 1);
    }
}

#[test]
fn in_a_user_sync_the_default_channel_is_told_ok_and_the_user_is_owed() {
    let (mut d, s) = start(false);
    d.say(s, "GET USER joe");
    d.all_ok();
    d.heard(s);
    assert!(refuse(&mut d, s, &mailbox("user.joe", &[]), "NO Denied").starts_with("OK"));
    assert_eq!(d.log, ["USER joe"]);
    // Data can't be made up.
    let full = refuse(&mut d, s, "GET FULLMAILBOX user.joe", "NO Denied");
    assert_eq!(full, "NO Denied");
}

#[test]
fn among_shared_mailboxes_or_many_users_it_is_ok_and_owed() {
    for names in ["shared.a shared.b", "user.joe user.ann"] {
        for named in [true, false] {
            let (mut d, s) = start(named);
            d.asks_about(s, names);
            let first = names.split(' ').next().unwrap();
            assert!(refuse(&mut d, s, &mailbox(first, &[]), "NO Denied").starts_with("OK"));
            assert_eq!(d.log, [format!("MAILBOX {first}")]);
        }
    }
}

#[test]
fn unmailbox_and_unuser_are_ok_and_owed() {
    for (command, line) in [
        ("APPLY UNMAILBOX user.joe.a", "UNMAILBOX user.joe.a"),
        ("APPLY UNUSER joe", "UNUSER joe"),
    ] {
        let (mut d, s) = start(true);
        assert!(refuse(&mut d, s, command, "NO IMAP_MAILBOX_LOCKED Locked").starts_with("OK"));
        assert_eq!(d.log, [line]);
        // Done with once it is gone, however it went.
        assert_eq!(refuse(&mut d, s, command, GONE), GONE);
        assert_eq!(d.core.snapshot().probation_subjects, 0);
    }
}

#[test]
fn what_was_never_there_is_no_failure() {
    for command in [
        "APPLY UNMAILBOX user.joe.a",
        "APPLY UNUSER joe",
        "GET USER joe",
    ] {
        for named in [true, false] {
            let (mut d, s) = start(named);
            assert_eq!(refuse(&mut d, s, command, GONE), GONE);
            assert!(d.log.is_empty() && d.core.snapshot().probation_subjects == 0);
        }
    }
}

#[test]
fn locked_never_reaches_where_it_would_stick() {
    for command in [
        "APPLY SEEN %(USERID joe UNIQUEID x LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)",
        "APPLY SUB %(USERID joe MBOXNAME user.joe)",
        "GET META joe",
    ] {
        let (mut d, s) = start(true);
        let answer = refuse(&mut d, s, command, "NO IMAP_MAILBOX_LOCKED Locked");
        assert!(
            answer.starts_with("NO ") && !answer.contains("LOCKED"),
            "{answer}"
        );
    }
}

#[test]
fn a_name_that_cannot_be_written_is_never_told_ok() {
    let (mut d, s) = start(true);
    d.say(s, "GET MAILBOXES ({8}\r\nshared\na)");
    d.all_ok();
    d.heard(s);
    let update = mailbox("{8}\r\nshared\na", &[]);
    d.say(s, &update);
    d.reply(d.lane_of("APPLY MAILBOX"), "NO Denied");
    assert_eq!(d.heard(s), "NO Denied\r\n");
}

#[test]
fn a_strict_listener_gets_every_word() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.session(Mode::Strict);
    for command in [
        "APPLY UNUSER joe",
        "APPLY UNMAILBOX shared.a",
        "GET USER joe",
    ] {
        assert_eq!(refuse(&mut d, s, command, "NO Denied"), "NO Denied");
    }
    d.say(s, "APPLY UNUSER joe");
    d.lose(d.lane_of("APPLY UNUSER"));
    assert_eq!(d.heard(s), "", "as its own connection would have ended");
    assert!(d.ended.contains(&s) && d.log.is_empty());
}
