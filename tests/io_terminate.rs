//! TLS in front of a `sync_server` that the test plays: who is let in, what each end is told.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::sync::Arc;
use std::time::Duration;

use io_fake::terminator::{BANNER, Files, Kind, Site};
use io_fake::{GREETING, Peer};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use syncmux::io::address::Address;
use syncmux::io::certificates::Reloaded;
use syncmux::io::terminate::{Begin, Server};
use syncmux::io::tls::{ServerFiles, server_config, server_name};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn the_certificate_is_the_login_and_then_bytes_pass() {
    let site = Site::start(|_| {}).await;
    let (mut client, mut server) = site.first().await;
    client.send(b"GET USER u\r\n").await;
    server.expect("GET USER u\r\n").await;
    server.send(b"OK success\r\n").await;
    client.expect("OK success\r\n").await;
    // What comes right behind the login belongs to the server.
    let stream = site.connect().await;
    let eager = async {
        let mut client = site.secure(stream, Some("client")).await.unwrap();
        client
            .send(b"AUTHENTICATE EXTERNAL =\r\nNOOP\r\nNOOP\r\n")
            .await;
        client.expect(BANNER).await;
        client.expect("OK Success (tls protection)\r\n").await;
        client
    };
    let behind = async {
        // It is not asked again.
        let mut peer = site.behind().await;
        peer.expect("NOOP\r\nNOOP\r\n").await;
        peer
    };
    let (mut eager, peer) = tokio::join!(eager, behind);
    let status = site.terminator.guests.status();
    assert_eq!(status["connections"], 2);
    assert_eq!(status["oldest"][0]["names"][0], "master.example.com");
    drop(peer);
    assert_eq!(eager.rest().await, b"");
}

#[tokio::test]
async fn starttls_on_the_same_port() {
    let site = Site::start(|it| it.compress = true).await;
    let client = async {
        let mut client = Peer(Box::new(site.connect().await));
        client
            .expect("* STARTTLS\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n")
            .await;
        client
            .send(b"NOOP\r\nGET USER u\r\nAUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n")
            .await;
        client.expect("OK Noop completed\r\n").await;
        client.expect("NO Please authenticate first\r\n").await;
        client
            .expect("NO SASL(-4): no mechanism available\r\n")
            .await;
        client.send(b"STARTTLS\r\n").await;
        client.expect("OK Begin TLS negotiation now\r\n").await;
        let connector = site.files.connector(Some("client"));
        let name = server_name("replica.example.com").unwrap();
        let mut client = Peer(Box::new(connector.connect(name, client.0).await.unwrap()));
        client
            .expect("* SASL EXTERNAL\r\n* COMPRESS DEFLATE\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n")
            .await;
        client.send(b"AUTHENTICATE EXTERNAL\r\n").await;
        client.expect("+ \r\n").await;
        client.send(b"\r\nCOMPRESS DEFLATE\r\n").await;
        client.expect("OK Success (tls protection)\r\n").await;
        client
    };
    let server = async {
        let _probe = site.behind().await;
        site.is_asked().await;
        let mut peer = site.behind().await;
        peer.expect("COMPRESS DEFLATE\r\n").await;
        peer
    };
    let _ = tokio::join!(client, server);
}

#[tokio::test]
async fn plain_bytes_behind_starttls_end_it() {
    let site = Site::start(|it| it.begin = Begin::Starttls).await;
    let client = async {
        let mut client = Peer(Box::new(site.connect().await));
        client.line().await;
        client
            .send(b"STARTTLS\r\nAUTHENTICATE EXTERNAL =\r\nNOOP\r\n")
            .await;
        let rest = client.rest().await;
        assert!(!String::from_utf8_lossy(&rest).contains("Success"));
    };
    let server = async {
        let _probe = site.behind().await;
        site.is_asked().await;
    };
    tokio::join!(client, server);
    assert_eq!(site.terminator.guests.status()["connections"], 0);
}

#[tokio::test]
async fn bad_certificates_get_no_byte() {
    let site = Site::start(|_| {}).await;
    let kind = Kind::default();
    let cases = [
        (
            "expired",
            "master.example.com",
            Kind {
                years: Some((2020, 2021)),
                ..kind
            },
        ),
        (
            "not-yet",
            "master.example.com",
            Kind {
                years: Some((2090, 2091)),
                ..kind
            },
        ),
        (
            "wrong-ca",
            "master.example.com",
            Kind {
                other: true,
                ..kind
            },
        ),
        (
            "wrong-use",
            "master.example.com",
            Kind {
                server: true,
                ..kind
            },
        ),
        (
            "self-signed",
            "master.example.com",
            Kind {
                self_signed: true,
                ..kind
            },
        ),
    ];
    for (file, name, kind) in cases {
        site.files.issue(file, name, kind);
    }
    for shown in cases.iter().map(|case| Some(case.0)).chain([None]) {
        let stream = site.connect().await;
        // With TLS 1.3 a client learns of it by its first read.
        if let Ok(mut client) = site.secure(stream, shown).await {
            assert_eq!(client.rest().await, b"", "{shown:?}");
        }
    }
    site.files
        .issue("wrong-name", "elsewhere.example.com", kind);
    let stream = site.connect().await;
    let mut client = site.secure(stream, Some("wrong-name")).await.unwrap();
    let said = String::from_utf8(client.rest().await).unwrap();
    assert!(said.starts_with("BYE your certificate"), "{said}");
    // The sync_server has not heard of any of them.
    let heard = tokio::time::timeout(Duration::from_millis(100), site.server.accept()).await;
    assert!(heard.is_err());
}

#[tokio::test]
async fn names_may_be_uris() {
    let site = Site::start(|it| it.names = Some(vec!["spiffe://example.com/master".into()])).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://example.com/master".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &site.files.ours).unwrap();
    std::fs::write(site.files.at("client.pem"), certificate.pem()).unwrap();
    std::fs::write(site.files.at("client.key"), key.serialize_pem()).unwrap();
    site.first().await;
}

#[tokio::test]
async fn there_is_a_limit_and_a_server_that_is_away_is_told() {
    let site = Site::start(|_| {}).await;
    let (_first, _a) = site.first().await;
    let second = async {
        let mut client = site
            .secure(site.connect().await, Some("client"))
            .await
            .unwrap();
        client.expect(BANNER).await;
        client
    };
    let (second, _b) = tokio::join!(second, site.behind());
    let mut third = site
        .secure(site.connect().await, Some("client"))
        .await
        .unwrap();
    third
        .expect("BYE too many connections, try again later\r\n")
        .await;
    // Who goes makes room.
    drop(second);
    let Site { files, server, .. } = site;
    drop(server);
    let connector = files.connector(Some("client"));
    let name = server_name("replica.example.com").unwrap();
    loop {
        let stream = TcpStream::connect(site.address).await.unwrap();
        let stream = connector.connect(name.clone(), stream).await.unwrap();
        let said = String::from_utf8(Peer(Box::new(stream)).rest().await).unwrap();
        if !said.starts_with("BYE too many") {
            assert!(said.starts_with("BYE the sync_server is away"), "{said}");
            break;
        }
    }
}

#[tokio::test]
async fn a_drain_waits_for_answers_and_cuts_nobody_else_off() {
    let site = Site::start(|_| {}).await;
    let (mut client, mut server) = site.first().await;
    client.send(b"APPLY MAILBOX x\r\n").await;
    server.expect("APPLY MAILBOX x\r\n").await;
    site.stop.cancel();
    site.terminator.drain.cancel();
    site.terminator.tasks.close();
    let early = tokio::time::timeout(Duration::from_secs(1), site.terminator.tasks.wait()).await;
    assert!(early.is_err(), "an answer was still to come");
    server.send(b"OK success\r\n").await;
    client.expect("OK success\r\n").await;
    site.terminator.tasks.wait().await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn over_tcp_the_servers_own_login_counts() {
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = behind.local_addr().unwrap().port();
    let site = Site::start(|it| {
        let host = "127.0.0.1".to_owned();
        it.server = Server::new(Address::Tcp { host, port });
        it.names = None;
    })
    .await;
    let client = async {
        let mut client = site
            .secure(site.connect().await, Some("client"))
            .await
            .unwrap();
        // No STARTTLS inside of TLS, and no COMPRESS unless it is wanted.
        client
            .expect("* SASL PLAIN\r\n* SIEVE-MAILBOX\r\n* OK replica Cyrus sync server 3.6.1\r\n")
            .await;
        client
            .send(b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n")
            .await;
        client.expect("OK Success (no protection)\r\n").await;
    };
    let server = async {
        let mut peer = Peer(Box::new(behind.accept().await.unwrap().0));
        peer.send(b"* STARTTLS\r\n").await;
        peer.greet_and_login().await;
        peer
    };
    let _ = tokio::join!(client, server);
    // The server did offer it.
    assert!(GREETING.contains("COMPRESS"));
}

#[tokio::test]
async fn sessions_are_resumed_until_the_certificate_changes() {
    use rustls::HandshakeKind;
    let site = Site::start(|_| {}).await;
    let connector = site.files.connector(Some("client"));
    let name = server_name("replica.example.com").unwrap();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = connector
            .connect(name.clone(), site.connect().await)
            .await
            .unwrap();
        let kind =
            |it: &tokio_rustls::client::TlsStream<TcpStream>| it.get_ref().1.handshake_kind();
        let first = kind(&stream);
        let mut peer = Peer(Box::new(stream));
        let server = async {
            let _peer = site.behind().await;
            if kinds.is_empty() {
                site.is_asked().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        tokio::join!(async { peer.expect(BANNER).await }, server);
        kinds.push(first);
    }
    assert_eq!(
        kinds,
        [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]
    );
}

/// What the kubelet does to a volume: all links are turned at once.
#[tokio::test]
async fn a_new_pair_is_shown_and_a_bad_one_is_not() {
    use std::os::unix::fs::symlink;
    use syncmux::io::certificates::Look;
    let files = Files::new();
    let server = Kind {
        server: true,
        ..Kind::default()
    };
    let turn = |folder: &str| {
        symlink(folder, files.at("..data_tmp")).unwrap();
        std::fs::rename(files.at("..data_tmp"), files.at("..data")).unwrap();
    };
    let expired = Kind {
        years: Some((2020, 2021)),
        ..server
    };
    for (folder, kind) in [("..1", server), ("..2", server), ("..3", expired)] {
        std::fs::create_dir(files.at(folder)).unwrap();
        files.issue(&format!("{folder}/tls"), "replica.example.com", kind);
    }
    // A key that is not the certificate's: what a look between two writes sees.
    std::fs::create_dir(files.at("..4")).unwrap();
    std::fs::copy(files.at("..1/tls.pem"), files.at("..4/tls.pem")).unwrap();
    std::fs::copy(files.at("..2/tls.key"), files.at("..4/tls.key")).unwrap();
    turn("..1");
    for file in ["tls.pem", "tls.key"] {
        symlink(format!("..data/{file}"), files.at(file)).unwrap();
    }
    let shown = ServerFiles {
        cert_file: files.at("tls.pem"),
        key_file: files.at("tls.key"),
        client_ca_file: None,
    };
    let config = Reloaded::new("", shown.roles(), move || server_config(&shown)).unwrap();
    let mut seen = Vec::new();
    for folder in ["..1", "..2", "..3", "..4"] {
        turn(folder);
        // A bad one is given a second look before it is refused.
        config.look(false);
        config.look(false);
        seen.push(certificate(&files, config.current()).await);
    }
    assert_ne!(seen[0], seen[1], "the new one is shown");
    assert_eq!(seen[1], seen[2], "the expired one is not");
    assert_eq!(seen[1], seen[3], "nor half of a pair");
}

/// What a client is shown.
async fn certificate(files: &Files, config: Arc<rustls::ServerConfig>) -> Vec<u8> {
    let (one, other) = tokio::io::duplex(1 << 16);
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let name = server_name("replica.example.com").unwrap();
    let (client, _server) = tokio::join!(
        files.connector(None).connect(name, one),
        acceptor.accept(other)
    );
    let client = client.unwrap();
    let chain = client.get_ref().1.peer_certificates().unwrap();
    chain[0].to_vec()
}
