//! The core, one rule of design.md at a time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod driver;
mod failures;
mod lanes;
mod order;
mod policy;
