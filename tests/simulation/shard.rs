//! `syncmux shard` by seeds: a master that logs, clients that take, defer, die and come back, syncmux
//! shard killed before any system call, power that goes, calls that fail, and another number of shards
//! after a restart. An imapd may hold the lock of the log over its rename, and the clients go through a
//! fan-out syncmux, which keeps lines of its own in their folders and dies with them. The sync directory's own code runs over simulated disks, one for each folder.
//!
//! What must hold:
//! - no line is lost: each is executed after it was logged;
//! - the lines of a user are begun in the order in which they were logged;
//! - no user has unfinished lines in two folders, at any moment.
//!
//! `SYNCMUX_SEEDS=N` runs N seeds instead of 2,000, `SYNCMUX_SEED=K` only that one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use syncmux::core::shard::Way;
use syncmux::io::shard::{Clients, How, Sharder};
use syncmux::io::sync_directory::SyncDirectory;
use syncmux::protocol::synclog::{Item, ItemKind};
use syncmux::protocol::{Site, UserKey};

use crate::disk::{SharedDisk, State, Write, lines_put_back};

const FOLDERS: usize = 5;
const USERS: u32 = 5;

/// Of a fan-out syncmux.
const OWED: &str = "syncmux-owed";

type Keys = Vec<UserKey>;

#[derive(Debug)]
struct Logged {
    text: String,
    keys: Keys,
    begun: bool,
    done: bool,
    /// Cyrus itself has lost it, or may have.
    excused: bool,
    deferred: bool,
}

#[derive(Debug, Default)]
struct Client {
    lives: bool,
    /// It was started and has not looked at `log-run` yet.
    fresh: bool,
    /// What it has read of its run and not done yet.
    todo: Option<Vec<usize>>,
    retired: bool,
}

#[derive(Debug)]
struct World {
    random: fastrand::Rng,
    main: SharedDisk,
    folders: Vec<SharedDisk>,
    clients: Vec<Client>,
    logged: Vec<Logged>,
    /// The next line is glued to a torn one.
    glued: bool,
    /// An imapd that has the lock may not have written this one.
    locked: Option<usize>,
    /// So many more lines are logged.
    left: usize,
    /// Calls until syncmux dies.
    fuse: Option<u32>,
    dead: bool,
    faults: bool,
    /// Nothing bad happens any more.
    calm: bool,
    counts: Counts,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    lines: usize,
    two_users: usize,
    kills: usize,
    power_losses: usize,
    faults: usize,
    clients_died: usize,
    deferred: usize,
    changes: usize,
    owed: usize,
    held: usize,
    excused: usize,
}

/// What the name of a line's first mailbox, or its second word, says: the number of the line.
fn number(item: &Item) -> Option<usize> {
    let name = match item.kind {
        ItemKind::Seen => item.second.as_ref()?,
        _ => &item.first,
    };
    let text = std::str::from_utf8(name).ok()?;
    text.rsplit('.').next()?.parse().ok()
}

fn unfinished(state: &State) -> Vec<Item> {
    let names = ["log-run", "syncmux-back", "log", OWED];
    let texts = names.iter().filter_map(|name| state.read(name));
    texts.flat_map(lines_put_back).collect()
}

/// What happens, where one seed is looked at.
macro_rules! say {
    ($($what:tt)*) => {
        if std::env::var_os("SYNCMUX_SEED").is_some() {
            println!($($what)*);
        }
    };
}

// Behind the macro, which it uses.
mod watched;

use watched::Watched;

impl Client {
    fn dies(&mut self) {
        *self = Client {
            retired: self.retired,
            ..Client::default()
        };
    }
}

impl World {
    fn numbers(&self, items: &[Item]) -> Vec<usize> {
        let known = |item: &Item| {
            let number = number(item)?;
            let line = self.logged.get(number)?;
            // A torn line may have another's number.
            let mut text = Vec::new();
            item.print(&mut text).ok()?;
            (text.strip_suffix(b"\n")? == line.text.as_bytes()).then_some(number)
        };
        items.iter().filter_map(known).collect()
    }

    fn log(&mut self) {
        if self.left == 0 {
            return;
        }
        let number = self.logged.len();
        let user = self.random.u32(..USERS);
        let other = (user + 1 + self.random.u32(..USERS - 1)) % USERS;
        let site = Site::default();
        let key = |user: u32| site.key_of_user(format!("u{user}").as_bytes());
        let (text, keys) = match self.random.u8(..12) {
            0 => (
                format!("RENAME user.u{user}.{number} user.u{other}.{number}"),
                vec![key(user), key(other)],
            ),
            1 => (
                format!("DOUBLEMAILBOX user.u{user}.{number} user.u{other}.{number}"),
                vec![key(user), key(other)],
            ),
            2 => (
                format!("DOUBLEMAILBOX user.u{user}.{number} shared.{number}"),
                vec![key(user), UserKey::shared()],
            ),
            3 => (format!("MAILBOX shared.{number}"), vec![UserKey::shared()]),
            4 => (format!("SEEN u{user} id.{number}"), vec![key(user)]),
            5 => (
                format!("RENAME user.u{user}.{number} user.u{user}.x.{number}"),
                vec![key(user)],
            ),
            _ => (format!("APPEND user.u{user}.{number}"), vec![key(user)]),
        };
        let torn = !self.calm && self.random.u8(..60) == 0;
        let how = if torn { Write::Torn } else { Write::Whole };
        let mut disk = self.main.state();
        if !disk.imapd_begins(&text, how) {
            return;
        }
        self.locked = None;
        if self.calm || self.random.u8(..3) > 0 {
            disk.imapd_ends();
        } else {
            self.locked = Some(number);
        }
        drop(disk);
        self.left -= 1;
        self.counts.lines += 1;
        self.counts.two_users += usize::from(keys.len() > 1);
        let glued = std::mem::replace(&mut self.glued, torn);
        let excused = torn || glued;
        say!(
            "logged {text} {how:?}{}",
            if excused { ", excused" } else { "" }
        );
        self.logged.push(Logged {
            text,
            keys,
            begun: false,
            done: false,
            excused,
            deferred: false,
        });
    }

    /// A client does something.
    fn client(&mut self, at: usize) {
        let random = &mut self.random;
        let client = &mut self.clients[at];
        if !client.lives {
            if !client.retired && (self.calm || random.u8(..3) == 0) {
                client.lives = true;
                client.fresh = true;
            }
            return;
        }
        if !self.calm && random.u8(..40) == 0 {
            client.dies();
            self.counts.clients_died += 1;
            say!("client {at} dies");
            return;
        }
        let owed = self.folders[at].state().read(OWED).map(lines_put_back);
        if let Some(owed) = owed.filter(|_| random.u8(..4) == 0) {
            let back = !self.calm && random.bool();
            return self.owed(at, &owed, back);
        }
        let Some(todo) = &mut client.todo else {
            let again = std::mem::take(&mut client.fresh);
            let run = self.folders[at].state().client_run(again);
            if let Some(items) = run {
                let todo = self.numbers(&items);
                say!("client {at} begins {todo:?}");
                self.begins(&todo);
                self.clients[at].todo = Some(todo);
            }
            return;
        };
        let Some(number) = todo.last().copied() else {
            let mut disk = self.folders[at].state();
            disk.cyrus.unlinks = true;
            disk.client_unlinks();
            client.todo = None;
            say!("client {at} unlinks its run");
            return;
        };
        if !self.calm && random.u8(..8) == 0 {
            let mut disk = self.folders[at].state();
            if !disk.imapd_begins(&self.logged[number].text, Write::Whole) {
                return;
            }
            disk.imapd_ends();
            say!("client {at} defers {number}");
            self.logged[number].deferred = true;
            self.counts.deferred += 1;
        } else if !self.calm && random.u8(..8) == 0 {
            let mut disk = self.folders[at].state();
            let before = disk.read(OWED).map_or(String::new(), |text| {
                String::from_utf8(text.to_vec()).unwrap()
            });
            disk.replace(OWED, &format!("{before}{}\n", self.logged[number].text));
            say!("client {at} is told that {number} is done, which is owed");
            self.counts.owed += 1;
        } else {
            self.logged[number].done = true;
        }
        todo.pop();
    }

    /// The syncmux in between does what it owes, or puts it back into the log.
    fn owed(&mut self, at: usize, owed: &[Item], back: bool) {
        let numbers = self.numbers(owed);
        say!("owed at {at}: {numbers:?}, put back: {back}");
        let mut disk = self.folders[at].state();
        for number in numbers {
            if !back {
                self.logged[number].done = true;
                continue;
            }
            if !disk.imapd_begins(&self.logged[number].text, Write::Whole) {
                return;
            }
            disk.imapd_ends();
            self.logged[number].deferred = true;
        }
        disk.replace(OWED, "");
    }

    /// A client begins a run with these lines.
    fn begins(&mut self, todo: &[usize]) {
        for number in todo {
            self.logged[*number].begun = true;
        }
        for number in todo {
            let line = &self.logged[*number];
            for (before, earlier) in self.logged[..*number].iter().enumerate() {
                let same = earlier.keys.iter().any(|key| line.keys.contains(key));
                assert!(
                    !same || earlier.begun || earlier.excused,
                    "line {number} ({}) is begun before {before} ({})",
                    line.text,
                    earlier.text
                );
            }
        }
    }

    /// No user has unfinished lines in two folders.
    fn check(&self) {
        let mut bound: BTreeMap<&UserKey, usize> = BTreeMap::new();
        for (at, folder) in self.folders.iter().enumerate() {
            let items = unfinished(&folder.state());
            for number in self.numbers(&items) {
                for key in &self.logged[number].keys {
                    let other = *bound.entry(key).or_insert(at);
                    assert_eq!(
                        other, at,
                        "{key} has unfinished lines in both, such as {number}"
                    );
                }
            }
        }
    }

    /// What happens between two calls.
    fn goes_on(&mut self) {
        match self.random.u8(..13) {
            0 | 1 => self.log(),
            12 => self.main.state().imapd_ends(),
            2..=6 => {
                let at = self.random.usize(..self.clients.len());
                self.client(at);
                self.check();
            }
            _ => {}
        }
    }

    fn lose_power(&mut self) {
        let everywhere = |world: &World| -> BTreeSet<usize> {
            let mut items = unfinished(&world.main.state());
            let held = world.main.state().read("syncmux-held").map(lines_put_back);
            items.extend(held.into_iter().flatten());
            for folder in &world.folders {
                items.extend(unfinished(&folder.state()));
            }
            world.numbers(&items).into_iter().collect()
        };
        let in_main = unfinished(&self.main.state());
        let in_main: BTreeSet<usize> = self.numbers(&in_main).into_iter().collect();
        let random = &mut self.random;
        let mut choose = |of: usize| random.usize(..of);
        self.main.state().lose_power(&mut choose);
        for folder in &self.folders {
            folder.state().lose_power(&mut choose);
        }
        let left = everywhere(self);
        for (number, line) in self.logged.iter_mut().enumerate() {
            // The name of a `log` that Cyrus makes is not fsynced, neither the master's nor the one into
            // which a client defers.
            let unwritten = self.locked == Some(number);
            let by_cyrus = in_main.contains(&number) || line.deferred || unwritten;
            if !left.contains(&number) && !line.done && by_cyrus {
                line.excused = true;
            }
        }
        for client in &mut self.clients {
            client.dies();
        }
        // Somebody's torn line may be the last one.
        self.glued = true;
        self.counts.power_losses += 1;
    }
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// Before each call of syncmux.
    fn enter(&self) -> io::Result<()> {
        let mut world = self.world();
        let killed = || Err(io::Error::other("killed"));
        if world.dead {
            return killed();
        }
        if let Some(fuse) = &mut world.fuse {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                world.dead = true;
                return killed();
            }
        }
        world.goes_on();
        if world.faults && world.random.u8(..80) == 0 {
            world.counts.faults += 1;
            say!("a call fails");
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }
}

struct ModelClients(Shared);

impl Clients for ModelClients {
    fn may_work(&mut self, name: &str, _: &SyncDirectory) -> bool {
        let at: usize = name.rsplit('-').next().unwrap().parse().unwrap();
        self.0.world().clients[at].lives
    }

    fn own(&mut self, _: &SyncDirectory) -> Option<Option<i32>> {
        None
    }
}

fn start(shared: &Shared, shards: usize) -> Sharder {
    let mut world = shared.world();
    let way = if world.random.bool() {
        Way::Fixed
    } else {
        Way::Balanced
    };
    let limit = world.random.usize(1..20);
    let mailbox_pairs = world.random.bool();
    let disk =
        |disk: &SharedDisk| SyncDirectory::on(Box::new(Watched(disk.syncmux(), shared.clone())));
    let main = disk(&world.main);
    let folders = world.folders.iter().enumerate();
    let folders = folders.map(|(at, folder)| (format!("far-{at}"), disk(folder)));
    let folders = folders.collect();
    world.dead = false;
    for (at, client) in world.clients.iter_mut().enumerate() {
        client.retired = at >= shards;
    }
    drop(world);
    say!("a start with {shards} shards, {way:?}");
    let clients = Box::new(ModelClients(shared.clone()));
    Sharder::new(
        main,
        folders,
        How {
            shards,
            way,
            held_lines: limit,
            mailbox_pairs,
        },
        Site::default(),
        clients,
    )
}

fn end(shared: &Shared, sharder: Sharder, power: bool) {
    shared.world().dead = true;
    say!("the end, power loss: {power}");
    drop(sharder);
    let mut world = shared.world();
    if power {
        world.lose_power();
        world.check();
    } else {
        world.main.state().kill();
        world
            .folders
            .iter()
            .for_each(|folder| folder.state().kill());
        world.counts.kills += 1;
    }
}

fn run(seed: u64) -> Counts {
    let mut random = fastrand::Rng::with_seed(seed);
    let folders: Vec<SharedDisk> = (0..FOLDERS).map(|_| SharedDisk::default()).collect();
    let world = World {
        main: SharedDisk::default(),
        folders,
        clients: (0..FOLDERS).map(|_| Client::default()).collect(),
        logged: Vec::new(),
        glued: false,
        locked: None,
        left: random.usize(20..80),
        fuse: None,
        dead: false,
        faults: random.u8(..4) == 0,
        calm: false,
        counts: Counts::default(),
        random: random.fork(),
    };
    for folder in &world.folders {
        folder.state().replace("syncmux-lock", "7\n");
    }
    let shared = Shared(Arc::new(Mutex::new(world)));
    let mut shards = random.usize(1..=FOLDERS);
    for _ in 0..random.usize(1..8) {
        let mut sharder = start(&shared, shards);
        if random.u8(..4) > 0 {
            shared.world().fuse = Some(random.u32(1..1500));
        }
        for _ in 0..random.usize(5..60) {
            let done = sharder.step();
            if shared.world().dead {
                break;
            }
            let held = sharder.shown().held_lines;
            let mut world = shared.world();
            world.counts.held = world.counts.held.max(held);
            assert!(done.is_ok() || world.faults, "{done:?}");
            (0..random.u8(..6)).for_each(|_| world.goes_on());
        }
        shared.world().fuse = None;
        end(&shared, sharder, random.u8(..4) == 0);
        let before = shards;
        if random.bool() {
            shards = random.usize(1..=FOLDERS);
        }
        shared.world().counts.changes += usize::from(shards != before);
        // Its clients live on for a while, or not.
        let mut world = shared.world();
        for client in world.clients.iter_mut().skip(shards) {
            if random.bool() {
                client.dies();
            }
        }
    }
    let mut world = shared.world();
    world.calm = true;
    world.faults = false;
    world.main.state().imapd_ends();
    for client in world.clients.iter_mut().skip(shards) {
        client.dies();
    }
    drop(world);
    let mut sharder = start(&shared, shards);
    for round in 0.. {
        assert!(
            round < 20_000,
            "it does not come to an end: {:?}",
            sharder.shown()
        );
        sharder.step().unwrap();
        let mut world = shared.world();
        world.log();
        (0..FOLDERS).for_each(|at| world.client(at));
        world.check();
        let logs = ["log", "log-run", "syncmux-held"];
        let owes = |folder: &SharedDisk| folder.state().read(OWED).is_some();
        let is_empty = logs
            .iter()
            .all(|name| world.main.state().read(name).is_none());
        let owes = world.folders.iter().any(owes);
        if world.left == 0 && is_empty && !owes && sharder.is_idle() {
            break;
        }
    }
    let mut world = shared.world();
    for (number, line) in world.logged.iter().enumerate() {
        assert!(
            line.done || line.excused,
            "line {number} was lost: {}",
            line.text
        );
    }
    let excused = world.logged.iter().filter(|line| !line.done).count();
    world.counts.excused = excused;
    world.counts.clone()
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.two_users += other.two_users;
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.faults += other.faults;
        self.clients_died += other.clients_died;
        self.deferred += other.deferred;
        self.changes += other.changes;
        self.owed += other.owed;
        self.held = self.held.max(other.held);
        self.excused += other.excused;
    }
}

#[test]
fn shard_seeds() {
    let number = |name| {
        let text: Option<String> = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().expect("a number"))
    };
    let seeds = match number("SYNCMUX_SEED") {
        Some(one) => one..one + 1,
        None => 0..number("SYNCMUX_SEEDS").unwrap_or(2_000),
    };
    let count = seeds.end - seeds.start;
    let mut all = Counts::default();
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(counts) => all.add(&counts),
            Err(panic) => {
                eprintln!("seed {seed} failed: run again with SYNCMUX_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{count} seeds: {all:?}");
    if count > 100 {
        assert!(all.kills > 0 && all.power_losses > 0 && all.faults > 0 && all.changes > 0);
        assert!(
            all.owed > 0
                && all.clients_died > 0
                && all.deferred > 0
                && all.two_users > 0
                && all.held > 0
        );
        // What only Cyrus can have lost is little of all.
        assert!(
            all.excused * 20 < all.lines,
            "{} of {}",
            all.excused,
            all.lines
        );
    }
}
