//! `syncmux verify` as a person meets it, without ends or with ends that answer badly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn ends(args: &[&str], code: i32, says: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_syncmux"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    for say in says {
        assert!(text.contains(say), "{args:?}: {say:?} is not in:\n{text}");
    }
}

#[test]
fn verify_without_ends() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("syncmux.toml");
    let text = format!(
        "[[channel]]\nlisten = [\"127.0.0.1:2005\"]\nsync_directory = \"{}\"\n\
         [channel.replica]\naddress = \"127.0.0.1:1\"\ntls = \"off\"\n",
        folder.path().display()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap().to_owned();
    ends(&["verify", "--config", &config], 64, &["<USER", "--all"]);
    ends(
        &["verify", "joe", "--all", "--config", &config],
        64,
        &["cannot be used with"],
    );
    ends(
        &["verify", "joe", "--config", &config],
        64,
        &["[channel.master]"],
    );
    let text = fs::read_to_string(&config).unwrap();
    let master = "[channel.master]\naddress = \"unix:/no/such/socket\"\n";
    fs::write(&config, format!("{text}{master}")).unwrap();
    ends(
        &["verify", "joe", "--config", &config],
        69,
        &["the master can't be asked", "/no/such"],
    );
    let list = folder.path().join("users");
    fs::write(&list, "\n").unwrap();
    let list = list.to_str().unwrap();
    ends(
        &["verify", "--users-from", list, "--config", &config],
        64,
        &["nobody to compare"],
    );
}

/// A `sync_server` that hangs up where it is asked about `bad`, and says the same of everybody else.
fn hangs_up() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut to = stream.unwrap();
            let from = BufReader::new(to.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = to.write_all(b"* SASL PLAIN\r\n* OK fake Cyrus sync server 3.6.1\r\n");
                for line in from.lines().map_while(Result::ok) {
                    let answer: &[u8] = match line.trim_end() {
                        "GET USER bad" | "EXIT" => break,
                        "GET USER nobody" => b"OK success\r\n",
                        asked if asked.starts_with("GET USER") => {
                            b"* LSUB (user.a)\r\nOK success\r\n"
                        }
                        _ => b"OK Success (no protection)\r\n",
                    };
                    let _ = to.write_all(answer);
                }
            });
        }
    });
    address
}

#[test]
fn one_bad_answer_does_not_end_verify() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("password"), "x\n").unwrap();
    fs::set_permissions(at("password"), fs::Permissions::from_mode(0o600)).unwrap();
    let end = || {
        format!(
            "address = \"{}\"\ntls = \"off\"\nusername = \"repl\"\npassword_file = \"{}\"\n",
            hangs_up(),
            at("password")
        )
    };
    let config = format!(
        "[[channel]]\nlisten = [\"127.0.0.1:2005\"]\nsync_directory = \"{}\"\n\
         [channel.replica]\n{}[channel.master]\n{}",
        folder.path().display(),
        end(),
        end()
    );
    fs::write(at("syncmux.toml"), config).unwrap();
    let config = at("syncmux.toml");
    let bad = "bad: the master can't be asked: ";
    ends(
        &[
            "verify",
            "bad",
            "good",
            "nobody",
            "zoe",
            "--connections",
            "1",
            "--config",
            &config,
        ],
        1,
        &[
            bad,
            "nobody: neither end has such a user\n",
            "4 users compared: 1 is not the same at both ends",
            "1 is at neither end",
        ],
    );
    ends(
        &["verify", "good", "bad", "--config", &config],
        1,
        &[bad, "2 users compared: 1 is"],
    );
    fs::write(at("users"), "\u{feff}good\n# a remark\nzoe\n").unwrap();
    ends(
        &["verify", "--users-from", &at("users"), "--config", &config],
        0,
        &["2 users compared: both ends hold the same"],
    );
}
