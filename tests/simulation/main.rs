//! The core by simulation: one seed is one run of a rolling client, a master that changes, a
//! replica that refuses and dies, a disk that fails, and syncmux itself killed and started again.
//!
//! `SYNCMUX_SEEDS=N` runs N seeds instead of 256, `SYNCMUX_SEED=K` only that one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod replica;
mod world;

use world::World;

fn run(seed: u64) -> world::Counts {
    let mut world = World::new(seed);
    world.run();
    world.counts
}

#[test]
fn seeds() {
    let one = std::env::var("SYNCMUX_SEED")
        .ok()
        .map(|seed| seed.parse().expect("a number"));
    let many = std::env::var("SYNCMUX_SEEDS")
        .ok()
        .map(|seeds| seeds.parse().expect("a number"));
    let seeds = one.map_or(0..many.unwrap_or(256), |seed: u64| seed..seed + 1);
    let mut all = world::Counts::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        match result {
            Ok(counts) => all.add(&counts),
            Err(panic) => {
                eprintln!("seed {seed} failed: run again with SYNCMUX_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{count} seeds: {all:?}");
    if count > 100 {
        assert!(all.acknowledged_early > 0 && all.refused > 0 && all.lanes_lost > 0);
        assert!(all.kills > 0 && all.lines_written > 0 && all.healed > 0);
        assert!(all.tampered > 0 && all.known_hits > 0 && all.known_wrong > 0);
        assert!(all.drains > 0 && all.vanished > 0 && all.barriers > 0);
    }
}
