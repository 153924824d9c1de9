//! Every bound and pause that the core obeys.

use std::time::Duration;

/// Limits of one channel. All have defaults that suit a site of some 10,000 users.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Lanes to the replica at once, all pools together.
    pub lanes: usize,
    /// Lanes beyond `lanes` for users on probation.
    pub probation_lanes: usize,
    /// Commands in flight on one lane.
    pub depth: usize,
    /// Bytes in flight on one lane beyond which nothing more is put behind them.
    pub lane_bytes: u64,
    /// Users with acknowledged and unconfirmed units; beyond it the client waits.
    pub unconfirmed_users: usize,
    /// Bytes of acknowledged and unconfirmed units; beyond it the client waits.
    pub queued_bytes: u64,
    /// Bytes of staged messages of all sessions, spilled ones included; beyond it a RESERVE is
    /// made real and a MESSAGE gets NO.
    pub staged_bytes: u64,
    /// Bytes of memory, over all sessions, for what is noted of them until RESTART beside the
    /// content of messages: names, GUIDs, an entry for each message. Beyond it they are forgotten
    /// as far as that can be, and a MESSAGE gets NO.
    pub noted_bytes: u64,
    /// Bytes of memory, over all sessions, for answers of which parts are still to come; beyond it
    /// the session whose next part comes is ended.
    pub partial_answers: u64,
    /// Lines owed to the sync log; beyond it nothing is acknowledged early, and a session whose
    /// refusal would owe another is ended instead: its client keeps its log.
    pub owed_lines: usize,
    /// A unit whose messages are larger than this asks the replica first (RESERVE).
    pub ask_bytes: u64,
    /// Bytes that may stand in a lane's staging on the replica before a RESTART.
    pub lane_staged_bytes: u64,
    /// Messages that may stand in a lane's staging on the replica before a RESTART.
    pub lane_staged_messages: usize,
    /// How long a session waits for a replica that is away, below the client's 30 minutes.
    pub absence: Duration,
    /// How long one answer of the replica may take before the lane counts as lost.
    pub answer_timeout: Duration,
    /// How long somebody waits for one commit (`sync_rightnow_channel`); `None` where the channel
    /// has no listener for that.
    pub rightnow: Option<Duration>,
    /// How long units may go on after a drain began.
    pub drain_grace: Duration,
    /// An idle lane is pinged after this time.
    pub ping: Duration,
    /// An idle lane that is not the only one of its pool is closed after this time.
    pub idle_lane: Duration,
    /// A lane's staging on the replica is emptied after this time of idleness.
    pub idle_restart: Duration,
    /// The first pause between two tries to reach the replica; it doubles.
    pub reconnect: Duration,
    /// The longest pause between two tries to reach the replica.
    pub reconnect_max: Duration,
    /// The pause before the second try to heal a user; it doubles.
    pub heal: Duration,
    /// The longest pause between two tries to heal a user.
    pub heal_max: Duration,
    /// The pause before a SEEN or SUB line in doubt is written again.
    pub in_doubt: Duration,
    /// Bytes of known state; what was least of use goes first. With 0 every question is real.
    pub known_bytes: u64,
    /// Known state is not believed after this time since the replica confirmed it.
    pub known_age: Duration,
    /// Questions asked ahead at once.
    pub ahead_requests: usize,
    /// Mailboxes in one of them.
    pub ahead_names: usize,
    /// How often what changed nothing on the replica is sent, where its lane was lost each time and it was
    /// what the replica was working on.
    pub read_tries: u32,
    /// How often what the replica answers with `IMAP_MAILBOX_LOCKED` is sent again.
    pub locked_retries: u32,
    /// The pause before the first of these; it doubles.
    pub locked: Duration,
    /// The longest of these pauses.
    pub locked_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lanes: 8,
            probation_lanes: 2,
            depth: 64,
            lane_bytes: 2 << 20,
            unconfirmed_users: 10_000,
            queued_bytes: 1 << 30,
            staged_bytes: 16 << 30,
            noted_bytes: 64 << 20,
            partial_answers: 128 << 20,
            owed_lines: 500_000,
            ask_bytes: 128 << 10,
            lane_staged_bytes: 16 << 20,
            lane_staged_messages: 1024,
            absence: Duration::from_secs(20 * 60),
            answer_timeout: Duration::from_secs(15 * 60),
            rightnow: None,
            drain_grace: Duration::from_secs(20),
            ping: Duration::from_secs(5 * 60),
            idle_lane: Duration::from_secs(10 * 60),
            idle_restart: Duration::from_secs(1),
            reconnect: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(15),
            heal: Duration::from_secs(2),
            heal_max: Duration::from_secs(10 * 60),
            in_doubt: Duration::from_secs(5),
            known_bytes: 24 << 20,
            known_age: Duration::from_secs(60 * 60),
            ahead_requests: 32,
            ahead_names: 32,
            read_tries: 3,
            locked_retries: 3,
            locked: Duration::from_millis(50),
            locked_max: Duration::from_secs(1),
        }
    }
}

/// The `nth` pause (from 0) of a series that doubles up to `max`, shortened by up to a quarter at
/// random so that many waiters do not come back at the same moment.
#[must_use]
pub(super) fn pause(
    first: Duration,
    max: Duration,
    nth: u32,
    random: &mut fastrand::Rng,
) -> Duration {
    let whole = first.saturating_mul(1 << nth.min(20)).min(max);
    whole.mul_f64(1.0 - 0.25 * random.f64())
}
