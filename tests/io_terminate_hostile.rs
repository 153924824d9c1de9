//! TLS in front of a `sync_server`: clients and servers that mean no good, or are in trouble.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_fake::Peer;
use io_fake::terminator::{BANNER, Site};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use syncmux::io::address::Address;
use syncmux::io::terminate::{Begin, Server};
use syncmux::io::tls::server_name;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A session is resumed without a look at the certificate that it began with.
#[tokio::test]
async fn a_session_does_not_outlive_its_certificate() {
    let site = Site::start(|_| {}).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["master.example.com".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ends = Duration::from_secs(now.as_secs() + 3);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + ends;
    let certificate = params.signed_by(&key, &site.files.ours).unwrap();
    std::fs::write(site.files.at("client.pem"), certificate.pem()).unwrap();
    std::fs::write(site.files.at("client.key"), key.serialize_pem()).unwrap();
    let connector = site.files.connector(Some("client"));
    let name = server_name("replica.example.com").unwrap();
    let connect = async || {
        let stream = site.connect().await;
        connector.connect(name.clone(), stream).await.unwrap()
    };
    let first = async {
        let mut peer = Peer(Box::new(connect().await));
        peer.expect(BANNER).await;
    };
    let server = async {
        let _peer = site.behind().await;
        site.is_asked().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::join!(first, server);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let second = connect().await;
    assert_eq!(
        second.get_ref().1.handshake_kind(),
        Some(rustls::HandshakeKind::Resumed)
    );
    let said = Peer(Box::new(second)).rest().await;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.starts_with("BYE your certificate has expired"),
        "{said}"
    );
    let heard = tokio::time::timeout(Duration::from_millis(100), site.server.accept()).await;
    assert!(heard.is_err(), "the sync_server has not heard of it");
}

/// A terminator before a server on TCP, which asks for passwords.
async fn with_passwords() -> (Site, TcpListener) {
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = behind.local_addr().unwrap().port();
    let site = Site::start(|it| {
        let host = "127.0.0.1".to_owned();
        it.server = Server::new(Address::Tcp { host, port });
        it.names = None;
        it.login_time = Duration::from_secs(2);
        it.permits = Arc::new(Semaphore::new(1));
    })
    .await;
    (site, behind)
}

#[tokio::test]
async fn who_does_not_log_in_with_a_password_has_to_go() {
    let (site, behind) = with_passwords().await;
    let greet = async || {
        let mut peer = Peer(Box::new(behind.accept().await.unwrap().0));
        peer.send(b"* SASL PLAIN\r\n* OK replica Cyrus sync server 3.6.1\r\n")
            .await;
        peer
    };
    let enter = async || {
        let stream = site.connect().await;
        let mut client = site.secure(stream, Some("client")).await.unwrap();
        client
            .expect("* SASL PLAIN\r\n* OK replica Cyrus sync server 3.6.1\r\n")
            .await;
        client
    };
    let (mut stranger, mut before) = tokio::join!(enter(), greet());
    stranger
        .send(b"NOOP\r\nRESTART\r\nCOMPRESS DEFLATE\r\n")
        .await;
    before
        .expect("NOOP\r\nRESTART\r\nCOMPRESS DEFLATE\r\n")
        .await;
    before
        .send(b"OK Noop completed\r\nOK Restarting\r\nOK DEFLATE active\r\n")
        .await;
    // It does not take the place of somebody who knows the password.
    let (mut master, mut server) = tokio::join!(enter(), greet());
    master
        .send(b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n")
        .await;
    server.line().await;
    // In pieces.
    for piece in [&b"O"[..], b"K Suc", b"cess (no protection)\r", b"\n"] {
        server.send(piece).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    master.expect("OK Success (no protection)\r\n").await;
    stranger
        .expect("OK Noop completed\r\nOK Restarting\r\nOK DEFLATE active\r\n")
        .await;
    assert_eq!(stranger.rest().await, b"");
    assert_eq!(before.rest().await, b"");
    tokio::time::sleep(Duration::from_secs(2)).await;
    master.send(b"GET USER u\r\n").await;
    server.expect("GET USER u\r\n").await;
    // And there is only one place.
    let stream = site.connect().await;
    let mut late = site.secure(stream, Some("client")).await.unwrap();
    assert_eq!(
        late.line().await,
        "BYE too many connections, try again later\r\n"
    );
}

/// A server that ends the connection while the client uploads has said why.
#[tokio::test]
async fn the_last_words_of_a_server_are_delivered() {
    let site = Site::start(|_| {}).await;
    let (client, mut server) = site.first().await;
    let (mut read, mut write) = tokio::io::split(client.0);
    let upload = tokio::spawn(async move {
        // Until nobody takes it.
        while write.write_all(&[b'x'; 65536]).await.is_ok() {
            if write.flush().await.is_err() {
                break;
            }
        }
    });
    server.skip(1 << 20).await;
    let words = format!("{}BYE Fatal error: disk full\r\n", "* y\r\n".repeat(20_000));
    server.send(words.as_bytes()).await;
    drop(server);
    let mut all = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut all);
    let read = tokio::time::timeout(Duration::from_secs(10), reading).await;
    assert_eq!(all.len(), words.len(), "{read:?}");
    assert!(all.ends_with(b"disk full\r\n"));
    upload.abort();
}

/// A client that has said everything may close its side and wait for the answer.
#[tokio::test]
async fn a_client_that_has_closed_its_side_gets_its_answer() {
    let site = Site::start(|_| {}).await;
    let (mut client, mut server) = site.first().await;
    client.send(b"APPLY MAILBOX x\r\nEXIT\r\n").await;
    client.0.shutdown().await.unwrap();
    assert_eq!(server.rest().await, b"APPLY MAILBOX x\r\nEXIT\r\n");
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.send(b"OK success\r\nOK Finished\r\n").await;
    drop(server);
    assert_eq!(client.rest().await, b"OK success\r\nOK Finished\r\n");
    let gone = async {
        while site.terminator.guests.status()["connections"] != 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .unwrap();
    assert_eq!(site.terminator.permits.available_permits(), 2);
}

/// A long answer that the client is slow to take is not cut off by a drain.
#[tokio::test]
async fn a_drain_waits_until_an_answer_is_delivered() {
    let site = Site::start(|_| {}).await;
    let (mut client, mut server) = site.first().await;
    client.send(b"FETCH x\r\n").await;
    server.expect("FETCH x\r\n").await;
    let answer = vec![b'a'; 16 << 20];
    let len = answer.len();
    let serve = tokio::spawn(async move {
        server.send(&answer).await;
        server
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    site.stop.cancel();
    site.terminator.drain.cancel();
    site.terminator.tasks.close();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.rest().await.len(), len);
    site.terminator.tasks.wait().await;
    drop(serve.await);
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn strangers_do_not_fill_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(lines);
    let site = Site::start(|it| it.begin = Begin::Implicit).await;
    let lines = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // Who asks whether the port is open is no news.
    for _ in 0..5 {
        drop(site.connect().await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(lines(), "");
    for _ in 0..200 {
        let mut stream: TcpStream = site.connect().await;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let _ = Peer(Box::new(stream)).0.shutdown().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let written = lines().lines().count();
    assert!((10..80).contains(&written), "{written}: {}", lines());
}
