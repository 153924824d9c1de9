//! `kill -9` of syncmux at random moments under load, in four parts, so that they run side by side.
//!
//! `SYNCMUX_KILLS=N` kills N times instead of 200, `SYNCMUX_SEED=K` replays the moments of a part
//! that failed (the machine's own timing is not replayed). Each part says at its end how much was
//! changed and acknowledged.

use std::time::Duration;

use crate::support::imap::message;
use crate::support::lab::{Setup, Way};

/// After so many kills both ends are compared.
const ROUND: u32 = 10;

const PARTS: u64 = 4;

#[test]
fn part_1() {
    kills();
}

#[test]
fn part_2() {
    kills();
}

#[test]
fn part_3() {
    kills();
}

#[test]
fn part_4() {
    kills();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn kills() {
    let kills = number("SYNCMUX_KILLS").unwrap_or(200).div_ceil(PARTS) as u32;
    let seed = number("SYNCMUX_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("{kills} kills, SYNCMUX_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut setup = Setup::new(Way::FanOut);
    setup.round_trip = Duration::from_millis(10);
    let mut lab = setup.start();
    let users: Vec<String> = (0..24).map(|i| format!("u{i:03}")).collect();
    for user in &users {
        lab.add_user(user);
    }
    lab.settle();
    let (mut changes, mut early) = (0, 0.0);
    for kill in 0..kills {
        lab.step(&format!("kill {kill} of seed {seed}"));
        lab.rolling();
        let before = lab.relay.counters().up;
        for user in &users {
            if random.u8(0..3) > 0 {
                let text = message(&format!("{user} {kill}"), random.usize(200..30_000));
                let mut imap = lab.master.login(user);
                imap.append("INBOX", "", &text);
                changes += 1;
                if random.bool() {
                    changes += 1;
                    imap.select("INBOX");
                    imap.store("1:*", "+FLAGS (\\Flagged)");
                }
            }
        }
        // Somewhere between the first byte and the last.
        let moment = random.u64(0..300_000);
        for _ in 0..random.u32(1..300) {
            if lab.relay.counters().up > before + moment {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // What comes until the kill is not counted.
        for verb in ["APPLY MAILBOX", "APPLY SEEN"] {
            let labels = [("verb", verb), ("answer", "ok"), ("early", "true")];
            early += lab.mux().metric("syncmux_commands_total", &labels);
        }
        lab.mux().kill();
        if random.bool() {
            // Whoever starts the client again may be late.
            lab.end_rolling();
        }
        lab.mux().start();
        if kill % ROUND == ROUND - 1 {
            lab.settle();
        }
    }
    lab.settle();
    let left: Vec<_> = std::fs::read_dir(lab.master.sync_directory(""))
        .expect("the sync directory")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("syncmux-run-") || name == "syncmux-owed")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    println!(
        "{kills} kills, {changes} changes on the master, {early} acknowledged early by a syncmux that was killed"
    );
}
