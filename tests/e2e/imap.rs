//! Replication over IMAP: the client's side, the replica's side, and both. The scenarios are those of
//! csync; both ends are compared by a client that speaks csync to the replica.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::PATIENCE;
use crate::support::cyrus::{ADMIN, PASSWORD, REPL};
use crate::support::lab::{Lab, ReplicaPort, Setup, Spoken, Way, speak};
use crate::support::{process, wait_for};

/// `spoken!(name = scenario: where)`. `all` is each pair of dialects in each mode, and stock to stock,
/// which shows that the scenario itself holds over IMAP; `pairs` is each pair once; the others are IMAP
/// on both sides. The dialect is a layer below the modes: what has been seen in all of them once is
/// not done again for each scenario.
macro_rules! spoken {
    ($name:ident = $scenario:path: all) => {
        mod $name {
            use super::*;
            spoken!(@ csync_to_imap_strict, false, Imap, Strict, $scenario);
            spoken!(@ csync_to_imap_fan_out, false, Imap, FanOut, $scenario);
            spoken!(@ csync_to_imaps_strict, false, Imaps, Strict, $scenario);
            spoken!(@ csync_to_imaps_fan_out, false, Imaps, FanOut, $scenario);
            spoken!(@ imap_to_csync_strict, true, Csync, Strict, $scenario);
            spoken!(@ imap_to_csync_fan_out, true, Csync, FanOut, $scenario);
            spoken!(@ imap_to_imap_direct, true, Imap, Direct, $scenario);
            spoken!(@ imap_to_imap_strict, true, Imap, Strict, $scenario);
            spoken!(@ imap_to_imap_fan_out, true, Imap, FanOut, $scenario);
        }
    };
    ($name:ident = $scenario:path: pairs) => {
        mod $name {
            use super::*;
            spoken!(@ csync_to_imap, false, Imap, FanOut, $scenario);
            spoken!(@ imap_to_csync, true, Csync, FanOut, $scenario);
            spoken!(@ imap_to_imap, true, Imap, Strict, $scenario);
        }
    };
    ($name:ident = $scenario:path: both) => {
        mod $name {
            use super::*;
            spoken!(@ strict, true, Imap, Strict, $scenario);
            spoken!(@ fan_out, true, Imap, FanOut, $scenario);
        }
    };
    ($name:ident = $scenario:path: strict) => {
        spoken!(@ $name, true, Imap, Strict, $scenario);
    };
    ($name:ident = $scenario:path: fan_out) => {
        spoken!(@ $name, true, Imap, FanOut, $scenario);
    };
    (@ $name:ident, $client:expr, $replica:ident, $way:ident, $scenario:path) => {
        #[test]
        fn $name() {
            speak(Spoken { client_imap: $client, replica: ReplicaPort::$replica });
            $scenario(Way::$way);
        }
    };
}

spoken!(messages = crate::mail::messages: all);
spoken!(sieve_and_subscriptions = crate::state::sieve_and_subscriptions: pairs);
spoken!(rename_user = crate::users::rename_user: pairs);
spoken!(copies = crate::mail::copies: strict);
spoken!(quota_and_annotations = crate::state::quota_and_annotations: fan_out);
spoken!(shared_and_seen = crate::state::shared_and_seen: strict);
spoken!(odd_names = crate::folders::odd_names: fan_out);
spoken!(three_thousand = crate::mail::three_thousand: fan_out);
spoken!(split_brain = crate::split::message_on_the_replica: fan_out);
spoken!(one_shots = crate::modes::one_shots: fan_out);
spoken!(replica_killed = crate::faults::replica_killed: both);
spoken!(imapds_killed = crate::faults::sync_servers_killed: both);
spoken!(syncmux_killed = crate::faults::syncmux_killed: fan_out);
spoken!(syncmux_terminated = crate::faults::syncmux_terminated: strict);
spoken!(terminated_in_a_loop = crate::faults::terminated_in_a_loop: fan_out);
spoken!(client_by_starttls = starttls: strict);

fn both() -> Spoken {
    Spoken {
        client_imap: true,
        replica: ReplicaPort::Imap,
    }
}

/// A listener with a certificate offers no password before TLS, which makes the stock client use it.
fn starttls(way: Way) {
    let mut lab = Setup::new(way).start();
    let mut options = lab.mux_options();
    options.extra = format!(
        "[client]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        lab.certs.cert.display(),
        lab.certs.key.display()
    );
    lab.mux().stop();
    lab.mux().configure(&options);
    lab.mux().start();
    let users = lab.add_users(3);
    lab.mail(&users, "1", 4000);
    lab.settle();
    lab.mail(&users, "2", 4000);
    lab.settle();
    lab.one_client_was_enough();
}

/// What somebody who speaks IMAP is answered, line by line, up to a tagged line for each that is said.
struct Talk {
    stream: BufReader<TcpStream>,
}

impl Talk {
    fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Talk {
            stream: BufReader::new(stream),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, text: &str) -> String {
        let tag = text.split(' ').next().unwrap();
        let all = format!("{text}\r\n");
        self.stream.get_mut().write_all(all.as_bytes()).unwrap();
        let mut answer = String::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the end of file after {answer:?}");
            answer.push_str(&line);
            if line.starts_with(&format!("{tag} ")) {
                return answer;
            }
        }
    }
}

fn plain(user: &str, password: &str) -> String {
    STANDARD.encode(format!("\0{user}\0{password}"))
}

/// A mail client that comes by mistake, one with a wrong password, and one that speaks csync.
#[test]
fn strangers_are_told_where_they_are() {
    speak(both());
    let mut lab = Setup::new(Way::FanOut).start();
    let users = lab.add_users(1);
    lab.mail(&users, "1", 1000);
    let address = lab.mux().listen.clone();
    let mut talk = Talk::to(&address);
    let greeting = talk.line();
    assert!(
        greeting.starts_with("* OK [CAPABILITY IMAP4rev1 "),
        "{greeting}"
    );
    assert!(greeting.contains("LOGINDISABLED"), "{greeting}");
    let answer = talk.say(&format!("a LOGIN {REPL} {PASSWORD}"));
    assert!(
        answer.contains("replication between Cyrus servers only"),
        "{answer}"
    );
    let answer = talk.say("b SELECT INBOX");
    assert!(answer.starts_with("b BAD Please login first"), "{answer}");
    let answer = talk.say(&format!("c AUTHENTICATE PLAIN {}", plain(REPL, "wrong")));
    assert!(answer.starts_with("c NO "), "{answer}");
    let answer = talk.say(&format!("d AUTHENTICATE PLAIN {}", plain(REPL, PASSWORD)));
    assert!(answer.starts_with("d OK [CAPABILITY "), "{answer}");
    // As the replica offers: Cyrus 3.2 keeps no scripts in mailboxes.
    let offers = if lab.old_replica() {
        " X-REPLICATION]"
    } else {
        " X-REPLICATION X-SIEVE-MAILBOX"
    };
    assert!(answer.contains(offers), "{answer}");
    let answer = talk.say("e SELECT INBOX");
    assert!(answer.starts_with("e BAD Unrecognized command"), "{answer}");
    let answer = talk.say("f SYNCGET USER nobody");
    assert_eq!(answer.lines().count(), 1, "{answer}");
    let answer = talk.say("g LOGOUT");
    assert_eq!(answer, "* BYE LOGOUT received\r\ng OK Completed\r\n");
    assert_eq!(talk.line(), "");

    lab.step("the dialects are named");
    let (_, status) = lab.mux().admin_page("/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let channel = &status["channels"][0];
    assert_eq!(channel["dialect"], "imap");
    assert_eq!(channel["replica_dialect"], "imap");
    let log = lab.mux().log_text();
    let says = |what| log.contains(what);
    assert!(
        says(" dialect=imap ") && says(" replica_dialect=imap "),
        "{log}"
    );

    lab.step("a client that does not try IMAP");
    let address = lab.mux().strict_listen.clone();
    let csync = lab.client_to("csync", &address, PASSWORD, "sync_try_imap: no\n");
    let checked = lab.mux().check();
    assert_eq!(checked.0, Some(0), "{}", checked.1);
    // It tries for ever; what it is told is in its log.
    let mut never = csync.rolling();
    wait_for("the client to be refused", || {
        never.output().contains("Can not connect").then_some(())
    });
    never.kill();
    wait_for("its connection to be explained", || {
        let log = lab.mux().log_text();
        log.contains("is its sync_try_imap off?").then_some(())
    });
    lab.settle();
}

/// imapd serves who logs in, and shows X-REPLICATION to everybody: that this is no administrator must
/// be found before a client is let in.
#[test]
fn a_replica_that_does_not_serve_is_refused_in_words() {
    speak(both());
    for (line, says) in [
        (
            format!("admins: {ADMIN}"),
            "lets \"repl\" in but does not serve it: \"BAD Unrecognized command\". Is it among \
             admins in the replica's imapd.conf?",
        ),
        (
            format!("admins: {ADMIN} {REPL}\nsuppress_capabilities: X-REPLICATION"),
            "offers no X-REPLICATION",
        ),
    ] {
        let mut lab = Setup::new(Way::Strict).start();
        let conf = lab.replica.conf();
        let text = std::fs::read_to_string(&conf).unwrap();
        let admins = format!("admins: {ADMIN} {REPL}");
        assert!(text.contains(&admins));
        process::write(&conf, text.replace(&admins, &line));
        lab.replica.stop();
        lab.replica.resume();
        lab.replica.ready();
        let (code, said) = lab.mux().check();
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(says), "{says:?} is not in: {said}");
    }
}

/// The one that `check` says: sync_try_imap by dialect.
#[test]
fn check_knows_what_the_client_must_try() {
    for (client_imap, conf, code, says) in [
        (
            true,
            "sync_try_imap: no\n",
            64,
            "it would never get in; set sync_try_imap: yes",
        ),
        (true, "", 0, "lets repl in"),
        (
            false,
            "",
            0,
            "sync_try_imap is on, so the client asks for IMAP first",
        ),
        (false, "sync_try_imap: no\n", 0, "lets repl in"),
    ] {
        speak(Spoken {
            client_imap,
            replica: ReplicaPort::Imap,
        });
        let mut setup = Setup::new(Way::Strict);
        setup.master_extra = vec![conf.to_owned()];
        let mut lab = setup.start();
        let (found, said) = lab.mux().check();
        assert_eq!(found, Some(code), "{conf}: {said}");
        assert!(said.contains(says), "{conf}: {says:?} is not in: {said}");
    }
}

/// verify asks both ends by IMAP, where that is all there is. Each has a message of the day, which
/// imapd says behind its greeting: nobody's answer.
#[test]
fn verify_by_imap() {
    speak(both());
    let mut lab = Setup::new(Way::FanOut).start();
    for end in [&lab.master, &lab.replica] {
        process::folder(&end.path("conf/msg"));
        process::write(&end.path("conf/msg/motd"), "down for repair at ten\n");
    }
    let mut stranger = Talk::to(&lab.replica.imap.address());
    stranger.line();
    assert_eq!(stranger.line(), "* OK [ALERT] down for repair at ten\r\n");
    let mut options = lab.mux_options();
    let password = lab.path("master-password");
    process::write(&password, format!("{PASSWORD}\n"));
    options.extra = format!(
        "[channel.master]\naddress = \"{}\"\ndialect = \"imap\"\ntls = \"off\"\n\
         username = \"{REPL}\"\npassword_file = \"{}\"\n",
        lab.master.imap.address(),
        password.display()
    );
    lab.mux().configure(&options);
    let users = lab.add_users(3);
    lab.mail(&users, "1", 1000);
    lab.settle();
    let (code, said) = lab.mux().tool(&["verify", "--all"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("3 users "), "{said}");
    // A client of 3.2 looks at users who log in on the master, and would heal it.
    lab.end_rolling();
    lab.replica.login(&users[0]).subscribe("INBOX");
    let (code, said) = lab.mux().tool(&["verify", "--all"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("only on the replica"), "{said}");
    let (code, said) = lab.mux().tool_as_root(&["resync", &users[0]]);
    assert_eq!(code, Some(0), "{said}");
    lab.settle();
}

/// A drain is understood: the client ends as it does when a csync replica shuts down, and says nothing
/// of an error of the protocol.
#[test]
fn a_drain_is_no_error_to_the_client() {
    speak(both());
    let mut lab: Lab = Setup::new(Way::Strict).start();
    // With more, the stock client goes on with the next user, by csync as well.
    let users = lab.add_users(1);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("SIGTERM while the client has nothing to do");
    assert!(lab.rolling().is_alive());
    assert_eq!(lab.mux().stop(), Some(0));
    lab.mail(&users, "2", 1000);
    wait_for("the client to be sent away", || {
        (!lab.rolling().is_alive()).then_some(())
    });
    let said = lab.rolling().output();
    assert!(said.contains("BYE syncmux is shutting down"), "{said}");
    // The client of 3.2 takes each BYE for an error of the protocol, by csync as well.
    assert_eq!(said.contains("bailing out"), lab.old_master(), "{said}");
    lab.mux().start();
    lab.settle();
}
