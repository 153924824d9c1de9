//! The rolling client as syncmux starts it itself (`client_command`).

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::support::client::leftovers;
use super::support::cyrus::BIN;
use super::support::lab::{Lab, Setup, Way};
use super::support::process::{Guard, children, write};
use super::support::wait_for;

/// A lab whose syncmux starts the client by this lab's configuration.
fn lab() -> Lab {
    let mut lab = Setup::new(Way::FanOut).start();
    let conf = lab.client().conf;
    lab.mux().stop();
    let program = lab.master.version.wrapper("sync_client");
    let command = format!(
        "client_command = [\"{}\", \"-C\", \"{}\", \"-R\"]\n[channel.replica]",
        program.display(),
        conf.display()
    );
    let config = lab.mux().config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[channel.replica]", &command)).unwrap();
    lab.mux().start();
    lab
}

fn client(lab: &mut Lab) -> Pid {
    let parent = Pid::from_raw(lab.mux().pid()).unwrap();
    wait_for("syncmux to start the client", || {
        children(parent, "sync_client").first().copied()
    })
}

fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(pid: Pid) {
    wait_for("the client to leave", || (!lives(pid)).then_some(()));
}

/// Until Cyrus, the client and syncmux have nothing left to do for a while.
fn replicated(lab: &Lab) {
    let directory = lab.sync_directory();
    let mut quiet = 0;
    wait_for("everything to be replicated", || {
        quiet = if leftovers(&directory).is_empty() {
            quiet + 1
        } else {
            0
        };
        std::thread::sleep(Duration::from_millis(20));
        (quiet > 4).then_some(())
    });
}

#[test]
fn it_comes_back_and_leaves_with_syncmux() {
    let mut lab = lab();
    let users = lab.add_users(3);
    lab.mail(&users, "first", 2_000);
    let first = client(&mut lab);
    replicated(&lab);
    lab.assert_same();

    lab.step("the client is killed");
    kill_process(first, Signal::KILL).unwrap();
    lab.mail(&users, "second", 2_000);
    gone(first);
    let second = client(&mut lab);
    assert_ne!(first, second);
    replicated(&lab);
    lab.assert_same();
    let starts = lab
        .mux()
        .metric("syncmux_client_starts_total", &[("channel", "")]);
    assert_eq!(starts, 2.0);
    let said = lab.mux().log_text();
    assert!(
        said.contains("the client was ended by signal 9; it is started again in 1 s"),
        "{said}"
    );

    lab.step("syncmux is stopped while there is work");
    lab.mail(&users, "third", 2_000);
    assert_eq!(lab.mux().stop(), Some(0));
    assert!(!lives(second), "the client outlived syncmux");

    lab.step("an upgrade: started again, all goes on");
    lab.mux().start();
    client(&mut lab);
    replicated(&lab);
    lab.assert_same();
}

/// The other way: the line of deploy/systemd/README.md in cyrus.conf.
#[test]
fn a_daemon_of_cyrus_comes_back_after_an_upgrade() {
    let mut lab = Setup::new(Way::FanOut).start();
    let client = lab.client().conf;
    let conf = lab.path("daemon.conf");
    let line = format!(
        "syncclient cmd=\"{BIN}/sync_client -C {} -r\"",
        client.display()
    );
    write(
        &conf,
        format!("START {{\n}}\nSERVICES {{\n}}\nDAEMON {{\n  {line}\n}}\n"),
    );
    let mut command = lab.master.version.command(format!("{BIN}/master"));
    command.arg("-C").arg(&client).arg("-M").arg(&conf);
    command.arg("-p").arg(lab.path("daemon.pid"));
    let _cyrus = Guard::spawn("master", &mut command);

    let users = lab.add_users(3);
    lab.mail(&users, "first", 2_000);
    replicated(&lab);
    lab.assert_same();
    for round in 0..2 {
        lab.step(&format!("upgrade {round}"));
        assert_eq!(lab.mux().stop(), Some(0));
        lab.mail(&users, &format!("while it is away {round}"), 2_000);
        lab.mux().start();
        replicated(&lab);
        lab.assert_same();
        lab.mail(&users, &format!("afterwards {round}"), 2_000);
        replicated(&lab);
        lab.assert_same();
    }
}

#[test]
fn it_does_not_outlive_a_syncmux_that_was_killed() {
    let mut lab = lab();
    let users = lab.add_users(2);
    lab.mail(&users, "first", 2_000);
    let first = client(&mut lab);
    replicated(&lab);
    lab.step("kill -9");
    lab.mux().kill_alone();
    // Idle as it is it would not notice that its connection has gone.
    gone(first);
    lab.mail(&users, "second", 2_000);
    lab.mux().start();
    let second = client(&mut lab);
    assert_ne!(first, second);
    replicated(&lab);
    lab.assert_same();
}
