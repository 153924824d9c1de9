//! What the stock client does with an answer of the replica, stock to stock: the facts that promise 7
//! (and `src/core/policy.rs`) stand on. The link gives one command another answer than the replica's,
//! which has not done it then; what the client says next is read off the link.

use crate::support::client::{put_log, take_log};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::relay::Direction;
use crate::support::traps::{Deed, Trap};
use crate::support::version::Version;
use crate::support::wait_for;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const NO: &str = "NO Unknown error";
const LOCKED: &str = "NO IMAP_MAILBOX_LOCKED Mailbox locked";
const CHECKSUM: &str = "NO IMAP_SYNC_CHECKSUM Checksum Failure";

fn start(channel: &str) -> Lab {
    let mut setup = Setup::new(Way::Direct);
    setup.tls = false;
    setup.traps = true;
    // So that a deleted mailbox is UNMAILBOX.
    setup.both.immediate = true;
    channel.clone_into(&mut setup.channel);
    let mut lab = setup.start();
    for user in USERS {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.append("INBOX", "", &message(&format!("{user} 1"), 500));
        for name in ["INBOX.box", "INBOX.old"] {
            imap.create(name);
        }
    }
    lab.master.admin().set_acl("user.bob", "alice", "lrs");
    lab.settle();
    lab
}

/// What the client said from the refused command on, and whether it had to begin its run again: it
/// connects anew for that.
struct After {
    said: Vec<String>,
    again: bool,
}

impl After {
    fn says(&self, what: &str) -> bool {
        self.said.iter().any(|said| said.starts_with(what))
    }

    fn count(&self, what: &str) -> usize {
        self.said.iter().filter(|s| s.starts_with(what)).count()
    }
}

/// Gives `times` commands this answer, and lets the client do what it does until nothing is left.
fn answer(
    lab: &mut Lab,
    what: (&'static str, &str),
    no: &'static str,
    times: u32,
    act: fn(&Lab),
) -> After {
    let (verb, about) = what;
    lab.step(&format!("{no} to {verb}"));
    let trap = Trap::new(verb, about, Deed::Refuse(no)).times(times);
    lab.relay.set_traps(vec![trap]);
    lab.relay.open_traps();
    lab.relay.record();
    // All that is done is one run.
    lab.end_rolling();
    act(lab);
    let before = lab.relay.counters().connections;
    lab.rolling();
    wait_for("the command", || {
        (lab.relay.caught().len() >= times as usize).then_some(())
    });
    lab.replicate();
    let tape = lab.relay.tape();
    let up = tape.iter().filter(|piece| piece.direction == Direction::Up);
    let said: String = up.map(|p| String::from_utf8_lossy(&p.bytes)).collect();
    let commands = said
        .lines()
        .filter(|line| {
            ["GET ", "APPLY ", "RESTART"]
                .iter()
                .any(|v| line.starts_with(v))
        })
        .map(str::to_owned);
    After {
        said: commands.collect(),
        again: lab.relay.counters().connections > before + 1,
    }
}

fn mail(lab: &Lab) {
    lab.master
        .login("alice")
        .append("INBOX", "", &message("more", 500));
}

fn whole_user(lab: &Lab) {
    mail(lab);
    lab.master.login("alice").subscribe("INBOX");
    line(lab, "USER alice");
}

/// A run with nothing but this line.
fn line(lab: &Lab, line: &str) {
    let directory = lab.sync_directory();
    drop(take_log(&directory));
    put_log(&directory, &[line.to_owned()]);
}

const MAILBOX: (&str, &str) = ("APPLY MAILBOX", "MBOXNAME user.alice ");

/// NO to MAILBOX in a group of one user: the user is promoted to USER.
#[test]
fn no_to_mailbox() {
    let mut lab = start("");
    let after = answer(&mut lab, MAILBOX, NO, 1, mail);
    assert!(
        after.says("GET USER alice") && !after.again,
        "{:#?}",
        after.said
    );
    lab.assert_same();
}

/// IMAP_SYNC_CHECKSUM once: MAILBOX comes again. Twice: FULLMAILBOX is read. A third time: USER.
#[test]
fn checksum() {
    let mut lab = start("");
    let after = answer(&mut lab, MAILBOX, CHECKSUM, 1, mail);
    assert!(
        !after.says("GET FULLMAILBOX") && !after.says("GET USER"),
        "{:#?}",
        after.said
    );
    assert_eq!(after.count("APPLY MAILBOX"), 2, "{:#?}", after.said);
    lab.assert_same();
    let after = answer(&mut lab, MAILBOX, CHECKSUM, 2, mail);
    assert!(
        after.says("GET FULLMAILBOX user.alice"),
        "{:#?}",
        after.said
    );
    assert!(!after.says("GET USER") && !after.again, "{:#?}", after.said);
    lab.assert_same();
    let after = answer(&mut lab, MAILBOX, CHECKSUM, 3, mail);
    assert!(
        after.says("GET FULLMAILBOX user.alice"),
        "{:#?}",
        after.said
    );
    assert!(
        after.says("GET USER alice") && !after.again,
        "{:#?}",
        after.said
    );
    lab.assert_same();
}

/// Inside a USER sync LOCKED defers on a named channel; anything else ends the run.
#[test]
fn inside_a_user_sync_in_a_named_channel() {
    inside_a_user_sync_of("second", &[(LOCKED, false), (NO, true)]);
}

/// On the default channel everything does.
#[test]
fn inside_a_user_sync() {
    // Cyrus 3.2 defers there as well.
    let locked = Version::of(false).is_from("3.4");
    inside_a_user_sync_of("", &[(LOCKED, locked), (NO, true)]);
}

fn inside_a_user_sync_of(channel: &str, rows: &[(&'static str, bool)]) {
    let mut lab = start(channel);
    for (no, ends) in rows {
        for what in [("GET USER", "alice"), MAILBOX, ("APPLY SUB", "alice")] {
            let after = answer(&mut lab, what, no, 1, whole_user);
            assert_eq!(after.again, *ends, "{what:?} {no}: {:#?}", after.said);
            assert!(after.count("GET USER alice") >= 2, "{:#?}", after.said);
            lab.master.login("alice").unsubscribe("INBOX");
            lab.replicate();
        }
    }
    lab.assert_same();
}

/// The rows outside a USER sync: what is refused, and what makes the client say it.
type Row = ((&'static str, &'static str), fn(&Lab));

const ROWS: [Row; 7] = [
    (("APPLY SEEN", "alice"), |lab| {
        let mut alice = lab.master.login("alice");
        alice.select("user.bob");
        alice.store("1", "+FLAGS (\\Seen)");
        alice.run("UNSELECT");
    }),
    (("APPLY SUB", "alice"), |lab| {
        lab.master.login("alice").subscribe("INBOX.box")
    }),
    (("GET META", "alice"), |lab| line(lab, "META alice")),
    (("APPLY QUOTA", "alice"), |lab| {
        lab.master.admin().set_quota("user.alice", "STORAGE 70000")
    }),
    (("APPLY ANNOTATION", "user.alice"), |lab| {
        let mut admin = lab.master.admin();
        let value = fastrand::u32(..).to_string();
        admin.set_metadata("user.alice", "/shared/comment", Some(value.as_bytes()));
        // It logs MAILBOX by itself.
        line(lab, "ANNOTATION user.alice");
    }),
    (("APPLY UNMAILBOX", "alice"), |lab| {
        lab.master.login("alice").delete("INBOX.old")
    }),
    (("APPLY UNUSER", "carol"), |lab| {
        lab.master.admin().delete("user.carol");
        if lab.old_master() {
            // It does not log that by itself.
            line(lab, "UNUSER carol");
        }
    }),
];

/// What a client of Cyrus 3.2 sends behind the mailboxes of a run.
const BEHIND_MAILBOXES: [&str; 3] = ["GET META", "APPLY UNMAILBOX", "APPLY UNUSER"];

/// LOCKED to these sticks even where the client defers by itself: the run is done again. To MAILBOX
/// it does not.
#[test]
fn locked_outside_a_user_sync() {
    let mut lab = start("second");
    let after = answer(&mut lab, MAILBOX, LOCKED, 1, mail);
    assert!(
        !after.again && after.count("APPLY MAILBOX") == 2,
        "{:#?}",
        after.said
    );
    for (what, act) in ROWS {
        let after = answer(&mut lab, what, LOCKED, 1, act);
        // In Cyrus 3.2 the mailboxes come behind these, and what becomes of them counts.
        let overwritten = lab.old_master() && !BEHIND_MAILBOXES.contains(&what.0);
        assert_eq!(after.again, !overwritten, "{what:?}: {:#?}", after.said);
    }
    lab.assert_same();
}

/// A plain NO to these is promoted to META or USER. To UNMAILBOX and UNUSER it ends the run. QUOTA and
/// ANNOTATION are promoted to USER of nobody, and the client does not survive the replica's OK to that.
#[test]
fn no_outside_a_user_sync() {
    no_outside_a_user_sync_of("");
}

#[test]
fn no_outside_a_user_sync_in_a_named_channel() {
    no_outside_a_user_sync_of("second");
}

fn no_outside_a_user_sync_of(channel: &str) {
    let mut lab = start(channel);
    for (what, act) in ROWS {
        let after = answer(&mut lab, what, NO, 1, act);
        let said = &after.said;
        let promoted = match what.0 {
            "APPLY SEEN" | "APPLY SUB" => Some("GET META alice"),
            "GET META" => Some("GET USER alice"),
            "APPLY QUOTA" | "APPLY ANNOTATION" => Some("GET USER NIL"),
            _ => None,
        };
        // Cyrus 3.2 promotes QUOTA and ANNOTATION to MAILBOX of that very mailbox.
        let old = lab.old_master();
        let promoted = match promoted {
            Some("GET USER NIL") if old => Some("GET MAILBOXES (user.alice"),
            promoted => promoted,
        };
        let of_nobody = promoted == Some("GET USER NIL");
        let ends = of_nobody || matches!(what.0, "APPLY UNMAILBOX" | "APPLY UNUSER");
        assert_eq!(after.again, ends, "{what:?}: {said:#?}");
        assert!(promoted.is_none_or(|next| after.says(next)), "{said:#?}");
        if of_nobody {
            assert!(!lab.client_has_lived(), "{said:#?}");
        }
    }
    // And so the quota is forgotten.
    let forgotten: &[&str] = if lab.old_master() {
        &[
            "GETQUOTAROOT \"user.alice",
            "APPLY QUOTA %(ROOT user.alice ",
        ]
    } else {
        &[]
    };
    lab.assert_same_but(forgotten);
}

/// A refused annotation of the server: the run is done again, or it is forgotten where something comes
/// behind it.
#[test]
fn refused_annotation_of_the_server() {
    let mut lab = start("");
    if lab.old_replica() && !lab.old_master() {
        // It refuses by itself, for ever: `versions::annotation_of_the_server_to_3_2`.
        return;
    }
    for alone in [true, false] {
        let act: fn(&Lab) = if alone {
            site_comment
        } else {
            site_comment_and_seen
        };
        let after = answer(&mut lab, ("APPLY ANNOTATION", "MBOXNAME \"\""), NO, 1, act);
        // Cyrus 3.2 forgets it either way.
        let again = alone && !lab.old_master();
        assert_eq!(after.again, again, "{:#?}", after.said);
        let found = lab.differences().join("\n");
        assert_eq!(found.is_empty(), again, "{found}");
    }
}

fn site_comment(lab: &Lab) {
    let value = fastrand::u32(..).to_string();
    let mut admin = lab.master.admin();
    admin.set_metadata("", "/shared/comment", Some(value.as_bytes()));
}

fn site_comment_and_seen(lab: &Lab) {
    site_comment(lab);
    (ROWS[0].1)(lab);
}

/// RENAME inside a USER sync: the run is done again, LOCKED in a named channel defers.
#[test]
fn rename_inside_a_user_sync() {
    for (channel, no, ends) in [
        ("", NO, true),
        ("second", NO, true),
        ("second", LOCKED, false),
    ] {
        let mut lab = start(channel);
        let what = ("APPLY RENAME", "user.alice.box");
        let after = answer(&mut lab, what, no, 1, |lab| {
            lab.master.login("alice").rename("INBOX.box", "INBOX.new");
            line(lab, "USER alice");
        });
        assert_eq!(after.again, ends, "{channel} {no}: {:#?}", after.said);
        assert_eq!(after.count("APPLY RENAME"), 2, "{:#?}", after.said);
        lab.assert_same();
    }
}

/// With -O (no copyback) the client sends MAILBOX again after one IMAP_SYNC_CHECKSUM, and gives up
/// after two: it never reads FULLMAILBOX.
#[test]
fn checksum_without_copyback() {
    let mut lab = start("");
    for times in [1, 2] {
        lab.step(&format!("{times}"));
        // A rolling client would be faster, and its command the one that is refused.
        lab.end_rolling();
        mail(&lab);
        let (verb, about) = MAILBOX;
        let trap = Trap::new(verb, about, Deed::Refuse(CHECKSUM)).times(times);
        lab.relay.set_traps(vec![trap]);
        lab.relay.open_traps();
        let arguments = ["-v", "-v", "-o", "-O", "-u", "alice"];
        let outcome = lab.link_client().run(&arguments);
        if lab.old_replica() && !lab.old_master() {
            // A newer client begins with FORCE, which this one does not know.
            assert!(outcome.code != Some(0) && outcome.output.contains("FORCE received NO"));
            return;
        }
        assert_eq!(outcome.code == Some(0), times == 1, "{}", outcome.output);
        assert_eq!(lab.relay.caught().len(), times as usize);
        assert!(
            !outcome.output.contains("FULLMAILBOX"),
            "{}",
            outcome.output
        );
        lab.replicate();
        lab.assert_same();
    }
}

/// NO to one of several shared mailboxes fails those behind it too: they are not sent. Where theirs was
/// the last group the run is done again, else the refusal is forgotten, of all of them.
#[test]
fn no_to_a_shared_mailbox() {
    let mut lab = start("");
    let mut admin = lab.master.admin();
    for name in SHARED {
        admin.create(name);
        admin.set_acl(name, "cyrus", "lrswipkxtecdan");
    }
    lab.settle();
    let first = ("APPLY MAILBOX", "MBOXNAME shared.a ");
    let after = answer(&mut lab, first, NO, 1, mail_to_shared);
    assert!(after.again, "{:#?}", after.said);
    lab.assert_same();
    let after = answer(&mut lab, first, NO, 1, |lab| {
        mail_to_shared(lab);
        for user in USERS {
            lab.master
                .login(user)
                .append("INBOX", "", &message("more", 500));
        }
    });
    let refused = |said: &String| said.contains(first.1);
    let at = after.said.iter().position(refused).unwrap();
    // The client introduces itself again before it does the run again.
    let mut same_run = after.said[at..]
        .iter()
        .take_while(|said| !said.starts_with("APPLY CAPABILITIES"));
    let is_last = !same_run.any(|said| said.starts_with("GET MAILBOXES (user."));
    let found = lab.differences().join("\n");
    assert_eq!(after.again, is_last, "{:#?}", after.said);
    for name in SHARED {
        assert_eq!(found.contains(name), !is_last, "{name}: {found}");
    }
}

const SHARED: [&str; 2] = ["shared.a", "shared.b"];

fn mail_to_shared(lab: &Lab) {
    let mut admin = lab.master.admin();
    for name in SHARED {
        admin.append(name, "", &message(name, 500));
    }
}
