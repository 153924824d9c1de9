//! Byte streams as sessions and lanes see them: TCP or UNIX, plain or TLS, counted.

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

/// How much is read at once.
pub(super) const READ_BUFFER: usize = 64 * 1024;

/// With less room than this a new buffer is begun.
const LEAST_ROOM: usize = 8 * 1024;

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

/// Makes room for a read. What was split off keeps the whole buffer alive: so a buffer is filled
/// by many small reads before a new one is begun, or a peer that sends small packets would cost
/// many times the memory of what it has sent.
pub(super) fn make_room(buffer: &mut BytesMut) {
    if buffer.capacity() - buffer.len() < LEAST_ROOM {
        buffer.reserve(READ_BUFFER);
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
    pub read: Counter,
    /// To the peer.
    pub written: Counter,
}

impl Meter {
    /// `side` is `client` or `replica`.
    #[must_use]
    pub fn new(channel: &str, side: &'static str) -> Self {
        let counter = |direction: &'static str| {
            metrics::counter!("syncmux_bytes_total", "channel" => channel.to_owned(),
                "side" => side, "direction" => direction)
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

    #[tokio::test]
    async fn small_reads_share_a_buffer() {
        let sent = vec![7; 40_000];
        let mut buffer = BytesMut::with_capacity(READ_BUFFER);
        let mut pieces = Vec::new();
        for mut packet in sent.chunks(1000) {
            make_room(&mut buffer);
            assert_eq!(read(&mut packet, &mut buffer).await.unwrap(), 1000);
            pieces.push(buffer.split().freeze());
        }
        for two in pieces.windows(2) {
            assert_eq!(two[0].as_ptr() as usize + 1000, two[1].as_ptr() as usize);
        }
    }
}
