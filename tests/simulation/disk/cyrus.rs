//! What Cyrus's processes do in the sync directory (`sync_log.c`): an imapd appends, fsyncs the
//! file and not its name; the client renames, reads and unlinks, and fsyncs nothing.

use bytes::Bytes;
use syncmux::protocol::synclog::{Item, LineReader};

use super::{Fid, NameChange, State};

/// How an imapd's write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Whole,
    /// It does not come to the fsync.
    Unsynced,
    /// The disk is full.
    Torn,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Cyrus {
    /// An imapd that holds the lock of a file and is about to write.
    imapd: Option<(Fid, Vec<u8>, Write)>,
    /// What the client has read of `log-run`.
    read: Option<Vec<u8>>,
    /// The client is done with `log-run`.
    pub(crate) unlinks: bool,
    /// A line of its own came to nothing, which nobody can bring back.
    pub(crate) lost: bool,
    /// Lets Cyrus go on between any two calls of syncmux.
    pub(crate) between: Option<fastrand::Rng>,
}

impl Cyrus {
    /// All its processes end.
    pub(super) fn die(&mut self) {
        self.imapd = None;
        self.read = None;
        self.unlinks = false;
    }
}

impl State {
    /// An imapd locks `log` and is about to write; `false` where it has to wait.
    pub(crate) fn imapd_begins(&mut self, line: &str, how: Write) -> bool {
        if let Some((file, ..)) = self.cyrus.imapd {
            self.wait_for_imapd(file);
        }
        let file = match self.names.get("log") {
            Some(file) => *file,
            None => self.make("log"),
        };
        if self.locked == Some(file) {
            return false;
        }
        self.cyrus.imapd = Some((file, format!("{line}\n").into_bytes(), how));
        true
    }

    /// It writes.
    pub(crate) fn imapd_ends(&mut self) {
        let Some((file, line, how)) = self.cyrus.imapd.take() else {
            return;
        };
        if !self.files.contains_key(&file) {
            return;
        }
        let len = if how == Write::Torn {
            line.len() / 2
        } else {
            line.len()
        };
        self.write(file, &line[..len]);
        if how == Write::Whole {
            self.sync(file);
        }
    }

    /// Another syncmux in this folder makes a file of its own hold this, fsynced; without text it goes.
    pub(crate) fn replace(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            let file = self.make(name);
            self.write(file, text.as_bytes());
            self.sync(file);
        } else if self.names.contains_key(name) {
            self.change(NameChange::Remove(name.into()));
        }
        self.sync_names();
    }

    /// A line of an imapd, or of the client itself.
    pub(crate) fn imapd_writes(&mut self, line: &str, how: Write) {
        assert!(self.imapd_begins(line, how), "nobody holds a lock for long");
        self.imapd_ends();
    }

    /// The client writes what it could not do now; now and then the disk is full.
    pub(crate) fn client_defers(&mut self, line: &str) {
        let random = self.cyrus.between.as_mut();
        let full = random.is_some_and(|random| random.u8(..4) == 0);
        self.cyrus.lost |= full;
        let how = if full { Write::Torn } else { Write::Whole };
        self.imapd_writes(line, how);
    }

    /// Whoever wants the lock of this file waits until the imapd that has it is done.
    pub(super) fn wait_for_imapd(&mut self, file: Fid) {
        if self
            .cyrus
            .imapd
            .as_ref()
            .is_some_and(|(held, ..)| *held == file)
        {
            self.imapd_ends();
        }
    }

    /// The client begins a run, where there is one to begin.
    pub(crate) fn client_renames(&mut self) {
        if let (Some(file), false) = (
            self.names.get("log").copied(),
            self.names.contains_key("log-run"),
        ) {
            self.change(NameChange::Move("log".into(), "log-run".into(), file));
            self.cyrus.read = None;
            self.client_reads();
        }
    }

    /// And reads it, as soon as nobody has its lock.
    pub(super) fn client_reads(&mut self) {
        let Some(file) = self.names.get("log-run").copied() else {
            return;
        };
        if self.cyrus.read.is_none() && self.locked != Some(file) {
            self.wait_for_imapd(file);
            self.cyrus.read = Some(self.files[&file].now.clone());
        }
    }

    /// What the client reads; a client that was started again reads again.
    pub(crate) fn client_run(&mut self, again: bool) -> Option<Vec<Item>> {
        if again {
            self.cyrus.read = None;
        }
        self.client_renames();
        self.client_reads();
        self.names.get("log-run")?;
        self.cyrus.read.as_deref().map(lines)
    }

    /// The client is done with its run.
    pub(crate) fn client_unlinks(&mut self) {
        if std::mem::take(&mut self.cyrus.unlinks) {
            self.cyrus.read = None;
            if self.names.contains_key("log-run") {
                self.change(NameChange::Remove("log-run".into()));
            }
        }
    }

    /// Something that Cyrus does between two calls of syncmux.
    pub(super) fn cyrus_goes_on(&mut self) {
        let Some(random) = &mut self.cyrus.between else {
            return;
        };
        let (what, who) = (random.u8(..30), random.u8(..5));
        match what {
            0 => self.imapd_ends(),
            1 => drop(self.imapd_begins(&format!("APPEND user.u{who}"), Write::Whole)),
            2..=4 => self.client_renames(),
            5..=7 => self.client_unlinks(),
            _ => {}
        }
    }
}

/// The lines that Cyrus reads: it stops at the first torn one and in the middle of the last.
pub(crate) fn lines(text: &[u8]) -> Vec<Item> {
    let mut reader = LineReader::new();
    let mut input = Bytes::copy_from_slice(text);
    let mut items = Vec::new();
    while let Ok(Some(item)) = reader.feed(&mut input) {
        items.push(item);
    }
    items
}

/// The lines that a start puts back: each that can be read by itself.
pub(crate) fn lines_put_back(text: &[u8]) -> Vec<Item> {
    let each = text.split(|byte| *byte == b'\n');
    each.flat_map(|line| lines(&[line, b"\n"].concat()))
        .collect()
}
