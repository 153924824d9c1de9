//! Feeds the core with commands as text and plays the replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{
    Action, Core, Event, Identity, LaneId, Limits, Mode, Note, Pool, RunId, SessionId, Setup,
};
use crate::protocol::synclog::{Coverage, LineReader};
use crate::protocol::{Body, CommandReader, ReaderLimits, Reply, ReplyReader, Site, reply_reader};

pub(super) const RUN: RunId = RunId(7);

/// A core and what it has done.
pub(super) struct Driver {
    pub(super) core: Core,
    pub(super) now: Duration,
    /// `log-run` as commands see it.
    pub(super) run: Option<RunId>,
    /// What that run says.
    pub(super) log: &'static str,
    pub(super) pools: BTreeMap<LaneId, Pool>,
    /// Requests without an answer.
    pub(super) sent: BTreeMap<LaneId, Vec<String>>,
    pub(super) answers: BTreeMap<SessionId, Vec<String>>,
    pub(super) ended: BTreeMap<SessionId, String>,
    pub(super) closing: Vec<LaneId>,
    /// What `io` was asked to do on disk, in words, as it came.
    pub(super) disk: Vec<String>,
    pub(super) notes: Vec<Note>,
    /// Lanes open by themselves, the disk does what it is asked.
    pub(super) smooth: bool,
    pub(super) drained: bool,
    /// `log` is looked at.
    pub(super) watching: bool,
    pending: Vec<Action>,
}

pub(super) fn limits() -> Limits {
    Limits {
        lanes: 4,
        ..Limits::default()
    }
}

pub(super) fn driver(limits: Limits, named: bool) -> Driver {
    let setup = Setup {
        named,
        site: Site::default(),
        limits,
        seed: 1,
    };
    Driver {
        core: Core::new(setup),
        now: Duration::from_secs(1),
        run: None,
        log: "",
        pools: BTreeMap::new(),
        sent: BTreeMap::new(),
        answers: BTreeMap::new(),
        ended: BTreeMap::new(),
        closing: Vec::new(),
        disk: Vec::new(),
        notes: Vec::new(),
        smooth: true,
        drained: false,
        watching: false,
        pending: Vec::new(),
    }
}

/// A rolling client whose run holds these lines.
pub(super) fn rolling(log: &'static str, named: bool) -> (Driver, SessionId) {
    let mut driver = driver(limits(), named);
    driver.run = Some(RUN);
    driver.log = log;
    let session = driver.open(1, Mode::FanOut);
    (driver, session)
}

/// A client on a strict listener.
pub(super) fn strict() -> (Driver, SessionId) {
    let mut driver = driver(limits(), false);
    let session = driver.open(1, Mode::Strict);
    (driver, session)
}

/// `APPLY MAILBOX` of a mailbox with one new message, or none.
pub(super) fn mailbox(name: &str, guid: Option<u8>) -> String {
    let record = guid.map(|guid| format!("%(UID 1 FLAGS () GUID {})", hex(guid)));
    format!(
        "APPLY MAILBOX %(UNIQUEID id MBOXNAME {name} LAST_UID 1 PARTITION default RECORD ({}))\r\n",
        record.unwrap_or_default()
    )
}

pub(super) fn message(guid: u8) -> String {
    format!("APPLY MESSAGE (%{{default {} 4}}\r\nbody)\r\n", hex(guid))
}

pub(super) fn hex(guid: u8) -> String {
    format!("{guid:040x}")
}

impl Driver {
    pub(super) fn open(&mut self, id: u64, mode: Mode) -> SessionId {
        self.open_by(id, mode, mode == Mode::FanOut)
    }

    /// A session by the rolling client's listener, or not.
    pub(super) fn open_by(&mut self, id: u64, mode: Mode, rolling: bool) -> SessionId {
        let session = SessionId(id);
        self.event(Event::SessionOpened {
            session,
            mode,
            rolling,
            identity: Identity::Configured,
        });
        session
    }

    pub(super) fn say(&mut self, session: SessionId, text: &str) {
        let mut reader = CommandReader::new(ReaderLimits::default());
        reader.set_authenticated(true);
        let mut input = Bytes::from(text.to_owned());
        let command = reader.feed(&mut input).unwrap().expect("a whole command");
        self.event(Event::Command {
            session,
            command,
            run: self.run,
        });
    }

    /// Says something and takes the answer, which must be there without the replica.
    pub(super) fn ask(&mut self, session: SessionId, text: &str) -> String {
        self.say(session, text);
        self.answer(session)
            .unwrap_or_else(|| panic!("no answer yet to {text}"))
    }

    pub(super) fn answer(&mut self, session: SessionId) -> Option<String> {
        let answers = self.answers.get_mut(&session)?;
        (!answers.is_empty()).then(|| answers.remove(0))
    }

    /// The replica answers the oldest request of a lane.
    pub(super) fn reply(&mut self, lane: LaneId, text: &str) {
        self.sent.get_mut(&lane).expect("a lane").remove(0);
        self.event(Event::LaneReply {
            lane,
            reply: reply(text),
        });
    }

    /// The lane whose oldest request begins like this.
    pub(super) fn lane_with(&self, start: &str) -> LaneId {
        let found = self
            .sent
            .iter()
            .find(|(_, sent)| sent.first().is_some_and(|first| first.starts_with(start)));
        *found
            .unwrap_or_else(|| panic!("{start} is not the oldest of {:?}", self.sent))
            .0
    }

    /// The replica answers the request that begins like this.
    pub(super) fn reply_to(&mut self, start: &str, text: &str) {
        let lane = self.lane_with(start);
        self.reply(lane, text);
    }

    /// Everything on lanes, in the order of lanes.
    pub(super) fn on_lanes(&self) -> Vec<&str> {
        self.sent.values().flatten().map(String::as_str).collect()
    }

    /// How many requests that begin like this are on lanes.
    pub(super) fn count(&self, start: &str) -> usize {
        self.on_lanes()
            .iter()
            .filter(|sent| sent.starts_with(start))
            .count()
    }

    pub(super) fn lose(&mut self, lane: LaneId) {
        self.sent.remove(&lane);
        self.pools.remove(&lane);
        self.event(Event::LaneLost {
            lane,
            why: "gone".into(),
            orderly: false,
        });
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    /// Lets the core's own deadlines come until a request that begins like this is on a lane.
    pub(super) fn wait_for(&mut self, start: &str) {
        for _ in 0..20 {
            if self.count(start) > 0 {
                return;
            }
            let deadline = self.core.deadline().expect("something to wait for");
            self.pass(deadline.saturating_sub(self.now));
        }
        panic!("{start} does not come again");
    }

    pub(super) fn event(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(action) = self.core.next_action() {
            self.act(action);
        }
        while self.smooth && !self.pending.is_empty() {
            let action = self.pending.remove(0);
            self.carry_out(&action);
        }
    }

    /// Does what was put off while not `smooth`.
    pub(super) fn catch_up(&mut self) {
        self.smooth = true;
        self.event(Event::Tick);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer { session, body } => {
                self.answers.entry(session).or_default().push(text(&body));
            }
            Action::EndSession { session, body } => drop(self.ended.insert(session, text(&body))),
            Action::Send { lane, body } => self.sent.entry(lane).or_default().push(text(&body)),
            Action::CloseLane { lane, .. } => self.closing.push(lane),
            Action::Note(note) => self.notes.push(note),
            Action::WatchLog { on } => self.watching = on,
            Action::Drained => self.drained = true,
            Action::DropLink { .. } => self.disk.push("drop link".into()),
            Action::OpenLane { lane, ref pool } => {
                self.pools.insert(lane, pool.clone());
                self.pending.push(action);
            }
            Action::LinkRun { .. } | Action::WriteLines { .. } | Action::StoreOwed { .. } => {
                self.disk.push(match &action {
                    Action::LinkRun { .. } => "link".into(),
                    Action::WriteLines { lines, .. } => format!("write {lines:?}"),
                    Action::StoreOwed { lines, .. } => format!("owe {lines:?}"),
                    _ => unreachable!(),
                });
                self.pending.push(action);
            }
        }
    }

    fn carry_out(&mut self, action: &Action) {
        let event = match action {
            Action::OpenLane { lane, pool } => {
                self.sent.entry(*lane).or_default();
                Event::LaneOpened {
                    lane: *lane,
                    enabled: Some(pool.capabilities.clone()),
                }
            }
            Action::LinkRun { run } => Event::RunLinked {
                run: *run,
                coverage: Arc::new(coverage(self.log)),
            },
            Action::WriteLines { batch, .. } => Event::LinesWritten { batch: *batch },
            Action::StoreOwed { batch, .. } => Event::OwedStored { batch: *batch },
            other => panic!("{other:?}"),
        };
        self.event(event);
    }
}

pub(super) fn coverage(log: &'static str) -> Coverage {
    let mut coverage = Coverage::default();
    let mut reader = LineReader::new();
    let mut input = Bytes::from_static(log.as_bytes());
    while let Some(item) = reader.feed(&mut input).unwrap() {
        coverage.add(&item, &Site::default());
    }
    coverage
}

fn reply(text: &str) -> Reply {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let mut input = Bytes::from(text.to_owned());
    let mut untagged = Vec::new();
    loop {
        match reader.feed(&mut input).unwrap().expect("a whole reply") {
            reply_reader::Line::Untagged(line) => untagged.push(line),
            reply_reader::Line::Status(status) => return Reply { untagged, status },
            other => panic!("{other:?}"),
        }
    }
}

fn text(body: &Body) -> String {
    String::from_utf8(body.to_vec().unwrap()).unwrap()
}
