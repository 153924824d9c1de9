//! TLS towards the replica: whatever is wrong with it is found before a byte of the login.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io_fake::{Fake, Peer, pool, settings, spill};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use syncmux::core::event::{Event, LaneId};
use syncmux::io::credentials::Credentials;
use syncmux::io::lane;
use syncmux::io::lane_connect::{ConnectError, Replica, ReplicaSettings, TlsMode};
use syncmux::io::tls::{ServerFiles, server_config};
use syncmux::protocol::Dialect;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

const NAME: &str = "replica.example.com";

/// What is wrong with a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Expired,
    NotYet,
    Use,
    SelfSigned,
    /// It ends in 3 seconds.
    Soon,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: NamedTempFile,
}

fn file(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = file(&params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    fn issue(&self, name: &str, fault: Fault) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let years = match fault {
            Fault::Expired => Some((2020, 2021)),
            Fault::NotYet => Some((2090, 2091)),
            _ => None,
        };
        if let Some((from, to)) = years {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        }
        if fault == Fault::Soon {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let ends = Duration::from_secs(now.as_secs() + 3);
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + ends;
        }
        if fault == Fault::Use {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        let certificate = if fault == Fault::SelfSigned {
            params.self_signed(&key).unwrap()
        } else {
            params.signed_by(&key, &self.issuer).unwrap()
        };
        let certificate = file(&certificate.pem());
        let key = file(&key.serialize_pem());
        let files = ServerFiles {
            cert_file: certificate.path().to_owned(),
            key_file: key.path().to_owned(),
            client_ca_file: None,
        };
        Arc::new(server_config(&files).unwrap()).into()
    }

    fn path(&self) -> PathBuf {
        self.pem.path().to_owned()
    }
}

fn tls_settings(fake: &Fake, mode: TlsMode, ca: &Authority) -> ReplicaSettings {
    let mut settings = settings(&fake.address);
    settings.tls = mode;
    settings.files.ca_file = Some(ca.path());
    settings.server_name = Some("replica.example.com".to_owned());
    settings
}

/// The banner of 3.6.1 with certificates.
async fn offer_starttls(peer: &mut Peer) {
    peer.send(b"* SASL PLAIN\r\n* STARTTLS\r\n* COMPRESS DEFLATE\r\n* SIEVE-MAILBOX\r\n")
        .await;
    peer.send(b"* OK replica Cyrus sync server 3.6.1\r\n").await;
    peer.expect("STARTTLS\r\n").await;
}

async fn accept_tls(peer: Peer, acceptor: &TlsAcceptor) -> std::io::Result<Peer> {
    Ok(Peer(Box::new(acceptor.accept(peer.0).await?)))
}

#[tokio::test]
async fn both_kinds_of_tls_lead_to_a_login() {
    for mode in [TlsMode::Starttls, TlsMode::Implicit] {
        let ca = Authority::new();
        let acceptor = ca.issue("replica.example.com", Fault::None);
        let fake = Fake::bind().await;
        let replica = Replica::new(tls_settings(&fake, mode, &ca), spill(1 << 20)).unwrap();
        let mut greeting = replica.greeting();
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let credentials = Some(Credentials::new("repl", "replpw"));
        let _lane = lane::open(LaneId(1), pool(), Arc::clone(&replica), credentials, sender);
        let mut peer = fake.accept().await;
        if mode == TlsMode::Starttls {
            offer_starttls(&mut peer).await;
            peer.send(b"OK Begin TLS negotiation now\r\n").await;
        }
        let mut peer = accept_tls(peer, &acceptor).await.unwrap();
        peer.let_in().await;
        let event = events.recv().await;
        assert!(matches!(event, Some(Event::LaneOpened { .. })), "{event:?}");
        let known = greeting
            .wait_for(Option::is_some)
            .await
            .unwrap()
            .clone()
            .unwrap();
        // The one that came through TLS.
        assert!(known.has("SIEVE-MAILBOX") && !known.starttls);
    }
}

#[tokio::test]
async fn wrong_certificates_are_refused_before_a_byte_of_the_login() {
    let (ca, other) = (Authority::new(), Authority::new());
    for (acceptor, wanted) in [
        (other.issue(NAME, Fault::None), "ca_file"),
        (
            ca.issue("elsewhere.example.com", Fault::None),
            "server_name",
        ),
        (ca.issue(NAME, Fault::Expired), "expired"),
        (ca.issue(NAME, Fault::NotYet), "not valid yet"),
        (ca.issue(NAME, Fault::Use), "refused"),
        (ca.issue(NAME, Fault::SelfSigned), "ca_file"),
    ] {
        for mode in [TlsMode::Starttls, TlsMode::Implicit] {
            let fake = Fake::bind().await;
            let replica = Replica::new(tls_settings(&fake, mode, &ca), spill(1 << 20)).unwrap();
            let credentials = Credentials::new("repl", "replpw");
            let server = async {
                let mut peer = fake.accept().await;
                if mode == TlsMode::Starttls {
                    offer_starttls(&mut peer).await;
                    peer.send(b"OK Begin TLS negotiation now\r\n").await;
                }
                if let Ok(mut peer) = accept_tls(peer, &acceptor).await {
                    assert_eq!(peer.rest().await, b"");
                }
            };
            let (checked, ()) = tokio::join!(replica.check_login(Some(&credentials)), server);
            let error = checked.unwrap_err();
            assert!(matches!(error, ConnectError::Tls { .. }));
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}

/// A session is resumed without a look at the certificate that it began with.
#[tokio::test]
async fn a_session_does_not_outlive_the_replicas_certificate() {
    let ca = Authority::new();
    let acceptor = ca.issue(NAME, Fault::Soon);
    let fake = Fake::bind().await;
    let settings = tls_settings(&fake, TlsMode::Implicit, &ca);
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    let server = async {
        let mut peer = accept_tls(fake.accept().await, &acceptor).await.unwrap();
        peer.send(io_fake::GREETING.as_bytes()).await;
        peer.rest().await;
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    probed.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let server = async {
        let stream = acceptor.accept(fake.accept().await.0).await.unwrap();
        let resumed = Some(rustls::HandshakeKind::Resumed);
        assert_eq!(stream.get_ref().1.handshake_kind(), resumed);
        assert_eq!(Peer(Box::new(stream)).rest().await, b"");
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    let error = probed.unwrap_err().to_string();
    assert!(error.contains("certificate has expired"), "{error}");
    // A replica that has renewed it is not held to the old one.
    let renewed = ca.issue(NAME, Fault::None);
    let server = async {
        let mut peer = accept_tls(fake.accept().await, &renewed).await.unwrap();
        peer.send(io_fake::GREETING.as_bytes()).await;
        peer.rest().await;
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    probed.unwrap();
}

#[tokio::test]
async fn a_replica_without_starttls_gets_no_login() {
    let ca = Authority::new();
    let fake = Fake::bind().await;
    let settings = tls_settings(&fake, TlsMode::Starttls, &ca);
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    let server = async {
        let mut peer = fake.accept().await;
        peer.send(io_fake::GREETING.as_bytes()).await;
        assert_eq!(peer.rest().await, b"");
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    let error = probed.unwrap_err();
    assert!(
        error.to_string().contains("does not offer STARTTLS"),
        "{error}"
    );
}

#[tokio::test]
async fn plain_bytes_behind_starttls_are_not_taken_for_the_replica() {
    let ca = Authority::new();
    let fake = Fake::bind().await;
    let settings = tls_settings(&fake, TlsMode::Starttls, &ca);
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    let server = async {
        let mut peer = fake.accept().await;
        offer_starttls(&mut peer).await;
        peer.send(b"OK Begin TLS negotiation now\r\n* OK injected\r\n")
            .await;
        assert_eq!(peer.rest().await, b"");
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    let error = probed.unwrap_err();
    assert!(error.to_string().contains("in the clear"), "{error}");
}

/// By IMAP there is no second greeting: what was said in the clear must not stand in for it.
#[tokio::test]
async fn by_imap_nothing_counts_that_was_said_in_the_clear() {
    let greeting = b"* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN X-REPLICATION] ready\r\n";
    let begin = "S0 OK Begin TLS negotiation now\r\n";
    let ca = Authority::new();
    let acceptor = ca.issue(NAME, Fault::None);
    let credentials = Credentials::new("repl", "replpw");
    for injected in [
        "* CAPABILITY AUTH=PLAIN\r\n",
        "S1 OK Completed\r\n",
        "* OK",
        "S",
    ] {
        let fake = Fake::bind().await;
        let mut settings = tls_settings(&fake, TlsMode::Starttls, &ca);
        settings.dialect = Dialect::Imap;
        let replica = Replica::new(settings, spill(1 << 20)).unwrap();
        let server = async {
            let mut peer = fake.accept().await;
            peer.send(greeting).await;
            peer.expect("S0 STARTTLS\r\n").await;
            peer.send([begin, injected].concat().as_bytes()).await;
            assert_eq!(peer.rest().await, b"");
        };
        let (probed, ()) = tokio::join!(replica.probe_greeting(Some(&credentials)), server);
        let error = probed.unwrap_err().to_string();
        assert!(error.contains("in the clear"), "{injected}: {error}");
        assert!(replica.greeting().borrow().is_none());
    }
    let fake = Fake::bind().await;
    let mut settings = tls_settings(&fake, TlsMode::Starttls, &ca);
    settings.dialect = Dialect::Imap;
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    let server = async {
        let mut peer = fake.accept().await;
        peer.send(greeting).await;
        peer.expect("S0 STARTTLS\r\n").await;
        peer.send(begin.as_bytes()).await;
        let mut peer = accept_tls(peer, &acceptor).await.unwrap();
        peer.expect("S0 CAPABILITY\r\n").await;
        peer.send(b"S0 OK Completed\r\n").await;
        assert_eq!(peer.rest().await, b"");
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(Some(&credentials)), server);
    let error = probed.unwrap_err().to_string();
    assert!(error.contains("it offers none"), "{error}");
    assert!(replica.greeting().borrow().is_none());
}

#[tokio::test]
async fn what_is_not_tls_is_said_to_be_so() {
    let ca = Authority::new();
    let fake = Fake::bind().await;
    let settings = tls_settings(&fake, TlsMode::Implicit, &ca);
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    let server = async {
        let mut peer = fake.accept().await;
        peer.send(io_fake::GREETING.as_bytes()).await;
        peer.rest().await;
    };
    let (probed, ()) = tokio::join!(replica.probe_greeting(None), server);
    let error = probed.unwrap_err();
    assert!(error.to_string().contains("is not TLS"), "{error}");
}

/// Nobody wants a lane as long as no client can be greeted: that the replica is away shows all the
/// same.
#[tokio::test]
async fn a_replica_that_was_never_there_is_away() {
    let ca = Authority::new();
    let fake = Fake::bind().await;
    let mut settings = tls_settings(&fake, TlsMode::Implicit, &ca);
    settings.address = "127.0.0.1:1".parse().unwrap();
    let replica = Replica::new(settings, spill(1 << 20)).unwrap();
    assert!(replica.never_seen().is_none(), "nobody has asked yet");
    let learner = Arc::clone(&replica);
    tokio::spawn(async move { learner.learn_greeting(None).await });
    let told = async {
        while replica.never_seen().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let told = tokio::time::timeout(std::time::Duration::from_secs(10), told).await;
    assert!(told.is_ok());
}
