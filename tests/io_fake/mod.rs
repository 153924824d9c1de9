//! A replica that does what a test says.

#![allow(dead_code, unreachable_pub)]

pub mod program;
pub mod site;
pub mod terminator;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use syncmux::core::event::{Identity, Pool};
use syncmux::io::address::Address;
use syncmux::io::lane_connect::{ReplicaSettings, TlsMode};
use syncmux::io::spill::Spill;
use syncmux::io::stream::BoxStream;
use syncmux::io::tls::ClientFiles;
use syncmux::protocol::Dialect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// As of Cyrus 3.6.1 without TLS.
pub const GREETING: &str = "* SASL PLAIN\r\n* COMPRESS DEFLATE\r\n* SIEVE-MAILBOX\r\n\
                            * OK replica Cyrus sync server 3.6.1\r\n";

pub struct Fake {
    listener: TcpListener,
    pub address: SocketAddr,
}

pub struct Peer(pub BoxStream);

pub fn spill(limit: u64) -> Arc<Spill> {
    Spill::new(&std::env::temp_dir(), limit).unwrap()
}

pub fn pool() -> Pool {
    Pool {
        identity: Identity::Configured,
        capabilities: Vec::new(),
        force: None,
    }
}

pub fn settings(address: &SocketAddr) -> ReplicaSettings {
    ReplicaSettings {
        channel: String::new(),
        address: Address::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        },
        dialect: Dialect::Csync,
        tls: TlsMode::Off,
        files: ClientFiles::default(),
        server_name: None,
        mechanism: None,
        compress: false,
        connect_timeout: Duration::from_secs(5),
        login_timeout: Duration::from_secs(5),
        linger: Duration::from_secs(1),
        exit_wait: Duration::from_secs(1),
        reply_memory: 64 * 1024,
    }
}

impl Fake {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    pub async fn accept(&self) -> Peer {
        Peer(Box::new(self.listener.accept().await.unwrap().0))
    }
}

impl Peer {
    /// Goes on in TLS, as a client that trusts this certificate.
    #[allow(dead_code, reason = "only for listeners with STARTTLS")]
    pub async fn in_tls(self, certificate: std::path::PathBuf) -> Self {
        let files = syncmux::io::tls::ClientFiles {
            ca_file: Some(certificate),
            identity: None,
        };
        let connector: tokio_rustls::TlsConnector =
            Arc::new(syncmux::io::tls::client_config(&files).unwrap()).into();
        let name = syncmux::io::tls::server_name("syncmux").unwrap();
        Peer(Box::new(connector.connect(name, self.0).await.unwrap()))
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Reads exactly this.
    pub async fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        let read = self.0.read_exact(&mut got);
        let done = tokio::time::timeout(Duration::from_secs(10), read).await;
        done.expect("in time").expect("as many bytes");
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// Reads a line.
    pub async fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let byte = self.0.read_u8();
            match tokio::time::timeout(Duration::from_secs(10), byte).await {
                Ok(Ok(byte)) => line.push(byte),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&line)),
            }
        }
        String::from_utf8(line).unwrap()
    }

    pub async fn skip(&mut self, mut n: usize) {
        let mut buffer = vec![0; 65536];
        while n > 0 {
            let len = n.min(buffer.len());
            n -= self.0.read(&mut buffer[..len]).await.unwrap();
        }
    }

    /// Everything until the end of file.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = self.0.read_to_end(&mut rest);
        let done = tokio::time::timeout(Duration::from_secs(10), read).await;
        let _ = done.expect("an end of file in time");
        rest
    }

    /// Keeps the connection open for as long as the test runs.
    pub async fn hold(self) {
        std::future::pending::<()>().await;
    }

    pub async fn greet_and_login(&mut self) {
        self.send(GREETING.as_bytes()).await;
        self.expect("AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n").await;
        self.send(b"OK Success (no protection)\r\n").await;
    }

    pub async fn let_in(&mut self) {
        self.greet_and_login().await;
        self.expect("NOOP\r\n").await;
        self.send(b"OK Noop completed\r\n").await;
    }
}
