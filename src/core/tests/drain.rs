//! SIGTERM: what is finished, what is owed, and that it ends.

use std::time::Duration;

use super::doubts::told_nothing;
use super::driver::{limits, rolling, rolling_within};
use super::known::{fan_out, really};
use super::words::{LOCKED, OK, answer, ask_for, mailbox};
use crate::core::{Event, Limits};

#[test]
fn a_drain_finishes_what_was_acknowledged_and_heals_the_rest() {
    let (mut d, s) = rolling("USER a\nMAILBOX shared\n", false);
    d.get(s, "GET MAILBOXES (user.a shared)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.ask(s, &mailbox("shared", &[]));
    d.event(Event::Drain);
    assert!(d.ended[&s].starts_with("BYE "));
    d.reply_to("APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a ", OK);
    assert!(!d.drained);
    d.pass(limits().drain_grace + Duration::from_secs(1));
    assert!(d.drained);
    assert_eq!(
        d.disk,
        ["link", "write [Mailbox(b\"shared\")]", "drop link"]
    );
}

#[test]
fn a_drain_owes_what_is_still_locked_at_its_end() {
    let limits = Limits {
        locked: Duration::from_secs(60),
        locked_max: Duration::from_secs(60),
        ..limits()
    };
    let (mut d, s) = rolling_within(limits.clone(), "USER a\n", false);
    d.get(s, "GET MAILBOXES (user.a)\r\n");
    d.ask(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", LOCKED);
    d.event(Event::Drain);
    assert!(!d.drained);
    d.pass(limits.drain_grace);
    assert_eq!(d.disk[1], "write [Mailbox(b\"user.a\")]");
    assert!(d.drained);
}

#[test]
fn a_drain_checks_or_owes_what_was_told() {
    for answered in [true, false] {
        let (mut d, s) = told_nothing();
        d.event(Event::Drain);
        assert!(d.ended[&s].starts_with("BYE "));
        assert!(!d.drained);
        if answered {
            d.reply_to("GET", &answer(&["user.a"], 1));
            assert_eq!(d.disk, ["link", "drop link"]);
        } else {
            d.pass(limits().drain_grace);
            let written = "write [Mailbox(b\"user.a\")]";
            assert_eq!(d.disk, ["link", written, "drop link"]);
        }
        assert!(d.drained);
    }
}

#[test]
fn a_drain_owes_also_what_a_client_was_told_that_still_waits_for_the_rest() {
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    d.say(s, &ask_for("user.a user.a.x"));
    assert_eq!(d.answer(s), None);
    d.event(Event::Drain);
    d.pass(limits().drain_grace);
    assert!(d.ended[&s].starts_with("BYE "));
    let written = "write [Mailbox(b\"user.a\")]";
    assert_eq!(d.disk, ["link", written, "drop link"]);
    assert!(d.drained);
}

#[test]
fn a_drain_ends_with_a_lane_that_hangs_and_a_broken_disk() {
    for disk_works in [true, false] {
        let (mut d, s) = rolling("MAILBOX user.a\n", true);
        d.get(s, "GET MAILBOXES (user.a)\r\n");
        d.ask(s, &mailbox("user.a", &[]));
        d.disk_works = disk_works;
        d.event(Event::Drain);
        assert!(d.ended[&s].starts_with("BYE "));
        assert!(!d.drained && d.closing.is_empty(), "the unit may end yet");
        let mut turns = 0;
        while !d.drained {
            turns += 1;
            assert!(turns < 100, "the drain never ends");
            d.wait();
            while !d.orders.is_empty() {
                d.disk_fails();
            }
        }
        assert_eq!(d.disk[..2], ["link", "write [Mailbox(b\"user.a\")]"]);
        // Where the line could not be written the link is what holds it.
        assert_eq!(d.disk.contains(&"drop link".to_owned()), disk_works);
    }
}
