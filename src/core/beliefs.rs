//! The store behind [`super::known`]: what is believed of each mailbox, found by its name, all of
//! one user's at once, and what was least of use first.
//!
//! All of a belief stands in one slot, name and key once each. The two tables hold numbers of
//! slots, and slots are chained to rings: one of all in the order of their use, and one for each
//! key. So a look by name is one hash and one slot, whatever else is known.

use std::hash::BuildHasher;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

use super::known::{Eyes, State};
use crate::protocol::UserKey;

/// What one belief costs besides the bytes of its name, its key and its line: its slot, its places
/// in the tables, and what the allocator needs for the three.
const OVERHEAD: u64 = 350;

/// So many are looked at after each event in debug builds: more would take the square of it.
const CHECKED: usize = 1000;

/// All in the order of their use.
const USE: usize = 0;
/// Those of one key.
const KEY: usize = 1;

/// Everything that is believed, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct Beliefs {
    slots: Slab<Slot>,
    names: HashTable<usize>,
    /// One slot of each key: its ring holds the others.
    keys: HashTable<usize>,
    hashes: DefaultHashBuilder,
    /// What was of use last; behind it in the ring comes what was least of use.
    newest: Option<usize>,
    bytes: u64,
}

/// What is believed of one mailbox.
#[derive(Debug)]
pub(super) struct Belief {
    pub(super) state: State,
    pub(super) eyes: Eyes,
    /// When the replica said so, or the update was acknowledged.
    pub(super) since: Duration,
    /// When it became so by an update, by the clock of [`super::known::Known`]; 0 where the replica
    /// said so.
    pub(super) made: u64,
}

#[derive(Debug)]
struct Slot {
    name: Bytes,
    key: UserKey,
    belief: Belief,
    /// Its neighbours in the ring `USE` and in the ring `KEY`.
    links: [Links; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Links {
    before: usize,
    after: usize,
}

impl Beliefs {
    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// What is believed of a mailbox.
    pub(super) fn get(&self, name: &Bytes) -> Option<&Belief> {
        self.find(name).map(|id| &self.slots[id].belief)
    }

    /// Makes use of what is believed of a mailbox in these eyes; what is older than `oldest` goes.
    pub(super) fn recall(&mut self, name: &Bytes, eyes: Eyes, oldest: Duration) -> Option<State> {
        let id = self.find(name)?;
        let belief = &self.slots[id].belief;
        if belief.since < oldest {
            self.remove_slot(id);
            return None;
        }
        if belief.eyes != eyes {
            return None;
        }
        let state = belief.state.clone();
        self.touch(id);
        Some(state)
    }

    /// This is believed from now on.
    pub(super) fn insert(&mut self, name: &Bytes, key: &UserKey, belief: Belief) {
        if let Some(id) = self.find(name) {
            let slot = &mut self.slots[id];
            self.bytes -= slot.bytes();
            slot.belief = belief;
            self.bytes += slot.bytes();
            return self.touch(id);
        }
        let slot = Slot {
            name: name.clone(),
            key: key.clone(),
            belief,
            links: [Links::default(); 2],
        };
        self.bytes += slot.bytes();
        let id = self.slots.insert(slot);
        let (slots, hashes) = (&self.slots, &self.hashes);
        let hash_name = |id: &usize| hashes.hash_one(&slots[*id].name);
        let hash_key = |id: &usize| hashes.hash_one(&slots[*id].key);
        self.names.insert_unique(hash_name(&id), id, hash_name);
        let of_key = self.keys.find(hash_key(&id), |id| slots[*id].key == *key);
        let of_key = of_key.copied();
        if of_key.is_none() {
            self.keys.insert_unique(hash_key(&id), id, hash_key);
        }
        self.join(KEY, id, of_key);
        self.join(USE, id, self.newest);
        self.newest = Some(id);
    }

    /// What is believed of a mailbox became so by an update, at this time.
    pub(super) fn mark_made(&mut self, name: &Bytes, made: u64) {
        if let Some(id) = self.find(name) {
            self.slots[id].belief.made = made;
        }
    }

    /// Nothing is believed of this mailbox any more.
    pub(super) fn remove(&mut self, name: &Bytes) {
        if let Some(id) = self.find(name) {
            self.remove_slot(id);
        }
    }

    /// Nothing is believed of any mailbox of this key any more.
    pub(super) fn remove_key(&mut self, key: &UserKey) {
        let slots = &self.slots;
        let hash = self.hashes.hash_one(key);
        let mut next = self.keys.find(hash, |id| slots[*id].key == *key).copied();
        while let Some(id) = next {
            next = self.remove_slot(id);
        }
    }

    /// Removes what was least of use until there are no more than so many bytes.
    pub(super) fn shrink(&mut self, limit: u64) {
        while self.bytes > limit
            && let Some(newest) = self.newest
        {
            let oldest = self.slots[newest].links[USE].after;
            self.remove_slot(oldest);
        }
    }

    /// Nothing is believed at all.
    pub(super) fn clear(&mut self) {
        *self = Beliefs::default();
    }

    fn find(&self, name: &Bytes) -> Option<usize> {
        let hash = self.hashes.hash_one(name);
        let is = |id: &usize| self.slots[*id].name == *name;
        self.names.find(hash, is).copied()
    }

    /// Empties a slot; returns another one of its key.
    fn remove_slot(&mut self, id: usize) -> Option<usize> {
        let before = self.part(USE, id);
        if self.newest == Some(id) {
            self.newest = before;
        }
        let other = self.part(KEY, id);
        let slot = self.slots.remove(id);
        self.bytes -= slot.bytes();
        let hash = self.hashes.hash_one(&slot.name);
        if let Ok(entry) = self.names.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        let hash = self.hashes.hash_one(&slot.key);
        // Where the table names another slot of this key it stays as it is.
        if let Ok(mut entry) = self.keys.find_entry(hash, |other| *other == id) {
            match other {
                Some(other) => *entry.get_mut() = other,
                None => drop(entry.remove()),
            }
        }
        other
    }

    fn touch(&mut self, id: usize) {
        if self.newest != Some(id) {
            self.part(USE, id);
            self.join(USE, id, self.newest);
            self.newest = Some(id);
        }
    }

    /// Puts a slot into a ring, behind this one, or by itself.
    fn join(&mut self, ring: usize, id: usize, before: Option<usize>) {
        let before = before.unwrap_or(id);
        // Alone it is its own neighbour.
        let after = match before == id {
            true => id,
            false => self.slots[before].links[ring].after,
        };
        self.slots[id].links[ring] = Links { before, after };
        self.slots[before].links[ring].after = id;
        self.slots[after].links[ring].before = id;
    }

    /// Takes a slot out of a ring; returns the one before it, where it was not alone.
    fn part(&mut self, ring: usize, id: usize) -> Option<usize> {
        let Links { before, after } = self.slots[id].links[ring];
        self.slots[before].links[ring].after = after;
        self.slots[after].links[ring].before = before;
        (before != id).then_some(before)
    }

    /// What must hold after every event.
    pub(super) fn check(&self) {
        if self.len() > CHECKED {
            return;
        }
        debug_assert_eq!(self.slots.len(), self.names.len());
        let bytes = self.slots.iter().map(|(_, slot)| slot.bytes());
        debug_assert_eq!(self.bytes, bytes.sum::<u64>());
        let of_keys = self.keys.iter().map(|id| self.ring(KEY, Some(*id)));
        debug_assert_eq!(self.slots.len(), of_keys.sum::<usize>());
        debug_assert_eq!(self.slots.len(), self.ring(USE, self.newest));
    }

    /// How many are in this one's ring.
    fn ring(&self, ring: usize, first: Option<usize>) -> usize {
        let next = |id: &usize| {
            let after = self.slots[*id].links[ring].after;
            (Some(after) != first).then_some(after)
        };
        std::iter::successors(first, next).count()
    }
}

impl Slot {
    fn bytes(&self) -> u64 {
        let line = self.belief.state.as_ref().map_or(0, Bytes::len);
        OVERHEAD + (self.name.len() + self.key.as_bytes().len() + line) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::event::{Identity, Pool};
    use super::super::known::Known;
    use super::*;
    use crate::protocol::Site;

    /// The same things done to it and to a plain list in the order of use.
    #[test]
    fn it_does_what_a_plain_list_does() {
        let eyes = Known::default().eyes(&Pool {
            identity: Identity::Configured,
            capabilities: Vec::new(),
            force: None,
        });
        let (eyes, site) = (eyes.expect("eyes"), Site::default());
        let mut random = fastrand::Rng::with_seed(7);
        let mut beliefs = Beliefs::default();
        let mut plain: Vec<(Bytes, UserKey, u64)> = Vec::new();
        for step in 0..20_000u64 {
            let (user, folder) = (random.u8(..6), random.u8(..4));
            let name = Bytes::from(format!("user.u{user}.f{folder}"));
            let key = site.key_of_mailbox(&name);
            let at = plain.iter().position(|(one, ..)| *one == name);
            match random.u8(..20) {
                0 => {
                    beliefs.remove_key(&key);
                    plain.retain(|(_, of, _)| *of != key);
                }
                1 => {
                    let most = random.usize(4..24);
                    let bytes = OVERHEAD + (name.len() + key.as_bytes().len()) as u64;
                    beliefs.shrink(bytes * most as u64);
                    plain.drain(..plain.len().saturating_sub(most));
                }
                2..6 => {
                    beliefs.remove(&name);
                    at.map(|at| plain.remove(at));
                }
                6..10 => {
                    let oldest = step.saturating_sub(200);
                    let found = beliefs.recall(&name, eyes, Duration::from_secs(oldest));
                    let entry = at.map(|at| plain.remove(at));
                    let entry = entry.filter(|(.., since)| *since >= oldest);
                    assert_eq!(found.is_some(), entry.is_some());
                    plain.extend(entry);
                }
                _ => {
                    let since = Duration::from_secs(step);
                    let belief = Belief {
                        state: None,
                        eyes,
                        since,
                        made: 0,
                    };
                    beliefs.insert(&name, &key, belief);
                    at.map(|at| plain.remove(at));
                    plain.push((name, key, step));
                }
            }
            beliefs.check();
            let whole: BTreeMap<_, _> = plain.iter().map(|(name, _, step)| (name, *step)).collect();
            assert_eq!(beliefs.len(), whole.len());
            for (name, step) in whole {
                assert_eq!(beliefs.get(name).expect("known").since.as_secs(), step);
            }
        }
    }
}
