//! What the client is about to ask: what its run names, and what stands in `log` for the next one.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashSet;

use super::event::RunId;
use crate::protocol::synclog::Coverage;

/// So many mailboxes, and so many users, of `log` are kept; those behind them are asked about when
/// they are a run's.
const MAILBOXES: usize = 20_000;
const USERS: usize = 1_000;

/// The mailboxes, and the users of USER lines, whom the client asks about after them.
#[derive(Debug)]
pub(super) struct Upcoming {
    pub(super) mailboxes: List,
    pub(super) users: List,
}

/// Names in the order in which they are to be asked about: the run's come first.
#[derive(Debug)]
pub(super) struct List {
    /// The names of a run, by number.
    name: fn(&Coverage, usize) -> Option<&[u8]>,
    /// The run, and the number of its next name: there is one.
    run: Option<(RunId, Arc<Coverage>, usize)>,
    /// The names of `log`, each once.
    later: VecDeque<Bytes>,
    of_later: HashSet<Bytes>,
    /// So many of these are kept.
    most: usize,
}

impl Default for Upcoming {
    fn default() -> Self {
        Upcoming {
            mailboxes: List::new(Coverage::name, MAILBOXES),
            users: List::new(Coverage::user, USERS),
        }
    }
}

impl Upcoming {
    /// What a run names comes next, and nothing of an earlier one.
    pub(super) fn begin(&mut self, run: RunId, coverage: Option<&Arc<Coverage>>) {
        self.both(|list| list.begin(run, coverage));
    }

    /// The client is done with a run.
    pub(super) fn end(&mut self, run: RunId) {
        self.both(|list| drop(list.run.take_if(|(of, ..)| *of == run)));
    }

    /// What `log` names is no more of interest.
    pub(super) fn forget_later(&mut self) {
        self.both(List::forget_later);
    }

    /// Nothing is.
    pub(super) fn clear(&mut self) {
        self.both(|list| {
            list.run = None;
            list.forget_later();
        });
    }

    fn both(&mut self, act: impl Fn(&mut List)) {
        act(&mut self.mailboxes);
        act(&mut self.users);
    }
}

impl List {
    fn new(name: fn(&Coverage, usize) -> Option<&[u8]>, most: usize) -> Self {
        List {
            name,
            run: None,
            later: VecDeque::new(),
            of_later: HashSet::new(),
            most,
        }
    }

    fn begin(&mut self, run: RunId, coverage: Option<&Arc<Coverage>>) {
        let some = coverage.filter(|coverage| (self.name)(coverage, 0).is_some());
        self.run = some.map(|coverage| (run, coverage.clone(), 0));
    }

    fn forget_later(&mut self) {
        self.later.clear();
        self.of_later.clear();
    }

    /// `log` names this.
    pub(super) fn add(&mut self, name: Bytes) {
        if self.later.len() < self.most && self.of_later.insert(name.clone()) {
            self.later.push_back(name);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.run.is_none() && self.later.is_empty()
    }

    /// What comes first.
    pub(super) fn next(&self) -> Option<Bytes> {
        match &self.run {
            Some((_, coverage, next)) => (self.name)(coverage, *next).map(Bytes::copy_from_slice),
            None => self.later.front().cloned(),
        }
    }

    /// What comes first is done with.
    pub(super) fn pass(&mut self) {
        match &mut self.run {
            Some((_, coverage, next)) => {
                *next += 1;
                if (self.name)(coverage, *next).is_none() {
                    self.run = None;
                }
            }
            None => {
                if let Some(name) = self.later.pop_front() {
                    self.of_later.remove(&name);
                }
            }
        }
    }
}
