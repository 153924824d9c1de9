//! The rules one by one, with a driver in the place of `io`: each file is a theme. Many of them at
//! once: see `tests/simulation`.

mod ahead;
mod bounds;
mod doubts;
mod drain;
mod driver;
mod failures;
mod fan_out;
mod known;
mod lanes;
mod left_alone;
mod locked;
mod look;
mod neighbours;
mod order;
mod policy;
mod probation;
mod put_off;
mod rightnow;
mod staging;
mod users_ahead;
mod waits;
mod words;
