//! What crosses the network, read off the link: round trips, FORCE, who waits for whom.

use crate::support::client::{leftovers, put_log, take_log};
use crate::support::csync::Csync;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::relay::{Direction, Piece};
use crate::support::wait_for;

ways!(round_trips: strict);
ways!(a_known_mailbox_costs_one_burst: strict);
ways!(what_the_replica_has_is_asked_about: strict);
ways!(force_stays_with_its_session: strict, fan_out);

/// Without TLS, so that the link can be read.
fn readable(way: Way) -> Setup {
    let mut setup = Setup::new(way);
    setup.tls = false;
    setup.round_trip = std::time::Duration::from_millis(20);
    setup
}

/// What the client's side said on a connection, cut wherever the server had answered.
fn turns(tape: &[Piece], connection: u64) -> Vec<String> {
    let mut turns = Vec::new();
    let mut was_up = false;
    for piece in tape.iter().filter(|p| p.connection == connection) {
        let up = piece.direction == Direction::Up;
        if up {
            if !was_up {
                turns.push(String::new());
            }
            let said = String::from_utf8_lossy(&piece.bytes);
            turns.last_mut().unwrap().push_str(&said);
        }
        was_up = up;
    }
    turns
}

fn connections(tape: &[Piece]) -> std::collections::BTreeSet<u64> {
    tape.iter().map(|piece| piece.connection).collect()
}

/// An append to a known mailbox costs GET and one burst. Stock to stock it is GET, RESERVE, MESSAGE,
/// MAILBOX and RESTART, one round trip each (capture 03).
fn round_trips(way: Way) {
    let mut setup = readable(way);
    setup.lanes = 1;
    let mut lab = setup.start();
    lab.add_user("alice");
    lab.mail(&["alice"], "1", 2000);
    lab.settle();
    lab.end_rolling();
    lab.mail(&["alice"], "2", 2000);
    let lines = take_log(&lab.sync_directory());
    lab.relay.record();
    lab.strict_client().log(&lines).expect_ok("-r -f");
    let tape = lab.relay.tape();
    let said = connections(&tape).into_iter().map(|c| turns(&tape, c));
    let with_work = |turns: &Vec<String>| turns.iter().any(|t| t.contains("APPLY MAILBOX"));
    let all: Vec<Vec<String>> = said.filter(with_work).collect();
    assert_eq!(all.len(), 1, "one lane: {all:#?}");
    let work = |turn: &&String| {
        ["GET ", "APPLY ME", "APPLY R", "APPLY MA"]
            .iter()
            .any(|v| turn.starts_with(v))
    };
    let turns: Vec<&String> = all[0].iter().filter(work).collect();
    assert_eq!(turns.len(), 2, "GET and one burst: {turns:#?}");
    assert!(
        turns[0].starts_with("GET MAILBOXES (user.alice)\r\n"),
        "{turns:#?}"
    );
    assert!(turns[1].starts_with("APPLY MESSAGE (%{"), "{turns:#?}");
    assert!(turns[1].contains("\r\nAPPLY MAILBOX %("), "{turns:#?}");
    lab.settle();
}

/// By the rolling client's listener nothing is asked about what is known.
fn a_known_mailbox_costs_one_burst(way: Way) {
    let mut setup = readable(way);
    setup.lanes = 1;
    let mut lab = setup.start();
    lab.add_user("alice");
    lab.mail(&["alice"], "1", 2000);
    lab.settle();
    lab.mail(&["alice"], "2", 2000);
    lab.settle();
    lab.relay.record();
    lab.mail(&["alice"], "3", 2000);
    lab.replicate();
    let tape = lab.relay.tape();
    let said = connections(&tape).into_iter().map(|c| turns(&tape, c));
    let with_work = |turns: &Vec<String>| turns.iter().any(|t| t.contains("APPLY MAILBOX"));
    let all: Vec<Vec<String>> = said.filter(with_work).collect();
    assert_eq!(all.len(), 1, "one lane: {all:#?}");
    let text = all[0].concat();
    let updates = text.matches("APPLY MAILBOX").count();
    let bursts = all[0].iter().filter(|t| t.contains("APPLY ")).count();
    assert_eq!(updates, bursts, "{all:#?}");
    let (before, _) = text.split_once("APPLY MAILBOX").unwrap();
    assert!(!before.contains("GET "), "{all:#?}");
    lab.settle();
}

/// Round trips, and bytes towards the replica, of what a change makes the rolling client say.
fn cost(lab: &mut Lab, what: &str, act: impl FnOnce(&Lab)) -> (usize, usize) {
    lab.step(what);
    lab.end_rolling();
    act(lab);
    lab.relay.record();
    lab.replicate();
    let tape = lab.relay.tape();
    let all = connections(&tape).into_iter();
    let turns: Vec<String> = all.flat_map(|c| turns(&tape, c)).collect();
    let is_work = |turn: &&String| turn.contains("APPLY M") || turn.contains("APPLY RESERVE");
    // The client of Cyrus 3.2 sends the source of a copy, too.
    let source =
        |turn: &&String| turn.starts_with("APPLY MAILBOX") && turn.contains("MBOXNAME user.alice ");
    let about_copy = turns
        .iter()
        .any(|turn| turn.contains("MBOXNAME user.alice.box "));
    let turns: Vec<&String> = turns
        .iter()
        .filter(is_work)
        .filter(|turn| !(about_copy && source(turn)))
        .collect();
    let bytes = turns.iter().map(|turn| turn.len()).sum();
    println!("{what}: {} round trips, {bytes} bytes", turns.len());
    (turns.len(), bytes)
}

/// A small message goes out with its MAILBOX; a large one, and any copy, is asked about first.
fn what_the_replica_has_is_asked_about(way: Way) {
    const SMALL: usize = 4_000;
    const LARGE: usize = 300_000;
    for (reserve_above, for_large) in [("128KiB", 2), ("1MiB", 1)] {
        let mut setup = readable(way);
        setup.lanes = 1;
        setup.mux_extra = format!("[limits]\nreserve_above = \"{reserve_above}\"\n");
        let mut lab = setup.start();
        lab.add_user("alice");
        let mut alice = lab.master.login("alice");
        alice.create("INBOX.box");
        let append = |lab: &Lab, size| {
            let mut alice = lab.master.login("alice");
            alice.append(
                "INBOX",
                "",
                &message(&format!("new {size} {}", fastrand::u32(..)), size),
            );
        };
        let copy = |lab: &Lab| {
            // A new lane: on the old one the message may still be staged.
            lab.relay.reset();
            let mut alice = lab.master.login("alice");
            alice.select("INBOX");
            alice.copy("*", "INBOX.box");
        };
        append(&lab, SMALL);
        copy(&lab);
        lab.settle();
        println!("reserve_above = {reserve_above}");
        let (turns, bytes) = cost(&mut lab, "append of 4 KB", |lab| append(lab, SMALL));
        assert!(turns == 1 && bytes > SMALL, "{turns} {bytes}");
        // Both mailboxes are in the client's run, and so in one RESERVE.
        let (turns, bytes) = cost(&mut lab, "copy of 4 KB", copy);
        assert!(turns == 2 && bytes < SMALL, "{turns} {bytes}");
        let (turns, bytes) = cost(&mut lab, "append of 300 KB", |lab| append(lab, LARGE));
        assert!(turns == for_large && bytes > LARGE, "{turns} {bytes}");
        let (turns, bytes) = cost(&mut lab, "copy of 300 KB", copy);
        assert!(turns == 2 && bytes < SMALL, "{turns} {bytes}");
        lab.settle();
    }
}

/// Six clients at once, each for its own user, on two lanes.
#[test]
fn several_sessions_share_lanes() {
    let mut setup = readable(Way::Strict);
    setup.lanes = 2;
    let mut lab = setup.start();
    let users = ["alice", "bob", "carol", "dave", "erin", "frank"];
    for user in users {
        lab.add_user(user);
    }
    lab.mail(&users, "1", 2000);
    lab.settle();
    lab.end_rolling();
    lab.mail(&users, "2", 2000);
    drop(take_log(&lab.sync_directory()));
    lab.relay.record();
    let run = |user| {
        let client = lab.strict_client();
        std::thread::spawn(move || client.user(&[user]).expect_ok("-u"))
    };
    for client in users.map(run) {
        client.join().unwrap();
    }
    let tape = lab.relay.tape();
    let said = connections(&tape)
        .into_iter()
        .map(|c| turns(&tape, c).concat());
    let updates: Vec<usize> = said
        .map(|text| text.matches("APPLY MAILBOX").count())
        .filter(|updates| *updates > 0)
        .collect();
    assert!(updates.len() <= 2, "{updates:?}");
    assert_eq!(updates.iter().sum::<usize>(), users.len());
    lab.assert_same();
}

/// The client finishes its whole run while not one APPLY MAILBOX of it has been answered; the
/// journal stays until they are.
#[test]
fn fan_out_waits_for_no_unit_of_another_user() {
    let mut lab = readable(Way::FanOut).start();
    let users = ["alice", "bob", "carol", "dave", "erin", "frank"];
    for user in users {
        lab.add_user(user);
    }
    lab.mail(&users, "1", 2000);
    lab.settle();
    lab.step("a lane for each of the two and one for GET");
    lab.open_lanes(&users[..3]);
    lab.end_rolling();
    lab.step("answers are held back");
    lab.mail(&users[..2], "2", 2000);
    let directory = lab.sync_directory();
    let lines = take_log(&directory);
    lab.relay.hold_answers_to(Some("APPLY MAILBOX"));
    put_log(&directory, &lines);
    lab.rolling();
    wait_for("the client to be done", || {
        let left = leftovers(&directory);
        let client_is_done = !left.iter().any(|name| name.starts_with("log"));
        client_is_done.then_some(())
    });
    let left = leftovers(&directory);
    assert!(
        left.iter().any(|name| name.starts_with("syncmux-run-")),
        "the link must outlast log-run: {left:?}"
    );
    wait_for("two unconfirmed users", || {
        (lab.mux().metric("syncmux_unconfirmed_users", &[]) == 2.0).then_some(())
    });
    lab.step("they arrive");
    lab.relay.hold_answers_to(None);
    lab.settle();
    assert!(lab.client_has_lived());
}

/// FORCE sets a variable of the replica's process that nothing resets (protocol.md 20).
fn force_stays_with_its_session(way: Way) {
    let mut lab = readable(way).start();
    let users = ["alice", "bob", "carol"];
    for user in users {
        lab.add_user(user);
    }
    lab.mail(&users, "1", 2000);
    lab.settle();
    lab.relay.record();
    lab.step("a session that has said FORCE works beside others");
    let listen = lab.mux().strict_listen.clone();
    let mut forced = Csync::login(&listen);
    let answer = forced.ask("APPLY FORCE %()");
    if lab.old_replica() {
        // It knows no such thing, and the session is told so; there is nothing to keep apart.
        assert_eq!(answer, "NO IMAP_PROTOCOL_ERROR Protocol error\r\n");
        return;
    }
    assert!(answer.starts_with("OK"), "{answer:?}");
    lab.mail(&users, "2", 2000);
    lab.replicate();
    let answer = forced.ask("GET USER alice");
    assert!(answer.contains("* MAILBOX %("), "{answer:?}");
    lab.strict_client().user(&["bob"]).expect_ok("-u");
    let answer = forced.ask("GET MAILBOXES (user.alice)");
    assert!(answer.contains("* MAILBOX %("), "{answer:?}");
    assert_eq!(forced.ask("EXIT"), "OK Finished\r\n");
    lab.step("a stock client with -O, and others after it");
    if lab.old_master() {
        // Of two clients of 3.2 for one user, one is told that the mailbox has changed meanwhile.
        lab.end_rolling();
    }
    lab.mail(&users, "3", 2000);
    let client = lab.strict_client();
    let arguments = ["-v", "-v", "-o", "-O", "-u", "carol"];
    client.run(&arguments).expect_ok("-O -u");
    client.user(&["bob"]).expect_ok("-u");
    lab.settle();
    // The client of Cyrus 3.2 says no FORCE with its -O.
    let forced: &[&str] = if lab.old_master() {
        &["alice"]
    } else {
        &["alice", "carol"]
    };
    let tape = lab.relay.tape();
    let said = |connection: u64| -> String { turns(&tape, connection).concat() };
    let all: Vec<String> = connections(&tape).into_iter().map(said).collect();
    let with_force: Vec<&String> = all.iter().filter(|t| t.contains("APPLY FORCE")).collect();
    assert_eq!(
        with_force.len(),
        forced.len(),
        "a lane for each of them: {all:#?}"
    );
    for (text, whose) in with_force.iter().zip(forced) {
        let (_, after) = text.split_once("APPLY FORCE").unwrap();
        assert!(after.contains(&format!("GET USER {whose}")), "{after}");
        for other in users.iter().filter(|user| *user != whose) {
            assert!(
                !after.contains(other),
                "{other} on the lane of {whose}: {after}"
            );
        }
        assert!(after.ends_with("EXIT\r\n"), "the lane was kept: {after}");
    }
}
