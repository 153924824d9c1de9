//! Clients and a replica that say anything in any order, with the core between them, whose own
//! invariants are on.
//!
//! The rest of an input is a list of steps: one byte says what happens and to whom, and for some
//! of them more bytes follow. The readers stand where `io` has them, and what `io` answers by
//! itself is not put to the core. What must hold: each command has one whole answer and nothing
//! else is said to a client; a lane is sent one whole command at a time, whatever names and
//! literals were in it; limits hold; and once everybody behaves the drain ends with nothing left.

mod said;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use syncmux::core::{
    Action, Core, Event, Identity, LaneId, Limits, Mode, Pool, RunId, SessionId, Setup,
};
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::synclog::{Coverage, LineReader};
use syncmux::protocol::{
    CommandReader, Dialect, Kind, Reply, ReplyReader, Site, StatusKind, Untagged,
};

use super::{limits, split};
use said::{last_words, one_answer, one_command, one_request, tagged_answer};

const NAMED: u8 = 1;
const STRICT: u8 = 2;
const ROOMY: u8 = 4;
pub const IMAP_CLIENTS: u8 = 8;
pub const IMAP_REPLICA: u8 = 16;

const STAGED: u64 = 2000;
const NOTED: u64 = 6000;

/// What one command may note beyond the limit, with readers that take 1 MiB.
const COMMAND: u64 = 20 << 20;

/// What clients say, with `@` for a user and `#` for a GUID.
const SAID: [&str; 24] = [
    "GET USER @\r\n",
    "GET MAILBOXES (user.@)\r\n",
    "GET MAILBOXES (user.@ user.b shared.x user.@.sub)\r\n",
    "GET FULLMAILBOX user.@\r\n",
    "APPLY RESERVE %(PARTITION default MBOXNAME (user.@) GUID (# #))\r\n",
    "APPLY RESERVE %(PARTITION default MBOXNAME (user.@ user.b) GUID (#))\r\n",
    "APPLY MESSAGE (%{default # 4}\r\nbody)\r\n",
    "APPLY MESSAGE (NIL %{default # 0}\r\n)\r\n",
    "APPLY MAILBOX %(UNIQUEID i MBOXNAME user.@ LAST_UID 1 PARTITION default RECORD (%(UID 1 \
     GUID #)))\r\n",
    "APPLY MAILBOX %(UNIQUEID i MBOXNAME user.@ MBOXTYPE i)\r\n",
    "APPLY MAILBOX %(UNIQUEID s MBOXNAME shared.@ LAST_UID 1 PARTITION default RECORD ())\r\n",
    "APPLY SEEN %(USERID @ UNIQUEID i LASTREAD 1)\r\n",
    "APPLY SUB %(USERID @ MBOXNAME user.@)\r\n",
    "APPLY UNSUB %(USERID @ MBOXNAME user.@)\r\n",
    "APPLY RENAME %(OLDMBOXNAME user.@ NEWMBOXNAME user.b PARTITION p)\r\n",
    "APPLY UNMAILBOX user.@\r\n",
    "APPLY UNUSER @\r\n",
    "APPLY QUOTA %(ROOT user.@ STORAGE 1)\r\n",
    "APPLY ANNOTATION %(MBOXNAME \"\" ENTRY /x VALUE #)\r\n",
    "APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n",
    "APPLY FORCE %()\r\n",
    "GET UNKNOWN @\r\n",
    "RESTART\r\n",
    "EXIT\r\n",
];

/// What a replica answers.
const ANSWERED: [&str; 12] = [
    "OK success\r\n",
    "NO IMAP_MAILBOX_NONEXISTENT No such mailbox\r\n",
    "NO IMAP_SYNC_CHECKSUM Checksum Failure\r\n",
    "NO IMAP_MAILBOX_LOCKED locked\r\n",
    "NO IMAP_IOERROR bad\r\n",
    "BAD IMAP_PROTOCOL_ERROR what\r\n",
    "* MAILBOX %(UNIQUEID i MBOXNAME user.@ LAST_UID 1)\r\nOK success\r\n",
    "* MAILBOX %(UNIQUEID s MBOXNAME shared.x)\r\n* MAILBOX %(UNIQUEID i MBOXNAME user.@)\r\nOK x\r\n",
    "* MISSING (#)\r\nOK success\r\n",
    "* MISSING ()\r\nOK success\r\n",
    "* LSUB (user.@ {3}\r\na\r\n)\r\nOK success\r\n",
    "BYE shutting down\r\n",
];

/// What stands in a sync log.
const LOGGED: [&str; 6] = [
    "MAILBOX user.@\nMAILBOX user.b\n",
    "USER @\n",
    "SEEN @ i\nSUB @ user.@\nMAILBOX shared.@\n",
    "UNUSER @\nMETA @\n",
    "MAILBOX shared.x\nMAILBOX shared.a\nMAILBOX user.a\nMAILBOX user.b\nMAILBOX user.c\n",
    "",
];

/// Pauses, in milliseconds.
const TIMES: [u64; 8] = [1, 300, 1_100, 6_000, 20_000, 130_000, 700_000, 2_000_000];

pub fn run(data: &[u8]) {
    let Some((flags, seed, rest)) = split(data) else {
        return;
    };
    let mut world = World::new(flags, seed);
    let mut input = Input(rest);
    while let Some(step) = input.byte() {
        world.step(step, &mut input);
    }
    world.end();
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn or_zero(&mut self) -> u8 {
        self.byte().unwrap_or_default()
    }

    /// As many bytes as the next one says.
    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.or_zero()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }
}

struct Client {
    reader: CommandReader,
    /// Commands that were said as they should be.
    said: u64,
    /// What came and was not read yet.
    input: Bytes,
    /// The core owes it an answer.
    waits: bool,
}

struct Lane {
    pool: Pool,
    open: bool,
    closing: bool,
    in_flight: usize,
    /// Commands so far, and statuses.
    sent: u64,
    answered: u64,
    reader: ReplyReader,
    untagged: Vec<Untagged>,
}

struct World {
    core: Core,
    limits: Limits,
    now: Duration,
    mode: Mode,
    /// By clients, and by the replica.
    spoken: [Dialect; 2],
    clients: BTreeMap<SessionId, Client>,
    lanes: BTreeMap<LaneId, Lane>,
    /// What the disk was asked for and has not done.
    disk: Vec<Action>,
    runs: Vec<String>,
    /// The last of the runs is there.
    has_run: bool,
    next_session: u64,
    drained: bool,
    draining: bool,
}

impl World {
    fn new(flags: u8, seed: u64) -> Self {
        let limits = Limits {
            lanes: 3,
            depth: 4,
            unconfirmed_users: if flags & ROOMY != 0 { 10 } else { 2 },
            queued_bytes: if flags & ROOMY != 0 { 100_000 } else { 600 },
            staged_bytes: STAGED,
            noted_bytes: NOTED,
            partial_answers: 5000,
            owed_lines: if flags & ROOMY != 0 { 1000 } else { 4 },
            ask_bytes: 20,
            lane_staged_messages: 2,
            ..Limits::default()
        };
        let setup = Setup {
            named: flags & NAMED != 0,
            sync_log: true,
            site: Site::default(),
            limits: limits.clone(),
            seed,
        };
        World {
            core: Core::new(setup),
            limits,
            now: Duration::from_secs(1),
            mode: if flags & STRICT != 0 {
                Mode::Strict
            } else {
                Mode::FanOut
            },
            spoken: [IMAP_CLIENTS, IMAP_REPLICA].map(|imap| match flags & imap {
                0 => Dialect::Csync,
                _ => Dialect::Imap,
            }),
            clients: BTreeMap::new(),
            lanes: BTreeMap::new(),
            disk: Vec::new(),
            runs: Vec::new(),
            has_run: false,
            next_session: 0,
            drained: false,
            draining: false,
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        let who = usize::from(step / 16);
        match step % 16 {
            0 | 1 => self.client_says(who, input.bytes()),
            2..=4 => {
                let said = SAID[usize::from(input.or_zero()) % SAID.len()];
                let text = filled(said, input.or_zero());
                self.client_asks(who, text);
            }
            5 => self.replica_says(who, input.bytes()),
            6 => self.replica_answers(who, "OK success\r\n".to_owned()),
            7 | 8 => {
                let answer = ANSWERED[usize::from(input.or_zero()) % ANSWERED.len()];
                let text = filled(answer, input.or_zero());
                self.replica_answers(who, text);
            }
            9 => {
                let Some(lane) = self.lane(who) else { return };
                match self.lanes.get_mut(&lane) {
                    Some(failing) if who >= 8 => {
                        failing.closing = true;
                        self.event(Event::LaneFailing { lane });
                    }
                    _ => self.lose(lane, who % 4 == 3),
                }
            }
            10 => self.answer_the_door(who),
            11 => self.disk(who % 8 != 7),
            12 => self.log_run(input),
            13 => {
                self.now += Duration::from_millis(TIMES[who % TIMES.len()]);
                self.event(Event::Tick);
            }
            14 => self.come_or_go(who),
            _ => {
                // In step with a replica that behaves.
                self.answer_the_door(0);
                self.disk(true);
                self.replica_answers(who, "OK success\r\n".to_owned());
            }
        }
    }

    fn come_or_go(&mut self, who: usize) {
        match who {
            0..=9 if self.clients.len() < 4 => {
                let session = SessionId(self.next_session);
                self.next_session += 1;
                let mut reader = CommandReader::new(limits(false)).speaking(self.spoken[0]);
                reader.set_authenticated(true);
                let client = Client {
                    reader,
                    said: 0,
                    input: Bytes::new(),
                    waits: false,
                };
                self.clients.insert(session, client);
                let mode = if who == 9 { Mode::Strict } else { self.mode };
                let identity = Identity::Configured;
                self.event(Event::SessionOpened {
                    session,
                    mode,
                    rolling: who != 9,
                    identity,
                });
            }
            15 if !self.draining => {
                self.draining = true;
                self.event(Event::Drain);
            }
            _ => {
                if let Some(session) = self.client(who) {
                    self.clients.remove(&session);
                    self.event(Event::SessionClosed { session });
                }
            }
        }
    }

    fn client(&self, who: usize) -> Option<SessionId> {
        let nth = who % self.clients.len().max(1);
        self.clients.keys().nth(nth).copied()
    }

    fn lane(&self, who: usize) -> Option<LaneId> {
        let open = || self.lanes.iter().filter(|(_, lane)| lane.open);
        let nth = who % open().count().max(1);
        open().nth(nth).map(|(id, _)| *id)
    }

    /// With the tag that it should have.
    fn client_asks(&mut self, who: usize, text: String) {
        if self.clients.is_empty() {
            self.come_or_go(0);
        }
        let Some(id) = self.client(who) else { return };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let said = self.spoken[0].request(client.said, text.into());
        client.said += 1;
        self.client_says(who, &said.to_vec().expect("in memory"));
    }

    fn client_says(&mut self, who: usize, bytes: &[u8]) {
        if self.clients.is_empty() {
            self.come_or_go(0);
        }
        let Some(id) = self.client(who) else { return };
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.input = [&client.input[..], bytes].concat().into();
        self.read_on(id);
    }

    /// As `io::session` does it: one command at a time.
    fn read_on(&mut self, session: SessionId) {
        while let Some(client) = self.clients.get_mut(&session) {
            if client.waits {
                return;
            }
            match client.reader.feed(&mut client.input) {
                Ok(None) => return,
                Ok(Some(command)) => match command.kind {
                    Kind::Get(_)
                    | Kind::Apply(_)
                    | Kind::Restore { .. }
                    | Kind::Restart
                    | Kind::Exit => {
                        client.waits = true;
                        let run = self.current_run();
                        self.event(Event::Command {
                            session,
                            command,
                            run,
                        });
                    }
                    _ => {}
                },
                Err(_) => {
                    self.clients.remove(&session);
                    self.event(Event::SessionClosed { session });
                    return;
                }
            }
        }
    }

    /// With the tag that it should have.
    fn replica_answers(&mut self, who: usize, text: String) {
        let Some(id) = self.lane(who) else { return };
        let Some(lane) = self.lanes.get(&id) else {
            return;
        };
        let tag = format!("S{}", lane.answered);
        let answer = self.spoken[1].answer(tag.as_bytes(), text.into());
        self.replica_says(who, &answer.to_vec().expect("in memory"));
    }

    /// As `io::lane` and `io::replies` do it.
    fn replica_says(&mut self, who: usize, bytes: &[u8]) {
        let Some(id) = self.lane(who) else { return };
        let mut input = Bytes::copy_from_slice(bytes);
        while let Some(lane) = self.lanes.get_mut(&id) {
            match lane.reader.feed(&mut input) {
                Ok(None) if lane.in_flight == 0 && !lane.untagged.is_empty() => {
                    return self.lose(id, false);
                }
                Ok(None) => return,
                Ok(Some(Line::Untagged(line)))
                    if self.spoken[1] == Dialect::Imap
                        && matches!(&line.kind[..], b"OK" | b"NO" | b"BAD") =>
                {
                    if line.kind == "BAD" {
                        return self.lose(id, false);
                    }
                }
                Ok(Some(Line::Untagged(line))) => lane.untagged.push(line),
                Ok(Some(Line::Status(status))) if status.kind == StatusKind::Bye => {
                    return self.lose(id, true);
                }
                Ok(Some(Line::Status(status))) if lane.in_flight > 0 => {
                    lane.in_flight -= 1;
                    lane.answered += 1;
                    let untagged = std::mem::take(&mut lane.untagged);
                    let reply = Reply { untagged, status };
                    self.event(Event::LaneReply { lane: id, reply });
                }
                Ok(Some(_)) | Err(_) => return self.lose(id, false),
            }
        }
    }

    fn lose(&mut self, lane: LaneId, orderly: bool) {
        self.lanes.remove(&lane);
        self.event(Event::LaneLost {
            lane,
            why: "lost".to_owned(),
            orderly,
        });
    }

    /// A lane that is wanted is opened or refused.
    fn answer_the_door(&mut self, how: usize) {
        let waiting = self.lanes.iter_mut().find(|(_, lane)| !lane.open);
        let Some((&lane, found)) = waiting else {
            return;
        };
        if found.closing {
            return self.lose(lane, true);
        }
        if how % 4 == 3 {
            self.lanes.remove(&lane);
            let why = "refused".to_owned();
            return self.event(Event::LaneRefused { lane, why });
        }
        found.open = true;
        let enabled = match how % 4 {
            2 => None,
            _ => Some(found.pool.capabilities.clone()),
        };
        self.event(Event::LaneOpened { lane, enabled });
    }

    fn disk(&mut self, good: bool) {
        if self.disk.is_empty() {
            return;
        }
        let why = || "the disk is full".to_owned();
        let event = match self.disk.remove(0) {
            Action::LinkRun { run } if good && self.current_run() == Some(run) => {
                let mut coverage = Coverage::default();
                let mut reader = LineReader::new();
                let text = self.runs.last().cloned().unwrap_or_default();
                let mut text = Bytes::from(text);
                while let Ok(Some(item)) = reader.feed(&mut text) {
                    coverage.add(&item, &Site::default());
                }
                let coverage = Arc::new(coverage);
                Event::RunLinked { run, coverage }
            }
            Action::LinkRun { run } => Event::RunLinkFailed { run, why: why() },
            Action::WriteLines { batch, .. } if good => Event::LinesWritten { batch },
            Action::StoreOwed { batch, .. } if good => Event::OwedStored { batch },
            Action::WriteLines { batch, .. } | Action::StoreOwed { batch, .. } => {
                Event::DiskFailed { batch, why: why() }
            }
            _ => return,
        };
        self.event(event);
    }

    fn log_run(&mut self, input: &mut Input<'_>) {
        if self.has_run {
            let run = RunId(self.runs.len() as u64);
            self.has_run = false;
            return self.event(Event::RunGone { run });
        }
        let text = LOGGED[usize::from(input.or_zero()) % LOGGED.len()];
        self.runs.push(filled(text, input.or_zero()));
        self.has_run = true;
    }

    fn current_run(&self) -> Option<RunId> {
        self.has_run.then_some(RunId(self.runs.len() as u64))
    }

    fn event(&mut self, event: Event) {
        if self.drained {
            return;
        }
        self.core.handle(self.now, event);
        let mut answered = Vec::new();
        while let Some(action) = self.core.next_action() {
            if let Action::Answer { session, .. } = &action {
                answered.push(*session);
            }
            self.act(action);
        }
        let snapshot = self.core.snapshot();
        assert!(snapshot.staged_bytes <= self.limits.staged_bytes);
        assert!(snapshot.noted_bytes <= self.limits.noted_bytes + COMMAND);
        let lanes = snapshot.lanes_opening + snapshot.lanes_idle + snapshot.lanes_busy;
        assert!(lanes <= self.limits.lanes + self.limits.probation_lanes);
        for session in answered {
            self.read_on(session);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer { session, body } => {
                // One that is gone may have had its answer under way.
                if let Some(client) = self.clients.get_mut(&session) {
                    assert!(client.waits, "an answer that nobody waits for");
                    client.waits = false;
                    one_answer(&body);
                    tagged_answer(client.reader.tag(), &body);
                }
            }
            Action::EndSession { session, body } => {
                if let Some(client) = self.clients.remove(&session)
                    && !body.is_empty()
                {
                    one_answer(&body);
                    last_words(client.reader.tag(), &body);
                }
            }
            Action::OpenLane { lane, pool } => {
                let lane_of = Lane {
                    pool,
                    open: false,
                    closing: false,
                    in_flight: 0,
                    sent: 0,
                    answered: 0,
                    reader: ReplyReader::new(limits(false)).speaking(self.spoken[1]),
                    untagged: Vec::new(),
                };
                assert!(self.lanes.insert(lane, lane_of).is_none(), "an id again");
            }
            Action::Send { lane, body } => {
                let lane = self.lanes.get_mut(&lane).expect("a lane that is there");
                assert!(lane.open && !lane.closing);
                lane.in_flight += 1;
                one_command(&body);
                one_request(lane.sent, &body);
                lane.sent += 1;
            }
            Action::CloseLane { lane, polite } => {
                if let Some(lane) = self.lanes.get_mut(&lane) {
                    assert!(!polite || lane.in_flight == 0);
                    lane.closing = true;
                }
            }
            Action::LinkRun { .. } => self.disk.push(action),
            Action::WriteLines { ref lines, .. } | Action::StoreOwed { ref lines, .. } => {
                assert!(lines.iter().all(|line| line.check().is_ok()), "{lines:?}");
                self.disk.push(action);
            }
            Action::DropLink { .. } | Action::WatchLog { .. } | Action::Note(_) => {}
            Action::Drained => self.drained = true,
        }
    }

    /// Everybody behaves from now on: the drain ends, with nothing left.
    fn end(&mut self) {
        while let Some(session) = self.clients.keys().next().copied() {
            self.clients.remove(&session);
            self.event(Event::SessionClosed { session });
        }
        if !self.draining {
            self.draining = true;
            self.event(Event::Drain);
        }
        for round in 0.. {
            if self.drained {
                break;
            }
            assert!(
                round < 1000,
                "the drain does not end: {:?}",
                self.core.snapshot()
            );
            self.answer_the_door(0);
            let busy = self.lanes.iter().find(|(_, lane)| lane.open);
            let busy = busy.map(|(id, lane)| (*id, lane.closing, lane.in_flight));
            match busy {
                Some((id, true, _)) => self.lose(id, true),
                Some((id, false, n)) if n > 0 => {
                    let line = self
                        .lanes
                        .get(&id)
                        .is_some_and(|lane| lane.reader.mid_line());
                    if line {
                        self.lose(id, false);
                    } else {
                        self.replica_answers(0, "OK success\r\n".to_owned());
                    }
                }
                _ => {}
            }
            while !self.disk.is_empty() {
                self.disk(true);
            }
            self.now += Duration::from_millis(500);
            self.event(Event::Tick);
        }
        let left = self.core.snapshot();
        assert_eq!((left.sessions, left.staged_bytes), (0, 0));
        assert_eq!(left.noted_bytes, 0);
        assert_eq!((left.queued_bytes, left.unconfirmed_users), (0, 0));
    }
}

fn filled(text: &str, who: u8) -> String {
    let user = ["a", "b", "c", "d^d", "e@example.com"][usize::from(who) % 5];
    let user = match text.contains("user.@") && user.contains('@') {
        true => "e",
        false => user,
    };
    text.replace('@', user)
        .replace('#', &format!("{:040x}", who / 16 + 1))
}
