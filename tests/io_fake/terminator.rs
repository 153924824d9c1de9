//! Certificates, a terminator and the `sync_server` behind it that a test plays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use syncmux::io::address::Address;
use syncmux::io::certificates::Reloaded;
use syncmux::io::lobby::Lobby;
use syncmux::io::stream::Meter;
use syncmux::io::telemetry::Floods;
use syncmux::io::terminate::{Begin, Guests, Server, Terminator};
use syncmux::io::tls::{ClientFiles, ServerFiles, client_config, server_config, server_name};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Peer;

pub const UNIX_GREETING: &str = "* OK replica Cyrus sync server 3.6.1\r\n";
pub const BANNER: &str =
    "* SASL EXTERNAL\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n";

/// Certificates of one authority, and of another one.
pub struct Files {
    pub folder: TempDir,
    pub ours: Issuer<'static, KeyPair>,
    pub other: Issuer<'static, KeyPair>,
}

/// What a certificate is like.
#[derive(Clone, Copy, Default)]
pub struct Kind {
    pub years: Option<(i32, i32)>,
    pub server: bool,
    pub other: bool,
    pub self_signed: bool,
}

impl Files {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = |file: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            std::fs::write(folder.path().join(file), pem).unwrap();
            Issuer::new(params, key)
        };
        let (ours, other) = (authority("ca.pem"), authority("other.pem"));
        let files = Files {
            folder,
            ours,
            other,
        };
        let server = Kind {
            server: true,
            ..Kind::default()
        };
        files.issue("server", "replica.example.com", server);
        files.issue("client", "master.example.com", Kind::default());
        files
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes NAME.pem and NAME.key.
    pub fn issue(&self, file: &str, name: &str, kind: Kind) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if let Some((from, to)) = kind.years {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        }
        params.extended_key_usages = vec![if kind.server {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        let issuer = if kind.other { &self.other } else { &self.ours };
        let certificate = if kind.self_signed {
            params.self_signed(&key).unwrap()
        } else {
            params.signed_by(&key, issuer).unwrap()
        };
        std::fs::write(self.at(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.at(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    pub fn connector(&self, client: Option<&str>) -> TlsConnector {
        let files = ClientFiles {
            ca_file: Some(self.at("ca.pem")),
            identity: client
                .map(|it| (self.at(&format!("{it}.pem")), self.at(&format!("{it}.key")))),
        };
        Arc::new(client_config(&files).unwrap()).into()
    }
}

/// A terminator and the server behind.
pub struct Site {
    pub files: Files,
    pub server: UnixListener,
    pub terminator: Arc<Terminator>,
    pub address: std::net::SocketAddr,
    pub stop: CancellationToken,
}

impl Site {
    pub async fn start(change: impl FnOnce(&mut Terminator)) -> Self {
        let files = Files::new();
        let server = UnixListener::bind(files.at("csync")).unwrap();
        let shown = ServerFiles {
            cert_file: files.at("server.pem"),
            key_file: files.at("server.key"),
            client_ca_file: Some(files.at("ca.pem")),
        };
        let mut terminator = Terminator {
            tls: Reloaded::new("", shown.roles(), move || server_config(&shown)).unwrap(),
            names: Some(vec!["master.example.com".to_owned()]),
            begin: Begin::Both(Duration::from_millis(200)),
            compress: false,
            login_time: Duration::from_secs(10),
            server: Server::new(Address::Unix(files.at("csync"))),
            permits: Arc::new(Semaphore::new(2)),
            lobby: Lobby::new(10),
            guests: Guests::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            meter: Meter::new("", "replica"),
            floods: Floods::default(),
        };
        change(&mut terminator);
        let terminator = Arc::new(terminator);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&terminator).run(listener, stop.clone()));
        Site {
            files,
            server,
            terminator,
            address,
            stop,
        }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The next connection to the server.
    pub async fn behind(&self) -> Peer {
        let mut peer = Peer(Box::new(self.server.accept().await.unwrap().0));
        peer.send(UNIX_GREETING.as_bytes()).await;
        peer
    }

    /// The server is asked for its capabilities.
    pub async fn is_asked(&self) {
        let mut peer = self.behind().await;
        let line = peer.line().await;
        assert_eq!(
            line,
            "APPLY CAPABILITIES (SIEVE-MAILBOX REPLICATION-ARCHIVE)\r\n"
        );
        peer.send(b"* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n")
            .await;
        peer.expect("EXIT\r\n").await;
    }

    /// TLS with this certificate.
    pub async fn secure(&self, stream: TcpStream, client: Option<&str>) -> std::io::Result<Peer> {
        let connector = self.files.connector(client);
        let name = server_name("replica.example.com").unwrap();
        Ok(Peer(Box::new(connector.connect(name, stream).await?)))
    }

    /// One that is let in, and its other end; the first of all.
    pub async fn first(&self) -> (Peer, Peer) {
        let stream = self.connect().await;
        let client = async {
            let mut client = self.secure(stream, Some("client")).await.unwrap();
            client.expect(BANNER).await;
            client.send(b"AUTHENTICATE EXTERNAL =\r\n").await;
            client.expect("OK Success (tls protection)\r\n").await;
            client
        };
        let server = async {
            let peer = self.behind().await;
            self.is_asked().await;
            peer
        };
        tokio::join!(client, server)
    }
}
