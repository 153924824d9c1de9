//! A TCP link with a round-trip time and with faults, in this process.
//!
//! Each chunk is held back for half the round-trip time in each direction, however much is in
//! flight: a reader stamps what comes and a writer of its own waits for the stamp.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::traps::{Conversation, Trap, Traps};

/// From the client, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
}

/// What went through since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub connections: u64,
    pub up: u64,
    pub down: u64,
    /// How often the client spoke after the replica did: the round trips of the stream.
    pub turns: u64,
    /// Connections that the client has closed from its side.
    pub ends: u64,
}

/// Some bytes as they were read, in the order of [`Relay::tape`].
#[derive(Clone, Debug)]
pub struct Piece {
    pub connection: u64,
    pub direction: Direction,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    traps: Traps,
    tape: Mutex<Option<Vec<Piece>>>,
    /// The answers of a connection that carried this are held back.
    hold: Mutex<Option<&'static str>>,
    /// What is said once in the place of the answer to this.
    lie: Mutex<Option<(&'static str, &'static [u8])>>,
    /// The connection that carries this is reset so many bytes behind it.
    cut_behind: Mutex<Option<(&'static str, usize)>>,
    half_trip: AtomicU64,
    stop: AtomicBool,
    stalled: AtomicBool,
    refusing: AtomicBool,
    dripping: AtomicBool,
    /// Bytes until the connection that carries them is reset; negative: never.
    cut_up: AtomicI64,
    cut_down: AtomicI64,
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    turns: AtomicU64,
    ends: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

/// The link; its connections end when it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Relay {
    /// From a free port on loopback to `target`.
    pub fn start(target: &str, round_trip: Duration) -> Self {
        Self::bind("127.0.0.1:0", target, round_trip)
    }

    pub fn bind(listen: &str, target: &str, round_trip: Duration) -> Self {
        let listener = TcpListener::bind(listen).unwrap_or_else(|e| panic!("{listen}: {e}"));
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        shared.cut_up.store(-1, SeqCst);
        shared.cut_down.store(-1, SeqCst);
        let relay = Self {
            port,
            shared: shared.clone(),
        };
        relay.set_round_trip(round_trip);
        let target = target.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                accept(&shared, client, &target);
            }
        });
        relay
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Holds for what comes from now on, on connections made from now on.
    pub fn set_round_trip(&self, round_trip: Duration) {
        let half = u64::try_from(round_trip.as_nanos() / 2).unwrap();
        self.shared.half_trip.store(half, SeqCst);
    }

    pub fn counters(&self) -> Counters {
        Counters {
            connections: self.shared.connections.load(SeqCst),
            up: self.shared.up.load(SeqCst),
            down: self.shared.down.load(SeqCst),
            turns: self.shared.turns.load(SeqCst),
            ends: self.shared.ends.load(SeqCst),
        }
    }

    /// Resets every open connection.
    pub fn reset(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            abort(&stream);
        }
    }

    /// Holds everything back until it is called with false.
    pub fn stall(&self, on: bool) {
        self.shared.stalled.store(on, SeqCst);
    }

    /// Closes new connections at once, as a replica that is down.
    pub fn refuse(&self, on: bool) {
        self.shared.refusing.store(on, SeqCst);
    }

    /// Holds back every answer on the connections that carry `command` from now on, until it is
    /// called with `None`.
    pub fn hold_answers_to(&self, command: Option<&'static str>) {
        *self.shared.hold.lock().unwrap() = command;
    }

    /// Makes traps possible, on connections made from now on. Only of use without TLS.
    pub fn watch(&self) {
        self.shared.traps.watch();
    }

    /// Sets traps in place of all others; what they catch is held until [`Relay::open_traps`].
    pub fn set_traps(&self, traps: Vec<Trap>) {
        assert!(
            self.shared.traps.watched(),
            "connections are not taken apart"
        );
        self.shared.traps.set(traps);
    }

    /// Lets go what was caught, and holds nothing any more.
    pub fn open_traps(&self) {
        self.shared.traps.open();
    }

    /// The commands that were caught since the traps were set.
    pub fn caught(&self) -> Vec<String> {
        self.shared.traps.caught()
    }

    /// Says `words` in the place of what comes back next on the connection that carries `command`,
    /// once. Only of use without TLS.
    pub fn answer_with(&self, command: &'static str, words: &'static [u8]) {
        *self.shared.lie.lock().unwrap() = Some((command, words));
    }

    /// Whether that has been said.
    pub fn has_lied(&self) -> bool {
        self.shared.lie.lock().unwrap().is_none()
    }

    /// Resets the connection that carries `command`, `bytes` behind it, once. Only of use without
    /// TLS.
    pub fn cut_behind(&self, command: &'static str, bytes: usize) {
        *self.shared.cut_behind.lock().unwrap() = Some((command, bytes));
    }

    /// Whether that has happened.
    pub fn has_cut_behind(&self) -> bool {
        self.shared.cut_behind.lock().unwrap().is_none()
    }

    /// Writes down what goes through from now on. Only of use without TLS.
    pub fn record(&self) {
        *self.shared.tape.lock().unwrap() = Some(Vec::new());
    }

    /// What went through since [`Relay::record`].
    pub fn tape(&self) -> Vec<Piece> {
        self.shared.tape.lock().unwrap().clone().unwrap_or_default()
    }

    /// Sends one byte at a time.
    pub fn drip(&self, on: bool) {
        self.shared.dripping.store(on, SeqCst);
    }

    /// Resets, after `bytes` more in this direction, the connection that carries the last of them.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.budget(direction)
            .store(i64::try_from(bytes).unwrap(), SeqCst);
    }

    /// Whether the cut that was asked for has happened.
    pub fn has_cut(&self, direction: Direction) -> bool {
        self.budget(direction).load(SeqCst) < 0
    }

    fn budget(&self, direction: Direction) -> &AtomicI64 {
        match direction {
            Direction::Up => &self.shared.cut_up,
            Direction::Down => &self.shared.cut_down,
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.stalled.store(false, SeqCst);
        self.hold_answers_to(None);
        self.open_traps();
        self.reset();
        // Wakes the accepting thread.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Closes with RST, so that the peer sees a failure and not an end.
fn abort(stream: &TcpStream) {
    // Disconnecting resets at once, however many handles of it are open.
    let _ = rustix::net::connect_unspec(stream);
    let _ = stream.shutdown(Shutdown::Both);
}

fn accept(shared: &Arc<Shared>, client: TcpStream, target: &str) {
    if shared.refusing.load(SeqCst) {
        abort(&client);
        return;
    }
    let Ok(server) = TcpStream::connect(target) else {
        abort(&client);
        return;
    };
    let connection = shared.connections.fetch_add(1, SeqCst);
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut open = shared.open.lock().unwrap();
    // Only the read halves are kept: the descriptor of an ended connection must not pile up.
    open.retain(|s| s.peer_addr().is_ok());
    open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
    drop(open);
    let last_was_up = Arc::new(AtomicBool::new(false));
    let held = Arc::new(Mutex::new(None));
    let watched = shared.traps.watched();
    let conversation = watched.then(|| Arc::new(Conversation::default()));
    let lied_to = Arc::new(AtomicBool::new(false));
    for direction in [Direction::Up, Direction::Down] {
        let (from, to) = match direction {
            Direction::Up => (&client, &server),
            Direction::Down => (&server, &client),
        };
        let pump = Pump {
            shared: shared.clone(),
            from: from.try_clone().unwrap(),
            to: to.try_clone().unwrap(),
            direction,
            connection,
            last_was_up: last_was_up.clone(),
            held: held.clone(),
            conversation: conversation.clone(),
            lied_to: lied_to.clone(),
            left: None,
        };
        std::thread::spawn(move || pump.run());
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
}

struct Pump {
    shared: Arc<Shared>,
    from: TcpStream,
    to: TcpStream,
    direction: Direction,
    connection: u64,
    last_was_up: Arc<AtomicBool>,
    /// The command of [`Relay::hold_answers_to`] that it has carried.
    held: Arc<Mutex<Option<&'static str>>>,
    /// Where traps may be set.
    conversation: Option<Arc<Conversation>>,
    /// It has carried the command of [`Relay::answer_with`].
    lied_to: Arc<AtomicBool>,
    /// Bytes that may still go through, once it has carried that of [`Relay::cut_behind`].
    left: Option<usize>,
}

impl Pump {
    fn run(mut self) {
        let half = Duration::from_nanos(self.shared.half_trip.load(SeqCst));
        if half.is_zero() {
            // No thread hop where nothing is held back.
            let mut buffer = vec![0; 64 << 10];
            while let Some(n) = self.read(&mut buffer) {
                if !self.write(&buffer[..n]) {
                    return;
                }
            }
            let _ = self.to.shutdown(Shutdown::Write);
            return;
        }
        let (sender, receiver) = channel::<(Instant, Vec<u8>)>();
        let mut writer = Pump {
            shared: self.shared.clone(),
            from: self.from.try_clone().unwrap(),
            to: self.to.try_clone().unwrap(),
            direction: self.direction,
            connection: self.connection,
            last_was_up: self.last_was_up.clone(),
            held: self.held.clone(),
            conversation: self.conversation.clone(),
            lied_to: self.lied_to.clone(),
            left: None,
        };
        std::thread::spawn(move || writer.deliver(&receiver));
        let mut buffer = vec![0; 64 << 10];
        while let Some(n) = self.read(&mut buffer) {
            if sender
                .send((Instant::now() + half, buffer[..n].to_vec()))
                .is_err()
            {
                return;
            }
        }
        // The end of the stream travels as long as the bytes do.
        let _ = sender.send((Instant::now() + half, Vec::new()));
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        // Cyrus writes with Nagle on, and 40 ms of a delayed ACK are not part of this link.
        let _ = rustix::net::sockopt::set_tcp_quickack(&self.from, true);
        match self.from.read(buffer) {
            Ok(0) => {
                if self.direction == Direction::Up {
                    self.shared.ends.fetch_add(1, SeqCst);
                }
                None
            }
            Err(_) => {
                abort(&self.to);
                None
            }
            Ok(n) => {
                let up = self.direction == Direction::Up;
                let total = if up {
                    &self.shared.up
                } else {
                    &self.shared.down
                };
                total.fetch_add(n as u64, SeqCst);
                self.note(&buffer[..n]);
                if self.last_was_up.swap(up, SeqCst) != up && up {
                    self.shared.turns.fetch_add(1, SeqCst);
                }
                Some(n)
            }
        }
    }

    fn note(&self, bytes: &[u8]) {
        if let Some(tape) = &mut *self.shared.tape.lock().unwrap() {
            tape.push(Piece {
                connection: self.connection,
                direction: self.direction,
                bytes: bytes.to_vec(),
            });
        }
        if self.direction == Direction::Down {
            return;
        }
        let hold = *self.shared.hold.lock().unwrap();
        if hold.is_some_and(|command| find(bytes, command).is_some()) {
            *self.held.lock().unwrap() = hold;
        }
        let lie = *self.shared.lie.lock().unwrap();
        if lie.is_some_and(|(command, _)| find(bytes, command).is_some()) {
            self.lied_to.store(true, SeqCst);
        }
    }

    /// What is to be said instead of the next answer.
    fn lie(&self) -> Option<&'static [u8]> {
        if self.direction == Direction::Up || !self.lied_to.swap(false, SeqCst) {
            return None;
        }
        let lie = self.shared.lie.lock().unwrap().take();
        lie.map(|(_, words)| words)
    }

    /// How much of these bytes may go through, because of [`Relay::cut_behind`].
    fn up_to_the_cut(&mut self, bytes: &[u8]) -> usize {
        if self.direction == Direction::Down {
            return bytes.len();
        }
        let mut cut = self.shared.cut_behind.lock().unwrap();
        if let Some((command, behind)) = *cut
            && self.left.is_none()
            && let Some(at) = find(bytes, command)
        {
            self.left = Some(at + command.len() + behind);
            *cut = None;
        }
        drop(cut);
        let allowed = self.left.map_or(bytes.len(), |left| left.min(bytes.len()));
        self.left = self.left.map(|left| left - allowed);
        allowed
    }

    fn is_held(&self) -> bool {
        let hold = *self.shared.hold.lock().unwrap();
        self.shared.stalled.load(SeqCst)
            || self.direction == Direction::Down
                && hold.is_some()
                && *self.held.lock().unwrap() == hold
    }

    fn deliver(&mut self, chunks: &Receiver<(Instant, Vec<u8>)>) {
        for (due, bytes) in chunks {
            let now = Instant::now();
            if due > now {
                std::thread::sleep(due - now);
            }
            if bytes.is_empty() {
                let _ = self.to.shutdown(Shutdown::Write);
                return;
            }
            if !self.write(&bytes) {
                return;
            }
        }
    }

    /// False when the connection is over.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let Some(conversation) = self.conversation.clone() else {
            return self.write_on(bytes);
        };
        let shared = self.shared.clone();
        let direction = self.direction;
        let mut write = |bytes: &[u8]| self.write_on(bytes);
        let goes_on = match direction {
            Direction::Up => conversation.up(&shared.traps, bytes, &mut write),
            Direction::Down => conversation.down(&shared.traps, bytes, &mut write),
        };
        if !goes_on {
            abort(&self.from);
            abort(&self.to);
        }
        goes_on
    }

    fn write_on(&mut self, bytes: &[u8]) -> bool {
        while self.is_held() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let budget = match self.direction {
            Direction::Up => &self.shared.cut_up,
            Direction::Down => &self.shared.cut_down,
        };
        let size = i64::try_from(bytes.len()).unwrap();
        let before = budget
            .fetch_update(SeqCst, SeqCst, |left| {
                (left >= 0).then(|| (left - size).max(-1))
            })
            .unwrap_or(i64::MAX);
        let bytes = self.lie().unwrap_or(bytes);
        let allowed = self.up_to_the_cut(bytes);
        let is_cut = before < size || allowed < bytes.len();
        let allowed = allowed.min(usize::try_from(before).unwrap_or(usize::MAX));
        let sent = if self.shared.dripping.load(SeqCst) {
            bytes[..allowed]
                .iter()
                .try_for_each(|b| self.to.write_all(&[*b]))
        } else {
            self.to.write_all(&bytes[..allowed])
        };
        if sent.is_err() {
            abort(&self.from);
            return false;
        }
        if is_cut {
            abort(&self.from);
            abort(&self.to);
            return false;
        }
        true
    }
}
