//! The operator's tools on a syncmux that replicates between real Cyrus: status, resync, verify,
//! drain, the admin endpoint.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::support::cyrus::ADMIN;
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::process::set_mode;
use crate::support::wait_for;

/// Users with mail, and a configuration that names the master's own sync_server.
fn start(way: Way, users: usize) -> (Lab, Vec<String>) {
    let mut setup = Setup::new(way);
    setup.both.unix_socket = true;
    let mut lab = setup.start();
    let mut options = lab.mux_options();
    let socket = lab.master.csync_socket();
    options.extra = format!(
        "[channel.master]\naddress = \"unix:{}\"\n",
        socket.display()
    );
    // For the tools; the one that runs needs nothing of it.
    lab.mux().configure(&options);
    let users = lab.add_users(users);
    lab.mail(&users, "1", 1000);
    lab.settle();
    if is_old(&lab) {
        // Nothing is answered from what is known before a line of the replica, and one of the client, has
        // shown that it compares SINCE_MODSEQ. Newer ones say so with their capabilities.
        lab.mail(&users, "once more", 1000);
        lab.settle();
    }
    (lab, users)
}

fn is_old(lab: &Lab) -> bool {
    lab.old_master() || lab.old_replica()
}

fn ends(lab: &mut Lab, arguments: &[&str], code: i32, says: &[&str]) -> String {
    let (found, text) = lab.mux().tool(arguments);
    assert_eq!(found, Some(code), "{arguments:?}: {text}");
    for say in says {
        assert!(
            text.contains(say),
            "{arguments:?}: {say:?} is not in:\n{text}"
        );
    }
    text
}

#[test]
fn status() {
    let (mut lab, users) = start(Way::FanOut, 6);
    lab.step("nothing to do");
    wait_for("all to be confirmed", || {
        lab.mux().status()["safe_to_promote"]
            .as_bool()
            .unwrap()
            .then_some(())
    });
    let text = ends(
        &mut lab,
        &["status"],
        0,
        &[
            "the default channel, fan-out: the replica has everything",
            "log empty; log-run empty",
            "1, 1 rolling",
            "0 users, oldest none",
            "rolling, fan-out",
            "ROUND TRIP",
        ],
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let json = ends(&mut lab, &["status", "--json"], 0, &[]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let channel = &json["channels"][0];
    assert_eq!(channel["state"]["clients"], 1);
    assert_eq!(channel["no_client_seconds"], serde_json::Value::Null);
    let lanes = channel["state"]["lane_list"].as_array().unwrap();
    let measured = |lane: &serde_json::Value| lane["round_trip_microseconds"].as_u64() > Some(0);
    assert!(lanes.iter().any(measured), "{json}");

    lab.step("throughput");
    for round in 0.. {
        lab.mail(&users, &format!("rate {round}"), 1000);
        lab.replicate();
        let json = ends(&mut lab, &["status", "--json"], 0, &[]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        if json["channels"][0]["per_second"]["units"].as_f64() > Some(0.0) {
            break;
        }
        assert!(round < 100, "{json}");
    }

    lab.step("watched, with the link held up");
    let mut command = lab.mux().tool_command(&["status", "--watch", "--json"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value {
        let line = lines.next().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(next()["channels"][0]["state"]["unconfirmed_users"], 0);
    lab.relay.stall(true);
    lab.mail(&users, "2", 1000);
    let waiting = std::iter::repeat_with(&mut next).take(30).find(|page| {
        let state = &page["channels"][0]["state"];
        state["lag_milliseconds"].as_u64() > Some(1_000)
    });
    let state = waiting.expect("a lag of more than a second")["channels"][0]["state"].clone();
    let first = &state["users"][0];
    assert!(
        first["milliseconds"].as_u64() > Some(0) && first["jobs"].as_u64() > Some(0),
        "{state}"
    );
    watch.kill().unwrap();
    watch.wait().unwrap();
    let text = ends(&mut lab, &["status"], 0, &["does not have everything yet"]);
    assert!(
        users
            .iter()
            .any(|user| text.contains(&format!("  {user}\n"))),
        "{text}"
    );
    let lag = lab.mux().metric("syncmux_lag_seconds", &[]);
    let oldest = lab.mux().metric("syncmux_oldest_unconfirmed_seconds", &[]);
    assert!(lag >= oldest && oldest > 1.0, "{lag} {oldest}");
    lab.relay.stall(false);
    lab.settle();
    wait_for("no lag", || {
        (lab.mux().metric("syncmux_lag_seconds", &[]) == 0.0).then_some(())
    });

    lab.step("without a client");
    assert!(lab.mux().metric("syncmux_client_logins_total", &[]) >= 1.0);
    lab.end_rolling();
    wait_for("no client", || {
        (lab.mux().metric("syncmux_clients", &[]) == 0.0).then_some(())
    });
    lab.mail(&users, "3", 1000);
    wait_for("the log to be seen", || {
        let bytes = lab.mux().metric("syncmux_log_bytes", &[("file", "log")]);
        (bytes > 0.0).then_some(())
    });
    let text = ends(&mut lab, &["status"], 0, &["no rolling client for "]);
    assert!(text.contains("oldest line "), "{text}");
    std::thread::sleep(Duration::from_millis(2_500));
    let aged = lab.mux().metric("syncmux_lag_seconds", &[]);
    assert!(aged >= 2.0, "the age of the log does not grow: {aged}");
    lab.settle();
}

#[test]
fn verify_and_resync() {
    let (mut lab, users) = start(Way::FanOut, 5);
    let alice = users[0].as_str();
    let mut imap = lab.master.login(alice);
    imap.create("INBOX.box");
    imap.append("INBOX.box", "", &message("box", 1000));
    imap.subscribe("INBOX.box");
    let mut admin = lab.master.login(ADMIN);
    for name in ["shared", "shared.box"] {
        admin.create(name);
        admin.set_acl(name, "anyone", "lrswipkxtecdan");
    }
    admin.append("shared.box", "", &message("shared", 1000));
    lab.settle();
    lab.step("equal");
    let same = "compared: both ends hold the same";
    let everything = "5 users and 2 shared mailboxes ";
    ends(&mut lab, &["verify", alice], 0, &["1 user ", same]);
    ends(&mut lab, &["verify", "--all"], 0, &[everything, same]);
    let (code, text) = lab
        .mux()
        .tool_as_root(&["verify", "--all", "--connections", "2"]);
    assert_eq!(code, Some(0), "{text}");
    let list = lab.path("list");
    crate::support::process::write(&list, format!("{alice}\n\n{}\n", users[1]));
    ends(
        &mut lab,
        &["verify", "--users-from", list.to_str().unwrap()],
        0,
        &["2 users ", same],
    );
    ends(
        &mut lab,
        &["verify", "nobody"],
        1,
        &["nobody: neither end has such a user"],
    );

    lab.step("changed behind its back");
    // A client of 3.2 looks at users who log in on the master, as the comparison does, and would heal it.
    lab.end_rolling();
    // See `start`.
    let last = if is_old(&lab) { 2 } else { 1 };
    let next = last + 1;
    let mut there = lab.replica.login(alice);
    there.append("INBOX", "", &message("only there", 1000));
    there.select("INBOX.box");
    there.store("1", "+FLAGS (\\Flagged)");
    there.subscribe("INBOX");
    let all: Vec<&str> = std::iter::once("verify")
        .chain(users.iter().map(String::as_str))
        .collect();
    let text = ends(
        &mut lab,
        &all,
        1,
        &[
            &format!("{alice}: mailbox user.{alice}: SYNC_CRC is "),
            &format!(
                "{alice}: mailbox user.{alice}: LAST_UID is {last} on the master and {next} on the replica"
            ),
            &format!("{alice}: mailbox user.{alice}: message {next}: only on the replica"),
            &format!("{alice}: mailbox user.{alice}.box: message 1: FLAGS is "),
            &format!("{alice}: subscription to user.{alice}: only on the replica"),
            "5 users compared: 1 is not the same at both ends",
        ],
    );
    assert!(!text.contains(&format!("{}:", users[1])), "{text}");

    lab.step("healed by a line");
    let (code, text) = lab.mux().tool_as_root(&["resync", alice]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("  USER {alice}\n")), "{text}");
    lab.settle();
    ends(&mut lab, &["verify", "--all"], 0, &[everything, same]);
    lab.end_rolling();
    let mut there = lab.replica.login(ADMIN);
    there.append("shared.box", "", &message("only there", 1000));
    let text = ends(
        &mut lab,
        &["verify", "--all"],
        1,
        &[
            "mailbox shared.box: LAST_UID is 1 on the master and 2 on the replica",
            "mailbox shared.box: message 2: only on the replica",
            "1 is not the same at both ends",
        ],
    );
    assert!(!text.contains("user."), "{text}");
    let (code, text) = lab
        .mux()
        .tool_as_root(&["resync", "--mailbox", "shared.box"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("  MAILBOX shared.box\n"), "{text}");
    lab.settle();
    ends(&mut lab, &["verify", "--all"], 0, &[everything, same]);
    // As Cyrus's user, and while no syncmux runs.
    lab.end_rolling();
    lab.replica.login(alice).unsubscribe("INBOX.box");
    ends(&mut lab, &["verify", alice], 1, &["subscription to"]);
    lab.mux().stop();
    ends(&mut lab, &["resync", alice], 0, &["USER"]);
    lab.mux().start();
    lab.settle();
    ends(&mut lab, &["verify", alice], 0, &[same]);

    lab.step("an end is away");
    lab.replica.stop();
    ends(
        &mut lab,
        &["verify", alice],
        69,
        &["syncmux: the replica can't be asked: "],
    );
    lab.replica.resume();
    lab.replica.ready();
    lab.settle();
}

#[test]
fn drain() {
    let (mut lab, users) = start(Way::FanOut, 20);
    lab.step("drained with work on the way");
    lab.relay.stall(true);
    lab.mail(&users, "2", 4000);
    wait_for("work that is acknowledged and not confirmed", || {
        (lab.mux().status()["unconfirmed_users"].as_u64() > Some(10)).then_some(())
    });
    // A web page must not be able to.
    let origin = "Origin: http://evil.example\r\n";
    let (code, said) = lab.mux().admin("POST", "/drain", origin, "").unwrap();
    assert_eq!(code, 403, "{said}");
    ends(
        &mut lab,
        &["drain"],
        0,
        &["draining: what was acknowledged is finished first"],
    );
    wait_for("it to say so", || {
        let (code, said) = lab.mux().admin_page("/ready")?;
        (code == 503 && said.contains("draining")).then_some(())
    });
    ends(&mut lab, &["status"], 0, &["DRAINING"]);
    let mut command = lab.mux().tool_command(&["drain", "--wait"]);
    let mut waits = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waits.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("draining"), "{first}");
    lab.relay.stall(false);
    assert_eq!(lines.next().unwrap().unwrap(), "it has ended");
    assert_eq!(waits.wait().unwrap().code(), Some(0));
    let end = wait_for("its end", || lab.mux().exited());
    assert_eq!(end.code(), Some(0));
    ends(&mut lab, &["drain"], 69, &["no syncmux answers"]);
    lab.step("nothing acknowledged is lost");
    lab.mux().stop();
    lab.mux().start();
    lab.settle();
    ends(&mut lab, &["verify", "--all"], 0, &["20 users "]);
}

#[test]
fn a_directory_that_can_not_be_written() {
    let (mut lab, users) = start(Way::FanOut, 2);
    let directory = lab.sync_directory();
    let usable = |lab: &mut Lab| lab.mux().metric("syncmux_sync_directory_usable", &[]);
    assert_eq!(usable(&mut lab), 1.0);
    lab.step("not ours");
    set_mode(&directory, 0o555);
    wait_for("it to be noticed", || {
        let (code, said) = lab.mux().admin_page("/ready")?;
        (code == 503 && said.contains("can't be written: permission denied")).then_some(())
    });
    assert_eq!(usable(&mut lab), 0.0);
    ends(
        &mut lab,
        &["status"],
        0,
        &["CAN'T BE WRITTEN: permission denied"],
    );
    lab.step("ours again");
    set_mode(&directory, 0o755);
    wait_for("it to be noticed", || {
        lab.mux()
            .admin_page("/ready")
            .is_some_and(|(code, _)| code == 200)
            .then_some(())
    });
    assert_eq!(usable(&mut lab), 1.0);
    lab.mail(&users, "2", 1000);
    lab.settle();
}

#[test]
fn log_level() {
    let (mut lab, users) = start(Way::FanOut, 2);
    let debug = |lab: &mut Lab| lab.mux().log_text().matches("DEBUG").count();
    assert!(debug(&mut lab) > 0);
    let (code, said) = lab
        .mux()
        .admin("POST", "/loglevel", "", "level=warn")
        .unwrap();
    assert_eq!(
        (code, said.as_str()),
        (200, "the log level is warn until the next start\n")
    );
    let before = debug(&mut lab);
    lab.mail(&users, "2", 1000);
    lab.settle();
    assert_eq!(debug(&mut lab), before);
    let (code, said) = lab
        .mux()
        .admin("POST", "/loglevel", "", "level=loud")
        .unwrap();
    assert_eq!(code, 400);
    assert!(said.contains("\"loud\" is no log level"), "{said}");
    lab.mux()
        .admin("POST", "/loglevel?level=debug", "", "")
        .unwrap();
    lab.mail(&users, "3", 1000);
    lab.settle();
    assert!(debug(&mut lab) > before);
}
