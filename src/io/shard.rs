//! `syncmux shard`: takes the channel's runs over, appends what [`Dealer`] deals, and looks at what the
//! shards have still to do. It blocks, and is called from one thread.
//!
//! A run of the channel goes only when all of its lines stand, fsynced, in the shards' logs or in the
//! file of held lines. After a crash it is dealt again: a line is never lost, and at worst done twice.
//! The rules about who gets what are in [`crate::core::shard`].

mod clients;
mod folders;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;

pub use clients::RealClients;
pub use folders::{Folders, numbers, was_shard};

use super::admin::{Latch, Readiness};
use super::sync_directory::{Error, ReadRun, SyncDirectory, TakenRun, Unfinished};
use super::telemetry::metric;
use crate::core::shard::{Dealer, LogLine, ShardSnapshot, Way, join_renames};
use crate::protocol::Site;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A shard without work is looked at every so many rounds.
const IDLE: u64 = 50;

/// The pause after something went wrong.
const PAUSE: Duration = Duration::from_secs(1);

/// Who else works where.
pub trait Clients: Send {
    /// Whether a client may still take lines of a folder that is no shard any more. It is asked by the folder's name.
    fn may_work(&mut self, name: &str, directory: &SyncDirectory) -> bool;
    /// The client of the log that is taken over, where one runs: its process, where that is known.
    fn own(&mut self, directory: &SyncDirectory) -> Option<Option<i32>>;
}

/// The channel's folder, and those that lines are dealt to.
pub struct Sharder {
    main: SyncDirectory,
    site: Site,
    dealer: Dealer,
    /// See [`How`].
    mailbox_pairs: bool,
    folders: Vec<Folder>,
    clients: Box<dyn Clients>,
    /// What was left in the channel's folder at the start has been taken in.
    begun: bool,
    /// No client of the channel itself runs, as far as is known.
    alone: bool,
    /// The dealer has all lines of these, of the channel or of a folder; they are to go.
    ending: Vec<(Option<usize>, TakenRun)>,
    /// The held lines that stand on disk.
    stored: u64,
    rounds: u64,
    runs: u64,
    unreadable: u64,
    was_full: bool,
}

/// How lines are dealt.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// To so many shards.
    pub shards: usize,
    /// To which of them.
    pub way: Way,
    /// With so many held lines no new run is taken over.
    pub held_lines: usize,
    /// The master logs renames as Cyrus before 3.4 does: see [`join_renames`].
    pub mailbox_pairs: bool,
}

struct Folder {
    name: String,
    directory: SyncDirectory,
    known: Unfinished,
    /// Not dealt to: N was larger before.
    retired: bool,
    /// It was said that a client still works there.
    said: bool,
}

/// How things stand.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Shown {
    /// The channel whose log is taken over; "" is the default one.
    pub channel: String,
    /// The shards, and after them the folders that are none any more.
    pub shards: Vec<ShownShard>,
    /// Lines that may not be dealt yet.
    pub held_lines: usize,
    /// So many are held that no new run is taken over.
    pub full: bool,
    /// Runs of the channel's log taken over since the start.
    pub runs: u64,
    /// Lines that nobody can read, since the start.
    pub unreadable_lines: u64,
    /// What went wrong last, while it does.
    pub trouble: Option<String>,
}

/// One of the folders.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ShownShard {
    /// The channel of its client.
    pub name: String,
    /// N was larger before: nothing is dealt to it.
    pub retired: bool,
    /// Its work.
    #[serde(flatten)]
    pub state: ShardSnapshot,
}

/// When the thread last went round, and what it saw.
#[derive(Clone, Debug)]
pub struct Beat {
    /// When.
    pub at: Instant,
    /// What.
    pub shown: Shown,
}

impl Sharder {
    /// `folders` are the shards, each with the name of its channel, and after all of them those that are
    /// none any more.
    #[must_use]
    pub fn new(
        main: SyncDirectory,
        folders: Vec<(String, SyncDirectory)>,
        how: How,
        site: Site,
        clients: Box<dyn Clients>,
    ) -> Self {
        let shards = how.shards;
        let mut dealer = Dealer::new(shards, how.way, how.held_lines);
        let folder = |(at, (name, directory)): (usize, (String, SyncDirectory))| Folder {
            name,
            directory,
            known: Unfinished::default(),
            retired: at >= shards,
            said: false,
        };
        let folders: Vec<Folder> = folders.into_iter().enumerate().map(folder).collect();
        for _ in shards..folders.len() {
            dealer.add_retired();
        }
        Sharder {
            main,
            site,
            dealer,
            mailbox_pairs: how.mailbox_pairs,
            folders,
            clients,
            begun: false,
            alone: false,
            ending: Vec::new(),
            stored: 0,
            rounds: 0,
            runs: 0,
            unreadable: 0,
            was_full: false,
        }
    }

    /// Goes round once. After an error it goes on where it was.
    ///
    /// # Errors
    /// What can't be read or written.
    pub fn step(&mut self) -> Result<(), Error> {
        self.look()?;
        // Before that nobody knows who is bound to which shard.
        if !self.dealer.knows_all() {
            return Ok(());
        }
        if !self.alone {
            if let Some(pid) = self.clients.own(&self.main) {
                let path = self.main.path().to_owned();
                return Err(Error::ClientRuns { path, pid });
            }
            self.alone = true;
        }
        if !self.begun {
            self.begin()?;
        }
        self.flush()?;
        self.end_runs()?;
        self.take_back()?;
        self.store()?;
        self.say_full();
        // All that the last look could tell is used by now; another run comes on top of it.
        if !self.dealer.is_full()
            && let Some(taken) = self.main.take_run()?
        {
            self.deal(taken)?;
        }
        Ok(())
    }

    /// How things stand.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let states = self.dealer.snapshot();
        let shard = |(folder, state): (&Folder, ShardSnapshot)| ShownShard {
            name: folder.name.clone(),
            retired: folder.retired,
            state,
        };
        Shown {
            channel: String::new(),
            shards: self.folders.iter().zip(states).map(shard).collect(),
            held_lines: self.dealer.held_lines(),
            full: self.dealer.is_full(),
            runs: self.runs,
            unreadable_lines: self.unreadable,
            trouble: None,
        }
    }

    /// Whether nothing is left to do, as far as was seen.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.begun && self.ending.is_empty() && self.dealer.is_idle()
    }

    fn look(&mut self) -> Result<(), Error> {
        let mut failed = Ok(());
        self.rounds += 1;
        let all = !self.begun || self.rounds.is_multiple_of(IDLE);
        for (at, folder) in self.folders.iter_mut().enumerate() {
            // Nobody but us gives it work, or hardly anybody.
            if !all && !self.dealer.is_at_work(at) {
                continue;
            }
            match folder.directory.look(&mut folder.known, &self.site) {
                Ok(Some(look)) => self.dealer.looked(at, look),
                Ok(None) => {}
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed
    }

    /// What a fan-out syncmux has left goes into `log`. What was held goes before all that stands
    /// there.
    fn begin(&mut self) -> Result<(), Error> {
        let recovered = self.main.recover_but_held()?;
        if recovered.files > 0 {
            let lines = recovered.lines;
            tracing::warn!(
                lines,
                "a syncmux run that worked here before left lines, which go first"
            );
        }
        let mut lines = Vec::new();
        let read = self.main.load_held(&self.site, |line| lines.push(line))?;
        self.count_unreadable(&read);
        // A start before was taking these back from what is a shard again now: they are older than what
        // was held, and their shards' clients do not see them.
        let mut left = Vec::new();
        for at in 0..self.folders.len() {
            // In those that are none there may be a log-run before it: see `take_back`.
            if self.folders[at].retired {
                continue;
            }
            if let Some(run) = self.folders[at].directory.left_from_take_back()? {
                left.push((at, self.read_again(at, &[&run])?, run));
            }
        }
        for (at, lines, run) in left {
            self.dealer.take_back(self.joined(lines));
            self.ending.push((Some(at), run));
        }
        for line in self.joined(lines) {
            self.dealer.take(line);
        }
        self.begun = true;
        // The file may hold more than is held now.
        self.stored = u64::MAX;
        Ok(())
    }

    /// Deals a run of the channel. In memory first: what fails half way is done again.
    fn deal(&mut self, taken: TakenRun) -> Result<(), Error> {
        let (site, dealer) = (&self.site, &mut self.dealer);
        let read = if self.mailbox_pairs {
            let mut lines = Vec::new();
            let read = self.main.read_run(&taken, site, |line| lines.push(line))?;
            join_renames(lines)
                .into_iter()
                .for_each(|line| dealer.take(line));
            read
        } else {
            self.main.read_run(&taken, site, |line| dealer.take(line))?
        };
        self.runs += 1;
        self.count_unreadable(&read);
        self.ending = vec![(None, taken)];
        self.flush()?;
        self.end_runs()
    }

    /// Deals what was left in a folder again.
    fn deal_again(&mut self, at: usize, taken: Vec<TakenRun>) -> Result<(), Error> {
        let runs: Vec<&TakenRun> = taken.iter().collect();
        let lines = self.read_again(at, &runs)?;
        self.dealer.take_back(self.joined(lines));
        self.ending = taken.into_iter().map(|run| (Some(at), run)).collect();
        self.end_runs()?;
        self.flush()
    }

    fn joined(&self, lines: Vec<LogLine>) -> Vec<LogLine> {
        match self.mailbox_pairs {
            true => join_renames(lines),
            false => lines,
        }
    }

    fn read_again(&mut self, at: usize, runs: &[&TakenRun]) -> Result<Vec<LogLine>, Error> {
        let mut lines = Vec::new();
        let mut all = ReadRun::default();
        for run in runs {
            let directory = &self.folders[at].directory;
            let read = directory.read_run(run, &self.site, |line| lines.push(line))?;
            all.lines += read.lines;
            all.unreadable += read.unreadable;
            all.example = all.example.or(read.example);
        }
        self.count_unreadable(&all);
        let (shard, count) = (self.folders[at].name.as_str(), all.lines);
        tracing::warn!(
            shard,
            lines = count,
            "lines that were left there are dealt again"
        );
        Ok(lines)
    }

    /// Runs go, the last one first, once their lines stand elsewhere.
    fn end_runs(&mut self) -> Result<(), Error> {
        if self.ending.is_empty() {
            return Ok(());
        }
        self.store()?;
        while let Some((folder, run)) = self.ending.last() {
            let directory = match folder {
                Some(at) => &self.folders[*at].directory,
                None => &self.main,
            };
            let ended = directory.finish_run(run);
            if ended.is_ok() || matches!(ended, Err(Error::TakenAway { .. })) {
                match folder {
                    Some(at) => self.dealer.taken_back(*at, run.id()),
                    // Nothing more is taken over beside whoever has taken it away.
                    None => self.alone = ended.is_ok(),
                }
                self.ending.pop();
            }
            ended?;
        }
        Ok(())
    }

    /// Appends to each shard's log. One that can't be written keeps no other from its lines.
    fn flush(&mut self) -> Result<(), Error> {
        let mut failed = Ok(());
        for (at, folder) in self.folders.iter_mut().enumerate() {
            let lines = self.dealer.outgoing(at);
            if lines.is_empty() {
                continue;
            }
            folder.known.appended();
            match folder.directory.append_raw(lines) {
                Ok(()) => self.dealer.written(at),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed
    }

    /// Only after [`Self::flush`]: what is held no more must stand in a shard's log by then.
    fn store(&mut self) -> Result<(), Error> {
        if self.stored != self.dealer.held_version() {
            self.main.store_held(self.dealer.held())?;
            self.stored = self.dealer.held_version();
        }
        Ok(())
    }

    /// Takes back what was left in folders that are no shards any more, unless somebody works there.
    fn take_back(&mut self) -> Result<(), Error> {
        for at in 0..self.folders.len() {
            let folder = &mut self.folders[at];
            if !folder.retired || !self.dealer.is_at_work(at) {
                continue;
            }
            if self.clients.may_work(&folder.name, &folder.directory) {
                if !std::mem::replace(&mut folder.said, true) {
                    tracing::warn!(
                        shard = folder.name,
                        "it is no shard any more, but a client may still work there, or a syncmux run: its \
                         lines are left to it, and lines of the same users wait. End them for good \
                         (systemctl disable --now cyrus-sync-client@{})",
                        folder.name
                    );
                }
                continue;
            }
            folder.said = false;
            // What a syncmux run that worked there has left comes back with the rest.
            folder.directory.recover_but_held()?;
            let taken = folder.directory.take_back()?;
            if !taken.is_empty() {
                self.deal_again(at, taken)?;
            }
        }
        Ok(())
    }

    fn count_unreadable(&mut self, read: &ReadRun) {
        if let Some(example) = &read.example {
            self.unreadable += read.unreadable;
            tracing::warn!(
                lines = read.unreadable,
                "lines of the sync log can't be read (a disk that was full, a crash): they are left \
                 out, the others go on; run sync_client -u for a user named there. The first is {example}"
            );
        }
    }

    fn say_full(&mut self) {
        let full = self.dealer.is_full();
        if full && !self.was_full {
            tracing::warn!(
                lines = self.dealer.held_lines(),
                "so many lines are held back, each until another shard has finished its user, that the \
                 log is not taken over further (held_lines): see whether every shard's client runs"
            );
        }
        self.was_full = full;
    }

    /// Goes round until `stop`. What is under way is finished first.
    pub fn run(
        mut self,
        channel: &str,
        stop: &CancellationToken,
        beat: &Arc<Mutex<Beat>>,
        readiness: &Readiness,
    ) {
        let mut trouble: Option<(String, Latch)> = None;
        while !stop.is_cancelled() {
            let pause = match self.step() {
                Ok(()) => {
                    if trouble.take().is_some() {
                        tracing::info!(channel, "lines are dealt again");
                    }
                    LOOK
                }
                Err(error) => {
                    let text = error.to_string();
                    if trouble.as_ref().is_none_or(|(before, _)| *before != text) {
                        tracing::error!(channel, "lines can't be dealt, it is tried again: {text}");
                        trouble = Some((text.clone(), readiness.hold(text)));
                    }
                    PAUSE
                }
            };
            let mut shown = self.shown();
            channel.clone_into(&mut shown.channel);
            shown.trouble = trouble.as_ref().map(|(text, _)| text.clone());
            shown.count();
            *beat.lock().unwrap_or_else(PoisonError::into_inner) = Beat {
                at: Instant::now(),
                shown,
            };
            let end = Instant::now() + pause;
            while Instant::now() < end && !stop.is_cancelled() {
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Shown {
    /// Shows it in the metrics.
    fn count(&self) {
        for shard in &self.shards {
            let labels = [
                ("channel", self.channel.clone()),
                ("shard", shard.name.clone()),
            ];
            counter!(metric::SHARD_LINES, &labels).absolute(shard.state.dealt);
            gauge!(metric::SHARD_USERS, &labels).set(shard.state.users as f64);
        }
        let channel = || self.channel.clone();
        gauge!(metric::SHARD_HELD, "channel" => channel()).set(self.held_lines as f64);
        counter!(metric::SHARD_RUNS, "channel" => channel()).absolute(self.runs);
        counter!(metric::SHARD_UNREADABLE, "channel" => channel()).absolute(self.unreadable_lines);
    }

    /// For `systemctl status`.
    #[must_use]
    pub fn words(&self) -> String {
        let shards = self.shards.iter().filter(|shard| !shard.retired).count();
        let users: usize = self.shards.iter().map(|shard| shard.state.users).sum();
        let mut text = format!(
            "shards {shards}, unfinished users {users}, held lines {}",
            self.held_lines
        );
        if let Some(trouble) = &self.trouble {
            text.push_str(", ");
            text.push_str(trouble);
        }
        text
    }
}
