//! The order of work: one queue for each user key, and barriers across all of them.
//!
//! A job may run when it is at the head of the queue of each of its keys. A barrier waits for
//! everything that came before it and holds back everything that comes after it. A job stays at
//! the head while it runs, so within one key the next one leaves only when the last has ended.

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashMap;

use crate::protocol::UserKey;

/// A job, numbered in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct JobId(pub(super) u64);

/// What a job waits for.
#[derive(Clone, Debug)]
pub(super) enum Keys {
    /// These users, each at most once.
    Of(Vec<UserKey>),
    /// Everything before it; and everything after it waits.
    Barrier,
}

/// The queues. Memory is that of the jobs in it: a key without jobs is forgotten.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: HashMap<JobId, Keys>,
    keys: HashMap<UserKey, VecDeque<JobId>>,
    outstanding: BTreeSet<JobId>,
    barriers: BTreeSet<JobId>,
}

impl Queue {
    /// Appends a job. Ids must grow. Returns whether it may run at once.
    pub(super) fn push(&mut self, id: JobId, keys: Keys) -> bool {
        debug_assert!(self.outstanding.last().is_none_or(|last| *last < id));
        match &keys {
            Keys::Barrier => {
                self.barriers.insert(id);
            }
            Keys::Of(list) => {
                for key in list {
                    self.keys.entry(key.clone()).or_default().push_back(id);
                }
            }
        }
        self.jobs.insert(id, keys);
        self.outstanding.insert(id);
        self.may_run(id)
    }

    /// Takes a job out, run or not, and returns those that may run because of that.
    pub(super) fn remove(&mut self, id: JobId) -> Vec<JobId> {
        let Some(keys) = self.jobs.remove(&id) else {
            return Vec::new();
        };
        self.outstanding.remove(&id);
        let mut candidates = Vec::new();
        match keys {
            Keys::Barrier => {
                self.barriers.remove(&id);
                candidates.extend(
                    self.keys
                        .values()
                        .filter_map(|queue| queue.front().copied()),
                );
            }
            Keys::Of(list) => {
                for key in list {
                    let Some(queue) = self.keys.get_mut(&key) else {
                        continue;
                    };
                    let was_head = queue.front() == Some(&id);
                    if was_head {
                        queue.pop_front();
                    } else {
                        queue.retain(|other| *other != id);
                    }
                    match queue.front() {
                        None => drop(self.keys.remove(&key)),
                        Some(head) if was_head => candidates.push(*head),
                        Some(_) => {}
                    }
                }
            }
        }
        candidates.extend(self.barriers.first().copied());
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|candidate| self.may_run(*candidate));
        candidates
    }

    /// Whether a job stands at the head of all its queues and no barrier is in its way.
    pub(super) fn may_run(&self, id: JobId) -> bool {
        if self.barriers.first().is_some_and(|barrier| *barrier < id) {
            return false;
        }
        match self.jobs.get(&id) {
            None => false,
            Some(Keys::Barrier) => self.outstanding.first() == Some(&id),
            Some(Keys::Of(list)) => list
                .iter()
                .all(|key| self.keys.get(key).and_then(VecDeque::front) == Some(&id)),
        }
    }

    /// The jobs of a key in order.
    pub(super) fn of_key(&self, key: &UserKey) -> impl Iterator<Item = JobId> + '_ {
        self.keys.get(key).into_iter().flatten().copied()
    }

    /// The jobs before this one in the queues of its keys. Barriers are left out.
    pub(super) fn before(&self, id: JobId) -> impl Iterator<Item = JobId> + '_ {
        let keys = match self.jobs.get(&id) {
            Some(Keys::Of(list)) => &list[..],
            _ => &[],
        };
        let earlier = move |key| self.of_key(key).take_while(move |other| *other != id);
        keys.iter().flat_map(earlier)
    }

    /// How many jobs a key has.
    pub(super) fn count(&self, key: &UserKey) -> usize {
        self.keys.get(key).map_or(0, VecDeque::len)
    }

    /// All jobs in order of arrival.
    pub(super) fn in_order(&self) -> impl Iterator<Item = JobId> + '_ {
        self.outstanding.iter().copied()
    }

    /// Whom a job concerns.
    pub(super) fn keys_of(&self, id: JobId) -> Option<&Keys> {
        self.jobs.get(&id)
    }

    /// The barriers in order.
    pub(super) fn barriers(&self) -> impl Iterator<Item = JobId> + '_ {
        self.barriers.iter().copied()
    }

    /// The jobs that wait for this one.
    pub(super) fn behind(&self, id: JobId) -> impl Iterator<Item = JobId> + '_ {
        let keys = match self.jobs.get(&id) {
            Some(Keys::Of(keys)) => &keys[..],
            _ => &[],
        };
        let of_keys = keys.iter().flat_map(|key| self.of_key(key));
        of_keys
            .chain(self.barriers())
            .filter(move |other| *other > id)
    }

    /// How many jobs there are.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Site;

    fn keys(names: &[&str]) -> Keys {
        let site = Site::default();
        Keys::Of(
            names
                .iter()
                .map(|name| site.key_of_user(name.as_bytes()))
                .collect(),
        )
    }

    #[test]
    fn one_key_runs_one_at_a_time() {
        let mut queue = Queue::default();
        assert!(queue.push(JobId(1), keys(&["a"])));
        assert!(!queue.push(JobId(2), keys(&["a"])));
        assert!(queue.push(JobId(3), keys(&["b"])));
        assert_eq!(queue.remove(JobId(1)), [JobId(2)]);
        assert_eq!(queue.remove(JobId(2)), []);
        assert_eq!(queue.remove(JobId(3)), []);
        assert_eq!((queue.len(), queue.keys.len()), (0, 0));
    }

    #[test]
    fn two_keys_wait_for_both() {
        let mut queue = Queue::default();
        queue.push(JobId(1), keys(&["a"]));
        queue.push(JobId(2), keys(&["b"]));
        assert!(!queue.push(JobId(3), keys(&["a", "b"])));
        assert!(!queue.push(JobId(4), keys(&["b"])));
        assert_eq!(queue.remove(JobId(1)), []);
        assert_eq!(queue.remove(JobId(2)), [JobId(3)]);
        assert_eq!(queue.remove(JobId(3)), [JobId(4)]);
    }

    #[test]
    fn a_barrier_waits_for_all_and_holds_all() {
        let mut queue = Queue::default();
        queue.push(JobId(1), keys(&["a"]));
        assert!(!queue.push(JobId(2), Keys::Barrier));
        assert!(!queue.push(JobId(3), keys(&["b"])));
        assert_eq!(queue.remove(JobId(1)), [JobId(2)]);
        assert_eq!(queue.remove(JobId(2)), [JobId(3)]);
    }

    #[test]
    fn a_job_dropped_from_the_middle_frees_nobody_too_early() {
        let mut queue = Queue::default();
        queue.push(JobId(1), keys(&["a"]));
        queue.push(JobId(2), keys(&["a"]));
        queue.push(JobId(3), keys(&["a"]));
        assert_eq!(queue.remove(JobId(2)), []);
        assert_eq!(queue.remove(JobId(1)), [JobId(3)]);
    }
}
