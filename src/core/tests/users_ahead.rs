//! GET USER before the client asks.

use std::time::Duration;

use super::driver::{Driver, RUN, driver, limits};
use super::known::fan_out;
use super::words::{NO, OK, update};
use crate::core::{LaneId, Mode, SessionId};

const HERS: &str = "* MAILBOX %(UNIQUEID 1 MBOXNAME user.b LAST_UID 1)\r\nOK success\r\n";

fn ask(user: &str) -> String {
    format!("GET USER {user}\r\n")
}

/// The client is at the first user of a run of three, and the second has been asked about.
fn second_asked() -> (Driver, SessionId) {
    let (mut d, s) = fan_out("USER a\nUSER b\nUSER c\n");
    d.say(s, &ask("a"));
    let mut asked = d.on_lanes();
    asked.sort_unstable();
    assert_eq!(asked, [ask("a"), ask("b"), ask("c")]);
    d.reply_to("GET USER a", OK);
    d.answer(s).unwrap();
    (d, s)
}

/// Says GET USER b, and whether the replica is asked just then.
fn is_asked_for_real(d: &mut Driver, s: SessionId) -> bool {
    let before = d.count("GET USER b");
    d.say(s, &ask("b"));
    d.count("GET USER b") > before
}

#[test]
fn the_users_of_a_run_are_asked_about_and_each_answer_is_given_once() {
    let (mut d, s) = second_asked();
    d.reply_to("GET USER b", HERS);
    assert_eq!(d.ask(s, &ask("b")), HERS);
    assert!(is_asked_for_real(&mut d, s), "once");
}

#[test]
fn who_asks_for_what_is_under_way_waits_for_it() {
    let (mut d, s) = second_asked();
    d.say(s, &ask("b"));
    assert_eq!((d.answer(s), d.count("GET USER b")), (None, 1));
    d.reply_to("GET USER b", HERS);
    assert_eq!(d.answer(s).unwrap(), HERS);
}

#[test]
fn a_write_for_the_user_makes_the_answer_worthless() {
    let writes = [
        update("user.b", 2),
        "APPLY SUB %(USERID b MBOXNAME user.x)\r\n".to_owned(),
        "APPLY SEEN %(USERID b UNIQUEID 1 LASTREAD 1 LASTUID 1 LASTCHANGE 1 SEENUIDS 1)\r\n"
            .to_owned(),
        "APPLY QUOTA %(ROOT user.b STORAGE 1)\r\n".to_owned(),
        "APPLY UNMAILBOX user.b.x\r\n".to_owned(),
        "APPLY WHATEVER %(MBOXNAME user.z)\r\n".to_owned(),
    ];
    for write in writes {
        for answered in [true, false] {
            let (mut d, s) = second_asked();
            if answered {
                d.reply_to("GET USER b", HERS);
            }
            let other = d.open_by(2, Mode::Strict, false);
            d.say(other, &write);
            if !answered {
                d.reply_to("GET USER b", HERS);
            }
            d.say(s, &ask("b"));
            assert_eq!(d.answer(s), None, "{write}");
        }
    }
    // Nor are those asked about who are written to already.
    let (mut d, s) = fan_out("USER b\n");
    let other = d.open_by(2, Mode::Strict, false);
    d.say(other, &update("user.b", 2));
    d.ask(s, "RESTART\r\n");
    assert_eq!(d.count("GET USER"), 0);
}

#[test]
fn a_refusal_or_a_lost_lane_leaves_the_question_to_the_client() {
    for lost in [false, true] {
        let (mut d, s) = second_asked();
        d.say(s, &ask("b"));
        if lost {
            d.lose(d.lane_with("GET USER b"));
            d.pass(Duration::from_secs(1));
        } else {
            d.reply_to("GET USER b", NO);
            d.reply_to("GET USER c", OK);
        }
        assert_eq!((d.answer(s), d.count("GET USER b")), (None, 1), "its own");
        d.reply_to("GET USER b", HERS);
        assert_eq!(d.answer(s).unwrap(), HERS);
    }
}

#[test]
fn an_old_answer_is_not_given_nor_one_in_the_eyes_of_others() {
    let (mut d, s) = second_asked();
    d.reply_to("GET USER b", HERS);
    d.pass(Duration::from_secs(6));
    assert!(is_asked_for_real(&mut d, s));
    // By another listener, or with other capabilities.
    let (mut d, _) = second_asked();
    d.reply_to("GET USER b", HERS);
    let other = d.capable(2, Mode::Strict, false);
    assert!(is_asked_for_real(&mut d, other));
    let (mut d, _) = second_asked();
    d.reply_to("GET USER b", HERS);
    let other = d.open_by(2, Mode::Strict, true);
    assert!(is_asked_for_real(&mut d, other));
    // The replica may be another one after a while.
    let (mut d, s) = second_asked();
    d.reply_to("GET USER b", HERS);
    for lane in [1, 2, 3, 4].map(LaneId) {
        d.lose(lane);
    }
    d.say(s, &ask("b"));
    assert_eq!(d.answer(s), None);
}

#[test]
fn a_user_on_probation_is_asked_about_by_the_client_alone() {
    let (mut d, s) = second_asked();
    d.reply_to("GET USER b", HERS);
    assert_eq!(d.ask(s, &ask("b")), HERS);
    assert_eq!(d.ask(s, &update("user.b", 2)), OK);
    d.reply_to("GET USER c", OK);
    d.reply_to("APPLY MAILBOX", NO);
    d.log_user("b");
    assert_eq!(d.count("GET USER b"), 0);
}

#[test]
fn so_many_are_asked_about_and_kept_and_no_more() {
    let most = limits().ahead_requests;
    let log: String = (0..10 * most).map(|i| format!("USER u{i:03}\n")).collect();
    let mut d = driver(limits(), false);
    d.log = log.leak();
    let s = d.capable(1, Mode::FanOut, true);
    d.run = Some(RUN);
    d.ask(s, "RESTART\r\n");
    let mut answered = 0;
    while d.count("GET USER") > 0 {
        d.reply_to("GET USER", OK);
        answered += 1;
    }
    assert_eq!(answered, most);
    // In the client's order, and one more for each that it takes.
    for i in 0..10 * most {
        assert_eq!(d.ask(s, &ask(&format!("u{i:03}"))), OK);
        let next = i + most;
        let expected = if next < 10 * most {
            vec![ask(&format!("u{next:03}"))]
        } else {
            Vec::new()
        };
        assert_eq!(d.on_lanes(), expected);
        if next < 10 * most {
            d.reply_to("GET USER", OK);
        }
    }
}

#[test]
fn what_is_too_long_to_be_kept_is_asked_again() {
    let (mut d, s) = second_asked();
    let long = "* MAILBOX %(MBOXNAME user.b)\r\n".repeat(3_000);
    d.reply_to("GET USER b", &format!("{long}{OK}"));
    assert!(is_asked_for_real(&mut d, s));
}

#[test]
fn the_users_of_log_are_asked_about_in_strict_mode_too() {
    let mut d = driver(limits(), false);
    let s = d.capable(1, Mode::Strict, true);
    d.ask(s, "RESTART\r\n");
    d.log_user("b");
    d.reply_to("GET USER b", HERS);
    assert_eq!(d.ask(s, &ask("b")), HERS);
}
