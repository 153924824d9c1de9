//! The replica's answers, and what becomes of those that are refusals or never come.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Core;
use super::burst::{self, Progress};
use super::event::{Action, LaneId, Mode, Note, SessionId};
use super::job::{Acked, Job, State, Work};
use super::lanes::{State as LaneState, What};
use super::ledger::Settled;
use super::left_alone::nothing_there;
use super::limits::pause;
use super::mailboxes::merge;
use super::plan::Subject;
use super::policy::{self, Answer};
use super::queue::JobId;
use super::rightnow::Silence;
use super::session::{Asked, Pending, Session, Waiting};
use crate::protocol::synclog::Line;
use crate::protocol::{Body, Reply, Status, StatusKind, UserKey};

/// To a client whose refusal can't be owed any more: it keeps its log-run.
pub(super) const TOO_MUCH: &str = "BYE Too much of the sync log is owed already\r\n";

impl Core {
    pub(super) fn lane_reply(&mut self, id: LaneId, reply: Reply) {
        let Some(lane) = self.lanes.all.get_mut(&id) else {
            return;
        };
        let Some(sent) = lane.answered(self.now) else {
            // An answer to nothing: the lane is out of step.
            self.act(Action::CloseLane {
                lane: id,
                polite: false,
            });
            return;
        };
        let job = sent
            .job
            .and_then(|job| Some((job, self.jobs.get_mut(&job)?)));
        let closing = lane.state == LaneState::Closing;
        self.silence = Silence::heard(self.now);
        match (job, &sent.what) {
            // What follows would not go out: `LaneLost` gives the job to another lane.
            (Some(_), What::Reserve { .. } | What::Message { .. }) if closing => {}
            (Some((job_id, job)), _) => {
                let (output, progress) = burst::answered(lane, job_id, job, sent, reply, self.now);
                self.send(id, output);
                match progress {
                    Progress::Going => {}
                    Progress::Done(reply) if self.try_again_if_locked(job_id, &reply.status) => {}
                    Progress::Done(reply) => self.job_done(job_id, reply),
                }
                self.restart(id, false);
            }
            (None, What::Force) => self.forced(id, &reply.status),
            (None, What::Question(question)) => self.question_answered(*question, &reply),
            (None, What::UserAhead(ticket)) => self.user_answered(*ticket, reply),
            (None, _) => {}
        }
        self.retire_if_due(id);
    }

    /// The lane's FORCE was answered.
    fn forced(&mut self, id: LaneId, status: &Status) {
        let pool = self.lanes.all.get(&id).map(|lane| lane.pool.clone());
        let Some(session) = pool.as_ref().and_then(|pool| pool.force) else {
            return;
        };
        if let Some(state) = pool.and_then(|pool| self.lanes.pools.get_mut(&pool)) {
            state.wanted = false;
        }
        let waits = |session: &Session| matches!(session.pending, Some(Pending::Forced));
        if !self.sessions.get(&session).is_some_and(waits) {
            return;
        }
        let body = line_of(status);
        if status.kind == StatusKind::Ok {
            return self.answer(session, "APPLY FORCE", "ok", body, false);
        }
        self.change_pool(session, Pending::Forced, |pool| pool.force = None);
        self.answer(session, "APPLY FORCE", "no", body, false);
    }

    /// A job has its answer.
    pub(super) fn job_done(&mut self, id: JobId, reply: Reply) {
        self.learn_from(id, &reply);
        self.learn_from_write(id, reply.status.kind == StatusKind::Ok);
        let Some(mut job) = self.drop_job(id) else {
            return;
        };
        let ok = reply.status.kind == StatusKind::Ok;
        match job.acked.take() {
            Some(acked) => {
                if ok {
                    self.unit_done(&job, "ok");
                    self.confirmed(&job, &acked);
                    self.runs.unpin(acked.run);
                } else {
                    let words = String::from_utf8_lossy(&reply.status.line()).into_owned();
                    self.unit_failed(&job, &acked, &words, Failure::Refused);
                }
            }
            None => self.part_done(&job, reply),
        }
    }

    /// An acknowledged unit is accounted for.
    fn confirmed(&mut self, job: &Job, acked: &Acked) {
        self.queued_bytes -= job.bytes;
        if let Some(count) = self.unconfirmed.get_mut(&acked.key) {
            *count -= 1;
            if *count == 0 {
                self.unconfirmed.remove(&acked.key);
            }
        }
        if let Some(session) = self.sessions.get_mut(&job.session) {
            session.unconfirmed -= 1;
            self.try_exit(job.session);
        }
    }

    fn unit_done(&mut self, job: &Job, outcome: &'static str) {
        let took = self.now.saturating_sub(job.arrived);
        self.note(Note::UnitDone { took, outcome });
    }

    /// An acknowledged unit was refused or is in doubt: its line is owed, and so are the lines of
    /// all that was acknowledged for its subject behind it, none of which is sent any more.
    fn unit_failed(&mut self, job: &Job, acked: &Acked, words: &str, how: Failure) {
        let subject = acked.subject.clone();
        let refused = how == Failure::Refused;
        let due = self.fail(&subject, words, how != Failure::InDoubt);
        self.ledger.waits_since(&subject, job.arrived);
        let doubt = |line: &Line| {
            // The lane's last command may still be running on the replica, and these two carry no
            // version.
            let unversioned = matches!(line, Line::Seen(..) | Line::Sub(..));
            (unversioned && !refused).then(|| self.now + self.setup.limits.in_doubt)
        };
        let due_first = doubt(&acked.line).unwrap_or(due).max(due);
        self.ledger
            .owe(&subject, &acked.line, due_first, vec![acked.run], None);
        self.unit_done(job, if refused { "refused" } else { "in doubt" });
        self.drop_behind(&subject, due);
        self.confirmed(job, acked);
    }

    /// Owes everything acknowledged for a subject that has failed; none of it is sent any more.
    pub(super) fn drop_behind(&mut self, subject: &Subject, due: Duration) {
        let key = match subject {
            Subject::User(key) => key.clone(),
            Subject::Mailbox(_) => UserKey::shared(),
        };
        let is_behind = |id: &JobId| self.jobs.get(id).is_some_and(|job| is_behind(job, subject));
        let behind: Vec<JobId> = self.queue.of_key(&key).filter(is_behind).collect();
        for id in behind {
            let Some(dropped) = self.drop_job(id) else {
                continue;
            };
            let Some(behind) = &dropped.acked else {
                continue;
            };
            self.ledger
                .owe(subject, &behind.line, due, vec![behind.run], None);
            self.unit_done(&dropped, "dropped");
            self.confirmed(&dropped, behind);
        }
    }

    /// An acknowledged unit is not waited for any longer: it is in doubt.
    pub(super) fn give_up(&mut self, id: JobId) {
        let Some(mut job) = self.drop_job(id) else {
            return;
        };
        if let Some(acked) = job.acked.take() {
            let words = "not confirmed before syncmux stopped";
            self.unit_failed(&job, &acked, words, Failure::InDoubt);
        }
    }

    /// Counts a failure of a subject; returns when its lines go back into the sync log.
    pub(super) fn fail(&mut self, subject: &Subject, words: &str, refused: bool) -> Duration {
        self.forget_subject(subject);
        let now = self.now;
        let limits = &self.setup.limits;
        let (probation, _) = self.ledger.fail(subject, words, refused, now);
        let wait = match probation.failures {
            0 | 1 => Duration::ZERO,
            _ if probation.due > now => probation.due - now,
            nth => pause(limits.heal, limits.heal_max, nth - 2, &mut self.random),
        };
        self.note(Note::Probation {
            subject: subject.name(),
            why: words.to_owned(),
            refused,
            pause: wait,
        });
        now + wait
    }

    /// One answer for a session's command.
    fn part_done(&mut self, job: &Job, reply: Reply) {
        if job.left.is_some() {
            return;
        }
        let Some(session) = self.sessions.get_mut(&job.session) else {
            return;
        };
        let Some(Pending::Jobs(waiting)) = &mut session.pending else {
            return;
        };
        waiting.held += reply.memory();
        self.partial_bytes += reply.memory();
        if let Some(part) = waiting.parts.get_mut(job.part)
            && part.replace(reply).is_none()
        {
            waiting.missing -= 1;
        }
        if waiting.missing > 0 {
            let right_now = session.mode == Mode::RightNow;
            if right_now && self.partial_bytes > self.setup.limits.partial_answers {
                return self.give_up_waiting_for(job.session, "no room");
            }
            if self.partial_bytes > self.setup.limits.partial_answers {
                let bye = "BYE The replica's answers are too large for memory\r\n";
                self.end_session(job.session, bye.into());
            }
            return;
        }
        match session.pending.take() {
            Some(Pending::Jobs(waiting)) => {
                self.partial_bytes -= waiting.held;
                self.command_done(job.session, waiting);
                self.count_noted(job.session);
            }
            other => session.pending = other,
        }
    }

    /// All answers are there.
    fn command_done(&mut self, id: SessionId, waiting: Waiting) {
        let Some(waiting) = self.mailboxes_done(id, waiting) else {
            return;
        };
        let Waiting {
            plan,
            command,
            parts,
            order,
            ..
        } = waiting;
        let reply = merge(parts.into_iter().flatten().collect(), &order);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let ok = reply.status.kind == StatusKind::Ok;
        if ok || policy::is_success(&reply.status, &command) {
            if let Asked::FullMailbox(name) = &command {
                session.group.full.insert(name.clone());
            }
            if let (true, Some(line), Some(subject)) =
                (plan.settles, &plan.line, plan.subjects.first())
            {
                let settled = self.ledger.done(subject, line);
                self.settle(settled);
            }
            let outcome = outcome(&reply.status);
            return self.answer(id, plan.verb, outcome, body_of(reply), false);
        }
        if session.mode == Mode::RightNow {
            return self.refused_right_now(id, &plan, &command, reply);
        }
        if !session.fans_out() {
            let outcome = outcome(&reply.status);
            return self.answer(id, plan.verb, outcome, body_of(reply), false);
        }
        if self.leaves_alone_next(id, &plan, &command, &reply) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let force = session.pool.force.is_some();
        let named = self.setup.named;
        let verdict = policy::refused(&reply.status, &plan, &command, session, named, force);
        let token = reply.status.token();
        if let (Asked::Mailbox(name), Some(b"IMAP_SYNC_CHECKSUM")) = (&command, token) {
            session.group.checksums.insert(name.clone());
        }
        let user = session
            .group
            .user
            .as_ref()
            .map(|(_, key)| Subject::User(key.clone()));
        let words = String::from_utf8_lossy(&reply.status.line()).into_owned();
        let (body, outcome): (Body, _) = match verdict.answer {
            Answer::AsIs => (body_of(reply.clone()), outcome(&reply.status)),
            Answer::Plain => ("NO The mailbox is locked\r\n".into(), "no"),
            Answer::Locked => (
                "NO IMAP_MAILBOX_LOCKED Left alone for a while\r\n".into(),
                "no",
            ),
            Answer::Ok => ("OK success\r\n".into(), "ok"),
            Answer::Nothing => {
                session.group.user_left_alone = true;
                (nothing_there(), "ok")
            }
        };
        let subject = user.clone().or_else(|| plan.subjects.first().cloned());
        let mut owed: Vec<(Subject, Line)> = Vec::new();
        if verdict.defers {
            owed = session.group.deferred(&command, &self.setup.site);
        }
        owed.extend(subject.zip(verdict.owe));
        if owed.is_empty() {
            return self.answer(id, plan.verb, outcome, body, false);
        }
        if !owed
            .iter()
            .all(|(subject, line)| self.may_owe(subject, line))
        {
            return self.end_session(id, TOO_MUCH.into());
        }
        // What the replica refuses is owed before the answer goes out: the client forgets some
        // refusals.
        self.wait_for_lines(id, owed.len(), plan.verb, outcome, body);
        let mut failed = BTreeMap::new();
        for (subject, line) in owed {
            let due = match failed.get(&subject) {
                Some(due) => *due,
                None => {
                    let due = self.fail(&subject, &words, true);
                    failed.insert(subject.clone(), due);
                    due
                }
            };
            self.ledger.owe(&subject, &line, due, Vec::new(), Some(id));
        }
        for (subject, due) in failed {
            if user.is_some() {
                self.ledger.leave_alone(&subject, due);
            }
            self.drop_behind(&subject, due);
        }
    }

    /// The answer goes out when so many lines are durable.
    pub(super) fn wait_for_lines(
        &mut self,
        id: SessionId,
        lines: usize,
        verb: &'static str,
        outcome: &'static str,
        body: Body,
    ) {
        if lines == 0 {
            return self.answer(id, verb, outcome, body, false);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.pending = Some(Pending::Durable {
                lines,
                body,
                outcome,
                verb,
            });
        }
    }

    /// Whether no further line may be owed but of what was acknowledged.
    pub(super) fn owes_too_much(&self) -> bool {
        self.ledger.len() >= self.setup.limits.owed_lines
    }

    /// Whether this line may be owed. One that is owed already may be once more: without that
    /// nobody who is refused again would get on, and nothing could ever heal.
    pub(super) fn may_owe(&self, subject: &Subject, line: &Line) -> bool {
        !self.owes_too_much() || self.ledger.owes(subject, line)
    }

    /// Passes on what lines reaching the disk, or being done with, brought about.
    pub(super) fn settle(&mut self, settled: Settled) {
        for run in settled.unpin {
            self.runs.unpin(run);
        }
        if settled.written > 0 {
            self.note(Note::LinesWritten {
                lines: settled.written,
            });
        }
        for subject in settled.healed {
            self.note(Note::Healed {
                subject: subject.name(),
            });
        }
        for id in settled.durable {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            match session.pending.take() {
                Some(Pending::Durable {
                    lines,
                    body,
                    outcome,
                    verb,
                }) => match lines.checked_sub(1) {
                    None | Some(0) => self.answer(id, verb, outcome, body, false),
                    Some(lines) => {
                        session.pending = Some(Pending::Durable {
                            lines,
                            body,
                            outcome,
                            verb,
                        });
                    }
                },
                other => session.pending = other,
            }
        }
        for id in settled.failed {
            if self.not_written_right_now(id) {
                continue;
            }
            // The client keeps its log-run.
            self.end_session(id, "BYE The sync directory can't be written\r\n".into());
        }
    }

    pub(super) fn lane_lost(&mut self, id: LaneId, why: &str, orderly: bool) {
        let Some(lane) = self.lanes.all.remove(&id) else {
            return;
        };
        // What was asked ahead may be what killed the replica's process.
        let oldest = lane.in_flight.front();
        let by_question = oldest.is_some_and(|sent| sent.what.is_question());
        let suspect = lane.in_flight.iter().find_map(|sent| sent.job);
        let suspect = suspect.filter(|_| !by_question);
        for (place, sent) in lane.in_flight.iter().enumerate() {
            match sent.what {
                What::Question(question) => self.question_lost(question, place == 0),
                What::UserAhead(ticket) => self.user_question_lost(ticket, place == 0),
                _ => {}
            }
        }
        let mut jobs: Vec<JobId> = lane.jobs.iter().copied().collect();
        jobs.sort_unstable();
        if !orderly || !jobs.is_empty() {
            // Not at once again: a replica that drops every connection is not to be hammered.
            if !self.lanes.any_up() && self.lanes.retry_at.is_none() {
                self.back_off();
            }
        }
        if !self.lanes.any_up() {
            // The replica may be another one when it comes back.
            self.forget_everything();
            self.known.since = false;
            for state in self.lanes.pools.values_mut() {
                state.enabled = None;
            }
        }
        for job in jobs {
            // Only the suspect's tries run out by it: who stood behind a command that ends the
            // replica's process each time is not refused for that.
            if suspect.map_or(!by_question, |suspect| suspect == job) {
                self.jobs.entry(job).and_modify(|job| job.tries += 1);
            }
            self.job_lost(job, why, Some(job) == suspect);
        }
        self.forget_pool(&lane.pool);
    }

    /// A job's lane is gone.
    fn job_lost(&mut self, id: JobId, why: &str, suspect: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let waited_for = job.left.is_none() && self.sessions.contains_key(&job.session);
        if job.acked.is_none() && !waited_for {
            // Nobody waits for it any more.
            let sent = job.work.committed();
            self.forget_failed(id);
            let job = self.drop_job(id).filter(|_| sent);
            if let Some((left, subjects)) = job.and_then(|job| Some((job.left?, job.subjects))) {
                let words = format!("the connection to the replica was lost: {why}");
                self.left_and_lost(&left, &subjects, &words);
            }
            return;
        }
        let again = job.tries < self.setup.limits.read_tries;
        if again && (job.read || !job.work.committed()) {
            // It changed nothing there, or can't have: another lane.
            job.state = State::Waiting;
            return match suspect {
                true => self.make_ready(id),
                false => self.make_ready_again(id),
            };
        }
        let words = format!("the connection to the replica was lost: {why}");
        if job.acked.is_some() {
            let Some(mut job) = self.drop_job(id) else {
                return;
            };
            if let Some(acked) = job.acked.take() {
                let how = if suspect {
                    Failure::Suspect
                } else {
                    Failure::InDoubt
                };
                self.unit_failed(&job, &acked, &words, how);
            }
            return;
        }
        let (session, read) = (job.session, job.read);
        let mode = self.sessions.get(&session).map(|one| one.mode);
        if mode == Some(Mode::RightNow) {
            self.forget_failed(id);
            self.drop_job(id);
            return self.lost_right_now(session, &words);
        }
        let strict = self
            .sessions
            .get(&session)
            .is_some_and(|one| !one.fans_out());
        if strict && !read {
            // As the client's own connection would have ended: it must not take this for an
            // answer.
            self.forget_failed(id);
            self.drop_job(id);
            return self.end_session(session, Body::new());
        }
        let status = Status {
            kind: StatusKind::No,
            text: words.into(),
        };
        self.job_done(
            id,
            Reply {
                untagged: Vec::new(),
                status,
            },
        );
    }
}

/// How an acknowledged unit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The replica said NO: it is not running any more.
    Refused,
    /// Its lane was lost, perhaps because of it; it may still be running.
    Suspect,
    /// Its lane was lost, or is not waited for.
    InDoubt,
}

impl Work {
    /// Bytes it holds, spilled ones included.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Work::Plain(body) => body.len(),
            Work::Unit(unit) => {
                let files = unit.needs.iter().filter_map(|need| need.file.as_ref());
                unit.command.len() + files.map(|file| file.content.len()).sum::<u64>()
            }
        }
    }

    /// Whether it is a unit whose MAILBOX is not out.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Work::Unit(unit) if !unit.step.committed())
    }

    /// Whether the command that changes something is out.
    fn committed(&self) -> bool {
        match self {
            Work::Plain(_) => true,
            Work::Unit(unit) => unit.step.committed(),
        }
    }
}

fn is_behind(job: &Job, subject: &Subject) -> bool {
    let same = job
        .acked
        .as_ref()
        .is_some_and(|acked| acked.subject == *subject);
    same && !matches!(job.state, State::Running(_))
}

pub(super) fn outcome(status: &Status) -> &'static str {
    match status.kind {
        StatusKind::Ok => "ok",
        StatusKind::No => "no",
        StatusKind::Bad => "bad",
        StatusKind::Bye => "bye",
    }
}

fn line_of(status: &Status) -> Body {
    let mut line = status.line();
    line.extend_from_slice(b"\r\n");
    bytes::Bytes::from(line).into()
}

pub(super) fn body_of(reply: Reply) -> Body {
    let mut body = Body::new();
    for line in reply.untagged {
        body.append(line.raw);
    }
    body.append(line_of(&reply.status));
    body
}
