//! What stands on disk, probation and its end.

use std::time::Duration;

use syncmux::core::{Limits, Mode};

use super::driver::{Driver, file, mailbox, message};

const SEEN: &str =
    "APPLY SEEN %(USERID joe UNIQUEID x LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)";

fn probation(d: &Driver) -> usize {
    d.core.snapshot().probation_subjects
}

/// A rolling session whose acknowledged MAILBOX of joe was refused; its line stands in `log`.
fn refused() -> (Driver, syncmux::core::SessionId) {
    let mut d = Driver::new(false, Limits::default());
    let s = d.rolling("MAILBOX user.joe\nMAILBOX user.ann");
    d.asks_about(s, "user.joe");
    assert!(d.ask(s, &mailbox("user.joe", &[])).starts_with("OK"));
    d.reply(d.lane_of("APPLY MAILBOX"), "NO IMAP_SYNC_CHECKSUM Checksum");
    assert_eq!(
        (&d.log[..], probation(&d)),
        (&["MAILBOX user.joe".to_owned()][..], 1)
    );
    d.ask(s, "RESTART");
    (d, s)
}

#[test]
fn nothing_is_acknowledged_before_its_link_stands() {
    let mut d = Driver::new(true, Limits::default());
    d.disk_works = false;
    let s = d.rolling("MAILBOX user.joe");
    d.asks_about(s, "user.joe");
    d.say(s, &mailbox("user.joe", &[]));
    assert!(d.waits(s) && d.sent().is_empty());
    d.disk(true);
    assert!(d.heard(s).starts_with("OK"));
    d.disk_works = true;
    d.end_run();
    assert_eq!(d.links, [7], "not confirmed yet");
    d.all_ok();
    assert!(d.links.is_empty());
}

#[test]
fn a_link_stays_until_the_line_stands_elsewhere() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.rolling("MAILBOX user.joe");
    d.asks_about(s, "user.joe");
    d.ask(s, &mailbox("user.joe", &[]));
    d.end_run();
    d.disk_works = false;
    d.reply(d.lane_of("APPLY MAILBOX"), "NO Denied");
    assert!(!d.drops_links());
    d.disk(false);
    d.pass(Duration::from_secs(5));
    assert!(!d.drops_links(), "the write failed");
    while !d.disk.is_empty() {
        d.disk(true);
    }
    assert_eq!((d.log.len(), d.links.len()), (1, 0));
}

#[test]
fn what_the_run_does_not_name_is_real() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.rolling("MAILBOX user.joe\nSEEN joe y");
    d.asks_about(s, "user.joe user.joe.a");
    for command in [&mailbox("user.joe.a", &[])[..], SEEN] {
        d.say(s, command);
        assert!(d.waits(s), "{command}");
        d.all_ok();
        assert!(d.heard(s).starts_with("OK"));
    }
    d.ask(s, "RESTART");
}

#[test]
fn a_run_seen_before_the_line_was_written_does_not_hold_it() {
    let mut d = Driver::new(false, Limits::default());
    let s = d.rolling("MAILBOX user.joe");
    d.asks_about(s, "user.joe");
    d.ask(s, &mailbox("user.joe", &[]));
    d.disk_works = false;
    d.reply(d.lane_of("APPLY MAILBOX"), "NO Denied");
    d.begin_run(8, "MAILBOX user.joe");
    d.asks_about(s, "user.ann");
    d.pass(Duration::from_secs(1));
    d.disk_works = true;
    d.disk(true);
    d.asks_about(s, "user.ann");
    assert!(d.links.contains(&8));
    d.end_run();
    assert_eq!(probation(&d), 1);
}

#[test]
fn nothing_is_sent_behind_a_failure() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.rolling("USER joe\nMAILBOX user.ann");
    d.asks_about(s, "user.joe user.joe.a");
    for name in ["user.joe", "user.joe.a"] {
        d.ask(s, &mailbox(name, &[]));
    }
    d.ask(s, SEEN);
    assert_eq!(d.sent().len(), 1);
    d.reply(d.lane_of("APPLY MAILBOX"), "NO Denied");
    assert!(d.sent().is_empty());
    assert_eq!(
        d.log,
        ["MAILBOX user.joe", "MAILBOX user.joe.a", "SEEN joe x"]
    );
    // On probation a write is real.
    d.say(s, &mailbox("user.joe.a", &[]));
    assert!(d.waits(s));
}

#[test]
fn a_real_write_that_fails_takes_what_was_acknowledged_behind_it() {
    let mut d = Driver::new(false, Limits::default());
    let s = d.rolling("MAILBOX user.joe");
    let real = d.session(Mode::FanOut);
    d.asks_about(s, "user.joe");
    d.say(real, "APPLY QUOTA %(ROOT user.joe LIMIT 2)");
    assert!(d.ask(s, &mailbox("user.joe", &[])).starts_with("OK"));
    d.reply(d.lane_of("APPLY QUOTA"), "NO Denied");
    assert!(d.sent().is_empty(), "sent after a failure was known");
    assert!(d.log.contains(&"MAILBOX user.joe".to_owned()));
}

#[test]
fn a_lost_lane_fails_what_was_out_and_repeats_what_was_not() {
    let limits = Limits {
        lanes: 1,
        ..Limits::default()
    };
    let mut d = Driver::new(false, limits);
    let s = d.rolling("MAILBOX user.joe\nMAILBOX user.ann");
    d.asks_about(s, "user.joe user.ann user.bob");
    d.ask(s, &mailbox("user.joe", &[]));
    let reserve = format!(
        "APPLY RESERVE %(PARTITION default MBOXNAME (user.ann user.bob) GUID ({}))",
        message(1)
    );
    d.ask(s, &reserve);
    d.ask(s, &format!("APPLY MESSAGE ({})", file(1)));
    d.ask(s, &mailbox("user.ann", &[1]));
    let lane = d.lane_of("APPLY RESERVE");
    d.lose(lane);
    d.pass(Duration::from_secs(1));
    assert_eq!(d.log, ["MAILBOX user.joe"]);
    d.lane_of("APPLY RESERVE");
}

#[test]
fn probation_ends_with_an_ok_to_that_very_command() {
    let (mut d, s) = refused();
    d.asks_about(s, "user.joe user.joe.a");
    d.say(s, &mailbox("user.joe.a", &[]));
    d.all_ok();
    d.heard(s);
    assert_eq!(probation(&d), 1, "another mailbox says nothing");
    d.say(s, "APPLY EXPUNGE %(MBOXNAME user.joe UNIQUEID x UID (1))");
    d.all_ok();
    d.heard(s);
    assert_eq!(probation(&d), 1, "an EXPUNGE is not the MAILBOX");
    d.say(s, &mailbox("user.joe", &[]));
    d.all_ok();
    d.heard(s);
    assert_eq!(probation(&d), 0);
}

#[test]
fn an_ok_to_one_annotation_does_not_drop_the_line_of_another() {
    let mut d = Driver::new(false, Limits::default());
    let s = d.session(Mode::FanOut);
    let entry =
        |n: u8| format!("APPLY ANNOTATION %(MBOXNAME user.joe ENTRY /{n} USERID joe VALUE x)");
    d.disk_works = false;
    d.say(s, &entry(1));
    d.reply(d.lane_of("APPLY ANNOTATION"), "NO Denied");
    assert!(d.waits(s), "before its line is durable");
    d.disk(true);
    assert!(d.heard(s).starts_with("OK"));
    d.say(s, &entry(2));
    d.all_ok();
    d.heard(s);
    assert_eq!((d.log.len(), probation(&d)), (1, 1));
}

#[test]
fn a_line_is_done_with_when_its_run_is_over() {
    let (mut d, s) = refused();
    d.pass(Duration::from_secs(1));
    d.end_run();
    d.begin_run(8, "MAILBOX user.joe");
    d.asks_about(s, "user.joe");
    d.ask(s, "RESTART");
    assert_eq!(probation(&d), 1);
    d.end_run();
    assert_eq!(probation(&d), 0);
}

#[test]
fn a_run_renamed_before_the_line_was_written_ends_nothing() {
    let (mut d, s) = refused();
    d.end_run();
    d.pass(Duration::from_secs(1));
    // Renamed long ago, seen only now: the line is in the next one.
    d.begin_run(8, "MAILBOX user.ann");
    d.asks_about(s, "user.ann");
    d.end_run();
    assert_eq!(probation(&d), 1);
    d.begin_run(9, "MAILBOX user.joe");
    d.asks_about(s, "user.joe");
    assert_eq!(probation(&d), 1);
    d.end_run();
    assert_eq!(probation(&d), 0);
}

#[test]
fn a_run_that_ends_before_its_link_is_reported_leaves_nobody_on_probation() {
    let (mut d, s) = refused();
    d.end_run();
    d.pass(Duration::from_secs(1));
    d.begin_run(8, "MAILBOX user.joe");
    d.disk_works = false;
    d.asks_about(s, "user.joe");
    d.ask(s, "RESTART");
    let run = d.run.clone();
    d.run = None;
    d.say(s, "GET USER ann");
    d.all_ok();
    d.heard(s);
    d.run = run;
    d.disk(true);
    assert_eq!(probation(&d), 0);
}

#[test]
fn a_refused_message_keeps_the_mailbox_back_on_probation() {
    let (mut d, s) = refused();
    d.asks_about(s, "user.joe");
    d.ask(s, &format!("APPLY MESSAGE ({})", file(1)));
    d.say(s, &mailbox("user.joe", &[1]));
    let lane = d.lane_of("APPLY MESSAGE");
    assert_eq!(d.sent().len(), 1);
    d.reply(lane, "NO No space");
    assert!(d.sent().is_empty());
    assert_eq!(d.heard(s), "NO No space\r\n");
}

#[test]
fn a_seen_in_doubt_waits_although_one_behind_it_was_dropped() {
    let mut d = Driver::new(false, Limits::default());
    let s = d.rolling("SEEN joe x");
    d.asks_about(s, "user.joe");
    d.ask(s, SEEN);
    d.ask(s, SEEN);
    d.lose(d.lane_of("APPLY SEEN"));
    assert!(
        d.log.is_empty(),
        "what ran on that lane may still be running"
    );
    assert_eq!(d.owed, ["SEEN joe x"]);
    d.pass(Limits::default().in_doubt);
    assert_eq!(d.log, ["SEEN joe x"]);
}

#[test]
fn a_client_with_a_cache_is_answered_strictly() {
    let mut d = Driver::new(true, Limits::default());
    let s = d.rolling("MAILBOX shared.a");
    d.say(s, &mailbox("shared.a", &[]));
    assert!(d.waits(s));
    d.reply(d.lane_of("APPLY MAILBOX"), "NO Denied");
    assert_eq!(d.heard(s), "NO Denied\r\n", "it would cache an OK");
    assert_eq!(probation(&d), 0);
}
