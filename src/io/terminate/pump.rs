//! Bytes both ways, until one end has had enough.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::super::lobby::Seat;
use super::super::stream::{BoxStream, Meter};
use super::Refused;
use super::dialog::Ends;

/// Bytes at once in each direction: two TLS records.
const BUFFER: usize = 32 * 1024;

/// A connection on which the server had the last word for so long has nothing under way.
const QUIET: Duration = Duration::from_millis(300);

/// How long one end gets to close when the other has.
const HALF_OPEN: Duration = Duration::from_secs(30);

/// What a `sync_server` says OK to before a login.
const NO_LOGIN: [&[u8]; 5] = [
    b"OK NOOP",
    b"OK RESTARTING",
    b"OK FINISHED",
    b"OK DEFLATE",
    b"OK BEGIN TLS",
];

/// As much of a line tells what it is.
const START: usize = 16;

/// Whether the client may stay.
pub(super) enum Login {
    /// Its certificate was the login.
    Done(OwnedSemaphorePermit),
    /// The server asks for one of its own: until then the client is a stranger.
    Awaited {
        seat: Seat,
        deadline: Instant,
        permits: Arc<Semaphore>,
    },
}

impl Login {
    /// Waits for it, and then for ever.
    async fn held(self, seen: &Notify) -> Refused {
        let permit = match self {
            Login::Done(permit) => permit,
            Login::Awaited {
                seat,
                deadline,
                permits,
            } => {
                tokio::select! {
                    seen = timeout_at(deadline, seen.notified()) => if seen.is_err() {
                        return Refused::late();
                    },
                    () = seat.needed() => return Refused::others_wait(),
                }
                match permits.try_acquire_owned() {
                    Ok(permit) => permit,
                    Err(_) => return Refused::Full,
                }
            }
        };
        std::future::pending::<()>().await;
        drop(permit);
        Refused::Quiet("")
    }
}

/// Carries bytes; why it is over, in words.
pub(super) async fn pump(
    ends: Ends,
    login: Login,
    meter: Meter,
    drain: &CancellationToken,
) -> Result<&'static str, Refused> {
    let Ends {
        client,
        sent,
        server,
        said,
    } = ends;
    let activity = Arc::new(Activity::new());
    let awaited = match login {
        Login::Done(_) => None,
        Login::Awaited { .. } => Some(Vec::new()),
    };
    let mut client = Client {
        inner: client,
        activity: Arc::clone(&activity),
    };
    let mut server = Server {
        inner: server,
        meter,
        activity: Arc::clone(&activity),
        awaited,
        deaf: false,
        paused: false,
    };
    let held = login.held(&activity.login);
    tokio::pin!(held);
    let carry = async {
        client.write_all(&said).await?;
        client.flush().await?;
        server.write_all(&sent).await?;
        server.flush().await?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await
    };
    let end = tokio::select! {
        copied = carry => Ok(match copied {
            Ok(_) => "both ends have closed it",
            Err(_) => "it broke",
        }),
        refused = &mut held => Err(refused),
        () = activity.left() => Ok("one end closed it, the other did not follow"),
        () = activity.at_rest(drain) => Ok("terminate is stopping, and nothing was under way"),
    };
    // The client sees an end of file that is one, not a reset.
    let goodbye = async {
        let _ = client.shutdown().await;
        let _ = server.shutdown().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    end
}

/// What has passed.
struct Activity {
    began: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
    /// The server's were the last bytes.
    answered: AtomicBool,
    /// The server has closed.
    closed: AtomicBool,
    /// The client does not take what is for it.
    stuck: AtomicBool,
    /// The server has let the client in.
    login: Notify,
}

impl Activity {
    fn new() -> Self {
        Activity {
            began: Instant::now(),
            last: AtomicU64::new(0),
            answered: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            login: Notify::new(),
        }
    }

    fn saw(&self, answered: bool) {
        let now = self.began.elapsed().as_millis() as u64;
        self.last.store(now, Ordering::Relaxed);
        self.answered.store(answered, Ordering::Relaxed);
    }

    fn quiet(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }

    /// Resolves when the server has closed and the client has not followed in time.
    async fn left(&self) {
        loop {
            sleep(HALF_OPEN / 4).await;
            if self.closed.load(Ordering::Relaxed) && self.quiet() > HALF_OPEN {
                return;
            }
        }
    }

    /// Resolves during a drain, when the server has had the last word for a moment, and the client
    /// has it.
    async fn at_rest(&self, drain: &CancellationToken) {
        drain.cancelled().await;
        while !self.answered.load(Ordering::Relaxed)
            || self.stuck.load(Ordering::Relaxed)
            || self.quiet() < QUIET
        {
            sleep(QUIET / 6).await;
        }
    }
}

/// The server's end, watched and counted.
struct Server {
    inner: BoxStream,
    meter: Meter,
    activity: Arc<Activity>,
    /// While a login is awaited: the beginning of the line that the server is saying.
    awaited: Option<Vec<u8>>,
    /// It takes no more bytes. What it has said is still to be delivered.
    deaf: bool,
    paused: bool,
}

impl Server {
    fn gone(&self) {
        self.activity.closed.store(true, Ordering::Relaxed);
    }

    /// Looks for the answer to a login. A client that compresses before it logs in is not seen to.
    fn listen(&mut self, said: &[u8]) {
        let Some(line) = &mut self.awaited else {
            return;
        };
        for byte in said {
            if *byte != b'\n' {
                if line.len() < START {
                    line.push(byte.to_ascii_uppercase());
                }
                continue;
            }
            if line.starts_with(b"OK") && !NO_LOGIN.iter().any(|it| line.starts_with(it)) {
                self.awaited = None;
                self.activity.login.notify_one();
                return;
            }
            line.clear();
        }
    }
}

impl AsyncRead for Server {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Poll::Ready(result) = &read {
            let n = buf.filled().len() - before;
            if n == 0 || result.is_err() {
                self.gone();
            }
            self.activity.saw(true);
            self.meter.read.increment(n as u64);
            self.listen(buf.filled().get(before..).unwrap_or_default());
        }
        // Broken is closed: what came before is delivered.
        read.map(|_| Ok(()))
    }
}

impl AsyncWrite for Server {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            // What the client still sends is thrown away, but the other direction comes first.
            self.paused = !self.paused;
            if self.paused {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Ok(bytes.len()));
        }
        match Pin::new(&mut self.inner).poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) => {
                self.activity.saw(false);
                self.meter.written.increment(n as u64);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(_)) => {
                self.deaf = true;
                self.gone();
                Poll::Ready(Ok(bytes.len()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map(|_| Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx).map(|_| Ok(()))
    }
}

/// The client's end. Cyrus and others close TLS without saying so: an end of file like any other,
/// behind which the server must still get what came before.
struct Client {
    inner: BoxStream,
    activity: Arc<Activity>,
}

impl Client {
    fn saw<T>(&self, poll: Poll<T>) -> Poll<T> {
        let stuck = poll.is_pending();
        self.activity.stuck.store(stuck, Ordering::Relaxed);
        poll
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.saw(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.saw(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
