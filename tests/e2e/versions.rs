//! Several versions of Cyrus, whatever the other tests are run with: what fails stock to stock because
//! each end writes literals in its own way works through syncmux, and a quick look at each pair with
//! Debian 12's Cyrus. All tests for all pairs are run by `tests/run.sh --versions`.

use crate::support::client::take_log;
use crate::support::imap::message;
use crate::support::lab::{Setup, Way};
use crate::support::version::between;

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
