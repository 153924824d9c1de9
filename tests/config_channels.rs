//! `[[channel]]`: several of them, transparent ones, the client that is started, the master.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod config_files;

use std::fs;

use config_files::{Files, SIMPLE, errors, refused};

#[test]
fn the_client_that_is_started() {
    let was = "#client_command = [\"DIR/sync_client\", \"-R\"]";
    let is = |words: &str| format!("client_command = [{words}]");
    for (words, say) in [
        ("", "client_command is empty"),
        ("\"sync_client\", \"-R\"", "write the whole path"),
        ("\"DIR/gone\"", "DIR/gone is no program"),
        ("\"DIR/password\"", "is no program"),
        ("\"DIR/sync_client\"", "the option -R"),
        (
            "\"DIR/sync_client\", \"-n\", \"far\", \"-R\"",
            "the log of channel \"far\"",
        ),
        (
            "\"DIR/sync_client\", \"-nfar\", \"-R\"",
            "the log of channel \"far\"",
        ),
        ("\"DIR/sync_client\", \"-R\", \"-vv\"", "-v twice"),
        ("\"DIR/sync_client\", \"-v\", \"-R\", \"-v\"", "-v twice"),
    ] {
        let say = if say.starts_with("DIR") {
            "gone is no program"
        } else {
            say
        };
        refused(was, &is(words), &[say]);
    }
    let files = Files::new();
    let far = "[[channel]]\nname = \"far\"\nsync_directory = \"DIR/sync\"\n\
               client_command = [\"DIR/sync_client\", \"-v\", \"-n\", \"far\", \"-r\"]\n\
               listen = [\"127.0.0.1:2007\"]\n[channel.replica]\naddress = \"far:2005\"\n";
    let config = files.parse(far).unwrap();
    assert_eq!(config.channels[0].client_command.len(), 5);
    let deaf = far.replace("listen", "strict_listen");
    assert!(
        errors(&deaf).contains("needs a listener"),
        "{}",
        errors(&deaf)
    );
    let nowhere = far.replace("sync_directory = \"DIR/sync\"\n", "");
    assert!(errors(&nowhere).contains("set sync_directory"));
    assert!(
        files.parse(SIMPLE).unwrap().channels[0]
            .client_command
            .is_empty()
    );
}

#[test]
fn several_channels() {
    let second = "[[channel]]\nname = \"far\"\nsync_directory = \"DIR/sync\"\n\
                  listen = [\"127.0.0.1:2007\"]\n[channel.replica]\naddress = \"far:2005\"\n";
    let files = Files::new();
    let config = files.parse(&format!("{SIMPLE}{second}")).unwrap();
    assert_eq!(config.channels[1].name, "far");
    let same = second
        .replace("name = \"far\"", "")
        .replace("sync_directory = \"DIR/sync\"", "");
    assert!(errors(&format!("{SIMPLE}{same}")).contains("two channels have the name \"\""));
    let third = second
        .replace("\"far\"", "\"near\"")
        .replace("2007", "2008");
    let third = third.replace("DIR/sync", "DIR/./sync");
    assert!(errors(&format!("{SIMPLE}{second}{third}")).contains("belongs to another channel"));
    let odd = second.replace("\"far\"", "\"a/b\"");
    assert!(errors(&format!("{SIMPLE}{odd}")).contains("is no channel's name"));
}

#[test]
fn transparent_channels() {
    let files = Files::new();
    let transparent = "transparent = true\nlisten";
    let first = SIMPLE.replace("listen", transparent);
    let config = files.parse(&first).unwrap();
    assert!(config.channels[0].transparent);
    assert!(!files.parse(SIMPLE).unwrap().channels[0].transparent);
    let off = SIMPLE.replace("listen", "transparent = false\nlisten");
    assert!(!files.parse(&off).unwrap().channels[0].transparent);
    let second = "[[channel]]\nname = \"far\"\ntransparent = true\nlisten = [\"127.0.0.1:2005\"]\n\
                  [channel.replica]\naddress = \"far:2005\"\n";
    let both = format!("{first}{second}");
    let config = files.parse(&both).unwrap();
    assert_eq!(config.channels[0].listen, config.channels[1].listen);
    // All that share an address must be transparent, by the same list, and differ by their replica.
    let clash = "127.0.0.1:2005 clashes with 127.0.0.1:2005 of";
    assert!(errors(&both.replacen("transparent = true\n", "", 1)).contains(clash));
    assert!(
        errors(&both.replace("name = \"far\"\ntransparent = true", "name = \"far\""))
            .contains(clash)
    );
    let strict = second.replace(
        "listen = [",
        "listen = [\"127.0.0.1:2006\"]\nstrict_listen = [",
    );
    assert!(errors(&format!("{first}{strict}")).contains(clash));
    let twice = first.replace(
        "[\"127.0.0.1:2005\"]",
        "[\"127.0.0.1:2005\", \"127.0.0.1:2005\"]",
    );
    assert!(errors(&twice).contains(clash));
    let all = second.replace("127.0.0.1:2005", "*:2005");
    let insists = "[client]\npasswords_without_tls = true\n";
    assert!(errors(&format!("{first}{all}{insists}")).contains("0.0.0.0:2005 clashes with"));
    let same = second.replace("far:2005", "Replica.Example.com:2005");
    let says = errors(&format!("{first}{same}"));
    assert!(
        says.contains(
            "line 11: the default channel and channel \"far\" listen at the same address"
        ),
        "{says}"
    );
    let apart = same.replace("127.0.0.1:2005", "127.0.0.1:2006");
    assert!(files.parse(&format!("{first}{apart}")).is_ok());
    // What can't be redirected.
    let login = "username = \"repl\"\npassword_file = \"DIR/password\"\n[site]";
    let unix = first
        .replace("127.0.0.1:2005", "unix:/run/s")
        .replace("[site]", login);
    assert!(errors(&unix).contains("line 3: nothing can be redirected to a UNIX socket"));
    let beside = unix.replace("\"unix:/run/s\"", "\"unix:/run/s\", \"127.0.0.1:2005\"");
    let config = files.parse(&beside).unwrap();
    assert_eq!(config.channels[0].transparent_listen().count(), 1);
    let only_strict = first.replace("listen =", "strict_listen =");
    assert!(errors(&only_strict).contains("line 3: transparent is about listen"));
    let socket = first.replace("replica.example.com:2005", "unix:/run/replica");
    let checked = "[client]\nusername = \"a\"\npassword_file = \"DIR/password\"\n";
    let says = errors(&format!("{socket}{checked}"));
    assert!(says.contains("line 3: nothing can be redirected on its way to a UNIX socket"));
    let text = errors(&SIMPLE.replace("listen", "transparent = \"yes\"\nlisten"));
    assert!(text.contains("true or false without quotes"), "{text}");
}

/// The example of `deploy/transparent`.
#[test]
fn the_transparent_example() {
    let files = Files::new();
    let text = include_str!("../deploy/transparent/syncmux.toml")
        .replace("/etc/syncmux/", "DIR/")
        .replace("/var/lib/cyrus/sync/far", "DIR/far")
        .replace("/var/lib/cyrus/sync", "DIR/sync");
    fs::create_dir(files.path("far")).unwrap();
    let config = files.parse(&text).unwrap();
    assert!(config.channels.iter().all(|channel| channel.transparent));
    assert_eq!(config.channels.len(), 2);
    // The rules beside it speak of the same addresses.
    let rules = include_str!("../deploy/transparent/syncmux.nft");
    assert!(rules.contains("define syncmux_port = 2005\n"));
    assert!(rules.contains("{ 192.0.2.10 . 2005 }") && rules.contains("{ 2001:db8::10 . 2005 }"));
    let guard = format!(
        "meta priority 0:{} counter return",
        syncmux::io::dial::PRIORITY
    );
    assert!(rules.contains(&guard));
}

#[test]
fn a_master_to_verify_against() {
    let with = |master: &str| Files::new().parse(&format!("{SIMPLE}[channel.master]\n{master}\n"));
    let problems = with("username = \"repl\"").unwrap_err().join("\n");
    assert!(
        problems.contains("set address under [channel.master]"),
        "{problems}"
    );
    let config = with(
        "address = \"127.0.0.1:2105\"\ntls = \"off\"\nusername = \"repl\"\n\
         password_file = \"DIR/password\"",
    );
    let config = config.unwrap();
    let master = config.channels[0].master.as_ref().unwrap();
    assert_eq!(master.login.as_ref().unwrap().username, "repl");
    // The replica is what it was.
    assert!(config.channels[0].replica.login.is_none());
    assert!(with("address = \"nowhere\"").is_err());
}

#[test]
fn imapds_that_sync_their_own_commits() {
    let files = Files::new();
    let good = "[[channel]]\nname = \"far\"\nsync_directory = \"DIR/sync\"\n\
                listen = [\"127.0.0.1:2005\"]\nrightnow_listen = [\"127.0.0.1:2007\"]\n\
                [channel.replica]\naddress = \"far:2005\"\nusername = \"repl\"\n\
                password_file = \"DIR/password\"\n\
                [client]\nusername = \"repl\"\npassword_file = \"DIR/password\"\n";
    let config = files.parse(good).unwrap();
    assert_eq!(
        config.channels[0].rightnow_listen[0].to_string(),
        "127.0.0.1:2007"
    );
    let default = std::time::Duration::from_secs(5);
    assert_eq!(config.limits.rightnow_answer_timeout, default);
    let short = format!("{good}[limits]\nrightnow_answer_timeout = \"2s\"\n");
    let two = std::time::Duration::from_secs(2);
    assert_eq!(
        files.parse(&short).unwrap().limits.rightnow_answer_timeout,
        two
    );
    for (was, is, say) in [
        ("name = \"far\"\n", "", "needs a channel with a name"),
        (
            "sync_directory = \"DIR/sync\"\n",
            "",
            "needs the folder of the channel's sync log",
        ),
        (
            "[client]\nusername = \"repl\"\npassword_file = \"DIR/password\"\n",
            "",
            "nobody could check the passwords of the imapds",
        ),
        (
            "far:2005\"\nusername = \"repl\"\npassword_file = \"DIR/password\"\n",
            "far:2005\"\n",
            "need a login of their own",
        ),
        ("127.0.0.1:2007", "127.0.0.1:2005", "clashes with"),
    ] {
        let said = errors(&good.replacen(was, is, 1));
        assert!(said.contains(say), "{say:?} is not in {said}");
    }
    // It may be the only listener.
    let only = good.replacen("listen = [\"127.0.0.1:2005\"]\n", "", 1);
    assert!(files.parse(&only).is_ok());
    let long = format!("{good}[limits]\nrightnow_answer_timeout = \"11m\"\n");
    assert!(errors(&long).contains("rightnow_answer_timeout"));
}
