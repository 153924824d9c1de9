//! What is acknowledged early, under which cover.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, limits, rolling, rolling_within};
use super::words::{NO, OK, SEEN, mailbox, message};
use crate::core::{Event, Limits, Mode, Note, SessionId};

/// Whether a write is acknowledged before the replica has answered.
fn early(log: &'static str, text: &str) -> bool {
    let (mut d, s) = rolling(log, false);
    get_all(&mut d, s);
    d.say(s, text);
    d.answer(s).is_some()
}

/// The client has asked about the mailboxes that it is going to send.
fn get_all(d: &mut Driver, s: SessionId) {
    d.get(s, "GET MAILBOXES (user.a user.a.x shared)\r\n");
}

#[test]
fn only_what_the_run_names_is_acknowledged_early() {
    let sub = "APPLY SUB %(USERID a MBOXNAME user.b)\r\n";
    let unsub = "APPLY UNSUB %(USERID a MBOXNAME user.b)\r\n";
    let inbox = mailbox("user.a", &[]);
    for log in [
        "MAILBOX user.a\n",
        "APPEND user.a\n",
        "USER a\n",
        "DOUBLEMAILBOX user.b user.a\n",
    ] {
        assert!(early(log, &inbox), "{log}");
    }
    assert!(early("RENAME user.a user.b\n", &inbox));
    assert!(early("MAILBOX shared\n", &mailbox("shared", &[])));
    assert!(!early("MAILBOX user.a.x\nUSER b\nMETA a\n", &inbox));
    assert!(early("SEEN a id\n", SEEN) && early("META a\n", SEEN) && early("USER a\n", SEEN));
    assert!(!early("SEEN b id\nSEEN a other\n", SEEN));
    for text in [sub, unsub] {
        assert!(
            early("SUB a user.b\n", text) && early("META a\n", text) && early("USER a\n", text)
        );
        assert!(!early("SUB a user.c\nSUB b user.b\n", text));
    }
}

#[test]
fn what_no_line_could_repair_is_never_acknowledged_early() {
    let log = "USER a\nMAILBOX user.a\nMAILBOX user.a.x\nUNMAILBOX user.a.x\nQUOTA user.a\nANNOTATION user.a\n";
    for text in [
        "APPLY RENAME %(OLDMBOXNAME user.a.x NEWMBOXNAME user.a.y PARTITION default)\r\n",
        "APPLY UNMAILBOX user.a.x\r\n",
        "APPLY UNUSER a\r\n",
        "APPLY EXPUNGE %(MBOXNAME user.a UNIQUEID id UID (1))\r\n",
        "APPLY QUOTA %(ROOT user.a LIMIT 1)\r\n",
        "APPLY UNQUOTA user.a\r\n",
        "APPLY ANNOTATION %(MBOXNAME user.a ENTRY /x USERID a VALUE b)\r\n",
        "APPLY SIEVE %(USERID a FILENAME x LAST_UPDATE 1 CONTENT y)\r\n",
        // The short form of an intermediate mailbox carries no version.
        "APPLY MAILBOX %(UNIQUEID id MBOXNAME user.a.x MBOXTYPE i HIGHESTMODSEQ 1 CREATEDMODSEQ 1 FOLDERMODSEQ 1)\r\n",
    ] {
        assert!(!early(log, text), "{text}");
    }
}

#[test]
fn the_cover_is_durable_before_the_answer() {
    let (mut d, s) = rolling("USER a\n", false);
    d.run = None;
    get_all(&mut d, s);
    // It is asked for at the first command under it, which does not wait.
    d.run = Some(RUN);
    d.disk_works = false;
    d.ask(s, &message(1));
    assert_eq!(d.disk, ["link"]);
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.disk, ["link"]);
    assert_eq!((d.answer(s), d.on_lanes()), (None, vec![]));
    d.catch_up();
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn without_a_link_the_replica_is_waited_for_and_the_log_says_so_once() {
    let (mut d, s) = rolling("USER a\n", false);
    d.disk_works = false;
    get_all(&mut d, s);
    for nth in 0..2 {
        d.say(s, &mailbox("user.a", &[]));
        if nth == 0 {
            assert_eq!(d.on_lanes(), [""; 0], "it may still be linked");
            d.disk_fails();
        }
        d.reply_to("APPLY MAILBOX", OK);
        assert_eq!(d.answer(s).unwrap(), OK);
    }
    let notes = d
        .notes
        .iter()
        .filter(|note| matches!(note, Note::NotCovered { .. }))
        .count();
    assert_eq!(notes, 1);
    // After a while the same run is tried again.
    d.pass(Duration::from_secs(5));
    d.disk_works = true;
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    assert_eq!(d.disk, ["link", "link"]);
}

#[test]
fn a_link_stays_until_the_run_is_gone_and_everything_is_confirmed() {
    let (mut d, s) = rolling("USER a\n", false);
    get_all(&mut d, s);
    d.ask(s, &mailbox("user.a", &[]));
    d.event(Event::RunGone { run: RUN });
    assert_eq!(d.disk, ["link"]);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.disk, ["link", "drop link"]);
    // The other way round.
    let (mut d, s) = rolling("USER a\n", false);
    get_all(&mut d, s);
    d.ask(s, &mailbox("user.a", &[]));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.disk, ["link"]);
    d.run = None;
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.disk, ["link", "drop link"]);
}

#[test]
fn at_the_limit_the_client_waits() {
    let one_user = Limits {
        unconfirmed_users: 1,
        ..limits()
    };
    let (mut d, s) = rolling_within(one_user, "USER a\nMAILBOX shared\n", false);
    get_all(&mut d, s);
    assert_eq!(d.ask(s, &mailbox("user.a", &[])), OK);
    assert_eq!(d.ask(s, &mailbox("user.a.x", &[])), OK, "the same user");
    d.say(s, &mailbox("shared", &[]));
    assert_eq!(d.answer(s), None);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s), None);
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(s).unwrap(), OK);
}

#[test]
fn a_client_with_a_cache_of_its_own_is_served_strictly() {
    let (mut d, s) = rolling("USER a\n", false);
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.answer(s), None);
    assert!(
        matches!(d.notes.last(), Some(Note::ClientCache { .. })),
        "{:?}",
        d.notes
    );
    d.reply_to("APPLY MAILBOX", NO);
    assert_eq!(d.answer(s).unwrap(), NO, "it would note down an OK");
    assert_eq!(d.core.snapshot().probation_subjects, 0);
    get_all(&mut d, s);
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.answer(s), None, "it stays so");
}

#[test]
fn strict_listeners_never_acknowledge_early() {
    let mut d = driver(limits(), false);
    (d.run, d.log) = (Some(RUN), "USER a\n");
    let s = d.open(1, Mode::Strict);
    get_all(&mut d, s);
    d.say(s, &mailbox("user.a", &[]));
    assert_eq!(d.answer(s), None);
}
