//! `[terminate]`: a sentence with its line for each mistake.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::time::Duration;

use syncmux::config::{Address, Begin, Terminate};

const GOOD: &str = r#"
[terminate]
listen = ["*:2005"]
server = "unix:/run/cyrus/csync/sync"
cert_file = "DIR/server.pem"
key_file = "DIR/server.key"
client_ca_file = "DIR/server.pem"
allowed_names = ["master.example.com"]
[admin]
listen = "127.0.0.1:9205"
"#;

fn parse(text: &str) -> Result<Terminate, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = rcgen::generate_simple_self_signed(["one".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["two".to_owned()]).unwrap();
    std::fs::write(at("server.pem"), one.cert.pem()).unwrap();
    std::fs::write(at("server.key"), one.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("other.key"), two.signing_key.serialize_pem()).unwrap();
    let text = text.replace("DIR", folder.path().to_str().unwrap());
    Terminate::parse(Path::new("syncmux.toml"), &text)
        .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
}

#[test]
fn little_is_needed() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.listen, ["0.0.0.0:2005".parse().unwrap()]);
    assert!(matches!(config.server, Address::Unix(_)));
    assert!(matches!(config.begin, Begin::Both(_)));
    assert_eq!(config.connections, 256);
    assert_eq!(config.login_time, Duration::from_secs(60));
    assert!(!config.compress && config.warnings.is_empty());
    let more = "tls = \"implicit\"\ncompress = true\nconnections = 9\nlogin_time = \"5s\"\n\
                drain_grace = 3\n[admin]";
    let config = parse(&GOOD.replace("[admin]", more)).unwrap();
    assert_eq!(config.begin, Begin::Implicit);
    assert_eq!(config.connections, 9);
    assert_eq!(config.drain_grace, Duration::from_secs(3));
    assert!(config.compress);
    // Over TCP the server's own passwords protect it.
    let tcp = GOOD.replace("unix:/run/cyrus/csync/sync", "127.0.0.1:2006");
    let tcp = tcp
        .replace("client_ca_file", "#")
        .replace("allowed_names", "#");
    assert_eq!(parse(&tcp).unwrap().client_ca_file, None);
}

#[test]
fn mistakes() {
    let socket = "server = \"unix:/run/cyrus/csync/sync\"";
    let names = "allowed_names = [\"master.example.com\"]";
    for (was, is, says) in [
        (
            "listen = [\"*:2005\"]",
            "",
            "line 2: [terminate] listens nowhere",
        ),
        (
            "\"*:2005\"",
            "\"unix:/run/x\"",
            "line 3: TLS on a UNIX socket protects from nobody",
        ),
        ("\"*:2005\"", "\"*:9205\"", "clashes with 127.0.0.1:9205"),
        (
            "\"*:2005\"",
            "\"2005\"",
            "line 3: `2005` is no address to listen on",
        ),
        (socket, "", "line 2: [terminate] has no server"),
        (
            socket,
            "server = \"nowhere\"",
            "line 4: `nowhere` is no address",
        ),
        ("DIR/server.key", "DIR/other.key", "is not the key of"),
        (
            "key_file = \"DIR/server.key\"",
            "",
            "cert_file needs its key",
        ),
        (
            "DIR/server.pem\"\nallowed",
            "DIR/none.pem\"\nallowed",
            "line 7: client_ca_file",
        ),
        (
            names,
            "allowed_names = []",
            "line 8: allowed_names is empty",
        ),
        (
            names,
            "allowed_names = [\"*.example.com\"]",
            "line 8: \"*.example.com\" in allowed_names is no name",
        ),
        (
            names,
            "allowed_names = [\"a\", \"\"]",
            "line 8: \"\" in allowed_names is no name",
        ),
        (names, "allowed_name = []", "unknown field `allowed_name`"),
        (
            "client_ca_file = \"DIR/server.pem\"",
            "",
            "set client_ca_file",
        ),
        (names, "tls = \"off\"", "line 8: `off` is no kind of TLS"),
        (
            names,
            "connections = 0",
            "line 8: connections = 0: set it to 1 to",
        ),
    ] {
        assert!(GOOD.contains(was), "{was}");
        let errors = parse(&GOOD.replacen(was, is, 1)).unwrap_err();
        assert!(
            errors.iter().any(|error| error.contains(says)),
            "{says}: {errors:#?}"
        );
        assert!(
            !errors.iter().any(|error| error.contains('\n')),
            "{errors:#?}"
        );
    }
    let nothing = parse("[admin]\n").unwrap_err();
    assert!(
        nothing[0].contains("there is no [terminate]"),
        "{nothing:?}"
    );
    // Whoever comes would be an administrator.
    let open = GOOD
        .replace("client_ca_file", "#")
        .replace("allowed_names", "#");
    assert!(parse(&open).unwrap_err()[0].contains("would be an administrator"));
    let any = parse(&GOOD.replace(names, "")).unwrap();
    assert!(any.warnings[0].to_string().contains("set allowed_names"));
}

#[test]
fn the_example() {
    let text = std::fs::read_to_string("deploy/terminate.toml").unwrap();
    let text = text
        .replace("/etc/syncmux/ca.pem", "DIR/server.pem")
        .replace("/etc/syncmux/", "DIR/");
    let plain = parse(&text).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let all = parse(&uncommented).unwrap();
    assert_eq!(plain.connections, all.connections);
    assert_eq!(plain.begin, all.begin);
    assert_eq!(plain.drain_grace, all.drain_grace);
    assert_eq!(plain.login_time, all.login_time);
}
