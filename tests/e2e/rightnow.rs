//! Synchronous replication (`sync_rightnow_channel`): each imapd sends its own commit to the replica
//! before it answers its user. Stock to stock, and through `rightnow_listen`.
//!
//! Up to Cyrus 3.10 imapd leaves out an APPEND that it answers with APPENDUID, and a COPY with
//! COPYUID: no `sync_checkpoint` in `cmd_append` and `cmd_copy`. So appends are made here by somebody
//! who may put messages there and not read them, who gets no APPENDUID.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::leftovers;
use crate::support::cyrus::Instance;
use crate::support::imap::{Imap, message};
use crate::support::lab::{Lab, RightNow, Setup, Way};
use crate::support::relay::Direction;
use crate::support::wait_for;

ways!(there_when_it_is_answered: direct, strict, fan_out);
ways!(there_with_a_cache: direct, strict);
ways!(many_at_once: direct, strict, fan_out);
ways!(replica_silent: strict, fan_out);
ways!(replica_killed: strict, fan_out);
ways!(everything_of_a_commit: strict, fan_out);
ways!(imapd_killed: strict);
ways!(syncmux_drains: strict, fan_out);
ways!(refused: strict, fan_out);
ways!(a_logged_channel_forgets_nothing: direct, strict, fan_out);

/// How long somebody waits by the tests' configuration.
const LIMIT: &str = "2s";
/// Long before the 30 minutes for which the stock client waits, and long after any limit here.
const FAR_BEFORE_STOCK: Duration = Duration::from_secs(60);

const USUAL: RightNow = RightNow {
    logged: false,
    cached: false,
    limit: LIMIT,
};

fn lab_of(way: Way, how: RightNow) -> Lab {
    let mut setup = Setup::new(way);
    setup.channel = "far".to_owned();
    setup.rightnow = Some(how);
    setup.start()
}

/// How many messages a mailbox holds.
fn count(at: &Instance, user: &str, mailbox: &str) -> usize {
    let lines = at.login(user).examine(mailbox);
    let exists = lines.iter().find_map(|line| {
        let (number, word) = line.strip_prefix("* ")?.split_once(' ')?;
        (word == "EXISTS").then(|| number.parse().unwrap())
    });
    exists.unwrap()
}

/// The lines of the channel's log.
fn log(lab: &Lab) -> Vec<String> {
    let text = std::fs::read_to_string(lab.sync_directory().join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn stands(lab: &Lab, line: &str) -> bool {
    log(lab).iter().any(|other| other == line)
}

/// Who puts messages into the mailboxes of others.
const POSTER: &str = "poster";

fn add_users(lab: &Lab, users: usize) -> Vec<String> {
    let users = lab.add_users(users);
    users
        .iter()
        .for_each(|user| may_post(lab, &lab.master.mailbox(user, "")));
    users
}

fn add_user(lab: &Lab, user: &str) {
    lab.add_user(user);
    may_post(lab, &lab.master.mailbox(user, ""));
}

fn may_post(lab: &Lab, mailbox: &str) {
    lab.master.admin().set_acl(mailbox, POSTER, "lip");
}

/// Puts a message into a user's INBOX; how long its answer took.
fn post(poster: &mut Imap, user: &str, what: &str) -> Duration {
    let start = Instant::now();
    poster.append(
        &format!("user.{user}"),
        "",
        &message(&format!("{user} {what}"), 2000),
    );
    start.elapsed()
}

/// When the answer has come the replica has it: nobody else brings it there.
fn there_when_it_is_answered(way: Way) {
    there(lab_of(way, USUAL));
}

fn there_with_a_cache(way: Way) {
    let mut lab = lab_of(
        way,
        RightNow {
            cached: true,
            ..USUAL
        },
    );
    add_user(&lab, "carol");
    let mut poster = lab.master.login(POSTER);
    post(&mut poster, "carol", "1");
    post(&mut poster, "carol", "2");
    if way != Way::Direct {
        let asked = [("verb", "GET MAILBOXES"), ("channel", "far")];
        let before = lab.mux().metric("syncmux_commands_total", &asked);
        post(&mut poster, "carol", "3");
        let after = lab.mux().metric("syncmux_commands_total", &asked);
        assert_eq!(before, after, "asked although imapd knows it");
    }
    there(lab);
}

fn there(mut lab: Lab) {
    let users = add_users(&lab, 4);
    let mut poster = lab.master.login(POSTER);
    for round in 1..=3 {
        lab.step("append");
        for user in &users {
            post(&mut poster, user, &round.to_string());
            assert_eq!(count(&lab.replica, user, "INBOX"), round, "{user}");
        }
    }
    lab.step("flags, folders, moves, subscriptions");
    let mut alice = lab.master.login(&users[0]);
    alice.select("INBOX");
    alice.store("1:2", "+FLAGS (\\Seen \\Flagged)");
    let mut there = lab.replica.login(&users[0]);
    there.examine("INBOX");
    let flags = there.run("FETCH 1:3 FLAGS").concat();
    assert_eq!(flags.matches("\\Flagged").count(), 2, "{flags}");
    alice.create("INBOX.box");
    alice.move_to("1", "INBOX.box");
    assert_eq!(count(&lab.replica, &users[0], "INBOX.box"), 1);
    alice.subscribe("INBOX.box");
    let subscribed = there.run("LSUB \"\" *").concat();
    assert!(subscribed.contains("INBOX.box"), "{subscribed}");
    alice.rename("INBOX.box", "INBOX.bag");
    assert_eq!(count(&lab.replica, &users[0], "INBOX.bag"), 1);
    alice.select("INBOX");
    alice.store("1", "+FLAGS (\\Deleted)");
    alice.expunge();
    assert_eq!(count(&lab.replica, &users[0], "INBOX"), 1);
    assert_eq!(log(&lab), [""; 0], "nothing was put off");
    lab.assert_same();
}

/// Each imapd has a session of its own, and they share the lanes.
fn many_at_once(way: Way) {
    let mut lab = lab_of(way, USUAL);
    let users = add_users(&lab, 24);
    let master = &lab.master;
    let replica = &lab.replica;
    std::thread::scope(|scope| {
        for user in &users {
            scope.spawn(move || {
                let mut imap = master.login(POSTER);
                for round in 1..=5 {
                    post(&mut imap, user, &round.to_string());
                    assert_eq!(count(replica, user, "INBOX"), round, "{user}");
                }
            });
        }
    });
    if way != Way::Direct {
        let lanes = lab.relay.counters().connections;
        let sessions = lab.mux().metric("syncmux_sessions", &[("channel", "far")]);
        assert!(
            sessions > lanes as f64,
            "{sessions} sessions, {lanes} lanes"
        );
    }
    assert_eq!(log(&lab), [""; 0], "nothing was put off");
    lab.assert_same();
}

/// Stopped where it is: nothing comes back, and no connection ends.
fn replica_silent(way: Way) {
    replica_away(
        way,
        |replica| replica.freeze(true),
        |replica| replica.freeze(false),
    );
}

fn replica_killed(way: Way) {
    let back = |replica: &mut Instance| {
        replica.resume();
        replica.ready();
    };
    replica_away(way, Instance::kill, back);
}

fn replica_away(way: Way, away: impl FnOnce(&mut Instance), back: impl FnOnce(&mut Instance)) {
    let mut lab = lab_of(way, USUAL);
    let users = add_users(&lab, 6);
    let mut sessions: Vec<Imap> = users.iter().map(|_| lab.master.login(POSTER)).collect();
    for (imap, user) in sessions.iter_mut().zip(&users) {
        post(imap, user, "before");
    }
    lab.step("the replica is away, appends go on");
    away(&mut lab.replica);
    for round in 1..=3 {
        for (imap, user) in sessions.iter_mut().zip(&users) {
            let took = post(imap, user, &format!("away {round}"));
            assert!(took < FAR_BEFORE_STOCK, "{user} waited for {took:?}");
            assert!(
                stands(&lab, &format!("MAILBOX user.{user}")),
                "{:?}",
                log(&lab)
            );
        }
    }
    let put_off = |lab: &mut Lab, why| {
        let labels = [("channel", "far"), ("why", why)];
        lab.mux().metric("syncmux_rightnow_put_off_total", &labels)
    };
    // Not everybody waits until he has found out by himself.
    assert!(put_off(&mut lab, "away") >= 10.0);
    lab.step("the replica is back, a rolling client brings it level");
    back(&mut lab.replica);
    lab.settle();
    lab.one_client_was_enough();
    lab.end_rolling();
    lab.step("the same imapds go on right now");
    for (imap, user) in sessions.iter_mut().zip(&users) {
        post(imap, user, "after");
        assert_eq!(count(&lab.replica, user, "INBOX"), 5, "{user}");
    }
    assert_eq!(log(&lab), [""; 0]);
    lab.assert_same();
}

/// The mailbox, and what imapd would have sent behind it: seen flags, subscriptions, a folder of
/// others.
fn everything_of_a_commit(way: Way) {
    let mut lab = lab_of(way, USUAL);
    for user in ["alice", "bob"] {
        add_user(&lab, user);
    }
    let mut admin = lab.master.admin();
    admin.create("shared");
    admin.set_acl("shared", "anyone", "");
    admin.set_acl("shared", "bob", "lrswipkxte");
    may_post(&lab, "shared");
    let mut poster = lab.master.login(POSTER);
    poster.append("shared", "", &message("shared 1", 2000));
    let mut bob = lab.master.login("bob");
    lab.assert_same();
    lab.step("the replica is silent");
    lab.replica.freeze(true);
    bob.select("shared");
    bob.store("1", "+FLAGS (\\Seen)");
    poster.append("shared", "", &message("shared 2", 2000));
    bob.subscribe("shared");
    let mut alice = lab.master.login("alice");
    post(&mut poster, "alice", "1");
    alice.create("INBOX.box");
    alice.select("INBOX");
    alice.move_to("1", "INBOX.box");
    admin.set_quota("user.alice", "STORAGE 100000");
    admin.set_acl("user.alice.box", "bob", "lrs");
    let lines = log(&lab).join("\n");
    for line in [
        "MAILBOX shared",
        "SEEN bob ",
        "SUB bob shared",
        "MAILBOX user.alice",
        "MAILBOX user.alice.box",
        "QUOTA user.alice",
    ] {
        assert!(lines.contains(line), "{line:?} is not in:\n{lines}");
    }
    lab.step("the replica answers again");
    lab.replica.freeze(false);
    // When he last looked is written down when he leaves the mailbox, which no imapd sends.
    drop((bob, alice));
    lab.settle_but(&["APPLY SEEN"]);
    lab.one_client_was_enough();
}

/// Waits until a commit is on a lane.
fn under_way(lab: &Lab) {
    wait_for("the commit to be under way", || {
        (in_flight(lab) > 0.0).then_some(())
    });
}

/// Waits until none is: what is shown lags behind a little.
fn at_rest(lab: &Lab) {
    wait_for("the last commit to be done", || {
        (in_flight(lab) == 0.0).then_some(())
    });
}

fn in_flight(lab: &Lab) -> f64 {
    let mux = lab.mux.as_ref().unwrap();
    mux.metric("syncmux_units_in_flight", &[("channel", "far")])
}

/// It is gone before it could say all that it had to.
fn imapd_killed(way: Way) {
    let mut lab = lab_of(
        way,
        RightNow {
            limit: "5m",
            ..USUAL
        },
    );
    add_user(&lab, "alice");
    let mut poster = lab.master.login(POSTER);
    post(&mut poster, "alice", "1");
    lab.step("an imapd waits, and is killed");
    at_rest(&lab);
    lab.replica.freeze(true);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                post(&mut poster, "alice", "2")
            }))
        });
        under_way(&lab);
        for pid in lab.master.processes("imapd") {
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        }
        assert!(waiting.join().unwrap().is_err(), "answered all the same");
    });
    wait_for("its line", || {
        stands(&lab, "MAILBOX user.alice").then_some(())
    });
    lab.replica.freeze(false);
    lab.settle();
}

/// A commit comes to its end; what the replica has not got stands in the log.
fn syncmux_drains(way: Way) {
    let mut lab = lab_of(
        way,
        RightNow {
            limit: "5m",
            ..USUAL
        },
    );
    add_user(&lab, "alice");
    let mut poster = lab.master.login(POSTER);
    post(&mut poster, "alice", "1");
    lab.step("syncmux ends while an imapd waits");
    at_rest(&lab);
    lab.replica.freeze(true);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || post(&mut poster, "alice", "2"));
        under_way(&lab);
        lab.mux().stop();
        assert!(waiting.join().unwrap() < FAR_BEFORE_STOCK);
    });
    assert!(stands(&lab, "MAILBOX user.alice"), "{:?}", log(&lab));
    lab.replica.freeze(false);
    lab.mux().start();
    lab.settle();
}

/// The replica can't write one mailbox: its user goes on, and so do the others.
fn refused(way: Way) {
    let mut lab = lab_of(way, USUAL);
    let users = add_users(&lab, 3);
    let mut poster = lab.master.login(POSTER);
    users
        .iter()
        .for_each(|user| _ = post(&mut poster, user, "1"));
    lab.assert_same();
    lab.step("one mailbox is unwritable on the replica");
    let folder = lab.replica.mailbox_folder(&format!("user.{}", users[0]));
    let header = folder.join("cyrus.index");
    crate::support::process::set_mode(&header, 0o000);
    for user in &users {
        let took = post(&mut poster, user, "2");
        assert!(took < FAR_BEFORE_STOCK, "{user} waited for {took:?}");
    }
    for user in &users[1..] {
        assert_eq!(count(&lab.replica, user, "INBOX"), 2, "{user}");
    }
    assert!(
        stands(&lab, &format!("MAILBOX user.{}", users[0]))
            || stands(&lab, &format!("USER {}", users[0])),
        "{:?}",
        log(&lab)
    );
    lab.step("mended");
    crate::support::process::set_mode(&header, 0o600);
    lab.settle();
}

/// Where Cyrus logs for the channel as well nothing is lost even without syncmux, and without it:
/// the rolling client looks at everything once more.
fn a_logged_channel_forgets_nothing(way: Way) {
    let mut lab = lab_of(
        way,
        RightNow {
            logged: true,
            ..USUAL
        },
    );
    let users = lab.add_users(3);
    lab.mail(&users, "1", 2000);
    lab.settle();
    lab.step("syncmux, or the replica, is down");
    match &mut lab.mux {
        Some(mux) => mux.kill(),
        None => lab.replica.kill(),
    }
    lab.mail(&users, "2", 2000);
    match &mut lab.mux {
        Some(mux) => mux.start(),
        None => {
            lab.replica.resume();
            lab.replica.ready();
        }
    }
    lab.settle();
}

/// Why the channel must be logged as well: these are never sent, and nobody knows of them any more.
/// (Debian 12's Cyrus. If it is mended one day, this fails, and README.md can say so.)
#[test]
fn stock_leaves_out_what_has_appenduid() {
    let mut lab = lab_of(Way::Direct, USUAL);
    lab.add_user("alice");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("1", 2000));
    assert_eq!(count(&lab.replica, "alice", "INBOX"), 0);
    assert_eq!(leftovers(&lab.sync_directory()), [""; 0]);
    alice.select("INBOX");
    alice.store("1", "+FLAGS (\\Flagged)");
    assert_eq!(
        count(&lab.replica, "alice", "INBOX"),
        1,
        "with the next change"
    );
    lab.step("the end");
    lab.assert_same();
}

/// Why the lines are needed: stock to stock nobody knows of the change any more.
#[test]
fn stock_forgets() {
    let mut lab = lab_of(Way::Direct, USUAL);
    add_user(&lab, "alice");
    let mut poster = lab.master.login(POSTER);
    post(&mut poster, "alice", "1");
    lab.replica.kill();
    post(&mut poster, "alice", "2");
    assert_eq!(leftovers(&lab.sync_directory()), [""; 0]);
    lab.replica.resume();
    lab.replica.ready();
    assert_eq!(count(&lab.replica, "alice", "INBOX"), 1);
    assert_ne!(lab.differences(), [""; 0]);
}

/// A rolling client that is at a user holds the lock for which his imapd waits.
#[test]
fn a_rolling_client_in_the_way() {
    let mut lab = lab_of(Way::FanOut, USUAL);
    add_user(&lab, "alice");
    let mut poster = lab.master.login(POSTER);
    post(&mut poster, "alice", "1");
    lab.rolling();
    lab.step("the rolling client is at the user when the replica falls silent");
    lab.replica.freeze(true);
    let lines = ["USER alice".to_owned()];
    crate::support::client::put_log(&lab.sync_directory(), &lines);
    wait_for("the rolling client to ask", || {
        let sessions = lab.mux().status()["in_flight"].as_u64();
        (sessions > Some(0)).then_some(())
    });
    for round in 2..=4 {
        let took = post(&mut poster, "alice", &round.to_string());
        assert!(took < FAR_BEFORE_STOCK, "waited for {took:?}");
    }
    lab.replica.freeze(false);
    lab.settle();
}

/// An append costs GET and one burst; where imapd has a cache of its own only the burst. Stock to
/// stock: GET, RESERVE, MESSAGE, MAILBOX, RESTART; and no connection, TLS and login for each imapd.
#[test]
fn round_trips() {
    for (way, cached, expected) in [
        (Way::Direct, false, 5),
        (Way::Strict, false, 2),
        (Way::Direct, true, 4),
        (Way::Strict, true, 1),
    ] {
        let mut setup = Setup::new(way);
        setup.tls = false;
        setup.round_trip = Duration::from_millis(20);
        setup.lanes = 1;
        setup.channel = "far".to_owned();
        setup.rightnow = Some(RightNow { cached, ..USUAL });
        let lab = setup.start();
        add_user(&lab, "alice");
        let mut poster = lab.master.login(POSTER);
        post(&mut poster, "alice", "1");
        post(&mut poster, "alice", "2");
        lab.relay.record();
        post(&mut poster, "alice", "3");
        let mut turns = Vec::new();
        let mut was_up = false;
        for piece in lab.relay.tape() {
            let up = piece.direction == Direction::Up;
            if up && !was_up {
                turns.push(String::new());
            }
            if let (true, Some(turn)) = (up, turns.last_mut()) {
                turn.push_str(&String::from_utf8_lossy(&piece.bytes));
            }
            was_up = up;
        }
        assert_eq!(
            turns.len(),
            expected,
            "{way:?}, cached {cached}: {turns:#?}"
        );
        assert_eq!(count(&lab.replica, "alice", "INBOX"), 3);
        let before = lab.relay.counters().connections;
        post(&mut lab.master.login(POSTER), "alice", "4");
        if way == Way::Strict {
            assert_eq!(
                lab.relay.counters().connections,
                before,
                "one for each imapd"
            );
        }
    }
}

/// The set-up of README.md passes `check`, and what is wrong with another one is said.
#[test]
fn check_knows_the_set_up() {
    let mut lab = lab_of(
        Way::FanOut,
        RightNow {
            logged: true,
            ..USUAL
        },
    );
    let (code, said) = lab.mux().check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rightnow_listen"), "{said}");
}
