//! Commands in: what is answered here, what is acknowledged early, what goes to the replica.

use bytes::Bytes;

use super::Core;
use super::burst::Step;
use super::event::{Action, Identity, Mode, Note, RunId, SessionId};
use super::job::{Acked, Job, State, Unit, Work};
use super::plan::{self, Class, Plan, covered};
use super::queue::{JobId, Keys};
use super::runs::Cover;
use super::session::{Asked, Group, Pending, Session, Waiting};
use crate::protocol::synclog::Coverage;
use crate::protocol::{Apply, Body, Command, Get, Kind, print};

/// What a queued job costs in memory beside its bytes, about.
const JOB: u64 = 1024;

const OK: &str = "OK success\r\n";
const BYE: &str = "BYE syncmux is shutting down\r\n";

impl Core {
    pub(super) fn session_opened(
        &mut self,
        id: SessionId,
        mode: Mode,
        rolling: bool,
        identity: Identity,
    ) {
        debug_assert!(!self.sessions.contains_key(&id), "a session opened twice");
        if self.draining.is_some() {
            return self.act(Action::EndSession {
                session: id,
                body: BYE.into(),
            });
        }
        let mut session = Session::new(mode, rolling, identity, self.now);
        session.since = rolling && self.known.client_since;
        self.sessions.insert(id, session);
    }

    /// The client is gone: what it sent and was not answered is nobody's any more, unless it is
    /// on a lane already.
    pub(super) fn session_closed(&mut self, id: SessionId) {
        self.commit_ends(id);
        self.group_ended(id);
        self.acted(id, false);
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        self.staged_bytes -= session.staging.clear();
        self.noted_bytes -= session.counted;
        self.noting.remove(&id);
        self.partial_bytes -= session.partial_answer();
        self.room.retain(|waiting| *waiting != id);
        let not_sent = |job: &Job| {
            job.session == id && job.acked.is_none() && !matches!(job.state, State::Running(_))
        };
        if session.pending.is_some() {
            let mut dropped: Vec<JobId> = self
                .jobs
                .iter()
                .filter(|(_, job)| not_sent(job))
                .map(|(id, _)| *id)
                .collect();
            dropped.sort_unstable();
            for job in dropped {
                self.drop_job(job);
            }
        }
        self.forget_pool(&session.pool);
        if session.rolling {
            self.watch_log();
        }
    }

    /// Ends a session from this side.
    pub(super) fn end_session(&mut self, id: SessionId, body: Body) {
        if self.sessions.contains_key(&id) {
            self.act(Action::EndSession { session: id, body });
            self.session_closed(id);
        }
    }

    pub(super) fn command(&mut self, id: SessionId, command: Command, run: Option<RunId>) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.pending.is_some() {
            debug_assert!(false, "a command came before the answer to the last one");
            return;
        }
        session.arrived = now;
        session.under_run = run.is_some();
        let (mode, rolling) = (session.mode, session.rolling);
        let in_the_middle = session.in_the_middle();
        if self.draining.is_some() && !in_the_middle {
            return self.end_session(id, BYE.into());
        }
        if mode == Mode::FanOut || (rolling && self.setup.sync_log) {
            for gone in self.runs.is_now(run, now) {
                self.not_ahead(gone);
                let settled = self.ledger.run_gone(gone);
                self.settle(settled);
            }
            let ahead = self.setup.limits.known_bytes > 0;
            if let Some(run) = run.filter(|_| ahead || self.ledger.awaits_run()) {
                // To read ahead, to see whether the owed lines in `log` have been taken, and so
                // that the first write finds it linked.
                if matches!(self.runs.cover(run, now), Cover::Link) {
                    self.act(Action::LinkRun { run });
                }
            }
        }
        if rolling {
            self.watch_log();
        }
        self.note_less();
        if let Some(mut plan) = Plan::of(&command, &self.setup.site) {
            if mode == Mode::RightNow {
                let Some(wanted) = self.in_commit(id, &command.kind, plan) else {
                    return;
                };
                plan = wanted;
            }
            return self.submit(id, command, plan, run);
        }
        if let (Mode::RightNow, Some(session)) = (mode, self.sessions.get_mut(&id)) {
            match &command.kind {
                Kind::Apply(Apply::Reserve { .. }) => {
                    session.commit_reserves(&command.kind, now, &self.setup.site);
                }
                Kind::Bad { .. } => return self.no_room_right_now(id),
                _ => {}
            }
        }
        match command.kind {
            Kind::Restart => {
                self.group_ended(id);
                self.unstage(id);
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.group = Group::default();
                    session.group_is_over();
                }
                self.answer(id, "RESTART", "ok", "OK Restarting\r\n".into(), false);
            }
            Kind::Exit => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.pending = Some(Pending::Exit);
                }
                self.try_exit(id);
            }
            Kind::Apply(Apply::Reserve {
                partition,
                mailboxes,
                guids,
            }) => {
                self.reserve(id, &partition, mailboxes, &guids, command.raw);
            }
            Kind::Apply(Apply::Message { files, nil }) => {
                let size: u64 = files.iter().map(|file| file.content.len()).sum();
                let limits = &self.setup.limits;
                let room = self.staged_bytes.saturating_add(size) <= limits.staged_bytes
                    && self.noted_bytes <= limits.noted_bytes;
                if !room {
                    if mode == Mode::RightNow {
                        return self.no_room_right_now(id);
                    }
                    if let Some(session) = self.sessions.get_mut(&id)
                        && !session.group.left_alone.is_empty()
                    {
                        // Most likely for who is left alone, and NO would end the run. Whoever
                        // needs it gets the replica's refusal.
                        session.staging.add(Vec::new(), files.len());
                        return self.answer(id, "APPLY MESSAGE", "ok", OK.into(), true);
                    }
                    let no = "NO No room for this message: raise staged_memory or spill_size under [limits]\r\n";
                    return self.answer(id, "APPLY MESSAGE", "no", no.into(), false);
                }
                if let Some(session) = self.sessions.get_mut(&id) {
                    let before = session.staging.bytes();
                    session.staging.add(files, nil);
                    self.staged_bytes += session.staging.bytes();
                    self.staged_bytes -= before;
                }
                self.answer(id, "APPLY MESSAGE", "ok", OK.into(), true);
            }
            Kind::Apply(Apply::Capabilities(mut names)) => {
                names.sort_unstable();
                names.dedup();
                if self.goes_without(id, &names) {
                    let no = "NO The replica is away\r\n";
                    return self.answer(id, "APPLY CAPABILITIES", "no", no.into(), false);
                }
                self.change_pool(id, Pending::Enabled, |pool| pool.capabilities = names);
            }
            Kind::Apply(Apply::Force) => {
                self.change_pool(id, Pending::Forced, |pool| pool.force = Some(id));
            }
            // What belongs to the connection is answered by io.
            _ => self.answer(
                id,
                "other",
                "bad",
                "BAD Unexpected command\r\n".into(),
                false,
            ),
        }
    }

    fn reserve(
        &mut self,
        id: SessionId,
        partition: &Bytes,
        mailboxes: Vec<Bytes>,
        guids: &[crate::protocol::Guid],
        raw: Body,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let asked_nothing = session.group.asked_nothing();
        if session.fans_out() && asked_nothing {
            session.has_cache = true;
            self.note(Note::ClientCache { session: id });
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.group.reserves_nothing(&mailboxes) {
            return self.answer(id, "APPLY RESERVE", "ok", OK.into(), false);
        }
        let site = &self.setup.site;
        let staging = &mut session.staging;
        staging.reserve(partition, mailboxes.clone(), guids, site);
        if self.staged_bytes < self.setup.limits.staged_bytes {
            // The client uploads to here, which costs no network.
            let mut body = print::missing(guids);
            body.append(OK.into());
            return self.answer(id, "APPLY RESERVE", "ok", body, true);
        }
        // No room to stage what the replica has anyway.
        let (keys, subjects) = plan::all(&mailboxes, &self.setup.site);
        let plan = Plan::new("APPLY RESERVE", Class::Read, keys, subjects);
        self.send_real(id, plan, Asked::Reserve, Work::Plain(raw));
    }

    /// A command that concerns the replica.
    fn submit(&mut self, id: SessionId, command: Command, plan: Plan, run: Option<RunId>) {
        if matches!(&command.kind, Kind::Get(Get::User(_) | Get::Mailboxes(_))) {
            self.group_ended(id);
        }
        self.repairs(id, &command, &plan);
        let site = &self.setup.site;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Kind::Apply(Apply::Mailbox(mailbox)) = &command.kind {
            session.since |= mailbox.since;
            self.known.client_since |= session.rolling && session.since;
        }
        match &command.kind {
            Kind::Get(Get::User(user)) => {
                session.group = Group {
                    user: Some((user.clone(), site.key_of_user(user))),
                    ..Group::default()
                };
                self.unstage(id);
            }
            Kind::Get(Get::Mailboxes(names)) => session.group.asked_mailboxes(names, site),
            Kind::Apply(Apply::Mailbox(mailbox))
                if session.fans_out() && !session.group.asked_about(&mailbox.name, site) =>
            {
                session.has_cache = true;
                self.note(Note::ClientCache { session: id });
            }
            Kind::Get(Get::Other(verb)) => {
                let verb = format!("GET {}", String::from_utf8_lossy(verb));
                self.note(Note::UnknownVerb { verb });
            }
            Kind::Apply(Apply::Other(verb)) => {
                let verb = format!("APPLY {}", String::from_utf8_lossy(verb));
                self.note(Note::UnknownVerb { verb });
            }
            _ => {}
        }
        let Some(command) = self.set_aside(id, command, &plan) else {
            return;
        };
        let Some((command, plan)) = self.recall_user(id, command, plan, run) else {
            return;
        };
        let Some((command, plan)) = self.recall(id, command, plan, run) else {
            return;
        };
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let on_probation = plan
            .subjects
            .iter()
            .any(|whom| self.ledger.on_probation(whom));
        let writable = plan.line.as_ref().is_some_and(|line| line.check().is_ok());
        if let (true, Some(run)) = (
            plan.coverable && session.fans_out() && writable && !on_probation,
            run,
        ) {
            match self.runs.cover(run, self.now) {
                Cover::Linked(coverage) => {
                    return self.submit_covered(id, command, plan, run, &coverage);
                }
                cover @ (Cover::Link | Cover::Wait) => {
                    if matches!(cover, Cover::Link) {
                        self.act(Action::LinkRun { run });
                    }
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.pending = Some(Pending::Cover { command, plan, run });
                    }
                    return;
                }
                Cover::Never => {}
            }
        }
        self.submit_real(id, command, plan);
    }

    fn submit_covered(
        &mut self,
        id: SessionId,
        command: Command,
        plan: Plan,
        run: RunId,
        coverage: &Coverage,
    ) {
        let is_covered = plan
            .line
            .as_ref()
            .is_some_and(|line| covered(line, coverage, &self.setup.site));
        if !is_covered || self.owes_too_much() {
            return self.submit_real(id, command, plan);
        }
        if !self.has_room(&plan) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.pending = Some(Pending::Room { command, plan, run });
                self.room.push_back(id);
            }
            return;
        }
        self.acknowledge(id, command, plan, run);
    }

    fn has_room(&self, plan: &Plan) -> bool {
        let limits = &self.setup.limits;
        let known = match &plan.keys {
            Keys::Of(keys) => keys.iter().all(|key| self.unconfirmed.contains_key(key)),
            Keys::Barrier => true,
        };
        self.queued_bytes < limits.queued_bytes
            && (known || self.unconfirmed.len() < limits.unconfirmed_users)
    }

    /// Lets in those who wait for room, as far as there is some.
    pub(super) fn admit(&mut self) {
        while let Some(id) = self.room.front().copied() {
            let pending = self
                .sessions
                .get(&id)
                .and_then(|session| session.pending.as_ref());
            let waits = match pending {
                Some(Pending::Room { plan, .. }) => !self.has_room(plan),
                _ => false,
            };
            if waits {
                return;
            }
            self.room.pop_front();
            self.resubmit(id);
        }
    }

    /// Takes a command up again that waited for a link or for room: much may have changed.
    pub(super) fn resubmit(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match session.pending.take() {
            Some(Pending::Cover { command, plan, run } | Pending::Room { command, plan, run }) => {
                self.submit(id, command, plan, Some(run));
            }
            Some(Pending::Ahead { command, plan, run }) => {
                // A run that is gone meanwhile is not to be linked again.
                let run = run.filter(|run| self.runs.seen(*run).is_some());
                self.submit(id, command, plan, run);
            }
            other => session.pending = other,
        }
        // What was noted of it may have been forgotten meanwhile.
        self.count_noted(id);
    }

    fn acknowledge(&mut self, id: SessionId, command: Command, plan: Plan, run: RunId) {
        let (Some(line), Keys::Of(keys)) = (&plan.line, &plan.keys) else {
            debug_assert!(false, "acknowledged what has no line or no key");
            return self.submit_real(id, command, plan);
        };
        let (Some(key), Some(subject)) = (keys.first(), plan.subjects.first()) else {
            debug_assert!(false, "acknowledged what concerns nobody");
            return self.submit_real(id, command, plan);
        };
        let acked = Acked {
            run,
            line: line.clone(),
            subject: subject.clone(),
            key: key.clone(),
        };
        let mut work = self.work(id, command);
        let made = match &mut work {
            Work::Unit(unit) => Some((unit.mailbox.clone(), unit.made.take())),
            Work::Plain(_) => None,
        };
        let verb = plan.verb;
        self.runs.pin(run);
        *self.unconfirmed.entry(key.clone()).or_default() += 1;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.unconfirmed += 1;
        }
        let bytes = self.push_job(id, 0, &plan, work, Some(acked));
        self.queued_bytes += bytes;
        if let (Some((name, made)), Some(session)) = (made, self.sessions.get(&id)) {
            let pool = session.pool.clone();
            self.learn_made(&name, made, &pool);
        }
        self.answer(id, verb, "ok", OK.into(), true);
    }

    fn submit_real(&mut self, id: SessionId, command: Command, plan: Plan) {
        let asked = match Asked::of(&command.kind) {
            // Over many users it goes out in parallel by user.
            Asked::Mailboxes(asked) if matches!(&plan.keys, Keys::Of(keys) if keys.len() > 1) => {
                return self.send_mailboxes(id, plan, asked);
            }
            asked => asked,
        };
        let work = self.work(id, command);
        self.send_real(id, plan, asked, work);
    }

    fn work(&self, id: SessionId, command: Command) -> Work {
        let staging = self.sessions.get(&id).map(|session| &session.staging);
        match (command.kind, staging) {
            (Kind::Apply(Apply::Mailbox(mailbox)), Some(staging)) => Work::Unit(Box::new(Unit {
                needs: staging.needs(&mailbox, &self.setup.site),
                mailbox: mailbox.name,
                partition: mailbox.partition,
                made: mailbox.state,
                command: command.raw,
                step: Step::default(),
            })),
            _ => Work::Plain(command.raw),
        }
    }

    fn send_real(&mut self, id: SessionId, plan: Plan, command: Asked, work: Work) {
        self.push_job(id, 0, &plan, work, None);
        if let Some(session) = self.sessions.get_mut(&id) {
            let waiting = Waiting::new(plan, command, 1, Vec::new());
            session.pending = Some(Pending::Jobs(waiting));
        }
    }

    /// Queues a job; returns how many bytes it holds.
    pub(super) fn push_job(
        &mut self,
        session: SessionId,
        part: usize,
        plan: &Plan,
        work: Work,
        acked: Option<Acked>,
    ) -> u64 {
        self.next_job += 1;
        let id = JobId(self.next_job);
        let careful = plan
            .subjects
            .iter()
            .any(|whom| self.ledger.on_probation(whom));
        let read = plan.class == Class::Read;
        let Some(pool) = self
            .sessions
            .get(&session)
            .map(|session| session.pool.clone())
        else {
            return 0;
        };
        self.wrote(plan, &work);
        let bytes = work.bytes() + JOB;
        let job = Job {
            session,
            part,
            pool,
            work,
            read,
            alone: plan.class == Class::Exclusive || (careful && !read),
            careful,
            subjects: plan.subjects.clone(),
            asks: plan.asks.clone(),
            acked,
            left: None,
            arrived: self.now,
            state: State::Waiting,
            tries: 0,
            locked: 0,
            bytes,
        };
        let pool = self.lanes.pools.entry(job.pool.clone()).or_default();
        pool.jobs += 1;
        if job.acked.is_some() {
            self.acked.insert(id);
        }
        self.jobs.insert(id, job);
        if self.queue.push(id, plan.keys.clone()) {
            self.make_ready(id);
        }
        bytes
    }

    /// Sends an answer and counts it.
    pub(super) fn answer(
        &mut self,
        id: SessionId,
        verb: &'static str,
        answer: &'static str,
        body: Body,
        early: bool,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.pending = None;
        session.ahead_since = None;
        let took = self.now.saturating_sub(session.arrived);
        let right_now = session.mode == Mode::RightNow;
        if self.wait_no_more(id) && right_now {
            self.note(Note::Waited { took });
        }
        self.note(Note::Answered {
            verb,
            answer,
            took,
            early,
        });
        self.act(Action::Answer { session: id, body });
        let in_the_middle = self.sessions.get(&id).is_some_and(Session::in_the_middle);
        if self.draining.is_some() && !in_the_middle {
            self.end_session(id, BYE.into());
        }
    }

    /// EXIT waits for everything of the session.
    pub(super) fn try_exit(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        if matches!(session.pending, Some(Pending::Exit)) && session.unconfirmed == 0 {
            self.end_session(id, "OK Finished\r\n".into());
        }
    }

    /// What is noted of a session may have changed.
    pub(super) fn count_noted(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let noted = session.noted();
        self.noted_bytes -= session.counted;
        self.noted_bytes += noted;
        session.counted = noted;
        if noted > 0 {
            self.noting.insert(id);
        }
    }

    /// Forgets what is noted of sessions where it is too much. The limit is exceeded by what one
    /// command notes, and by no more. No session is looked at twice for the same.
    fn note_less(&mut self) {
        if self.noted_bytes <= self.setup.limits.noted_bytes {
            return;
        }
        for id in std::mem::take(&mut self.noting) {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.forget();
            }
            self.count_noted(id);
        }
        // What is left can't be forgotten.
        self.noting.clear();
    }

    fn unstage(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.staged_bytes -= session.staging.clear();
        }
    }
}
