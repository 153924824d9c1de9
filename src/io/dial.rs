//! TCP connections to a replica. Each carries a mark by which redirect rules let it pass, and is
//! known as our own while it is being made, so that one that was redirected to syncmux itself is
//! recognised.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

/// `SO_PRIORITY` of every lane: `meta priority 0:4` in nftables. Unlike a firewall mark it needs no
/// privilege. Of the values that need none this one has the same place in the kernel's queues as 0.
pub const PRIORITY: u32 = 4;

/// Those that are being made.
static OWN: Mutex<Vec<Ends>> = Mutex::new(Vec::new());

/// Where a connection comes from and where it was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
}

/// A connection of our own is known as such until this is dropped.
#[derive(Debug)]
pub(super) struct Own(Ends);

/// Connects to the first address of this host that answers.
pub(super) async fn dial(host: &str, port: u16, limit: Duration) -> io::Result<(TcpStream, Own)> {
    let end = Instant::now() + limit;
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    first_of(&addresses, end).await
}

/// Each that says nothing is waited for for its part of the time that is left, so that one behind a
/// firewall that drops does not hide the others.
async fn first_of(addresses: &[SocketAddr], end: Instant) -> io::Result<(TcpStream, Own)> {
    let mut last = None;
    for (address, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let part = end.saturating_duration_since(Instant::now()) / left;
        match timeout(part, connect(*address)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("the name has no address")))
}

/// Whether a connection that came from `from`, and was to go to `to`, is one of ours.
pub(super) fn is_own(from: SocketAddr, to: SocketAddr) -> bool {
    own().contains(&Ends::new(from, to))
}

async fn connect(to: SocketAddr) -> io::Result<(TcpStream, Own)> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    if let Err(error) = socket.set_priority(PRIORITY) {
        tracing::debug!(%error, "a lane could not be marked for the redirect rules");
    }
    let own = Own::begin(&socket, to)?;
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok((stream, own)),
    }
}

impl Own {
    /// Begins to connect. Nobody can ask for it before it is noted, however soon it is accepted.
    fn begin(socket: &Socket, to: SocketAddr) -> io::Result<Self> {
        let mut own = own();
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(error);
            }
            _ => {}
        }
        let from = socket.local_addr()?.as_socket();
        let from = from.ok_or_else(|| io::Error::other("a TCP socket without an address"))?;
        let ends = Ends::new(from, to);
        own.push(ends);
        Ok(Own(ends))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut own = own();
        if let Some(at) = own.iter().position(|ends| *ends == self.0) {
            own.swap_remove(at);
        }
    }
}

impl Ends {
    fn new(from: SocketAddr, to: SocketAddr) -> Self {
        Ends {
            from: plain(from),
            to: plain(to),
        }
    }
}

/// An IPv4 address is one, however the socket shows it; and without the scope of an IPv6 address.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn own() -> MutexGuard<'static, Vec<Ends>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn known_while_it_is_being_made() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let to = listener.local_addr()?;
        let (stream, own) = dial("127.0.0.1", to.port(), LIMIT).await?;
        let (_, from) = listener.accept()?;
        assert_eq!(socket2::SockRef::from(&stream).priority()?, PRIORITY);
        assert!(is_own(from, to));
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().expect("an address"), to.port());
        assert!(is_own(from, mapped));
        assert!(!is_own(to, from));
        drop(own);
        assert!(!is_own(from, to));
        Ok(())
    }

    #[tokio::test]
    async fn one_that_says_nothing_does_not_hide_the_next() -> io::Result<()> {
        // Nobody accepts there, and its queue is full.
        let full = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        full.listen(0)?;
        let silent = full.local_addr()?.as_socket().expect("an address");
        let mut waiting = Vec::new();
        let soon = || Instant::now() + Duration::from_millis(500);
        let error = loop {
            match first_of(&[silent], soon()).await {
                Ok(connected) => waiting.push(connected),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addresses = [silent, listener.local_addr()?];
        let end = Instant::now() + Duration::from_secs(4);
        let (stream, _own) = first_of(&addresses, end).await?;
        assert_eq!(stream.peer_addr()?, addresses[1]);
        Ok(())
    }

    #[tokio::test]
    async fn nobody_there() -> io::Result<()> {
        let to = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let error = dial("127.0.0.1", to.port(), LIMIT)
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(!own().iter().any(|ends| ends.to == to));
        Ok(())
    }
}
