//! The client's modes: one-shot runs alone and beside a rolling client, another channel's client.

use crate::support::client::{put_log, take_log, wait_until_drained};
use crate::support::csync::Csync;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};

ways!(one_shots: direct, strict, fan_out);
ways!(beside_a_rolling_client: direct, strict, fan_out);
ways!(a_batch_of_lines: direct, strict, fan_out);
ways!(wrong_listener: direct, strict, fan_out);

const USERS: [&str; 3] = ["alice", "bob", "carol"];

fn mail_for_all(lab: &Lab, what: &str) {
    for user in USERS {
        let mut imap = lab.master.login(user);
        imap.append("INBOX", "", &message(&format!("{user} {what}"), 2000));
        imap.append("INBOX", "", &message(&format!("the same {what}"), 2000));
    }
}

pub(crate) fn one_shots(way: Way) {
    let mut lab = Setup::new(way).start();
    let client = lab.strict_client();
    for user in USERS {
        lab.add_user(user);
    }
    let mut admin = lab.master.admin();
    admin.create("shared");
    admin.set_acl("shared", "anyone", "lrswipkxtecdan");
    admin.append("shared", "", &message("shared 1", 2000));
    mail_for_all(&lab, "1");
    lab.step("-A, nothing there yet");
    client.all().expect_ok("-A");
    lab.assert_same();

    lab.step("-u");
    mail_for_all(&lab, "2");
    let mut alice = lab.master.login("alice");
    alice.create("INBOX.box");
    alice.subscribe("INBOX.box");
    client.user(&USERS).expect_ok("-u");
    lab.assert_same();

    lab.step("-m");
    mail_for_all(&lab, "3");
    admin.append("shared", "", &message("shared 2", 2000));
    let outcome = client
        .mailboxes(&["user.alice", "user.bob", "user.carol", "shared"])
        .expect_ok("-m");
    let uploads = outcome.output.matches("Subject: the same 3\r\n").count()
        + outcome.output.matches("Subject: the same 3\n").count();
    assert_eq!(uploads, 1, "one upload for three users: {}", outcome.output);
    lab.assert_same();
    if way != Way::Direct {
        lab.step("many users are answered in the order asked");
        let mut by_mux = Csync::login(&lab.mux().strict_listen);
        let mut by_hand = Csync::unix(&lab.replica.csync_socket());
        for names in [
            "user.carol shared user.alice user.nobody user.bob user.alice.box",
            "user.alice.box user.bob user.alice shared user.carol",
        ] {
            let ask = format!("GET MAILBOXES ({names})");
            let answer = by_mux.ask(&ask);
            assert_eq!(answer.matches("* MAILBOX %(").count(), 5, "{answer}");
            assert_eq!(answer, by_hand.ask(&ask), "{ask}");
        }
    }

    lab.step("-s");
    alice.subscribe("INBOX");
    alice.unsubscribe("INBOX.box");
    client.meta(&["alice"]).expect_ok("-s");
    lab.assert_same();

    lab.step("-O, and then -u by the same lanes");
    mail_for_all(&lab, "4");
    let outcome = client.run(&["-v", "-v", "-o", "-O", "-u", "alice"]);
    if lab.old_replica() && !lab.old_master() {
        // Cyrus 3.2 knows no FORCE, which a newer client begins with; it gives up then.
        let refused = outcome.output.contains("NO IMAP_PROTOCOL_ERROR");
        assert!(outcome.code != Some(0) && refused, "{}", outcome.output);
    } else {
        outcome.expect_ok("-O -u");
    }
    client.user(&USERS).expect_ok("-u");
    lab.assert_same();

    lab.step("-L");
    mail_for_all(&lab, "L");
    admin.rename("shared", "commons");
    admin.append("commons", "", &message("shared 3", 2000));
    drop(take_log(&lab.master.sync_directory("")));
    let arguments = ["-v", "-v", "-o", "-L", "-m", "user.alice", "user.bob"];
    client.run(&arguments).expect_ok("-L -m");
    let arguments = ["-v", "-v", "-o", "-L", "-u", "carol"];
    client.run(&arguments).expect_ok("-L -u");
    let lines = ["RENAME shared commons", "MAILBOX shared", "MAILBOX commons"];
    client
        .log_with(&["-L"], &lines.map(str::to_owned))
        .expect_ok("-L -r -f");
    lab.assert_same();

    lab.step("-r -f FILE");
    drop(take_log(&lab.master.sync_directory("")));
    mail_for_all(&lab, "5");
    let lines = take_log(&lab.master.sync_directory(""));
    assert!(lines.len() >= 6, "{lines:?}");
    client.log(&lines).expect_ok("-r -f");
    lab.assert_same();

    lab.step("what does not exist");
    client.user(&["nobody"]);
    client.mailboxes(&["user.alice.nowhere"]);
    lab.assert_same();
}

fn beside_a_rolling_client(way: Way) {
    let mut setup = Setup::new(way);
    setup.round_trip = std::time::Duration::from_millis(4);
    let mut lab = setup.start();
    for user in USERS {
        lab.add_user(user);
    }
    lab.settle();
    lab.step("one-shot runs while the rolling client works");
    let client = lab.strict_client();
    let old = lab.old_master();
    let master = &lab.master;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..15 {
                for user in USERS {
                    let mut imap = master.login(user);
                    imap.append("INBOX", "", &message(&format!("{user} {i}"), 2000));
                }
            }
        });
        for _ in 0..4 {
            let outcomes = [
                ("-u", client.user(&USERS)),
                ("-m", client.mailboxes(&["user.alice", "user.carol"])),
                ("-A", client.all()),
            ];
            for (mode, outcome) in outcomes {
                // Clients of Cyrus 3.2 do not keep off each other's users: one of two is told that the
                // mailbox has changed meanwhile.
                let met = outcome
                    .output
                    .contains("Mailbox has changed since last sync");
                if !(old && met) {
                    outcome.expect_ok(mode);
                }
            }
            client.meta(&["bob"]).expect_ok("-s");
        }
    });
    lab.settle();
    assert!(lab.client_has_lived());
}

fn a_batch_of_lines(way: Way) {
    let mut lab = Setup::new(way).start();
    for user in USERS {
        lab.add_user(user);
    }
    mail_for_all(&lab, "1");
    lab.step("lines that stood in the log before the client started, one of them in vain");
    let directory = lab.master.sync_directory("");
    let mut lines = take_log(&directory);
    lines.extend([
        "MAILBOX user.nobody".into(),
        "USER bob".into(),
        "META carol".into(),
    ]);
    put_log(&directory, &lines);
    lab.settle();
    lab.step("the same lines again");
    put_log(&directory, &lines);
    lab.settle();
    lab.step("a child before its INBOX");
    lab.end_rolling();
    lab.add_user("dave");
    let mut dave = lab.master.login("dave");
    dave.create("INBOX.box");
    dave.append("INBOX.box", "", &message("dave", 1000));
    drop(take_log(&directory));
    put_log(&directory, &["MAILBOX user.dave.box".to_owned()]);
    if lab.old_master() || lab.old_replica() {
        // Stock to stock: that of Cyrus 3.2 takes the child without its INBOX, and the client of 3.2 forgets
        // who was refused in a group of several. Nothing brings the INBOX until -A does.
        lab.settle_but(&["dave"]);
    } else {
        lab.settle();
    }
}

/// A client of another channel on the default channel's listener: no run of the default channel
/// names what it sends, so nothing of it may be acknowledged early.
fn wrong_listener(way: Way) {
    let mut setup = Setup::new(way);
    setup.both.channels = vec!["second".to_owned()];
    let mut lab = setup.start();
    for user in USERS {
        lab.add_user(user);
    }
    mail_for_all(&lab, "1");
    let mut alice = lab.master.login("alice");
    alice.subscribe("INBOX");
    let mut client = lab.client();
    "second".clone_into(&mut client.channel);
    let mut rolling = client.rolling();
    wait_until_drained(&lab.master.sync_directory("second"), &mut rolling);
    lab.assert_same_but(lab.subscribed_too_early());
    mail_for_all(&lab, "2");
    wait_until_drained(&lab.master.sync_directory("second"), &mut rolling);
    assert!(rolling.has_lived());
    lab.assert_same();
    if way != Way::Direct {
        for verb in ["MAILBOX", "LOCAL_MAILBOX", "SEEN", "SUB", "UNSUB"] {
            let labels = [("verb", verb), ("early", "true")];
            for name in ["", "APPLY "] {
                let verb = format!("{name}{verb}");
                let labels = [("verb", verb.as_str()), labels[1]];
                let early = lab.mux().metric("syncmux_commands_total", &labels);
                assert!(early == 0.0, "{early} of {verb} were acknowledged early");
            }
        }
    }
    drop(rolling);
    lab.step("the right client, by the same labels");
    mail_for_all(&lab, "3");
    lab.settle();
    if way == Way::FanOut {
        let labels = [("verb", "APPLY MAILBOX"), ("early", "true")];
        let early = lab.mux().metric("syncmux_commands_total", &labels);
        assert!(early > 0.0, "nothing was acknowledged early");
    }
}
