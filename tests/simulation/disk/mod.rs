//! A disk that keeps only what was fsynced: files and names apart, each in two states, what every
//! process sees and what outlives a power loss. The sync directory's own code runs on it
//! ([`Syncmux`]), beside a model of what Cyrus does there (`cyrus.rs`); what a power loss leaves
//! is in `power.rs`.

mod cyrus;
mod power;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use syncmux::io::sync_directory::disk::{Disk, DiskFile, Mode, Stat};

pub(crate) use cyrus::{Write, lines, lines_put_back};
pub(crate) use power::Odometer;

/// A file by its number that is never used again; inodes are, as file systems do it.
type Fid = usize;

#[derive(Clone, Debug, Default)]
struct Node {
    inode: u64,
    modified: u64,
    /// What every process reads.
    now: Vec<u8>,
    /// What was fsynced.
    durable: Vec<u8>,
    /// What happened to it since.
    pending: Vec<Change>,
    /// How often it is open.
    handles: usize,
}

#[derive(Clone, Debug)]
enum Change {
    /// `rotten`: an fsync failed over it, the system has forgotten that it must be written, and
    /// the next fsync that succeeds leaves zeros in its place.
    Append {
        text: Vec<u8>,
        rotten: bool,
    },
    Cut(usize),
    /// Newlines from there on, so many.
    Blank(usize, usize),
}

/// A change of names that was not fsynced.
#[derive(Clone, Debug)]
enum NameChange {
    Set(String, Fid),
    Remove(String),
    Move(String, String, Fid),
}

/// What others do meanwhile.
pub(crate) type Others = fn(&mut State);

/// A call of syncmux that fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// By the number of the call.
    pub(crate) at: u64,
    /// And all after it.
    pub(crate) and_on: bool,
    pub(crate) errno: Errno,
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    files: BTreeMap<Fid, Node>,
    names: BTreeMap<String, Fid>,
    durable_names: BTreeMap<String, Fid>,
    pending: Vec<NameChange>,
    next_file: Fid,
    clock: u64,
    /// How often a name or a content has changed.
    pub(crate) changes: u64,
    /// There are hard links.
    pub(crate) links: bool,
    /// Files that syncmux makes are Cyrus's.
    pub(crate) ours: bool,
    /// The syncmux that runs: what another one still does has no effect.
    process: u64,
    pub(crate) dead: bool,
    /// Calls of all syncmuxes.
    pub(crate) calls: u64,
    /// It is killed before this call.
    pub(crate) crash_at: Option<u64>,
    /// Something that others do just before this call.
    pub(crate) at_call: Option<(u64, Others)>,
    pub(crate) fault: Option<Fault>,
    /// Faults that came to pass.
    pub(crate) faults: u64,
    /// Held by syncmux.
    locked: Option<Fid>,
    /// What syncmux has written into `log` since this was emptied.
    pub(crate) appended: Vec<u8>,
    /// What each call was, where somebody wants to know.
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) cyrus: cyrus::Cyrus,
}

impl Default for State {
    fn default() -> Self {
        State {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending: Vec::new(),
            next_file: 0,
            clock: 0,
            changes: 0,
            links: true,
            ours: true,
            process: 0,
            dead: false,
            calls: 0,
            crash_at: None,
            at_call: None,
            fault: None,
            faults: 0,
            locked: None,
            appended: Vec::new(),
            trace: None,
            cyrus: cyrus::Cyrus::default(),
        }
    }
}

impl Node {
    fn forget_rot(&mut self) {
        for change in &mut self.pending {
            if let Change::Append { rotten, .. } = change {
                *rotten = false;
            }
        }
    }
}

impl NameChange {
    fn names(&self) -> impl Iterator<Item = &String> {
        let (one, two) = match self {
            NameChange::Set(name, _) | NameChange::Remove(name) => (name, None),
            NameChange::Move(from, to, _) => (from, Some(to)),
        };
        std::iter::once(one).chain(two)
    }

    fn apply(&self, names: &mut BTreeMap<String, Fid>) {
        match self {
            NameChange::Set(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
            NameChange::Move(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        self.changes += 1;
        change.apply(&mut self.names);
        self.pending.push(change);
        self.collect();
    }

    /// Files that nothing can bring back are gone.
    fn collect(&mut self) {
        let mut kept: BTreeSet<Fid> = self.names.values().copied().collect();
        kept.extend(self.durable_names.values());
        kept.extend(self.pending.iter().filter_map(|change| match change {
            NameChange::Set(_, file) | NameChange::Move(_, _, file) => Some(*file),
            NameChange::Remove(_) => None,
        }));
        self.files
            .retain(|file, node| node.handles > 0 || kept.contains(file));
    }

    /// An inode is free when no name and no process has its file; one of three files gets such a
    /// one.
    fn make(&mut self, name: &str) -> Fid {
        let named: BTreeSet<Fid> = self.names.values().copied().collect();
        let used: BTreeSet<u64> = self
            .files
            .iter()
            .filter(|(file, node)| node.handles > 0 || named.contains(file))
            .map(|(_, node)| node.inode)
            .collect();
        self.next_file += 1;
        let file = self.next_file;
        let inode = match file % 3 {
            0 => (100..).find(|inode| !used.contains(inode)).unwrap(),
            _ => 100 + file as u64,
        };
        self.files.insert(
            file,
            Node {
                inode,
                ..Node::default()
            },
        );
        self.change(NameChange::Set(name.to_owned(), file));
        file
    }

    fn write(&mut self, file: Fid, text: &[u8]) {
        self.clock += 1;
        self.changes += 1;
        let modified = self.clock;
        let node = self.files.get_mut(&file).unwrap();
        node.modified = modified;
        node.now.extend_from_slice(text);
        // All that is small enough to be one block, which is new to the system again.
        node.forget_rot();
        node.pending.push(Change::Append {
            text: text.to_vec(),
            rotten: false,
        });
    }

    fn sync(&mut self, file: Fid) {
        let node = self.files.get_mut(&file).unwrap();
        node.durable = power::replay(&node.durable, &node.pending);
        node.pending.clear();
    }

    fn sync_names(&mut self) {
        self.durable_names = self.names.clone();
        self.pending.clear();
        self.collect();
    }

    /// The content of a file.
    pub(crate) fn read(&self, name: &str) -> Option<&[u8]> {
        let file = self.names.get(name)?;
        Some(&self.files[file].now)
    }

    /// The names that begin like this.
    pub(crate) fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.names.keys().map(String::as_str);
        names.filter(move |name| name.starts_with(prefix))
    }

    /// A file that was there before anything happened.
    pub(crate) fn put(&mut self, name: &str, text: &str) {
        let file = self.make(name);
        self.write(file, text.as_bytes());
        self.sync(file);
        self.sync_names();
    }

    /// A second name from before anything happened.
    pub(crate) fn put_link(&mut self, from: &str, to: &str) {
        let file = self.names[from];
        self.change(NameChange::Set(to.to_owned(), file));
        self.sync_names();
    }

    /// The inode of a name.
    pub(crate) fn inode(&self, name: &str) -> Option<u64> {
        let file = self.names.get(name)?;
        Some(self.files[file].inode)
    }

    /// `kill -9` of syncmux, or its end.
    pub(crate) fn kill(&mut self) {
        self.process += 1;
        self.dead = false;
        self.crash_at = None;
        self.fault = None;
        self.locked = None;
        for node in self.files.values_mut() {
            node.handles = 0;
            // What an earlier process was told by fsync a later one can't know: not asked for.
            node.forget_rot();
        }
        self.collect();
    }

    fn enter(&mut self, process: u64, what: &str, name: &str) -> io::Result<()> {
        if self.process != process || self.dead {
            return Err(io::Error::other("killed"));
        }
        self.calls += 1;
        if self.crash_at == Some(self.calls) {
            self.dead = true;
            return Err(io::Error::other("killed"));
        }
        self.cyrus_goes_on();
        if let Some((_, others)) = self.at_call.take_if(|(at, _)| *at == self.calls) {
            others(self);
        }
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{what} {name}"));
        }
        let calls = self.calls;
        let fails = |fault: &Fault| calls == fault.at || (fault.and_on && calls > fault.at);
        if let Some(fault) = self.fault.filter(fails) {
            self.faults += 1;
            return Err(fault.errno.into());
        }
        Ok(())
    }

    fn stat_of(&self, file: Fid) -> Stat {
        let node = &self.files[&file];
        Stat {
            id: (1, node.inode),
            len: node.now.len() as u64,
            plain: true,
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(node.modified)),
        }
    }
}

fn not_found() -> io::Error {
    ErrorKind::NotFound.into()
}

fn taken() -> io::Error {
    ErrorKind::AlreadyExists.into()
}

/// The disk, shared by all that work on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedDisk(Arc<Mutex<State>>);

impl SharedDisk {
    pub(crate) fn new(state: State) -> Self {
        SharedDisk(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The disk as the syncmux that runs now uses it.
    pub(crate) fn syncmux(&self) -> Box<dyn Disk> {
        let process = self.state().process;
        Box::new(Syncmux {
            disk: self.clone(),
            process,
        })
    }
}

/// The calls of one syncmux: after its death they fail and do nothing.
#[derive(Debug)]
struct Syncmux {
    disk: SharedDisk,
    process: u64,
}

impl Syncmux {
    fn enter(&self, what: &str, name: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        state.enter(self.process, what, name)?;
        Ok(state)
    }
}

impl Disk for Syncmux {
    fn path(&self) -> &Path {
        Path::new("/sync")
    }

    fn makes_files_of_cyrus(&self) -> bool {
        self.disk.state().ours
    }

    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.enter("open", name)?;
        let there = state.names.get(name).copied();
        let file = match (mode, there) {
            (Mode::Read | Mode::Append, None) => return Err(not_found()),
            (Mode::New | Mode::AppendNew, Some(_)) => return Err(taken()),
            (_, Some(file)) => file,
            (_, None) => state.make(name),
        };
        state.files.get_mut(&file).unwrap().handles += 1;
        Ok(Box::new(Open {
            disk: self.disk.clone(),
            process: self.process,
            file,
            mode,
        }))
    }

    fn stat(&self, name: &str) -> io::Result<Stat> {
        let state = self.enter("stat", name)?;
        let file = *state.names.get(name).ok_or_else(not_found)?;
        Ok(state.stat_of(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.enter("list", "")?.names.keys().cloned().collect())
    }

    fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.enter("link", to)?;
        let file = *state.names.get(from).ok_or_else(not_found)?;
        if state.names.contains_key(to) {
            return Err(taken());
        }
        if !state.links {
            return Err(Errno::PERM.into());
        }
        state.change(NameChange::Set(to.to_owned(), file));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.enter("rename", to)?;
        let file = *state.names.get(from).ok_or_else(not_found)?;
        state.change(NameChange::Move(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.enter("rename", to)?;
        let file = *state.names.get(from).ok_or_else(not_found)?;
        if state.names.contains_key(to) {
            return Err(taken());
        }
        state.change(NameChange::Move(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.enter("remove", name)?;
        if !state.names.contains_key(name) {
            return Err(not_found());
        }
        state.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn names_mark(&self) -> io::Result<Option<(i64, i64)>> {
        let state = self.enter("stat", "the directory")?;
        Ok(Some((state.changes as i64, 0)))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.enter("fsync", "the directory")?.sync_names();
        Ok(())
    }
}

#[derive(Debug)]
struct Open {
    disk: SharedDisk,
    process: u64,
    file: Fid,
    mode: Mode,
}

impl Open {
    fn enter(&self, what: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        state.enter(self.process, what, "")?;
        Ok(state)
    }

    fn writes(&self) -> io::Result<()> {
        if self.mode == Mode::Read {
            return Err(Errno::BADF.into());
        }
        Ok(())
    }
}

impl DiskFile for Open {
    fn give(&self) -> io::Result<()> {
        self.enter("chown").map(drop)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.enter("fstat")?.stat_of(self.file))
    }

    fn lock(&self, exclusive: bool) -> io::Result<()> {
        let mut state = self.enter("lock")?;
        if exclusive {
            self.writes()?;
        }
        assert!(state.locked.is_none(), "two locks at once");
        state.wait_for_imapd(self.file);
        state.locked = Some(self.file);
        Ok(())
    }

    fn unlock(&self) {
        let mut state = self.disk.state();
        if state.process == self.process
            && state.locked.take_if(|file| *file == self.file).is_some()
        {
            state.client_reads();
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.enter("read")?;
        let text = &state.files[&self.file].now;
        let rest = text.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn append(&self, text: &[u8]) -> io::Result<usize> {
        self.writes()?;
        let mut state = self.disk.state();
        let result = state.enter(self.process, "write", "");
        // Where there is no room some of it may fit.
        let fits = match result {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSPC) => {
                match state.calls % 3 {
                    0 => text.len() / 2,
                    1 => text.len() - 1,
                    _ => return Err(error),
                }
            }
            other => other.map(|()| text.len())?,
        };
        if fits == 0 {
            return Err(Errno::NOSPC.into());
        }
        state.write(self.file, &text[..fits]);
        if self.mode != Mode::New && fits == text.len() {
            state.appended.extend_from_slice(text);
        }
        Ok(fits)
    }

    fn blank(&self, at: u64, len: u64) -> io::Result<()> {
        let mut state = self.enter("pwrite")?;
        state.changes += 1;
        let (at, len) = (at as usize, len as usize);
        let node = state.files.get_mut(&self.file).unwrap();
        node.now[at..at + len].fill(b'\n');
        node.pending.push(Change::Blank(at, len));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writes()?;
        let mut state = self.disk.state();
        let result = state.enter(self.process, "ftruncate", "");
        // A write that came short and can't be taken back either: an imapd's next line is its rest.
        state.cyrus.lost |= result.is_err();
        result?;
        state.changes += 1;
        let node = state.files.get_mut(&self.file).unwrap();
        assert!(len as usize <= node.now.len());
        node.now.truncate(len as usize);
        node.pending.push(Change::Cut(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let result = state.enter(self.process, "fsync", "");
        match &result {
            Ok(()) => state.sync(self.file),
            Err(_) if state.dead || state.process != self.process => {}
            Err(_) => {
                let node = state.files.get_mut(&self.file).unwrap();
                for change in &mut node.pending {
                    if let Change::Append { rotten, .. } = change {
                        *rotten = true;
                    }
                }
            }
        }
        result
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.unlock();
        let mut state = self.disk.state();
        if state.process == self.process
            && let Some(node) = state.files.get_mut(&self.file)
        {
            node.handles -= 1;
            state.collect();
        }
    }
}
