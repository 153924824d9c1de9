//! How a job goes down a lane: one command, or for a unit the messages that the replica lacks and
//! then the APPLY MAILBOX.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use super::job::{Job, Unit, Work};
use super::lanes::{Lane, Sent, Staged, What};
use super::limits::Limits;
use super::queue::JobId;
use super::staging::Need;
use crate::protocol::{Body, File, Guid, Reply, Status, StatusKind, print};

/// Files in one APPLY MESSAGE, as the stock client does it (`update_mailbox_once`).
const FILES: usize = 1024;
/// Bytes in one APPLY MESSAGE before the next is begun.
const MESSAGE_BYTES: u64 = 16 << 20;
/// GUIDs in one RESERVE, as the stock client does it (`sync_reserve_partition`).
const GUIDS: usize = 8192;

/// Requests to be sent on a lane, in order.
#[derive(Debug, Default)]
pub(super) struct Output(pub(super) Vec<Body>);

/// What an answer meant for its job.
#[derive(Debug)]
pub(super) enum Progress {
    /// More is to come.
    Going,
    /// The job has its answer.
    Done(Reply),
}

impl Output {
    fn send(&mut self, lane: &mut Lane, job: Option<JobId>, what: What, body: Body, now: Duration) {
        lane.sent(job, what, body.len(), now);
        self.0.push(body);
    }
}

/// Puts a job on a lane; an error is the job's answer, found without asking.
pub(super) fn start(
    lane: &mut Lane,
    id: JobId,
    job: &mut Job,
    limits: &Limits,
    now: Duration,
) -> Result<Output, Reply> {
    let mut output = Output::default();
    lane.jobs.insert(id);
    let careful = job.careful;
    match &mut job.work {
        Work::Plain(body) => {
            let body = body.clone();
            output.send(lane, Some(id), What::Command, body, now);
        }
        Work::Unit(unit) => {
            lane.open_units += 1;
            unit.step = Step::default();
            let lacking =
                |need: &&Need| !lane.staged.contains(&(unit.partition.clone(), need.guid));
            let lacking: Vec<Need> = unit.needs.iter().filter(lacking).cloned().collect();
            if worth_asking(&lacking, limits) {
                ask(lane, id, unit, &lacking, &mut output, now);
            } else {
                upload(lane, id, unit, &lacking, careful, &mut output, now)?;
            }
        }
    }
    Ok(output)
}

/// How far a unit is on its lane.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// What the replica said it lacks.
    missing: HashSet<Guid>,
    asked: Vec<Need>,
    /// A MESSAGE was refused with these words.
    refused: Option<Status>,
    /// The MAILBOX is out.
    committed: bool,
}

impl Step {
    /// Whether the MAILBOX is out.
    pub(super) fn committed(&self) -> bool {
        self.committed
    }
}

/// Whether a round trip for a RESERVE is worth it: for messages that only the replica can have,
/// for large ones, and for copies and moves, which name several mailboxes.
fn worth_asking(lacking: &[Need], limits: &Limits) -> bool {
    let bytes = |need: &Need| need.file.as_ref().map_or(0, |file| file.content.len());
    let several = |need: &Need| need.mailboxes.as_ref().is_some_and(|names| names.len() > 1);
    lacking
        .iter()
        .any(|need| need.file.is_none() || several(need))
        || lacking
            .iter()
            .filter(|need| need.mailboxes.is_some())
            .map(bytes)
            .sum::<u64>()
            > limits.ask_bytes
}

fn ask(
    lane: &mut Lane,
    id: JobId,
    unit: &mut Unit,
    lacking: &[Need],
    output: &mut Output,
    now: Duration,
) {
    // One RESERVE for each list of mailboxes that the client named; where it named none, the
    // mailbox itself.
    let own: Arc<[Bytes]> = Arc::from([unit.mailbox.clone()]);
    let mut lists: Vec<(Arc<[Bytes]>, Vec<Guid>)> = Vec::new();
    for need in lacking {
        let names = need.mailboxes.as_ref().unwrap_or(&own);
        match lists.iter_mut().find(|(list, _)| Arc::ptr_eq(list, names)) {
            Some((_, guids)) => guids.push(need.guid),
            None => lists.push((names.clone(), vec![need.guid])),
        }
    }
    unit.step.asked = lacking.to_vec();
    let chunks: Vec<(Arc<[Bytes]>, Vec<Guid>)> = lists
        .into_iter()
        .flat_map(|(names, guids)| {
            let chunks: Vec<_> = guids.chunks(GUIDS).map(<[Guid]>::to_vec).collect();
            chunks.into_iter().map(move |chunk| (names.clone(), chunk))
        })
        .collect();
    let count = chunks.len();
    for (index, (names, guids)) in chunks.into_iter().enumerate() {
        let body = print::reserve(&unit.partition, &names, &guids);
        let last = index + 1 == count;
        let what = What::Reserve {
            partition: unit.partition.clone(),
            guids,
            last,
        };
        output.send(lane, Some(id), what, body, now);
    }
}

/// Sends the messages and, unless care is needed, the MAILBOX right behind them.
fn upload(
    lane: &mut Lane,
    id: JobId,
    unit: &mut Unit,
    lacking: &[Need],
    careful: bool,
    output: &mut Output,
    now: Duration,
) -> Result<(), Reply> {
    let mut files: Vec<&File> = Vec::with_capacity(lacking.len());
    for need in lacking {
        match &need.file {
            Some(file) => files.push(file),
            // The MAILBOX would kill the replica's process (protocol.md 6).
            None => return Err(nobody_has(need.guid)),
        }
    }
    let mut rest = &files[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |file: &&&File| {
            let first = bytes == 0;
            bytes += file.content.len();
            first || bytes <= MESSAGE_BYTES
        };
        let count = rest.iter().take(FILES).take_while(fits).count().max(1);
        let (now_files, later) = rest.split_at(count);
        let staged: Vec<Staged> = now_files
            .iter()
            .map(|file| (file.partition.clone(), file.guid))
            .collect();
        lane.staged.extend(staged.iter().cloned());
        lane.staged_bytes += now_files.iter().map(|file| file.content.len()).sum::<u64>();
        let body = print::message(now_files.iter().copied());
        let what = What::Message {
            staged,
            last: later.is_empty(),
        };
        output.send(lane, Some(id), what, body, now);
        rest = later;
    }
    if files.is_empty() || !careful {
        commit(lane, id, unit, output, now);
    }
    Ok(())
}

fn commit(lane: &mut Lane, id: JobId, unit: &mut Unit, output: &mut Output, now: Duration) {
    unit.step.committed = true;
    lane.open_units -= 1;
    output.send(lane, Some(id), What::Command, unit.command.clone(), now);
}

/// An answer has come for a job that is on a lane.
pub(super) fn answered(
    lane: &mut Lane,
    id: JobId,
    job: &mut Job,
    sent: Sent,
    reply: Reply,
    now: Duration,
) -> (Output, Progress) {
    let mut output = Output::default();
    let careful = job.careful;
    let ok = reply.status.kind == StatusKind::Ok;
    let unit = match (&sent.what, &mut job.work) {
        (What::Command, _) | (_, Work::Plain(_)) => return (output, Progress::Done(reply)),
        (_, Work::Unit(unit)) => unit,
    };
    match sent.what {
        What::Reserve {
            partition,
            guids,
            last,
        } => {
            let missing = |line: &crate::protocol::Untagged| line.kind.as_ref() == b"MISSING";
            let lines = reply.untagged.iter().filter(|line| missing(line));
            let lacks: HashSet<Guid> = lines.flat_map(|line| line.guids.iter().copied()).collect();
            if ok {
                let found = guids.iter().filter(|guid| !lacks.contains(*guid));
                lane.staged
                    .extend(found.map(|guid| (partition.clone(), *guid)));
                unit.step.missing.extend(lacks);
            } else {
                // It could not be asked, so nothing is known to be there.
                unit.step.missing.extend(guids);
            }
            if last {
                let asked = std::mem::take(&mut unit.step.asked);
                let missing = std::mem::take(&mut unit.step.missing);
                let lacking: Vec<Need> = asked
                    .into_iter()
                    .filter(|need| missing.contains(&need.guid))
                    .collect();
                if let Err(refusal) = upload(lane, id, unit, &lacking, careful, &mut output, now) {
                    return (output, Progress::Done(refusal));
                }
            }
        }
        What::Message { staged, last } => {
            if !ok {
                for name in &staged {
                    lane.staged.remove(name);
                }
                unit.step.refused.get_or_insert(reply.status);
            }
            if last && !unit.step.committed {
                if let Some(status) = unit.step.refused.take() {
                    return (
                        output,
                        Progress::Done(Reply {
                            untagged: Vec::new(),
                            status,
                        }),
                    );
                }
                commit(lane, id, unit, &mut output, now);
            }
        }
        _ => debug_assert!(false, "a lane's own request was taken for a job's"),
    }
    (output, Progress::Going)
}

/// Sends RESTART where the lane's staging on the replica has grown large, or `now_or_never`.
pub(super) fn restart(lane: &mut Lane, limits: &Limits, idle: bool, now: Duration) -> Output {
    let mut output = Output::default();
    let large = lane.staged_bytes > limits.lane_staged_bytes
        || lane.staged.len() > limits.lane_staged_messages;
    if !lane.staged.is_empty() && lane.open_units == 0 && (large || idle) {
        lane.staged.clear();
        lane.staged_bytes = 0;
        output.send(lane, None, What::Restart, print::RESTART.into(), now);
    }
    output
}

/// Sends a request of the lane's own.
pub(super) fn own(lane: &mut Lane, what: What, body: Body, now: Duration) -> Output {
    let mut output = Output::default();
    output.send(lane, None, what, body, now);
    output
}

fn nobody_has(guid: Guid) -> Reply {
    let text = format!("Message {guid} is on neither side; see the master's log");
    let status = Status {
        kind: StatusKind::No,
        text: text.into(),
    };
    Reply {
        untagged: Vec::new(),
        status,
    }
}
