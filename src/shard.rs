//! Wires `shard`: one channel's log dealt out to several, and their clients, until SIGTERM.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Shard;
use crate::io::admin::{Admin, Readiness};
use crate::io::client_process::{self, ClientProcess};
use crate::io::shard::{Beat, Clients as _, Folders, How, RealClients, Sharder, Shown};
use crate::io::telemetry;
use crate::run::{RunError, plain, serve_admin};
use crate::systemd;

/// How long the clients may take to leave: until the end of the command that they are at.
const LEAVE: Duration = Duration::from_secs(20);

/// How long the disk may take after that.
const DISK: Duration = Duration::from_secs(5);

/// A thread that has not gone round for so long does not go on by itself any more.
const HANGS: Duration = Duration::from_secs(60);

/// Deals until SIGTERM.
///
/// # Errors
/// Where something that the configuration asks for is not to be had.
pub async fn shard(config: Shard) -> Result<(), RunError> {
    let setup = |error: &dyn std::fmt::Display| RunError::Setup(plain(error));
    let metrics = telemetry::start_metrics().map_err(RunError::Internal)?;
    tokio::spawn(telemetry::upkeep(metrics.clone()));
    let readiness = Readiness::default();
    let starting = readiness.hold("the shards' folders are not open yet");
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| setup(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| setup(&error))?;
    let sharder = sharder(&config).map_err(|error| setup(&error))?;
    let beat = Arc::new(Mutex::new(Beat {
        at: Instant::now(),
        shown: Shown {
            channel: config.channel.clone(),
            ..sharder.shown()
        },
    }));
    let look = {
        let beat = Arc::clone(&beat);
        move || beat.lock().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let drain = CancellationToken::new();
    if let Some(listen) = &config.admin {
        let (alive, status) = (look.clone(), look.clone());
        let admin = Admin {
            metrics,
            readiness: readiness.clone(),
            alive: Arc::new(move || alive().at.elapsed() < HANGS),
            status: Arc::new(move || {
                serde_json::json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "shard": status().shown,
                })
            }),
            drain: drain.clone(),
            set_level: telemetry::set_level,
        };
        serve_admin(listen, admin).await?;
    }
    tracing::info!(
        channel = config.channel,
        directory = %config.sync_directory.display(),
        shards = config.shards,
        first = config.shard(0),
        "the channel's log is dealt out"
    );
    let stop = CancellationToken::new();
    // Cancelled when the thread ends, which it does by itself only by a panic.
    let over = CancellationToken::new();
    let thread = {
        let (channel, stop, over) = (
            config.channel.clone(),
            stop.clone(),
            over.clone().drop_guard(),
        );
        let readiness = readiness.clone();
        let deal = move || {
            sharder.run(&channel, &stop, &beat, &readiness);
            drop(over);
        };
        let thread = std::thread::Builder::new().name("shard".to_owned());
        thread.spawn(deal).map_err(|error| setup(&error))?
    };
    let clients = TaskTracker::new();
    start_clients(&config, &clients, &stop);
    drop(starting);
    tracing::info!("ready");
    systemd::ready_with(move || {
        let beat = look();
        (beat.at, beat.shown.words())
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = drain.cancelled() => {}
        () = over.cancelled() => {}
    }
    let _draining = readiness.hold("draining");
    tracing::info!("stopping: what is being dealt is written first");
    systemd::stopping(LEAVE + DISK);
    stop.cancel();
    clients.close();
    if timeout(LEAVE, clients.wait()).await.is_err() {
        tracing::warn!("a client did not leave and is killed: it does its log-run again next time");
    }
    let ended = tokio::task::spawn_blocking(move || thread.join());
    match timeout(DISK, ended).await {
        Ok(Ok(Ok(()))) => {}
        Ok(_) => {
            return Err(RunError::Internal(
                "it ended by a panic, see above".to_owned(),
            ));
        }
        Err(_) => {
            tracing::warn!("the disk does not answer: the next start deals what is left again")
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Puts all that was dealt out, and all that is held back, into the channel's own log again, for one
/// client alone. Says how many lines.
///
/// # Errors
/// A shard's client still runs, or a file can't be read or written.
pub fn put_back(config: &Shard) -> Result<u64, RunError> {
    let setup = |error: &dyn std::fmt::Display| RunError::Setup(plain(error));
    let all = Folders {
        // So that all of them are opened, and none is made.
        shards: 0,
        ..folders(config)
    };
    let (main, folders) = all.open().map_err(|error| setup(&error))?;
    for (name, directory) in &folders {
        let held = client_process::is_held(directory.path());
        let pids = client_process::running(name, &config.base);
        if directory.is_taken() {
            return Err(RunError::Setup(format!(
                "a syncmux works in {}: end it first",
                directory.path().display()
            )));
        }
        if held || !pids.is_empty() {
            return Err(RunError::Setup(format!(
                "the client of {name} still runs{}: end it for good first (systemctl disable --now \
                 cyrus-sync-client@{name}, or its line in cyrus.conf)",
                pids.first()
                    .map_or(String::new(), |pid| format!(" (process {pid})"))
            )));
        }
    }
    let recovered = main.recover_but_held().map_err(|error| setup(&error))?;
    let mut lines = recovered.lines as u64;
    for (_, directory) in &folders {
        // What a syncmux run that worked there has left comes back with the rest.
        directory
            .recover_but_held()
            .map_err(|error| setup(&error))?;
        loop {
            let taken = directory.take_back().map_err(|error| setup(&error))?;
            if taken.is_empty() {
                break;
            }
            let mut text = Vec::new();
            for run in &taken {
                let read = directory.read_run(run, &config.site, |line| text.push(line.text));
                let read = read.map_err(|error| setup(&error))?;
                lines += read.lines;
                if let Some(example) = read.example {
                    eprintln!(
                        "syncmux: {} lines in {} can't be read and are left out; run sync_client -u for \
                         a user named there. The first is {example}",
                        read.unreadable,
                        directory.path().display()
                    );
                }
            }
            main.append_raw(&text).map_err(|error| setup(&error))?;
            for run in taken.iter().rev() {
                directory.finish_run(run).map_err(|error| setup(&error))?;
            }
        }
    }
    // They are newer than what the shards had of the same users.
    let held = main.recover().map_err(|error| setup(&error))?;
    Ok(lines + held.lines as u64)
}

fn folders(config: &Shard) -> Folders {
    Folders {
        channel: config.sync_directory.clone(),
        base: config.base.clone(),
        name: config.name.clone(),
        shards: config.shards,
        logged: config.logged(),
    }
}

fn sharder(config: &Shard) -> Result<Sharder, crate::io::sync_directory::Error> {
    let (main, folders) = folders(config).open()?;
    let mut clients = RealClients::new(&config.channel, &config.base);
    for (name, directory) in folders.iter().skip(config.shards) {
        // Begins to watch.
        let _ = clients.may_work(name, directory);
    }
    let how = How {
        shards: config.shards,
        way: config.way,
        held_lines: config.held_lines,
        mailbox_pairs: config.mailbox_pairs,
    };
    let site = config.site.clone();
    Ok(Sharder::new(main, folders, how, site, Box::new(clients)))
}

/// Those that are ours to start; and ours of a larger number of shards are ended.
fn start_clients(config: &Shard, tasks: &TaskTracker, stop: &CancellationToken) {
    if config.client_command.is_empty() {
        return;
    }
    let client = |number: usize| ClientProcess {
        channel: config.shard(number),
        command: config.command_of(number),
        sync_directory: config.base.join(config.shard(number)),
    };
    for number in 0..config.shards {
        tasks.spawn(client(number).run(stop.clone()));
    }
    for number in folders(config).retired().unwrap_or_default() {
        let (client, stop) = (client(number), stop.clone());
        tasks.spawn(async move { client.end_left_over(&stop).await });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{create_dir_all, read_to_string, write};
    use std::path::Path;

    use super::*;
    use crate::io::sync_directory::SyncDirectory;

    #[test]
    fn all_is_put_back_older_lines_first_and_not_beside_a_syncmux() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        create_dir_all(at("far")).unwrap();
        create_dir_all(at("far-3")).unwrap();
        write(at("far-3/syncmux-shard"), "").unwrap();
        // Somebody else's, who has never been a shard.
        create_dir_all(at("far-4")).unwrap();
        write(at("far-4/log"), "APPEND user.c\n").unwrap();
        let text = format!(
            "[shard]\nchannel = \"far\"\nsync_directory = \"{}\"\nshards = 2\n[site]\nimapd_conf = \
             \"{}\"\n",
            at("far").display(),
            at("imapd.conf").display()
        );
        write(at("imapd.conf"), "sync_log: yes\nsync_log_channels: far\n").unwrap();
        let config = Shard::parse(Path::new("shard.toml"), &text).unwrap();
        write(at("far/log"), "APPEND user.new\n").unwrap();
        write(at("far/syncmux-held"), "RENAME user.a user.b\n").unwrap();
        write(at("far-3/log-run"), "APPEND user.a\nAPPEND \n").unwrap();
        write(at("far-3/log"), "APPEND user.b\n").unwrap();
        write(at("far-3/syncmux-owed"), "USER a\n").unwrap();
        let other = SyncDirectory::open(&at("far-3")).unwrap();
        let error = put_back(&config).unwrap_err().to_string();
        assert!(error.contains("a syncmux works in"), "{error}");
        drop(other);
        assert_eq!(put_back(&config).unwrap(), 4);
        assert_eq!(
            read_to_string(at("far/log")).unwrap(),
            "APPEND user.new\nAPPEND user.a\nAPPEND user.b\nUSER a\nRENAME user.a user.b\n"
        );
        let left = ["log", "log-run", "syncmux-owed", "syncmux-back"];
        assert!(left.iter().all(|name| !at("far-3").join(name).exists()));
        assert!(!at("far/syncmux-held").exists());
        assert_eq!(put_back(&config).unwrap(), 0);
        assert!(at("far-4/log").exists());
    }
}
