//! Wires `terminate`: TLS in front of a `sync_server`, until SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Begin, Terminate};
use crate::io::admin::{Admin, Readiness};
use crate::io::certificates::{self, Look, Reloaded};
use crate::io::lobby::Lobby;
use crate::io::stream::Meter;
use crate::io::telemetry::{self, Floods};
use crate::io::terminate::{self as io, Guests, Server, Terminator};
use crate::io::tls::{self, ServerFiles};
use crate::run::{RunError, plain, serve_admin};
use crate::{settings, systemd};

/// Connections that are not let in yet, at once; the oldest makes way.
const STRANGERS: usize = 100;

/// What the end takes beside the drain, at most.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM and the drain after it.
///
/// # Errors
/// Where something that the configuration asks for is not to be had.
pub async fn terminate(config: Terminate) -> Result<(), RunError> {
    let setup = |error: &dyn std::fmt::Display| RunError::Setup(plain(error));
    let metrics = telemetry::start_metrics().map_err(RunError::Internal)?;
    tokio::spawn(telemetry::upkeep(metrics.clone()));
    let readiness = Readiness::default();
    let starting = readiness.hold("the listeners are not bound yet");
    let hangup = signal(SignalKind::hangup()).map_err(|error| setup(&error))?;
    // Reads files, perhaps for long: SIGTERM still ends the process by itself.
    let terminator = terminator(&config).map_err(|error| setup(&error))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| setup(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| setup(&error))?;
    let stop = CancellationToken::new();
    // Asked for by /drain.
    let drain = CancellationToken::new();
    for address in &config.listen {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let what = format!("cannot listen on {address}: {error}");
            setup(&what)
        })?;
        let tasks = &terminator.tasks;
        tasks.spawn(Arc::clone(&terminator).run(listener, stop.clone()));
        let server = config.server.to_string();
        tracing::info!(listen = %address, server, "connections are taken");
    }
    if let Some(listen) = &config.admin {
        let guests = Arc::clone(&terminator);
        let status = move || serde_json::json!({ "terminate": guests.guests.status() });
        let admin = Admin {
            metrics,
            readiness: readiness.clone(),
            alive: Arc::new(|| true),
            status: Arc::new(status),
            drain: drain.clone(),
            set_level: telemetry::set_level,
        };
        serve_admin(listen, admin).await?;
    }
    let list = vec![Arc::clone(&terminator.tls) as Arc<dyn Look>];
    tokio::spawn(certificates::watch(list, certificates::PERIOD, hangup));
    let first = Arc::clone(&terminator);
    tokio::spawn(async move {
        if let Err(error) = first.server.greeting().await {
            // It may come later; nobody is let in until then.
            tracing::warn!("{error}");
        }
    });
    drop(starting);
    tracing::info!("ready");
    systemd::ready(Vec::new());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = drain.cancelled() => {}
    }
    let _draining = readiness.hold("draining");
    tracing::info!("stopping: connections end when nothing is under way on them");
    systemd::stopping(config.drain_grace + GOODBYE);
    stop.cancel();
    terminator.drain.cancel();
    terminator.tasks.close();
    if timeout(config.drain_grace, terminator.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("connections with something under way were cut off");
    }
    tracing::info!("stopped");
    Ok(())
}

fn terminator(config: &Terminate) -> Result<Arc<Terminator>, tls::TlsError> {
    let files = ServerFiles {
        cert_file: config.identity.cert_file.clone(),
        key_file: config.identity.key_file.clone(),
        client_ca_file: config.client_ca_file.clone(),
    };
    let roles = files.roles();
    let load = move || tls::server_config(&files);
    Ok(Arc::new(Terminator {
        tls: Reloaded::new("the certificate of [terminate]", roles, load)?,
        names: config.allowed_names.clone(),
        begin: match config.begin {
            Begin::Both(wait) => io::Begin::Both(wait),
            Begin::Implicit => io::Begin::Implicit,
            Begin::StartTls => io::Begin::Starttls,
        },
        compress: config.compress,
        login_time: config.login_time.max(Duration::from_secs(1)),
        server: Server::new(settings::address(&config.server)),
        permits: Arc::new(Semaphore::new(config.connections)),
        lobby: Lobby::new(STRANGERS),
        guests: Guests::default(),
        tasks: TaskTracker::new(),
        drain: CancellationToken::new(),
        meter: Meter::new("", "replica"),
        floods: Floods::default(),
    }))
}
