//! Short stories of the sync directory, each with a crash before every single system call, and
//! with everything that a power loss at that moment may leave, up to a bound; then the start after
//! it, which crashes as well.

use std::collections::BTreeSet;

use rustix::io::Errno;
use syncmux::core::RunId;
use syncmux::io::sync_directory::SyncDirectory;
use syncmux::protocol::Site;
use syncmux::protocol::synclog::{Item, Line};

use crate::disk::{Fault, Odometer, SharedDisk, State, Write, lines, lines_put_back};

/// So many outcomes of one power loss are tried one by one; beyond that some at random.
const BOUND: usize = 64;
/// So many of them, at each crash, have a start that crashes at each of its calls as well.
const DEEP: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// An imapd logs a mailbox.
    Imapd(&'static str, Write),
    /// The client begins a run.
    Rename,
    /// The client ends it.
    Unlink,
    /// Links `log-run`; from then on everything that it names may be acknowledged.
    Link,
    /// Removes the oldest link.
    Drop,
    Owe(&'static [&'static str]),
    Append(&'static [&'static str]),
    /// The replica has it.
    Confirm(&'static str),
    Recover,
}

fn mailboxes(names: &[&'static str]) -> Vec<Line> {
    let line = |name: &&'static str| Line::Mailbox((*name).into());
    names.iter().map(line).collect()
}

fn names(items: Vec<Item>) -> BTreeSet<String> {
    let name = |item: Item| String::from_utf8_lossy(&item.first).into_owned();
    items.into_iter().map(name).collect()
}

/// What a process that reads the directory now finds somewhere.
fn remembered(state: &State) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["log", "log-run"] {
        found.extend(names(lines(state.read(name).unwrap_or_default())));
    }
    for name in state.names("syncmux-").filter(|name| !name.contains("tmp")) {
        found.extend(names(lines_put_back(state.read(name).unwrap())));
    }
    found
}

/// Carries out the steps until syncmux dies; returns what must not be lost then.
fn play(disk: &SharedDisk, steps: &[Step], mut promised: BTreeSet<String>) -> BTreeSet<String> {
    let directory = SyncDirectory::on(disk.syncmux());
    let mut linked = Vec::new();
    for step in steps {
        let mut owed = BTreeSet::new();
        let done = match step {
            Step::Imapd(name, how) => {
                let line = Line::Mailbox((*name).into());
                let mut text = Vec::new();
                line.print(&mut text).unwrap();
                let text = String::from_utf8(text).unwrap();
                disk.state().imapd_writes(text.trim_end(), *how);
                continue;
            }
            Step::Rename => {
                disk.state().client_renames();
                continue;
            }
            Step::Unlink => {
                disk.state().cyrus.unlinks = true;
                disk.state().client_unlinks();
                continue;
            }
            Step::Confirm(name) => {
                promised.remove(*name);
                continue;
            }
            Step::Link => {
                let run = RunId(disk.state().inode("log-run").unwrap());
                linked.push(run);
                owed = names(lines(disk.state().read("log-run").unwrap()));
                let done = directory.link(run, &Site::default());
                done.map(|coverage| assert!(!coverage.is_empty()))
            }
            Step::Drop => directory.drop_link(linked.remove(0)),
            Step::Owe(lines) | Step::Append(lines) => {
                owed = lines.iter().map(|name| (*name).to_owned()).collect();
                let lines = mailboxes(lines);
                let done = match step {
                    Step::Owe(_) => directory.store_owed(&lines),
                    _ => directory.append_lines(&lines),
                };
                done.map(|left_out| assert!(left_out.is_empty()))
            }
            Step::Recover => directory.recover().map(drop),
        };
        if disk.state().dead {
            return promised;
        }
        done.unwrap();
        promised.extend(owed);
    }
    promised
}

/// A start; the promises must hold before it and after.
fn start(state: State, promised: &BTreeSet<String>, what: &dyn Fn() -> String) -> State {
    check(&state, promised, what);
    let before = names(lines(state.read("log").unwrap_or_default()));
    let disk = SharedDisk::new(state);
    disk.state().appended.clear();
    let directory = SyncDirectory::on(disk.syncmux());
    let result = directory.recover();
    let state = disk.state().clone();
    if !state.dead {
        result.unwrap();
        let logs = ["log", "log-run"].map(|name| state.read(name).unwrap_or_default());
        let found: BTreeSet<_> = logs
            .into_iter()
            .flat_map(|text| names(lines(text)))
            .collect();
        assert!(promised.is_subset(&found), "{found:?}: {}", what());
        assert_eq!(state.names("syncmux-").count(), 0, "{}", what());
    }
    // Each once, and not what stands there.
    let mut once = before;
    for item in lines_put_back(&state.appended) {
        let name = String::from_utf8_lossy(&item.first).into_owned();
        assert!(once.insert(name.clone()), "{name} twice: {}", what());
    }
    state
}

fn check(state: &State, promised: &BTreeSet<String>, what: &dyn Fn() -> String) {
    let found = remembered(state);
    assert!(
        promised.is_subset(&found),
        "promised {promised:?}, found {found:?}\n{}\n{state:?}",
        what()
    );
}

/// What a crash may leave: a kill, or a power loss in many ways.
fn outcomes(
    state: &State,
    random: &mut fastrand::Rng,
    mut each: impl FnMut(usize, State),
) -> usize {
    let mut killed = state.clone();
    killed.kill();
    each(0, killed);
    let mut odometer = Odometer::default();
    for number in 1.. {
        let mut left = state.clone();
        if number <= BOUND {
            left.lose_power(&mut |of| odometer.choose(of));
        } else {
            left.lose_power(&mut |of| random.usize(..of));
        }
        each(number, left);
        if (number <= BOUND && !odometer.turn()) || number == 2 * BOUND {
            return number;
        }
    }
    0
}

/// Every crash of one story. Returns how many ends it had.
fn story(name: &str, state: &State, steps: &[Step], promised: &[&str]) -> usize {
    let promised: BTreeSet<String> = promised.iter().map(|name| (*name).to_owned()).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let mut count = 0;
    for crash_at in 1.. {
        let mut state = state.clone();
        state.crash_at = Some(crash_at);
        state.trace = Some(Vec::new());
        let disk = SharedDisk::new(state);
        let promised = play(&disk, steps, promised.clone());
        let mut state = disk.state().clone();
        let trace = state.trace.take().unwrap();
        let ended = !state.dead;
        outcomes(&state, &mut random.clone(), |number, left| {
            count += 1;
            let what = || format!("{name}: outcome {number} after {trace:#?}");
            start(left.clone(), &promised, &what);
            if number < DEEP || random.usize(..BOUND) < DEEP {
                count += crash_again(left, &promised, &mut random.clone(), &what);
            }
        });
        if ended {
            return count;
        }
    }
    count
}

/// The start crashes at each of its calls, and the one after that does not.
fn crash_again(
    left: State,
    promised: &BTreeSet<String>,
    random: &mut fastrand::Rng,
    what: &dyn Fn() -> String,
) -> usize {
    let mut count = 0;
    for crash_at in 1.. {
        let mut left = left.clone();
        left.crash_at = Some(left.calls + crash_at);
        left.trace = Some(Vec::new());
        let mut state = start(left, promised, what);
        if !state.dead {
            return count;
        }
        let trace = state.trace.take();
        let what = || format!("{}\nand in the start, after {trace:#?}", what());
        for power in [false, true, true, true] {
            let mut state = state.clone();
            if power {
                state.lose_power(&mut |of| random.usize(..of));
            } else {
                state.kill();
            }
            start(state, promised, &what);
            count += 1;
        }
    }
    count
}

/// With and without hard links, as root and as Cyrus's user.
fn everywhere(name: &str, state: &State, steps: &[Step], promised: &[&str]) {
    let mut count = 0;
    for (links, ours) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut state = state.clone();
        (state.links, state.ours) = (links, ours);
        count += story(name, &state, steps, promised);
    }
    println!("{name}: {count} ends");
}

#[test]
fn runs_are_linked() {
    use Step::*;
    let steps = [
        Imapd("a", Whole),
        Imapd("b", Unsynced),
        Rename,
        Link,
        Unlink,
        Imapd("c", Whole),
        Rename,
        Link,
        Owe(&["b"]),
        Confirm("a"),
        Drop,
        Unlink,
        Confirm("c"),
        Drop,
    ];
    use crate::disk::Write::{Unsynced, Whole};
    everywhere("links", &State::default(), &steps, &[]);
}

#[test]
fn lines_are_owed_and_written() {
    use Step::*;
    let steps = [
        Owe(&["x", "y"]),
        Append(&["x", "z"]),
        Owe(&["y"]),
        Rename,
        Append(&["w"]),
        Owe(&["v", "y"]),
        Append(&["v", "y"]),
        Owe(&[]),
        Recover,
    ];
    everywhere("owed", &State::default(), &steps, &[]);
    let mut state = State::default();
    state.imapd_writes("MAILBOX a", Write::Whole);
    state.imapd_writes("MAILBOX user.torn", Write::Torn);
    everywhere("owed, torn", &state, &steps, &[]);
}

/// What a syncmux leaves that died in the middle of its work.
fn left_behind(log: Option<&str>) -> State {
    let mut state = State::default();
    if let Some(log) = log {
        state.put("log", log);
    }
    state.put("log-run", "MAILBOX b\nMAILBOX c\n");
    let run = state.inode("log-run").unwrap();
    state.put_link("log-run", &format!("syncmux-run-{run}"));
    state.put("syncmux-run-7", "MAILBOX c\nMAILBOX d\nMAILBOX c\n");
    state.put("syncmux-owed", "MAILBOX e\nMAILBOX d\n");
    state.put("syncmux-tmp-owed", "MAILBOX x\n");
    state
}

#[test]
fn a_start_puts_lines_back() {
    use Step::*;
    for log in [
        None,
        Some("MAILBOX a\nMAILBOX d\n"),
        Some("MAILBOX b"),
        Some("MAILBOX a\nMAILBOX "),
    ] {
        let promised = ["b", "c", "d", "e"];
        let state = left_behind(log);
        everywhere(&format!("start, {log:?}"), &state, &[Recover], &promised);
        let unlinked = [Unlink, Recover, Rename];
        everywhere(
            &format!("start, unlinked, {log:?}"),
            &state,
            &unlinked,
            &promised,
        );
    }
    // Nothing but a torn line of log is left to be done.
    let mut state = State::default();
    state.put("log", "MAILBOX b");
    state.put("syncmux-owed", "MAILBOX b\n");
    everywhere("start, torn", &state, &[Recover], &["b"]);
}

/// A torn line in quotes and the next imapd's line make one that ends the file for Cyrus.
#[test]
fn lines_are_put_where_cyrus_reads_them() {
    use Step::*;
    let log = "MAILBOX a\nMAILBOX \"user.q rMAILBOX x\n";
    let state = left_behind(Some(log));
    everywhere("start, poison", &state, &[Recover], &["b", "c", "d", "e"]);
    let steps = [Append(&["y"]), Rename, Append(&["z"])];
    let mut state = State::default();
    state.put("log", log);
    everywhere("poison", &state, &steps, &[]);
}

/// Every call of a start fails, alone or with all that follow, in each of several ways.
#[test]
fn a_start_fails() {
    let promised: BTreeSet<String> = ["b", "c", "d", "e"].map(str::to_owned).into();
    let mut random = fastrand::Rng::with_seed(3);
    for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::PERM] {
        for and_on in [false, true] {
            for at in 1..60 {
                for (links, ours) in [(true, true), (false, false)] {
                    let mut state = left_behind(Some("MAILBOX a\n"));
                    (state.links, state.ours) = (links, ours);
                    state.fault = Some(Fault { at, and_on, errno });
                    let disk = SharedDisk::new(state);
                    let _ = SyncDirectory::on(disk.syncmux()).recover();
                    let what = || format!("{errno:?} at {at}, and on: {and_on}");
                    for power in [false, true, true] {
                        let mut state = disk.state().clone();
                        if power {
                            state.lose_power(&mut |of| random.usize(..of));
                        }
                        state.kill();
                        start(state, &promised, &what);
                    }
                }
            }
        }
    }
}

/// A run of a million lines: what is remembered of it is bounded, and a crash costs reading again.
#[test]
fn a_million_lines() {
    use std::fmt::Write as _;
    use std::time::Instant;
    let mut text = String::new();
    for i in 0..1_000_000 {
        writeln!(text, "MAILBOX user.u{:06}.folder{i}", i % 100_000).unwrap();
    }
    let mut state = State::default();
    state.put("log-run", &text);
    let run = RunId(state.inode("log-run").unwrap());
    let disk = SharedDisk::new(state);
    let directory = SyncDirectory::on(disk.syncmux());
    let began = Instant::now();
    let coverage = directory.link(run, &Site::default()).unwrap();
    println!(
        "linked and read in {:?}, {} bytes of memory",
        began.elapsed(),
        coverage.memory()
    );
    assert!(coverage.memory() < 40 << 20);
    disk.state().cyrus.unlinks = true;
    disk.state().client_unlinks();
    drop(directory);
    let linked = disk.state().clone();
    // Five writes and what is around them.
    let calls_of_a_start = {
        let disk = SharedDisk::new(linked.clone());
        let before = disk.state().calls;
        SyncDirectory::on(disk.syncmux()).recover().unwrap();
        let calls = disk.state().calls;
        calls - before
    };
    for part in [1, 2, 3] {
        let mut state = linked.clone();
        state.kill();
        state.crash_at = Some(state.calls + calls_of_a_start * part / 4);
        let disk = SharedDisk::new(state);
        let _ = SyncDirectory::on(disk.syncmux()).recover();
        assert!(disk.state().dead);
        let mut random = fastrand::Rng::with_seed(part);
        disk.state().lose_power(&mut |of| random.usize(..of));
        let began = Instant::now();
        let done = SyncDirectory::on(disk.syncmux()).recover().unwrap();
        println!(
            "after a crash at {part}/4: {done:?} in {:?}",
            began.elapsed()
        );
        let log = disk.state().read("log").unwrap().to_vec();
        let found = names(lines(&log));
        let all = text
            .lines()
            .all(|line| found.contains(&line["MAILBOX ".len()..]));
        assert!(all, "a line is lost");
        assert_eq!(lines(&log).len(), 1_000_000, "lines were put back twice");
    }
}
