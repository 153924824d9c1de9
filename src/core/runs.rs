//! The runs that are linked, and how long each link must stay.
//!
//! A link stays until the client has unlinked `log-run` and everything acknowledged under it is
//! confirmed, or its line stands somewhere else on disk. Every such thing is a pin.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::event::RunId;
use crate::protocol::synclog::Coverage;

/// How long after a failed link the same run is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// All runs that are known.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: HashMap<RunId, Run>,
    /// What `log-run` was when it was last looked at, and when that was.
    current: Option<RunId>,
    looked: Option<Duration>,
    /// When it was last seen to be another than `current`.
    before: Option<Duration>,
}

/// When a run became `log-run`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// Not earlier than this, where that is known.
    pub(super) after: Option<Duration>,
    /// Not later than this.
    pub(super) seen: Duration,
}

#[derive(Debug)]
struct Run {
    state: State,
    /// `log-run` is not this run any more.
    gone: bool,
    pins: usize,
    begun: Begun,
}

#[derive(Debug)]
enum State {
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

impl Runs {
    /// Looks a run up; after `Link` it counts as being linked.
    pub(super) fn cover(&mut self, run: RunId, now: Duration) -> Cover {
        if let Some(known) = self.runs.get(&run) {
            match &known.state {
                State::Linked(_) if known.gone => return Cover::Never,
                State::Linked(coverage) => return Cover::Linked(coverage.clone()),
                State::Linking => return Cover::Wait,
                State::Failed(at) if now.saturating_sub(*at) < RETRY => return Cover::Never,
                State::Failed(_) => {}
            }
        }
        let new = Run {
            state: State::Linking,
            gone: false,
            pins: 0,
            begun: Begun {
                after: self.before.filter(|_| self.current == Some(run)),
                seen: now,
            },
        };
        self.runs.insert(run, new);
        Cover::Link
    }

    /// When the run began.
    pub(super) fn begun(&self, run: RunId) -> Option<Begun> {
        self.runs.get(&run).map(|run| run.begun)
    }

    /// Whether `log-run` is not this run any more.
    pub(super) fn is_gone(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|run| run.gone)
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

    /// Marks as gone what is not `log-run` now; returns those that were not gone before.
    pub(super) fn is_now(&mut self, current: Option<RunId>, now: Duration) -> Vec<RunId> {
        if self.current != current {
            self.current = current;
            self.before = self.looked;
        }
        self.looked = Some(now);
        let gone = |(id, run): (&RunId, &mut Run)| {
            (Some(*id) != current && !std::mem::replace(&mut run.gone, true)).then_some(*id)
        };
        self.runs.iter_mut().filter_map(gone).collect()
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
                State::Failed(_) => !run.gone,
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

    /// Links that nothing needs but the run's own client; they are forgotten.
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
