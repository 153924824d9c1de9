//! How much of what clients sent is held, so that sessions know when to spill.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::spill::Spill;

/// Watches the bytes held by all channels, less what of them is spilled.
#[derive(Debug)]
pub struct MemoryGauge {
    limit: u64,
    spill: Arc<Spill>,
    held: Mutex<HashMap<String, u64>>,
    tight: AtomicBool,
}

impl MemoryGauge {
    /// More than `limit` bytes in memory count as tight.
    #[must_use]
    pub fn new(limit: u64, spill: Arc<Spill>) -> Arc<Self> {
        let held = Mutex::default();
        Arc::new(MemoryGauge {
            limit,
            spill,
            held,
            tight: AtomicBool::new(false),
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
        let tight = all.saturating_sub(self.spill.held()) > self.limit;
        self.tight.store(tight, Ordering::Relaxed);
    }

    /// Whether everything of some size should be spilled.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }
}
