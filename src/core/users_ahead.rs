//! GET USER before the client asks: a USER line, in a run or in `log`, says that it will.
//!
//! This is no belief about the replica, as [`super::known`] holds them: it is the replica's own
//! answer, given to the client once and unchanged, as if the replica had been slow. It counts only
//! where no write of this user was queued, running or begun since the question went out, and not
//! for long: a USER sync is the client's last means of repair.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use super::Core;
use super::burst;
use super::event::{Note, RunId, SessionId};
use super::known::{self, Eyes};
use super::lanes::What;
use super::outcome::body_of;
use super::plan::{Plan, Subject};
use crate::protocol::synclog::Coverage;
use crate::protocol::{Command, Get, Kind, Reply, StatusKind, UserKey, print};

/// An older answer is not given any more.
const FRESH: Duration = Duration::from_secs(5);

/// So many users of `log` are kept; those who come after them are asked about when they are a run's.
const LATER: usize = 1_000;

/// So many users are remembered whom it is better not to ask about ahead.
const UNSUITED: usize = 10_000;

/// What is asked, and what was answered and not asked for yet.
#[derive(Debug, Default)]
pub(super) struct UsersAhead {
    /// Whom the run names, in the client's order, and the number of the next one.
    wanted: Option<(RunId, Arc<Coverage>, usize)>,
    /// Whom `log` names, each once.
    later: VecDeque<Bytes>,
    of_later: HashSet<Bytes>,
    asked: BTreeMap<UserKey, Asked>,
    /// Better not asked about ahead: the replica's process ended at it, or the answer was too long.
    unsuited: BTreeSet<UserKey>,
    next: u64,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    user: Bytes,
    eyes: Eyes,
    /// When it was asked, or answered.
    since: Duration,
    /// At most as long as a belief may be.
    answer: Option<Bytes>,
}

impl UsersAhead {
    /// How many questions are under way.
    pub(super) fn questions(&self) -> usize {
        let under_way = |asked: &&Asked| asked.answer.is_none();
        self.asked.values().filter(under_way).count()
    }

    /// Nobody is to be asked about any more.
    pub(super) fn forget_all(&mut self) {
        self.wanted = None;
        self.want_no_more();
        self.asked.clear();
    }

    /// The users of a run are to be asked about, and none of an earlier one.
    pub(super) fn want(&mut self, run: RunId, coverage: Option<&Arc<Coverage>>) {
        let some = coverage.filter(|coverage| coverage.user(0).is_some());
        self.wanted = some.map(|coverage| (run, coverage.clone(), 0));
    }

    /// Whom `log` names is no more of interest.
    pub(super) fn want_no_more(&mut self) {
        self.later.clear();
        self.of_later.clear();
    }

    /// The users of a run need not be asked about any more.
    pub(super) fn want_no_more_of(&mut self, run: RunId) {
        self.wanted.take_if(|(of, ..)| *of == run);
    }

    fn next_wanted(&self) -> Option<Bytes> {
        match &self.wanted {
            Some((_, coverage, next)) => coverage.user(*next).map(Bytes::copy_from_slice),
            None => self.later.front().cloned(),
        }
    }

    /// The next one is done with.
    fn pass(&mut self) {
        match &mut self.wanted {
            Some((_, coverage, next)) => {
                *next += 1;
                if coverage.user(*next).is_none() {
                    self.wanted = None;
                }
            }
            None => {
                if let Some(user) = self.later.pop_front() {
                    self.of_later.remove(&user);
                }
            }
        }
    }

    fn is_unsuited(&mut self, key: UserKey) {
        if self.unsuited.len() >= UNSUITED {
            self.unsuited.clear();
        }
        self.unsuited.insert(key);
    }

    /// Whether this question still counts.
    fn of_ticket(&mut self, ticket: Ticket) -> Option<(&UserKey, &mut Asked)> {
        self.asked
            .iter_mut()
            .find(|(_, asked)| asked.ticket == ticket)
    }
}

impl Core {
    /// `log` names these users.
    pub(super) fn read_users_on(&mut self, users: Vec<Bytes>) {
        let ahead = &mut self.users_ahead;
        for user in users {
            if ahead.later.len() < LATER && ahead.of_later.insert(user.clone()) {
                ahead.later.push_back(user);
            }
        }
    }

    /// Asks about users, as far as there are lanes to spare and answers are not too many already.
    pub(super) fn ask_users_ahead(&mut self) {
        let now = self.now;
        let ahead = &mut self.users_ahead;
        if ahead.wanted.is_none() && ahead.later.is_empty() {
            return;
        }
        ahead
            .asked
            .retain(|_, asked| asked.answer.is_none() || is_fresh(asked, now));
        while self.draining.is_none() && self.users_ahead.asked.len() < self.most_users() {
            let Some(eyes) = self.rolling_eyes() else {
                return;
            };
            let Some(user) = self.users_ahead.next_wanted() else {
                return;
            };
            let key = self.setup.site.key_of_user(&user);
            if !self.is_user_to_be_asked(&key) {
                self.users_ahead.pass();
                continue;
            }
            let Some(lane) = self.lane_for_ahead(eyes) else {
                return;
            };
            self.users_ahead.pass();
            self.users_ahead.next += 1;
            let ticket = Ticket(self.users_ahead.next);
            let body = print::get_user(&user);
            let asked = Asked {
                ticket,
                user,
                eyes,
                since: now,
                answer: None,
            };
            self.users_ahead.asked.insert(key, asked);
            if let Some(state) = self.lanes.all.get_mut(&lane) {
                let output = burst::own(state, What::UserAhead(ticket), body, now);
                self.send(lane, output);
            }
        }
    }

    fn most_users(&self) -> usize {
        self.setup.limits.ahead_requests
    }

    fn is_user_to_be_asked(&self, key: &UserKey) -> bool {
        let subject = Subject::User(key.clone());
        !self.users_ahead.asked.contains_key(key)
            && !self.users_ahead.unsuited.contains(key)
            && !key.is_shared()
            && !self.ledger.on_probation(&subject)
            && self.queue.of_key(key).next().is_none()
            && self.queue.barriers().next().is_none()
    }

    /// A question has its answer.
    pub(super) fn user_answered(&mut self, ticket: Ticket, reply: Reply) {
        let now = self.now;
        let Some((key, asked)) = self.users_ahead.of_ticket(ticket) else {
            return;
        };
        self.known.news = true;
        let ok = reply.status.kind == StatusKind::Ok;
        asked.since = now;
        asked.answer = known::kept(&body_of(reply)).filter(|_| ok);
        // A refusal is the client's own to get, and what is too long to be kept, too.
        if asked.answer.is_none() {
            let key = key.clone();
            self.users_ahead.asked.remove(&key);
            if ok {
                self.users_ahead.is_unsuited(key);
            }
        }
    }

    /// A question's lane is gone; `first` tells that the replica was at this very question.
    pub(super) fn user_question_lost(&mut self, ticket: Ticket, first: bool) {
        if let Some((key, _)) = self.users_ahead.of_ticket(ticket) {
            let key = key.clone();
            if first {
                // The client's own question is not in the way of others' work.
                self.users_ahead.is_unsuited(key.clone());
            }
            self.forget_user_ahead(&key);
        }
    }

    /// What was asked, or answered, says nothing of this user any more.
    pub(super) fn forget_user_ahead(&mut self, key: &UserKey) {
        let forgotten = self.users_ahead.asked.remove(key);
        self.known.news |= forgotten.is_some_and(|asked| asked.answer.is_none());
    }

    /// Nor of anybody.
    pub(super) fn forget_users_ahead(&mut self) {
        self.known.news |= self.users_ahead.questions() > 0;
        self.users_ahead.forget_all();
    }

    /// Answers a GET USER that was asked ahead; gives back any other command.
    pub(super) fn recall_user(
        &mut self,
        id: SessionId,
        command: Command,
        plan: Plan,
        run: Option<RunId>,
    ) -> Option<(Command, Plan)> {
        let Kind::Get(Get::User(user)) = &command.kind else {
            return Some((command, plan));
        };
        if self.users_ahead.next_wanted().as_ref() == Some(user) {
            self.users_ahead.pass();
        }
        let key = self.setup.site.key_of_user(user);
        let eyes = match self.sessions.get(&id) {
            Some(session) if session.rolling && !session.has_cache => {
                self.known.eyes(&session.pool)
            }
            _ => None,
        };
        let Some(asked) = self.users_ahead.asked.get(&key) else {
            return Some((command, plan));
        };
        let careful = self.ledger.on_probation(&Subject::User(key.clone()));
        if careful || eyes != Some(asked.eyes) || asked.user != *user {
            return Some((command, plan));
        }
        if asked.answer.is_none() {
            self.wait_for_ahead(id, command, plan, run);
            return None;
        }
        let asked = self.users_ahead.asked.remove(&key);
        let fresh = asked.filter(|asked| is_fresh(asked, self.now));
        let Some(answer) = fresh.and_then(|asked| asked.answer) else {
            return Some((command, plan));
        };
        self.note(Note::Known {
            outcome: "ahead",
            names: 1,
        });
        self.answer(id, plan.verb, "ok", answer.into(), true);
        None
    }
}

fn is_fresh(asked: &Asked, now: Duration) -> bool {
    now.saturating_sub(asked.since) <= FRESH
}
