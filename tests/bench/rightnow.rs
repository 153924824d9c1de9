//! Synchronous replication: how long an IMAP client waits for the answer to APPEND, and what a
//! replica that falls silent does to that.

use std::fmt;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::support::imap::message;
use crate::support::lab::{Lab, RightNow, Setup, Way};

/// Who puts messages there and may not read them: imapd leaves out what it answers with APPENDUID.
const POSTER: &str = "poster";

/// How commits go to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Not at all: the floor.
    Not,
    /// By each imapd itself, stock to stock.
    Direct { cached: bool },
    /// Through syncmux. Where Cyrus logs them as well a rolling client looks at everything again.
    Mux { cached: bool, logged: bool },
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Waits {
    /// The first append of each imapd, which has to connect.
    first: Vec<Duration>,
    /// The others.
    rest: Vec<Duration>,
}

/// The work.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub clients: usize,
    pub appends: usize,
    pub round_trip: Duration,
    /// The replica is silent for so long in the middle.
    pub silence: Option<Duration>,
}

impl How {
    pub fn all() -> Vec<Self> {
        let cached = [false, true];
        let direct = cached.map(|cached| How::Direct { cached });
        let mux = cached.map(|cached| How::Mux {
            cached,
            logged: false,
        });
        let logged = How::Mux {
            cached: false,
            logged: true,
        };
        let all = [How::Not].into_iter().chain(direct).chain(mux);
        all.chain([logged]).collect()
    }

    fn lab(self, work: Work) -> Lab {
        let (way, cached, logged) = match self {
            How::Not => (Way::Direct, false, false),
            How::Direct { cached } => (Way::Direct, cached, false),
            How::Mux { cached, logged } => (Way::FanOut, cached, logged),
        };
        let mut setup = Setup::new(way);
        setup.channel = "far".to_owned();
        setup.lanes = 8;
        setup.round_trip = work.round_trip;
        setup.log_level = "info".to_owned();
        setup.rightnow = (self != How::Not).then_some(RightNow {
            logged,
            cached,
            limit: "5s",
        });
        setup.start()
    }

    /// Appends by several IMAP clients at once, each to a mailbox of its own.
    pub fn run(self, work: Work) -> Waits {
        let mut lab = self.lab(work);
        let users = lab.add_users(work.clients);
        for user in &users {
            let inbox = lab.master.mailbox(user, "");
            lab.master.admin().set_acl(&inbox, POSTER, "lip");
        }
        if matches!(self, How::Mux { logged: true, .. }) {
            lab.replicate();
        }
        let half = Barrier::new(work.clients + 1);
        let (master, replica) = (&lab.master, &lab.replica);
        let mut waits = Waits::default();
        std::thread::scope(|scope| {
            let clients: Vec<_> = users
                .iter()
                .map(|user| scope.spawn(|| appends(master, user, work.appends, &half)))
                .collect();
            half.wait();
            if let Some(silence) = work.silence {
                replica.freeze(true);
                std::thread::sleep(silence);
                replica.freeze(false);
            }
            for client in clients {
                let mut took = client.join().unwrap();
                waits.rest.extend(took.split_off(1));
                waits.first.extend(took);
            }
        });
        if self != How::Not {
            lab.settle();
        }
        waits
    }
}

fn appends(
    master: &crate::support::cyrus::Instance,
    user: &str,
    count: usize,
    half: &Barrier,
) -> Vec<Duration> {
    let mut imap = master.login(POSTER);
    let mailbox = master.mailbox(user, "");
    let append = |n: usize| {
        if n == count / 2 {
            half.wait();
        }
        let message = message(&format!("{user} {n}"), 4000);
        let start = Instant::now();
        imap.append(&mailbox, "", &message);
        start.elapsed()
    };
    (0..count).map(append).collect()
}

impl Waits {
    /// Milliseconds: the first append of an imapd (median), then p50, p99 and the longest of the
    /// others.
    pub fn summary(mut self) -> [f64; 4] {
        self.first.sort_unstable();
        self.rest.sort_unstable();
        let at = |list: &[Duration], part: f64| {
            let index = ((list.len() - 1) as f64 * part).round() as usize;
            list[index].as_secs_f64() * 1e3
        };
        [
            at(&self.first, 0.5),
            at(&self.rest, 0.5),
            at(&self.rest, 0.99),
            at(&self.rest, 1.0),
        ]
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = |cached: &bool| if *cached { ", imapd's own cache" } else { "" };
        match self {
            How::Not => write!(f, "no replication"),
            How::Direct { cached } => write!(f, "stock, direct{}", cache(cached)),
            How::Mux { cached, logged } => {
                let logged = if *logged {
                    ", rolling client beside"
                } else {
                    ""
                };
                write!(f, "syncmux{}{logged}", cache(cached))
            }
        }
    }
}
