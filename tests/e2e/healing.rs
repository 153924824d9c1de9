//! What becomes of a command whose answer never came, or was a refusal: of the ones that syncmux
//! acknowledges before the replica has answered, of what was queued behind them, and of the ones
//! that it never acknowledges early because no line of the log could bring them back. The rolling
//! client goes on, nobody helps, and both ends agree.

use std::time::Duration;

use crate::support::client::{leftovers, put_log, take_log};
use crate::support::csync::Csync;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::process::set_mode;
use crate::support::relay::{Direction, Piece};
use crate::support::traps::{Deed, Trap};
use crate::support::version::Version;
use crate::support::wait_for;

ways!(unmailbox: direct, strict, fan_out);
ways!(unuser: direct, strict, fan_out);
ways!(rename: direct, strict, fan_out);
ways!(expunge: direct, strict, fan_out);

/// Without TLS, so that the link can catch single commands.
fn lab(way: Way, lanes: usize) -> Setup {
    let mut setup = Setup::new(way);
    setup.tls = false;
    setup.traps = true;
    setup.lanes = lanes;
    setup
}

const REFUSED: Deed = Deed::Refuse("NO Unknown error");

/// The verbs that are acknowledged early, each with what tells it from the user's other commands.
const VERBS: &[(&str, &str)] = &[
    ("APPLY MAILBOX", " MBOXNAME user.{user} "),
    ("APPLY SEEN", "USERID {user} "),
    ("APPLY SUB", "USERID {user} "),
    ("APPLY UNSUB", "USERID {user} "),
];

fn trap((verb, about): (&'static str, &str), user: &str, deed: Deed) -> Trap {
    Trap::new(verb, &about.replace("{user}", user), deed)
}

/// A user with two mailboxes, and one who reads another's mail.
fn furnish(lab: &Lab, users: &[String]) {
    lab.add_user("library");
    let mut library = lab.master.login("library");
    let mut admin = lab.master.admin();
    for user in users {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.create("INBOX.box");
        imap.append("INBOX", "", &message(&format!("{user} 1"), 1000));
        imap.subscribe("INBOX.box");
        library.create(&format!("INBOX.{user}"));
        let book = message(&format!("a book for {user}"), 1000);
        library.append(&format!("INBOX.{user}"), "", &book);
        admin.set_acl(&format!("user.library.{user}"), user, "lrs");
    }
}

/// Everything that is acknowledged early, of each user, in one run: two mailboxes, what he has read,
/// what he subscribed to and what not any more.
fn change(lab: &Lab, users: &[String], what: &str) {
    for user in users {
        let mut imap = lab.master.login(user);
        for mailbox in ["INBOX", "INBOX.box"] {
            imap.append(
                mailbox,
                "",
                &message(&format!("{user} {mailbox} {what}"), 1000),
            );
        }
        imap.subscribe("INBOX");
        imap.unsubscribe("INBOX.box");
        imap.select(&format!("user.library.{user}"));
        imap.store("1", "+FLAGS (\\Seen)");
        imap.run("UNSELECT");
        imap.subscribe(&format!("user.library.{user}"));
    }
}

/// Opens all lanes: what is held would hold what is put behind it while others are still opening.
/// Each UNMAILBOX wants a lane for itself; there is no such mailbox.
fn warm_up(lab: &mut Lab) {
    let lanes = lab.setup.lanes;
    let listen = lab.mux().strict_listen.clone();
    let capable = !lab.old_master() && !lab.old_replica();
    lab.relay.hold_answers_to(Some("APPLY UNMAILBOX"));
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let listen = &listen;
            scope.spawn(move || {
                let mut csync = Csync::login(listen);
                // As the stock client does: lanes of another kind would not serve it.
                if capable {
                    csync.ask("APPLY CAPABILITIES (SIEVE-MAILBOX)");
                }
                csync.ask(&format!("APPLY UNMAILBOX user.lane{lane}.x"));
            });
        }
        wait_for("all lanes", || {
            let mut open = |state| lab.mux().metric("syncmux_lanes", &[("state", state)]);
            (open("idle") + open("busy") >= lanes as f64).then_some(())
        });
        lab.relay.hold_answers_to(None);
    });
}

/// Replicates the changes up to the traps: the client has been told OK for all of them while the
/// traps hold what they caught.
fn catch(lab: &mut Lab, traps: Vec<Trap>) {
    let directory = lab.sync_directory();
    let lines = take_log(&directory);
    let count = traps.len();
    let waits = lab.old_master() && !traps.iter().any(|trap| trap.verb == "APPLY MAILBOX");
    lab.relay.set_traps(traps);
    put_log(&directory, &lines);
    lab.rolling();
    wait_for("the client to be done", || {
        let left = leftovers(&directory);
        // With Cyrus 3.2 its GET of all users comes behind what is caught of some: it waits for that.
        let done = !left.iter().any(|name| name.starts_with("log"));
        (done || waits).then_some(())
    });
    wait_for("all traps to have caught something", || {
        (lab.relay.caught().len() == count).then_some(())
    });
}

/// Each verb refused, lost before the replica saw it, and lost after the replica had done it, each of
/// a user of its own.
#[test]
fn refused_and_lost() {
    let deeds = [REFUSED, Deed::CutBefore, Deed::CutAfter];
    let cases = VERBS
        .iter()
        .flat_map(|verb| deeds.map(|deed| (*verb, deed)));
    in_the_clients_order("refused, lost before, lost after", cases.collect(), false);
}

/// The replica goes away with each of them, and comes back.
#[test]
fn replica_away() {
    let cases = VERBS.iter().map(|verb| (*verb, Deed::CutBefore));
    in_the_clients_order("away", cases.collect(), true);
}

/// A client of Cyrus 3.2 asks about the mailboxes of all users behind their SEEN and SUB: what is caught
/// of these would keep it from sending a MAILBOX.
fn in_the_clients_order(step: &str, cases: Vec<((&'static str, &'static str), Deed)>, away: bool) {
    if Version::of(false).is_from("3.4") {
        return all_at_once(step, cases, away);
    }
    let is_mailbox = |((verb, _), _): &((&str, &str), Deed)| *verb == "APPLY MAILBOX";
    let (mailboxes, others) = cases.into_iter().partition(is_mailbox);
    all_at_once(step, mailboxes, away);
    all_at_once(step, others, away);
}

fn all_at_once(step: &str, cases: Vec<((&'static str, &'static str), Deed)>, away: bool) {
    // More lanes than are held.
    let mut lab = lab(Way::FanOut, cases.len() + 8).start();
    let users: Vec<String> = (0..cases.len()).map(|i| format!("u{i:02}")).collect();
    furnish(&lab, &users);
    lab.settle_but(lab.subscribed_too_early());
    lab.end_rolling();
    warm_up(&mut lab);
    lab.step(step);
    change(&lab, &users, "2");
    let of = |(user, (verb, deed)): (&String, &((&'static str, &'static str), Deed))| {
        trap(*verb, user, *deed)
    };
    let traps = users.iter().zip(&cases).map(of).collect();
    catch(&mut lab, traps);
    if away {
        lab.relay.refuse(true);
        lab.relay.open_traps();
        lab.relay.reset();
        wait_for("syncmux to see that the replica is away", || {
            let labels = [("side", "replica")];
            (lab.mux().metric("syncmux_failures_total", &labels) > 1.0).then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        lab.relay.refuse(false);
    } else {
        lab.relay.open_traps();
    }
    lab.settle();
    assert!(lab.client_has_lived());
}

/// The same for a client with -L, whose updates have a verb of their own.
#[test]
fn local_mailbox() {
    let verb = ("APPLY LOCAL_MAILBOX", " MBOXNAME user.{user} ");
    let deeds = [REFUSED, Deed::CutBefore, Deed::CutAfter];
    let mut setup = lab(Way::FanOut, deeds.len() + 8);
    setup.client_options = vec!["-L"];
    let mut lab = setup.start();
    let users = ["u00", "u01", "u02"].map(str::to_owned);
    furnish(&lab, &users);
    lab.settle_but(lab.subscribed_too_early());
    lab.end_rolling();
    warm_up(&mut lab);
    lab.step("refused, lost before, lost after");
    change(&lab, &users, "2");
    let traps = users
        .iter()
        .zip(deeds)
        .map(|(user, deed)| trap(verb, user, deed));
    catch(&mut lab, traps.collect());
    lab.relay.open_traps();
    lab.settle();
    assert!(lab.client_has_lived());
}

/// Everything around a command that no line could bring back: the connection is cut, or the client,
/// the replica or syncmux is killed, before the replica has seen it and after it has done it.
fn around(way: Way, verb: &'static str, about: &str, immediate: bool, act: fn(&Lab, &str)) {
    let mut setup = lab(way, 4);
    setup.both.immediate = immediate;
    let mut lab = setup.start();
    let mut what_dies = vec!["the link", "the client", "the replica"];
    if way != Way::Direct {
        what_dies.push("syncmux");
    }
    let both = |what| [(what, Deed::CutBefore), (what, Deed::CutAfter)];
    let moments: Vec<_> = what_dies.into_iter().flat_map(both).collect();
    let users: Vec<String> = (0..moments.len()).map(|i| format!("u{i:02}")).collect();
    for user in &users {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.create("INBOX.box");
        for mailbox in ["INBOX", "INBOX.box"] {
            imap.append(mailbox, "", &message(&format!("{user} {mailbox}"), 1000));
        }
    }
    lab.settle();
    for (user, (what, deed)) in users.iter().zip(moments) {
        lab.step(&format!("{verb}: {what} dies, {deed:?}"));
        lab.relay.set_traps(vec![trap((verb, about), user, deed)]);
        act(&lab, user);
        lab.rolling().keep_alive();
        wait_for(&format!("{verb} to be on its way"), || {
            (!lab.relay.caught().is_empty()).then_some(())
        });
        match what {
            "the client" => lab.rolling().kill(),
            "the replica" => lab.replica.kill(),
            "syncmux" => lab.mux().kill(),
            _ => {}
        }
        lab.relay.open_traps();
        match what {
            "the replica" => {
                lab.replica.resume();
                lab.replica.ready();
            }
            "syncmux" => lab.mux().start(),
            _ => {}
        }
        lab.settle();
    }
}

fn unmailbox(way: Way) {
    around(
        way,
        "APPLY UNMAILBOX",
        "user.{user}.box",
        true,
        |lab, user| {
            lab.master.login(user).delete("INBOX.box");
        },
    );
}

fn unuser(way: Way) {
    around(way, "APPLY UNUSER", "{user}", false, |lab, user| {
        lab.master.admin().delete(&format!("user.{user}"));
        if lab.old_master() {
            // It logs none where a deleted user can still be brought back.
            let directory = lab.sync_directory();
            let mut lines = take_log(&directory);
            lines.push(format!("UNUSER {user}"));
            put_log(&directory, &lines);
        }
    });
}

fn rename(way: Way) {
    around(
        way,
        "APPLY RENAME",
        "user.{user}.box",
        false,
        |lab, user| {
            let mut imap = lab.master.login(user);
            imap.rename("INBOX.box", "INBOX.new");
            imap.append("INBOX.new", "", &message("behind the rename", 1000));
        },
    );
}

/// The client expunges where both ends have different messages with one UID.
fn expunge(way: Way) {
    around(way, "APPLY EXPUNGE", "user.{user} ", false, |lab, user| {
        let message = |what: &str| message(&format!("{user} {what}"), 1000);
        lab.replica
            .login(user)
            .append("INBOX", "", &message("there"));
        lab.master.login(user).append("INBOX", "", &message("here"));
    });
}

/// A client that is told NO to a QUOTA or an ANNOTATION promotes it to USER of nobody and ends its run, or
/// forgets it where it is the server's own (`answers`): it is not told, and the line brings it back.
#[test]
fn refused_quota_and_annotations() {
    let mut lab = lab(Way::FanOut, 4).start();
    lab.add_user("alice");
    lab.settle();
    type Row = ((&'static str, &'static str), fn(&Lab));
    let acts: [Row; 3] = [
        (("APPLY QUOTA", "user.alice"), |lab| {
            lab.master.admin().set_quota("user.alice", "STORAGE 70000");
        }),
        (("APPLY ANNOTATION", "user.alice"), |lab| {
            let mut admin = lab.master.admin();
            admin.set_metadata("user.alice", "/shared/comment", Some(b"a comment"));
            // It logs MAILBOX by itself.
            let directory = lab.sync_directory();
            drop(take_log(&directory));
            put_log(&directory, &["ANNOTATION user.alice".to_owned()]);
        }),
        (("APPLY ANNOTATION", "MBOXNAME \"\""), |lab| {
            let mut admin = lab.master.admin();
            admin.set_metadata("", "/shared/comment", Some(b"the whole site"));
        }),
    ];
    // A replica of Cyrus 3.2 never takes the last one: `versions::annotation_of_the_server`.
    let count = if lab.old_replica() { 2 } else { 3 };
    for ((verb, about), act) in acts.into_iter().take(count) {
        lab.step(&format!("{verb} {about}"));
        lab.relay.set_traps(vec![Trap::new(verb, about, REFUSED)]);
        lab.relay.open_traps();
        lab.end_rolling();
        act(&lab);
        lab.settle();
        assert_eq!(lab.relay.caught().len(), 1, "{verb} {about}");
        assert!(lab.client_has_lived());
        assert!(!lab.rolling().output().contains("GET USER NIL"));
    }
}

/// What the replica has locked for a moment is asked again, and nobody is put on probation.
#[test]
fn locked_for_a_moment() {
    let mut setup = lab(Way::FanOut, 4);
    // Every question goes to the replica.
    setup.mux_extra = "[limits]\nknown_state = 0\n".to_owned();
    let mut lab = setup.start();
    lab.add_user("alice");
    lab.settle();
    let locked = Deed::Refuse("NO IMAP_MAILBOX_LOCKED Mailbox locked");
    for verb in ["APPLY MAILBOX", "GET MAILBOXES"] {
        lab.step(verb);
        let trap = Trap::new(verb, "user.alice", locked).times(3);
        lab.relay.set_traps(vec![trap]);
        lab.relay.open_traps();
        lab.master
            .login("alice")
            .append("INBOX", "", &message(verb, 1000));
        lab.settle();
        assert_eq!(lab.relay.caught().len(), 3);
    }
    let log = lab.mux().log_text();
    assert!(!log.contains("on probation"), "{log}");
    assert!(!lab.rolling().output().contains("LOCKED"));
}

/// The real thing: a replica that can't take its locks says so, until it can.
#[test]
fn locked_on_the_replica() {
    let mut lab = lab(Way::FanOut, 4).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
    }
    lab.settle();
    lab.step("the replica can't take its locks");
    let locks = lab.replica.path("lock");
    set_mode(&locks, 0);
    lab.relay.record();
    for user in ["alice", "bob"] {
        let text = message(&format!("{user} 2"), 1000);
        lab.master.login(user).append("INBOX", "", &text);
    }
    lab.rolling();
    wait_for("the replica to say that it is locked", || {
        let tape = lab.relay.tape();
        let said = tape.iter().filter(|p| p.direction == Direction::Down);
        // Cyrus 3.2 has no word for that.
        let words = if lab.old_replica() {
            "NO Unknown error"
        } else {
            "IMAP_MAILBOX_LOCKED"
        };
        let locked = |p: &&Piece| String::from_utf8_lossy(&p.bytes).contains(words);
        (said.filter(locked).count() >= 2).then_some(())
    });
    lab.step("it can again");
    set_mode(&locks, 0o755);
    lab.settle();
    assert!(lab.client_has_lived());
}
