//! The admin endpoint: `/metrics`, `/ready`, `/live`, `/status`; `POST /drain`, `POST /loglevel`.
//!
//! Ready says nothing about the replica: in a pod, a dead replica must not take the master's mail
//! service away.
//!
//! What changes something is for this machine alone: it is refused where the peer is not loopback
//! or a UNIX socket, even where the endpoint itself may be seen from elsewhere. And it is refused
//! to browsers, which any web page can send to loopback.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::lobby::Lobby;
use crate::config::Listen;

/// Connections at once; the oldest makes way. Who floods this port must use up neither the
/// descriptors that sessions and lanes need nor the turn of a probe.
const CONNECTIONS: usize = 64;

/// A connection is closed after so long, whatever it says. Longer than scrapers pause.
const LIFE: Duration = Duration::from_secs(90);

/// What the endpoint shows.
#[derive(Clone)]
pub struct Admin {
    /// Renders `/metrics`.
    pub metrics: PrometheusHandle,
    /// Behind `/ready`.
    pub readiness: Readiness,
    /// Behind `/live`: false where only a new start can help.
    pub alive: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Makes the answer to `/status`. It may block.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Cancelled by `/drain`.
    pub drain: CancellationToken,
    /// Sets the level of the log, and says what was set.
    pub set_level: fn(&str) -> Result<tracing::Level, String>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// By a UNIX socket.
    Socket,
    /// By loopback: that may also be a web page in a browser of this machine.
    Loopback,
    /// From another machine or pod.
    Remote,
}

impl Connected<IncomingStream<'_, Limited<TcpListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Limited<TcpListener>>) -> Self {
        match stream.remote_addr().ip().to_canonical().is_loopback() {
            true => Peer::Loopback,
            false => Peer::Remote,
        }
    }
}

impl Connected<IncomingStream<'_, Limited<UnixListener>>> for Peer {
    fn connect_info(_: IncomingStream<'_, Limited<UnixListener>>) -> Self {
        Peer::Socket
    }
}

/// Ready while nobody holds a [`Latch`].
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    latches: Arc<Mutex<Latches>>,
}

#[derive(Debug, Default)]
struct Latches {
    next: u64,
    held: BTreeMap<u64, String>,
}

/// A reason not to be ready; gone when dropped.
#[derive(Debug)]
#[must_use = "a latch that is dropped holds nothing"]
pub struct Latch {
    id: u64,
    readiness: Readiness,
}

/// A bound admin port.
#[derive(Debug)]
pub enum AdminListener {
    /// TCP.
    Tcp(TcpListener),
    /// A UNIX socket.
    Unix(UnixListener),
}

impl Readiness {
    /// Not ready, for this reason, until the latch is dropped: `the listeners are not bound yet`,
    /// `draining`.
    pub fn hold(&self, why: impl Into<String>) -> Latch {
        let mut latches = self.latches.lock().unwrap_or_else(PoisonError::into_inner);
        let id = latches.next;
        latches.next += 1;
        latches.held.insert(id, why.into());
        Latch {
            id,
            readiness: self.clone(),
        }
    }

    /// Why not, oldest reason first; empty when ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let latches = self.latches.lock().unwrap_or_else(PoisonError::into_inner);
        latches.held.values().cloned().collect()
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut latches = self
            .readiness
            .latches
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latches.held.remove(&self.id);
    }
}

impl AdminListener {
    /// Binds. A UNIX socket that nobody listens on any more is replaced.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(AdminListener::Tcp),
            Listen::Unix(path) => {
                remove_dead_socket(path).await?;
                UnixListener::bind(path).map(AdminListener::Unix)
            }
        }
    }

    /// Answers until `stop`.
    pub async fn serve(self, admin: Admin, stop: CancellationToken) -> io::Result<()> {
        let router = router(admin).into_make_service_with_connect_info::<Peer>();
        let stopped = stop.cancelled_owned();
        match self {
            AdminListener::Tcp(listener) => {
                axum::serve(Limited::new(listener), router)
                    .with_graceful_shutdown(stopped)
                    .await
            }
            AdminListener::Unix(listener) => {
                axum::serve(Limited::new(listener), router)
                    .with_graceful_shutdown(stopped)
                    .await
            }
        }
    }
}

/// A listener whose connections are counted and do not stay for nothing.
struct Limited<L> {
    inner: L,
    lobby: Arc<Lobby>,
}

/// A connection of [`Limited`].
struct Visit<S> {
    stream: S,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<L> Limited<L> {
    fn new(inner: L) -> Self {
        let lobby = Lobby::new(CONNECTIONS);
        Limited { inner, lobby }
    }
}

impl<L: axum::serve::Listener> axum::serve::Listener for Limited<L> {
    type Io = Visit<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.inner.accept().await;
        let seat = self.lobby.enter();
        let over = Box::pin(async move {
            let _ = timeout(LIFE, seat.needed()).await;
        });
        (Visit { stream, over }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        ready!(self.over.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn remove_dead_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if is_socket
        && let Err(error) = tokio::net::UnixStream::connect(path).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .route("/status", get(status))
        .route("/drain", post(drain))
        .route("/loglevel", post(log_level))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.render())
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    let reasons = admin.readiness.reasons();
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}\n", reasons.join("; ")),
        )
    }
}

async fn live(State(admin): State<Admin>) -> impl IntoResponse {
    match (admin.alive)() {
        true => (StatusCode::OK, "alive\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "a channel does not go on\n",
        ),
    }
}

async fn status(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    if rebound(peer, &headers) {
        return Err((StatusCode::FORBIDDEN, REBOUND.to_owned()));
    }
    let status = tokio::task::spawn_blocking(move || (admin.status)()).await;
    let status = status.map_err(|error| {
        let why = format!("the status can't be made: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    })?;
    let text = format!("{status:#}\n");
    Ok(([(header::CONTENT_TYPE, "application/json")], text))
}

/// As SIGTERM.
async fn drain(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    if let Some(refusal) = refusal(peer, &headers) {
        return refusal;
    }
    tracing::info!("a drain was asked for at the admin endpoint");
    admin.drain.cancel();
    let said = "draining: what was acknowledged is finished first, then syncmux ends\n";
    (StatusCode::ACCEPTED, said.to_owned())
}

/// `level=debug`, in the body or as the query.
async fn log_level(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    uri: Uri,
    body: String,
) -> (StatusCode, String) {
    if let Some(refusal) = refusal(peer, &headers) {
        return refusal;
    }
    let asked = uri.query().filter(|_| body.trim().is_empty());
    let asked = asked.unwrap_or(&body).trim();
    let word = asked.strip_prefix("level=").unwrap_or(asked);
    let word: String = word.chars().take(40).collect();
    match (admin.set_level)(&word) {
        Ok(level) => {
            tracing::info!(%level, "the log level was changed at the admin endpoint");
            let word = level.to_string().to_lowercase();
            (
                StatusCode::OK,
                format!("the log level is {word} until the next start\n"),
            )
        }
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

/// Why this peer may not change anything.
fn refusal(peer: Peer, headers: &HeaderMap) -> Option<(StatusCode, String)> {
    // A browser sends one of these with every POST that it makes for a page.
    let of_browsers = ["origin", "referer", "sec-fetch-site", "sec-fetch-mode"];
    // Who comes by a proxy on this machine is not of this machine.
    let of_proxies = ["forwarded", "x-forwarded-for", "via"];
    let why = if peer == Peer::Remote {
        "this is answered only on loopback or a UNIX socket of the machine (or pod) that syncmux \
         runs on\n"
    } else if rebound(peer, headers) {
        REBOUND
    } else if of_browsers.iter().any(|name| headers.contains_key(*name)) {
        "this is not answered to web pages\n"
    } else if of_proxies.iter().any(|name| headers.contains_key(*name)) {
        "this is not answered by way of a proxy\n"
    } else {
        return None;
    };
    Some((StatusCode::FORBIDDEN, why.to_owned()))
}

const REBOUND: &str = "on loopback ask for 127.0.0.1, [::1] or localhost, by no other name\n";

/// Whether it came to loopback by a name that is not loopback's: a web page whose own name was made
/// to mean 127.0.0.1 may read what it is answered.
fn rebound(peer: Peer, headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return false;
    };
    let host = host.to_str().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    peer == Peer::Loopback
        && !name.eq_ignore_ascii_case("localhost")
        && literal.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    async fn ask(socket: &Path, path: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        say(&mut stream, &request).await
    }

    async fn post(socket: &Path, path: &str, more: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {more}\r\n{body}"
        );
        say(&mut stream, &request).await
    }

    async fn say(stream: &mut UnixStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn who_may_change_something() {
        let refused = |peer| refusal(peer, &HeaderMap::new());
        assert_eq!(refused(Peer::Socket), None);
        assert_eq!(refused(Peer::Loopback), None);
        assert!(refused(Peer::Remote).is_some_and(|(code, _)| code == StatusCode::FORBIDDEN));
    }

    #[test]
    fn a_name_that_was_made_to_mean_loopback_is_told_nothing() {
        let asked = |peer, host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            rebound(peer, &headers)
        };
        for host in [
            "localhost",
            "LOCALHOST:9095",
            "127.0.0.1:9095",
            "[::1]:9095",
            "[::1]",
        ] {
            assert!(!asked(Peer::Loopback, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9095",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(asked(Peer::Loopback, host), "{host}");
            assert!(!asked(Peer::Socket, host) && !asked(Peer::Remote, host));
        }
    }

    #[tokio::test]
    async fn answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin");
        // A socket left over by one that died.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let listener = AdminListener::bind(&Listen::Unix(socket.clone()))
            .await
            .unwrap();
        assert!(
            AdminListener::bind(&Listen::Unix(socket.clone()))
                .await
                .is_err()
        );
        let recorder = PrometheusBuilder::new().build_recorder();
        let readiness = Readiness::default();
        let hangs = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let admin = Admin {
            metrics: recorder.handle(),
            readiness: readiness.clone(),
            alive: Arc::new({
                let hangs = Arc::clone(&hangs);
                move || !hangs.load(std::sync::atomic::Ordering::Relaxed)
            }),
            status: Arc::new(|| serde_json::json!({ "unconfirmed": 0 })),
            drain: CancellationToken::new(),
            set_level: |word| {
                word.parse()
                    .map_err(|_| format!("{word:?} is no log level"))
            },
        };
        let drain = admin.drain.clone();
        metrics::with_local_recorder(&recorder, || metrics::counter!("seen_total").increment(3));
        let stop = CancellationToken::new();
        let server = tokio::spawn(listener.serve(admin, stop.clone()));

        let latch = readiness.hold("the listeners are not bound yet");
        let answer = ask(&socket, "/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.ends_with("not ready: the listeners are not bound yet\n"),
            "{answer}"
        );
        drop(latch);
        assert!(ask(&socket, "/ready").await.starts_with("HTTP/1.1 200 "));
        assert!(ask(&socket, "/live").await.ends_with("alive\n"));
        hangs.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ask(&socket, "/live").await.starts_with("HTTP/1.1 503 "));
        assert!(ask(&socket, "/metrics").await.contains("seen_total 3"));
        assert!(ask(&socket, "/status").await.contains("\"unconfirmed\": 0"));
        assert!(ask(&socket, "/other").await.starts_with("HTTP/1.1 404 "));

        assert!(ask(&socket, "/drain").await.starts_with("HTTP/1.1 405 "));
        for header in [
            "Origin: http://evil.example\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "X-Forwarded-For: 192.0.2.1\r\n",
        ] {
            let answer = post(&socket, "/drain", header, "").await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        }
        assert!(!drain.is_cancelled());
        let answer = post(&socket, "/drain", "", "").await;
        assert!(
            answer.starts_with("HTTP/1.1 202 ") && drain.is_cancelled(),
            "{answer}"
        );
        let answer = post(&socket, "/loglevel", "", "level=debug\n").await;
        assert!(
            answer.contains("200 OK") && answer.contains("level is debug"),
            "{answer}"
        );
        let answer = post(&socket, "/loglevel?level=warn", "", "").await;
        assert!(answer.contains("level is warn"), "{answer}");
        let answer = post(&socket, "/loglevel", "", "loud").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("\"loud\" is no log level"), "{answer}");
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
