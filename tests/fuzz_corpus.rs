//! The bodies of the fuzz targets on the stable toolchain: over every capture, over the corpus
//! that is kept in fuzz/corpus, and over a fixed number of mutations of both.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fuzz_bodies;

use std::fs;
use std::path::{Path, PathBuf};

use fuzz_bodies::TARGETS;
use fuzz_bodies::session::{IMAP_CLIENTS, IMAP_REPLICA};

/// So many mutated inputs a target; SYNCMUX_FUZZ_ROUNDS asks for another number.
const ROUNDS: u64 = 3000;

/// Longer seeds are not mutated: the bodies read each several times.
const LONGEST: usize = 8192;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Behind a header: logged in, ordinary limits, some cuts.
fn with_header(bytes: &[u8]) -> Vec<u8> {
    [&[1, 0, 1, 7], bytes].concat()
}

/// Once as csync, once as IMAP.
fn in_both(captures: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let csync = captures.iter().map(|bytes| with_header(bytes));
    let imap = captures
        .iter()
        .filter(|bytes| memchr::memmem::find(bytes, b"S0 ").is_some());
    let imap = imap.map(|bytes| [&[5, 0, 1, 7], &bytes[..]].concat());
    csync.chain(imap).collect()
}

/// What stands in for a conversation: for most targets a direction of a capture.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let captures = files(&root().join("tests/captures"));
    let of = |wanted: &str| {
        let right = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == wanted);
        let paths = captures.iter().filter(right);
        paths
            .map(|path| fs::read(path).unwrap())
            .collect::<Vec<_>>()
    };
    match target {
        "commands" => in_both(&of("c2s")),
        "replies" => in_both(&of("s2c")),
        "session" => sessions(&of("c2s"), &of("s2c")),
        "names" => [
            "joe\nsub.folder\nvirtdomains: userid\ndefaultdomain: example.com\n",
            "joe.dot@example.com\nDELETED.x\nunixhierarchysep: yes\n",
            "user.joe^dot.sub\n\npartition-default: /var\\\n/spool\n",
            "example.com!DELETED.user.joe.6B0526F9\n..\n",
        ]
        .iter()
        .map(|text| with_header(text.as_bytes()))
        .collect(),
        _ => [
            "MAILBOX user.joe\nAPPEND user.joe\nDOUBLEMAILBOX user.a user.b\nRENAME a b\n",
            "SEEN joe 5f3a\nSUB joe user.joe\nUNSUB joe \"user.joe x\"\nMETA joe\nSIEVE joe\n",
            "USER joe\nUNUSER joe\nUNMAILBOX \"user.joe \\\"x\\\\\"\nQUOTA user.joe\nANNOTATION \"\"\n",
            "MAILBOX {4+}\njoe\nmailbox x\r\n\nfoo bar\nMAILBOX \"torn\n",
        ]
        .iter()
        .map(|text| with_header(text.as_bytes()))
        .collect(),
    }
}

/// A capture as steps of the session target: a client says 200 bytes, the replica says 200.
fn sessions(said: &[Vec<u8>], answered: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let spoken = |flags: u8, steps: &[u8]| [&[1 + flags, 0, 1, 7], steps].concat();
    let imap = IMAP_CLIENTS + IMAP_REPLICA;
    for (said, answered) in said.iter().zip(answered) {
        let mut steps = vec![14, 12, 0, 0];
        // The greeting and the login are not for the core.
        let login = said
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        // A capture of IMAP is spoken on both sides.
        let is_imap = memchr::memmem::find(said, b"S0 ").is_some();
        let greeted = memchr::memmem::find(answered, b"\r\nA01 OK").filter(|_| is_imap);
        let end = |at: usize| memchr::memchr(b'\n', &answered[at + 2..]).map(|end| at + end + 3);
        let begin = greeted.and_then(end).unwrap_or(0);
        let mut answers = answered[begin..].chunks(200);
        for part in said[login..].chunks(200) {
            steps.extend([0, part.len() as u8]);
            steps.extend(part);
            steps.extend([10, 11]);
            if let Some(part) = answers.next() {
                steps.extend([5, part.len() as u8]);
                steps.extend(part);
            }
            steps.push(15);
        }
        seeds.push(spoken(if is_imap { imap } else { 0 }, &steps));
    }
    // Ordinary work in well-formed steps: user, messages, mailboxes, answers.
    for who in 0..8u8 {
        let mut steps = vec![14, 12, who, who];
        for nth in 0..40u8 {
            let said = who.wrapping_mul(5).wrapping_add(nth.wrapping_mul(nth)) % 24;
            steps.extend([2 + 16 * (nth % 3), said, who ^ nth]);
            steps.extend([15, 15, 7, nth, who, 15]);
        }
        for flags in [0, IMAP_CLIENTS, IMAP_REPLICA, imap] {
            seeds.push(spoken(flags, &steps));
        }
    }
    seeds
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let paths = files(&root().join("fuzz/corpus").join(target));
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        let end = (at + rng.usize(1..40)).min(bytes.len());
        match rng.u8(..7) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes[at] ^= 1 << rng.u8(..8),
            2 => bytes.insert(at, b" (){}%\"\\\r\n+0"[rng.usize(..12)]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.usize(..bytes.len());
                bytes.splice(to..to, copy);
            }
            5 => bytes[at.min(3)] = rng.u8(..),
            _ => {
                bytes.remove(at);
            }
        }
    }
}

fn exercise(name: &str) {
    let (_, run) = TARGETS
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let mut all = seeds(name);
    all.extend(corpus(name));
    assert!(!all.is_empty());
    all.iter().for_each(|input| run(input));
    all.retain(|input| input.len() <= LONGEST);
    let rounds = std::env::var("SYNCMUX_FUZZ_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().unwrap());
    for round in 0..rounds {
        let mut rng = fastrand::Rng::with_seed(round);
        let mut input = all[rng.usize(..all.len())].clone();
        mutate(&mut input, &mut rng);
        let done = std::panic::catch_unwind(|| run(&input));
        assert!(
            done.is_ok(),
            "{name}, round {round}: {}",
            input.escape_ascii()
        );
    }
}

#[test]
fn commands() {
    exercise("commands");
}

#[test]
fn replies() {
    exercise("replies");
}

#[test]
fn session() {
    exercise("session");
}

#[test]
fn names() {
    exercise("names");
}

#[test]
fn synclog() {
    exercise("synclog");
}

/// The seeds as files, for `cargo fuzz run TARGET fuzz/seeds/TARGET`.
#[test]
#[ignore = "writes files: run it before fuzzing, as fuzz/README.md says"]
fn write_seeds() {
    for (name, _) in TARGETS {
        let folder = root().join("fuzz/seeds").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (nth, seed) in seeds(name).iter().enumerate() {
            fs::write(folder.join(format!("seed-{nth:03}")), seed).unwrap();
        }
    }
}
