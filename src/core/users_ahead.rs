//! GET USER before the client asks: a USER line, in a run or in `log`, says that it will.
//!
//! This is no belief about the replica, as [`super::known`] holds them: it is the replica's own
//! answer, given to the client once and unchanged, as if the replica had been slow. It counts only
//! where no write of this user was queued, running or begun since the question went out, and not
//! for long: a USER sync is the client's last means of repair.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::Core;
use super::burst;
use super::event::{Note, RunId, SessionId};
use super::known::{self, Eyes};
use super::lanes::What;
use super::outcome::body_of;
use super::plan::{Plan, Subject};
use crate::protocol::{Command, Get, Kind, Reply, StatusKind, UserKey, print};

/// An older answer is not given any more.
const FRESH: Duration = Duration::from_secs(5);

/// So many users are remembered whom it is better not to ask about ahead.
const UNSUITED: usize = 10_000;

/// What is asked, and what was answered and not asked for yet.
#[derive(Debug, Default)]
pub(super) struct UsersAhead {
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

    fn mark_unsuited(&mut self, key: UserKey) {
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
    /// Asks about users, as far as there are lanes to spare and answers are not too many already.
    pub(super) fn ask_users_ahead(&mut self) {
        let now = self.now;
        if self.upcoming.users.is_empty() {
            return;
        }
        self.users_ahead
            .asked
            .retain(|_, asked| asked.answer.is_none() || is_fresh(asked, now));
        while self.draining.is_none()
            && self.users_ahead.asked.len() < self.setup.limits.ahead_requests
        {
            let Some(eyes) = self.rolling_eyes() else {
                return;
            };
            let Some(user) = self.upcoming.users.next() else {
                return;
            };
            let key = self.setup.site.key_of_user(&user);
            if !self.is_user_to_be_asked(&key) {
                self.upcoming.users.pass();
                continue;
            }
            let Some(lane) = self.lane_for_ahead(eyes) else {
                return;
            };
            self.upcoming.users.pass();
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

    fn is_user_to_be_asked(&self, key: &UserKey) -> bool {
        !self.users_ahead.asked.contains_key(key)
            && !self.users_ahead.unsuited.contains(key)
            && !key.is_shared()
            && self.is_at_rest(&Subject::User(key.clone()), key)
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
                self.users_ahead.mark_unsuited(key);
            }
        }
    }

    /// A question's lane is gone; `first` tells that the replica was at this very question.
    pub(super) fn user_question_lost(&mut self, ticket: Ticket, first: bool) {
        if let Some((key, _)) = self.users_ahead.of_ticket(ticket) {
            let key = key.clone();
            if first {
                // The client's own question is not in the way of others' work.
                self.users_ahead.mark_unsuited(key.clone());
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
        self.users_ahead.asked.clear();
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
        if self.upcoming.users.next().as_ref() == Some(user) {
            self.upcoming.users.pass();
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
