//! Sessions in which somebody waits: each imapd (lmtpd, httpd ...) sends its own commit to the
//! replica before it answers its user (`sync_rightnow_channel`; `sync_checkpoint` in Cyrus's
//! `sync_support.c`).
//!
//! It ignores how that ended and forgets what was not sent. So what the replica has not got by the
//! time somebody has waited long enough (or at once, where the replica is known to be away) is
//! written into the channel's sync log, and only then comes the answer. That answer is
//! `IMAP_MAILBOX_LOCKED`: the client of a named channel takes it for one thing to be put off, and
//! goes on with the rest of its commit, each piece of which then gets its line and its answer at
//! once. After any other refusal it would forget the rest, and after a lost connection, which it
//! keeps for 30 seconds, all the commits to come as well. That is why the channel must have a name.
//!
//! The lines are plain ones, as Cyrus itself writes them: nobody is on probation for a replica that
//! is away. What is on a lane already stays at the head of its users' queues until it is answered or
//! its lane is lost, so that their order is kept; its late answer is nobody's.
//!
//! A rolling client of the same channel holds a lock of the user that it is at, for which imapd
//! waits (`sync_lock` in `sync_support.c`). So it does not wait for ever for a replica that is
//! silent either, but only for one that is: its questions may take minutes.

use std::time::Duration;

use bytes::Bytes;

use super::Core;
use super::burst;
use super::commit::{QUIET, line_of};
use super::event::{Mode, Note, Pool, SessionId};
use super::job::Left;
use super::lanes::{Lane, State as LaneState, What};
use super::outcome::{body_of, outcome};
use super::plan::{Class, Plan, Subject};
use super::queue::{JobId, Keys};
use super::session::{Asked, Pending, Waiting};
use crate::protocol::synclog::Line;
use crate::protocol::{Body, Kind, Reply, print};

/// The client puts this off and goes on with the rest of its commit. Its line stands in the sync log by
/// then, unless the disk takes nothing: the words are true of both.
const LOCKED: &str = "NO IMAP_MAILBOX_LOCKED Put off: the replica has not got it\r\n";

/// What is known of a replica that does not answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// When a lane last had an answer, or was opened.
    heard: Duration,
    /// Somebody waited for as long as the limit, and nothing was heard in half of that time though
    /// something was asked.
    silent: bool,
    /// Since when a lane is being opened to see whether the replica is there.
    probing: Option<Duration>,
}

impl Silence {
    /// The replica has said something.
    pub(super) fn heard(now: Duration) -> Self {
        Silence {
            heard: now,
            ..Silence::default()
        }
    }

    /// Whether another lane is wanted though there are some.
    pub(super) fn wants_a_lane(&self) -> bool {
        self.silent || self.probing.is_some()
    }
}

impl Core {
    /// Whether it is known already that waiting is of no use.
    fn is_gone(&self, pool: &Pool) -> bool {
        let Some(limit) = self.setup.limits.rightnow else {
            return false;
        };
        let state = self.lanes.pools.get(pool);
        let away = [self.lanes.away, state.and_then(|state| state.away)];
        let long_away = |since: Duration| since + limit <= self.now;
        self.silence.silent || away.into_iter().flatten().any(long_away)
    }

    /// Whether nothing was heard for so long of a replica that was asked something all the time.
    fn is_silent_for(&self, time: Duration) -> bool {
        let since = self.now.saturating_sub(time);
        let asked = |lane: &Lane| match lane.state {
            LaneState::Opening => lane.active <= since,
            _ => lane.in_flight.front().is_some_and(|sent| sent.at <= since),
        };
        self.silence.heard <= since && self.lanes.all.values().any(asked)
    }

    /// Somebody wants to know when the replica is back.
    fn ring(&mut self, pool: &Pool) {
        self.lanes.pools.entry(pool.clone()).or_default().wanted = true;
    }

    /// Asks whether the replica is there: on a lane with nothing to do, else on a new one.
    fn ask_whether_it_is_there(&mut self, pool: &Pool) {
        let Some(id) = self.lanes.idle(pool) else {
            return self.ring(pool);
        };
        if let Some(lane) = self.lanes.all.get_mut(&id) {
            let output = burst::own(lane, What::Noop, print::NOOP.into(), self.now);
            self.send(id, output);
        }
    }

    /// Opens one lane more to a replica that is silent on those that there are.
    pub(super) fn probe(&mut self, pool: &Pool) {
        if self.silence.wants_a_lane() && self.lanes.count(pool, LaneState::Opening) == 0 {
            self.open_lane(pool, self.setup.limits.probation_lanes);
        }
    }

    /// A command of a session in which somebody waits. The plan is given back where it goes to the
    /// replica.
    pub(super) fn in_commit(&mut self, id: SessionId, kind: &Kind, mut plan: Plan) -> Option<Plan> {
        let (now, limit) = (self.now, self.setup.limits.rightnow);
        plan.line = plan.line.take().or_else(|| line_of(kind));
        let session = self.sessions.get_mut(&id)?;
        session.commit_goes_on(kind, plan.line.as_ref(), now, &self.setup.site);
        let waited_enough = limit.is_some_and(|limit| session.commit.waited >= limit);
        let pool = session.pool.clone();
        let gone = self.is_gone(&pool);
        if !waited_enough && !gone && self.draining.is_none() {
            return Some(plan);
        }
        if gone && self.draining.is_none() {
            self.ring(&pool);
        }
        let why = match (self.draining, gone) {
            (Some(_), _) => "stopping",
            (None, true) => "away",
            (None, false) => "limit",
        };
        self.put_off(id, &plan, &Asked::of(kind), why);
        None
    }

    /// Whether a session that asks for capabilities is to go without: nobody can be asked for them.
    pub(super) fn goes_without(&mut self, id: SessionId, capabilities: &[Bytes]) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        let pool = Pool {
            capabilities: capabilities.to_vec(),
            ..session.pool.clone()
        };
        let state = self.lanes.pools.get(&pool);
        let known = state.is_some_and(|state| state.enabled.is_some());
        if session.mode != Mode::RightNow || known || !self.is_gone(&pool) {
            return false;
        }
        let own = session.pool.clone();
        self.ring(&own);
        true
    }

    /// A command came: it is not waited for longer than the limit.
    pub(super) fn be_patient(&mut self, id: SessionId) {
        let Some(limit) = self.setup.limits.rightnow else {
            return;
        };
        let named = self.setup.named;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let waits = match session.pending {
            None | Some(Pending::Durable { .. } | Pending::Exit) => false,
            Some(_) => session.mode == Mode::RightNow || (session.rolling && named),
        };
        if !waits {
            return;
        }
        let left = match session.mode {
            Mode::RightNow => limit.saturating_sub(session.commit.waited),
            Mode::Strict | Mode::FanOut => limit,
        };
        self.wait_until(id, self.now + left.max(Duration::from_millis(1)));
    }

    fn wait_until(&mut self, id: SessionId, until: Duration) {
        self.wait_no_more(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.commit.until = Some(until);
            self.patient.insert((until, id));
        }
    }

    /// The command that was waited for is answered. Tells whether there was one.
    pub(super) fn wait_no_more(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        session.commit.answered = self.now;
        let Some(until) = session.commit.until.take() else {
            return false;
        };
        if std::mem::take(&mut session.commit.on_disk) {
            self.patient.remove(&(until, id));
            return false;
        }
        session.commit.waited += self.now.saturating_sub(session.arrived);
        self.patient.remove(&(until, id));
        true
    }

    /// Nobody waits longer than he has to.
    pub(super) fn lose_patience(&mut self) {
        while let Some((until, id)) = self.patient.first().copied()
            && until <= self.now
        {
            self.patient.pop_first();
            if let Some(session) = self.sessions.get_mut(&id) {
                session.commit.until = None;
                self.waited_enough(id);
            }
        }
    }

    fn waited_enough(&mut self, id: SessionId) {
        let (now, limit) = (self.now, self.setup.limits.rightnow.unwrap_or_default());
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut session.commit.on_disk) {
            return self.disk_hangs(id, limit);
        }
        let pool = session.pool.clone();
        let on_replica = matches!(
            session.pending,
            Some(Pending::Jobs(_) | Pending::Room { .. } | Pending::Enabled)
        );
        let right_now = session.mode == Mode::RightNow;
        if right_now {
            session.commit.waited += now.saturating_sub(session.arrived);
        }
        let nothing_heard = self.silence.heard + limit <= now;
        if right_now && on_replica {
            // A part of the limit may have gone by before the replica fell silent, or nothing was
            // asked meanwhile.
            if self.is_silent_for(limit / 2) && !self.silence.silent {
                self.silence.silent = true;
                self.ask_whether_it_is_there(&pool);
            }
            return self.give_up_waiting_for(id, "limit");
        }
        let asked = matches!(
            self.sessions.get(&id).and_then(|one| one.pending.as_ref()),
            Some(Pending::Jobs(_) | Pending::Room { .. })
        );
        if asked && nothing_heard {
            // It may be at a question that takes minutes: does it answer on another lane?
            let since = *self.silence.probing.get_or_insert(now);
            self.silence.silent |= since + limit <= now;
            self.ask_whether_it_is_there(&pool);
        }
        if asked && self.is_gone(&pool) {
            return self.give_up_waiting_for(id, "away");
        }
        if asked && self.is_behind_left(id) {
            return self.give_up_waiting_for(id, "limit");
        }
        self.wait_until(id, now + limit);
    }

    /// Whether nothing of what a session waits for is under way, because something that an imapd has
    /// given up still is, of the same user. The client holds the user's lock meanwhile, which stands
    /// before the limit of the next imapd.
    fn is_behind_left(&self, id: SessionId) -> bool {
        let own = |job: &super::Job| job.session == id && job.acked.is_none() && job.left.is_none();
        let mut own = self.jobs.iter().filter(|(_, job)| own(job)).peekable();
        let is_left = |job: JobId| self.jobs.get(&job).is_some_and(|job| job.left.is_some());
        own.peek().is_some()
            && own.all(|(id, job)| {
                matches!(job.state, super::job::State::Waiting)
                    && self.queue.before(*id).any(is_left)
            })
    }

    /// What a session waits for is not waited for any longer.
    pub(super) fn give_up_waiting_for(&mut self, id: SessionId, why: &'static str) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match session.pending.take() {
            Some(Pending::Jobs(waiting)) => {
                self.partial_bytes -= waiting.held;
                self.leave_jobs(id, &waiting);
                // What it wrote by what it was told has its line now; the answer is nobody's.
                self.acted(id, false);
                self.put_off(id, &waiting.plan, &waiting.command, why);
            }
            Some(Pending::Room { command, plan, .. }) => {
                self.room.retain(|waiting| *waiting != id);
                self.put_off(id, &plan, &Asked::of(&command.kind), why);
            }
            Some(Pending::Enabled) => {
                let pool = session.pool.clone();
                session.pool.capabilities.clear();
                self.forget_pool(&pool);
                let no = "NO The replica is away\r\n";
                self.answer(id, "APPLY CAPABILITIES", "no", no.into(), false);
            }
            other => session.pending = other,
        }
    }

    /// The jobs of a command are nobody's from now on: those on lanes run to their end, the others
    /// are not sent.
    fn leave_jobs(&mut self, id: SessionId, waiting: &Waiting) {
        let own = |job: &super::Job| job.session == id && job.acked.is_none() && job.left.is_none();
        let jobs = self.jobs.iter().filter(|(_, job)| own(job));
        let mut jobs: Vec<JobId> = jobs.map(|(id, _)| *id).collect();
        jobs.sort_unstable();
        for job_id in jobs {
            let Some(job) = self.jobs.get_mut(&job_id) else {
                continue;
            };
            if matches!(job.state, super::job::State::Running(_)) {
                job.left = Some(Left {
                    line: waiting.plan.line.clone(),
                });
            } else {
                self.drop_job(job_id);
            }
        }
    }

    /// Its lines go into the sync log, and then the client is told to put this off.
    fn put_off(&mut self, id: SessionId, plan: &Plan, asked: &Asked, why: &'static str) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let lines = session.lines(Some((plan, asked)), &self.setup.site);
        self.owe_plainly(id, lines, plan.verb, "no", LOCKED.into(), why);
    }

    /// The answer goes out when these lines stand in the sync log.
    fn owe_plainly(
        &mut self,
        id: SessionId,
        lines: Vec<Line>,
        verb: &'static str,
        outcome: &'static str,
        body: Body,
        why: &'static str,
    ) {
        self.wait_no_more(id);
        self.note(Note::PutOff {
            verb,
            why,
            lines: lines.len(),
        });
        let session = self.sessions.get(&id);
        let right_now = session.is_some_and(|session| session.mode == Mode::RightNow);
        let nobody_waits = right_now && self.not_written;
        if lines.is_empty() || nobody_waits || !self.has_room_for_plain() {
            self.append_plainly(lines);
            return self.answer(id, verb, outcome, body, false);
        }
        self.wait_for_lines(id, lines.len(), verb, outcome, body);
        for line in lines {
            self.ledger.append(line, Some(id));
        }
        if let (true, Some(limit)) = (right_now, self.setup.limits.rightnow) {
            self.wait_until(id, self.now + limit);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.commit.on_disk = true;
            }
        }
    }

    /// Only a disk that has taken nothing for a very long time makes so many of them: the client
    /// writes what it puts off itself.
    fn has_room_for_plain(&self) -> bool {
        self.ledger.plain() < self.setup.limits.owed_lines
    }

    /// These go into the sync log, and nobody waits for that.
    fn append_plainly(&mut self, lines: Vec<Line>) {
        for line in lines {
            if self.has_room_for_plain() {
                self.ledger.append(line, None);
            }
        }
    }

    /// A line has not reached the disk in as much time as somebody waits for the replica: that is
    /// as if it could not be written.
    fn disk_hangs(&mut self, id: SessionId, limit: Duration) {
        if !std::mem::replace(&mut self.not_written, true) {
            let why = format!("nothing was written within {} s", limit.as_secs_f64());
            self.note(Note::NotWritten { why });
        }
        self.ledger.waits_no_more(id);
        self.not_written_right_now(id);
    }

    /// What the client sent found no room here, so it is not on its way to the replica. After a plain
    /// NO the client would try it once more and then forget the rest.
    pub(super) fn no_room_right_now(&mut self, id: SessionId) {
        let plan = Plan::new(
            "APPLY MESSAGE",
            Class::Write,
            Keys::Of(Vec::new()),
            Vec::new(),
        );
        self.put_off(id, &plan, &Asked::Other, "no room");
    }

    /// A line that a session waits for can't be written. Whether it is one in which somebody waits: it
    /// keeps no log-run, and writes into `log` by itself what it puts off. The line is tried again here
    /// as well.
    pub(super) fn not_written_right_now(&mut self, id: SessionId) -> bool {
        let session = self.sessions.get_mut(&id);
        let Some(session) = session.filter(|one| one.mode == Mode::RightNow) else {
            return false;
        };
        match session.pending.take() {
            Some(Pending::Durable {
                body,
                outcome,
                verb,
                ..
            }) => self.answer(id, verb, outcome, body, false),
            other => session.pending = other,
        }
        true
    }

    /// The replica refuses something in a commit. Where all of it is one user's mailboxes the
    /// client repairs that by itself at once (`do_mailboxes` in `sync_support.c` goes on to GET
    /// USER); everything else would make it forget the rest.
    pub(super) fn refused_right_now(
        &mut self,
        id: SessionId,
        plan: &Plan,
        asked: &Asked,
        reply: Reply,
    ) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let group = &session.group;
        let (verb, outcome) = (plan.verb, outcome(&reply.status));
        if let (Asked::Mailbox(name), Some(b"IMAP_SYNC_CHECKSUM")) = (asked, reply.status.token())
            && !group.full.contains(name)
        {
            // Two of these in a row make the client fetch FULLMAILBOX and copy back.
            return self.answer(id, verb, outcome, body_of(reply), false);
        }
        let repairs = group.user.is_none()
            && matches!(
                asked,
                Asked::Mailboxes(_) | Asked::FullMailbox(_) | Asked::Mailbox(_) | Asked::Rename(_)
            )
            && !group.concerns_others(&plan.subjects);
        let lines = session.lines(Some((plan, asked)), &self.setup.site);
        let body = if repairs {
            body_of(reply)
        } else {
            LOCKED.into()
        };
        self.owe_plainly(id, lines, verb, outcome, body, "refused");
    }

    /// The lane under a command of a commit was lost, and it can't be tried on another one.
    pub(super) fn lost_right_now(&mut self, id: SessionId, words: &str) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(Pending::Jobs(waiting)) = &session.pending else {
            return;
        };
        let unversioned = waiting.plan.line.clone().filter(is_unversioned);
        let subject = waiting.plan.subjects.first().cloned();
        if let (Some(line), Some(subject)) = (unversioned, subject) {
            self.owe_later(&subject, &line, words);
        }
        self.give_up_waiting_for(id, "lost");
    }

    /// The lane under a command that nobody waited for any more was lost.
    pub(super) fn left_and_lost(&mut self, left: &Left, subjects: &[Subject], words: &str) {
        if let (Some(line), Some(subject)) = (&left.line, subjects.first())
            && is_unversioned(line)
        {
            self.owe_later(subject, line, words);
        }
    }

    /// What carries no version may still be running on the replica: its line is written once more
    /// when it can't be any longer, beside the one that is written at once.
    fn owe_later(&mut self, subject: &Subject, line: &Line, words: &str) {
        if line.check().is_err() || !self.may_owe(subject, line) {
            return;
        }
        let due = self.fail(subject, words, false);
        let due = due.max(self.now + self.setup.limits.in_doubt);
        self.ledger.owe(subject, line, due, Vec::new(), None);
        self.drop_behind(subject, due);
    }

    /// A session ends. In the middle of a commit nobody else knows what it was about.
    pub(super) fn commit_ends(&mut self, id: SessionId) {
        self.wait_no_more_of(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.mode != Mode::RightNow {
            return;
        }
        let waiting = match session.pending.take() {
            Some(Pending::Jobs(waiting)) => Some(waiting),
            other => {
                session.pending = other;
                None
            }
        };
        let pending = waiting.as_ref().map(|it| (&it.plan, &it.command));
        let mut lines = session.lines(pending, &self.setup.site);
        // Sent away between two commands: what else it was about to say is not known.
        let lately = self.now.saturating_sub(session.commit.answered) < QUIET;
        if self.draining.is_some() && lately {
            let metas = session.commit.users.iter().cloned().map(Line::Meta);
            lines.extend(metas.filter(|line| line.check().is_ok()));
        }
        if let Some(waiting) = waiting {
            self.leave_jobs(id, &waiting);
            self.partial_bytes -= waiting.held;
        }
        if lines.is_empty() {
            return;
        }
        self.note(Note::PutOff {
            verb: "the session",
            why: "ended",
            lines: lines.len(),
        });
        self.append_plainly(lines);
    }

    fn wait_no_more_of(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Some(until) = session.commit.until.take() {
            self.patient.remove(&(until, id));
        }
    }
}

/// SEEN and SUB carry no version that would protect a later one.
fn is_unversioned(line: &Line) -> bool {
    matches!(line, Line::Seen(..) | Line::Sub(..))
}
