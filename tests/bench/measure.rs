//! One lab, many contenders, one after another: how long until a round of work is replicated.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::contender::{Contender, Load};
use super::support::certs::SERVER_NAME;
use super::support::client::{Client, Rolling, leftovers, put_log, take_log, wait_until_drained};
use super::support::compare;
use super::support::cyrus::{ADMIN, PASSWORD, REPL};
use super::support::imap::{Imap, message};
use super::support::lab::{Lab, Setup, Way};
use super::support::mux::Mux;
use super::support::process::{folder, write};
use super::support::version::Version;

/// Bytes of a message.
const SIZE: usize = 4096;

/// Users whose mail goes before what is measured: connections and lanes stand in real life.
const WARM_UP: usize = 16;

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub seconds: f64,
    /// Bytes on the link, towards the replica and back.
    pub up: u64,
    pub down: u64,
}

/// A lab with users.
pub struct Bench {
    pub lab: Lab,
    pub load: Load,
    pub users: Vec<String>,
    warm_up: Vec<String>,
    admin: Imap,
    round: usize,
    /// Users whose messages are flagged.
    flagged: HashSet<String>,
    /// `syncmux shard`, and what the shards' clients go through.
    shard: Vec<Mux>,
    quiet: bool,
}

impl Bench {
    /// Users with their mail, which the replica has too where the load does not begin with nothing.
    pub fn start(load: Load, users: usize, round_trip: Duration, quiet: bool) -> Self {
        Self::of_version(None, load, users, round_trip, quiet)
    }

    /// The same with another Cyrus as master and client.
    pub fn of_version(
        version: Option<&str>,
        load: Load,
        users: usize,
        round_trip: Duration,
        quiet: bool,
    ) -> Self {
        let mut setup = Setup::new(Way::Direct);
        let own = Version::own().name;
        setup.versions = version.map(|version| (version.to_owned(), own));
        setup.round_trip = round_trip;
        setup.log_level = "info".to_owned();
        setup.both.immediate = true;
        let mut lab = setup.start();
        if load.is_first() {
            lab.replica.stop();
            copy(&lab.replica.folder, &empty(&lab));
            lab.replica.resume();
            lab.replica.ready();
        }
        let users: Vec<String> = (0..users).map(|i| format!("u{i:04}")).collect();
        let warm_up = if load.is_first() { 0 } else { WARM_UP };
        let warm_up: Vec<String> = (0..warm_up).map(|i| format!("w{i:04}")).collect();
        let mut admin = lab.master.admin();
        for user in users.iter().chain(&warm_up) {
            let inbox = format!("user.{user}");
            admin.create(&inbox);
            admin.set_acl(&inbox, ADMIN, "lrswipkxtecdan");
            let text = |n| message(&format!("{user} {n}"), SIZE);
            let messages: Vec<Vec<u8>> = (0..load.messages()).map(text).collect();
            admin.append_many(&inbox, &messages);
        }
        if !load.is_first() {
            let first = lab.direct_client().all();
            first.expect_ok("-A, the first time");
        }
        Self {
            lab,
            load,
            users,
            warm_up,
            admin,
            round: 0,
            flagged: HashSet::new(),
            shard: Vec::new(),
            quiet,
        }
    }

    /// From now on, for every contender alike.
    pub fn set_round_trip(&mut self, round_trip: Duration) {
        self.lab.relay.set_round_trip(round_trip);
    }

    /// One round by this contender. Panics where the ends differ afterwards.
    pub fn run(&mut self, contender: Contender) -> Measured {
        self.lab.mux = None;
        self.shard.clear();
        let measured = match self.load {
            Load::Append | Load::Flags => self.run_changes(contender),
            Load::Copy | Load::CopyAll => self.run_first_copy(contender),
        };
        let users = self.users.iter().cloned().collect();
        let left = compare::unsent(&self.lab.direct_client(), &users);
        assert!(left.is_empty(), "after {contender}: {}", left.join("\n"));
        measured
    }

    /// From the moment a client takes the lines (its `log-run` appears) until `log-run` and syncmux's
    /// link of it are gone.
    fn run_changes(&mut self, contender: Contender) -> Measured {
        let name = contender.to_string();
        let warm_up = self.work(&self.warm_up.clone());
        let users = self.users.clone();
        // Before syncmux and the clients are there, so that nobody has seen it.
        let mut lines = self.work(&users);
        let mut clients = self.clients(contender);
        self.replicate(&mut clients, &warm_up, &name);
        if contender.known() {
            self.replicate(&mut clients, &lines, &name);
            // Or a client would take lines while others are still being written.
            let pause = |on| move |(_, client): &mut (_, Rolling)| client.pause(on);
            clients.iter_mut().for_each(pause(true));
            lines = self.work(&users);
            clients.iter_mut().for_each(pause(false));
        }
        self.replicate(&mut clients, &lines, &name)
    }

    /// The replica has nothing and has just been started, and so have lanes; clients are connected.
    fn run_first_copy(&mut self, contender: Contender) -> Measured {
        self.lab.replica.stop();
        std::fs::remove_dir_all(&self.lab.replica.folder).unwrap();
        copy(&empty(&self.lab), &self.lab.replica.folder);
        self.lab.replica.resume();
        self.lab.replica.ready();
        drop(take_log(&self.lab.master.sync_directory("")));
        if self.load == Load::CopyAll {
            let client = self.client(contender);
            let before = self.lab.relay.counters();
            let outcome = client.all().expect_ok("-A");
            let after = self.lab.relay.counters();
            return Measured {
                seconds: outcome.seconds,
                up: after.up - before.up,
                down: after.down - before.down,
            };
        }
        let lines: Vec<String> = self
            .users
            .iter()
            .map(|user| format!("USER {user}"))
            .collect();
        let mut clients = self.clients(contender);
        self.replicate(&mut clients, &lines, &contender.to_string())
    }

    /// What differs between both ends.
    pub fn differences(&self) -> Vec<String> {
        self.lab.differences()
    }

    /// One round of work for these users; the lines that Cyrus wrote about it.
    pub fn work(&mut self, users: &[String]) -> Vec<String> {
        let directory = self.lab.master.sync_directory("");
        drop(take_log(&directory));
        self.round += 1;
        for user in users {
            let inbox = format!("user.{user}");
            if self.load == Load::Flags {
                let is_new = self.flagged.insert(user.clone());
                let how = if is_new { "+" } else { "-" };
                if !is_new {
                    self.flagged.remove(user);
                }
                self.admin.select(&inbox);
                for number in 1..=self.load.messages() {
                    let what = format!("{how}FLAGS.SILENT (\\Flagged)");
                    self.admin.store(&number.to_string(), &what);
                }
            } else {
                let text = message(&format!("{user} round {}", self.round), SIZE);
                self.admin.append(&inbox, "", &text);
            }
        }
        if self.load == Load::Flags {
            self.admin.run("UNSELECT");
        }
        let lines = take_log(&directory);
        for user in users {
            let is_named = |line: &String| line.ends_with(&format!(" user.{user}"));
            assert!(lines.iter().any(is_named), "{user} is not in {lines:?}");
        }
        lines
    }

    fn client(&mut self, contender: Contender) -> Client {
        if let Some(lanes) = contender.lanes() {
            self.lab.setup.lanes = lanes;
            self.lab.setup.way = match contender {
                Contender::Strict { .. } => Way::Strict,
                _ => Way::FanOut,
            };
            self.lab.add_mux();
        }
        match contender {
            Contender::Stock { .. } => self.lab.link_client(),
            Contender::Shard { clients, strict } => self.start_shard(clients, strict),
            _ if self.load == Load::CopyAll => self.lab.strict_client(),
            _ => self.lab.client(),
        }
    }

    /// The rolling clients of a contender with their sync directories, and its syncmux.
    pub fn clients(&mut self, contender: Contender) -> Vec<(PathBuf, Rolling)> {
        let client = self.client(contender);
        let count = match contender {
            Contender::Stock { clients } | Contender::Shard { clients, .. } => clients,
            _ => 1,
        };
        let shards = !self.shard.is_empty();
        let rolling = |index| {
            let mut client = client.clone();
            client.verbose = false;
            if shards {
                client.channel = format!("bench-{index}");
            } else if count > 1 {
                client.channel = format!("shard{index}");
            }
            let directory = folder(&self.lab.master.sync_directory(&client.channel));
            (directory, client.rolling())
        };
        (0..count).map(rolling).collect()
    }

    /// Starts `syncmux shard` on the default channel's log; hands back the client of its shards.
    fn start_shard(&mut self, clients: usize, strict: bool) -> Client {
        let lab = &self.lab;
        let mut target = lab.relay.address();
        if strict {
            let at = folder(&lab.path("between"));
            let password = at.join("password");
            write(&password, format!("{PASSWORD}\n"));
            let mut between = Mux::custom(&at, "run", false, |listen, admin| {
                format!(
                    "[[channel]]\nmode = \"strict\"\nlisten = [\"{listen}\"]\n[channel.replica]\n\
                     address = \"{}\"\nusername = \"{REPL}\"\npassword_file = \"{}\"\nlanes = 8\n\
                     ca_file = \"{}\"\nserver_name = \"{SERVER_NAME}\"\n[site]\nimapd_conf = \"{}\"\n\
                     [admin]\nlisten = \"{admin}\"\n",
                    lab.relay.address(),
                    password.display(),
                    lab.certs.ca.display(),
                    lab.master.conf().display(),
                )
            });
            between.start();
            target = between.listen.clone();
            self.shard.push(between);
        }
        let lab = &self.lab;
        let mut shard = Mux::custom(&folder(&lab.path("shard")), "shard", false, |_, admin| {
            format!(
                "[shard]\nsync_directory = \"{}\"\nname = \"bench\"\nshards = {clients}\n[site]\n\
                 imapd_conf = \"{}\"\n[admin]\nlisten = \"{admin}\"\n",
                lab.master.sync_directory("").display(),
                lab.master.conf().display(),
            )
        });
        // Shards of another contender are gone, or it would look at them too.
        for number in clients..64 {
            let old = lab.master.sync_directory(&format!("bench-{number}"));
            let _ = std::fs::remove_dir_all(old);
        }
        shard.start();
        self.shard.push(shard);
        self.lab.client_to("shard", &target, PASSWORD, "")
    }

    /// Gives these lines to the clients and waits until nothing is left of them.
    pub fn replicate(
        &self,
        clients: &mut [(PathBuf, Rolling)],
        lines: &[String],
        name: &str,
    ) -> Measured {
        let count = clients.len();
        let mut shards = vec![Vec::new(); count];
        let dealt = !self.shard.is_empty();
        for line in lines.iter().filter(|_| !dealt) {
            shards[shard(line, count)].push(line.clone());
        }
        let own = self.lab.master.sync_directory("");
        let before = self.lab.relay.counters();
        for ((directory, _), lines) in clients.iter().zip(&shards) {
            if !lines.is_empty() {
                put_log(directory, lines);
            }
        }
        let mut directories: Vec<PathBuf> = clients.iter().map(|(d, _)| d.clone()).collect();
        if dealt {
            // First, as lines go from there to the others.
            directories.insert(0, own.clone());
            put_log(&own, lines);
        }
        let put = Instant::now();
        let mut begun = None;
        let mut shown = Instant::now();
        loop {
            let left = directories.iter().any(|d| !leftovers(d).is_empty())
                || (dealt && own.join("syncmux-held").exists());
            // Of shards the whole way counts, from the moment that the lines are there.
            if begun.is_none() && !dealt && directories.iter().any(|d| d.join("log-run").exists()) {
                begun = Some(Instant::now());
            }
            if !left {
                break;
            }
            if shown.elapsed() > Duration::from_secs(1) && !self.quiet {
                let sent = self.lab.relay.counters().up - before.up;
                let seconds = put.elapsed().as_secs_f64();
                print!("\r  {name}: {seconds:3.0} s, {:5} KB sent ", sent / 1024);
                let _ = std::io::stdout().flush();
                shown = Instant::now();
            }
            for (_, rolling) in &mut *clients {
                assert!(rolling.is_alive(), "the client ended: {}", rolling.output());
            }
            assert!(
                put.elapsed() < Duration::from_secs(900),
                "{name} does not come to an end"
            );
            std::thread::sleep(Duration::from_micros(500));
        }
        let seconds = begun.unwrap_or(put).elapsed().as_secs_f64();
        let after = self.lab.relay.counters();
        for (directory, rolling) in clients {
            wait_until_drained(directory, rolling);
        }
        if !self.quiet {
            print!("\r{:70}\r", "");
            let _ = std::io::stdout().flush();
        }
        Measured {
            seconds,
            up: after.up - before.up,
            down: after.down - before.down,
        }
    }
}

/// All lines of a user go to one client: `APPEND user.u0001`.
fn shard(line: &str, count: usize) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    line.rsplit(' ').next().hash(&mut hasher);
    usize::try_from(hasher.finish() % count as u64).unwrap()
}

/// Where the replica's folder is kept as it was when it was empty.
fn empty(lab: &Lab) -> PathBuf {
    lab.path("replica.empty")
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.unwrap().success(), "cp -a {from:?} {to:?}");
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
