//! Owed lines and probation: what must go back into Cyrus's sync log, and who is affected.
//!
//! A line is owed from the moment its unit fails or is in doubt. It waits out its pause in the
//! owed file, then goes into `log`, and is done with when the replica has said OK to that very
//! command, or when the client has worked through the run that holds it without being refused.
//! A subject is on probation as long as it has a line. At no moment is a line nowhere: the pins on
//! its runs fall only when it stands, fsynced, in the owed file or in `log`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hashbrown::HashMap;

use super::event::{BatchId, RunId, SessionId};
use super::plan::{Subject, covered};
use crate::protocol::Site;
use crate::protocol::synclog::{Coverage, Line};

/// How long after a failed write to disk it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// As many characters of the replica's words are kept.
const WORDS: usize = 512;

/// An owed line, numbered in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LineId(u64);

/// All owed lines.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    lines: BTreeMap<LineId, Owed>,
    /// Those that wait for their time, by it.
    due: BTreeSet<(Duration, LineId)>,
    /// Those that stand in `log`, as far as is known.
    logged: BTreeSet<LineId>,
    subjects: HashMap<Subject, Probation>,
    writing: Option<(BatchId, Vec<LineId>)>,
    /// Lines that are Cyrus's own as soon as they stand in `log`, and who waits for that.
    plain: BTreeMap<Line, Vec<SessionId>>,
    /// Those of them that are on their way there.
    plain_writing: BTreeMap<Line, Vec<SessionId>>,
    storing: Option<(BatchId, Vec<LineId>)>,
    /// The owed file does not hold what it should.
    dirty: bool,
    /// There is an owed file, as far as is known.
    file_exists: bool,
    retry_at: Option<Duration>,
    next_line: u64,
    next_batch: u64,
}

#[derive(Debug)]
struct Owed {
    subject: Subject,
    line: Line,
    due: Duration,
    place: Place,
    /// It stands in the owed file.
    in_file: bool,
    /// On its way into `log` with this batch.
    batch: Option<BatchId>,
    pins: Vec<RunId>,
    waiting: Vec<SessionId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not in `log` yet.
    Waiting,
    /// In `log`, since then, until the client takes it.
    Logged(Duration, Taken),
}

/// Which run holds a line that was written into `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Not known to be in any.
    No,
    /// Not in this one, which may have been renamed before the line was written: a run is first
    /// seen only when a command comes under it.
    After(RunId),
    /// Not known to be in any, and such a run is gone. The next one may have its number: inodes
    /// come again.
    Later,
    /// In this one.
    In(RunId),
}

/// A subject on probation.
#[derive(Clone, Debug)]
pub(super) struct Probation {
    /// Its lines that are not done with.
    lines: HashMap<Line, LineId>,
    /// How often it was refused since it went on probation.
    pub(super) failures: u32,
    /// Until when a USER sync of it is deferred.
    pub(super) until: Duration,
    /// When the last of its lines is due.
    pub(super) due: Duration,
    /// Since when it is on probation.
    pub(super) since: Duration,
    /// When the oldest change came that is not done with: before it was refused.
    pub(super) oldest: Duration,
    /// The replica's own words, or how the lane was lost.
    pub(super) words: String,
}

impl Probation {
    /// How many lines are not done with.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }
}

/// What became true when lines reached the disk or were done with.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// One entry a pin: these runs are needed for one line less.
    pub(super) unpin: Vec<RunId>,
    /// Lines that these sessions waited for are durable, or done with.
    pub(super) durable: Vec<SessionId>,
    /// These sessions waited for lines that could not be made durable.
    pub(super) failed: Vec<SessionId>,
    /// Off probation.
    pub(super) healed: Vec<Subject>,
    /// Lines written into `log`.
    pub(super) written: usize,
}

/// What is to be written next.
#[derive(Debug)]
pub(super) enum Batch {
    Log(BatchId, Vec<Line>),
    OwedFile(BatchId, Vec<Line>),
}

impl Ledger {
    /// Whether a subject is on probation.
    pub(super) fn on_probation(&self, subject: &Subject) -> bool {
        self.subjects.contains_key(subject)
    }

    /// The subject's probation.
    pub(super) fn probation(&self, subject: &Subject) -> Option<&Probation> {
        self.subjects.get(subject)
    }

    /// Everybody on probation.
    pub(super) fn subjects(&self) -> impl Iterator<Item = (&Subject, &Probation)> {
        self.subjects.iter()
    }

    /// Whether any line stands in `log` and waits to be taken by the client.
    pub(super) fn awaits_run(&self) -> bool {
        !self.logged.is_empty()
    }

    /// How many lines are not done with.
    pub(super) fn len(&self) -> usize {
        self.lines.len() + self.plain()
    }

    /// How many of them are Cyrus's own as soon as they stand in `log`.
    pub(super) fn plain(&self) -> usize {
        self.plain.len() + self.plain_writing.len()
    }

    /// Whether this is one of them.
    pub(super) fn owes(&self, subject: &Subject, line: &Line) -> bool {
        let probation = self.subjects.get(subject);
        probation.is_some_and(|probation| probation.lines.contains_key(line))
    }

    /// Whether the disk has just refused a write.
    pub(super) fn disk_fails(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Whether every line stands on disk in a place of its own.
    pub(super) fn all_durable(&self) -> bool {
        self.plain() == 0 && self.lines.values().all(Owed::durable)
    }

    /// Puts a subject on probation; `refused` counts a refusal. Returns its probation and whether
    /// that is new.
    pub(super) fn fail(
        &mut self,
        subject: &Subject,
        words: &str,
        refused: bool,
        now: Duration,
    ) -> (&mut Probation, bool) {
        let new = !self.subjects.contains_key(subject);
        let probation = self
            .subjects
            .entry(subject.clone())
            .or_insert_with(|| Probation {
                lines: HashMap::new(),
                failures: 0,
                until: now,
                due: now,
                since: now,
                oldest: now,
                words: String::new(),
            });
        // Several refusals within one try are one failure.
        if refused && (probation.failures == 0 || probation.due <= now) {
            probation.failures += 1;
        }
        probation.words = words.chars().take(WORDS).collect();
        (probation, new)
    }

    /// A change that came then is among what is owed for a subject on probation.
    pub(super) fn waits_since(&mut self, subject: &Subject, came: Duration) {
        if let Some(probation) = self.subjects.get_mut(subject) {
            probation.oldest = probation.oldest.min(came);
        }
    }

    /// No USER sync of a subject on probation before this time.
    pub(super) fn leave_alone(&mut self, subject: &Subject, until: Duration) {
        if let Some(probation) = self.subjects.get_mut(subject) {
            probation.until = probation.until.max(until);
        }
    }

    /// Owes a line of a subject that is on probation, to be written into `log` at `due`. `pins`
    /// are the runs under which it was acknowledged; `waiting` is a session whose answer must not
    /// go out before the line is durable.
    pub(super) fn owe(
        &mut self,
        subject: &Subject,
        line: &Line,
        due: Duration,
        pins: Vec<RunId>,
        waiting: Option<SessionId>,
    ) {
        let Some(probation) = self.subjects.get_mut(subject) else {
            debug_assert!(false, "owed a line for a subject that is not on probation");
            return;
        };
        probation.due = probation.due.max(due);
        let next_line = &mut self.next_line;
        let id = *probation.lines.entry(line.clone()).or_insert_with(|| {
            *next_line += 1;
            LineId(*next_line)
        });
        let owed = self.lines.entry(id).or_insert_with(|| Owed {
            subject: subject.clone(),
            line: line.clone(),
            due,
            place: Place::Waiting,
            in_file: false,
            batch: None,
            pins: Vec::new(),
            waiting: Vec::new(),
        });
        // A line that stands in `log` may have been taken already: it is written again. Never
        // sooner than it was to be: a SEEN in doubt waits for what may still run on the replica.
        self.due.remove(&(owed.due, id));
        self.logged.remove(&id);
        owed.place = Place::Waiting;
        owed.batch = None;
        owed.due = owed.due.max(due);
        self.due.insert((owed.due, id));
        owed.pins.extend(pins);
        owed.waiting.extend(waiting);
        self.dirty = true;
    }

    /// Appends a line to `log`, as Cyrus itself would have done: nobody is on probation for it, and
    /// it is done with when it stands there. `waiting` is a session whose answer must not go out
    /// before that.
    pub(super) fn append(&mut self, line: Line, waiting: Option<SessionId>) {
        // One that is on its way may have been taken by the client before this change was made.
        self.plain.entry(line).or_default().extend(waiting);
    }

    /// A session does not wait any longer for lines of its own that are to be appended.
    pub(super) fn waits_no_more(&mut self, session: SessionId) {
        let waiting = self
            .plain
            .values_mut()
            .chain(self.plain_writing.values_mut());
        waiting.for_each(|list| list.retain(|other| *other != session));
    }

    /// What to write now. One batch of each kind is under way at a time.
    pub(super) fn next_batch(&mut self, now: Duration) -> Option<Batch> {
        if self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.retry_at = None;
        let is_due = self.due.first().is_some_and(|(due, _)| *due <= now);
        if self.writing.is_none() && (is_due || !self.plain.is_empty()) {
            let batch = self.batch_id();
            let mut ids = Vec::new();
            while let Some((due, id)) = self.due.pop_first() {
                if due > now {
                    self.due.insert((due, id));
                    break;
                }
                ids.push(id);
            }
            ids.sort_unstable();
            let mut lines = Vec::with_capacity(ids.len());
            for id in &ids {
                if let Some(owed) = self.lines.get_mut(id) {
                    owed.batch = Some(batch);
                    lines.push(owed.line.clone());
                }
            }
            self.plain_writing = std::mem::take(&mut self.plain);
            lines.extend(self.plain_writing.keys().cloned());
            self.writing = Some((batch, ids));
            return Some(Batch::Log(batch, lines));
        }
        // While a batch is on its way into `log` its lines stay in the owed file.
        if self.storing.is_none() && self.writing.is_none() && self.dirty {
            self.dirty = false;
            let (ids, lines): (Vec<_>, Vec<_>) = self
                .lines
                .iter()
                .filter(|(_, owed)| owed.place == Place::Waiting)
                .map(|(id, owed)| (*id, owed.line.clone()))
                .unzip();
            if !ids.is_empty() || self.file_exists {
                self.file_exists = !ids.is_empty();
                let batch = self.batch_id();
                self.storing = Some((batch, ids));
                return Some(Batch::OwedFile(batch, lines));
            }
        }
        None
    }

    /// When `next_batch` has something to do that it has not now.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let due = self.due.first().map(|(due, _)| *due);
        match self.retry_at {
            Some(at) => Some(at),
            None if self.writing.is_some() => None,
            None => due,
        }
    }

    /// The lines of a batch stand in `log`.
    pub(super) fn written(&mut self, batch: BatchId, now: Duration) -> Settled {
        let mut settled = Settled::default();
        let Some((_, ids)) = self.writing.take_if(|(id, _)| *id == batch) else {
            return settled;
        };
        settled.written += self.plain_writing.len();
        let waited = std::mem::take(&mut self.plain_writing);
        settled.durable.extend(waited.into_values().flatten());
        for id in ids {
            settled.written += 1;
            let Some(owed) = self.lines.get_mut(&id) else {
                continue;
            };
            // Owed again while the batch was under way: the client may have taken the line from
            // `log` before it was refused, so the later debt stands.
            if owed.batch.take() != Some(batch) {
                continue;
            }
            owed.place = Place::Logged(now, Taken::No);
            self.logged.insert(id);
            self.dirty |= std::mem::take(&mut owed.in_file);
            owed.settle(&mut settled);
        }
        settled
    }

    /// The owed file holds the lines of a batch, and no others.
    pub(super) fn stored(&mut self, batch: BatchId) -> Settled {
        let mut settled = Settled::default();
        let Some((_, ids)) = self.storing.take_if(|(id, _)| *id == batch) else {
            return settled;
        };
        for owed in self.lines.values_mut() {
            owed.in_file = false;
        }
        for id in ids {
            if let Some(owed) = self.lines.get_mut(&id) {
                owed.in_file = true;
                owed.settle(&mut settled);
            }
        }
        settled
    }

    /// A batch could not be written: it is tried again after a while.
    pub(super) fn disk_failed(&mut self, batch: BatchId, now: Duration) -> Settled {
        let mut settled = Settled::default();
        let written = self.writing.take_if(|(id, _)| *id == batch);
        if written.is_some() {
            for (line, waited) in std::mem::take(&mut self.plain_writing) {
                self.plain.entry(line).or_default().extend(waited);
            }
        }
        for waited in self.plain.values_mut() {
            settled.failed.append(waited);
        }
        for id in written.into_iter().flat_map(|(_, ids)| ids) {
            // What was owed again meanwhile waits already.
            if let Some(owed) = self.lines.get_mut(&id)
                && owed.batch.take() == Some(batch)
            {
                self.due.insert((owed.due, id));
            }
        }
        if self.storing.take_if(|(id, _)| *id == batch).is_some() {
            self.dirty = true;
            self.file_exists = true;
        }
        self.retry_at = Some(now + RETRY);
        for owed in self.lines.values_mut() {
            settled.failed.append(&mut owed.waiting);
        }
        settled
    }

    /// The replica said OK to the very command of this line.
    pub(super) fn done(&mut self, subject: &Subject, line: &Line) -> Settled {
        let mut settled = Settled::default();
        let found = self
            .subjects
            .get(subject)
            .and_then(|probation| probation.lines.get(line));
        if let Some(id) = found.copied() {
            self.forget(id, &mut settled);
        }
        settled
    }

    /// A run is linked. A line that stood in `log` before the run was first seen is in it, or it
    /// is in the next one: the rename itself was not seen. If it is in neither, an earlier run
    /// held it, and the client has worked through that one.
    pub(super) fn run_linked(
        &mut self,
        run: RunId,
        seen: Duration,
        coverage: &Coverage,
        site: &Site,
    ) -> Settled {
        let mut settled = Settled::default();
        let mut done = Vec::new();
        let mut taken = Vec::new();
        for id in &self.logged {
            let Some(owed) = self.lines.get_mut(id) else {
                continue;
            };
            let Place::Logged(at, by) = owed.place else {
                continue;
            };
            if at >= seen {
                continue;
            }
            let second = match by {
                Taken::After(first) => first != run,
                by => by == Taken::Later,
            };
            if covered(&owed.line, coverage, site) || (second && !can_be_covered(&owed.line)) {
                owed.place = Place::Logged(at, Taken::In(run));
                taken.push(*id);
            } else if second {
                done.push(*id);
            } else {
                owed.place = Place::Logged(at, Taken::After(run));
            }
        }
        for id in taken {
            self.logged.remove(&id);
        }
        for id in done {
            self.forget(id, &mut settled);
        }
        settled
    }

    /// The client has worked through a run and unlinked it: whatever it was refused is owed again
    /// by now, the rest of the run's lines is done with.
    pub(super) fn run_gone(&mut self, run: RunId) -> Settled {
        let mut settled = Settled::default();
        for id in &self.logged {
            if let Some(owed) = self.lines.get_mut(id)
                && let Place::Logged(at, Taken::After(after)) = owed.place
                && after == run
            {
                owed.place = Place::Logged(at, Taken::Later);
            }
        }
        let held =
            |owed: &Owed| matches!(owed.place, Place::Logged(_, Taken::In(held)) if held == run);
        let done: Vec<_> = self
            .lines
            .iter()
            .filter(|(_, owed)| held(owed))
            .map(|(id, _)| *id)
            .collect();
        for id in done {
            self.forget(id, &mut settled);
        }
        settled
    }

    fn forget(&mut self, id: LineId, settled: &mut Settled) {
        let Some(mut owed) = self.lines.remove(&id) else {
            return;
        };
        self.due.remove(&(owed.due, id));
        self.logged.remove(&id);
        self.dirty |= owed.in_file || owed.place == Place::Waiting;
        owed.settle(settled);
        let Some(probation) = self.subjects.get_mut(&owed.subject) else {
            return;
        };
        probation.lines.remove(&owed.line);
        if probation.lines.is_empty() {
            self.subjects.remove(&owed.subject);
            settled.healed.push(owed.subject);
        }
    }

    fn batch_id(&mut self) -> BatchId {
        self.next_batch += 1;
        BatchId(self.next_batch)
    }
}

impl Owed {
    fn durable(&self) -> bool {
        self.in_file || matches!(self.place, Place::Logged(..))
    }

    /// It is durable, or done with: nothing needs to wait for it any more.
    fn settle(&mut self, settled: &mut Settled) {
        settled.unpin.append(&mut self.pins);
        settled.durable.append(&mut self.waiting);
    }
}

/// Whether [`covered`] can tell that a run holds this line.
fn can_be_covered(line: &Line) -> bool {
    matches!(
        line,
        Line::Mailbox(_) | Line::Seen(..) | Line::Sub(..) | Line::User(_)
    )
}
