//! Nobody waits for ever, and what waits does not grow without bound.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, driver_of, limits, one_lane};
use super::known::{fan_out, really};
use super::words::{NO, OK, answer, ask_for, update};
use crate::core::{Event, Limits, Mode, SessionId};

/// A lane beside others was refused once; then the replica would grant it. Nothing else happens.
#[test]
fn more_lanes_are_tried_again_without_an_event() {
    let mut d = driver(limits(), false);
    let a = d.open(1, Mode::Strict);
    let b = d.open(2, Mode::Strict);
    d.say(a, "GET USER u1\r\n");
    d.lanes_open = false;
    d.say(b, "APPLY UNUSER x\r\n");
    d.refuse_lanes();
    d.lanes_open = true;
    let deadline = d.core.deadline();
    assert!(
        deadline.is_some_and(|at| at < d.now + Duration::from_secs(60)),
        "{deadline:?}"
    );
}

/// The replica grants two lanes of four.
#[test]
fn one_lane_free_where_the_replica_grants_fewer() {
    let mut d = driver(limits(), false);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    d.say(s, "GET USER u1\r\n");
    let other = d.capable(2, Mode::Strict, false);
    d.say(other, "GET USER u2\r\n");
    assert_eq!(d.sent.len(), 2);
    d.lanes_open = false;
    d.all_ok();
    d.answer(s);
    d.answer(other);
    d.log_names((0..5000).map(|i| format!("user.u{i:05}")));
    for _ in 0..20 {
        d.refuse_lanes();
        d.pass(Duration::from_secs(16));
    }
    let asked = |sent: &Vec<String>| sent.iter().any(|text| text.starts_with("GET MAILBOXES"));
    assert_eq!(d.sent.values().filter(|sent| asked(sent)).count(), 1);
}

/// One lane; those who need it for themselves come again and again.
#[test]
fn alone_does_not_starve_shared() {
    let mut d = driver(one_lane(), false);
    let alone: Vec<SessionId> = (1..=3).map(|id| d.open(id, Mode::Strict)).collect();
    let shared = d.open(9, Mode::Strict);
    for s in &alone {
        d.say(*s, &format!("APPLY UNUSER u{}\r\n", s.0));
    }
    d.say(shared, "GET USER x\r\n");
    for _ in 0..1000 {
        if d.count("GET USER x") > 0 {
            return;
        }
        d.now += Duration::from_millis(50);
        let oldest = d.on_lanes()[0].to_owned();
        d.reply_to(&oldest, OK);
        for s in &alone {
            if d.answer(*s).is_some() {
                d.say(*s, &format!("APPLY UNUSER u{}\r\n", s.0));
            }
        }
    }
    panic!("starved until {:?}", d.now);
}

/// Told of both, and the RENAME is refused.
#[test]
fn a_refused_rename_owes_both() {
    let mut d = driver_of(limits(), false, true);
    d.log = "RENAME shared.a shared.b\n";
    let s = d.capable(1, Mode::Strict, true);
    d.run = Some(RUN);
    really(&mut d, s, "shared.a shared.b", &answer(&["shared.a"], 1));
    assert_eq!(
        d.ask(s, &ask_for("shared.a shared.b")),
        answer(&["shared.a"], 1)
    );
    d.say(s, "APPLY RENAME %(OLDMBOXNAME shared.a NEWMBOXNAME shared.b PARTITION default UIDVALIDITY 1)\r\n");
    d.reply_to("APPLY RENAME", NO);
    let all = d.disk.join(" ");
    assert!(
        all.contains("shared.a") && all.contains("shared.b"),
        "{all}"
    );
}

fn busy_one_lane() -> (Driver, SessionId, Vec<SessionId>) {
    let mut d = driver(one_lane(), false);
    d.log = "USER a\n";
    let s = d.capable(1, Mode::FanOut, true);
    d.run = Some(RUN);
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    let busy: Vec<SessionId> = (2..=3)
        .map(|id| d.capable(id, Mode::Strict, false))
        .collect();
    d.all_ask(&busy);
    (d, s, busy)
}

/// Same pool, lane never idle: the doubt holds its run.
#[test]
fn a_doubt_is_asked_under_steady_load() {
    let (mut d, s, busy) = busy_one_lane();
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    d.ask(s, "RESTART\r\n");
    d.end_run();
    for _ in 0..3600 {
        d.now += Duration::from_secs(1);
        d.turn(&busy);
        if d.core.snapshot().known_doubts == 0 {
            return;
        }
    }
    panic!("{:?}: {:?}", d.now, d.core.snapshot());
}

/// The same, and the client writes now and then.
#[test]
fn doubtful_does_not_grow() {
    let (mut d, s, busy) = busy_one_lane();
    for version in 1..500 {
        assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], version));
        d.ask(s, "RESTART\r\n");
        assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], version));
        assert_eq!(d.ask(s, &update("user.a", version + 1)), OK);
        while d.count("APPLY MAILBOX") > 0 {
            d.now += Duration::from_secs(1);
            d.turn(&busy);
        }
    }
    assert!(
        d.core.known.doubtful.len() < 10,
        "{}",
        d.core.known.doubtful.len()
    );
}

/// Many wait for one question, while others are answered.
#[test]
fn impatient_does_not_grow_with_news() {
    let mut d = driver(Limits::default(), false);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    d.log_names((0..640).map(|i| format!("user.u{i:05}")));
    for id in 2..52 {
        let w = d.capable(id, Mode::Strict, true);
        d.say(w, &ask_for("user.u00000"));
    }
    let hung = d.lane_with("GET MAILBOXES (user.u00000");
    for round in 0..1000 {
        let lane = d
            .sent
            .iter()
            .find(|(l, t)| **l != hung && t.first().is_some_and(|t| t.starts_with("GET MAILBOXES")))
            .map(|(l, _)| *l);
        if let Some(lane) = lane {
            d.reply(lane, OK);
        }
        d.log_names((0..32).map(|i| format!("user.v{round}x{i:05}")));
    }
    assert!(d.core.impatient.len() <= 200, "{}", d.core.impatient.len());
}

/// A one-shot client waits for what was asked ahead, and the rolling client ends the run meanwhile.
#[test]
fn no_link_of_a_run_that_is_gone() {
    let mut d = driver_of(limits(), false, true);
    d.log = "MAILBOX user.z\nMAILBOX user.a\nMAILBOX user.b\n";
    let s = d.capable(1, Mode::Strict, true);
    let one = d.capable(2, Mode::Strict, true);
    d.run = Some(RUN);
    d.ask(s, "RESTART\r\n");
    d.say(one, &ask_for("user.a"));
    assert_eq!(d.answer(one), None);
    d.run = None;
    d.event(Event::RunGone { run: RUN });
    d.ask(s, "RESTART\r\n");
    d.disk_works = false;
    let q = d.on_lanes()[0].to_owned();
    d.reply_to(&q, &answer(&["user.a"], 1));
    assert_eq!(d.disk.iter().filter(|w| *w == "link").count(), 1);
}

/// Two lanes, two kinds of clients with one each: the other's lane counts as the free one.
#[test]
fn the_free_lane_is_of_the_same_kind() {
    let mut d = driver(
        Limits {
            lanes: 2,
            ..limits()
        },
        false,
    );
    let plain = d.open(5, Mode::Strict);
    d.say(plain, "GET USER p\r\n");
    d.all_ok();
    d.answer(plain);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    d.log_names((0..5000).map(|i| format!("user.u{i:05}")));
    let other = d.capable(2, Mode::Strict, false);
    d.say(other, &update("user.z", 2));
    let before = d.mailboxes_before("APPLY MAILBOX");
    assert!(before <= 32, "{before} mailboxes first");
}

/// Users of `log` are kept once.
#[test]
fn a_user_is_kept_once() {
    let mut d = driver(limits(), false);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    d.lanes_open = false;
    let lanes: Vec<_> = d.sent.keys().copied().collect();
    for lane in lanes {
        d.lose(lane);
    }
    d.refuse_lanes();
    for _ in 0..2000 {
        d.log_user("hot");
    }
    d.log_user("b");
    d.pass(Duration::from_secs(20));
    d.catch_up();
    d.say(s, &ask_for("user.q"));
    while d.count("GET MAILBOXES") > 0 {
        d.reply_to("GET MAILBOXES", OK);
    }
    assert_eq!(d.count("GET USER b"), 1);
}

/// Four lanes, eight clients: no lane is ever idle.
#[test]
fn a_doubt_told_wrong_under_load_of_four_lanes() {
    let (mut d, s) = fan_out("USER a\n");
    really(&mut d, s, "user.a", &answer(&["user.a"], 1));
    let busy: Vec<SessionId> = (2..=9)
        .map(|id| d.capable(id, Mode::Strict, false))
        .collect();
    d.all_ask(&busy);
    assert_eq!(d.ask(s, &ask_for("user.a")), answer(&["user.a"], 1));
    d.ask(s, "RESTART\r\n");
    d.end_run();
    for n in 0..3600 {
        let lanes = d.busy_lanes();
        let lane = lanes[n % lanes.len()];
        d.now += Duration::from_secs(1);
        d.reply(lane, OK);
        d.ask_anew(&busy);
        if d.core.snapshot().known_doubts == 0 {
            return;
        }
    }
    panic!("an hour: {:?}", d.core.snapshot());
}
