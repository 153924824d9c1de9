//! Whether a client still works in a folder that is no shard any more, or on the channel's own log.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Clients;
use crate::io::client_process;
use crate::io::sync_directory::SyncDirectory;

/// A client in another container is not seen. It shows itself by taking `log` or ending `log-run`: so
/// long nothing must have happened.
const QUIET: Duration = Duration::from_secs(3);

/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for a lock, for a process, and for what changes by itself.
#[derive(Debug)]
pub struct RealClients {
    channel: String,
    base: PathBuf,
    seen: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    files: Files,
    since: Instant,
    looked: Option<(Instant, bool)>,
}

/// Inode and length of `log` and of `log-run`.
type Files = [Option<(u64, u64)>; 2];

impl RealClients {
    /// `channel` is the one whose log is taken over, `base` the folder of all channels.
    #[must_use]
    pub fn new(channel: &str, base: &Path) -> Self {
        RealClients {
            channel: channel.to_owned(),
            base: base.to_owned(),
            seen: HashMap::new(),
        }
    }
}

impl Clients for RealClients {
    fn may_work(&mut self, name: &str, directory: &SyncDirectory) -> bool {
        let now = Instant::now();
        let files = files(directory.path());
        let seen = self.seen.entry(name.to_owned()).or_insert(Seen {
            files,
            since: now,
            looked: None,
        });
        if seen.files != files {
            (seen.files, seen.since) = (files, now);
        }
        if now - seen.since < QUIET {
            return true;
        }
        if let Some((_, runs)) = seen.looked.filter(|(at, _)| now - *at < LOOK) {
            return runs;
        }
        let runs = directory.is_taken()
            || client_process::is_held(directory.path())
            || !client_process::running(name, &self.base).is_empty();
        seen.looked = Some((now, runs));
        runs
    }

    fn own(&mut self, directory: &SyncDirectory) -> Option<Option<i32>> {
        let pids = client_process::running(&self.channel, &self.base);
        let pid = pids.first().copied();
        (pid.is_some() || client_process::is_held(directory.path())).then_some(pid)
    }
}

/// It opens neither of them.
fn files(folder: &Path) -> Files {
    use std::os::unix::fs::MetadataExt;
    ["log", "log-run"].map(|name| {
        let meta = folder.join(name).symlink_metadata().ok()?;
        Some((meta.ino(), meta.len()))
    })
}
