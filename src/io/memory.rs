//! How much of what peers sent is held in memory, so that sessions and lanes know when to spill
//! and when to refuse.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::spill::Spill;

/// Memory that many hold parts of.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

/// The part of a [`Budget`] that one of them holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

/// Watches what clients have sent: what the cores of all channels hold of it and what is still
/// arriving, less what of it is spilled; and beside that the lists of names and GUIDs, which can't
/// be spilled.
#[derive(Debug)]
pub struct MemoryGauge {
    limit: u64,
    spill: Arc<Spill>,
    held: Mutex<HashMap<String, u64>>,
    /// Of `held`, what is in memory.
    complete: AtomicU64,
    arriving: Arc<Budget>,
    lists: Arc<Budget>,
}

impl Budget {
    /// All shares together should be no more than `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let used = AtomicU64::new(0);
        Arc::new(Budget { limit, used })
    }

    /// A share of nothing yet.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        let budget = Arc::clone(self);
        Share { budget, bytes: 0 }
    }
}

impl Share {
    /// Its holder has so many bytes from now on.
    pub fn set(&mut self, bytes: u64) {
        let used = &self.budget.used;
        if bytes > self.bytes {
            used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Whether all shares fit, or there is no other: what one may have by itself is limited
    /// elsewhere.
    #[must_use]
    pub fn fits(&self) -> bool {
        let used = self.budget.used.load(Ordering::Relaxed);
        used <= self.budget.limit || used <= self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl MemoryGauge {
    /// More than `limit` bytes in memory count as tight; lists may take as much again.
    #[must_use]
    pub fn new(limit: u64, spill: Arc<Spill>) -> Arc<Self> {
        Arc::new(MemoryGauge {
            limit,
            spill,
            held: Mutex::default(),
            complete: AtomicU64::new(0),
            arriving: Budget::new(limit),
            lists: Budget::new(limit),
        })
    }

    /// A channel's core holds so many bytes, spilled ones included.
    pub fn set(&self, channel: &str, bytes: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(channel) {
            Some(known) => *known = bytes,
            None => drop(held.insert(channel.to_owned(), bytes)),
        }
        let all: u64 = held.values().sum();
        let complete = all.saturating_sub(self.spill.held());
        self.complete.store(complete, Ordering::Relaxed);
    }

    /// Whether everything of some size should be spilled.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        let arriving = self.arriving.used.load(Ordering::Relaxed);
        self.complete.load(Ordering::Relaxed) + arriving > self.limit
    }

    /// For what a session holds of the command that it reads or waits with.
    pub(super) fn arriving(&self) -> Share {
        self.arriving.share()
    }

    /// For the names and GUIDs of that command.
    pub(super) fn lists(&self) -> Share {
        self.lists.share()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_counts_and_is_given_back() {
        let spill = Spill::new(&std::env::temp_dir(), 1).expect("a temporary directory");
        let gauge = MemoryGauge::new(1000, spill);
        gauge.set("a", 300);
        gauge.set("b", 300);
        let mut first = gauge.arriving();
        first.set(400);
        assert!(!gauge.is_tight());
        let mut second = gauge.arriving();
        second.set(1);
        assert!(gauge.is_tight());
        first.set(10);
        assert!(!gauge.is_tight());
        second.set(500);
        assert!(gauge.is_tight());
        drop(second);
        assert!(!gauge.is_tight());
    }

    #[test]
    fn one_alone_may_have_more_than_there_is_for_all() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.share(), budget.share());
        one.set(500);
        assert!(one.fits());
        two.set(1);
        assert!(!one.fits() && !two.fits());
        one.set(90);
        assert!(one.fits() && two.fits());
    }
}
