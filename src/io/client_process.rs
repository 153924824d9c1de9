//! Starts the rolling client of a channel, and again whenever it has ended (`client_command`).
//!
//! The stock client ends with exit code 0 when its connection ends, so somebody must start it
//! again. And there must never be two of them on one log: Cyrus has no lock that keeps two rolling
//! clients apart, both would work on one `log-run`, and the one that is done first unlinks what
//! may by then be the next run of the other. So a client gets a locked file as its standard input,
//! which it does not read: the lock lasts exactly as long as that client or a child of it lives,
//! however we ended.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use metrics::counter;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::telemetry::{Notes, metric};
use crate::config::{ImapdConf, SyncClient, words as plain};

/// Held as long as a client lives.
const LOCK: &str = "syncmux-client";

/// The pause before the next start: it doubles up to the longest, and begins anew after a client
/// that lived as long as that.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a client that should not be there may take to leave before it is killed.
const LEAVE: Duration = Duration::from_secs(30);

/// A longer line of the client's output is logged in pieces.
const LINE: u64 = 1_000;

/// Of util-linux, which every distribution has. Where it is missing a client outlives a `kill -9`
/// of syncmux until it has something to send, or until the next start ends it.
const SETPRIV: &str = "/usr/bin/setpriv";

/// The rolling client of one channel.
#[derive(Debug)]
pub struct ClientProcess {
    /// The channel's name.
    pub channel: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The folder of the channel's log.
    pub sync_directory: PathBuf,
}

impl ClientProcess {
    /// Keeps a client running until `stop`; then ends it and waits until it has left.
    pub async fn run(self, stop: CancellationToken) {
        self.keep(&stop).await;
        // What went into the background.
        self.signal_holders(Signal::TERM).await;
    }

    async fn keep(&self, stop: &CancellationToken) {
        let starts = counter!(metric::CLIENT_STARTS, "channel" => self.channel.clone());
        starts.increment(0);
        let mut pause = SHORTEST_PAUSE;
        while let Some(lock) = self.alone(stop).await {
            let start = Instant::now();
            match self.start(lock) {
                Ok(mut child) => {
                    starts.increment(1);
                    tracing::info!(
                        channel = self.channel,
                        pid = child.id().unwrap_or_default(),
                        "the client was started"
                    );
                    tokio::select! {
                        ended = child.wait() => {
                            if start.elapsed() >= LONGEST_PAUSE {
                                pause = SHORTEST_PAUSE;
                            }
                            if let Ok(status) = &ended {
                                self.count_exit(*status);
                            }
                            let how = ended.map_or_else(|error| plain(&error), words);
                            tracing::warn!(
                                channel = self.channel,
                                "the client {how}; it is started again in {} s",
                                pause.as_secs()
                            );
                        }
                        () = stop.cancelled() => return self.end(child).await,
                    }
                }
                Err(error) => tracing::error!(
                    channel = self.channel,
                    "the client can't be started: {}: {}; it is tried again in {} s",
                    self.command.join(" "),
                    plain(&error),
                    pause.as_secs()
                ),
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The lock, once no other client holds it; `None` where we are to stop. A client of an earlier
    /// syncmux is told to leave.
    async fn alone(&self, stop: &CancellationToken) -> Option<File> {
        let path = self.sync_directory.join(LOCK);
        let start = Instant::now();
        let mut said = false;
        loop {
            let taken = take(&path);
            if stop.is_cancelled() {
                return None;
            }
            match taken {
                Ok(Some(file)) => return Some(file),
                Ok(None) => {
                    let too_long = start.elapsed() > LEAVE;
                    let signal = if too_long { Signal::KILL } else { Signal::TERM };
                    let pids = self.signal_holders(signal).await;
                    if !said {
                        tracing::warn!(
                            channel = self.channel,
                            ?pids,
                            "a client that an earlier syncmux started, or that went into the \
                             background, still runs: it is ended first, as two would spoil each \
                             other's work"
                        );
                        said = true;
                    }
                }
                Err(error) if !said => {
                    tracing::error!(
                        channel = self.channel,
                        "no client is started: {} can't be locked: {}",
                        path.display(),
                        plain(&error)
                    );
                    said = true;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = sleep(SHORTEST_PAUSE / 2) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    /// To every client that holds the lock; these are handed back.
    async fn signal_holders(&self, signal: Signal) -> Vec<i32> {
        let path = self.sync_directory.join(LOCK);
        let found = tokio::task::spawn_blocking(move || holders(&path)).await;
        let found = found.unwrap_or_default();
        for pid in &found {
            let _ = kill_process(*pid, signal);
        }
        let numbers = found.iter().map(|pid| pid.as_raw_nonzero().get());
        numbers.collect()
    }

    fn start(&self, lock: File) -> io::Result<Child> {
        let (output, input) = io::pipe()?;
        let output = Receiver::from_owned_fd(OwnedFd::from(output))?;
        let (program, arguments) = match self.command.split_first() {
            Some(parts) => parts,
            None => return Err(io::ErrorKind::InvalidInput.into()),
        };
        // The signal comes when the thread that starts the client ends: a worker of the runtime,
        // which lives as long as we do since nobody here uses `block_in_place` (clippy.toml).
        // Cyrus does not run as root.
        let owner = std::fs::metadata(&self.sync_directory)?;
        let is_root = rustix::process::geteuid().is_root();
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            if is_root {
                let (uid, gid) = (owner.uid().to_string(), owner.gid().to_string());
                // A user has groups of its own, such as those that may read keys.
                let groups = match crate::config::is_user(owner.uid()) {
                    true => "--init-groups",
                    false => "--clear-groups",
                };
                command.args(["--reuid", &uid, "--regid", &gid, groups]);
            }
            command.args(["--pdeathsig", "TERM", "--", program]);
            command
        } else {
            let mut command = Command::new(program);
            if is_root {
                command.uid(owner.uid()).gid(owner.gid());
            }
            command
        };
        // What else is in our environment is nothing to it: secrets, what systemd hands over.
        let known = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            ["PATH", "LANG", "TZ", "TMPDIR"].contains(&&*name)
                || ["LC_", "CYRUS_", "SASL_"]
                    .iter()
                    .any(|it| name.starts_with(it))
        });
        command
            .args(arguments)
            .env_clear()
            .envs(known)
            // `sync_client -r` would go into the background.
            .env("CYRUS_ISDAEMON", "1")
            .stdin(Stdio::from(lock))
            .stdout(Stdio::from(input.try_clone()?))
            .stderr(Stdio::from(input))
            .kill_on_drop(true);
        let child = command.spawn()?;
        tokio::spawn(log_output(self.channel.clone(), output));
        Ok(child)
    }

    /// Ends a client that an earlier syncmux has started in this folder, where none is to be any more.
    pub async fn end_left_over(&self, stop: &CancellationToken) {
        if is_held(&self.sync_directory) {
            drop(self.alone(stop).await);
        }
    }

    fn count_exit(&self, status: ExitStatus) {
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code.to_string(),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        };
        let labels = [("channel", self.channel.clone()), ("code", code)];
        counter!(metric::CLIENT_EXITS, &labels).increment(1);
    }

    /// The client leaves by itself at its next command, by BYE; an idle one would not notice.
    async fn end(&self, mut child: Child) {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        if let Ok(status) = child.wait().await {
            self.count_exit(status);
            tracing::info!(channel = self.channel, "the client {}", words(status));
        }
    }
}

/// Whether a client that some syncmux has started still works in this folder.
#[must_use]
pub fn is_held(sync_directory: &Path) -> bool {
    let path = sync_directory.join(LOCK);
    path.symlink_metadata().is_ok() && matches!(take(&path), Ok(None))
}

/// The rolling clients of this channel that run on this machine, whoever has started them, as far as
/// `/proc` shows them. One of another Cyrus on the same machine does not count: `folder` is the one
/// that holds all channels' folders, `sync` in Cyrus's configdirectory.
#[must_use]
pub fn running(channel: &str, folder: &Path) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let id = |path: &Path| {
        let meta = path.metadata().ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let is_it = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let words: Vec<_> = words.into_iter().map(String::from_utf8_lossy).collect();
        let named =
            |word: &std::borrow::Cow<'_, str>| word.rsplit('/').next() == Some("sync_client");
        let at = words.iter().take(8).position(named)?;
        let client = SyncClient::read(&words[at + 1..]);
        let mut rest = words[at + 1..]
            .iter()
            .skip_while(|word| !word.starts_with("-C"));
        // `-C FILE` or `-CFILE`.
        let conf = match rest.next().map(|word| &word[2..]) {
            Some("") => rest.next().map_or("", |path| path),
            Some(path) => path,
            None => "/etc/imapd.conf",
        };
        // It may live in a container, where the same names mean other files.
        let root = entry.path().join("root");
        let there = |path: &Path| match path.strip_prefix("/") {
            Ok(rest) if root.metadata().is_ok() => root.join(rest),
            _ => path.to_owned(),
        };
        let conf = ImapdConf::read(&there(Path::new(conf))).ok();
        let other = conf.and_then(|conf| {
            let sync = Path::new(conf.option("configdirectory")?).join("sync");
            Some(id(&there(&sync))? != id(folder)?)
        });
        let is_ours = client.rolling && client.channel == channel && other != Some(true);
        is_ours.then_some(pid)
    };
    processes.filter_map(is_it).collect()
}

/// Opens and locks the file; `None` where another process holds it. It belongs to whoever owns the
/// folder, who may put anything in its place: as root we change nothing that we did not make, and
/// lock nothing but a file of that owner.
fn take(path: &Path) -> io::Result<Option<File>> {
    let owner = std::fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .mode(0o640);
    let file = match options.clone().create_new(true).open(path) {
        Ok(file) => {
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path)?,
        Err(error) => return Err(error),
    };
    if !is_ours(&file.metadata()?, owner.uid()) {
        return Err(io::Error::other(
            "it is no file of its own that belongs to the folder's owner; remove it",
        ));
    }
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// A file, under this name alone, of this owner.
fn is_ours(meta: &std::fs::Metadata, owner: u32) -> bool {
    meta.is_file() && meta.nlink() == 1 && meta.uid() == owner
}

/// Whose standard input the locked file is: processes of the folder's owner.
fn holders(path: &Path) -> Vec<Pid> {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let owner = path.parent().and_then(|folder| folder.metadata().ok());
    let lock = std::fs::symlink_metadata(path).ok();
    let (Some(owner), Some(lock), Ok(processes)) = (owner, lock, std::fs::read_dir("/proc")) else {
        return Vec::new();
    };
    if !is_ours(&lock, owner.uid()) {
        return Vec::new();
    }
    let lock = id(lock);
    let pid = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        if entry.metadata().ok()?.uid() != owner.uid() {
            return None;
        }
        let input = std::fs::metadata(entry.path().join("fd/0")).ok()?;
        (id(input) == lock).then(|| Pid::from_raw(pid))?
    };
    processes.filter_map(pid).collect()
}

/// What the client writes goes into our log; the rest it tells syslog.
async fn log_output(channel: String, output: Receiver) {
    let notes = Notes::new(&channel);
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match (&mut output).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => notes.client_line(String::from_utf8_lossy(&line).trim_end()),
        }
    }
}

/// How it ended.
fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended with exit code 0, as it does when its connection ends".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}, see syslog"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests;
