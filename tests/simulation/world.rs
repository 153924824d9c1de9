//! Everything around the core: clients, lanes, the disk, time, and what goes wrong.

mod checks;
mod clients;
mod counts;
mod end;
mod journal;
mod lanes;
mod master;

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use syncmux::core::{Action, Core, Event, LaneId, Limits, Mode, Note, RunId, SessionId, Setup};
use syncmux::io::sync_directory::{LookedAt, SyncDirectory};
use syncmux::protocol::Site;
use syncmux::protocol::synclog::Item;

use self::checks::{Ack, AckState};
pub(crate) use self::counts::Counts;
use super::client::{Client, Master, Wire};
use super::disk::{SharedDisk, State};
use super::replica::{Done, Process, Replica};

struct Endpoint {
    mode: Mode,
    /// It came by the listener of the rolling client.
    rolling: bool,
    wire: Rc<RefCell<Wire>>,
    future: Pin<Box<dyn Future<Output = ()>>>,
    session: Option<SessionId>,
    /// The command that waits for its answer, as sent.
    outstanding: Option<String>,
    /// Its number among all commands.
    number: u64,
}

pub(crate) struct World {
    random: fastrand::Rng,
    now: Duration,
    setup: Setup,
    core: Option<Core>,
    master: Rc<RefCell<Master>>,
    endpoints: Vec<Endpoint>,
    next_session: u64,
    replica: Replica,
    /// For the thread of the sync directory.
    orders: VecDeque<Action>,
    /// By that thread, and not heard of yet.
    told: VecDeque<Event>,
    directory: Option<SyncDirectory>,
    disk: SharedDisk,
    /// Links whose run was not seen to be gone.
    linked: BTreeSet<RunId>,
    /// Somebody else on the replica takes locks.
    locks: bool,
    /// The replica does nothing for a long time.
    hangs: bool,
    /// How far `log` has been read ahead, where that is wanted.
    looked: Option<LookedAt>,
    /// What was changed behind everybody's back, and not looked at since by the rolling client.
    tampered: BTreeSet<Bytes>,
    /// What was, in a run that began after that: it heals.
    must_heal: BTreeSet<Bytes>,
    /// The run seen last.
    last_run: Option<RunId>,
    /// The power is cut now and then.
    loses_power: bool,
    /// Cyrus has lost lines of its own, which nobody can bring back.
    cyrus_loses: bool,
    acks: Vec<Ack>,
    /// What the disk remembers, after so many changes of it.
    remembered: (u64, Vec<Item>),
    faults: bool,
    draining: bool,
    drained: bool,
    /// Commands of clients that vanished, with their numbers: one on a lane is carried on.
    orphans: Vec<(String, u64)>,
    traced: bool,
    /// The next answer goes out before the replica's.
    early: bool,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let named = random.bool();
        // Every other channel with a name has imapds that sync their own commits.
        let right_now = named && random.bool();
        let patience = Duration::from_millis(random.u64(20..3000));
        let limits = Limits {
            rightnow: right_now.then_some(patience),
            lanes: random.usize(1..5),
            unconfirmed_users: random.usize(1..8),
            queued_bytes: random.u64(100..5000),
            ask_bytes: random.u64(0..20),
            lane_staged_bytes: random.u64(0..40),
            known_bytes: [0, 3000, 64 << 20][random.usize(0..3)],
            ahead_requests: random.usize(0..4),
            ahead_names: random.usize(1..5),
            ..Limits::default()
        };
        let setup = Setup {
            named,
            sync_log: true,
            site: Site::default(),
            limits,
            seed,
        };
        let mut state = State::default();
        (state.links, state.ours) = (random.u8(0..4) > 0, random.bool());
        state.cyrus.between = Some(random.fork());
        let disk = SharedDisk::new(state);
        let loses_power = random.bool();
        // One world in four has no fan-out at all. A lock that sticks is the client's own
        // affair there.
        let mode = [Mode::Strict, Mode::FanOut][usize::from(random.u8(0..4) > 0)];
        let fan_out = mode == Mode::FanOut;
        let locks = random.bool() && fan_out;
        let master = Rc::new(RefCell::new(Master {
            disk: disk.clone(),
            ..Master::default()
        }));
        let mut endpoints = Vec::new();
        let imapds = if right_now { 2 } else { 0 };
        let imapds = std::iter::repeat_n((false, Mode::RightNow), imapds);
        let clients = [(true, mode), (false, Mode::Strict)].into_iter();
        for (rolls, mode) in clients.chain(imapds) {
            let wire = Rc::new(RefCell::new(Wire::default()));
            let client = Client {
                master: master.clone(),
                wire: wire.clone(),
                named,
                fan_out,
                capable: random.bool(),
                hurried: right_now,
            };
            let future: Pin<Box<dyn Future<Output = ()>>> = match (rolls, mode) {
                (true, _) => Box::pin(client.roll()),
                (false, Mode::RightNow) => Box::pin(client.commit()),
                (false, _) => Box::pin(client.visit()),
            };
            endpoints.push(Endpoint {
                mode,
                rolling: rolls || (mode != Mode::RightNow && seed.is_multiple_of(2)),
                wire,
                future,
                session: None,
                outstanding: None,
                number: 0,
            });
        }
        let mut world = World {
            now: Duration::from_secs(1),
            core: None,
            setup,
            random,
            master,
            endpoints,
            next_session: 0,
            replica: Replica::default(),
            orders: VecDeque::new(),
            told: VecDeque::new(),
            directory: None,
            disk,
            linked: BTreeSet::new(),
            locks,
            hangs: false,
            looked: None,
            tampered: BTreeSet::new(),
            must_heal: BTreeSet::new(),
            last_run: None,
            loses_power,
            cyrus_loses: false,
            acks: Vec::new(),
            remembered: (0, Vec::new()),
            faults: true,
            draining: false,
            drained: false,
            orphans: Vec::new(),
            traced: std::env::var("SYNCMUX_SEED").is_ok(),
            early: false,
            counts: Counts::default(),
        };
        world.start();
        world
    }

    pub(crate) fn run(&mut self) {
        let chance = |world: &mut World, max: u32| world.random.u32(0..max);
        let chances = (chance(self, 60), chance(self, 20), chance(self, 20));
        for step in 0..1500 {
            if step % 300 == 0 {
                self.replica.chances = if self.random.bool() {
                    chances
                } else {
                    (0, 0, 0)
                };
                let bad = format!("user.u{}", self.random.u8(0..5));
                self.replica.bad = (self.random.u8(0..4) == 0).then(|| bad.into());
                let bad = ["user.u1", "user.u3", "shared.a", "shared.b"][self.random.usize(0..4)];
                self.hangs = self.random.u8(0..5) == 0;
                self.replica.unreadable = (self.random.u8(0..3) == 0).then(|| bad.into());
            }
            self.step();
        }
        self.end();
    }

    fn step(&mut self) {
        self.poll_clients();
        match self.random.u32(0..116) {
            0..=3 if self.faults && self.locks && self.random.u8(0..4) == 0 => self.take_lock(),
            0..=3 if self.faults => self.change_master(),
            4..=33 => self.client_speaks(),
            34..=63 if self.hangs && self.faults && self.random.u8(0..60) > 0 => {}
            34..=63 => self.replica_works(),
            64..=79 => self.disk_works(),
            80..=84 => self.wake_clients(),
            88 if self.faults && self.random.u8(0..4) == 0 => {
                if let Some(name) = self.replica.tamper(&mut self.random) {
                    self.counts.tampered += 1;
                    self.must_heal.remove(&name);
                    self.tampered.insert(name);
                }
            }
            85..=88 => self.pass_time(),
            89 if self.faults && self.random.u8(0..6) == 0 => self.lane_breaks(),
            90 if self.faults && self.random.u8(0..8) == 0 => {
                let power = self.loses_power && self.random.bool();
                self.kill(power);
            }
            91..=93 => self.look_at_run(),
            94 if self.faults && self.random.u8(0..4) == 0 => self.vanish(),
            95 if self.faults && self.random.u8(0..8) == 0 && !self.draining => {
                self.draining = true;
                self.tell(Event::Drain);
            }
            96 if self.drained && self.orders.is_empty() && self.told.is_empty() => {
                self.counts.drains += 1;
                self.kill(false);
            }
            97 => self.disk.state().imapd_ends(),
            98..=99 => self.disk.state().client_unlinks(),
            100..=115 => {
                if let Some(event) = self.told.pop_front() {
                    self.tell(event);
                }
            }
            _ => {}
        }
        self.see_run();
        self.check();
    }

    fn run_now(&self) -> Option<RunId> {
        self.disk.state().inode("log-run").map(RunId)
    }

    fn pass_time(&mut self) {
        let deadline = self.core.as_ref().and_then(Core::deadline);
        let step = Duration::from_millis(self.random.u64(1..400));
        self.now = match deadline {
            // Waiting for the replica is not what takes the time, unless it is made to.
            Some(at) if self.replica.is_idle() || (self.faults && self.random.u8(0..8) == 0) => {
                self.now.max(at).max(self.now + step)
            }
            _ => self.now + step,
        };
        self.tell(Event::Tick);
    }

    /// `kill -9`, or a power loss, and a new start.
    fn kill(&mut self, power: bool) {
        self.counts.kills += 1;
        (self.draining, self.drained) = (false, false);
        self.orphans.clear();
        self.core = None;
        self.directory = None;
        self.orders.clear();
        self.told.clear();
        self.looked = None;
        let lanes: Vec<LaneId> = self.replica.processes.keys().copied().collect();
        for lane in lanes {
            for _ in 0..self.random.usize(0..4) {
                let done = self.replica.step(lane, self.now, &mut self.random);
                if matches!(done, Some(Done::Died)) {
                    break;
                }
            }
        }
        self.replica.processes.clear();
        for endpoint in &mut self.endpoints {
            let mut wire = endpoint.wire.borrow_mut();
            if endpoint.session.take().is_some() {
                wire.answers.push_back(None);
                wire.connected = false;
            }
            wire.command = None;
            endpoint.outstanding = None;
        }
        for ack in &mut self.acks {
            if ack.state != AckState::Done {
                ack.state = AckState::Failed;
            }
        }
        if power {
            self.lose_power();
        } else {
            self.disk.state().kill();
        }
        self.check();
        self.start();
    }

    fn tell(&mut self, event: Event) {
        self.trace(&event);
        if let Some(core) = &mut self.core {
            core.handle(self.now, event);
        }
        self.act();
    }

    /// `SYNCMUX_SEED` shows everything that happens.
    fn trace(&self, what: &dyn std::fmt::Debug) {
        if self.traced {
            let line = format!("{what:?}");
            eprintln!(
                "{:?} {}",
                self.now,
                line.chars().take(700).collect::<String>()
            );
        }
    }

    /// Carries out what the core asks.
    fn act(&mut self) {
        while let Some(action) = self.core.as_mut().and_then(Core::next_action) {
            self.trace(&action);
            match action {
                Action::Answer { session, body } => self.answered(session, &body, false),
                Action::EndSession { session, body } => self.answered(session, &body, true),
                Action::OpenLane { lane, pool } => {
                    let process = Process {
                        capabilities: pool.capabilities,
                        ..Process::default()
                    };
                    self.replica.processes.insert(lane, process);
                    let limits = &self.setup.limits;
                    let most = limits.lanes + limits.probation_lanes;
                    assert!(self.replica.processes.len() <= most, "too many lanes");
                }
                Action::Send { lane, body } => self.sent(lane, body),
                Action::CloseLane { lane, .. } => {
                    if self.replica.processes.contains_key(&lane) {
                        self.lose(lane);
                    }
                }
                Action::WatchLog { on } => self.looked = on.then(LookedAt::default),
                Action::Note(Note::Answered { early, .. }) => self.early = early,
                Action::Note(Note::PutOff { why, .. }) => {
                    self.counts.put_off += 1;
                    self.counts.not_waited += u64::from(why == "away");
                }
                Action::Note(Note::Healed { .. }) => self.counts.healed += 1,
                Action::Note(Note::Known { outcome, names }) => match outcome {
                    "hit" => self.counts.known_hits += names as u64,
                    "checked" => self.counts.known_checks += names as u64,
                    "miss" => self.counts.known_misses += names as u64,
                    "wrong" => self.counts.known_wrong += names as u64,
                    "ahead" => self.counts.users_ahead += names as u64,
                    _ => {}
                },
                // Also where it gives up after several lanes, which can't be seen from here.
                Action::Note(Note::Probation { subject, .. }) => self.fail(&subject),
                Action::Note(_) => {}
                Action::Drained => {
                    assert!(self.draining, "nobody asked for a drain");
                    let open = self.endpoints.iter().any(|one| one.session.is_some());
                    assert!(!open, "a session outlives the drain");
                    self.drained = true;
                }
                action => self.orders.push_back(action),
            }
        }
    }
}
