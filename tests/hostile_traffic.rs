//! A flood of generated traffic of many kinds, from clients and from a replica, with the program's
//! memory printed every second and held against a bound that follows from its limits.
//!
//! `SYNCMUX_HOSTILE_GB=20 cargo test --release --test hostile_traffic -- --nocapture` is the long
//! run; without the variable it is a short one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod io_fake;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use io_fake::program::{LOGIN, Mux};

const MIB: u64 = 1 << 20;

/// What the program is told to keep to.
const STAGED: u64 = 16 * MIB;
const QUEUED: u64 = 16 * MIB;
const SPILL: u64 = 256 * MIB;
const SESSIONS: u64 = 64;

/// Limits that have no setting: what lists a single command may carry (4 million GUIDs in a
/// vector that may be twice as large), and what large answers may take together (`ANSWERS` in
/// io/spill.rs, `partial_answers` in core/limits.rs).
const ONE_COMMAND: u64 = 160 * MIB;
const ANSWERS: u64 = 2 * 128 * MIB;

/// Read buffers of one session, and a command under way that is not counted yet.
const SESSION: u64 = MIB / 2;

/// Users in one GET MAILBOXES.
const USERS_AT_ONCE: usize = if cfg!(debug_assertions) { 100 } else { 20_000 };

/// What must never be exceeded: staged and arriving messages, lists, what is noted of sessions,
/// queued units, answers, buffers; and half as much again for what the allocator does not give
/// back.
const BOUND: u64 = (3 * STAGED + QUEUED + ONE_COMMAND + ANSWERS + SESSIONS * SESSION) / 2 * 3;

/// What is sent, by whom, and how much of it there is to be.
struct Traffic {
    port: u16,
    wanted: u64,
    /// Of one kind at a time.
    portion: u64,
    clients: AtomicU64,
    replica: AtomicU64,
    turn: AtomicUsize,
    number: AtomicU64,
}

impl Traffic {
    fn sent(&self) -> u64 {
        self.clients.load(Ordering::Relaxed) + self.replica.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.sent() >= self.wanted
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }
}

/// A hostile client's connection: whatever it sends is counted, whatever it is told is read by
/// somebody else and thrown away.
struct Wire<'a> {
    stream: TcpStream,
    traffic: &'a Traffic,
}

impl<'a> Wire<'a> {
    fn stranger(traffic: &'a Traffic, reads: bool) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", traffic.port)).ok()?;
        let patience = Some(Duration::from_secs(20));
        stream.set_write_timeout(patience).ok()?;
        if reads {
            let mut answers = stream.try_clone().ok()?;
            thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        }
        Some(Wire { stream, traffic })
    }

    fn client(traffic: &'a Traffic) -> Option<Self> {
        let mut wire = Wire::stranger(traffic, true)?;
        wire.say(LOGIN)?;
        Some(wire)
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) -> Option<()> {
        let bytes = bytes.as_ref();
        self.stream.write_all(bytes).ok()?;
        let sent = bytes.len() as u64;
        self.traffic.clients.fetch_add(sent, Ordering::Relaxed);
        Some(())
    }

    /// The same bytes over and over.
    fn repeat(&mut self, part: &[u8], bytes: u64) -> Option<()> {
        let block = part.repeat((64 * 1024 / part.len()).max(1));
        for _ in 0..bytes / block.len() as u64 {
            self.say(&block)?;
            if self.traffic.is_over() {
                return None;
            }
        }
        Some(())
    }

    /// Commands that differ, many at a time.
    fn commands(&mut self, bytes: u64, mut command: impl FnMut(u64, &mut Vec<u8>)) -> Option<()> {
        let mut sent = 0;
        while sent < bytes && !self.traffic.is_over() {
            let mut block = Vec::new();
            while block.len() < 64 * 1024 {
                command(self.traffic.next(), &mut block);
            }
            sent += block.len() as u64;
            self.say(&block)?;
        }
        Some(())
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

type Kind = (&'static str, fn(&Traffic) -> Option<()>);

/// Each ends when the connection is closed, or when its portion is sent.
const KINDS: [Kind; 19] = [
    ("a literal without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say(format!(
            "APPLY SIEVE %(USERID u CONTENT {{{}+}}\r\n",
            200 * MIB
        ))?;
        wire.repeat(b"x", traffic.portion.min(190 * MIB))
    }),
    ("a literal that is too long", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("GET USER {99999999999+}\r\n")?;
        wire.repeat(b"x", traffic.portion)
    }),
    ("messages that are never used", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion, |n, block| {
            let size = [100, 3_000, 70_000, 1_500_000][n as usize % 4];
            let head = format!("APPLY MESSAGE (%{{default {n:040x} {size}}}\r\n");
            block.extend_from_slice(head.as_bytes());
            block.resize(block.len() + size, b'x');
            block.extend_from_slice(b")\r\n");
        })
    }),
    ("messages without a byte", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion, |_, block| {
            block.extend_from_slice(b"APPLY MESSAGE (");
            for _ in 0..500 {
                let n = traffic.next();
                block.extend_from_slice(format!("%{{default {n:040x} 0}}\r\n ").as_bytes());
            }
            block.extend_from_slice(b"NIL)\r\n");
        })
    }),
    ("reservations without RESTART", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion, |n, block| {
            let head = format!("APPLY RESERVE %(PARTITION p{n} MBOXNAME (user.u{n}) GUID (");
            block.extend_from_slice(head.as_bytes());
            for _ in 0..1000 {
                block.extend_from_slice(format!("{:040x} ", traffic.next()).as_bytes());
            }
            block.extend_from_slice(b"))\r\n");
        })
    }),
    ("questions without RESTART", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion / 4, |n, block| {
            block.extend_from_slice(
                format!("GET MAILBOXES (user.a{n} user.b{n} s.{n})\r\n").as_bytes(),
            );
            block.extend_from_slice(format!("GET FULLMAILBOX user.a{n}\r\n").as_bytes());
        })
    }),
    ("a list of names without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("GET MAILBOXES (")?;
        wire.repeat(b"user.a ", traffic.portion)
    }),
    ("long lists of names", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion / 4, |n, block| {
            block.extend_from_slice(b"GET MAILBOXES (");
            // A job for each user: a debug build looks at all of them after each event.
            for m in 0..20_000 {
                let user = m % USERS_AT_ONCE;
                block.extend_from_slice(format!("user.u{user}.{m}.{n} ").as_bytes());
            }
            block.extend_from_slice(b")\r\n");
        })
    }),
    ("RECORDs without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("APPLY MAILBOX %(UNIQUEID x MBOXNAME user.u LAST_UID 1 RECORD (")?;
        wire.commands(traffic.portion, |n, block| {
            block.extend_from_slice(format!("%(UID 1 GUID {n:040x}) ").as_bytes());
        })
    }),
    ("nesting without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("APPLY X ")?;
        wire.repeat(b"(", traffic.portion)
    }),
    ("lists as deep as they may be", |traffic| {
        let mut wire = Wire::client(traffic)?;
        let deep = format!("GET X {}a{}\r\n", "(".repeat(15), ")".repeat(15));
        wire.repeat(deep.as_bytes(), traffic.portion / 8)
    }),
    ("endless small commands", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.repeat(
            b"NOOP\r\nFOO\r\nGET USER\r\nX (\r\n\0\r\n",
            traffic.portion / 8,
        )
    }),
    ("covered writes, as many as there can be", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.commands(traffic.portion / 8, |n, block| {
            let user = n % 2000;
            let text = format!("APPLY SUB %(USERID u{user} MBOXNAME user.u{user}.{n})\r\n");
            block.extend_from_slice(text.as_bytes());
        })
    }),
    ("a line without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.repeat(b"GET  (\"", traffic.portion)
    }),
    ("strangers", |traffic| {
        let mut crowd = Vec::new();
        for n in 0..150 {
            let mut wire = Wire::stranger(traffic, n % 2 == 0)?;
            // Those who made way do not keep the others from trying.
            let _ = match n % 4 {
                0 => wire.say(vec![b'x'; 60_000]),
                1 => wire.say("AUTHENTICATE PLAIN\r\n"),
                2 => wire.say("AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n".repeat(50)),
                _ => wire.say("GET USER {5+}\r\nNOOP\r\n"),
            };
            crowd.push(wire);
        }
        Some(())
    }),
    ("many sessions with half a message", |traffic| {
        let mut crowd = Vec::new();
        for n in 0..50 {
            let mut wire = Wire::client(traffic)?;
            wire.say(format!(
                "APPLY MESSAGE (%{{default {n:040x} {}}}\r\n",
                100 * MIB
            ))?;
            wire.repeat(b"x", MIB)?;
            crowd.push(wire);
        }
        thread::sleep(Duration::from_millis(500));
        Some(())
    }),
    ("answers without end", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("GET USER flood\r\n")?;
        thread::sleep(Duration::from_secs(2));
        Some(())
    }),
    ("answers as large as they may be", |traffic| {
        let mut wire = Wire::client(traffic)?;
        wire.say("GET USER large\r\nGET USER literal\r\nGET USER deep\r\nGET USER words\r\n")?;
        thread::sleep(Duration::from_secs(2));
        Some(())
    }),
    ("answers that nobody reads", |traffic| {
        let mut crowd = Vec::new();
        for _ in 0..8 {
            let mut wire = Wire::stranger(traffic, false)?;
            wire.say(LOGIN)?;
            wire.say("GET USER large\r\n")?;
            crowd.push(wire);
        }
        thread::sleep(Duration::from_secs(3));
        Some(())
    }),
];

/// A replica that says OK to most, and to some users whatever it likes.
fn replica(sent: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sent = Arc::clone(&sent);
            thread::spawn(move || serve(stream, &sent));
        }
    });
    port
}

fn serve(mut stream: TcpStream, sent: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    stream.write_all(io_fake::GREETING.as_bytes()).ok()?;
    let mut input = BufReader::with_capacity(1 << 16, stream.try_clone().ok()?);
    loop {
        let mut command = Vec::new();
        loop {
            let mut line = Vec::new();
            if input.read_until(b'\n', &mut line).ok()? == 0 {
                return None;
            }
            let size = line.trim_ascii_end().strip_suffix(b"}");
            let size = size.and_then(|line| line.rsplit(|b| matches!(b, b' ' | b'{')).next());
            let size = size.and_then(|size| std::str::from_utf8(size).ok());
            let size: Option<u64> = size.and_then(|size| size.trim_end_matches('+').parse().ok());
            command.extend_from_slice(&line[..line.len().min(200)]);
            let Some(size) = size else { break };
            std::io::copy(&mut input.by_ref().take(size), &mut std::io::sink()).ok()?;
        }
        let command = String::from_utf8_lossy(&command).into_owned();
        let mut say = |bytes: &[u8]| {
            stream.write_all(bytes).ok()?;
            sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Some(())
        };
        let line = |n: u64| format!("* SEEN %(USERID joe UNIQUEID {n:040x})\r\n");
        let block = |n: u64| (0..500).map(|m| line(n + m)).collect::<String>();
        match command.trim_end() {
            "EXIT" => return None,
            "GET USER flood" => {
                for n in 0..20_000 {
                    say(block(n).as_bytes())?;
                }
            }
            "GET USER large" => {
                for n in 0..400 {
                    say(block(n).as_bytes())?;
                }
                say(b"OK\r\n")?;
            }
            "GET USER literal" => {
                say(format!("* SIEVE %(CONTENT {{{}}}\r\n", 100 * MIB).as_bytes())?;
                for _ in 0..1600 {
                    say(&[b'x'; 65536])?;
                }
                say(b")\r\nOK\r\n")?;
            }
            "GET USER deep" => say(&[b"* SIEVE " as &[u8], &[b'('; 100_000]].concat())?,
            "GET USER words" => {
                say(b"* ENABLED (")?;
                for _ in 0..2000 {
                    say(&b"a ".repeat(2000))?;
                }
                say(b")\r\nOK\r\n")?;
            }
            "NOOP" => say(b"OK Noop completed\r\n")?,
            _ => say(b"OK success\r\n")?,
        }
    }
}

#[test]
fn memory_stays_bounded_whatever_comes() {
    let gigabytes = std::env::var("SYNCMUX_HOSTILE_GB");
    let gigabytes: f64 = gigabytes.map_or(0.2, |text| text.parse().unwrap());
    let wanted = (gigabytes * 1e9) as u64;
    let from_replica = Arc::new(AtomicU64::new(0));
    let limits = format!(
        "staged_memory = {STAGED}\nqueued_bytes = {QUEUED}\nspill_size = {SPILL}\n\
         sessions = {SESSIONS}\n"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sync")).unwrap();
    let users: String = (0..2000).map(|n| format!("USER u{n}\n")).collect();
    std::fs::write(folder.path().join("sync/log-run"), users).unwrap();
    let mux = Mux::start_in(folder, replica(Arc::clone(&from_replica)), &limits, true);
    drop(mux.client());
    let before = mux.memory() * MIB;
    let traffic = Traffic {
        port: mux.ports[0],
        wanted,
        portion: (wanted / 40).clamp(3 * MIB, 256 * MIB),
        clients: AtomicU64::new(0),
        replica: AtomicU64::new(0),
        turn: AtomicUsize::new(0),
        number: AtomicU64::new(0),
    };
    let turns = Arc::new(KINDS.map(|_| AtomicUsize::new(0)));
    let mut most = 0;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // Every kind has its turn, however short the run.
                    loop {
                        let turn = traffic.turn.fetch_add(1, Ordering::Relaxed);
                        if traffic.is_over() && turn >= KINDS.len() {
                            return;
                        }
                        let (_, kind) = KINDS[turn % KINDS.len()];
                        if kind(&traffic).is_some() {
                            turns[turn % KINDS.len()].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let began = Instant::now();
        let mut printed = 0;
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            let replica = from_replica.load(Ordering::Relaxed);
            traffic.replica.store(replica, Ordering::Relaxed);
            let memory = mux.memory() * MIB;
            most = most.max(memory);
            let second = began.elapsed().as_secs();
            if second >= printed {
                printed = second + 1;
                let gb = |bytes: u64| bytes as f64 / 1e9;
                println!(
                    "{second:4} s  clients {:6.2} GB  replica {:6.2} GB  VmRSS {:4} MiB",
                    gb(traffic.clients.load(Ordering::Relaxed)),
                    gb(replica),
                    memory / MIB
                );
            }
        }
    });
    println!(
        "{:.2} GB; before {} MiB, most {} MiB, bound {} MiB",
        traffic.sent() as f64 / 1e9,
        before / MIB,
        most / MIB,
        (before + BOUND) / MIB
    );
    for ((name, _), turns) in KINDS.iter().zip(&*turns) {
        println!("{:4} whole turns: {name}", turns.load(Ordering::Relaxed));
    }
    assert!(most < before + BOUND);
    // It still serves, and nothing of the hostile ones is left.
    let mut client = mux.client();
    assert!(client.ask("GET USER joe\r\n").starts_with("OK"));
    assert!(!mux.errors().contains("panicked"), "{}", mux.errors());
}
