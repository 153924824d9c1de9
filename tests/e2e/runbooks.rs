//! deploy/RUNBOOKS.md, done under load.

use crate::support::client::{leftovers, wait_until_drained};
use crate::support::cyrus::{Instance, Options};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::process::as_cyrus;
use crate::support::relay::Relay;
use crate::support::wait_for;

ways!(another_replica: strict, fan_out);

/// Mail for everybody while `work` is done.
fn under_load(lab: &mut Lab, users: &[String], work: impl FnOnce(&mut Lab)) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let over = AtomicBool::new(false);
    let mut sessions: Vec<_> = users.iter().map(|user| lab.master.login(user)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                for (user, imap) in users.iter().zip(&mut sessions) {
                    let text = message(&format!("{user} under load {round}"), 2000);
                    imap.append("INBOX", "", &text);
                }
                if over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        // A failure must end the load, too.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(lab)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Puts it into a running site, and takes it out again.
#[test]
fn in_and_out() {
    let mut lab = Setup::new(Way::FanOut).start();
    lab.relay
        .set_round_trip(std::time::Duration::from_millis(2));
    let users = lab.add_users(10);
    let directory = lab.sync_directory();
    let mut before = lab.link_client().rolling();
    under_load(&mut lab, &users, |lab| {
        wait_for("the stock client to work", || {
            directory.join("log-run").exists().then_some(())
        });
        lab.step("the client is ended in the middle, the next one comes to syncmux");
        before.kill();
        lab.rolling();
        wait_for("work by way of syncmux", || {
            let early = [("early", "true")];
            lab.rolling().keep_alive();
            (lab.mux().metric("syncmux_commands_total", &early) > 200.0).then_some(())
        });
        lab.step("syncmux is stopped, the client ends by itself");
        assert_eq!(lab.mux().stop(), Some(0));
        wait_for("the client to end", || {
            (!lab.rolling().is_alive()).then_some(())
        });
        lab.end_rolling();
        let ours = |name: &String| name.starts_with("syncmux-");
        if leftovers(&directory).iter().any(ours) {
            lab.mux().start();
            assert_eq!(lab.mux().stop(), Some(0));
        }
        assert!(!leftovers(&directory).iter().any(ours));
    });
    lab.step("the stock client goes on alone");
    let mut after = lab.link_client().rolling();
    wait_until_drained(&directory, &mut after);
    drop(after);
    lab.assert_same();
}

/// An empty replica takes the place of the old one, at another address.
fn another_replica(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = lab.add_users(10);
    lab.mail(&users, "1", 2000);
    lab.settle();
    under_load(&mut lab, &users, |lab| {
        lab.step("the new replica");
        assert_eq!(lab.mux().stop(), Some(0));
        lab.replica.stop();
        let options = Options {
            certs: Some(lab.certs.clone()),
            unix_socket: true,
            ..Options::default()
        };
        let mut fresh = Instance::start(&lab.path("fresh"), true, &options);
        fresh.ready();
        lab.relay = Relay::start(&fresh.csync.address(), std::time::Duration::ZERO);
        lab.replica = fresh;
        let options = lab.mux_options();
        lab.mux().configure(&options);
        lab.mux().start();
        lab.rolling().keep_alive();
        lab.step("everybody is copied");
        if way == Way::FanOut {
            let lines: String = users.iter().map(|user| format!("USER {user}\n")).collect();
            append_to_log(lab, &lines);
        } else {
            lab.strict_client().all().expect_ok("-A");
        }
    });
    lab.settle();
}

/// While the client pauses, which could else take the log between its opening and the write.
fn append_to_log(lab: &mut Lab, lines: &str) {
    lab.rolling().pause(true);
    let script = format!("printf '%s' '{lines}' >>log");
    let mut command = as_cyrus("sh");
    command.args(["-c", &script]);
    command.current_dir(lab.sync_directory());
    assert!(command.status().unwrap().success());
    lab.rolling().pause(false);
}
