//! Several versions of Cyrus, whatever the other tests are run with: what fails stock to stock because
//! each end writes literals in its own way works through syncmux, and a quick look at each pair with
//! Debian 12's Cyrus. All tests for all pairs are run by `tests/run.sh --versions`.

use crate::support::client::take_log;
use crate::support::compare;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::version::between;
use crate::support::wait_for;

/// A newer client can't read the literals of an older replica (`{n+}`, where it knows `{n}` only).
/// Stock to stock such a mailbox never gets new mail, nor does anybody behind it in the run.
fn literals_of_the_replica(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.add_user("alice");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("one", 2000));
    lab.settle();
    lab.step("an annotation that goes as a literal");
    let value = "8-bit: \u{fc}, and a \"quote\"";
    let mut admin = lab.master.admin();
    admin.set_metadata("user.alice", "/shared/comment", Some(value.as_bytes()));
    lab.replicate();
    lab.step("mail to the mailbox that has it");
    lab.end_rolling();
    alice.append("INBOX", "", &message("two", 2000));
    if way != Way::Direct {
        lab.settle();
        assert!(lab.client_has_lived());
        return;
    }
    let lines = take_log(&lab.sync_directory());
    let outcome = lab.link_client().log(&lines);
    let asks = outcome.output.contains("GET MAILBOXES (user.alice)");
    let sends = outcome.output.contains("APPLY MAILBOX");
    assert!(asks && !sends, "{}", outcome.output);
    let there = lab.replica.login("alice").examine("INBOX");
    assert!(there.iter().any(|line| line == "* 1 EXISTS"), "{there:#?}");
}

/// A replica of Cyrus 3.2 takes no annotation of the server. Stock to stock the run is done again without
/// end, or the refusal is forgotten; through syncmux all else goes on, and the line stays owed: it is there
/// when the replica is a newer one some day.
fn annotation_of_the_server(way: Way) {
    let mut lab = Setup::new(way).start();
    lab.add_user("alice");
    lab.settle();
    let mut admin = lab.master.admin();
    admin.set_metadata("", "/shared/comment", Some(b"the whole site"));
    let directory = lab.sync_directory();
    if way == Way::Direct {
        let lines = take_log(&directory);
        let outcome = lab.link_client().log(&lines);
        let refused = outcome.output.contains("NO IMAP_MAILBOX_NONEXISTENT");
        assert!(outcome.code != Some(0) && refused, "{}", outcome.output);
        return;
    }
    lab.rolling();
    let mail = |lab: &Lab, what: &str| {
        let mut alice = lab.master.login("alice");
        alice.append("INBOX", "", &message(what, 2000));
    };
    for what in ["one", "two"] {
        lab.step(what);
        mail(&lab, what);
        wait_for("the mail to be there", || {
            lab.rolling().keep_alive();
            let held = compare::snapshots_differ(&lab.master, &lab.replica, "alice");
            (!held).then_some(())
        });
    }
    let found = lab.differences();
    let other = |found: &&String| !found.starts_with("server annotations");
    let other: Vec<&String> = found.iter().filter(other).collect();
    assert!(other.is_empty(), "{other:#?}");
    if way == Way::FanOut {
        let owed = std::fs::read_to_string(directory.join("syncmux-owed")).unwrap_or_default();
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        assert!(format!("{owed}{log}").contains("ANNOTATION"), "{owed}{log}");
        assert!(lab.client_has_lived());
    }
}

/// `literals!(name: master to replica)`: as it fails stock to stock, and works through syncmux.
macro_rules! literals {
    ($($name:ident: $master:literal to $replica:literal),+) => {
        $(mod $name {
            use super::{Way, between, literals_of_the_replica};

            const PAIR: (&str, &str) = ($master, $replica);

            #[test]
            fn direct() {
                between(PAIR, || literals_of_the_replica(Way::Direct));
            }

            #[test]
            fn strict() {
                between(PAIR, || literals_of_the_replica(Way::Strict));
            }

            #[test]
            fn fan_out() {
                between(PAIR, || literals_of_the_replica(Way::FanOut));
            }
        })+
    };
}

mod annotation_of_the_server_to_3_2 {
    use super::{Way, annotation_of_the_server, between};

    const PAIR: (&str, &str) = ("3.6", "3.2");

    #[test]
    fn direct() {
        between(PAIR, || annotation_of_the_server(Way::Direct));
    }

    #[test]
    fn fan_out() {
        between(PAIR, || annotation_of_the_server(Way::FanOut));
    }
}

literals!(
    literals_of_3_2_to_3_10: "3.10" to "3.2",
    literals_of_3_2_to_3_6: "3.6" to "3.2"
);

/// `quick!(name: master to replica)`: a handful of the other tests for this pair.
macro_rules! quick {
    ($($name:ident: $master:literal to $replica:literal),+) => {
        $(mod $name {
            use super::{Way, between};

            const PAIR: (&str, &str) = ($master, $replica);

            #[test]
            fn messages() {
                between(PAIR, || crate::mail::messages(Way::FanOut));
            }

            #[test]
            fn messages_strictly() {
                between(PAIR, || crate::mail::messages(Way::Strict));
            }

            #[test]
            fn many_users() {
                between(PAIR, || crate::mail::many_users_over_a_link(Way::FanOut));
            }

            #[test]
            fn one_shots() {
                between(PAIR, || crate::modes::one_shots(Way::Strict));
            }

            #[test]
            fn a_bad_user() {
                between(PAIR, || crate::bad_user::unwritable_mailbox(Way::FanOut));
            }
        })+
    };
}

quick!(
    from_3_2_to_3_6: "3.2" to "3.6",
    from_3_6_to_3_2: "3.6" to "3.2",
    from_3_6_to_3_10: "3.6" to "3.10",
    from_3_10_to_3_6: "3.10" to "3.6"
);
