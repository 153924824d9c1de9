//! What one must not suffer from another: lanes and questions are everybody's.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, limits, one_lane};
use super::known::{fan_out, really};
use super::words::{CAPABILITIES, OK, answer, ask_for, update};
use crate::core::{Event, Limits, Mode, Note, SessionId};

fn rolling_strict(limits: Limits) -> (Driver, SessionId) {
    let mut d = driver(limits, false);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    assert!(d.watching);
    (d, s)
}

/// Four sessions keep the only lane busy that the replica grants; UNUSER needs it for itself.
#[test]
fn a_replica_that_takes_fewer_lanes_starves_nobody() {
    let mut d = driver(limits(), false);
    let busy: Vec<SessionId> = (1..=4).map(|id| d.open(id, Mode::Strict)).collect();
    let alone = d.open(9, Mode::Strict);
    d.say(busy[0], "GET USER u1\r\n");
    d.lanes_open = false;
    d.all_ask(&busy[1..]);
    d.refuse_lanes();
    d.say(alone, "APPLY UNUSER x\r\n");
    let mut turns = 0;
    while d.count("APPLY UNUSER") == 0 {
        turns += 1;
        assert!(
            turns < 5000,
            "starved for {:?}: {:?}",
            d.now - Duration::from_secs(1),
            d.core.snapshot()
        );
        d.refuse_lanes();
        d.now += Duration::from_millis(50);
        d.turn(&busy);
    }
}

fn lanes_used(d: &Driver) -> u64 {
    d.pools.keys().last().map_or(0, |lane| lane.0)
}

/// One lane, two pools; what `log` names is of the pool that has no lane at the moment.
#[test]
fn read_ahead_takes_nobody_his_only_lane() {
    let (mut d, _) = rolling_strict(one_lane());
    let busy: Vec<SessionId> = (2..=5).map(|id| d.open(id, Mode::Strict)).collect();
    d.all_ask(&busy);
    d.close_lanes();
    assert_eq!(d.count("GET USER"), 4);
    let before = lanes_used(&d);
    d.log_names(["user.a"]);
    for _ in 0..100 {
        d.turn(&busy);
        d.close_lanes();
    }
    let opened = lanes_used(&d) - before;
    assert!(opened <= 2, "{opened} lanes were opened for 100 commands");
}

/// The same with a doubt, which holds its run until it is checked.
#[test]
fn a_doubt_of_a_pool_without_a_lane() {
    let mut d = driver(one_lane(), false);
    d.log = "USER a\n";
    let s = d.capable(1, Mode::FanOut, true);
    d.run = Some(RUN);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    d.run = None;
    let busy: Vec<SessionId> = (2..=5).map(|id| d.open(id, Mode::Strict)).collect();
    d.all_ask(&busy);
    d.close_lanes();
    d.event(Event::SessionClosed { session: s });
    d.event(Event::RunGone { run: RUN });
    let before = lanes_used(&d);
    for _ in 0..100 {
        d.now += Duration::from_secs(1);
        d.turn(&busy);
        d.close_lanes();
        if d.core.snapshot().known_doubts == 0 {
            break;
        }
    }
    let opened = lanes_used(&d) - before;
    let doubts = d.core.snapshot().known_doubts;
    assert!(
        opened <= 3 && doubts == 0,
        "{opened} lanes were opened, {doubts} doubts"
    );
}

/// By the strict listener, when much of `log` is read ahead.
#[test]
fn what_another_client_waits_for_while_log_is_read_ahead() {
    let (mut d, _) = rolling_strict(Limits::default());
    d.log_names((0..5000).map(|i| format!("user.u{i:05}")));
    // A user's own session by the strict listener (sync_rightnow_channel), of the same kind.
    let other = d.capable(2, Mode::Strict, false);
    d.say(other, &update("user.z", 2));
    let before = d.mailboxes_before("APPLY MAILBOX");
    assert!(
        before <= 32,
        "{before} mailboxes are opened first, with {} lanes",
        d.sent.len()
    );
}

/// A job put behind questions opens a lane for the next.
fn a_job_behind_questions_opens_one_more_lane(mut d: Driver) {
    d.log_names((0..100).map(|i| format!("user.u{i:05}")));
    let other = d.capable(2, Mode::Strict, false);
    let mut behind = 0;
    for i in 0..20 {
        d.say(other, &format!("GET USER x{i}\r\n"));
        let lane = d.lane_of("GET USER x");
        behind += usize::from(!d.sent[&lane][0].starts_with("GET USER x"));
        // Questions are slow: one is answered for each command.
        while d.answer(other).is_none() {
            d.reply(d.lane_of("GET USER x"), OK);
            d.log_names((0..40).map(|k| format!("user.v{i:02}{k:05}")));
        }
    }
    assert!(d.sent.len() > 1 && behind < 10, "{behind} of 20");
}

#[test]
fn a_job_behind_questions_opens_one_more_lane_in_strict_mode() {
    a_job_behind_questions_opens_one_more_lane(rolling_strict(limits()).0);
}

#[test]
fn a_job_behind_questions_opens_one_more_lane_in_fan_out() {
    let (mut d, s) = fan_out("USER a\n");
    d.ask(s, "RESTART\r\n");
    a_job_behind_questions_opens_one_more_lane(d);
}

/// A doubt whose reading kills the replica's process.
#[test]
fn a_doubt_that_kills_lanes_ends() {
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    d.ask(s, "RESTART\r\n");
    let mut killed = 0;
    for _ in 0..200 {
        if d.count(&ask_for("user.a")) > 0 {
            let lane = d.lane_with(&ask_for("user.a"));
            d.lose(lane);
            killed += 1;
        }
        d.pass(Duration::from_secs(1));
    }
    assert!(
        killed <= 5,
        "{killed} lanes in 200 s; {:?}",
        d.core.snapshot()
    );
}

/// One mailbox of a question hangs; users whose names went out with it wait.
#[test]
fn one_hung_mailbox_read_ahead_does_not_stop_others() {
    let (mut d, s) = rolling_strict(limits());
    d.log_names(["user.hung", "user.b"]);
    d.say(s, &ask_for("user.b"));
    for _ in 0..60 {
        d.pass(Duration::from_secs(10));
        if d.count(&ask_for("user.b")) > 0 {
            return;
        }
    }
    panic!("the client waits for user.hung since {:?}", d.now);
}

/// Lanes that only read-ahead wanted and that were refused, and then the only one is lost.
#[test]
fn refused_read_ahead_lanes_do_not_delay_a_reconnect() {
    let (mut d, s) = rolling_strict(limits());
    d.lanes_open = false;
    for round in 0..12 {
        d.say(s, &update(&format!("user.w{round}"), 2));
        d.log_names((0..400).map(|i| format!("user.r{round}x{i}")));
        d.refuse_lanes();
        d.pass(Duration::from_secs(16));
        d.refuse_lanes();
        while d.answer(s).is_none() {
            let oldest = d.on_lanes()[0].to_owned();
            d.reply_to(&oldest, OK);
            d.refuse_lanes();
        }
    }
    d.say(s, "GET USER a\r\n");
    let lane = d.lane_of("GET USER");
    d.lose(lane);
    let lost = d.now;
    while d.opening.is_empty() {
        d.pass(Duration::from_millis(100));
    }
    let waited = d.now - lost;
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[test]
fn names_after_the_watch_ended() {
    let (mut d, s) = rolling_strict(limits());
    d.event(Event::SessionClosed { session: s });
    assert!(!d.watching);
    d.log_names((0..100).map(|i| format!("user.u{i}")));
    assert_eq!(d.count("GET"), 0);
}

/// Two lanes, three kinds of clients; what `log` names is of the kind that has no lane.
#[test]
fn read_ahead_takes_no_lane_from_two_kinds_that_have_one_each() {
    let (mut d, _) = rolling_strict(Limits {
        lanes: 2,
        ..limits()
    });
    let plain: Vec<SessionId> = (2..=5).map(|id| d.open(id, Mode::Strict)).collect();
    let others: Vec<SessionId> = (6..=9).map(|id| d.open(id, Mode::Strict)).collect();
    d.all_ask(&plain);
    d.say(others[0], "APPLY CAPABILITIES (OTHER)\r\n");
    d.close_lanes();
    d.answer(others[0]).unwrap();
    for s in &others[1..] {
        d.say(*s, "APPLY CAPABILITIES (OTHER)\r\n");
        d.answer(*s).unwrap();
    }
    d.all_ask(&others);
    assert_eq!(d.count("GET USER"), 8);
    let before = lanes_used(&d);
    d.log_names(["user.a"]);
    let all: Vec<SessionId> = plain.iter().chain(&others).copied().collect();
    for _ in 0..200 {
        for lane in d.busy_lanes() {
            d.reply(lane, OK);
        }
        d.ask_anew(&all);
        d.close_lanes();
    }
    let opened = lanes_used(&d) - before;
    assert!(opened <= 4, "{opened} lanes were opened in 200 turns");
}

/// What one of thirty doubts is refused for.
#[test]
fn one_refused_check_says_nothing_of_the_others() {
    let log: &'static str = Box::leak(
        (0..30)
            .map(|i| format!("USER u{i:02}\n"))
            .collect::<String>()
            .into_boxed_str(),
    );
    let (mut d, s) = fan_out(log);
    for i in 0..30 {
        let name = format!("user.u{i:02}");
        really(&mut d, s, &name, &answer(&[&name], 1));
    }
    let all: Vec<String> = (0..30).map(|i| format!("user.u{i:02}")).collect();
    d.ask(s, &ask_for(&all.join(" ")));
    d.ask(s, "RESTART\r\n");
    d.reply_to("GET", "NO IMAP_MAILBOX_LOCKED Mailbox is locked\r\n");
    assert!(d.core.snapshot().probation_subjects <= 1);
}

/// The same names again and again while the replica is away.
#[test]
fn a_name_is_kept_once() {
    let (mut d, _) = rolling_strict(limits());
    d.lanes_open = false;
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    for lane in lanes {
        d.lose(lane);
    }
    d.refuse_lanes();
    // 20 minutes away, the same ten mailboxes in every look.
    for _ in 0..2000 {
        d.log_names((0..10).map(|i| format!("user.hot{i}")));
    }
    d.log_names(["user.b"]);
    d.pass(Duration::from_secs(20));
    d.catch_up();
    let s = SessionId(1);
    d.say(s, "GET USER z\r\n");
    d.reply_to("GET USER z", OK);
    for _ in 0..50 {
        if d.count("GET MAILBOXES") == 0 {
            break;
        }
        d.reply_to("GET MAILBOXES", OK);
    }
    assert_eq!(d.core.snapshot().known_mailboxes, 11);
}

/// Nobody asks ahead any more, one lane is stuck behind a question: who comes goes elsewhere.
#[test]
fn a_lane_stuck_behind_a_question_is_not_taken_for_an_idle_one() {
    let (mut d, _) = rolling_strict(limits());
    d.log_names(["user.hung"]);
    let hung = d.lane_with("GET MAILBOXES");
    let mut stuck = 0;
    for id in 2..=20 {
        let s = d.open(id, Mode::Strict);
        d.say(s, CAPABILITIES);
        d.answer(s).unwrap();
        d.say(s, &format!("GET USER u{id}\r\n"));
        let lane = d.lane_of(&format!("GET USER u{id}\r\n"));
        if lane == hung {
            stuck += 1;
        } else {
            while d.answer(s).is_none() {
                d.reply(lane, OK);
            }
        }
    }
    assert!(stuck <= 1);
}

/// A mailbox whose reading kills the replica's process is in `log` again and again.
#[test]
fn a_mailbox_that_kills_its_reader_is_not_asked_ahead_for_ever() {
    let (mut d, _) = rolling_strict(limits());
    let mut busy: Vec<SessionId> = Vec::new();
    let mut next = 2;
    let mut killed = 0;
    for _ in 0..100 {
        while busy.len() < 6 {
            let s = d.open(next, Mode::Strict);
            d.say(s, CAPABILITIES);
            d.answer(s);
            busy.push(s);
            next += 1;
            d.say(s, &update(&format!("user.u{}", s.0), 2));
        }
        // An append to it, as every 100 ms.
        d.log_names(["user.bad"]);
        // All lanes get on by one answer.
        for lane in d.busy_lanes() {
            if d.sent[&lane][0].contains("user.bad") {
                d.lose(lane);
                killed += 1;
            } else {
                d.reply(lane, OK);
            }
        }
        let gone: Vec<SessionId> = d.ended.keys().copied().collect();
        busy.retain(|s| !gone.contains(s));
        for s in busy.clone() {
            if d.answer(s).is_some() {
                d.say(s, &update(&format!("user.u{}", s.0), 2));
            }
        }
        d.pass(Duration::from_millis(100));
    }
    assert!(killed <= 3);
}

/// UNUSER waits for a lane that never opens.
#[test]
fn a_lane_that_hangs_in_opening_starves_nobody() {
    let mut d = driver(limits(), false);
    let busy: Vec<SessionId> = (1..=4).map(|id| d.open(id, Mode::Strict)).collect();
    let alone = d.open(9, Mode::Strict);
    d.say(busy[0], "GET USER u1\r\n");
    d.lanes_open = false;
    d.all_ask(&busy[1..]);
    d.say(alone, "APPLY UNUSER x\r\n");
    let mut turns = 0;
    while d.count("APPLY UNUSER") == 0 {
        turns += 1;
        assert!(turns < 600, "starved while lanes are opening: {:?}", d.now);
        d.now += Duration::from_millis(50);
        d.turn(&busy);
    }
}

/// Told, and then another client wrote and was answered OK: nothing was wrong.
#[test]
fn what_another_client_changed_since_is_no_wrong_belief() {
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    let other = d.capable(2, Mode::Strict, false);
    d.say(other, &update("user.a", 2));
    d.reply_to("APPLY MAILBOX", OK);
    assert_eq!(d.answer(other).unwrap(), OK);
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.count("GET MAILBOXES"), 0);
    let snapshot = d.core.snapshot();
    assert_eq!(snapshot.known_doubts, 0);
    assert_eq!(snapshot.probation_subjects, 0, "{:?}", snapshot.probation);
}

/// It is no outage: only one is refused, and that is said once.
#[test]
fn a_replica_that_grants_no_more_lanes_is_not_away() {
    let mut d = driver(limits(), false);
    let s = d.open(1, Mode::Strict);
    d.ask(s, "RESTART\r\n");
    d.say(s, "GET USER u1\r\n");
    d.lanes_open = false;
    for round in 0..20 {
        let s = d.open(10 + round, Mode::Strict);
        d.say(s, &format!("GET USER v{round}\r\n"));
        d.refuse_lanes();
        d.pass(Duration::from_secs(20));
        d.refuse_lanes();
    }
    let said = |wanted: fn(&&Note) -> bool| d.notes.iter().filter(wanted).count();
    assert_eq!(said(|note| matches!(note, Note::NoMoreLanes { .. })), 1);
    assert_eq!(said(|note| matches!(note, Note::ReplicaAway { .. })), 0);
}
