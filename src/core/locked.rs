//! What the replica has locked (`IMAP_MAILBOX_LOCKED`) is asked again a few times, after short
//! growing pauses, before the refusal counts.
//!
//! A lock is somebody else at work on the replica for a moment: a delivery, `cyr_expire`, a user's
//! own session. Without this it would put the user on probation, and some clients' answers to it
//! are dear (a whole USER sync, or a run done again). It holds for every session: a command that
//! was refused is repeated before anything else of its users, which is what the client itself would
//! do next, and the replica answers `LOCKED` only after having waited by itself.
//!
//! Meanwhile the job is on no lane, so that others are not held up, but stays the head of its
//! users' queues. What it staged may be gone when it goes out again, from the lane or because it is
//! another lane: [`super::burst::start`] looks at what the lane holds then and sends the rest once
//! more.

use super::Core;
use super::job::State;
use super::limits::pause;
use super::queue::JobId;
use crate::protocol::Status;

impl Core {
    /// Whether the answer to a job is not its last one: it goes out again after a pause.
    pub(super) fn try_again_if_locked(&mut self, id: JobId, status: &Status) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let waited_for = job.left.is_none() && self.sessions.contains_key(&job.session);
        let wanted = job.acked.is_some() || waited_for;
        // What is carried without being understood concerns nobody in particular: it is not known
        // that it may be repeated.
        let known = !job.subjects.is_empty();
        let left = job.locked < self.setup.limits.locked_retries;
        if status.token() != Some(b"IMAP_MAILBOX_LOCKED") || !wanted || !known || !left {
            return false;
        }
        let limits = &self.setup.limits;
        let wait = pause(
            limits.locked,
            limits.locked_max,
            job.locked,
            &mut self.random,
        );
        let until = self.now + wait;
        let running = std::mem::replace(&mut job.state, State::Locked(until));
        job.locked += 1;
        self.leave_lane(id, running);
        self.locked.insert((until, id));
        true
    }

    /// Lets those go out again whose pause is over.
    pub(super) fn locked_again(&mut self) {
        while let Some((until, id)) = self.locked.pop_first() {
            if until > self.now {
                self.locked.insert((until, id));
                return;
            }
            if let Some(job) = self.jobs.get_mut(&id) {
                job.state = State::Waiting;
                self.make_ready(id);
            }
        }
    }
}
