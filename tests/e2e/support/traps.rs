//! What a link without TLS does to single commands: it holds them until a test says so, and then cuts
//! the connection or gives another answer than the replica's.
//!
//! The replica stays the real one. A refusal that it would give only when something is broken there is
//! made by sending it NOOP in the place of the command: it has not done it, and one answer comes for
//! each command.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

/// What happens to a command, when the gate is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The connection is reset, and the replica never sees the command.
    CutBefore,
    /// The replica does it, and the connection is reset in the place of its answer.
    CutAfter,
    /// The replica never sees the command, and this is the answer.
    Refuse(&'static str),
    /// The replica does it, and says so a while later.
    Hold,
}

/// A trap for the commands that begin with `verb` and hold `about`.
#[derive(Clone, Debug)]
pub struct Trap {
    pub verb: &'static str,
    pub about: String,
    pub deed: Deed,
    /// How many commands it is for.
    pub times: u32,
}

impl Trap {
    pub fn new(verb: &'static str, about: &str, deed: Deed) -> Self {
        Self {
            verb,
            about: about.to_owned(),
            deed,
            times: 1,
        }
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

/// The traps of a link.
#[derive(Debug, Default)]
pub struct Traps {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Something was ever set: connections are taken apart from then on.
    on: bool,
    traps: Vec<Trap>,
    caught: Vec<String>,
    open: bool,
}

impl Traps {
    /// Connections made from now on are taken apart, so that traps may be set later.
    pub fn watch(&self) {
        self.state.lock().unwrap().on = true;
    }

    pub fn watched(&self) -> bool {
        self.state.lock().unwrap().on
    }

    /// Sets traps in place of all others, with the gate closed.
    pub fn set(&self, traps: Vec<Trap>) {
        *self.state.lock().unwrap() = State {
            on: true,
            traps,
            caught: Vec::new(),
            open: false,
        };
    }

    /// Opens the gate: what is held goes its way, and what comes is not held.
    pub fn open(&self) {
        self.state.lock().unwrap().open = true;
    }

    /// The commands that were caught since the traps were set, each up to its first line end.
    pub fn caught(&self) -> Vec<String> {
        self.state.lock().unwrap().caught.clone()
    }

    fn catch(&self, command: &[u8]) -> Option<Deed> {
        let mut state = self.state.lock().unwrap();
        let text = String::from_utf8_lossy(command);
        let catches =
            |t: &&mut Trap| t.times > 0 && text.starts_with(t.verb) && text.contains(&t.about);
        let trap = state.traps.iter_mut().find(catches)?;
        trap.times -= 1;
        let deed = trap.deed;
        let line = text.lines().next().unwrap_or_default().to_owned();
        state.caught.push(line);
        Some(deed)
    }

    /// Waits at the gate.
    fn pass(&self) {
        while !self.state.lock().unwrap().open {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A connection taken apart: what is under way in each direction.
#[derive(Debug, Default)]
pub struct Conversation {
    up: Mutex<Vec<u8>>,
    down: Mutex<Vec<u8>>,
    /// One entry for each command without an answer.
    waiting: Mutex<VecDeque<Option<Deed>>>,
}

impl Conversation {
    /// Bytes of the client: whole commands go on.
    pub fn up(&self, traps: &Traps, bytes: &[u8], write: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let mut pending = self.up.lock().unwrap();
        pending.extend_from_slice(bytes);
        while let Some(size) = command_size(&pending) {
            let command: Vec<u8> = pending.drain(..size).collect();
            let deed = traps.catch(&command);
            match deed {
                Some(Deed::CutBefore) => {
                    traps.pass();
                    return false;
                }
                Some(Deed::Refuse(_)) => traps.pass(),
                _ => {}
            }
            self.waiting.lock().unwrap().push_back(deed);
            let command = match deed {
                Some(Deed::Refuse(_)) => b"NOOP\r\n".to_vec(),
                _ => command,
            };
            if !write(&command) {
                return false;
            }
        }
        true
    }

    /// Bytes of the replica: whole lines go on.
    pub fn down(&self, traps: &Traps, bytes: &[u8], write: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let mut pending = self.down.lock().unwrap();
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = pending.drain(..=end).collect();
            // The client would use it, and the link could not be read any more.
            if line.starts_with(b"* COMPRESS") {
                continue;
            }
            let is_status = ["OK ", "NO ", "BAD "]
                .iter()
                .any(|s| line.starts_with(s.as_bytes()));
            if is_status {
                match self.waiting.lock().unwrap().pop_front().flatten() {
                    Some(Deed::Refuse(answer)) => line = format!("{answer}\r\n").into_bytes(),
                    Some(Deed::CutAfter) => {
                        traps.pass();
                        return false;
                    }
                    Some(Deed::Hold) => traps.pass(),
                    _ => {}
                }
            }
            if !write(&line) {
                return false;
            }
        }
        true
    }
}

/// The size of the command at the front, once it is all there.
fn command_size(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let end = at + bytes[at..].iter().position(|byte| *byte == b'\n')? + 1;
        let line = bytes[at..end].trim_ascii_end();
        let Some(literal) = literal_size(line) else {
            return Some(end);
        };
        at = end + literal;
        if at > bytes.len() {
            return None;
        }
    }
}

/// The size of the literal (`{n}`, `{n+}`) or file (`%{partition guid n}`) that a line announces.
fn literal_size(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"}")?;
    let line = line.strip_suffix(b"+").unwrap_or(line);
    let open = line.iter().rposition(|byte| *byte == b'{')?;
    let inside = std::str::from_utf8(&line[open + 1..]).ok()?;
    inside.rsplit(' ').next()?.parse().ok()
}
