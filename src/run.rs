//! Wires sessions, lanes, the core and the sync directory, and runs until SIGTERM.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Channel, Config, Listen};
use crate::core::{Core, Mode, Setup, Snapshot};
use crate::io::address::Address;
use crate::io::admin::{Admin, AdminListener, Latch, Readiness};
use crate::io::certificates::{self, Look};
use crate::io::client_process::ClientProcess;
use crate::io::credentials::CredentialStore;
use crate::io::directory_watch::DirectoryWatch;
use crate::io::journal::Journal;
use crate::io::lane_connect::Replica;
use crate::io::listener::Listener;
use crate::io::lobby::Lobby;
use crate::io::memory::MemoryGauge;
use crate::io::registry::{SessionContext, SessionRegistry};
use crate::io::shell::{Shell, Shown};
use crate::io::spill::Spill;
use crate::io::stream::Meter;
use crate::io::sync_directory::{RunLookup, SyncDirectory};
use crate::io::telemetry::{self, Notes};
use crate::io::transparent::Door;
use crate::protocol::Dialect;
use crate::settings;
use crate::systemd;

/// How long sessions and lanes get to say goodbye after a drain.
const GOODBYE: Duration = Duration::from_secs(3);

/// A channel that has not looked at itself for so long does not go on by itself any more.
const HANGS: Duration = Duration::from_secs(60);

/// How long `/status` waits for a look that is newer than the question.
const LOOK: Duration = Duration::from_secs(2);

/// How long the sync directory may take after the grace of a drain.
const DISK: Duration = Duration::from_secs(5);

/// Why `run` ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine does not let us do what the configuration asks for: a port is taken, the sync
    /// directory is held by another process.
    #[error("{0}")]
    Setup(String),
    /// A mistake in syncmux itself.
    #[error("{0}")]
    Internal(String),
}

/// What all channels share.
struct Shared {
    config: Config,
    spill: Arc<Spill>,
    memory: Arc<MemoryGauge>,
    permits: Arc<Semaphore>,
    lobby: Arc<Lobby>,
    tasks: TaskTracker,
    /// Listeners accept until then.
    stop: CancellationToken,
    /// Units are finished until then.
    drain: CancellationToken,
    /// A channel has ended, which it does by itself only by a panic.
    over: CancellationToken,
}

/// A channel that is served.
struct Running {
    watched: Watched,
    certificates: Vec<Arc<dyn Look>>,
    shell: tokio::task::JoinHandle<()>,
}

/// What `/status` tells of a channel.
#[derive(Clone)]
struct Watched {
    name: String,
    mode: Mode,
    /// Of the clients, and of the replica.
    dialects: [Dialect; 2],
    sync_directory: Option<PathBuf>,
    directory: Option<Arc<DirectoryWatch>>,
    shown: Arc<Mutex<Shown>>,
}

/// Serves until SIGTERM and the drain after it.
///
/// # Errors
/// Where something that the configuration asks for is not to be had.
pub async fn run(config: Config) -> Result<(), RunError> {
    let setup = |error: &dyn std::fmt::Display| RunError::Setup(plain(error));
    let metrics = telemetry::start_metrics().map_err(RunError::Internal)?;
    tokio::spawn(telemetry::upkeep(metrics.clone()));
    let readiness = Readiness::default();
    let starting = readiness.hold("the listeners are not bound yet");
    let limits = &config.limits;
    let spill =
        Spill::new(&limits.spill_directory, limits.spill_size).map_err(|error| setup(&error))?;
    let shared = Shared {
        memory: MemoryGauge::new(limits.staged_memory, Arc::clone(&spill)),
        permits: Arc::new(Semaphore::new(limits.sessions)),
        lobby: Lobby::new(settings::session_limits(limits).strangers),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        drain: CancellationToken::new(),
        over: CancellationToken::new(),
        spill,
        config,
    };
    // Signals from now on, so that none is lost while the channels start.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| setup(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| setup(&error))?;
    let hangup = signal(SignalKind::hangup()).map_err(|error| setup(&error))?;
    let mut channels = Vec::new();
    let mut doors = Vec::new();
    for channel in &shared.config.channels {
        // `log` may be locked by a Cyrus that was stopped.
        let started = tokio::select! {
            started = start(&shared, channel, &readiness, &mut doors) => started?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        channels.push(started);
    }
    listen_transparently(&shared, doors).await?;
    let watched: Vec<_> = channels
        .iter()
        .map(|channel| channel.watched.clone())
        .collect();
    let asked = CancellationToken::new();
    tokio::spawn(show_spill(Arc::clone(&shared.spill)));
    if let Some(listen) = &shared.config.admin {
        let spill = Arc::clone(&shared.spill);
        let started = Instant::now();
        let admin = Admin {
            metrics,
            readiness: readiness.clone(),
            alive: Arc::new({
                let watched = watched.clone();
                move || watched.iter().all(Watched::goes_on)
            }),
            status: Arc::new(move || status(&watched, &spill, started)),
            drain: asked.clone(),
            set_level: telemetry::set_level,
        };
        serve_admin(listen, admin).await?;
    }
    let of = |channel: &Running| channel.certificates.clone();
    let certificates = channels.iter().flat_map(of).collect();
    tokio::spawn(certificates::watch(
        certificates,
        certificates::PERIOD,
        hangup,
    ));
    drop(starting);
    tracing::info!("ready");
    let turning = channels
        .iter()
        .map(|channel| &channel.watched)
        .map(|watched| (watched.name.clone(), Arc::clone(&watched.shown)));
    systemd::ready(turning.collect());
    start_clients(&shared);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = asked.cancelled() => {}
        // Clients would be sent away for ever: whoever watches the program is to start it again.
        () = shared.over.cancelled() => {}
    }
    drain(&shared, &readiness, channels).await
}

/// Binds the admin endpoint, which answers until the program ends.
pub(crate) async fn serve_admin(listen: &Listen, admin: Admin) -> Result<(), RunError> {
    let listener = AdminListener::bind(listen).await.map_err(|error| {
        let why = format!("the admin endpoint cannot listen on {listen}: {error}");
        RunError::Setup(plain(&why))
    })?;
    tokio::spawn(async move {
        if let Err(error) = listener.serve(admin, CancellationToken::new()).await {
            tracing::error!(%error, "the admin endpoint ended");
        }
    });
    Ok(())
}

/// An error without Rust's `(os error 98)`, and what to do about the commonest.
pub(crate) fn plain(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or(&text);
    let hint = if text.ends_with("Address already in use") {
        "; another process has this port (ss -ltnp shows which), stop it or choose another"
    } else if text.ends_with("Cannot assign requested address") {
        "; this machine has no such address"
    } else if text.contains("cannot listen on unix:") && text.ends_with("No such file or directory")
    {
        "; the folder of the socket is not there, make it first"
    } else if text.contains("cannot listen on") && text.ends_with("Permission denied") {
        "; a port below 1024 needs root, and a socket a folder that syncmux can write in"
    } else {
        ""
    };
    format!("{text}{hint}")
}

/// Starts one channel: what was left over is put back into `log` before anybody is let in.
async fn start(
    shared: &Shared,
    channel: &Channel,
    readiness: &Readiness,
    doors: &mut Vec<Door>,
) -> Result<Running, RunError> {
    let shown = if channel.name.is_empty() {
        "the default channel"
    } else {
        &channel.name
    };
    let setup =
        |error: &dyn std::fmt::Display| RunError::Setup(format!("{shown}: {}", plain(error)));
    let config = &shared.config;
    let (events, queue) = mpsc::unbounded_channel();
    let mut lookup: Option<RunLookup> = None;
    let mut journal = None;
    // In strict mode too: what fan-out left over there is not to wait for it, and what the client
    // will ask can be read ahead.
    if let Some(path) = &channel.sync_directory {
        let directory = SyncDirectory::open(path).map_err(|error| setup(&error))?;
        let (directory, recovered) = tokio::task::spawn_blocking(move || {
            let recovered = directory.recover();
            (directory, recovered)
        })
        .await
        .map_err(|error| RunError::Internal(error.to_string()))?;
        let recovered = recovered.map_err(|error| setup(&error))?;
        if recovered.files > 0 {
            tracing::warn!(
                channel = channel.name,
                files = recovered.files,
                lines = recovered.lines,
                "syncmux did not end in peace: lines were put back into the sync log"
            );
        }
        lookup = Some(directory.lookup());
        let started = Journal::start(directory, config.site.clone(), events.clone());
        journal = Some(started.map_err(|error| setup(&error))?);
    }
    let replica = Replica::new(
        settings::replica(channel, &config.limits),
        Arc::clone(&shared.spill),
    )
    .map_err(|error| setup(&error))?;
    let learner = Arc::clone(&replica);
    let login = channel.replica.login.as_ref();
    let login = login.and_then(settings::credentials);
    tokio::spawn(async move { learner.learn_greeting(login).await });
    let registry = Arc::new(SessionRegistry::default());
    let credentials = Arc::new(CredentialStore::default());
    let client = settings::client(config, channel).map_err(|error| setup(&error))?;
    let starttls = client.starttls.clone().map(|it| it as Arc<dyn Look>);
    let certificates = replica.certificates().into_iter().chain(starttls).collect();
    let context = Arc::new(SessionContext {
        channel: channel.name.clone(),
        events: events.clone(),
        registry: Arc::clone(&registry),
        greeting: replica.greeting(),
        verifier: Arc::new(settings::verifier(config, &replica)),
        credentials: Arc::clone(&credentials),
        client,
        limits: settings::session_limits(&config.limits),
        spill: Arc::clone(&shared.spill),
        memory: Arc::clone(&shared.memory),
        meter: Meter::new(&channel.name, "client"),
        permits: Arc::clone(&shared.permits),
        lobby: Arc::clone(&shared.lobby),
        tasks: shared.tasks.clone(),
    });
    for listen in settings::listeners(channel, &config.limits, lookup.as_ref()) {
        let listener = Listener::bind(listen, Arc::clone(&context))
            .await
            .map_err(|error| setup(&error))?;
        shared.tasks.spawn(listener.run(shared.stop.clone()));
    }
    for settings in settings::transparent_listeners(channel, lookup.as_ref()) {
        let target = settings::target(channel);
        doors.push(Door::new(Arc::clone(&context), settings, target));
    }
    let list = |addresses: &[Listen]| {
        let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    tracing::info!(
        channel = channel.name,
        mode = mode_word(channel.mode),
        listen = list(&channel.listen),
        strict_listen = list(&channel.strict_listen),
        rightnow_listen = list(&channel.rightnow_listen),
        dialect = %channel.dialect,
        transparent = channel.transparent,
        replica = %channel.replica.address,
        replica_dialect = %channel.replica.dialect,
        lanes = channel.replica.lanes,
        "a channel is served"
    );
    let shown = Shown::new(Instant::now(), Snapshot::default());
    let shown = Arc::new(Mutex::new(shown));
    let directory = channel.sync_directory.as_deref();
    let directory = directory.map(|path| DirectoryWatch::new(&channel.name, path));
    if let Some(watch) = &directory {
        let shown = Arc::clone(&shown);
        let not_written = move || {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            shown.snapshot.not_written
        };
        tokio::spawn(Arc::clone(watch).run(readiness.clone(), not_written));
    }
    let shell = Shell {
        channel: channel.name.clone(),
        core: Core::new(Setup {
            named: !channel.name.is_empty(),
            sync_log: journal.is_some(),
            site: config.site.clone(),
            limits: settings::core_limits(config, channel),
            seed: fastrand::u64(..),
        }),
        replica,
        login: channel
            .replica
            .login
            .as_ref()
            .and_then(settings::credentials),
        credentials,
        registry,
        journal,
        directory: directory.clone(),
        notes: notes_of(channel),
        events,
        shown: Arc::clone(&shown),
        memory: Arc::clone(&shared.memory),
        longest_drain: config.limits.drain_grace + DISK,
    };
    Ok(Running {
        watched: Watched {
            name: channel.name.clone(),
            mode: channel.mode,
            dialects: [channel.dialect, channel.replica.dialect],
            sync_directory: channel.sync_directory.clone(),
            directory,
            shown,
        },
        certificates,
        shell: tokio::spawn({
            let over = shared.over.clone().drop_guard();
            let drain = shared.drain.clone();
            async move {
                shell.run(queue, drain).await;
                drop(over);
            }
        }),
    })
}

/// Those that are ours to start. They are waited for as sessions are.
fn start_clients(shared: &Shared) {
    for channel in &shared.config.channels {
        if let (false, Some(path)) = (channel.client_command.is_empty(), &channel.sync_directory) {
            let client = ClientProcess {
                channel: channel.name.clone(),
                command: channel.client_command.clone(),
                sync_directory: path.clone(),
            };
            shared.tasks.spawn(client.run(shared.stop.clone()));
        }
    }
}

/// Listens for redirected connections, when every channel that they may be for is there.
async fn listen_transparently(shared: &Shared, doors: Vec<Door>) -> Result<(), RunError> {
    let mut listeners: Vec<(Address, Vec<Door>)> = Vec::new();
    for door in doors {
        match listeners.iter_mut().find(|(at, _)| at == door.address()) {
            Some((_, doors)) => doors.push(door),
            None => listeners.push((door.address().clone(), vec![door])),
        }
    }
    for (address, doors) in listeners {
        let listener = Listener::bind_transparent(address, doors)
            .await
            .map_err(|error| RunError::Setup(plain(&error)))?;
        shared.tasks.spawn(listener.run(shared.stop.clone()));
    }
    Ok(())
}

fn notes_of(channel: &Channel) -> Notes {
    let notes = Notes::new(&channel.name);
    if channel.listen.is_empty() {
        notes.without_client()
    } else {
        notes
    }
}

/// As in the configuration.
fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "strict",
        Mode::FanOut => "fan-out",
        Mode::RightNow => "rightnow",
    }
}

/// What `/status` shows.
fn status(channels: &[Watched], spill: &Spill, started: Instant) -> serde_json::Value {
    let channels: Vec<_> = channels
        .iter()
        .map(|channel| {
            let Shown {
                snapshot,
                per_second,
                no_client_since,
                ..
            } = channel.look();
            serde_json::json!({
                "name": channel.name,
                "mode": mode_word(channel.mode),
                "dialect": channel.dialects[0].to_string(),
                "replica_dialect": channel.dialects[1].to_string(),
                "state": snapshot,
                "per_second": per_second,
                "no_client_seconds": no_client_since.map(|since| since.elapsed().as_secs()),
                "directory": channel.directory.as_ref().map(|watch| watch.seen()),
            })
        })
        .collect();
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "running_seconds": started.elapsed().as_secs(),
        "spill": { "bytes": spill.used(), "limit": spill.limit() },
        "channels": channels,
    })
}

/// Keeps the gauges of the spill right. Never returns.
async fn show_spill(spill: Arc<Spill>) {
    use telemetry::metric::{SPILL_BYTES, SPILL_LIMIT};
    let mut pause = tokio::time::interval(Duration::from_secs(1));
    loop {
        pause.tick().await;
        metrics::gauge!(SPILL_BYTES).set(spill.used() as f64);
        metrics::gauge!(SPILL_LIMIT).set(spill.limit() as f64);
    }
}

impl Watched {
    /// Whether the channel has looked at itself lately, which it does four times a second.
    fn goes_on(&self) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.at.elapsed() < HANGS
    }

    /// How things stand. Blocks until the core was looked at after the sync directory was: in the
    /// other order a whole run could come and go in between and be unconfirmed.
    fn look(&self) -> Shown {
        let worked_through = self.sync_directory.as_deref().is_none_or(is_worked_through);
        let asked = Instant::now();
        loop {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let mut now = shown.clone();
            drop(shown);
            let is_new = now.at >= asked;
            if is_new || asked.elapsed() > LOOK {
                now.snapshot.safe_to_promote &= worked_through && is_new;
                return now;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether the client has nothing left to do. `log` first: it becomes `log-run`.
fn is_worked_through(sync_directory: &Path) -> bool {
    ["log", "log-run"].iter().all(|name| {
        sync_directory
            .join(name)
            .symlink_metadata()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    })
}

/// Sessions get BYE at their next command boundary, units finish within the grace period, the
/// rest is healed.
async fn drain(
    shared: &Shared,
    readiness: &Readiness,
    channels: Vec<Running>,
) -> Result<(), RunError> {
    let _draining: Latch = readiness.hold("draining");
    tracing::info!("stopping: what was acknowledged is finished first");
    systemd::stopping(shared.config.limits.drain_grace + DISK + GOODBYE * 2);
    shared.stop.cancel();
    shared.drain.cancel();
    let mut failed = false;
    for channel in channels {
        failed |= channel.shell.await.is_err();
    }
    shared.tasks.close();
    // Sessions that do not read their last line are cut off.
    let _ = timeout(GOODBYE, shared.tasks.wait()).await;
    if failed {
        return Err(RunError::Internal(
            "a channel ended by a panic, see above".to_owned(),
        ));
    }
    tracing::info!("stopped");
    Ok(())
}
