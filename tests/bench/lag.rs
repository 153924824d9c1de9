//! Replication lag under a steady load, and small users beside a big one: seen by IMAP on the replica.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::contender::Contender;
use super::measure::Bench;
use super::support::client::{put_log, take_log};
use super::support::imap::{Imap, message};

/// How long anything may take to be seen.
const PATIENCE: Duration = Duration::from_secs(900);

/// Seconds from append to visible.
#[derive(Clone, Debug)]
pub struct Lags(Vec<f64>);

impl Lags {
    /// The lag that so many of a hundred do not exceed.
    pub fn percentile(&self, of_hundred: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * of_hundred / 100.0).round() as usize]
    }
}

/// An append that is to be seen: the mailbox, how many messages it has then, and when it was done.
type Append = (String, u32, Instant);

/// Appends so many messages a second for so long, over all users in turn, while the rolling client of
/// this contender works; how long each took to be seen on the replica.
pub fn steady(bench: &mut Bench, contender: Contender, rate: f64, seconds: f64) -> Lags {
    bench.lab.mux = None;
    let clients = bench.clients(contender);
    let mailboxes: Vec<String> = bench
        .users
        .iter()
        .map(|user| format!("user.{user}"))
        .collect();
    let mut admin = bench.lab.master.admin();
    let mut seen = bench.lab.replica.admin();
    let (appended, to_see) = channel();
    let writer = std::thread::spawn(move || {
        let mut counts: Vec<u32> = mailboxes.iter().map(|m| messages(&mut admin, m)).collect();
        let start = Instant::now();
        for nth in 0..(rate * seconds) as usize {
            let due = Duration::from_secs_f64(nth as f64 / rate);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            let which = nth % mailboxes.len();
            let text = message(&format!("lag {nth} {}", fastrand::u64(..)), 4096);
            admin.append(&mailboxes[which], "", &text);
            counts[which] += 1;
            let append = (mailboxes[which].clone(), counts[which], Instant::now());
            appended.send(append).unwrap();
        }
    });
    let lags = watch(&mut seen, &to_see);
    writer.join().unwrap();
    drop(clients);
    lags
}

/// Seconds until the small users' messages are seen on the replica, from the moment that the client may
/// take the lines; `big` more bytes are appended for the first user of all.
pub fn beside(bench: &mut Bench, contender: Contender, big: usize) -> f64 {
    const MESSAGE: usize = 4 << 20;
    bench.lab.mux = None;
    let users = bench.users.clone();
    let directory = bench.lab.master.sync_directory("");
    let mut lines = bench.work(&users);
    if big > 0 {
        let mut admin = bench.lab.master.admin();
        for nth in 0..big.div_ceil(MESSAGE) {
            let text = message(&format!("big {nth} {}", fastrand::u64(..)), MESSAGE);
            admin.append(&format!("user.{}", users[0]), "", &text);
        }
        lines.extend(take_log(&directory));
    }
    let mut admin = bench.lab.master.admin();
    let (appended, to_see) = channel();
    let mut clients = bench.clients(contender);
    let mut seen = bench.lab.replica.admin();
    for user in &users[1..] {
        let mailbox = format!("user.{user}");
        let count = messages(&mut admin, &mailbox);
        appended.send((mailbox, count, Instant::now())).unwrap();
    }
    drop(appended);
    let start = Instant::now();
    put_log(&directory, &lines);
    watch(&mut seen, &to_see);
    let seconds = start.elapsed().as_secs_f64();
    bench.replicate(&mut clients, &[], "the rest");
    seconds
}

fn watch(seen: &mut Imap, to_see: &Receiver<Append>) -> Lags {
    let mut lags = Vec::new();
    let mut waiting: HashMap<String, VecDeque<(u32, Instant)>> = HashMap::new();
    let mut more = true;
    let start = Instant::now();
    while more || !waiting.is_empty() {
        loop {
            match to_see.try_recv() {
                Ok((mailbox, count, when)) => {
                    waiting.entry(mailbox).or_default().push_back((count, when));
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    more = false;
                    break;
                }
            }
        }
        waiting.retain(|mailbox, appends| {
            let there = messages(seen, mailbox);
            let done = appends
                .iter()
                .take_while(|(count, _)| *count <= there)
                .count();
            let done = appends.drain(..done);
            lags.extend(done.map(|(_, when)| when.elapsed().as_secs_f64()));
            !appends.is_empty()
        });
        assert!(start.elapsed() < PATIENCE, "not seen: {:?}", waiting.keys());
        std::thread::sleep(Duration::from_millis(1));
    }
    lags.sort_by(f64::total_cmp);
    Lags(lags)
}

fn messages(imap: &mut Imap, mailbox: &str) -> u32 {
    let lines = imap.run(&format!("STATUS {mailbox} (MESSAGES)"));
    let count = lines.iter().find_map(|line| {
        let (_, count) = line.split_once("(MESSAGES ")?;
        count.trim_end_matches(')').parse().ok()
    });
    count.unwrap_or_else(|| panic!("STATUS {mailbox}: {lines:?}"))
}
