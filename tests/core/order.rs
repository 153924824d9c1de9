//! Order, splitting, staging: what goes to the replica, and when.

use syncmux::core::{Limits, Mode};

use super::driver::{Driver, file, mailbox, message};

fn strict() -> (Driver, syncmux::core::SessionId) {
    let mut driver = Driver::new(true, Limits::default());
    let session = driver.session(Mode::Strict);
    (driver, session)
}

#[test]
fn uniqueids_waits_for_everybody_and_holds_everybody() {
    let (mut d, a) = strict();
    let (b, c) = (d.session(Mode::Strict), d.session(Mode::Strict));
    d.say(a, "GET USER joe");
    d.say(b, "GET UNIQUEIDS (x)");
    d.say(c, "GET USER ann");
    assert_eq!(d.sent().len(), 1);
    d.reply(d.lane_of("GET USER joe"), "OK success");
    assert_eq!(d.sent().len(), 1);
    d.reply(d.lane_of("GET UNIQUEIDS"), "OK success");
    d.lane_of("GET USER ann");
}

#[test]
fn a_rename_over_two_users_waits_for_both_and_runs_alone() {
    let limits = Limits {
        lanes: 1,
        ..Limits::default()
    };
    let mut d = Driver::new(true, limits);
    let s: Vec<_> = (0..5).map(|_| d.session(Mode::Strict)).collect();
    d.say(s[0], "GET USER joe");
    d.say(s[1], "GET USER ann");
    let rename =
        "APPLY RENAME %(OLDMBOXNAME user.joe.a NEWMBOXNAME user.ann.a PARTITION p UIDVALIDITY 1)";
    d.say(s[2], rename);
    d.say(s[3], "GET USER ann");
    d.reply(d.lane_of("GET USER joe"), "OK success");
    assert_eq!(d.sent().len(), 1);
    d.reply(d.lane_of("GET USER ann"), "OK success");
    let lane = d.lane_of("APPLY RENAME");
    assert_eq!(d.lanes[&lane].requests.len(), 1);
    d.say(s[4], "GET USER bob");
    assert_eq!(d.sent().len(), 1, "nothing behind a RENAME");
    d.reply(lane, "OK success");
    d.lane_of("GET USER ann");
    d.lane_of("GET USER bob");
}

#[test]
fn many_users_are_asked_at_once_and_answered_in_the_order_asked() {
    let (mut d, s) = strict();
    d.say(s, "GET MAILBOXES (user.joe user.ann user.joe.a shared)");
    let line = |name: &str| format!("* MAILBOX %(UNIQUEID {name} MBOXNAME {name})\r\n");
    assert_eq!(d.sent().len(), 3);
    while let Some((lane, text)) = d.sent().first().cloned() {
        let names = text[15..text.len() - 1].split(' ');
        // One of them does not exist.
        let lines: String = names.filter(|n| *n != "user.joe").map(line).collect();
        d.reply(lane, &format!("{lines}OK success"));
    }
    let want = [line("user.ann"), line("user.joe.a"), line("shared")].concat();
    assert_eq!(d.heard(s), format!("{want}OK success\r\n"));
}

#[test]
fn a_strict_append_is_one_burst() {
    let (mut d, s) = strict();
    d.asks_about(s, "user.joe");
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.joe) GUID ({}))",
        message(1)
    );
    let missing = format!("* MISSING ({})\r\nOK success\r\n", message(1));
    assert_eq!(d.ask(s, &reserve), missing);
    assert!(
        d.ask(s, &format!("APPLY MESSAGE ({})", file(1)))
            .starts_with("OK")
    );
    d.say(s, &mailbox("user.joe", &[1]));
    let sent = d.sent();
    assert_eq!(sent.len(), 2, "MESSAGE and MAILBOX without waiting");
    assert!(d.waits(s));
    d.reply(sent[0].0, "OK success");
    assert!(d.waits(s));
    d.reply(sent[0].0, "NO IMAP_SYNC_CHANGED Changed");
    assert_eq!(d.heard(s), "NO IMAP_SYNC_CHANGED Changed\r\n");
    assert!(d.ask(s, "RESTART").starts_with("OK"));
    assert_eq!(d.ask(s, "EXIT"), "OK Finished\r\n");
}

#[test]
fn one_message_serves_several_users_and_a_repeat() {
    let (mut d, s) = strict();
    d.ask(s, &format!("APPLY MESSAGE ({})", file(1)));
    for name in ["user.joe", "user.ann", "user.joe"] {
        d.say(s, &mailbox(name, &[1]));
        let lane = d.lane_of("APPLY MESSAGE");
        d.reply(lane, "OK success");
        assert!(
            d.reply(lane, "NO IMAP_SYNC_CHECKSUM Checksum")
                .contains(name)
        );
        assert!(d.heard(s).contains("CHECKSUM"));
        d.lose(lane);
        d.pass(Limits::default().reconnect);
    }
    assert!(d.ask(s, "RESTART").starts_with("OK"));
    // After RESTART it is not there any more, and the RECORD needs nothing.
    d.say(s, &mailbox("user.joe", &[1]));
    assert_eq!(d.sent().len(), 1);
}

#[test]
fn what_is_staged_on_the_lane_is_not_sent_again() {
    let limits = Limits {
        lanes: 1,
        ..Limits::default()
    };
    let mut d = Driver::new(true, limits);
    let s = d.session(Mode::Strict);
    d.ask(s, &format!("APPLY MESSAGE ({})", file(1)));
    d.say(s, &mailbox("user.joe", &[1]));
    d.all_ok();
    d.heard(s);
    d.say(s, &mailbox("user.ann", &[1]));
    assert_eq!(d.sent().len(), 1);
    d.all_ok();
    d.heard(s);
    // Idle: the lane's staging is emptied, and the message must be sent again.
    d.pass(Limits::default().idle_restart);
    assert_eq!(d.reply(d.lane_of("RESTART"), "OK Restarting"), "RESTART");
    d.say(s, &mailbox("user.bob", &[1]));
    assert_eq!(d.sent().len(), 2);
}

#[test]
fn a_copy_is_asked_for_and_only_what_is_missing_is_sent() {
    let (mut d, s) = strict();
    d.asks_about(s, "user.joe user.joe.a");
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.joe user.joe.a) GUID ({} {}))",
        message(1),
        message(2)
    );
    d.ask(s, &reserve);
    d.ask(s, &format!("APPLY MESSAGE ({} {})", file(1), file(2)));
    d.say(s, &mailbox("user.joe.a", &[1, 2]));
    let lane = d.lane_of("APPLY RESERVE");
    assert_eq!(d.sent().len(), 1, "the MAILBOX waits for the answer");
    let missing = format!("* MISSING ({})\r\nOK success", message(2));
    assert_eq!(d.reply(lane, &missing), reserve);
    let sent = d.sent();
    assert!(sent[0].1.contains(&message(2)) && !sent[0].1.contains(&message(1)));
    assert!(sent[1].1.starts_with("APPLY MAILBOX"));
}

#[test]
fn after_nil_the_mailbox_leaves_only_if_the_replica_has_the_message() {
    for there in [true, false] {
        let (mut d, s) = strict();
        d.ask(s, &format!("APPLY MESSAGE ({} NIL)", file(1)));
        d.say(s, &mailbox("user.joe", &[1, 2]));
        let lane = d.lane_of("APPLY RESERVE");
        assert_eq!(d.sent().len(), 1);
        let missing = if there { &[1][..] } else { &[1, 2] };
        let missing: Vec<_> = missing.iter().map(|n| message(*n)).collect();
        d.reply(
            lane,
            &format!("* MISSING ({})\r\nOK success", missing.join(" ")),
        );
        if there {
            assert_eq!(d.sent().len(), 2);
        } else {
            assert!(d.sent().is_empty(), "the MAILBOX would kill the replica");
            assert!(d.heard(s).starts_with("NO Message"));
        }
    }
}

#[test]
fn what_was_reserved_and_did_not_come_is_asked_for() {
    let (mut d, s) = strict();
    d.asks_about(s, "user.joe");
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.joe) GUID ({}))",
        message(1)
    );
    d.ask(s, &reserve);
    d.say(s, &mailbox("user.joe", &[1]));
    let lane = d.lane_of("APPLY RESERVE");
    d.reply(lane, "OK success");
    d.lane_of("APPLY MAILBOX");
}

#[test]
fn records_that_need_no_message_go_out_at_once() {
    let (mut d, s) = strict();
    d.ask(s, &format!("APPLY MESSAGE ({})", file(1)));
    d.say(s, &mailbox("user.joe", &[5]));
    assert_eq!(d.sent().len(), 1);
    d.all_ok();
    d.heard(s);
    // Expunged: the message is not needed although it is staged.
    let expunged = mailbox("user.ann", &[1]).replace("FLAGS ()", "FLAGS (\\Expunged)");
    d.say(s, &expunged);
    assert_eq!(d.sent().len(), 1);
}

#[test]
fn without_room_reserve_is_real_and_message_refused() {
    let limits = Limits {
        staged_bytes: 4,
        ..Limits::default()
    };
    let mut d = Driver::new(true, limits);
    let s = d.session(Mode::Strict);
    assert!(
        d.ask(s, &format!("APPLY MESSAGE ({})", file(1)))
            .starts_with("OK")
    );
    assert!(
        d.ask(s, &format!("APPLY MESSAGE ({})", file(2)))
            .starts_with("NO")
    );
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.joe) GUID ({}))",
        message(2)
    );
    d.say(s, &reserve);
    d.reply(d.lane_of("APPLY RESERVE"), "OK success");
    assert_eq!(d.heard(s), "OK success\r\n");
    // Found there: the unit asks again on its own lane.
    d.say(s, &mailbox("user.joe", &[2]));
    d.lane_of("APPLY RESERVE");
}

#[test]
fn limits_make_the_client_wait_and_exit_waits_for_all() {
    let limits = Limits {
        unconfirmed_users: 1,
        ..Limits::default()
    };
    let mut d = Driver::new(true, limits);
    let s = d.rolling("MAILBOX user.joe\nMAILBOX user.ann");
    d.asks_about(s, "user.joe user.ann");
    assert!(d.ask(s, &mailbox("user.joe", &[])).starts_with("OK"));
    assert!(d.ask(s, &mailbox("user.joe", &[])).starts_with("OK"));
    d.say(s, &mailbox("user.ann", &[]));
    assert!(d.waits(s));
    d.all_ok();
    assert!(d.heard(s).starts_with("OK"));
    assert!(d.ask(s, &mailbox("user.joe", &[])).starts_with("OK"));
    d.say(s, "EXIT");
    assert!(d.waits(s));
    d.all_ok();
    assert_eq!(d.heard(s), "OK Finished\r\n");
}

#[test]
fn no_restart_while_a_unit_needs_what_is_staged() {
    let limits = Limits {
        lanes: 1,
        lane_staged_bytes: 2,
        ..Limits::default()
    };
    let mut d = Driver::new(true, limits);
    let (s, other) = (d.session(Mode::Strict), d.session(Mode::Strict));
    d.ask(s, &format!("APPLY MESSAGE ({} NIL)", file(1)));
    d.ask(other, &format!("APPLY MESSAGE ({})", file(3)));
    d.say(s, &mailbox("user.joe", &[1, 2]));
    d.say(other, &mailbox("user.ann", &[3]));
    let lane = d.lane_of("APPLY RESERVE");
    d.reply(lane, &format!("* MISSING ({})\r\nOK success", message(1)));
    let sent: Vec<String> = d.sent().into_iter().map(|(_, text)| text).collect();
    let place = |begin: &str| {
        sent.iter()
            .rposition(|text| text.starts_with(begin))
            .unwrap()
    };
    assert!(sent[place("APPLY MAILBOX")].contains("user.joe"));
    assert_eq!(place("RESTART"), sent.len() - 1, "{sent:?}");
    assert_eq!(sent.iter().filter(|text| *text == "RESTART").count(), 1);
}
