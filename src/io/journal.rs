//! One thread for the sync directory: its calls block, and they must keep their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::sync_directory::{LookedAt, SyncDirectory};
use crate::core::event::{BatchId, Event, RunId};
use crate::protocol::Site;
use crate::protocol::synclog::Line;

/// How often `log-run` is looked at while a link of it stands.
const LOOK: Duration = Duration::from_millis(20);

/// How often `log` is looked at while somebody wants to know what comes next.
const LOOK_AHEAD: Duration = Duration::from_millis(50);

/// How long the end of the program waits for the thread: who holds a lock on `log`, or a disk
/// that hangs, can keep it for ever. What it leaves undone is healed at the next start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Carries out the core's actions on the sync directory. Dropping it ends the thread, after all
/// that was asked for.
#[derive(Debug)]
pub struct Journal {
    orders: Option<Sender<Order>>,
    /// Ends when the thread does.
    running: Receiver<()>,
}

#[derive(Debug)]
enum Order {
    Link(RunId),
    Drop(RunId),
    Write(BatchId, Vec<Line>),
    Store(BatchId, Vec<Line>),
    Watch(bool),
}

impl Journal {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        directory: SyncDirectory,
        site: Site,
        events: UnboundedSender<Event>,
    ) -> std::io::Result<Self> {
        let (orders, queue) = channel();
        let work = Work {
            directory,
            site,
            events,
            linked: HashSet::new(),
            watched: None,
        };
        let (runs, running) = channel();
        std::thread::Builder::new()
            .name("sync directory".into())
            .spawn(move || {
                let _runs: Sender<()> = runs;
                work.run(&queue);
            })?;
        Ok(Journal {
            orders: Some(orders),
            running,
        })
    }

    /// `Action::LinkRun`
    pub fn link(&self, run: RunId) {
        self.order(Order::Link(run));
    }

    /// `Action::DropLink`
    pub fn drop_link(&self, run: RunId) {
        self.order(Order::Drop(run));
    }

    /// `Action::WriteLines`
    pub fn write_lines(&self, batch: BatchId, lines: Vec<Line>) {
        self.order(Order::Write(batch, lines));
    }

    /// `Action::StoreOwed`
    pub fn store_owed(&self, batch: BatchId, lines: Vec<Line>) {
        self.order(Order::Store(batch, lines));
    }

    /// `Action::WatchLog`
    pub fn watch_log(&self, on: bool) {
        self.order(Order::Watch(on));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only when this sender is gone.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Err(RecvTimeoutError::Timeout) = self.running.recv_timeout(PATIENCE) {
            tracing::error!("the sync directory does not answer; it is healed at the next start");
        }
    }
}

struct Work {
    directory: SyncDirectory,
    site: Site,
    events: UnboundedSender<Event>,
    /// Links whose run was not seen to be gone.
    linked: HashSet<RunId>,
    /// How far `log` has been read ahead, where that is wanted, and when it is to be looked at.
    watched: Option<(LookedAt, Instant)>,
}

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let ahead = self.watched.as_ref().map(|(_, at)| *at);
            let ahead = ahead.map(|at| at.saturating_duration_since(Instant::now()));
            let look = (!self.linked.is_empty()).then_some(LOOK);
            let order = match [ahead, look].into_iter().flatten().min() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => orders.recv_timeout(wait),
            };
            match order {
                Ok(order) => {
                    if let Some(event) = self.carry_out(order) {
                        // Nobody listens any more only when the program ends.
                        let _ = self.events.send(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    self.look_ahead();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn carry_out(&mut self, order: Order) -> Option<Event> {
        match order {
            Order::Link(run) => Some(match self.directory.link(run, &self.site) {
                Ok(coverage) => {
                    self.linked.insert(run);
                    Event::RunLinked {
                        run,
                        coverage: Arc::new(coverage),
                    }
                }
                Err(error) => Event::RunLinkFailed {
                    run,
                    why: error.to_string(),
                },
            }),
            Order::Drop(run) => {
                self.linked.remove(&run);
                if let Err(error) = self.directory.drop_link(run) {
                    tracing::warn!(%error, "a link that is not needed any more stays");
                }
                None
            }
            Order::Watch(on) => {
                let first = || (LookedAt::default(), Instant::now());
                self.watched = on.then(first);
                None
            }
            Order::Write(batch, lines) => Some(match self.directory.append_lines(&lines) {
                Ok(unwritable) => {
                    report(&unwritable);
                    Event::LinesWritten { batch }
                }
                Err(error) => Event::DiskFailed {
                    batch,
                    why: error.to_string(),
                },
            }),
            Order::Store(batch, lines) => Some(match self.directory.store_owed(&lines) {
                Ok(unwritable) => {
                    report(&unwritable);
                    Event::OwedStored { batch }
                }
                Err(error) => Event::DiskFailed {
                    batch,
                    why: error.to_string(),
                },
            }),
        }
    }

    fn look_ahead(&mut self) {
        let Some((looked, at)) = &mut self.watched else {
            return;
        };
        if *at > Instant::now() {
            return;
        }
        let named = self.directory.look_ahead(looked, self.linked.is_empty());
        *at = Instant::now() + LOOK_AHEAD;
        if !named.is_empty() {
            let _ = self.events.send(Event::LogNames { named });
        }
    }

    fn look(&mut self) {
        if self.linked.is_empty() {
            return;
        }
        let now = self.directory.current_run();
        let gone: Vec<RunId> = self
            .linked
            .iter()
            .filter(|run| Some(**run) != now)
            .copied()
            .collect();
        for run in gone {
            self.linked.remove(&run);
            let _ = self.events.send(Event::RunGone { run });
        }
    }
}

/// Nothing with such a name is acknowledged early; a real write with one that the replica refused
/// can't be brought back by a line.
fn report(unwritable: &[Line]) {
    for line in unwritable {
        tracing::error!(
            ?line,
            "a name can't stand in the sync log: sync this user with -u"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_lock_that_is_never_given_back_does_not_keep_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        log.lock().unwrap();
        let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
        let directory = SyncDirectory::open(folder.path()).unwrap();
        let journal = Journal::start(directory, Site::default(), events).unwrap();
        journal.write_lines(BatchId(1), vec![Line::User("joe".into())]);
        let began = Instant::now();
        drop(journal);
        assert!(began.elapsed() < 2 * PATIENCE);
        assert!(told.try_recv().is_err());
        // Without the lock the thread ends by itself, and what was asked for is done.
        log.unlock().unwrap();
        assert!(matches!(
            told.blocking_recv(),
            Some(Event::LinesWritten { batch: BatchId(1) })
        ));
    }
}
