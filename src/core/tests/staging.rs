//! What goes down a lane for one mailbox update.

use super::driver::{driver, limits, one_lane, rolling_within, strict, strict_within};
use super::words::{CHECKSUM, OK, file, hex, mailbox, message, missing, reserve};
use crate::core::{Limits, Mode};

#[test]
fn an_append_is_one_burst() {
    let (mut d, s) = strict();
    assert_eq!(d.ask(s, &reserve("user.a", &[1])), missing(&[1]));
    assert_eq!(d.ask(s, &message(1)), OK);
    d.say(s, &mailbox("user.a", &[1]));
    assert_eq!(d.on_lanes(), [message(1), mailbox("user.a", &[1])]);
    assert_eq!(d.answer(s), None, "strict");
    d.reply_to("APPLY MESSAGE", OK);
    assert_eq!(d.answer(s), None);
    let changed = "NO IMAP_SYNC_CHANGED Changed\r\n";
    d.reply_to("APPLY MAILBOX", changed);
    assert_eq!(d.answer(s).unwrap(), changed);
}

#[test]
fn one_message_serves_mailboxes_of_several_users() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    for name in ["user.a", "user.b", "user.b.x"] {
        d.say(s, &mailbox(name, &[1]));
        let lane = d.pools.keys().next_back().copied().expect("a lane");
        if d.count("APPLY MESSAGE") > 0 {
            d.reply_to("APPLY MESSAGE", OK);
        }
        assert_eq!(d.on_lanes(), [mailbox(name, &[1])], "on {lane:?}");
        d.reply_to("APPLY MAILBOX", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
    }
}

#[test]
fn a_mailbox_is_repeated_without_a_new_upload() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", CHECKSUM);
    assert_eq!(d.answer(s).unwrap(), CHECKSUM);
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    // After RESTART nothing is staged here any more.
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert_eq!(d.core.snapshot().staged_bytes, 0);
}

#[test]
fn until_restart_a_message_goes_along_on_each_new_lane() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    for name in ["user.a", "user.b", "user.a"] {
        d.say(s, &mailbox(name, &[1]));
        assert_eq!(d.on_lanes(), [message(1), mailbox(name, &[1])]);
        let lane = d.lane_with("APPLY MESSAGE");
        d.reply(lane, OK);
        d.reply(lane, CHECKSUM);
        assert_eq!(d.answer(s).unwrap(), CHECKSUM);
        d.lose(lane);
        d.pass(limits().reconnect);
    }
    d.ask(s, "RESTART\r\n");
    d.say(s, &mailbox("user.a", &[1]));
    assert_eq!(d.on_lanes(), [mailbox("user.a", &[1])]);
}

#[test]
fn a_copy_asks_first_and_carries_nothing_that_the_replica_has() {
    let (mut d, s) = strict();
    d.get(s, "GET MAILBOXES (user.a user.a.x)\r\n");
    let question = reserve("user.a user.a.x", &[1, 2]);
    d.ask(s, &question);
    d.ask(s, &format!("APPLY MESSAGE ({} {})\r\n", file(1), file(2)));
    let update = mailbox("user.a.x", &[1, 2]);
    d.say(s, &update);
    assert_eq!(d.on_lanes(), [question], "the MAILBOX waits");
    d.reply_to("APPLY RESERVE", &missing(&[2]));
    assert_eq!(d.on_lanes(), [message(2), update], "only what it lacks");
}

#[test]
fn large_messages_ask_first() {
    let (mut d, s) = strict_within(Limits {
        ask_bytes: 3,
        ..limits()
    });
    d.ask(s, &reserve("user.a", &[1]));
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    assert_eq!(d.count("APPLY RESERVE"), 1);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
}

/// Cyrus before 3.4 reserves for up to 1,001 mailboxes of many users at once. That is no copy, and each
/// unit must not make the replica look through all of them.
#[test]
fn a_long_reserve_over_users_is_asked_by_nobody_but_for_what_is_his() {
    let users: Vec<String> = (0..200).map(|i| format!("user.u{i}")).collect();
    let with = |more: &str| format!("{} {more}", users.join(" "));
    let (mut d, s) = strict_within(Limits {
        ask_bytes: 1000,
        ..limits()
    });
    d.get(s, &format!("GET MAILBOXES ({})\r\n", with("user.u7.x")));
    d.ask(s, &reserve(&with("user.u7.x"), &[1, 2, 3, 4]));
    for guid in [1, 3] {
        d.ask(s, &message(guid));
    }
    let large = "x".repeat(2000);
    let large = format!(
        "APPLY MESSAGE (%{{default {} 2000}}\r\n{large})\r\n",
        hex(2)
    );
    d.ask(s, &large);
    // One of a few bytes goes out at once.
    d.say(s, &mailbox("user.u5", &[1]));
    assert_eq!(d.count("APPLY RESERVE"), 0);
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    // A large one asks about its own mailbox, a copy within a user about those of the user.
    for (name, guid, with) in [
        ("user.u6", 2, "user.u6"),
        ("user.u7.x", 3, "user.u7 user.u7.x"),
    ] {
        d.say(s, &mailbox(name, &[guid]));
        assert_eq!(d.on_lanes(), [reserve(with, &[guid])]);
        d.reply_to("APPLY RESERVE", OK);
        d.reply_to("APPLY MAILBOX", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
    }
    // What did not come can be anywhere.
    d.say(s, &mailbox("user.u8", &[4]));
    assert_eq!(d.on_lanes(), [reserve(&with("user.u7.x"), &[4])]);
}

#[test]
fn what_was_reserved_and_never_came_is_asked_for_and_never_guessed() {
    let (mut d, s) = strict();
    d.ask(s, &reserve("user.a", &[1]));
    assert_eq!(d.ask(s, "APPLY MESSAGE (NIL)\r\n"), OK);
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY RESERVE", &missing(&[1]));
    assert_eq!(
        d.count("APPLY MAILBOX"),
        0,
        "it would kill the replica's process"
    );
    assert!(d.answer(s).unwrap().starts_with("NO "));
    // The replica has it after all.
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn after_a_nil_a_mailbox_leaves_only_if_the_replica_has_the_message() {
    for there in [true, false] {
        let (mut d, s) = strict();
        d.ask(s, &format!("APPLY MESSAGE ({} NIL)\r\n", file(1)));
        // A new mailbox, whose messages were not reserved.
        let update = mailbox("user.a", &[1, 2]);
        d.say(s, &update);
        assert_eq!(d.on_lanes().len(), 1);
        assert_eq!(
            d.count("APPLY RESERVE %(PARTITION default MBOXNAME (user.a)"),
            1
        );
        let lacks: &[u8] = if there { &[1] } else { &[1, 2] };
        d.reply_to("APPLY RESERVE", &missing(lacks));
        if there {
            assert_eq!(d.on_lanes(), [message(1), update]);
        } else {
            assert_eq!(d.on_lanes(), [""; 0], "it would kill the replica's process");
            assert!(d.answer(s).unwrap().starts_with("NO Message"));
        }
    }
}

#[test]
fn what_was_reserved_and_not_uploaded_is_asked_for() {
    let (mut d, s) = strict();
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &reserve("user.a", &[1]));
    d.say(s, &mailbox("user.a", &[1]));
    assert_eq!(d.on_lanes(), [reserve("user.a", &[1])]);
    d.reply_to("APPLY RESERVE", OK);
    assert_eq!(d.on_lanes(), [mailbox("user.a", &[1])]);
}

#[test]
fn records_of_known_and_of_expunged_messages_need_nothing() {
    let (mut d, s) = strict();
    d.ask(s, &message(2));
    d.say(s, &mailbox("user.a", &[9]));
    assert_eq!(d.on_lanes(), [mailbox("user.a", &[9])]);
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    d.ask(s, &reserve("user.a", &[1]));
    // The one is reserved, the other staged here.
    for guid in [1, 2] {
        let expunged = mailbox("user.a", &[guid]).replace("FLAGS ()", "FLAGS (\\Expunged)");
        d.say(s, &expunged);
        assert_eq!(d.on_lanes(), [expunged]);
        d.reply_to("APPLY MAILBOX", OK);
        d.answer(s);
    }
}

#[test]
fn the_lanes_staging_is_emptied_when_no_unit_needs_it() {
    let limits = Limits {
        lane_staged_bytes: 3,
        ..one_lane()
    };
    let mut d = driver(limits, false);
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    // b stands between its RESERVE and its MAILBOX.
    d.ask(b, &reserve("user.b user.c", &[2]));
    d.ask(b, &message(2));
    d.say(b, &mailbox("user.b", &[2]));
    d.ask(a, &message(1));
    d.say(a, &mailbox("user.a", &[1]));
    assert_eq!(d.count("RESTART"), 0);
    d.reply_to("APPLY RESERVE", &missing(&[2]));
    let sent = d.on_lanes();
    assert_eq!(d.count("RESTART"), 1, "{sent:?}");
    let [.., message_of_b, mailbox_of_b, restart] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(*message_of_b, message(2));
    assert_eq!(*mailbox_of_b, mailbox("user.b", &[2]));
    assert_eq!(*restart, "RESTART\r\n");
}

#[test]
fn an_idle_lanes_staging_is_emptied_after_a_while() {
    let (mut d, s) = strict_within(one_lane());
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", &[1]));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    assert_eq!(d.count("RESTART"), 0);
    d.pass(limits().idle_restart);
    d.reply_to("RESTART", "OK Restarting\r\n");
    // So the message must be sent again.
    d.say(s, &mailbox("user.b", &[1]));
    assert_eq!(d.on_lanes(), [message(1), mailbox("user.b", &[1])]);
}

#[test]
fn without_room_a_reserve_is_made_real_and_a_message_is_refused() {
    let (mut d, s) = strict_within(Limits {
        staged_bytes: 4,
        ..limits()
    });
    assert_eq!(d.ask(s, &message(1)), OK);
    assert!(d.ask(s, &message(2)).starts_with("NO "));
    d.say(s, &reserve("user.a", &[2]));
    d.reply_to("APPLY RESERVE", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    // What the replica has is asked for again on the unit's own lane.
    d.say(s, &mailbox("user.a", &[2]));
    assert_eq!(d.count("APPLY RESERVE"), 1);
}

#[test]
fn reservations_that_are_too_many_are_forgotten_and_asked_for() {
    let (mut d, s) = strict_within(Limits {
        noted_bytes: 2000,
        ..limits()
    });
    for guid in 1..=40 {
        d.ask(s, &reserve("user.a", &[guid]));
        assert!(d.core.snapshot().noted_bytes < 4000);
    }
    // The client had it as NIL, so only the replica can have it: it is asked, although nothing is
    // known of the reservation any more.
    d.say(s, &mailbox("user.a", &[1]));
    assert_eq!(d.count("APPLY RESERVE"), 1);
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().noted_bytes, 0);
}

#[test]
fn messages_without_a_byte_are_not_without_number() {
    let (mut d, s) = strict_within(Limits {
        noted_bytes: 2000,
        ..limits()
    });
    let empty = |guid| format!("APPLY MESSAGE (%{{default {} 0}}\r\n)\r\n", hex(guid));
    let taken = (1..=40)
        .take_while(|guid| d.ask(s, &empty(*guid)) == OK)
        .count();
    assert!((5..10).contains(&taken), "{taken}");
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.ask(s, &empty(1)), OK);
}

#[test]
fn a_session_that_asks_without_end_is_not_remembered_without_end() {
    let limits = Limits {
        noted_bytes: 2000,
        ..limits()
    };
    let (mut d, s) = rolling_within(limits, "MAILBOX user.a\n", false);
    for nth in 0..50 {
        d.say(s, &format!("GET MAILBOXES (user.a{nth} user.b{nth})\r\n"));
        for name in ["user.a", "user.b"] {
            d.reply_to(&format!("GET MAILBOXES ({name}"), OK);
        }
        assert_eq!(d.answer(s).unwrap(), OK);
        assert!(d.core.snapshot().noted_bytes < 4000);
    }
    // It is not taken for one with a cache of its own.
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
}
