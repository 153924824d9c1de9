//! What an operator wants to know of a sync directory while nothing happens: whether it can be
//! written, how large `log` and `log-run` are, and how old the oldest line in them is.
//!
//! It never opens these two (see [`super::sync_directory`]): the age is that of the file, which
//! Cyrus makes with its first line.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use metrics::gauge;

use super::admin::{Latch, Readiness};
use super::telemetry::metric;
use crate::config::words;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// At every such look it is tried whether a file can be made and written.
const TRY_EVERY: u32 = 5;

/// A file system that takes longer than this does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The watch of one channel's sync directory.
#[derive(Debug)]
pub struct DirectoryWatch {
    channel: String,
    path: PathBuf,
    seen: Mutex<DirectorySeen>,
}

/// What was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DirectorySeen {
    /// Why it can't be written; nothing where it can.
    pub trouble: Option<String>,
    /// `log`: what the client has not taken yet.
    pub log: FileSeen,
    /// `log-run`: what the client is working on.
    pub log_run: FileSeen,
}

/// One file of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FileSeen {
    /// Its size; 0 where there is none.
    pub bytes: u64,
    /// For how many seconds its oldest line has been there; nothing where it has no line.
    pub oldest_seconds: Option<u64>,
}

impl DirectorySeen {
    /// For how many seconds the oldest line has been there that the client has not worked through.
    #[must_use]
    pub fn oldest_seconds(&self) -> Option<u64> {
        self.log.oldest_seconds.max(self.log_run.oldest_seconds)
    }
}

impl DirectoryWatch {
    /// Of this channel. [`Self::run`] must run beside it.
    #[must_use]
    pub fn new(channel: &str, path: &Path) -> Arc<Self> {
        Arc::new(DirectoryWatch {
            channel: channel.to_owned(),
            path: path.to_owned(),
            seen: Mutex::default(),
        })
    }

    /// What was seen last.
    #[must_use]
    pub fn seen(&self) -> DirectorySeen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// Looks, and holds `readiness` while the directory can't be written. `not_written` says
    /// whether the journal has just failed to write what is owed. Never returns.
    pub async fn run(self: Arc<Self>, readiness: Readiness, not_written: impl Fn() -> bool) {
        let mut latch: Option<Latch> = None;
        let mut first_seen = HashMap::new();
        for count in 0_u32.. {
            let before = self.seen().trouble;
            let tries = count.is_multiple_of(TRY_EVERY);
            let path = self.path.clone();
            let known = std::mem::take(&mut first_seen);
            let look = move || look(&path, tries, known);
            let mut looking = tokio::task::spawn_blocking(look);
            let looked = match tokio::time::timeout(PATIENCE, &mut looking).await {
                Ok(looked) => looked,
                Err(_) => {
                    let seconds = PATIENCE.as_secs();
                    let what = format!("it has not answered for {seconds} seconds");
                    self.tell(&readiness, &mut latch, Some(what));
                    looking.await
                }
            };
            let Ok((tried, mut seen, known)) = looked else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            first_seen = known;
            seen.trouble = match tried {
                Some(tried) => tried.err(),
                None => before.filter(|why| why != NOT_WRITTEN),
            };
            if seen.trouble.is_none() && not_written() {
                seen.trouble = Some(NOT_WRITTEN.to_owned());
            }
            let trouble = seen.trouble.clone();
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            self.tell(&readiness, &mut latch, trouble);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells the metrics, `/ready` and the log.
    fn tell(&self, readiness: &Readiness, latch: &mut Option<Latch>, trouble: Option<String>) {
        self.show();
        let path = self.path.display();
        match &trouble {
            Some(why) if latch.is_none() => {
                tracing::warn!(channel = self.channel, why, "{path} can't be written");
                *latch = Some(readiness.hold(format!("{path} can't be written: {why}")));
            }
            None if latch.take().is_some() => {
                tracing::info!(channel = self.channel, "{path} can be written again");
            }
            _ => {}
        }
        let usable = if trouble.is_none() { 1.0 } else { 0.0 };
        gauge!(metric::DIRECTORY_USABLE, "channel" => self.channel.clone()).set(usable);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.trouble = trouble;
    }

    fn show(&self) {
        let seen = self.seen();
        for (name, file) in [("log", seen.log), ("log-run", seen.log_run)] {
            let channel = || self.channel.clone();
            gauge!(metric::LOG_BYTES, "channel" => channel(), "file" => name)
                .set(file.bytes as f64);
            gauge!(metric::LOG_SECONDS, "channel" => channel(), "file" => name)
                .set(file.oldest_seconds.unwrap_or(0) as f64);
        }
    }
}

const NOT_WRITTEN: &str = "owed lines could not be written, it is tried again every 2 seconds";

/// When a file was first seen, by its inode, and its age then. From there on the age does not follow
/// the clock, which may be set.
type FirstSeen = HashMap<(u64, u64), (Instant, Duration)>;

/// Whether a file can be made there, where that was tried; and what stands there.
fn look(
    path: &Path,
    tries: bool,
    known: FirstSeen,
) -> (Option<Result<(), String>>, DirectorySeen, FirstSeen) {
    let tried = tries.then(|| try_to_write(path).map_err(|error| words(&error)));
    let mut now = FirstSeen::new();
    // `log` becomes `log-run`: in this order it is not overlooked, at worst seen twice.
    let mut file = |name: &str| file(&path.join(name), &known, &mut now);
    let (log, log_run) = (file("log"), file("log-run"));
    let seen = DirectorySeen {
        trouble: None,
        log,
        log_run,
    };
    (tried, seen, now)
}

/// A file without a name, so that nobody ever meets it; with a byte in it, as a full disk still
/// takes names.
fn try_to_write(path: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(path)?.write_all(b"\n")
}

fn file(path: &Path, known: &FirstSeen, now: &mut FirstSeen) -> FileSeen {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        return FileSeen::default();
    };
    let id = (meta.dev(), meta.ino());
    let first = known.get(&id).copied().unwrap_or_else(|| {
        // Some file systems do not say when it was made.
        let made = meta.created().ok();
        let age = made.and_then(|made| SystemTime::now().duration_since(made).ok());
        (Instant::now(), age.unwrap_or_default())
    });
    now.insert(id, first);
    let age = (first.1 + first.0.elapsed()).as_secs();
    FileSeen {
        bytes: meta.len(),
        oldest_seconds: (meta.len() > 0).then_some(age),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let (tried, seen, _) = look(folder.path(), true, FirstSeen::new());
        assert_eq!((tried, seen.oldest_seconds()), (Some(Ok(())), None));
        std::fs::write(folder.path().join("log"), "USER joe\n").unwrap();
        std::fs::write(folder.path().join("log-run"), "").unwrap();
        let (tried, seen, known) = look(folder.path(), false, FirstSeen::new());
        assert_eq!((tried, seen.log.bytes, known.len()), (None, 9, 2));
        assert!(seen.log.oldest_seconds.is_some());
        // Without a line there is nothing to wait for.
        assert_eq!(seen.log_run, FileSeen::default());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    /// As if the clock had been set since.
    #[test]
    fn an_age_does_not_follow_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("log"), "USER joe\n").unwrap();
        let (_, seen, mut known) = look(folder.path(), false, FirstSeen::new());
        assert!(seen.oldest_seconds().is_some_and(|age| age < 1_000));
        for first in known.values_mut() {
            first.1 = Duration::from_secs(5_000);
        }
        let (_, seen, _) = look(folder.path(), false, known);
        assert!(seen.oldest_seconds().is_some_and(|age| age >= 5_000));
    }

    #[test]
    fn a_folder_that_is_gone() {
        let (tried, ..) = look(Path::new("/no/such/folder"), true, FirstSeen::new());
        assert_eq!(tried, Some(Err("no such file or directory".to_owned())));
    }

    #[tokio::test]
    async fn readiness_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sync");
        let watch = DirectoryWatch::new("", &path);
        let readiness = Readiness::default();
        let running = tokio::spawn(Arc::clone(&watch).run(readiness.clone(), || false));
        let wait = async |wanted: bool| {
            while readiness.reasons().is_empty() != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        wait(false).await;
        let why = readiness.reasons().join(" ");
        assert!(
            why.ends_with("sync can't be written: no such file or directory"),
            "{why}"
        );
        std::fs::create_dir(&path).unwrap();
        wait(true).await;
        assert_eq!(watch.seen().trouble, None);
        running.abort();
    }
}
