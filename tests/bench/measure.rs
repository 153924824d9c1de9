//! One lab, many contenders, one after another: how long until a round of new mail is replicated.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::support::client::{Client, Rolling, leftovers, put_log, take_log, wait_until_drained};
use super::support::compare;
use super::support::cyrus::ADMIN;
use super::support::imap::{Imap, message};
use super::support::lab::{Lab, Setup, Way};
use super::support::process::folder;

/// Who replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Stock clients without syncmux; more than one share the users by a hash, as sites do today.
    Stock { clients: usize },
    /// The rolling client's listener, every mailbox known from the round before.
    Strict { lanes: usize },
    /// Nothing known but the mailboxes of the warm-up.
    FanOut { lanes: usize },
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Stock { clients: 1 } => "stock client alone".to_owned(),
            Self::Stock { clients } => format!("{clients} stock clients, sharded by hand"),
            Self::Strict { lanes } => format!("syncmux strict, {lanes} lanes"),
            Self::FanOut { lanes } => format!("syncmux fan-out, {lanes} lanes"),
        };
        f.pad(&text)
    }
}

/// A lab with users whose mailboxes the replica knows.
pub struct Bench {
    lab: Lab,
    users: Vec<String>,
    admin: Imap,
    round: usize,
    size: usize,
    quiet: bool,
}

impl Bench {
    pub fn start(users: usize, size: usize, round_trip: Duration, quiet: bool) -> Self {
        let mut setup = Setup::new(Way::Direct);
        setup.round_trip = round_trip;
        setup.log_level = "info".to_owned();
        let lab = setup.start();
        let users: Vec<String> = (0..users).map(|i| format!("u{i:04}")).collect();
        let mut admin = lab.master.admin();
        for user in &users {
            let inbox = format!("user.{user}");
            admin.create(&inbox);
            admin.set_acl(&inbox, ADMIN, "lrswipkxtecdan");
        }
        let mut bench = Self {
            lab,
            users,
            admin,
            round: 0,
            size,
            quiet,
        };
        bench.deliver(bench.users.len());
        let first = bench.lab.direct_client().all();
        first.expect_ok("-A, the first time");
        bench
    }

    /// From now on, for every contender alike.
    pub fn set_round_trip(&mut self, round_trip: Duration) {
        self.lab.relay.set_round_trip(round_trip);
        // Connections keep the time that they were made with.
        self.lab.mux = None;
    }

    /// Seconds from the moment a client takes the lines of one new message for every user (its
    /// `log-run` appears) until `log-run` and syncmux's link of it are gone.
    pub fn run(&mut self, contender: Contender) -> f64 {
        // Connections and lanes stand in real life, so a small round goes before.
        // A strict syncmux can't look ahead: it has all of it from the last update of each mailbox.
        let known = match contender {
            Contender::Strict { .. } => self.users.len(),
            _ => 16.min(self.users.len()),
        };
        let warm_up = self.deliver(known);
        let mut clients = self.clients(contender);
        self.replicate(&mut clients, &warm_up, &contender.to_string());
        // Or a client would take lines while others are still being written.
        clients
            .iter_mut()
            .for_each(|(_, client)| client.pause(true));
        let lines = self.deliver(self.users.len());
        clients
            .iter_mut()
            .for_each(|(_, client)| client.pause(false));
        let appended = lines.iter().filter(|line| line.starts_with("APPEND "));
        assert_eq!(appended.count(), self.users.len(), "{lines:?}");
        let seconds = self.replicate(&mut clients, &lines, &contender.to_string());
        drop(clients);
        let users = self.users.iter().cloned().collect();
        let left = compare::unsent(&self.lab.direct_client(), &users);
        assert!(left.is_empty(), "after {contender}: {}", left.join("\n"));
        seconds
    }

    /// What differs between both ends.
    pub fn differences(&self) -> Vec<String> {
        self.lab.differences()
    }

    /// One message for each of the first `count` users; the lines that Cyrus wrote about it.
    fn deliver(&mut self, count: usize) -> Vec<String> {
        let directory = self.lab.master.sync_directory("");
        drop(take_log(&directory));
        self.round += 1;
        for user in &self.users[..count] {
            let text = message(&format!("{user} round {}", self.round), self.size);
            self.admin.append(&format!("user.{user}"), "", &text);
        }
        take_log(&directory)
    }

    fn clients(&mut self, contender: Contender) -> Vec<(PathBuf, Rolling)> {
        let (client, count) = match contender {
            Contender::Stock { clients } => (self.lab.link_client(), clients),
            Contender::Strict { lanes } => {
                self.mux(Way::Strict, lanes);
                (self.lab.client(), 1)
            }
            Contender::FanOut { lanes } => {
                self.mux(Way::FanOut, lanes);
                (self.lab.client(), 1)
            }
        };
        (0..count)
            .map(|i| self.rolling(&client, i, count))
            .collect()
    }

    fn rolling(&self, client: &Client, index: usize, count: usize) -> (PathBuf, Rolling) {
        let mut client = client.clone();
        client.verbose = false;
        if count > 1 {
            client.channel = format!("shard{index}");
        }
        (
            folder(&self.lab.master.sync_directory(&client.channel)),
            client.rolling(),
        )
    }

    /// A new one each time: it knows nothing of the rounds before.
    fn mux(&mut self, way: Way, lanes: usize) {
        self.lab.setup.lanes = lanes;
        self.lab.setup.way = way;
        self.lab.add_mux();
    }

    fn replicate(&self, clients: &mut [(PathBuf, Rolling)], lines: &[String], name: &str) -> f64 {
        let count = clients.len();
        let mut shards = vec![Vec::new(); count];
        for line in lines {
            shards[shard(line, count)].push(line.clone());
        }
        for ((directory, _), lines) in clients.iter().zip(&shards) {
            if !lines.is_empty() {
                put_log(directory, lines);
            }
        }
        let directories: Vec<PathBuf> = clients.iter().map(|(d, _)| d.clone()).collect();
        let put = Instant::now();
        let mut begun = None;
        let mut shown = Instant::now();
        let up = self.lab.relay.counters().up;
        loop {
            let left = directories.iter().any(|d| !leftovers(d).is_empty());
            if begun.is_none() && directories.iter().any(|d| d.join("log-run").exists()) {
                begun = Some(Instant::now());
            }
            if !left {
                break;
            }
            if shown.elapsed() > Duration::from_secs(1) && !self.quiet {
                let sent = self.lab.relay.counters().up - up;
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
        for (directory, rolling) in clients {
            wait_until_drained(directory, rolling);
        }
        if !self.quiet {
            print!("\r{:70}\r", "");
            let _ = std::io::stdout().flush();
        }
        seconds
    }
}

/// All lines of a user go to one client: `APPEND user.u0001`.
fn shard(line: &str, count: usize) -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    line.rsplit(' ').next().hash(&mut hasher);
    usize::try_from(hasher.finish() % count as u64).unwrap()
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
