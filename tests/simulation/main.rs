//! The core by simulation: one seed is one run of a rolling client, a master that changes, a
//! replica that refuses and dies, a disk that fails, keeps only what was fsynced when the power goes,
//! and syncmux itself killed and started again. `crash.rs` tries every crash of short stories.
//!
//! `SYNCMUX_SEEDS=N` runs N seeds instead of 1,000, `SYNCMUX_SEED=K` only that one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;
mod crash;
mod disk;
mod replica;
mod shard;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

fn run(seed: u64) -> world::Counts {
    let mut world = World::new(seed);
    world.run();
    world.counts
}

/// What a seed does must not depend on the order of a hash map, which differs from run to run.
#[test]
fn a_seed_does_the_same_each_time() {
    for seed in 0..200 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn seeds() {
    let one = std::env::var("SYNCMUX_SEED")
        .ok()
        .map(|seed| seed.parse().expect("a number"));
    let many = std::env::var("SYNCMUX_SEEDS")
        .ok()
        .map(|seeds| seeds.parse().expect("a number"));
    let seeds = one.map_or(0..many.unwrap_or(1_000), |seed: u64| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let next = AtomicU64::new(seeds.start);
    let all = Mutex::new(world::Counts::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match std::panic::catch_unwind(|| run(seed)) {
                Ok(counts) => all.lock().unwrap().add(&counts),
                Err(panic) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    eprintln!("seed {seed} failed: run again with SYNCMUX_SEED={seed}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let all = all.into_inner().unwrap();
    println!("{count} seeds: {all:?}");
    if count > 100 {
        assert!(all.acknowledged_early > 0 && all.refused > 0 && all.lanes_lost > 0);
        assert!(all.kills > 0 && all.lines_written > 0 && all.healed > 0);
        assert!(all.tampered > 0 && all.known_hits > 0 && all.known_wrong > 0);
        assert!(
            all.known_checks > 0 && all.read_ahead > 0 && all.users_ahead > 0 && all.must_heal > 0
        );
        assert!(all.power_losses > 0 && all.starts_cut > 0 && all.disk_faults > 0);
        assert!(all.put_off > 0 && all.not_waited > 0 && all.owed_right_now > 0);
        assert!(all.drains > 0 && all.vanished > 0 && all.barriers > 0 && all.locked > 0);
    }
}
