//! End to end against Debian's Cyrus on both sides and the stock `sync_client`.
//!
//! A scenario is a function of the [`Way`](support::lab::Way) that replication takes; `ways!` makes
//! a test of it for each. `direct` is stock to stock: it shows that the scenario itself holds.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

/// `ways!(scenario: direct, strict, fan_out)`
macro_rules! ways {
    ($scenario:ident: $($way:ident),+) => {
        mod $scenario {
            $(#[test]
            fn $way() {
                super::$scenario(ways!(@ $way));
            })+
        }
    };
    (@ direct) => { crate::support::lab::Way::Direct };
    (@ strict) => { crate::support::lab::Way::Strict };
    (@ fan_out) => { crate::support::lab::Way::FanOut };
}

mod support;

mod answers;
mod bad_user;
mod channels;
mod disk_faults;
mod failover;
mod faults;
mod folders;
mod harness;
mod healing;
mod imap;
mod known;
mod lanes;
mod mail;
mod modes;
mod rightnow;
mod runbooks;
mod shard;
mod sites;
mod soak;
mod split;
mod state;
mod supervise;
mod sync_log;
mod terminate;
mod tools;
mod transparent;
mod users;
mod versions;
mod wrong_settings;
