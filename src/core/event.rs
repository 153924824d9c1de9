//! What the core is told and what it asks for: the whole contract between `core` and `io`.
//!
//! Time is a [`Duration`] since the program's start, given with every event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::protocol::synclog::{Coverage, Line, Named};
use crate::protocol::{Body, Command, Reply};

/// A connection from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A connection to the replica; chosen by the core, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u64);

/// A run: the inode of a `log-run`. Unique while syncmux holds a link of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// A batch of lines on its way to disk; chosen by the core, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// In whose name a lane is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// `username` of the configuration, or nobody (a UNIX socket, a client certificate).
    Configured,
    /// The TCP client's own user name; `io` keeps the password.
    Client(Bytes),
}

/// What a lane must be to serve a session. Lanes of equal pools are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pool {
    /// Who is logged in.
    pub identity: Identity,
    /// What `APPLY CAPABILITIES` asked for, sorted; empty where it was never sent.
    pub capabilities: Vec<Bytes>,
    /// `APPLY FORCE` was sent by this session: the flag lives in the replica's process, so the
    /// lane belongs to that session alone and is closed with it (protocol.md 20).
    pub force: Option<SessionId>,
}

/// How a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An answer means that the replica has answered.
    Strict,
    /// Covered writes are acknowledged at once.
    FanOut,
    /// As strict, but somebody waits: no longer than a limit (`sync_rightnow_channel`).
    RightNow,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A client has logged in.
    SessionOpened {
        /// Its id, never used twice.
        session: SessionId,
        /// The listener's mode.
        mode: Mode,
        /// It came by the rolling client's listener, whose questions may be answered from known
        /// state.
        rolling: bool,
        /// In whose name its lanes log in.
        identity: Identity,
    },
    /// A client sent a command. The next one of this session comes only after its answer.
    /// Commands that belong to the connection (AUTHENTICATE, STARTTLS, COMPRESS, NOOP, probes and
    /// malformed ones) are answered by `io` and do not come here.
    Command {
        /// Who.
        session: SessionId,
        /// What.
        command: Command,
        /// The inode of `log-run` just now, looked up after the command arrived.
        run: Option<RunId>,
    },
    /// The client is gone. Nothing more is sent to it.
    SessionClosed {
        /// Who.
        session: SessionId,
    },
    /// A lane is open, logged in, and its pool's set-up commands were answered.
    LaneOpened {
        /// Which.
        lane: LaneId,
        /// What the replica's `* ENABLED (...)` named; empty where nothing was asked for, `None`
        /// where it said NO.
        enabled: Option<Vec<Bytes>>,
    },
    /// A lane could not be opened.
    LaneRefused {
        /// Which.
        lane: LaneId,
        /// In words.
        why: String,
    },
    /// The answer to the oldest unanswered request of a lane.
    LaneReply {
        /// Which.
        lane: LaneId,
        /// The answer; never one with [`crate::protocol::StatusKind::Bye`].
        reply: Reply,
    },
    /// A lane can't be used any further: nothing that is sent on it from now on goes out. Answers
    /// may still come, and `LaneLost` comes in the end.
    LaneFailing {
        /// Which.
        lane: LaneId,
    },
    /// A lane is gone: end of file, an error, BYE, or closed on request. Sent once, after the
    /// replica's end of file was seen or waited for for the set time.
    LaneLost {
        /// Which.
        lane: LaneId,
        /// In words.
        why: String,
        /// The replica said BYE or closed an idle connection: not an error.
        orderly: bool,
    },
    /// A run is linked and the directory fsynced; `coverage` is what its lines name.
    RunLinked {
        /// Which.
        run: RunId,
        /// What it names.
        coverage: Arc<Coverage>,
    },
    /// A run could not be linked: nothing may be acknowledged under it.
    RunLinkFailed {
        /// Which.
        run: RunId,
        /// In words.
        why: String,
    },
    /// `log-run` is not this run any more: the client has unlinked it.
    RunGone {
        /// Which.
        run: RunId,
    },
    /// Lines came into `log` that name these: the client has not taken them yet.
    LogNames {
        /// Which, in order of appearance.
        named: Named,
    },
    /// The lines stand, fsynced, in `log`.
    LinesWritten {
        /// Which.
        batch: BatchId,
    },
    /// The owed file holds exactly these lines, fsynced.
    OwedStored {
        /// Which.
        batch: BatchId,
    },
    /// Lines could not be written to `log`, or the owed file not be replaced. Nothing changed.
    DiskFailed {
        /// Which.
        batch: BatchId,
        /// In words.
        why: String,
    },
    /// Time has passed: sent when [`crate::core::Core::deadline`] is reached.
    Tick,
    /// SIGTERM: sessions get BYE at their next command boundary, units finish within the grace
    /// period, the rest is healed.
    Drain,
}

/// Something to be done, in the order given.
#[derive(Debug)]
pub enum Action {
    /// Write these bytes to the client.
    Answer {
        /// To whom.
        session: SessionId,
        /// Complete lines.
        body: Body,
    },
    /// Write these bytes (may be empty) and close the connection. `SessionClosed` is not expected
    /// back.
    EndSession {
        /// Whose.
        session: SessionId,
        /// Complete lines, such as `BYE ...`.
        body: Body,
    },
    /// Connect, log in, send the pool's set-up commands.
    OpenLane {
        /// The new lane's id.
        lane: LaneId,
        /// What it must be.
        pool: Pool,
    },
    /// Send one command. Its answer comes back as one `LaneReply`, in order.
    Send {
        /// On which lane.
        lane: LaneId,
        /// The command, line end included.
        body: Body,
    },
    /// End the lane: EXIT if `polite`, else shut down the sending side. Ends in `LaneLost`.
    CloseLane {
        /// Which.
        lane: LaneId,
        /// Nothing is in flight.
        polite: bool,
    },
    /// Link `log-run` beside itself and read it. Ends in `RunLinked` or `RunLinkFailed`.
    LinkRun {
        /// Which; if `log-run` has another inode by now this fails.
        run: RunId,
    },
    /// Remove the link: everything acknowledged under it is confirmed or owed.
    DropLink {
        /// Which.
        run: RunId,
    },
    /// Look into `log` now and then, and into a `log-run` that is not linked, and tell what their
    /// lines name (`LogNames`), or stop that.
    WatchLog {
        /// Begin from its beginning, or stop.
        on: bool,
    },
    /// Append to `log` by Cyrus's own lock dance, fsync.
    WriteLines {
        /// To tell them apart.
        batch: BatchId,
        /// In order.
        lines: Vec<Line>,
    },
    /// Replace the owed file by these lines, fsync. An empty list removes it.
    StoreOwed {
        /// To tell them apart.
        batch: BatchId,
        /// All owed lines that wait.
        lines: Vec<Line>,
    },
    /// Tell the log and the metrics.
    Note(Note),
    /// The drain is over: nothing is unconfirmed.
    Drained,
}

/// What an administrator should hear of. One log line and one metric each; `io` limits the rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A client answers from a cache of its own (`sync_cache_db_path`): served strictly.
    ClientCache {
        /// Which.
        session: SessionId,
    },
    /// A verb that is not known here was carried as a barrier on everything.
    UnknownVerb {
        /// GET or APPLY and the verb.
        verb: String,
    },
    /// A unit was refused or is in doubt; its user is on probation.
    Probation {
        /// The user, or the shared mailbox.
        subject: String,
        /// The replica's own words, or how the lane was lost.
        why: String,
        /// Refused by the replica (true) or in doubt (false).
        refused: bool,
        /// When its lines go back into the sync log.
        pause: Duration,
    },
    /// A user's probation is over.
    Healed {
        /// The user, or the shared mailbox.
        subject: String,
    },
    /// Lines were written into the sync log.
    LinesWritten {
        /// How many.
        lines: usize,
    },
    /// Early acknowledgement is suspended: the sync directory does not take it.
    NotCovered {
        /// In words.
        why: String,
    },
    /// Owed lines can't be written. Until they can, the links of their runs stay.
    NotWritten {
        /// In words.
        why: String,
    },
    /// The replica is away; lanes are tried again after `pause`.
    ReplicaAway {
        /// In words.
        why: String,
        /// How long until the next try.
        pause: Duration,
    },
    /// The replica refuses another connection beside those that it has: it goes on with them.
    NoMoreLanes {
        /// In words.
        why: String,
    },
    /// The replica is back.
    ReplicaBack,
    /// Something in a commit was not waited for to the end (`sync_rightnow_channel`): its lines go
    /// into the sync log.
    PutOff {
        /// `GET MAILBOXES`, `APPLY MAILBOX` ...
        verb: &'static str,
        /// "limit": the wait was over; "away": the replica is known to be; "lost": the connection
        /// was; "refused" by the replica; "no room" here; "ended": the session did; "stopping":
        /// syncmux is.
        why: &'static str,
        /// How many.
        lines: usize,
    },
    /// A command of a commit was answered by the replica, or given up, after this time.
    Waited {
        /// From its arrival.
        took: Duration,
    },
    /// A unit was confirmed or refused after this time.
    UnitDone {
        /// From its arrival to the replica's answer.
        took: Duration,
        /// How it ended: "ok", "refused", "in doubt".
        outcome: &'static str,
    },
    /// Mailboxes of GET MAILBOXES were answered from known state, or were not.
    Known {
        /// "hit"; "miss": asked for real; "ahead": a GET USER was answered by what had been asked
        /// before the client did; "checked": a client was told something and sent nothing,
        /// and the replica was asked whether it is so; "wrong": it was not.
        outcome: &'static str,
        /// How many.
        names: usize,
    },
    /// A command was answered after this time.
    Answered {
        /// `GET MAILBOXES`, `APPLY MAILBOX` ...
        verb: &'static str,
        /// "ok", "no", "bad", "bye".
        answer: &'static str,
        /// From its arrival to the answer.
        took: Duration,
        /// Before the replica answered.
        early: bool,
    },
}
