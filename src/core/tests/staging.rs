//! What goes down a lane for one mailbox update.

use super::driver::{Driver, driver, hex, limits, mailbox, message, strict};
use crate::core::{Limits, Mode, SessionId};

const OK: &str = "OK success\r\n";

fn reserve(d: &mut Driver, s: SessionId, names: &str, guids: &[u8]) -> String {
    let guids: Vec<String> = guids.iter().map(|guid| hex(*guid)).collect();
    d.ask(
        s,
        &format!(
            "APPLY RESERVE %(PARTITION default MBOXNAME ({names}) GUID ({}))\r\n",
            guids.join(" ")
        ),
    )
}

#[test]
fn an_append_is_one_burst() {
    let (mut d, s) = strict();
    assert_eq!(
        reserve(&mut d, s, "user.a", &[1]),
        format!("* MISSING ({})\r\n{OK}", hex(1))
    );
    assert_eq!(d.ask(s, &message(1)), OK);
    d.say(s, &mailbox("user.a", Some(1)));
    assert_eq!(d.on_lanes(), [message(1), mailbox("user.a", Some(1))]);
    assert_eq!(d.answer(s), None, "strict");
}

#[test]
fn one_message_serves_mailboxes_of_several_users() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    for name in ["user.a", "user.b", "user.b.x"] {
        d.say(s, &mailbox(name, Some(1)));
        let lane = d.pools.keys().next_back().copied().expect("a lane");
        if d.count("APPLY MESSAGE") > 0 {
            d.reply_to("APPLY MESSAGE", OK);
        }
        assert_eq!(d.on_lanes(), [mailbox(name, Some(1))], "on {lane:?}");
        d.reply_to("APPLY MAILBOX", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
    }
}

#[test]
fn a_mailbox_is_repeated_without_a_new_upload() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to(
        "APPLY MAILBOX",
        "NO IMAP_SYNC_CHECKSUM Checksum Failure\r\n",
    );
    assert!(d.answer(s).unwrap().starts_with("NO IMAP_SYNC_CHECKSUM "));
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    // After RESTART nothing is staged here any more.
    assert_eq!(d.ask(s, "RESTART\r\n"), "OK Restarting\r\n");
    assert_eq!(d.core.snapshot().staged_bytes, 0);
}

#[test]
fn a_copy_asks_first_and_carries_nothing_that_the_replica_has() {
    let (mut d, s) = strict();
    reserve(&mut d, s, "user.a user.a.x", &[1, 2]);
    d.ask(s, &message(1));
    d.ask(s, &message(2));
    d.say(
        s,
        &format!(
            "APPLY MAILBOX %(UNIQUEID i MBOXNAME user.a.x LAST_UID 2 PARTITION default RECORD (%(UID 1 FLAGS () GUID {}) %(UID 2 FLAGS () GUID {})))\r\n",
            hex(1),
            hex(2)
        ),
    );
    assert_eq!(d.count("APPLY RESERVE"), 1);
    assert_eq!(d.on_lanes().len(), 1);
    d.reply_to("APPLY RESERVE", &format!("* MISSING ({})\r\n{OK}", hex(2)));
    assert_eq!(d.on_lanes()[0], message(2), "only what it lacks");
    assert!(d.on_lanes()[1].starts_with("APPLY MAILBOX"));
}

#[test]
fn large_messages_ask_first() {
    let mut d = driver(
        Limits {
            ask_bytes: 3,
            ..limits()
        },
        false,
    );
    let s = d.open(1, Mode::Strict);
    reserve(&mut d, s, "user.a", &[1]);
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    assert_eq!(d.count("APPLY RESERVE"), 1);
    assert_eq!(d.count("APPLY MAILBOX"), 0);
}

#[test]
fn what_was_reserved_and_never_came_is_asked_for_and_never_guessed() {
    let (mut d, s) = strict();
    reserve(&mut d, s, "user.a", &[1]);
    assert_eq!(d.ask(s, "APPLY MESSAGE (NIL)\r\n"), OK);
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY RESERVE", &format!("* MISSING ({})\r\n{OK}", hex(1)));
    assert_eq!(
        d.count("APPLY MAILBOX"),
        0,
        "it would kill the replica's process"
    );
    assert!(d.answer(s).unwrap().starts_with("NO "));
    // The replica has it after all.
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn after_a_nil_a_new_mailbox_is_asked_for_as_well() {
    let (mut d, s) = strict();
    d.ask(s, "APPLY MESSAGE (NIL)\r\n");
    d.say(s, &mailbox("user.a", Some(1)));
    assert_eq!(
        d.count("APPLY RESERVE %(PARTITION default MBOXNAME (user.a)"),
        1
    );
}

#[test]
fn records_of_known_and_of_expunged_messages_need_nothing() {
    let (mut d, s) = strict();
    d.say(s, &mailbox("user.a", Some(9)));
    assert_eq!(d.on_lanes(), [mailbox("user.a", Some(9))]);
    d.reply_to("APPLY MAILBOX", OK);
    d.answer(s);
    reserve(&mut d, s, "user.a", &[1]);
    let expunged = mailbox("user.a", Some(1)).replace("FLAGS ()", "FLAGS (\\Expunged)");
    d.say(s, &expunged);
    assert_eq!(d.on_lanes(), [expunged]);
}

#[test]
fn the_lanes_staging_is_emptied_when_no_unit_needs_it() {
    let mut d = driver(
        Limits {
            lanes: 1,
            lane_staged_bytes: 3,
            ..limits()
        },
        false,
    );
    let (a, b) = (d.open(1, Mode::Strict), d.open(2, Mode::Strict));
    // b stands between its RESERVE and its MAILBOX.
    reserve(&mut d, b, "user.b user.c", &[2]);
    d.ask(b, &message(2));
    d.say(b, &mailbox("user.b", Some(2)));
    d.ask(a, &message(1));
    d.say(a, &mailbox("user.a", Some(1)));
    assert_eq!(d.count("RESTART"), 0);
    d.reply_to("APPLY RESERVE", OK);
    assert_eq!(d.count("RESTART"), 1, "{:?}", d.on_lanes());
    assert_eq!(*d.on_lanes().last().unwrap(), "RESTART\r\n");
}

#[test]
fn an_idle_lanes_staging_is_emptied_after_a_while() {
    let (mut d, s) = strict();
    d.ask(s, &message(1));
    d.say(s, &mailbox("user.a", Some(1)));
    d.reply_to("APPLY MESSAGE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.count("RESTART"), 0);
    d.pass(limits().idle_restart);
    assert_eq!(d.count("RESTART"), 1);
}

#[test]
fn without_room_a_reserve_is_made_real_and_a_message_is_refused() {
    let mut d = driver(
        Limits {
            staged_bytes: 4,
            ..limits()
        },
        false,
    );
    let s = d.open(1, Mode::Strict);
    assert_eq!(d.ask(s, &message(1)), OK);
    assert!(d.ask(s, &message(2)).starts_with("NO "));
    d.say(
        s,
        &format!(
            "APPLY RESERVE %(PARTITION default MBOXNAME (user.a) GUID ({}))\r\n",
            hex(3)
        ),
    );
    d.reply_to("APPLY RESERVE", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    // What the replica has is asked for again on the unit's own lane.
    d.say(s, &mailbox("user.a", Some(3)));
    assert_eq!(d.count("APPLY RESERVE"), 1);
}

#[test]
fn reservations_that_are_too_many_are_forgotten_and_asked_for() {
    let mut d = driver(
        Limits {
            noted_bytes: 2000,
            ..limits()
        },
        false,
    );
    let s = d.open(1, Mode::Strict);
    for guid in 1..=40 {
        reserve(&mut d, s, "user.a", &[guid]);
        assert!(d.core.snapshot().noted_bytes < 4000);
    }
    // The client had it as NIL, so only the replica can have it: it is asked, although nothing is
    // known of the reservation any more.
    d.say(s, &mailbox("user.a", Some(1)));
    assert_eq!(d.count("APPLY RESERVE"), 1);
    d.reply_to("APPLY RESERVE", OK);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.core.snapshot().noted_bytes, 0);
}

#[test]
fn messages_without_a_byte_are_not_without_number() {
    let mut d = driver(
        Limits {
            noted_bytes: 2000,
            ..limits()
        },
        false,
    );
    let s = d.open(1, Mode::Strict);
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
    let mut d = driver(
        Limits {
            noted_bytes: 2000,
            ..limits()
        },
        false,
    );
    d.run = Some(super::driver::RUN);
    d.log = "MAILBOX user.a\n";
    let s = d.open(1, Mode::FanOut);
    for nth in 0..50 {
        d.say(s, &format!("GET MAILBOXES (user.a{nth} user.b{nth})\r\n"));
        for name in ["user.a", "user.b"] {
            d.reply_to(&format!("GET MAILBOXES ({name}"), OK);
        }
        assert_eq!(d.answer(s).unwrap(), OK);
        assert!(d.core.snapshot().noted_bytes < 4000);
    }
    // It is not taken for one with a cache of its own.
    assert_eq!(d.ask(s, &mailbox("user.a", None)), OK);
}
