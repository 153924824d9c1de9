//! Bytes both ways, until one end has had enough.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::stream::{BoxStream, Meter};
use super::dialog::Admitted;

/// Bytes at once in each direction: two TLS records.
const BUFFER: usize = 32 * 1024;

/// A connection on which the server had the last word for so long has nothing under way.
const QUIET: Duration = Duration::from_millis(300);

/// How long one end gets to close when the other has.
const HALF_OPEN: Duration = Duration::from_secs(30);

/// Carries bytes; why it is over, in words.
pub(super) async fn pump(
    admitted: Admitted,
    meter: Meter,
    drain: &CancellationToken,
) -> &'static str {
    let Admitted {
        client,
        sent,
        server,
        said,
        names: _,
        _permit: permit,
    } = admitted;
    let activity = Arc::new(Activity::new());
    let mut client = Client(client);
    let mut server = Watched {
        inner: server,
        meter,
        activity: Arc::clone(&activity),
    };
    let carry = async {
        client.write_all(&said).await?;
        client.flush().await?;
        server.write_all(&sent).await?;
        server.flush().await?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await
    };
    let end = tokio::select! {
        copied = carry => match copied {
            Ok(_) => "both ends have closed it",
            Err(_) => "it broke",
        },
        () = activity.left() => "one end closed it, the other did not follow",
        () = activity.at_rest(drain) => "terminate is stopping, and nothing was under way",
    };
    // The client sees an end of file that is one, not a reset.
    let goodbye = async {
        let _ = client.shutdown().await;
        let _ = server.shutdown().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    drop(permit);
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
}

impl Activity {
    fn new() -> Self {
        Activity {
            began: Instant::now(),
            last: AtomicU64::new(0),
            answered: AtomicBool::new(true),
            closed: AtomicBool::new(false),
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

    /// Resolves during a drain, when the server has had the last word for a moment.
    async fn at_rest(&self, drain: &CancellationToken) {
        drain.cancelled().await;
        while !self.answered.load(Ordering::Relaxed) || self.quiet() < QUIET {
            sleep(QUIET / 6).await;
        }
    }
}

/// The server's end, watched and counted.
struct Watched {
    inner: BoxStream,
    meter: Meter,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
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
                self.activity.closed.store(true, Ordering::Relaxed);
            }
            self.activity.saw(true);
            self.meter.read.increment(n as u64);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(n)) = written {
            self.activity.saw(false);
            self.meter.written.increment(n as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The client's end. Cyrus and others close TLS without saying so: an end of file like any other,
/// behind which the server must still get what came before.
struct Client(BoxStream);

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buf) {
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
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
