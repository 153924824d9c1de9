//! What is known of the replica's mailboxes (design.md, "Why the stream need not wait for GET
//! either"): the line with which it would answer GET MAILBOXES, or that it has no such mailbox.
//!
//! A belief comes from a real answer or from an acknowledged APPLY MAILBOX, and goes with any
//! other write to its key, with a failure of its subject, with all lanes, with age, and where
//! memory is full. Who uses it: `recall`. What is asked outside of the users' queues: `ahead`.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};

use super::beliefs::{Belief, Beliefs};
use super::event::{Pool, RunId};
use crate::protocol::{Body, Piece, UserKey};

/// A longer line is not kept.
const MAX_LINE: u64 = 64 << 10;

/// So many mailboxes are remembered that had trouble.
const TROUBLE: usize = 10_000;

/// So many kinds of lanes are told apart; nothing is known by others.
const MAX_POOLS: usize = 64;

/// The pool in whose eyes something is known: what a session may see depends on who it is and on
/// the capabilities that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Eyes(usize);

/// What the replica would say of a mailbox: the whole line, or nothing.
pub(super) type State = Option<Bytes>;

/// Everything that is known, and the questions that are under way outside of the queues.
#[derive(Debug, Default)]
pub(super) struct Known {
    beliefs: Beliefs,
    /// One more for each update of which something was learned.
    clock: u64,
    pools: Vec<Pool>,
    /// The replica compares SINCE_MODSEQ, which catches a wrong belief that makes the client send
    /// something.
    pub(super) since: bool,
    /// The rolling client has shown in an earlier session that it says SINCE_MODSEQ. One of Cyrus 3.2 or
    /// 3.4 shows it with its first update only, which comes behind its first questions.
    pub(super) client_since: bool,
    /// `log` is being looked at.
    pub(super) watching: bool,
    doubts: HashMap<Bytes, Doubt>,
    /// Those that are not being asked about.
    pub(super) doubtful: VecDeque<Bytes>,
    /// Not before this time: one had trouble.
    pub(super) doubts_rest: Option<Duration>,
    /// Mailboxes the reading of which had no good end, and how often.
    trouble: HashMap<Bytes, u32>,
    questions: HashMap<QuestionId, Question>,
    next_question: u64,
    /// Names whose answer is under way, and in which question: any write to the key takes them
    /// out, and then that answer says nothing.
    asked: HashMap<Bytes, (QuestionId, UserKey)>,
    asked_keys: HashMap<UserKey, HashSet<Bytes>>,
    /// Such an answer came, or is of no use any more: who waits for it is to look again.
    pub(super) news: bool,
    hashes: std::hash::RandomState,
}

/// A client was told this: where it sends nothing it is to be read for real.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) eyes: Eyes,
    /// What it was told.
    pub(super) told: Told,
    /// When, by the clock of [`Known`], and since when it is not checked.
    pub(super) at: u64,
    pub(super) since: Duration,
    /// The run that made the client ask, which is pinned until the doubt ends: where the client was
    /// told wrongly its line is owed. `None` without a sync log.
    pub(super) run: Option<RunId>,
}

/// A hash of what a client was told; keyed at random, so that two different lines do not have the
/// same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told(u64);

/// A GET MAILBOXES outside of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct QuestionId(u64);

#[derive(Debug)]
struct Question {
    names: Vec<Bytes>,
    eyes: Eyes,
}

impl Known {
    /// The eyes of a pool; `None` where nothing is to be known by them: FORCE is one session's.
    pub(super) fn eyes(&mut self, pool: &Pool) -> Option<Eyes> {
        if pool.force.is_some() {
            return None;
        }
        let found = self.pools.iter().position(|known| known == pool);
        found.map(Eyes).or_else(|| {
            let room = self.pools.len() < MAX_POOLS;
            room.then(|| {
                self.pools.push(pool.clone());
                Eyes(self.pools.len() - 1)
            })
        })
    }

    /// The pool of these eyes.
    pub(super) fn pool(&self, eyes: Eyes) -> Option<&Pool> {
        self.pools.get(eyes.0)
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        self.beliefs.bytes()
    }

    /// How many mailboxes are known.
    pub(super) fn len(&self) -> usize {
        self.beliefs.len()
    }

    /// What is known of a mailbox, if it is not older than `oldest`.
    pub(super) fn recall(&mut self, name: &Bytes, eyes: Eyes, oldest: Duration) -> Option<State> {
        self.beliefs.recall(name, eyes, oldest)
    }

    /// Whether something is known of a mailbox.
    pub(super) fn knows(&self, name: &Bytes) -> bool {
        self.beliefs.get(name).is_some()
    }

    /// This is so now. What was least of use goes where there is more than `limit`.
    pub(super) fn learn(
        &mut self,
        name: &Bytes,
        key: &UserKey,
        state: State,
        eyes: Eyes,
        now: Duration,
        limit: u64,
    ) {
        self.trouble.remove(name);
        let belief = Belief {
            state,
            eyes,
            since: now,
            made: 0,
        };
        self.beliefs.insert(name, key, belief);
        self.beliefs.shrink(limit);
    }

    /// The time at which something is told.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// What was just learned of a mailbox came of an update.
    pub(super) fn mark_made(&mut self, name: &Bytes) {
        self.clock += 1;
        self.beliefs.mark_made(name, self.clock);
    }

    /// Whether a mailbox was updated after this time, as far as is known.
    pub(super) fn made_since(&self, name: &Bytes, at: u64) -> bool {
        let belief = self.beliefs.get(name);
        belief.is_some_and(|belief| belief.made > at)
    }

    /// How often reading a mailbox had no good end outside of the queues.
    pub(super) fn trouble(&self, name: &Bytes) -> u32 {
        self.trouble.get(name).copied().unwrap_or(0)
    }

    /// Once more. Returns how often that was.
    pub(super) fn had_trouble(&mut self, name: &Bytes) -> u32 {
        if self.trouble.len() >= TROUBLE && !self.trouble.contains_key(name) {
            self.trouble.clear();
        }
        let count = self.trouble.entry(name.clone()).or_default();
        *count += 1;
        *count
    }

    /// Nothing is known of this mailbox any more.
    pub(super) fn forget(&mut self, name: &Bytes) {
        self.beliefs.remove(name);
    }

    /// Nothing is known of this user any more, nor by answers under way.
    pub(super) fn forget_key(&mut self, key: &UserKey) {
        self.beliefs.remove_key(key);
        self.distrust(key);
    }

    /// Answers under way say nothing of this user.
    pub(super) fn distrust(&mut self, key: &UserKey) {
        for name in self.asked_keys.remove(key).into_iter().flatten() {
            self.asked.remove(&name);
            self.news = true;
        }
    }

    /// Nothing is known at all. Doubts stay: what a client was told is to be read for real.
    pub(super) fn forget_all(&mut self) {
        self.beliefs.clear();
        self.news |= !self.asked.is_empty();
        self.asked.clear();
        self.asked_keys.clear();
    }

    /// How to tell later what a client was told now.
    pub(super) fn told(&self, state: &State) -> Told {
        Told(self.hashes.hash_one(state))
    }

    /// A client was told this and sent nothing. What it was told before counts no more, and is
    /// given back.
    #[must_use]
    pub(super) fn doubt(&mut self, name: Bytes, doubt: Doubt) -> Option<Doubt> {
        // An answer that was asked for before the client was told says nothing.
        self.unask(&name);
        let before = self.doubts.insert(name.clone(), doubt);
        if before.is_none() {
            self.doubtful.push_back(name);
        }
        before
    }

    /// The doubt about a mailbox is over: it was read, or the client does send something, and the
    /// replica compares what it was told.
    #[must_use]
    pub(super) fn settle(&mut self, name: &Bytes) -> Option<Doubt> {
        self.doubts.remove(name)
    }

    /// The mailboxes that are to be read for real, or are being read.
    pub(super) fn all_doubts(&self) -> Vec<Bytes> {
        let mut names: Vec<Bytes> = self.doubts.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// The doubt about a mailbox.
    pub(super) fn doubt_of(&self, name: &Bytes) -> Option<Doubt> {
        self.doubts.get(name).copied()
    }

    /// How many mailboxes are to be read for real, or are being read.
    pub(super) fn doubts(&self) -> usize {
        self.doubts.len()
    }

    /// Whether a line is owed where one of them was told wrongly.
    pub(super) fn holds_runs(&self) -> bool {
        self.doubts.values().any(|doubt| doubt.run.is_some())
    }

    /// How many questions are under way.
    pub(super) fn questions(&self) -> usize {
        self.questions.len()
    }

    /// Whether the answer for a mailbox is under way, for these eyes.
    pub(super) fn is_asked(&self, name: &Bytes, eyes: Eyes) -> bool {
        let id = self.asked.get(name).map(|(id, _)| id);
        let question = id.and_then(|id| self.questions.get(id));
        question.is_some_and(|question| question.eyes == eyes)
    }

    /// Whether the answer for a mailbox is under way.
    pub(super) fn is_under_way(&self, name: &Bytes) -> bool {
        self.asked.contains_key(name)
    }

    /// A question goes out.
    pub(super) fn ask(&mut self, names: Vec<(Bytes, UserKey)>, eyes: Eyes) -> QuestionId {
        self.next_question += 1;
        let id = QuestionId(self.next_question);
        let mut list = Vec::with_capacity(names.len());
        for (name, key) in names {
            self.asked.insert(name.clone(), (id, key.clone()));
            self.asked_keys.entry(key).or_default().insert(name.clone());
            list.push(name);
        }
        self.questions.insert(id, Question { names: list, eyes });
        id
    }

    /// A question has its answer, or will have none: the names for which the answer counts, in
    /// whose eyes, and whether it was about one mailbox alone.
    pub(super) fn answered(&mut self, id: QuestionId) -> Option<(Vec<Bytes>, Eyes, bool)> {
        let question = self.questions.remove(&id)?;
        self.news = true;
        let alone = question.names.len() == 1;
        let mut counted = Vec::with_capacity(question.names.len());
        for name in question.names {
            if self.doubts.contains_key(&name) {
                self.doubtful.push_back(name.clone());
            }
            if self.asked.get(&name).is_some_and(|(of, _)| *of == id) {
                self.unask(&name);
                counted.push(name);
            }
        }
        Some((counted, question.eyes, alone))
    }

    /// The answer under way for a mailbox says nothing.
    pub(super) fn unask(&mut self, name: &Bytes) {
        let Some((_, key)) = self.asked.remove(name) else {
            return;
        };
        self.news = true;
        if let Some(asked) = self.asked_keys.get_mut(&key) {
            asked.remove(name);
            if asked.is_empty() {
                self.asked_keys.remove(&key);
            }
        }
    }

    /// What must hold after every event.
    pub(super) fn check(&self, limit: u64) {
        self.beliefs.check();
        debug_assert!(self.bytes() <= limit);
        let asked: usize = self.asked_keys.values().map(HashSet::len).sum();
        debug_assert_eq!(self.asked.len(), asked);
    }
}

/// A line in memory of its own; `None` where it is too long to be kept.
pub(super) fn kept(line: &Body) -> Option<Bytes> {
    if line.len() > MAX_LINE {
        return None;
    }
    let mut whole = Vec::with_capacity(line.len() as usize);
    for piece in line.pieces() {
        match piece {
            Piece::Memory(bytes) => whole.extend_from_slice(bytes),
            Piece::Spilled(_) => return None,
        }
    }
    Some(whole.into())
}
