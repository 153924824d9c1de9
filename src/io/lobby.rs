//! Connections that have not logged in. They have a bound of their own, so that whoever can reach
//! the port cannot use up the sessions of those who know a password. When it is reached the oldest
//! makes way: a client that means it logs in within moments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// All such connections.
#[derive(Debug)]
pub struct Lobby {
    most: usize,
    seats: Mutex<Seats>,
}

/// In order of their coming.
#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// A connection's place among them; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
    needed: CancellationToken,
}

impl Lobby {
    /// For so many at once.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let seats = Mutex::default();
        Arc::new(Lobby { most, seats })
    }

    /// One more has come. Where there is no room for it the oldest has to go.
    pub(super) fn enter(self: &Arc<Self>) -> Seat {
        let needed = CancellationToken::new();
        let mut seats = self.seats();
        while seats.taken.len() >= self.most.max(1)
            && let Some((_, oldest)) = seats.taken.pop_first()
        {
            oldest.cancel();
        }
        let number = seats.next;
        seats.next += 1;
        seats.taken.insert(number, needed.clone());
        Seat {
            lobby: Arc::clone(self),
            number,
            needed,
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Resolves when the seat is needed for somebody else.
    pub(super) async fn needed(&self) {
        self.needed.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.seats().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_way() {
        let lobby = Lobby::new(2);
        let first = lobby.enter();
        let second = lobby.enter();
        assert!(!first.needed.is_cancelled());
        let third = lobby.enter();
        assert!(first.needed.is_cancelled() && !second.needed.is_cancelled());
        drop(second);
        let _fourth = lobby.enter();
        assert!(!third.needed.is_cancelled());
        assert_eq!(lobby.seats().taken.len(), 2);
    }
}
