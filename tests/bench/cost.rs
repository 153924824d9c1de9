//! What a byte, a command and a user cost: protocol and core alone, on one core, without sockets, TLS
//! and disk. `tests/bench/run.sh cost`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncmux::core::{Action, Core, Event, Identity, LaneId, Limits, Mode, RunId, SessionId, Setup};
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::synclog::{Coverage, LineReader};
use syncmux::protocol::{CommandReader, ReaderLimits, Reply, ReplyReader, Site};

const RUN: RunId = RunId(1);
const SESSION: SessionId = SessionId(1);

/// What a read from a socket brings at most.
const READ: usize = 64 << 10;

/// One session of a rolling client before a replica that says OK at once.
struct Pipe {
    core: Core,
    reader: CommandReader,
    coverage: Arc<Coverage>,
    now: Duration,
    answered: u64,
    forwarded: u64,
    pieces: u64,
}

impl Pipe {
    fn new(users: usize) -> Self {
        let mut coverage = Coverage::default();
        let lines: String = (0..users).map(|i| format!("USER u{i:06}\n")).collect();
        let (mut lines, mut reader) = (Bytes::from(lines), LineReader::new());
        while let Some(item) = reader.feed(&mut lines).unwrap() {
            coverage.add(&item, &Site::default());
        }
        let setup = Setup {
            named: false,
            sync_log: true,
            site: Site::default(),
            limits: Limits::default(),
            seed: 1,
        };
        let mut reader = CommandReader::new(ReaderLimits::default());
        reader.set_authenticated(true);
        let mut pipe = Pipe {
            core: Core::new(setup),
            reader,
            coverage: Arc::new(coverage),
            now: Duration::from_secs(1),
            answered: 0,
            forwarded: 0,
            pieces: 0,
        };
        pipe.tell(Event::SessionOpened {
            session: SESSION,
            mode: Mode::FanOut,
            rolling: true,
            identity: Identity::Configured,
        });
        // As clients of 3.6 and later begin; with it, what is known is used.
        pipe.feed(&Bytes::from_static(
            b"APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n",
        ));
        pipe
    }

    /// A client's bytes, as they come from a socket.
    fn feed(&mut self, input: &Bytes) {
        let mut at = 0;
        while at < input.len() {
            let end = (at + READ).min(input.len());
            let mut chunk = input.slice(at..end);
            while let Some(command) = self.reader.feed(&mut chunk).unwrap() {
                self.now += Duration::from_micros(5);
                self.tell(Event::Command {
                    session: SESSION,
                    command,
                    run: Some(RUN),
                });
            }
            at = end;
        }
    }

    fn tell(&mut self, event: Event) {
        self.core.handle(self.now, event);
        while let Some(action) = self.core.next_action() {
            let event = match action {
                Action::OpenLane { lane, .. } => {
                    let enabled = Some(vec![Bytes::from_static(b"SIEVE-MAILBOX")]);
                    Event::LaneOpened { lane, enabled }
                }
                Action::Send { lane, body } => {
                    self.forwarded += body.len();
                    self.pieces += body.pieces().len() as u64;
                    ok(lane)
                }
                Action::LinkRun { run } => Event::RunLinked {
                    run,
                    coverage: Arc::clone(&self.coverage),
                },
                Action::Answer { .. } => {
                    self.answered += 1;
                    continue;
                }
                Action::EndSession { body, .. } => panic!("the session ended: {body:?}"),
                _ => continue,
            };
            self.core.handle(self.now, event);
        }
    }
}

fn ok(lane: LaneId) -> Event {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let line = reader.feed(&mut Bytes::from_static(b"OK success\r\n"));
    let Ok(Some(Line::Status(status))) = line else {
        unreachable!("OK is a status")
    };
    let untagged = Vec::new();
    let reply = Reply { untagged, status };
    Event::LaneReply { lane, reply }
}

fn guid(n: usize) -> String {
    format!("{n:040x}")
}

/// What the client says for one user: 16 messages of 64 KiB, and the mailbox that holds them.
fn literals(user: usize) -> String {
    let numbers = || (0..16).map(|n| user * 16 + n);
    let body = "0123456789abcde\n".repeat(4096);
    let files: Vec<String> = numbers()
        .map(|n| format!("%{{default {} {}}}\r\n{body}", guid(n), body.len()))
        .collect();
    let records: Vec<String> = numbers()
        .map(|n| format!("%(UID {n} MODSEQ {n} FLAGS () GUID {})", guid(n)))
        .collect();
    format!(
        "GET MAILBOXES (user.u{user:06})\r\nAPPLY MESSAGE ({})\r\nAPPLY MAILBOX %(UNIQUEID id{user} \
         MBOXNAME user.u{user:06} LAST_UID 9 HIGHESTMODSEQ 9 PARTITION default RECORD ({}))\r\nRESTART\r\n",
        files.join(" "),
        records.join(" ")
    )
}

/// What it says where only flags have changed.
fn small(user: usize) -> String {
    format!(
        "GET MAILBOXES (user.u{user:06})\r\nAPPLY MAILBOX %(UNIQUEID id{user} MBOXNAME user.u{user:06} \
         SYNC_CRC 2809677419 LAST_UID 9 HIGHESTMODSEQ 9 UIDVALIDITY 1795536482 PARTITION default ACL \
         \"u{user:06}\tlrswipkxtecdan\t\" RECORD (%(UID 1 MODSEQ 3 LAST_UPDATED 1795536482 FLAGS \
         (\\Seen \\Flagged) INTERNALDATE 1795536482 SIZE 4096 GUID {})))\r\nRESTART\r\n",
        guid(user)
    )
}

/// Kilobytes of memory in use, as `/proc/self/status` says.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // One case alone, for a profiler.
    match words[..] {
        ["literals"] => forward_literals(),
        ["small", users, rounds] => {
            forward_small(users.parse().unwrap(), rounds.parse().unwrap());
        }
        _ => {
            forward_literals();
            println!(
                "{:>9} {:>12} {:>14} {:>12}",
                "users", "commands", "commands/s", "MiB more"
            );
            for users in [1_000, 10_000, 100_000] {
                forward_small(users, 400_000 / users);
            }
        }
    }
}

fn forward_literals() {
    let input: Bytes = (0..256).map(literals).collect::<String>().into();
    let start = Instant::now();
    let newlines = memchr::memchr_iter(b'\n', &input).count();
    let scan = input.len() as f64 / start.elapsed().as_secs_f64() / 1e9;
    let mut pipe = Pipe::new(256);
    let start = Instant::now();
    for _ in 0..16 {
        pipe.feed(&input);
    }
    let rate = 16.0 * input.len() as f64 / start.elapsed().as_secs_f64() / 1e9;
    println!(
        "messages of 64 KiB: {rate:.2} GB/s; memchr for line ends over the same bytes {scan:.2} GB/s ({newlines}), ratio {:.2}",
        rate / scan
    );
    println!(
        "  {} GB forwarded in {} pieces",
        pipe.forwarded / 1_000_000_000,
        pipe.pieces
    );
}

fn forward_small(users: usize, rounds: usize) {
    let input: Bytes = (0..users).map(small).collect::<String>().into();
    let mut pipe = Pipe::new(users);
    let before = resident();
    let start = Instant::now();
    for _ in 0..rounds {
        pipe.feed(&input);
    }
    let rate = pipe.answered as f64 / start.elapsed().as_secs_f64();
    let more = resident().saturating_sub(before) as f64 / 1024.0;
    println!("{users:>9} {:>12} {rate:>14.0} {more:>12.1}", pipe.answered);
}
