//! Feeds the core with commands as text and plays the replica.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::words::{CAPABILITIES, OK};
use crate::core::{
    Action, Core, Event, Identity, LaneId, Limits, Mode, Note, Pool, RunId, SessionId, Setup,
};
use crate::protocol::synclog::{Coverage, LineReader, Named};
use crate::protocol::{
    Body, Command, CommandReader, Kind, ReaderLimits, Reply, ReplyReader, Site, reply_reader,
};

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
    /// Lanes that are asked for and not open yet, and whether they open by themselves.
    pub(super) opening: Vec<LaneId>,
    pub(super) lanes_open: bool,
    /// Lanes that the core wants closed; `close_lanes` does it.
    pub(super) closing: Vec<LaneId>,
    /// What `io` was asked to do on disk, in words, as it came.
    pub(super) disk: Vec<String>,
    /// What of it is not done yet, and whether the disk does everything by itself.
    pub(super) orders: VecDeque<Action>,
    pub(super) disk_works: bool,
    pub(super) notes: Vec<Note>,
    pub(super) drained: bool,
    /// `log` is looked at.
    pub(super) watching: bool,
}

pub(super) fn limits() -> Limits {
    Limits {
        lanes: 4,
        ..Limits::default()
    }
}

pub(super) fn driver(limits: Limits, named: bool) -> Driver {
    driver_of(limits, named, false)
}

/// `sync_log` tells whether there is one: that concerns strict mode alone.
pub(super) fn driver_of(limits: Limits, named: bool, sync_log: bool) -> Driver {
    let setup = Setup {
        named,
        sync_log,
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
        opening: Vec::new(),
        lanes_open: true,
        closing: Vec::new(),
        disk: Vec::new(),
        orders: VecDeque::new(),
        disk_works: true,
        notes: Vec::new(),
        drained: false,
        watching: false,
    }
}

/// A rolling client whose run holds these lines.
pub(super) fn rolling(log: &'static str, named: bool) -> (Driver, SessionId) {
    rolling_within(limits(), log, named)
}

pub(super) fn rolling_within(
    limits: Limits,
    log: &'static str,
    named: bool,
) -> (Driver, SessionId) {
    let mut driver = driver(limits, named);
    driver.run = Some(RUN);
    driver.log = log;
    let session = driver.open(1, Mode::FanOut);
    (driver, session)
}

/// A client on a strict listener.
pub(super) fn strict() -> (Driver, SessionId) {
    strict_within(limits())
}

pub(super) fn strict_within(limits: Limits) -> (Driver, SessionId) {
    let mut driver = driver(limits, false);
    let session = driver.open(1, Mode::Strict);
    (driver, session)
}

/// Limits under which all must share one lane.
pub(super) fn one_lane() -> Limits {
    Limits {
        lanes: 1,
        ..limits()
    }
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

    /// A session that asks for capabilities, as those of 3.6 and later do.
    pub(super) fn capable(&mut self, id: u64, mode: Mode, rolling: bool) -> SessionId {
        let session = self.open_by(id, mode, rolling);
        self.say(session, CAPABILITIES);
        self.answer(session).expect("an answer");
        session
    }

    /// `log` names these mailboxes.
    pub(super) fn log_names<T: Into<Bytes>>(&mut self, names: impl IntoIterator<Item = T>) {
        let mailboxes = names.into_iter().map(Into::into).collect();
        let users = Vec::new();
        let named = Named { mailboxes, users };
        self.event(Event::LogNames { named });
    }

    /// `log` names this user.
    pub(super) fn log_user(&mut self, user: &'static str) {
        let (mailboxes, users) = (Vec::new(), vec![user.into()]);
        let named = Named { mailboxes, users };
        self.event(Event::LogNames { named });
    }

    /// Each of these asks for a user of its own.
    pub(super) fn all_ask(&mut self, sessions: &[SessionId]) {
        for s in sessions {
            self.say(*s, &format!("GET USER u{}\r\n", s.0));
        }
    }

    /// The replica says OK to the oldest request of the first lane that has one, and those of these
    /// sessions that were answered ask anew.
    pub(super) fn turn(&mut self, sessions: &[SessionId]) {
        let oldest = self.on_lanes()[0].to_owned();
        self.reply_to(&oldest, OK);
        self.ask_anew(sessions);
    }

    /// Those of these sessions that were answered ask anew.
    pub(super) fn ask_anew(&mut self, sessions: &[SessionId]) {
        for s in sessions {
            if self.answer(*s).is_some() {
                self.all_ask(&[*s]);
            }
        }
    }

    /// The lane on which a request stands that begins like this, wherever.
    pub(super) fn lane_of(&self, start: &str) -> LaneId {
        let stands = |sent: &Vec<String>| sent.iter().any(|text| text.starts_with(start));
        let mut lanes = self.sent.iter().filter(|(_, sent)| stands(sent));
        *lanes.next().expect("it was sent").0
    }

    /// How many mailboxes are opened before the request that begins like this.
    pub(super) fn mailboxes_before(&self, start: &str) -> usize {
        let sent = self.sent[&self.lane_of(start)].iter();
        let before = sent.take_while(|text| !text.starts_with(start));
        before.map(|text| text.split(' ').count() - 2).sum()
    }

    /// Lanes on which something is in flight.
    pub(super) fn busy_lanes(&self) -> Vec<LaneId> {
        let busy = self.sent.iter().filter(|(_, sent)| !sent.is_empty());
        busy.map(|(lane, _)| *lane).collect()
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

    /// Something came for which `io` found no room.
    pub(super) fn bad(&mut self, session: SessionId) {
        let answer = "NO no room".to_owned();
        let command = Command {
            kind: Kind::Bad { answer },
            raw: Body::new(),
        };
        let run = self.run;
        self.event(Event::Command {
            session,
            command,
            run,
        });
    }

    /// Says something and takes the answer, which must be there without the replica.
    pub(super) fn ask(&mut self, session: SessionId, text: &str) -> String {
        self.say(session, text);
        self.answer(session)
            .unwrap_or_else(|| panic!("no answer yet to {text}"))
    }

    /// Asks, and the replica answers that it has nothing.
    pub(super) fn get(&mut self, session: SessionId, text: &str) {
        self.say(session, text);
        while self.count("GET") > 0 {
            self.reply_to("GET", OK);
        }
        assert_eq!(self.answer(session).unwrap(), OK);
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

    /// The replica answers OK to everything, and to what follows from it.
    pub(super) fn all_ok(&mut self) {
        while let Some(oldest) = self.on_lanes().first().map(|text| (*text).to_owned()) {
            self.reply_to(&oldest, OK);
        }
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
        self.lane_ends(lane, "gone", false);
    }

    /// The lanes that the core wants closed end.
    pub(super) fn close_lanes(&mut self) {
        for lane in std::mem::take(&mut self.closing) {
            self.lane_ends(lane, "closed", true);
        }
    }

    fn lane_ends(&mut self, lane: LaneId, why: &str, orderly: bool) {
        self.sent.remove(&lane);
        self.pools.remove(&lane);
        self.closing.retain(|other| *other != lane);
        let why = why.into();
        self.event(Event::LaneLost { lane, why, orderly });
    }

    /// None of the lanes that are asked for can be opened.
    pub(super) fn refuse_lanes(&mut self) {
        while !self.opening.is_empty() {
            let lane = self.opening.remove(0);
            self.pools.remove(&lane);
            let why = "refused".into();
            self.event(Event::LaneRefused { lane, why });
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    /// Lets the core's own next deadline come.
    pub(super) fn wait(&mut self) {
        let deadline = self.core.deadline().expect("something to wait for");
        self.pass(deadline.saturating_sub(self.now));
    }

    /// Lets the core's own deadlines come until a request that begins like this is on a lane.
    pub(super) fn wait_for(&mut self, start: &str) {
        for _ in 0..20 {
            if self.count(start) > 0 {
                return;
            }
            self.wait();
        }
        panic!("{start} does not come again");
    }

    /// The client has done its run and unlinks it.
    pub(super) fn end_run(&mut self) {
        let run = self.run.take().expect("a run");
        self.event(Event::RunGone { run });
    }

    pub(super) fn event(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(action) = self.core.next_action() {
            self.act(action);
        }
        while self.lanes_open && !self.opening.is_empty() {
            self.open_lane();
        }
        while self.disk_works && !self.orders.is_empty() {
            self.disk_does();
        }
    }

    /// Lanes open and the disk works again, and what was put off is done.
    pub(super) fn catch_up(&mut self) {
        (self.lanes_open, self.disk_works) = (true, true);
        self.event(Event::Tick);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Answer { session, body } => {
                self.answers.entry(session).or_default().push(text(&body));
            }
            Action::EndSession { session, body } => drop(self.ended.insert(session, text(&body))),
            Action::Send { lane, body } => {
                self.sent
                    .get_mut(&lane)
                    .expect("an open lane")
                    .push(text(&body));
            }
            Action::CloseLane { lane, polite } => {
                let idle = self.sent.get(&lane).is_none_or(Vec::is_empty);
                assert!(idle || !polite, "EXIT behind a request");
                self.closing.push(lane);
            }
            Action::Note(note) => self.notes.push(note),
            Action::WatchLog { on } => self.watching = on,
            Action::Drained => self.drained = true,
            Action::DropLink { .. } => self.disk.push("drop link".into()),
            Action::OpenLane { lane, pool } => {
                self.pools.insert(lane, pool);
                self.opening.push(lane);
            }
            Action::LinkRun { .. } => self.order("link".into(), action),
            Action::WriteLines { ref lines, .. } => self.order(format!("write {lines:?}"), action),
            Action::StoreOwed { ref lines, .. } => self.order(format!("owe {lines:?}"), action),
        }
    }

    fn order(&mut self, words: String, action: Action) {
        self.disk.push(words);
        self.orders.push_back(action);
    }

    fn open_lane(&mut self) {
        let lane = self.opening.remove(0);
        self.sent.insert(lane, Vec::new());
        let enabled = Some(self.pools[&lane].capabilities.clone());
        self.event(Event::LaneOpened { lane, enabled });
    }

    /// The disk does the oldest of what it was asked.
    pub(super) fn disk_does(&mut self) {
        let event = match self.orders.pop_front().expect("something to do") {
            Action::LinkRun { run } => Event::RunLinked {
                run,
                coverage: Arc::new(coverage(self.log)),
            },
            Action::WriteLines { batch, .. } => Event::LinesWritten { batch },
            Action::StoreOwed { batch, .. } => Event::OwedStored { batch },
            other => panic!("{other:?}"),
        };
        self.event(event);
    }

    /// The oldest of what the disk was asked fails.
    pub(super) fn disk_fails(&mut self) {
        let why = "full".into();
        let event = match self.orders.pop_front().expect("something to do") {
            Action::LinkRun { run } => Event::RunLinkFailed { run, why },
            Action::WriteLines { batch, .. } | Action::StoreOwed { batch, .. } => {
                Event::DiskFailed { batch, why }
            }
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
