//! Runs one channel's core: events in, actions out. It decides nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::credentials::{CredentialStore, Credentials};
use super::directory_watch::DirectoryWatch;
use super::journal::Journal;
use super::lane::{self, LaneHandle};
use super::lane_connect::Replica;
use super::memory::MemoryGauge;
use super::rates::{PerSecond, Rates, Totals};
use super::registry::SessionRegistry;
use super::telemetry::Notes;
use crate::core::event::{Action, Event, Identity, LaneId};
use crate::core::{Core, Snapshot};

/// How often the gauges and the admin endpoint are brought up to date.
const SHOW: Duration = Duration::from_millis(250);

/// Events taken in before the actions' effects on time and gauges are looked at again.
const AT_ONCE: usize = 256;

/// After so long without a rolling client the log says so.
const MISSED: Duration = Duration::from_secs(300);

/// What was seen lately.
#[derive(Default)]
struct Lately {
    rates: Rates,
    /// It was said that there is no client.
    missed: bool,
}

/// How things stood.
#[derive(Clone, Debug)]
pub struct Shown {
    /// When.
    pub at: Instant,
    /// How.
    pub snapshot: Snapshot,
    /// How much was done lately.
    pub per_second: PerSecond,
    /// Since when no client has been there that came by `listen`.
    pub no_client_since: Option<Instant>,
}

impl Shown {
    /// At this time, with no client and nothing done yet.
    #[must_use]
    pub fn new(at: Instant, snapshot: Snapshot) -> Self {
        Shown {
            at,
            snapshot,
            per_second: PerSecond::default(),
            no_client_since: Some(at),
        }
    }
}

/// What the core's actions are carried out with.
pub struct Shell {
    /// The channel's name.
    pub channel: String,
    /// Decides.
    pub core: Core,
    /// Where lanes go.
    pub replica: Arc<Replica>,
    /// Of the configuration.
    pub login: Option<Credentials>,
    /// Of the clients.
    pub credentials: Arc<CredentialStore>,
    /// Finds sessions.
    pub registry: Arc<SessionRegistry>,
    /// Absent where there is no sync directory.
    pub journal: Option<Journal>,
    /// Likewise.
    pub directory: Option<Arc<DirectoryWatch>>,
    /// To the log and the metrics.
    pub notes: Notes,
    /// For lanes.
    pub events: UnboundedSender<Event>,
    /// How things stand, for the admin endpoint.
    pub shown: Arc<Mutex<Shown>>,
    /// Tells sessions how much is held in memory.
    pub memory: Arc<MemoryGauge>,
    /// How long a drain may take in any case, should the sync directory not answer: links of runs
    /// stay then, and the next start heals.
    pub longest_drain: Duration,
}

impl Shell {
    /// Runs until a drain that `drain` began is over.
    pub async fn run(mut self, mut events: UnboundedReceiver<Event>, drain: CancellationToken) {
        let start = Instant::now();
        let mut lanes = HashMap::new();
        let mut shown = start;
        let mut lately = Lately::default();
        let mut end = None;
        loop {
            let deadline = self
                .core
                .deadline()
                .map_or(start + Duration::from_secs(3600), |at| start + at);
            let show = shown + SHOW;
            let event = tokio::select! {
                biased;
                // First, as events may never run out.
                () = drain.cancelled(), if end.is_none() => {
                    end = Some(Instant::now() + self.longest_drain);
                    Event::Drain
                }
                event = events.recv() => event.unwrap_or(Event::Tick),
                () = sleep_until(deadline.min(show).into()) => Event::Tick,
            };
            let mut next = Some(event);
            let mut count = 0;
            while let Some(event) = next {
                if let Event::LaneLost { lane, .. } | Event::LaneRefused { lane, .. } = &event {
                    lanes.remove(lane);
                }
                if let Event::SessionOpened { rolling: true, .. } = &event {
                    self.notes.client_came();
                }
                self.core.handle(start.elapsed(), event);
                if !self.carry_out(&mut lanes) {
                    self.show(&mut lately);
                    return;
                }
                count += 1;
                next = if count < AT_ONCE {
                    events.try_recv().ok()
                } else {
                    None
                };
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                tracing::error!(
                    channel = self.channel,
                    "the drain does not end; what is left is healed at the next start"
                );
                self.show(&mut lately);
                return;
            }
            self.memory.set(&self.channel, self.core.held_bytes());
            if Instant::now() >= show {
                shown = Instant::now();
                self.show(&mut lately);
            }
        }
    }

    /// Does what the core asks; whether it goes on.
    fn carry_out(&mut self, lanes: &mut HashMap<LaneId, LaneHandle>) -> bool {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Answer { session, body } => self.registry.answer(session, body),
                Action::EndSession { session, body } => self.registry.end(session, body),
                Action::OpenLane { lane, pool } => {
                    let credentials = match &pool.identity {
                        Identity::Configured => self.login.clone(),
                        // Never without any: the lane would be in our own certificate's name.
                        Identity::Client(user) => {
                            let found = self.credentials.find(user);
                            let name = || String::from_utf8_lossy(user);
                            Some(found.unwrap_or_else(|| Credentials::new(name(), "")))
                        }
                    };
                    let replica = Arc::clone(&self.replica);
                    let handle = lane::open(lane, pool, replica, credentials, self.events.clone());
                    lanes.insert(lane, handle);
                }
                Action::Send { lane, body } => {
                    if let Some(handle) = lanes.get(&lane) {
                        handle.send(body);
                    }
                }
                Action::CloseLane { lane, polite } => {
                    if let Some(handle) = lanes.get(&lane) {
                        handle.close(polite);
                    }
                }
                Action::LinkRun { run } => match &self.journal {
                    Some(journal) => journal.link(run),
                    None => {
                        let why = "there is no sync directory".to_owned();
                        let _ = self.events.send(Event::RunLinkFailed { run, why });
                    }
                },
                Action::DropLink { run } => {
                    if let Some(journal) = &self.journal {
                        journal.drop_link(run);
                    }
                }
                Action::WriteLines { batch, lines } => match &self.journal {
                    Some(journal) => journal.write_lines(batch, lines),
                    None => self.no_journal(batch),
                },
                Action::StoreOwed { batch, lines } => match &self.journal {
                    Some(journal) => journal.store_owed(batch, lines),
                    None => self.no_journal(batch),
                },
                Action::WatchLog { on } => {
                    if let Some(journal) = &self.journal {
                        journal.watch_log(on);
                    }
                }
                Action::Note(note) => self.notes.record(&note),
                Action::Drained => return false,
            }
        }
        true
    }

    /// Lines are owed only for sessions on fan-out listeners, which need a sync directory.
    fn no_journal(&self, batch: crate::core::BatchId) {
        let why = "there is no sync directory".to_owned();
        let _ = self.events.send(Event::DiskFailed { batch, why });
    }

    fn show(&self, lately: &mut Lately) {
        let at = Instant::now();
        let mut snapshot = self.core.snapshot();
        if let Some(away) = self.replica.never_seen() {
            snapshot.replica_away_seconds.get_or_insert(away.as_secs());
        }
        let log = self.directory.as_ref().map(|watch| watch.seen());
        let log_seconds = log.and_then(|seen| seen.oldest_seconds());
        self.notes.show(&snapshot, log_seconds);
        let (commands, units) = self.notes.totals();
        let bytes = self.replica.meter.written.total();
        let totals = Totals {
            commands,
            units,
            bytes,
        };
        let per_second = lately.rates.update(at, totals);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = self.notes.expects_client() && snapshot.clients == 0;
        let since = missing.then(|| shown.no_client_since.unwrap_or(at));
        let missed = since.is_some_and(|since| at.saturating_duration_since(since) >= MISSED);
        if missed && !lately.missed {
            self.notes.client_missing(MISSED);
        }
        lately.missed = missed;
        *shown = Shown {
            at,
            no_client_since: since,
            snapshot,
            per_second,
        };
    }
}
