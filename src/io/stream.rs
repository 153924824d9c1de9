//! Byte streams as sessions and lanes see them: TCP or UNIX, plain or TLS, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// What a session or a lane talks over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream of whatever kind.
pub type BoxStream = Box<dyn Stream>;

/// After this much silence the kernel asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How often it asks, and after how many questions without an answer the connection is dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// Sets what every TCP connection here wants: no waiting for more to send, and notice when the
/// peer has vanished. Neither is worth failing for.
pub fn tune(stream: &TcpStream) {
    use rustix::net::sockopt;
    let results = [
        stream.set_nodelay(true),
        sockopt::set_socket_keepalive(stream, true).map_err(Into::into),
        sockopt::set_tcp_keepidle(stream, KEEPALIVE).map_err(Into::into),
        sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL).map_err(Into::into),
        sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT).map_err(Into::into),
    ];
    for error in results.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

/// Makes room to read into. What is left of the space taken last is used first: what was read
/// stays in it for as long as it is wanted, and a peer that sends little at a time would hold on
/// to a whole buffer with every piece.
pub(super) fn make_room(buffer: &mut BytesMut, size: usize) {
    if buffer.capacity() - buffer.len() < size / 8 {
        buffer.reserve(size);
    }
}

/// Reads some bytes; 0 is the end of file. Cyrus closes TLS connections without saying so in TLS
/// (no close_notify): that is an end of file like any other, since whoever reads csync knows by
/// itself whether something is missing.
pub async fn read<S>(stream: &mut S, buffer: &mut BytesMut) -> std::io::Result<usize>
where
    S: AsyncRead + Unpin,
{
    match stream.read_buf(buffer).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}

/// The uid at the other end of a UNIX socket, as the kernel knows it.
pub fn peer_uid(stream: &UnixStream) -> std::io::Result<u32> {
    stream.peer_cred().map(|credentials| credentials.uid())
}

/// Counters of one side of one channel, looked up once. They count the protocol's own bytes,
/// before TLS and compression.
#[derive(Clone)]
pub struct Meter {
    /// From the peer.
    pub read: Tally,
    /// To the peer.
    pub written: Tally,
}

/// A counter that can be read here as well.
#[derive(Clone)]
pub struct Tally {
    counter: Counter,
    total: Arc<AtomicU64>,
}

impl Tally {
    /// Counts more.
    pub fn increment(&self, more: u64) {
        self.counter.increment(more);
        self.total.fetch_add(more, Ordering::Relaxed);
    }

    /// Since the start.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Meter {
    /// `side` is `client` or `replica`.
    #[must_use]
    pub fn new(channel: &str, side: &'static str) -> Self {
        let counter = |direction: &'static str| {
            let counter = metrics::counter!("syncmux_bytes_total", "channel" => channel.to_owned(),
                "side" => side, "direction" => direction);
            let total = Arc::default();
            Tally { counter, total }
        };
        Self {
            read: counter("in"),
            written: counter("out"),
        }
    }
}

/// Counts something that went wrong; rare, so the counter is looked up each time.
pub(super) fn count_failure(channel: &str, side: &'static str, kind: &'static str) {
    metrics::counter!("syncmux_failures_total", "channel" => channel.to_owned(),
        "side" => side, "kind" => kind)
    .increment(1);
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_do_not_hold_a_buffer_each() {
        let mut buffer = BytesMut::new();
        let mut held: Vec<bytes::Bytes> = Vec::new();
        for _ in 0..1000 {
            make_room(&mut buffer, 64 * 1024);
            assert!(buffer.capacity() >= 8 * 1024);
            buffer.extend_from_slice(&[7; 1100]);
            held.push(buffer.split().freeze());
        }
        let adjoin = |pair: &&[bytes::Bytes]| pair[0].as_ptr_range().end == pair[1].as_ptr();
        let buffers = held.windows(2).filter(|pair| !adjoin(pair)).count() + 1;
        assert!(buffers <= 1000 * 1100 / (56 * 1024) + 1, "{buffers}");
    }
}
