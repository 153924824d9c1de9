//! Channels with names, and several of them in one syncmux.

use crate::support::client::wait_until_drained;
use crate::support::compare;
use crate::support::cyrus::{Instance, Options};
use crate::support::imap::message;
use crate::support::lab::{Setup, Way};
use crate::support::process::Port;

ways!(named_channel: direct, strict, fan_out);

fn named_channel(way: Way) {
    let mut setup = Setup::new(way);
    setup.channel = "second".to_owned();
    let mut lab = setup.start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
        let mut imap = lab.master.login(user);
        imap.append("INBOX", "", &message(&format!("{user} 1"), 2000));
        imap.subscribe("INBOX");
    }
    lab.settle_but(lab.subscribed_too_early());
    lab.step("known mailboxes");
    let mut alice = lab.master.login("alice");
    alice.append("INBOX", "", &message("alice 2", 2000));
    alice.create("INBOX.box");
    alice.select("INBOX");
    alice.copy("1:*", "INBOX.box");
    lab.settle();
    if way == Way::FanOut {
        let labels = [
            ("channel", "second"),
            ("verb", "APPLY MAILBOX"),
            ("early", "true"),
        ];
        assert!(lab.mux().metric("syncmux_commands_total", &labels) > 0.0);
    }
    assert!(lab.client_has_lived());
}

/// One syncmux, two channels, a replica for each.
#[test]
fn two_channels_of_one_syncmux() {
    let mut setup = Setup::new(Way::FanOut);
    setup.both.channels = vec!["far".to_owned()];
    let mut lab = setup.start();
    let options = Options {
        unix_socket: true,
        ..Options::default()
    };
    let mut far = Instance::start(&lab.path("far"), true, &options);
    far.ready();
    let listen = Port::allocate();
    let mut both = lab.mux_options();
    both.extra = format!(
        "[[channel]]\nname = \"far\"\nmode = \"fan-out\"\nsync_directory = \"{}\"\n\
         listen = [\"{}\"]\n[channel.replica]\naddress = \"unix:{}\"\n",
        lab.master.sync_directory("far").display(),
        listen.address(),
        far.csync_socket().display()
    );
    both.extra
        .push_str("[client]\nusername = \"repl\"\npassword_file = \"");
    both.extra
        .push_str(&format!("{}\"\n", lab.path("mux/password").display()));
    lab.mux().stop();
    lab.mux().configure(&both);
    lab.mux().start();
    let (code, said) = lab.mux().check();
    assert_eq!(code, Some(0), "{said}");
    let mut client = lab.client_to(
        "far",
        &listen.address(),
        crate::support::cyrus::PASSWORD,
        "",
    );
    "far".clone_into(&mut client.channel);
    let mut rolling = client.rolling();
    for (i, step) in ["new mailboxes", "known mailboxes"].into_iter().enumerate() {
        lab.step(step);
        for user in ["alice", "bob", "carol"] {
            if i == 0 {
                lab.add_user(user);
            }
            let mut imap = lab.master.login(user);
            imap.append("INBOX", "", &message(&format!("{user} {i}"), 2000));
        }
        lab.settle();
        wait_until_drained(&lab.master.sync_directory("far"), &mut rolling);
        let direct = lab.client_to(
            "direct-far",
            &far.csync.address(),
            crate::support::cyrus::PASSWORD,
            "",
        );
        let found = compare::differences(&lab.master, &far, &direct, &lab.sieve_users);
        assert!(found.is_empty(), "the second replica differs: {found:#?}");
    }
    assert!(rolling.has_lived() && lab.client_has_lived());
    for channel in ["", "far"] {
        let labels = [
            ("channel", channel),
            ("verb", "APPLY MAILBOX"),
            ("early", "true"),
        ];
        let early = lab.mux().metric("syncmux_commands_total", &labels);
        assert!(
            early >= 6.0,
            "channel {channel:?}: {early} acknowledged early"
        );
    }
}
