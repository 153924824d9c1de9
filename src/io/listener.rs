//! Where clients connect.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::registry::{ListenerSettings, Peer, SessionContext};
use super::session;
use super::stream::{self, BoxStream};
use super::transparent::{Door, Doors, Way};

/// The pause after an accept that failed: it fails again at once where descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Owner and group: a socket for Cyrus and whoever runs syncmux.
const SOCKET_MODE: u32 = 0o660;

/// A listener that is bound.
pub struct Listener {
    address: Address,
    socket: Socket,
    doors: Arc<Doors>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removes the file of a UNIX socket when the listener goes.
struct SocketFile(PathBuf);

/// Why one cannot listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {why}")]
pub struct ListenError {
    address: Address,
    why: String,
}

impl Listener {
    /// Binds. A UNIX socket that a dead process left behind is replaced.
    pub async fn bind(
        settings: ListenerSettings,
        context: Arc<SessionContext>,
    ) -> Result<Self, ListenError> {
        let address = settings.address.clone();
        let door = Door::new(context, settings, None);
        Self::open(address, Doors::new(vec![door], false)).await
    }

    /// Binds one for connections that the kernel redirects; the channels behind it are told apart
    /// by where a connection was to go.
    pub async fn bind_transparent(address: Address, doors: Vec<Door>) -> Result<Self, ListenError> {
        let doors = Doors::new(doors, true);
        doors.look_names_up();
        Self::open(address, doors).await
    }

    async fn open(address: Address, doors: Doors) -> Result<Self, ListenError> {
        let failed = |why: String| ListenError {
            address: address.clone(),
            why,
        };
        let socket = match &address {
            Address::Tcp { host, port } => TcpListener::bind((host.as_str(), *port))
                .await
                .map(Socket::Tcp)
                .map_err(|error| failed(error.to_string()))?,
            Address::Unix(path) => {
                remove_stale(path).await.map_err(failed)?;
                let listener =
                    UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
                let file = SocketFile(path.clone());
                // Whoever slips in before is turned away by its uid, like everybody else.
                std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
                    .map_err(|error| failed(error.to_string()))?;
                Socket::Unix(listener, file)
            }
        };
        Ok(Self {
            address,
            socket,
            doors: Arc::new(doors),
        })
    }

    /// The TCP address, where the port was left to the system.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Accepts clients until `stop`. Their sessions go on; the core ends them.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = stop.cancelled() => return,
            };
            if let Err(error) = accepted {
                tracing::error!(address = %self.address, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Accepts one client. What takes time is done in a task of its own.
    async fn accept(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream::tune(&stream);
                if let Some(door) = self.doors.any() {
                    let admitted = admit_tcp(stream, peer, Arc::clone(&self.doors));
                    door.context.tasks.spawn(admitted);
                }
            }
            Socket::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream::peer_uid(&stream)?;
                let path = file.0.clone();
                if let Some(door) = self.doors.any() {
                    admit_unix(stream, path, uid, door);
                }
            }
        }
        Ok(())
    }
}

/// Starts a session with a client on a UNIX socket, or says why not.
fn admit_unix(stream: UnixStream, path: PathBuf, uid: u32, door: &Door) {
    let (context, settings) = (Arc::clone(&door.context), Arc::clone(&door.settings));
    let tasks = context.tasks.clone();
    let stream = Box::new(stream);
    let peer = Peer::Unix { path, uid };
    if !context.client.allowed_uids.contains(&uid) {
        tracing::warn!(%peer, "refused: the uid is not in allowed_uids");
        stream::count_failure(&context.channel, "client", "uid");
        tasks.spawn(refuse(stream, "BYE you may not connect here\r\n"));
        return;
    }
    tasks.spawn(session::serve(stream, peer, context, settings));
}

/// Finds the channel that a TCP client wants, and serves it.
async fn admit_tcp(stream: TcpStream, peer: SocketAddr, doors: Arc<Doors>) {
    let way = match Way::of(&stream, peer) {
        Ok(way) => way,
        Err(error) => return tracing::debug!(%peer, %error, "gone before it was looked at"),
    };
    let Some(lobby) = doors.any().map(|door| Arc::clone(&door.context.lobby)) else {
        return;
    };
    // A name may have to be looked up: no more of those who wait for it than of other strangers.
    let seat = lobby.enter();
    let chosen = tokio::select! {
        chosen = doors.choose(&way) => chosen,
        () = seat.needed() => return tracing::debug!(%peer, "made way before its login"),
    };
    drop(seat);
    match chosen {
        Ok(door) => {
            let (context, settings) = (Arc::clone(&door.context), Arc::clone(&door.settings));
            session::serve(Box::new(stream), Peer::Tcp(way.peer), context, settings).await;
        }
        Err(refusal) => {
            doors.complain(&refusal);
            refuse(Box::new(stream), refusal.answer).await;
        }
    }
}

async fn refuse(mut stream: BoxStream, line: &'static str) {
    let goodbye = async {
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}

/// Removes the socket at `path` if nobody listens there. Anything but a socket is left alone.
async fn remove_stale(path: &Path) -> Result<(), String> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !found.file_type().is_socket() {
        return Err("there is a file of that name which is not a socket; remove it".to_owned());
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err("another process listens there".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("there is a socket that cannot be tried: {error}")),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
