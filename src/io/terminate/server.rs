//! The `sync_server` behind.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::super::address::Address;
use super::super::handshake::{leave, read_enabled, read_greeting};
use super::super::lane_connect::ConnectError;
use super::super::stream::{self, BoxStream};
use super::super::wire::Wire;
use crate::protocol::{Dialect, Greeting, print};

/// For a connection and its greeting; both are this machine's or nearly.
const LIMIT: Duration = Duration::from_secs(20);

/// What a `sync_server` may have that a banner tells of (`dobanner` in `sync_server.c`, 3.10.2).
const CAPABILITIES: [&[u8]; 2] = [b"SIEVE-MAILBOX", b"REPLICATION-ARCHIVE"];

/// Where it is, and how it greets.
#[derive(Debug)]
pub struct Server {
    address: Address,
    known: Mutex<Option<Arc<Greeting>>>,
}

impl Server {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(address: Address) -> Self {
        let known = Mutex::default();
        Server { address, known }
    }

    /// Whether whoever comes to it counts as an administrator.
    #[must_use]
    pub fn trusts(&self) -> bool {
        matches!(self.address, Address::Unix(_))
    }

    /// A connection that has been greeted, and what the banner for clients is made of. On a UNIX
    /// socket `sync_server` keeps its capabilities to itself, and a client that is not told of
    /// SIEVE-MAILBOX leaves the replica with scripts that a later one can't replace: so it is
    /// asked, once for each version that greets.
    pub(super) async fn connect(&self) -> Result<(BoxStream, Bytes, Arc<Greeting>), ConnectError> {
        let (wire, greeting) = self.reach().await?;
        let known = self.known();
        let greeting = match known {
            Some(known) if self.trusts() && known.text == greeting.text => known,
            _ => self.learn(greeting).await?,
        };
        let (stream, received) = wire.into_parts();
        Ok((stream, received, greeting))
    }

    /// How it greets, as last seen; it is asked where nobody has been there yet.
    ///
    /// # Errors
    /// Where it can't be reached, or says something that a `sync_server` does not say.
    pub async fn greeting(&self) -> Result<Arc<Greeting>, ConnectError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let (wire, greeting) = self.reach().await?;
        leave(wire).await;
        self.learn(greeting).await
    }

    fn known(&self) -> Option<Arc<Greeting>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    async fn learn(&self, mut greeting: Greeting) -> Result<Arc<Greeting>, ConnectError> {
        if self.trusts() {
            let (mut wire, _) = self.reach().await?;
            let command = print::capabilities(CAPABILITIES)
                .to_vec()
                .unwrap_or_default();
            wire.command(&command).await?;
            let enabled = timeout(LIMIT, read_enabled(&mut wire)).await;
            let enabled = enabled.map_err(|_| self.late())??;
            greeting.capabilities = enabled.unwrap_or_default();
            leave(wire).await;
        }
        // TLS is spoken here, and compression is offered where the configuration says so.
        (greeting.starttls, greeting.compress) = (false, false);
        let greeting = Arc::new(greeting);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::clone(&greeting));
        Ok(greeting)
    }

    async fn reach(&self) -> Result<(Wire, Greeting), ConnectError> {
        let reach = async {
            let mut wire = Wire::new(self.dial().await?, Dialect::Csync);
            let greeting = read_greeting(&mut wire).await?;
            Ok::<_, ConnectError>((wire, greeting))
        };
        timeout(LIMIT, reach).await.map_err(|_| self.late())?
    }

    async fn dial(&self) -> Result<BoxStream, ConnectError> {
        let failed = |error| {
            let address = &self.address;
            ConnectError::unreachable(format!("the sync_server on {address}: {error}"))
        };
        Ok(match &self.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(failed)?;
                stream::tune(&stream);
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
        })
    }

    fn late(&self) -> ConnectError {
        ConnectError::unreachable(format!(
            "the sync_server on {} said nothing for {} seconds",
            self.address,
            LIMIT.as_secs()
        ))
    }
}
