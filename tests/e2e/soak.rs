//! `kill -9` of syncmux at random moments under load.
//!
//! `SYNCMUX_KILLS=N` kills N times instead of 12, `SYNCMUX_SEED=K` replays the moments of a run
//! that failed (the machine's own timing is not replayed).

use std::time::Duration;

use crate::support::imap::message;
use crate::support::lab::{Setup, Way};

ways!(kills: fan_out);

/// After so many kills both ends are compared.
const ROUND: u32 = 6;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn kills(way: Way) {
    let kills = number("SYNCMUX_KILLS").unwrap_or(12) as u32;
    let seed = number("SYNCMUX_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("{kills} kills, SYNCMUX_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut setup = Setup::new(way);
    setup.round_trip = Duration::from_millis(10);
    let mut lab = setup.start();
    let users: Vec<String> = (0..24).map(|i| format!("u{i:03}")).collect();
    for user in &users {
        lab.add_user(user);
    }
    lab.settle();
    for kill in 0..kills {
        lab.step(&format!("kill {kill} of seed {seed}"));
        lab.rolling();
        let before = lab.relay.counters().up;
        for user in &users {
            if random.u8(0..3) > 0 {
                let text = message(&format!("{user} {kill}"), random.usize(200..30_000));
                let mut imap = lab.master.login(user);
                imap.append("INBOX", "", &text);
                if random.bool() {
                    imap.select("INBOX");
                    imap.store("1:*", "+FLAGS (\\Flagged)");
                }
            }
        }
        // Somewhere between the first byte and the last.
        let moment = random.u64(0..120_000);
        for _ in 0..random.u32(1..200) {
            if lab.relay.counters().up > before + moment {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
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
}
