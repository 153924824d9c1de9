//! Work for the replica.

use std::time::Duration;

use bytes::Bytes;

use super::burst::Step;
use super::event::{LaneId, Pool, RunId, SessionId};
use super::plan::Subject;
use super::staging::Need;
use crate::protocol::synclog::Line;
use crate::protocol::{Body, UserKey};

/// One piece of work, done on one lane.
#[derive(Debug)]
pub(super) struct Job {
    /// Who sent it; the session may be gone.
    pub(super) session: SessionId,
    /// Which part of the session's command this is.
    pub(super) part: usize,
    pub(super) pool: Pool,
    pub(super) work: Work,
    pub(super) read: bool,
    /// Only on a lane with nothing in flight, and nothing behind it.
    pub(super) alone: bool,
    /// Its subject is on probation: messages are confirmed before the MAILBOX goes out, since
    /// a refused one would take the replica's process with it.
    pub(super) careful: bool,
    pub(super) subjects: Vec<Subject>,
    /// The names of a GET MAILBOXES, whose answer tells of them.
    pub(super) asks: Vec<Bytes>,
    pub(super) acked: Option<Acked>,
    /// Nobody waits for it any more: its answer is nobody's.
    pub(super) left: Option<Left>,
    pub(super) arrived: Duration,
    pub(super) state: State,
    /// How many lanes were lost under it.
    pub(super) tries: u32,
    /// How often it was sent again because the replica said `IMAP_MAILBOX_LOCKED`.
    pub(super) locked: u32,
    /// Bytes it holds.
    pub(super) bytes: u64,
}

/// A unit that was acknowledged before the replica's answer.
#[derive(Clone, Debug)]
pub(super) struct Acked {
    /// Under this run.
    pub(super) run: RunId,
    /// This line brings it back.
    pub(super) line: Line,
    pub(super) subject: Subject,
    pub(super) key: UserKey,
}

/// A command that was given up while it was on a lane.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// The line that brings it back.
    pub(super) line: Option<Line>,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Behind others of its keys.
    Waiting,
    /// Waits for a lane.
    Ready,
    /// On this lane.
    Running(LaneId),
    /// Refused with `IMAP_MAILBOX_LOCKED`: waits until then to be sent again.
    Locked(Duration),
}

/// What is sent.
#[derive(Debug)]
pub(super) enum Work {
    /// One command.
    Plain(Body),
    /// A mailbox update with its messages.
    Unit(Box<Unit>),
}

/// A mailbox update.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) mailbox: Bytes,
    pub(super) partition: Bytes,
    pub(super) needs: Vec<Need>,
    pub(super) command: Body,
    /// What the replica will say of the mailbox once it has said OK.
    pub(super) made: Option<Bytes>,
    pub(super) step: Step,
}
