//! The rules one by one, with a driver in the place of `io`. Many of them at once: see
//! `tests/simulation`.

mod ahead;
mod bounds;
mod driver;
mod failures;
mod fan_out;
mod known;
mod left_alone;
mod locked;
mod order;
mod staging;
