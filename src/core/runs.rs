//! The runs that are linked, and how long each link must stay.
//!
//! A link stays until the client has unlinked `log-run` and everything acknowledged under it is
//! confirmed, or its line stands somewhere else on disk. Every such thing is a pin.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::Core;
use super::event::{Note, RunId, SessionId};
use super::session::{Pending, Session};
use crate::protocol::synclog::Coverage;

/// How long after a failed link the same run is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// All runs that are known.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: HashMap<RunId, Run>,
}

#[derive(Debug)]
struct Run {
    state: State,
    /// `log-run` is not this run any more.
    gone: bool,
    pins: usize,
    seen: Duration,
}

#[derive(Debug)]
enum State {
    /// A command came under it; no link was asked for.
    Known,
    Linking,
    Linked(Arc<Coverage>),
    Failed(Duration),
}

/// What to do about a run that a command came under.
#[derive(Debug)]
pub(super) enum Cover {
    /// It is linked.
    Linked(Arc<Coverage>),
    /// It is being linked.
    Wait,
    /// It must be linked first.
    Link,
    /// It can't be linked.
    Never,
}

impl Core {
    /// A run is linked, and this is what it covers.
    pub(super) fn run_linked(&mut self, run: RunId, coverage: Arc<Coverage>) {
        self.runs.linked(run, coverage.clone());
        self.not_covered = false;
        if let Some(seen) = self.runs.seen(run) {
            let settled = self
                .ledger
                .run_linked(run, seen, &coverage, &self.setup.site);
            self.settle(settled);
        }
        if self.runs.is_gone(run) {
            // Its end came before its link.
            let settled = self.ledger.run_gone(run);
            self.settle(settled);
        }
        self.read_ahead(run, &coverage);
        self.uncover(run);
    }

    /// Nothing may be acknowledged under this run.
    pub(super) fn run_link_failed(&mut self, run: RunId, why: String) {
        self.runs.failed(run, self.now);
        if !std::mem::replace(&mut self.not_covered, true) {
            self.note(Note::NotCovered { why });
        }
        self.uncover(run);
    }

    /// The client has unlinked it.
    pub(super) fn run_gone(&mut self, run: RunId) {
        self.not_ahead(run);
        if self.runs.gone(run) {
            let settled = self.ledger.run_gone(run);
            self.settle(settled);
        }
    }

    /// Commands that waited to know whether they are covered are looked at again.
    fn uncover(&mut self, run: RunId) {
        let waits = |session: &Session| matches!(&session.pending, Some(Pending::Cover { run: other, .. }) if *other == run);
        let waiting: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| waits(session))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.resubmit(id);
        }
    }
}

impl Runs {
    /// Looks a run up; after `Link` it counts as being linked.
    pub(super) fn cover(&mut self, run: RunId, now: Duration) -> Cover {
        let known = self.see(run, now);
        match &known.state {
            State::Linked(_) if known.gone => return Cover::Never,
            State::Linked(coverage) => return Cover::Linked(coverage.clone()),
            State::Linking => return Cover::Wait,
            State::Failed(at) if now.saturating_sub(*at) < RETRY => return Cover::Never,
            State::Known | State::Failed(_) => {}
        }
        known.state = State::Linking;
        known.gone = false;
        Cover::Link
    }

    /// Notes when a run is first seen: what is written into `log` after that is not in it.
    fn see(&mut self, run: RunId, now: Duration) -> &mut Run {
        self.runs.entry(run).or_insert_with(|| Run {
            state: State::Known,
            gone: false,
            pins: 0,
            seen: now,
        })
    }

    /// When the run was first seen.
    pub(super) fn seen(&self, run: RunId) -> Option<Duration> {
        self.runs.get(&run).map(|run| run.seen)
    }

    /// The link stands.
    pub(super) fn linked(&mut self, run: RunId, coverage: Arc<Coverage>) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.state = State::Linked(coverage);
        }
    }

    /// There will be no link.
    pub(super) fn failed(&mut self, run: RunId, now: Duration) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.state = State::Failed(now);
        }
    }

    /// Something acknowledged under this run must be remembered.
    pub(super) fn pin(&mut self, run: RunId) {
        match self.runs.get_mut(&run) {
            Some(run) => run.pins += 1,
            None => debug_assert!(false, "pinned a run that is not known"),
        }
    }

    /// It is confirmed, or remembered elsewhere.
    pub(super) fn unpin(&mut self, run: RunId) {
        match self.runs.get_mut(&run) {
            Some(run) if run.pins > 0 => run.pins -= 1,
            _ => debug_assert!(false, "unpinned a run that has no pin"),
        }
    }

    /// Whether the client has unlinked it.
    pub(super) fn is_gone(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|run| run.gone)
    }

    /// Marks as gone what is not `log-run` now; returns those that were not gone before.
    pub(super) fn is_now(&mut self, current: Option<RunId>, now: Duration) -> Vec<RunId> {
        if let Some(run) = current {
            self.see(run, now);
        }
        let gone = |(id, run): (&RunId, &mut Run)| {
            (Some(*id) != current && !std::mem::replace(&mut run.gone, true)).then_some(*id)
        };
        let mut news: Vec<RunId> = self.runs.iter_mut().filter_map(gone).collect();
        news.sort_unstable();
        news
    }

    /// Marks one run as gone; returns whether that is news.
    pub(super) fn gone(&mut self, run: RunId) -> bool {
        self.runs
            .get_mut(&run)
            .is_some_and(|run| !std::mem::replace(&mut run.gone, true))
    }

    /// Forgets what is not needed any more; returns the links to drop.
    pub(super) fn sweep(&mut self) -> Vec<RunId> {
        let mut drop = Vec::new();
        self.runs.retain(|id, run| {
            let keep = match run.state {
                State::Linking => true,
                State::Known | State::Failed(_) => !run.gone,
                State::Linked(_) => !run.gone || run.pins > 0,
            };
            if !keep && matches!(run.state, State::Linked(_)) {
                drop.push(*id);
            }
            keep
        });
        drop.sort_unstable();
        drop
    }

    /// Links that nothing needs but the run's own client, which does log-run again by itself;
    /// they are forgotten. Only where nothing is acknowledged any more.
    pub(super) fn not_pinned(&mut self) -> Vec<RunId> {
        for run in self.runs.values_mut() {
            run.gone |= run.pins == 0;
        }
        self.sweep()
    }

    /// How many links stand.
    pub(super) fn len(&self) -> usize {
        self.runs
            .values()
            .filter(|run| matches!(run.state, State::Linked(_)))
            .count()
    }
}
