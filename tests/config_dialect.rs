//! `dialect`: csync or IMAP, of a channel's listeners and of the ends of its lanes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod config_files;

use std::path::Path;

use config_files::{Files, SIMPLE, errors, refused};
use syncmux::config::{Terminate, Tls};
use syncmux::protocol::Dialect;

/// A replica's section with these lines in the place of its address.
fn replica(lines: &str) -> String {
    let lines = format!("{lines}\nusername = \"repl\"\npassword_file = \"DIR/password\"");
    SIMPLE.replace("address = \"replica.example.com:2005\"", &lines)
}

#[test]
fn each_side_has_its_own() {
    let files = Files::new();
    let plain = files.parse(SIMPLE).unwrap();
    assert_eq!(plain.channels[0].dialect, Dialect::Csync);
    assert_eq!(plain.channels[0].replica.dialect, Dialect::Csync);
    let client = SIMPLE.replace("[channel.replica]", "dialect = \"imap\"\n[channel.replica]");
    let client = files.parse(&client).unwrap();
    assert_eq!(client.channels[0].dialect, Dialect::Imap);
    assert_eq!(client.channels[0].replica.dialect, Dialect::Csync);
    let there = replica("address = \"replica:143\"\ndialect = \"IMAP\"");
    let there = files.parse(&there).unwrap();
    assert_eq!(there.channels[0].dialect, Dialect::Csync);
    assert_eq!(there.channels[0].replica.dialect, Dialect::Imap);
    let warned = |what: &str| {
        there
            .warnings
            .iter()
            .any(|warning| warning.what.contains(what))
    };
    assert!(!warned("implicit"));
    let master = replica("address = \"replica:143\"\ndialect = \"csync\"").replace(
        "[site]",
        "[channel.master]\naddress = \"localhost\"\ndialect = \"imap\"\ntls = \"off\"\n\
         username = \"repl\"\npassword_file = \"DIR/password\"\n[site]",
    );
    let master = files.parse(&master).unwrap();
    let master = master.channels[0].master.as_ref().unwrap();
    assert_eq!(master.dialect, Dialect::Imap);
    assert_eq!(master.address.to_string(), "localhost:143");
}

#[test]
fn the_port_need_not_be_said() {
    let files = Files::new();
    for (lines, address, tls) in [
        ("address = \"replica\"", "replica:143", Tls::StartTls),
        (
            "address = \"replica\"\ntls = \"implicit\"",
            "replica:993",
            Tls::Implicit,
        ),
        (
            "address = \"replica\"\ntls = \"off\"",
            "replica:143",
            Tls::Off,
        ),
        (
            "address = \"replica:1143\"\ntls = \"implicit\"",
            "replica:1143",
            Tls::Implicit,
        ),
        (
            "address = \"[2001:db8::1]\"\nserver_name = \"r\"",
            "[2001:db8::1]:143",
            Tls::StartTls,
        ),
        (
            "address = \"10.0.0.1\"\nserver_name = \"r\"",
            "10.0.0.1:143",
            Tls::StartTls,
        ),
    ] {
        let config = files
            .parse(&replica(&format!("{lines}\ndialect = \"imap\"")))
            .unwrap();
        let replica = &config.channels[0].replica;
        assert_eq!((&*replica.address.to_string(), replica.tls), (address, tls));
    }
    // It is not guessed for csync, which has no port that is everywhere the same.
    for wrong in [
        "address = \"replica\"",
        "address = \"replica\"\ndialect = \"csync\"",
        "address = \"2001:db8::1\"\ndialect = \"imap\"",
        "address = \"replica:0\"\ndialect = \"imap\"",
    ] {
        let said = errors(&replica(wrong));
        assert!(said.contains("is no address of a replica"), "{said}");
    }
}

#[test]
fn mistakes() {
    let channel = "#transparent = false";
    refused(
        channel,
        "dialect = \"smtp\"",
        &["`smtp` is no dialect: write \"csync\" or \"imap\""],
    );
    let socket = errors(
        &SIMPLE.replace(
            "listen = [\"127.0.0.1:2005\"]",
            "listen = [\"127.0.0.1:2005\"]\nstrict_listen = [\"unix:/run/x\"]\ndialect = \"imap\"",
        )
        .replace(
            "[site]",
            "username = \"repl\"\npassword_file = \"DIR/password\"\n[site]",
        ),
    );
    assert!(socket.starts_with("syncmux.toml, line 4: no client comes to unix:/run/x by IMAP"));
    assert!(!socket.contains('\n'), "{socket}");
    for key in ["listen", "strict_listen", "rightnow_listen"] {
        let socket = errors(
            &SIMPLE
                .replace(
                    "listen = [\"127.0.0.1:2005\"]",
                    &format!("{key} = [\"unix:/run/x\"]\ndialect = \"imap\""),
                )
                .replace(
                    "[site]",
                    "username = \"repl\"\npassword_file = \"DIR/password\"\n[site]",
                ),
        );
        let says = "no client comes to unix:/run/x by IMAP";
        assert!(socket.contains(says), "{key}: {socket}");
    }
    let no_login = SIMPLE.replace("2005\"\n[site]", "143\"\ndialect = \"imap\"\n[site]");
    let no_login = errors(&no_login);
    assert!(
        no_login.contains("line 6: an imapd tells what it offers"),
        "{no_login}"
    );
    assert!(
        no_login.contains("set username and password_file"),
        "{no_login}"
    );
    let unix = errors(&replica("address = \"unix:/run/imap\"\ndialect = \"imap\""));
    assert!(unix.contains("IMAP needs a login"), "{unix}");
}

#[test]
fn tls_from_the_first_byte_is_missed() {
    let files = Files::new();
    let text = replica("address = \"replica:993\"\ndialect = \"imap\"");
    let config = files.parse(&text).unwrap();
    let warned = config.warnings.iter();
    let mut warned = warned.filter(|warning| warning.what.contains("set tls = \"implicit\""));
    assert!(warned.next().is_some());
}

/// A certificate speaks for itself.
#[test]
fn a_certificate_is_a_login() {
    let files = Files::new();
    let text = SIMPLE.replace(
        "address = \"replica.example.com:2005\"",
        "address = \"replica\"\ndialect = \"imap\"\nmechanism = \"EXTERNAL\"\n\
         cert_file = \"DIR/client.pem\"\nkey_file = \"DIR/client.key\"",
    );
    assert!(files.parse(&text).is_ok());
}

#[test]
fn terminate_knows_csync_alone() {
    let text =
        "[terminate]\nlisten = [\"*:2005\"]\nserver = \"127.0.0.1:143\"\ndialect = \"imap\"\n";
    let errors = Terminate::parse(Path::new("syncmux.toml"), text).unwrap_err();
    let all: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    let said = all.iter().find(|line| line.contains("line 4")).unwrap();
    assert!(said.contains("imapd has TLS of its own"), "{said}");
    let text = text.replace("imap\"", "csync\"");
    let errors = Terminate::parse(Path::new("syncmux.toml"), &text).unwrap_err();
    assert!(
        errors
            .0
            .iter()
            .all(|error| !error.to_string().contains("dialect"))
    );
}
