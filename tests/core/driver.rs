//! A core with a replica, a disk and clients that do what a test says, step by step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use syncmux::core::{
    Action, Core, Event, Identity, LaneId, Limits, Mode, Pool, RunId, SessionId, Setup,
};
use syncmux::protocol::reply_reader::Line as ReplyLine;
use syncmux::protocol::synclog::{Coverage, LineReader};
use syncmux::protocol::{Body, CommandReader, ReaderLimits, Reply, ReplyReader, Site};

/// A lane as the replica sees it.
pub(crate) struct Lane {
    pub(crate) pool: Pool,
    pub(crate) requests: VecDeque<String>,
    pub(crate) closing: bool,
}

pub(crate) struct Driver {
    pub(crate) core: Core,
    pub(crate) now: Duration,
    pub(crate) lanes: BTreeMap<LaneId, Lane>,
    answers: BTreeMap<SessionId, VecDeque<String>>,
    pub(crate) ended: Vec<SessionId>,
    sessions: u64,
    /// Inode and lines of `log-run`.
    pub(crate) run: Option<(u64, String)>,
    pub(crate) links: Vec<u64>,
    pub(crate) log: Vec<String>,
    pub(crate) owed: Vec<String>,
    pub(crate) disk: VecDeque<Action>,
    /// The disk does at once what it is asked.
    pub(crate) disk_works: bool,
    /// Lanes open at once.
    pub(crate) lanes_open: bool,
    pub(crate) opening: Vec<LaneId>,
    pub(crate) drained: bool,
}

pub(crate) fn message(n: u32) -> String {
    format!("{n:040x}")
}

/// One APPLY MESSAGE element.
pub(crate) fn file(n: u32) -> String {
    format!("%{{default {} 4}}\r\nbody", message(n))
}

/// An APPLY MAILBOX with these messages as RECORDs.
pub(crate) fn mailbox(name: &str, messages: &[u32]) -> String {
    let record = |n: &u32| format!("%(UID {n} MODSEQ {n} FLAGS () GUID {})", message(*n));
    let records: Vec<String> = messages.iter().map(record).collect();
    format!(
        "APPLY MAILBOX %(UNIQUEID id MBOXNAME {name} LAST_UID 9 HIGHESTMODSEQ 9 PARTITION default RECORD ({}))",
        records.join(" ")
    )
}

fn reply(text: &str) -> Reply {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let mut input = Bytes::from(text.to_owned());
    let mut untagged = Vec::new();
    loop {
        match reader.feed(&mut input).unwrap().expect("a whole reply") {
            ReplyLine::Untagged(line) => untagged.push(line),
            ReplyLine::Status(status) => return Reply { untagged, status },
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn text(body: &Body) -> String {
    String::from_utf8(body.to_vec().unwrap()).unwrap()
}

fn print(lines: &[syncmux::protocol::synclog::Line]) -> Vec<String> {
    let print = |line: &syncmux::protocol::synclog::Line| {
        let mut out = Vec::new();
        line.print(&mut out).unwrap();
        String::from_utf8(out).unwrap().trim_end().to_owned()
    };
    lines.iter().map(print).collect()
}

impl Driver {
    pub(crate) fn new(named: bool, limits: Limits) -> Self {
        Driver {
            core: Core::new(Setup {
                named,
                site: Site::default(),
                limits,
                seed: 1,
            }),
            now: Duration::from_secs(1),
            lanes: BTreeMap::new(),
            answers: BTreeMap::new(),
            ended: Vec::new(),
            sessions: 0,
            run: None,
            links: Vec::new(),
            log: Vec::new(),
            owed: Vec::new(),
            disk: VecDeque::new(),
            disk_works: true,
            lanes_open: true,
            opening: Vec::new(),
            drained: false,
        }
    }

    pub(crate) fn session(&mut self, mode: Mode) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let identity = Identity::Configured;
        self.tell(Event::SessionOpened {
            session,
            mode,
            rolling: mode == Mode::FanOut,
            identity,
        });
        session
    }

    /// A session sends a command; its line end is added.
    pub(crate) fn say(&mut self, session: SessionId, command: &str) {
        let mut reader = CommandReader::new(ReaderLimits::default());
        reader.set_authenticated(true);
        let mut input = Bytes::from(format!("{command}\r\n"));
        let command = reader.feed(&mut input).unwrap().expect("a whole command");
        let run = self.run.as_ref().map(|(inode, _)| RunId(*inode));
        self.tell(Event::Command {
            session,
            command,
            run,
        });
    }

    /// The next answer, which must be there.
    pub(crate) fn heard(&mut self, session: SessionId) -> String {
        let answers = self.answers.get_mut(&session);
        let answer = answers.and_then(VecDeque::pop_front);
        answer.unwrap_or_else(|| panic!("{session:?} has no answer; on lanes: {:?}", self.sent()))
    }

    pub(crate) fn waits(&self, session: SessionId) -> bool {
        self.answers.get(&session).is_none_or(VecDeque::is_empty)
    }

    pub(crate) fn ask(&mut self, session: SessionId, command: &str) -> String {
        self.say(session, command);
        self.heard(session)
    }

    /// All requests without an answer.
    pub(crate) fn sent(&self) -> Vec<(LaneId, String)> {
        let all = self.lanes.iter();
        all.flat_map(|(id, lane)| lane.requests.iter().map(|text| (*id, text.clone())))
            .collect()
    }

    /// The lane on which a request that begins like this waits, which must be there.
    pub(crate) fn lane_of(&self, begin: &str) -> LaneId {
        let sent = self.sent();
        let found = sent.iter().find(|(_, text)| text.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin} not in {sent:?}")).0
    }

    /// Answers the oldest request of a lane.
    pub(crate) fn reply(&mut self, lane: LaneId, text: &str) -> String {
        let requests = &mut self.lanes.get_mut(&lane).unwrap().requests;
        let request = requests.pop_front().expect("a request");
        let reply = reply(&format!("{text}\r\n"));
        self.tell(Event::LaneReply { lane, reply });
        request
    }

    /// Answers OK to everything that is asked, and to what follows from it.
    pub(crate) fn all_ok(&mut self) {
        while let Some((lane, _)) = self.sent().first().cloned() {
            self.reply(lane, "OK success");
        }
    }

    pub(crate) fn lose(&mut self, lane: LaneId) {
        self.lanes.remove(&lane);
        let why = "end of file".into();
        self.tell(Event::LaneLost {
            lane,
            why,
            orderly: false,
        });
    }

    pub(crate) fn refuse(&mut self, lane: LaneId) {
        self.lanes.remove(&lane);
        self.opening.retain(|other| *other != lane);
        let why = "refused".into();
        self.tell(Event::LaneRefused { lane, why });
    }

    pub(crate) fn lane_opens(&mut self, lane: LaneId) {
        self.opening.retain(|other| *other != lane);
        let enabled = Some(self.lanes[&lane].pool.capabilities.clone());
        self.tell(Event::LaneOpened { lane, enabled });
    }

    /// The client begins a run of these lines.
    pub(crate) fn begin_run(&mut self, inode: u64, lines: &str) {
        self.run = Some((inode, format!("{lines}\n")));
    }

    pub(crate) fn end_run(&mut self) {
        let (inode, _) = self.run.take().unwrap();
        self.tell(Event::RunGone { run: RunId(inode) });
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tell(Event::Tick);
    }

    /// The disk does the oldest thing that it was asked, or fails.
    pub(crate) fn disk(&mut self, works: bool) {
        let action = self.disk.pop_front().expect("something for the disk");
        let why = "no space".to_owned();
        let event = match action {
            Action::LinkRun { run } if !works => Event::RunLinkFailed { run, why },
            Action::WriteLines { batch, .. } | Action::StoreOwed { batch, .. } if !works => {
                Event::DiskFailed { batch, why }
            }
            Action::LinkRun { run } => {
                let mut coverage = Coverage::default();
                let mut reader = LineReader::new();
                let lines = self.run.as_ref().filter(|(inode, _)| *inode == run.0);
                let mut input = Bytes::from(lines.expect("log-run").1.clone());
                while let Some(item) = reader.feed(&mut input).unwrap() {
                    coverage.add(&item, &Site::default());
                }
                self.links.push(run.0);
                let coverage = Arc::new(coverage);
                Event::RunLinked { run, coverage }
            }
            Action::DropLink { run } => {
                self.links.retain(|inode| *inode != run.0);
                return;
            }
            Action::WriteLines { batch, lines } => {
                self.log.extend(print(&lines));
                Event::LinesWritten { batch }
            }
            Action::StoreOwed { batch, lines } => {
                self.owed = print(&lines);
                Event::OwedStored { batch }
            }
            other => panic!("not for the disk: {other:?}"),
        };
        self.tell(event);
    }

    /// Whether a link is to be dropped.
    pub(crate) fn drops_links(&self) -> bool {
        let drops = |action: &Action| matches!(action, Action::DropLink { .. });
        self.disk.iter().any(drops)
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Answer { session, body } => {
                    self.answers
                        .entry(session)
                        .or_default()
                        .push_back(text(&body));
                }
                Action::EndSession { session, body } => {
                    self.answers
                        .entry(session)
                        .or_default()
                        .push_back(text(&body));
                    self.ended.push(session);
                }
                Action::OpenLane { lane, pool } => {
                    let new = Lane {
                        pool,
                        requests: VecDeque::new(),
                        closing: false,
                    };
                    self.lanes.insert(lane, new);
                    self.opening.push(lane);
                }
                Action::Send { lane, body } => {
                    let lane = self.lanes.get_mut(&lane).expect("a lane");
                    lane.requests.push_back(text(&body).trim_end().to_owned());
                }
                Action::CloseLane { lane, polite } => {
                    let lane = self.lanes.get_mut(&lane).expect("a lane");
                    assert!(!polite || lane.requests.is_empty());
                    lane.closing = true;
                }
                Action::Note(_) | Action::WatchLog { .. } => {}
                Action::Drained => self.drained = true,
                action => self.disk.push_back(action),
            }
        }
        let closing = |(id, lane): (&LaneId, &Lane)| lane.closing.then_some(*id);
        if let Some(lane) = self.lanes.iter().find_map(closing) {
            self.lanes.remove(&lane);
            let why = "closed".into();
            let orderly = true;
            return self.tell(Event::LaneLost { lane, why, orderly });
        }
        if let (true, Some(lane)) = (self.lanes_open, self.opening.first().copied()) {
            return self.lane_opens(lane);
        }
        if self.disk_works && !self.disk.is_empty() {
            self.disk(true);
        }
    }

    /// A rolling client's session in a run of these lines, lanes and link ready.
    pub(crate) fn rolling(&mut self, lines: &str) -> SessionId {
        self.begin_run(7, lines);
        self.session(Mode::FanOut)
    }

    /// GET MAILBOXES, answered empty.
    pub(crate) fn asks_about(&mut self, session: SessionId, names: &str) {
        self.say(session, &format!("GET MAILBOXES ({names})"));
        self.all_ok();
        assert_eq!(self.heard(session), "OK success\r\n");
    }
}
