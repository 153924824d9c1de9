//! What must not work: wrong passwords, wrong certificates, settings that fan-out refuses.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::PATIENCE;
use crate::support::cyrus::{ADMIN, PASSWORD, REPL};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::mux::{MuxOptions, Tls};
use crate::support::wait_for;

ways!(wrong_password_of_the_client: strict, fan_out);
ways!(wrong_password_of_the_lanes: strict, fan_out);
ways!(wrong_ca: strict, fan_out);
ways!(wrong_server_name: strict, fan_out);

fn start(way: Way) -> Lab {
    let lab = Setup::new(way).start();
    for user in ["alice", "bob"] {
        lab.add_user(user);
        lab.master
            .login(user)
            .append("INBOX", "", &message(user, 2000));
    }
    lab
}

fn nothing_arrived(lab: &Lab) {
    let names = lab.replica.admin().list_names("*");
    assert!(names.is_empty(), "these reached the replica: {names:?}");
}

/// The answer to AUTHENTICATE PLAIN, and whether the initial response was sent with it.
fn authenticate(address: &str, user: &str, password: &str, initial: bool) -> String {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("* OK") {
        line.clear();
        assert!(
            stream.read_line(&mut line).unwrap() > 0,
            "closed before the greeting"
        );
    }
    let proof = STANDARD.encode(format!("\0{user}\0{password}"));
    let first = if initial {
        format!("AUTHENTICATE PLAIN {proof}\r\n")
    } else {
        "AUTHENTICATE PLAIN\r\n".to_owned()
    };
    stream.get_mut().write_all(first.as_bytes()).unwrap();
    if !initial {
        line.clear();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with('+'), "{line:?}");
        stream
            .get_mut()
            .write_all(format!("{proof}\r\n").as_bytes())
            .unwrap();
    }
    line.clear();
    stream.read_line(&mut line).unwrap();
    line
}

fn wrong_password_of_the_client(way: Way) {
    let mut lab = start(way);
    let listen = lab.mux().listen.clone();
    for (user, initial) in [(REPL, true), (ADMIN, false)] {
        let answer = authenticate(&listen, user, "wrong", initial);
        assert!(answer.starts_with("NO "), "{answer:?}");
        let answer = authenticate(&listen, REPL, PASSWORD, initial);
        assert!(answer.starts_with("OK"), "{answer:?}");
    }
    lab.step("the stock client");
    let client = lab.client_to("wrong", &listen, "wrong", "");
    let mut rolling = client.rolling();
    wait_for("the refusal", || {
        // The stock client does not say why, and tries again after 15 seconds.
        let said = rolling.output();
        (said.contains("NO ") || said.contains("Can not connect")).then_some(())
    });
    rolling.kill();
    nothing_arrived(&lab);
    lab.settle();
}

/// What is wrong stands in `options`: nothing gets through, `check` says so, and with the right
/// settings everything does.
fn nothing_until_mended(mut lab: Lab, says: &str, wrong: &dyn Fn(&Lab, &mut MuxOptions)) {
    let right = lab.mux_options();
    let (code, said) = lab.mux().check();
    assert_eq!(code, Some(0), "a good set-up: {said}");
    assert!(
        said.contains("lets repl in") && !said.contains("ERROR"),
        "{said}"
    );
    let mut options = right.clone();
    wrong(&lab, &mut options);
    lab.mux().stop();
    lab.mux().configure(&options);
    lab.step("check");
    let (code, said) = lab.mux().check();
    assert_eq!(code, Some(64), "{said}");
    assert!(!said.contains(PASSWORD), "check shows a password: {said}");
    assert!(said.contains(says), "{says:?} is not in {said}");
    lab.step("run");
    lab.mux().start();
    // A client's work, so that lanes are tried; it is not waited for, since it waits too.
    let client = lab.client();
    let mut rolling = client.rolling();
    wait_for("lanes to fail", || {
        (lab.mux().metric("syncmux_failures_total", &[]) > 0.0).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    nothing_arrived(&lab);
    assert!(lab.mux().exited().is_none(), "syncmux must outlive this");
    rolling.kill();
    lab.step("mended");
    lab.mux().stop();
    lab.mux().configure(&right);
    lab.mux().start();
    lab.settle();
}

fn wrong_password_of_the_lanes(way: Way) {
    let mut setup = Setup::new(way);
    // By a UNIX socket, where the lanes' own password is the only one.
    setup.unix = true;
    let lab = setup.start();
    lab.add_user("alice");
    nothing_until_mended(lab, "authentication failure", &|_, options| {
        "wrong".clone_into(&mut options.password)
    });
}

fn wrong_ca(way: Way) {
    nothing_until_mended(start(way), "ca_file", &|lab, options| {
        let ca = lab.certs.other_ca.clone();
        options.tls = Tls::StartTls {
            ca,
            server_name: "replica.test".to_owned(),
        };
    });
}

fn wrong_server_name(way: Way) {
    nothing_until_mended(start(way), "another.test", &|lab, options| {
        let ca = lab.certs.ca.clone();
        options.tls = Tls::StartTls {
            ca,
            server_name: "another.test".to_owned(),
        };
    });
}

/// A client with a cache of its own cannot be healed: fan-out says no before it starts.
#[test]
fn fan_out_refuses_a_client_with_a_cache() {
    let mut lab = start(Way::FanOut);
    let mut options = lab.mux_options();
    let conf = lab
        .master
        .variant("cached", "sync_cache_db_path: /tmp/never-made.db\n");
    options.imapd_conf = conf;
    lab.mux().stop();
    lab.mux().configure(&options);
    let (code, said) = lab.mux().check();
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("sync_cache_db_path"), "{said}");
    lab.step("mended");
    let right = lab.mux_options();
    lab.mux().configure(&right);
    lab.mux().start();
    lab.settle();
}
