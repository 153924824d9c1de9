//! The configuration file: the example in `deploy`, and a sentence with its line for each mistake.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod config_files;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use syncmux::config::{Address, Config, Flags, Limits, LogFormat, Outline, Passwords, Tls};
use syncmux::core::event::Mode;

use config_files::{Files, SIMPLE, errors, example, refused};

#[test]
fn the_example() {
    let files = Files::new();
    let config = files.parse(&example()).unwrap();
    let channel = &config.channels[0];
    assert_eq!(channel.mode, Mode::FanOut);
    assert_eq!(channel.listen.len(), 2);
    assert_eq!(channel.replica.lanes, 8);
    assert_eq!(channel.replica.tls, Tls::StartTls);
    assert_eq!(
        channel.replica.server_name.as_deref(),
        Some("replica.example.com")
    );
    let login = channel.replica.login.as_ref().unwrap();
    assert_eq!(login.username, "repl");
    assert_eq!(login.password.as_ref().unwrap().expose(), "secret word");
    let master = channel.master.as_ref().unwrap();
    assert_eq!(master.address.to_string(), "unix:/run/cyrus/verify/csync");
    assert_eq!(master.tls, Tls::Off);
    assert!(!format!("{config:?}").contains("secret word"));
}

#[test]
fn what_the_example_has_in_comments() {
    let files = Files::new();
    let is_setting = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase());
    let lines = example();
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if is_setting(setting) => setting,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let config = files.parse(&text).unwrap();
    // They show the defaults.
    let spill_directory = config.limits.spill_directory.clone();
    assert_eq!(
        config.limits,
        Limits {
            spill_directory,
            ..Limits::default()
        }
    );
    assert_eq!(config.log.format, LogFormat::Text);
    assert!(config.client.identity.is_some());
    assert!(matches!(config.client.passwords, Passwords::ByReplica));
    let plain = files.parse(&example()).unwrap();
    assert_eq!(plain.limits, Limits::default());
}

#[test]
fn little_is_needed() {
    let files = Files::new();
    let config = files.parse(SIMPLE).unwrap();
    assert_eq!(config.channels[0].mode, Mode::Strict);
    assert!(config.site.virtdomains);
    assert!(config.site.unixhierarchysep);
    assert_eq!(config.site.defaultdomain.as_deref(), Some("example.com"));
    assert_eq!(config.site.deletedprefix, "DELETED");
    assert_eq!(config.warnings, []);
    assert!(config.client.allowed_uids.contains(&0));
    assert!(config.admin.is_none());
}

#[test]
fn flags_alone_are_enough_and_go_before_the_file() {
    let files = Files::new();
    let alone = Flags {
        listen: vec!["127.0.0.1:2005".to_owned()],
        replica: Some("replica:2005".to_owned()),
        sync_directory: Some(files.path("sync").into()),
        imapd_conf: Some(files.path("imapd.conf").into()),
        lanes: Some(3),
        log_format: Some("json".to_owned()),
        ..Flags::default()
    };
    let config = Config::load(&alone).unwrap();
    assert_eq!(config.channels[0].mode, Mode::FanOut);
    assert_eq!(config.channels[0].replica.lanes, 3);
    assert_eq!(config.log.format, LogFormat::Json);
    let path = files.path("syncmux.toml");
    fs::write(
        &path,
        example().replace("DIR", files.folder.path().to_str().unwrap()),
    )
    .unwrap();
    let both = Flags {
        config: Some(path.into()),
        ..alone
    };
    let config = Config::load(&both).unwrap();
    let host = "replica".to_owned();
    assert_eq!(
        config.channels[0].replica.address,
        Address::Tcp { host, port: 2005 }
    );
    assert_eq!(config.channels[0].replica.lanes, 3);
    assert_eq!(config.channels[0].listen.len(), 1);
    assert_eq!(config.channels[0].strict_listen.len(), 1);
    let wrong = Flags {
        lanes: Some(0),
        ..both
    };
    let errors = Config::load(&wrong).unwrap_err();
    assert_eq!(errors.to_string(), "--lanes: lanes = 0: set it to 1 to 256");
    let errors = Config::load(&Flags::default()).unwrap_err();
    assert!(
        errors.to_string().contains("there is no channel"),
        "{errors}"
    );
}

#[test]
fn limits_as_text_and_as_numbers() {
    let files = Files::new();
    let limits = "[limits]\nqueued_bytes = \"1GiB\"\nreplica_absence = 90\nlogin_time = \"5s\"\n";
    let config = files.parse(&format!("{SIMPLE}{limits}")).unwrap();
    assert_eq!(config.limits.queued_bytes, 1 << 30);
    assert_eq!(config.limits.replica_absence, Duration::from_secs(90));
    assert_eq!(config.limits.login_time, Duration::from_secs(5));
}

#[test]
fn mistakes() {
    refused(
        "mode = \"fan-out\"",
        "mod = 1",
        &["unknown field `mod`", "strict_listen"],
    );
    refused(
        "mode = \"fan-out\"",
        "mode = \"fast\"",
        &["`fast`", "\"fan-out\" or \"strict\""],
    );
    refused(
        "mode = \"fan-out\"",
        "mode = 7",
        &["integer `7`", "text in quotes"],
    );
    refused("mode = \"fan-out\"", "mode = ", &[]);
    refused("#lanes = 8", "lanes = 0", &["1 to 256"]);
    refused("#lanes = 8", "lanes = 257", &["1 to 256"]);
    refused("#tls = \"starttls\"", "tls = \"none\"", &["\"off\""]);
    refused(
        "#mechanism = \"PLAIN\"",
        "mechanism = \"GSSAPI\"",
        &["SCRAM-SHA-256"],
    );
    refused(
        "#mechanism = \"PLAIN\"",
        "mechanism = \"EXTERNAL\"",
        &["cert_file"],
    );
    refused(
        "#server_name = \"replica.example.com\"",
        "server_name = \"a b\"",
        &["server_name"],
    );
    refused(
        "#cert_file = \"DIR/client.pem\"",
        "cert_file = \"DIR/client.pem\"",
        &["key_file"],
    );
    let pair = "#cert_file = \"DIR/client.pem\"\n#key_file = \"DIR/client.key\"";
    let other = "cert_file = \"DIR/client.pem\"\nkey_file = \"DIR/other.key\"";
    refused(pair, other, &["other.key: is not the key of", "client.pem"]);
    let none = "cert_file = \"DIR/password\"\nkey_file = \"DIR/client.key\"";
    refused(pair, none, &["password: holds no certificate"]);
    refused(
        "\"DIR/ca.pem\"",
        "\"DIR/none\"",
        &["ca_file ", "none: no such file or directory"],
    );
    refused(
        "\"DIR/password\"",
        "\"DIR/none\"",
        &["password_file", "no such file"],
    );
    refused("\"DIR/password\"", "\"DIR/ca.pem\"", &["as its only line"]);
    refused(
        "#imapd_conf = \"DIR/imapd.conf\"",
        "imapd_conf = \"DIR/none\"",
        &["no such file"],
    );
    refused(
        "#virtdomains = \"off\"",
        "virtdomains = \"perhaps\"",
        &["userid"],
    );
    refused(
        "#allowed_uids = [0, \"cyrus\"]",
        "allowed_uids = [\"nobody here\"]",
        &["passwd"],
    );
    refused(
        "#replica_absence = \"20m\"",
        "replica_absence = \"30m\"",
        &["1 to 1799"],
    );
    refused(
        "#replica_absence = \"20m\"",
        "replica_absence = \"soon\"",
        &["such as \"20m\""],
    );
    refused(
        "#queued_bytes = \"256MiB\"",
        "queued_bytes = \"5 apples\"",
        &["such as \"64MiB\""],
    );
    refused(
        "#queued_bytes = \"256MiB\"",
        "queued_bytes = -5",
        &["negative"],
    );
    refused("#sessions = 256", "sessions = 0", &["1 to"]);
    refused(
        "#sessions = 256",
        "sessions = \"many\"",
        &["a whole number"],
    );
    refused(
        "#compress = false",
        "compress = \"yes\"",
        &["true or false"],
    );
    refused(
        "#spill_directory = \"/var/tmp\"",
        "spill_directory = \"DIR/none\"",
        &["no such file"],
    );
    refused("#level = \"info\"", "level = \"loud\"", &["\"debug\""]);
}

#[test]
fn mistakes_of_listeners_and_channels() {
    refused(
        "[\"127.0.0.1:2006\"]",
        "[\"127.0.0.1:2005\"]",
        &["clashes with 127.0.0.1:2005 of", "line 24"],
    );
    refused("[\"127.0.0.1:2006\"]", "[\"localhost\"]", &["IP:PORT"]);
    refused(
        "[\"127.0.0.1:2006\"]",
        "[\"10.1.2.3:2006\"]",
        &["in the clear", "passwords_without"],
    );
    refused(
        "\"replica.example.com:2005\"",
        "\"replica.example.com\"",
        &["HOST:PORT"],
    );
    refused(
        "sync_directory = \"DIR/sync\"",
        "sync_directory = \"DIR/gone\"",
        &["configdirectory"],
    );
}

#[test]
fn mistakes_between_settings() {
    let fan_out = SIMPLE.replace("listen", "mode = \"fan-out\"\nlisten");
    assert!(errors(&fan_out).contains("line 3: fan-out needs the folder"));
    let unix = SIMPLE.replace("127.0.0.1:2005", "unix:/run/s");
    assert!(errors(&unix).contains("line 3: clients of unix:/run/s give no password"));
    let files = Files::new();
    let local = unix.replace("replica.example.com:2005", "unix:/run/replica");
    assert_eq!(
        files.parse(&local).unwrap().channels[0].replica.tls,
        Tls::Off
    );
    let unchecked = SIMPLE.replace("replica.example.com:2005", "unix:/run/replica");
    let says = "line 3: nobody could check the passwords of clients of 127.0.0.1:2005";
    assert!(errors(&unchecked).contains(says));
    let nameless = SIMPLE.replace("[site]", "username = \"repl\"\n[site]");
    assert_eq!(errors(&nameless).matches('\n').count(), 0);
    assert!(errors(&nameless).contains("line 6: username needs its password"));
    let socket = SIMPLE.replace("replica.example.com:2005", "unix:/run/replica");
    assert!(errors(&socket).contains("line 3: nobody could check the passwords of clients"));
    let checked = "[client]\nusername = \"a\"\npassword_file = \"DIR/password\"\n";
    assert!(files.parse(&format!("{socket}{checked}")).is_ok());
    let admin = format!("{SIMPLE}[admin]\nlisten = \"*:2005\"\n");
    assert!(errors(&admin).contains("line 3: 127.0.0.1:2005 clashes with 0.0.0.0:2005 of"));
    let deaf = SIMPLE.replace("listen = [\"127.0.0.1:2005\"]", "");
    assert!(errors(&deaf).contains("the default channel listens nowhere"));
    let alone = "[[channel]]\nlisten = [\"127.0.0.1:2005\"]\n";
    assert!(errors(alone).contains("has no replica"));
    let both = format!(
        "{SIMPLE}[client]\npasswords = \"by replica\"\nusername = \"a\"\n\
         password_file = \"DIR/password\"\n"
    );
    assert!(errors(&both).contains("exclude each other"));
    let insists = format!("{SIMPLE}[client]\npasswords_without_tls = true\n");
    assert!(
        files
            .parse(&insists.replace("127.0.0.1:2005", "*:2005"))
            .is_ok()
    );
    let external = SIMPLE.replace(
        "[site]",
        "cert_file = \"DIR/client.pem\"\nkey_file = \"DIR/client.key\"\n\
         mechanism = \"external\"\nusername = \"repl\"\n[site]",
    );
    assert!(
        files.parse(&external).unwrap().channels[0]
            .replica
            .login
            .is_some()
    );
}

#[test]
fn all_mistakes_at_once() {
    let text = SIMPLE.replace("2005", "x");
    let files = Files::new();
    let errors = files.parse(&text).unwrap_err();
    assert!(errors.len() >= 2, "{errors:#?}");
}

#[test]
fn warnings() {
    let files = Files::new();
    let path = files.path("password");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let text = example().replace("#tls = \"starttls\"", "tls = \"off\"");
    let warnings = files.parse(&text).unwrap().warnings;
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings.iter().any(|text| text.contains("chmod 640")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|text| text.contains("in the clear")),
        "{warnings:?}"
    );
}

/// The tools read no more of it than they need.
#[test]
fn an_outline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncmux.toml");
    let text = include_str!("../deploy/syncmux.toml");
    fs::write(&path, text).unwrap();
    let outline = Outline::read(&path).unwrap();
    assert_eq!(outline.admin.unwrap().to_string(), "127.0.0.1:9205");
    let (name, directory) = &outline.channels[0];
    let directory = directory.as_deref();
    assert_eq!(
        (name.as_str(), directory),
        ("", Some(Path::new("/var/lib/cyrus/sync")))
    );
    fs::write(&path, "[admin]\nlisten = 5\n").unwrap();
    let problem = Outline::read(&path).unwrap_err().to_string();
    assert!(
        problem.contains("syncmux.toml: ") && problem.contains("syncmux check"),
        "{problem}"
    );
}

#[test]
fn an_admin_endpoint_that_the_network_reaches() {
    let with = |admin: &str| Files::new().parse(&format!("{SIMPLE}[admin]\n{admin}\n"));
    for address in ["*:9205", "192.0.2.1:9205", "[::]:9205"] {
        let listen = format!("listen = \"{address}\"");
        let problems = with(&listen).unwrap_err().join("\n");
        for say in ["line 9", "open to the network", "open_to_network = true"] {
            assert!(problems.contains(say), "{say:?} is not in: {problems}");
        }
        assert!(with(&format!("{listen}\nopen_to_network = true")).is_ok());
    }
    for address in [
        "127.0.0.1:9205",
        "localhost:9205",
        "[::1]:9205",
        "unix:/run/x",
    ] {
        assert!(
            with(&format!("listen = \"{address}\"")).is_ok(),
            "{address}"
        );
    }
    let mut flags = Flags {
        listen: vec!["127.0.0.1:2005".to_owned()],
        replica: Some("replica.example.com:2005".to_owned()),
        admin_listen: Some("*:9205".to_owned()),
        ..Flags::default()
    };
    let problems = Config::load(&flags).unwrap_err();
    let said = problems
        .0
        .iter()
        .map(ToString::to_string)
        .collect::<String>();
    assert!(
        said.contains("--admin-listen") && said.contains("--admin-open-to-network"),
        "{said}"
    );
    flags.admin_open_to_network = true;
    assert!(Config::load(&flags).is_ok());
}
