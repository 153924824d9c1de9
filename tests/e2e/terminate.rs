//! TLS in front of the replica's `sync_server`: certificates instead of passwords, renewed while mail
//! is replicated.

use std::path::Path;

use rustix::process::Signal;

use crate::support::certs::{Certs, SERVER_NAME};
use crate::support::client::{Rolling, wait_until_drained};
use crate::support::cyrus::PASSWORD;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::mux::Mux;
use crate::support::process::{folder, give};
use crate::support::relay::Relay;
use crate::support::version::Version;
use crate::support::wait_for;

ways!(certificates_are_the_login: strict, fan_out);

/// A master with a syncmux, a replica with a `terminate`, the link between these two.
struct Pair {
    lab: Lab,
    terminate: Mux,
    mux: Mux,
    link: Relay,
    certs: Certs,
    rolling: Rolling,
}

/// `terminate` in front of the replica's UNIX socket.
fn in_front_of(server: &str, certs: &Certs, extra: &str, at: &Path) -> Mux {
    let mut terminate = Mux::custom(at, "terminate", false, |listen, admin| {
        format!(
            "[terminate]\nlisten = [\"{listen}\"]\nserver = \"{server}\"\ncert_file = \"{}\"\n\
             key_file = \"{}\"\n{extra}\n[admin]\nlisten = \"{admin}\"\n\
             [log]\nlevel = \"debug\"\n",
            certs.cert.display(),
            certs.key.display(),
        )
    });
    let (code, said) = terminate.check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("it is for replica.test"), "{said}");
    let has = if Version::of(true).is_from("3.6") {
        "answers and has SIEVE-MAILBOX"
    } else {
        "answers and has no capabilities"
    };
    assert!(said.contains(has), "{said}");
    terminate.start();
    terminate
}

fn by_certificate(certs: &Certs) -> String {
    format!(
        "client_ca_file = \"{}\"\nallowed_names = [\"elsewhere\", \"repl\"]",
        certs.ca.display()
    )
}

impl Pair {
    fn start(way: Way, tls: &str) -> Self {
        Self::start_with(way, tls, "")
    }

    /// With a line for `[terminate]`.
    fn start_with(way: Way, tls: &str, extra: &str) -> Self {
        let mut setup = Setup::new(Way::Direct);
        setup.tls = false;
        let mut lab = setup.start();
        let certs = Certs::make(&folder(&lab.path("terminate-certs")));
        let server = format!("unix:{}", lab.replica.csync_socket().display());
        let at = lab.path("terminate");
        let extra = format!("{}\n{extra}", by_certificate(&certs));
        let terminate = in_front_of(&server, &certs, &extra, &at);
        let link = Relay::start(&terminate.listen, std::time::Duration::from_millis(2));
        let mode = if way == Way::Strict {
            "strict"
        } else {
            "fan-out"
        };
        let directory = lab.sync_directory();
        let mut mux = Mux::custom(&lab.path("mux"), "run", true, |listen, admin| {
            format!(
                "[[channel]]\nmode = \"{mode}\"\nsync_directory = \"{}\"\n\
                 listen = [\"unix:{listen}\"]\n[channel.replica]\naddress = \"{}\"\n\
                 tls = \"{tls}\"\nca_file = \"{}\"\nserver_name = \"{SERVER_NAME}\"\n\
                 cert_file = \"{}\"\nkey_file = \"{}\"\nlanes = 4\n\
                 [site]\nimapd_conf = \"{}\"\n[admin]\nlisten = \"{admin}\"\n\
                 [log]\nlevel = \"debug\"\n",
                directory.display(),
                link.address(),
                certs.ca.display(),
                certs.client_cert.display(),
                certs.client_key.display(),
                lab.master.conf().display(),
            )
        });
        mux.start();
        lab.step("the first mail");
        let client = lab.client_to("rolling", &mux.listen, PASSWORD, "");
        let rolling = client.rolling();
        Pair {
            lab,
            terminate,
            mux,
            link,
            certs,
            rolling,
        }
    }

    /// Replicates, and both ends hold the same.
    fn settle(&mut self) {
        self.rolling.keep_alive();
        wait_until_drained(&self.lab.sync_directory(), &mut self.rolling);
        wait_for("nothing to be unconfirmed", || {
            let zero = |name| self.mux.metric(name, &[]) == 0.0;
            let confirmed = zero("syncmux_unconfirmed_users") && zero("syncmux_owed_lines");
            confirmed.then_some(())
        });
        self.lab.assert_same();
    }
}

fn certificates_are_the_login(way: Way) {
    let tls = if way == Way::Strict {
        "starttls"
    } else {
        "implicit"
    };
    let mut pair = Pair::start(way, tls);
    let users = pair.lab.add_users(6);
    pair.lab.mail(&users, "1", 4000);
    // Scripts, which go wrong where the capability is not known.
    let mut sieve = pair.lab.master.manage_sieve("u000");
    sieve.put("one", "keep;\r\n");
    sieve.activate("one");
    pair.lab.sieve_users.insert("u000".to_owned());
    pair.settle();
    assert!(pair.terminate.metric("syncmux_terminated_connections", &[]) >= 1.0);
    let log = pair.mux.log_text();
    assert!(
        !log.contains("PLAIN"),
        "no password has anything to do here"
    );

    pair.lab.step("new certificates of a new authority");
    let fresh = Certs::make(&folder(&pair.lab.path("fresh-certs")));
    let old = &pair.certs;
    for (new, old) in [
        (&fresh.ca, &old.ca),
        (&fresh.cert, &old.cert),
        (&fresh.key, &old.key),
        (&fresh.client_cert, &old.client_cert),
        (&fresh.client_key, &old.client_key),
    ] {
        let aside = old.with_extension("new");
        std::fs::copy(new, &aside).unwrap();
        give(&aside);
        std::fs::rename(&aside, old).unwrap();
    }
    // One is asked, the other notices by itself.
    pair.terminate.signal(Signal::HUP);
    for mux in [&pair.terminate, &pair.mux] {
        wait_for("the certificates to be read anew", || {
            let read = mux.metric("syncmux_certificate_reloads_total", &[("result", "ok")]);
            (read >= 1.0).then_some(())
        });
    }
    pair.lab.mail(&users, "2", 4000);
    pair.settle();
    pair.lab.step("by new connections");
    pair.link.reset();
    pair.lab.mail(&users, "3", 4000);
    pair.settle();

    pair.lab.step("a bad certificate");
    std::fs::write(&pair.certs.cert, "no certificate\n").unwrap();
    pair.terminate.signal(Signal::HUP);
    wait_for("the certificate to be refused", || {
        let refused = [("result", "refused")];
        let refused = pair
            .terminate
            .metric("syncmux_certificate_reloads_total", &refused);
        (refused >= 1.0).then_some(())
    });
    pair.link.reset();
    pair.lab.mail(&users, "4", 4000);
    pair.settle();
    std::fs::copy(&fresh.cert, &pair.certs.cert).unwrap();

    pair.lab.step("terminate is started anew");
    pair.lab.mail(&users, "5", 4000);
    assert_eq!(
        pair.terminate.stop(),
        Some(0),
        "{}",
        pair.terminate.log_tail()
    );
    pair.terminate.start();
    pair.settle();

    pair.lab.step("kill -9 of terminate");
    pair.lab.mail(&users, "6", 4000);
    pair.terminate.kill();
    pair.terminate.start();
    pair.settle();
}

/// Whom the certificate does not let in gets nothing: not even a banner.
#[test]
fn strangers() {
    // By `both` it would greet in the clear whoever has not begun with TLS after 400 ms.
    let mut pair = Pair::start_with(Way::FanOut, "implicit", "tls = \"implicit\"");
    let users = pair.lab.add_users(2);
    pair.lab.mail(&users, "1", 2000);
    pair.settle();
    let stranger = Certs::make(&folder(&pair.lab.path("stranger")));
    for (identity, wanted) in [
        (None, "shows no certificate"),
        (
            Some((&stranger.client_cert, &stranger.client_key)),
            "not signed by an authority",
        ),
        // A certificate of the right authority, made for another use.
        (
            Some((&pair.certs.cert, &pair.certs.key)),
            "its certificate is refused",
        ),
    ] {
        let identity = identity.map_or(String::new(), |(cert, key)| {
            let (cert, key) = (cert.display(), key.display());
            format!("cert_file = \"{cert}\"\nkey_file = \"{key}\"\n")
        });
        let text = format!(
            "[[channel]]\nlisten = [\"127.0.0.1:1\"]\n[channel.replica]\naddress = \"{}\"\n\
             tls = \"implicit\"\nca_file = \"{}\"\nserver_name = \"{SERVER_NAME}\"\n\
             username = \"repl\"\npassword_file = \"{}\"\n{identity}\
             [site]\nimapd_conf = \"{}\"\n",
            pair.terminate.listen,
            pair.certs.ca.display(),
            pair.lab.path("password").display(),
            pair.lab.master.conf().display(),
        );
        crate::support::process::write(&pair.lab.path("password"), "secret\n");
        let check = Mux::custom(&pair.lab.path("check"), "run", false, |_, _| text);
        // On a machine with more to do it may begin so late that it is greeted in the clear.
        let (code, said) = wait_for("TLS to begin in time", || {
            Some(check.check()).filter(|(_, said)| !said.contains("is not TLS"))
        });
        assert_eq!(code, Some(64), "{said}");
        let log = pair.terminate.log_text();
        assert!(log.contains(wanted), "{wanted}: {log}\n{said}");
    }
    assert_eq!(
        pair.terminate.metric("syncmux_terminated_connections", &[]),
        lanes(&pair)
    );
    pair.lab.mail(&users, "2", 2000);
    pair.settle();
}

fn lanes(pair: &Pair) -> f64 {
    let lanes = |state| pair.mux.metric("syncmux_lanes", &[("state", state)]);
    lanes("idle") + lanes("busy")
}

/// The stock client itself, with its password, before a `sync_server` that listens on TCP.
#[test]
fn stock_client_with_a_password() {
    let mut setup = Setup::new(Way::Direct);
    setup.tls = false;
    let mut lab = setup.start();
    let certs = Certs::make(&folder(&lab.path("terminate-certs")));
    let server = lab.replica.csync.address();
    let mut terminate = in_front_of(&server, &certs, "", &lab.path("terminate"));
    let users = lab.add_users(3);
    lab.mail(&users, "1", 4000);
    let client = lab.client_to("terminate", &terminate.listen, PASSWORD, "");
    let all: Vec<&str> = users.iter().map(String::as_str).collect();
    client.user(&all).expect_ok("-u");
    // It is counted when it has ended.
    wait_for("the connection to have been carried", || {
        let total = "syncmux_terminated_connections_total";
        let carried = terminate.metric(total, &[("result", "carried")]);
        (carried >= 1.0).then_some(())
    });
    let log = terminate.log_text();
    assert!(!log.contains("refused"), "{log}");
    lab.step("rolling");
    lab.mail(&users, "2", 4000);
    let mut rolling = client.rolling();
    wait_until_drained(&lab.sync_directory(), &mut rolling);
    drop(rolling);
    assert_eq!(terminate.stop(), Some(0));
    lab.assert_same();
}

/// The stock client with a certificate, where there is no password at all.
#[test]
fn stock_client_with_a_certificate() {
    let mut setup = Setup::new(Way::Direct);
    setup.tls = false;
    let mut lab = setup.start();
    let certs = Certs::make(&folder(&lab.path("terminate-certs")));
    let server = format!("unix:{}", lab.replica.csync_socket().display());
    let extra = format!("{}\ncompress = true", by_certificate(&certs));
    let terminate = in_front_of(&server, &certs, &extra, &lab.path("terminate"));
    let users = lab.add_users(3);
    lab.mail(&users, "1", 4000);
    let extra = format!(
        "tls_client_cert: {}\ntls_client_key: {}\ntls_client_ca_file: {}\n",
        certs.client_cert.display(),
        certs.client_key.display(),
        certs.ca.display()
    );
    let client = lab.client_to("certificate", &terminate.listen, "none", &extra);
    let all: Vec<&str> = users.iter().map(String::as_str).collect();
    // Its password is wrong, but nobody asks for one.
    client.user(&all).expect_ok("-u");
    let log = terminate.log_text();
    assert!(log.contains(r#"names=["repl"]"#), "{log}");
    // It takes COMPRESS where that is offered: 12 KB of mail went over.
    let bytes = terminate.metric(
        "syncmux_bytes_total",
        &[("side", "replica"), ("direction", "out")],
    );
    assert!((500.0..6000.0).contains(&bytes), "{bytes}");
    lab.assert_same();
}
