//! The transparent sidecar: a master and its replicas in network namespaces of their own, the rules
//! of `deploy/transparent`, and a Cyrus that knows nothing of syncmux.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::certs::{Certs, SERVER_NAME};
use crate::support::client::{Client, Rolling, wait_until_drained};
use crate::support::compare;
use crate::support::csync::Csync;
use crate::support::cyrus::{Instance, Options, PASSWORD, REPL};
use crate::support::imap::message;
use crate::support::mux::{Mux, MuxOptions, Tls, right_password};
use crate::support::netns::Namespace;
use crate::support::process::{folder, give};
use crate::support::wait_for;

const NEAR: &str = "10.77.0.2";
const FAR: &str = "10.77.0.3";
const FAR_SIX: &str = "fd77::3";
/// Nobody's.
const OTHER: &str = "10.77.0.4";
const PORT: u16 = 2005;

/// The rules as they are delivered.
const RULES: &str = include_str!("../../deploy/transparent/syncmux.nft");
const GUARD: &str = "meta priority 0:4 counter return\n";

/// Two machines. Whatever is not said to be elsewhere happens on the master's.
struct Site {
    // In the order in which they are to end.
    mux: Option<Mux>,
    master: Instance,
    near: Instance,
    far: Instance,
    here: Namespace,
    there: Namespace,
    certs: Option<Certs>,
    dir: TempDir,
}

impl Site {
    fn start(tls: bool) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("syncmux-e2e-")
            .tempdir()
            .unwrap();
        give(dir.path());
        let at = |name: &str| dir.path().join(name);
        let (here, there) = (Namespace::new(), Namespace::new());
        let addresses = [NEAR, FAR, OTHER].map(|address| format!("{address}/24"));
        let mut theirs: Vec<&str> = addresses.iter().map(String::as_str).collect();
        theirs.push("fd77::3/64");
        here.connect(&there, &["10.77.0.1/24", "fd77::1/64"], &theirs);
        let certs = tls.then(|| Certs::make(&folder(&at("certs"))));
        let replica = |name: &str, addresses: &[String]| {
            let options = Options {
                certs: certs.clone(),
                csync_at: addresses.to_vec(),
                ..Options::default()
            };
            let _there = there.enter();
            Instance::start(&at(name), true, &options)
        };
        let mut near = replica("near", &[format!("{NEAR}:{PORT}")]);
        let mut far = replica(
            "far",
            &[format!("{FAR}:{PORT}"), format!("[{FAR_SIX}]:{PORT}")],
        );
        let options = Options {
            channels: vec!["far".to_owned()],
            ..Options::default()
        };
        let master = {
            let _here = here.enter();
            let mut master = Instance::start(&at("master"), false, &options);
            master.ready();
            master
        };
        {
            let _there = there.enter();
            near.ready();
            far.ready();
        }
        Self {
            mux: None,
            master,
            near,
            far,
            here,
            there,
            certs,
            dir,
        }
    }

    /// A syncmux for both replicas (and for the far one by IPv6), all at the same addresses.
    fn add_mux(&mut self, listen: &[&str], more: &str) {
        let tls = match &self.certs {
            Some(certs) => Tls::StartTls {
                ca: certs.ca.clone(),
                server_name: SERVER_NAME.to_owned(),
            },
            None => Tls::Off,
        };
        let mut options = MuxOptions {
            client_imap: false,
            replica_imap: false,
            fan_out: true,
            sync_directory: self.master.sync_directory(""),
            replica: format!("{NEAR}:{PORT}"),
            tls: tls.clone(),
            channel: String::new(),
            lanes: 3,
            compress: false,
            password: right_password(),
            imapd_conf: self.conf(),
            unix: false,
            rightnow: None,
            transparent: Vec::new(),
            extra: String::new(),
            log_level: "info".to_owned(),
        };
        let mux = Mux::new(&self.dir.path().join("mux"), &options);
        let (_, port) = mux.listen.split_once(':').unwrap();
        options.transparent = listen.iter().map(|ip| format!("{ip}:{port}")).collect();
        let tls = match tls {
            Tls::Off => "tls = \"off\"".to_owned(),
            Tls::StartTls { ca, server_name } | Tls::Implicit { ca, server_name } => format!(
                "ca_file = \"{}\"\nserver_name = \"{server_name}\"",
                ca.display()
            ),
        };
        for (name, replica, directory) in [
            (
                "far",
                FAR.to_owned(),
                Some(self.master.sync_directory("far")),
            ),
            ("six", format!("[{FAR_SIX}]"), None),
        ] {
            let directory =
                directory.map(|path| format!("sync_directory = \"{}\"\n", path.display()));
            write!(
                options.extra,
                "[[channel]]\nname = \"{name}\"\n{}listen = {:?}\ntransparent = true\n\
                 [channel.replica]\naddress = \"{replica}:{PORT}\"\n{tls}\nusername = \"{REPL}\"\n\
                 password_file = \"{}\"\nlanes = 3\n",
                directory.unwrap_or_default(),
                options.transparent,
                self.dir.path().join("mux/password").display()
            )
            .unwrap();
        }
        options.extra.push_str(more);
        mux.configure(&options);
        self.mux = Some(mux);
        let _here = self.here.enter();
        self.mux().start();
    }

    fn mux(&mut self) -> &mut Mux {
        self.mux.as_mut().expect("there is a syncmux")
    }

    /// The port on which syncmux listens.
    fn port(&self) -> u16 {
        let mux = self.mux.as_ref().expect("there is a syncmux");
        mux.listen.split_once(':').unwrap().1.parse().unwrap()
    }

    /// The delivered rules for this site.
    fn rules(&self) -> String {
        let port = self.port();
        let defined = |line: &str| {
            let name = line.strip_prefix("define ")?.split_whitespace().next()?;
            Some(match name {
                "syncmux_port" => format!("define syncmux_port = {port}"),
                "replicas_ipv4" => format!(
                    "define replicas_ipv4 = {{ {NEAR} . {PORT}, {FAR} . {PORT}, {OTHER} . {PORT} }}"
                ),
                "replicas_ipv6" => format!("define replicas_ipv6 = {{ {FAR_SIX} . {PORT} }}"),
                other => panic!("{other} is new in the rules"),
            })
        };
        let lines = RULES.lines();
        let lines = lines.map(|line| defined(line).unwrap_or_else(|| line.to_owned()) + "\n");
        lines.collect()
    }

    /// The same without the guard.
    fn rules_that_loop(&self) -> String {
        let rules = self.rules();
        assert!(rules.contains(GUARD));
        rules.replace(GUARD, "\n")
    }

    /// Cyrus's configuration, with and without syncmux: it names the replicas.
    fn conf(&self) -> PathBuf {
        let lines = format!(
            "sync_host: {NEAR}\nfar_sync_host: {FAR}\nsync_port: {PORT}\nsync_authname: {REPL}\n\
             sync_password: {PASSWORD}\nsync_try_imap: no\n"
        );
        self.master.variant("client", &lines)
    }

    /// The stock client of a channel, by that configuration.
    fn client(&self, channel: &str) -> Client {
        Client {
            conf: self.conf(),
            channel: channel.to_owned(),
            options: Vec::new(),
            scratch: folder(&self.dir.path().join("scratch")),
            verbose: true,
            version: self.master.version.clone(),
        }
    }

    fn rolling(&self, channel: &str) -> Rolling {
        let _here = self.here.enter();
        self.client(channel).rolling()
    }

    /// A message for each user; with mailboxes the first time.
    fn mail(&self, what: &str, new: bool) {
        let _here = self.here.enter();
        for user in ["alice", "bob", "carol"] {
            if new {
                let mut admin = self.master.admin();
                let inbox = self.master.mailbox(user, "");
                admin.create(&inbox);
                admin.set_acl(&inbox, crate::support::cyrus::ADMIN, "lrswipkxtecdan");
            }
            let text = message(&format!("{user} {what}"), 3000);
            self.master.login(user).append("INBOX", "", &text);
        }
    }

    /// Waits until the client of a channel has nothing left to do, and compares both ends: IMAP of
    /// each on its own machine, and a stock client on the replica's, which no rule concerns.
    fn settle(&self, channel: &str, rolling: &mut Rolling) {
        {
            let _here = self.here.enter();
            wait_until_drained(&self.master.sync_directory(channel), rolling);
        }
        let replica = if channel.is_empty() {
            &self.near
        } else {
            &self.far
        };
        let sieve = BTreeSet::new();
        let (mut users, ours) = {
            let _here = self.here.enter();
            let users = compare::users(&self.master);
            let ours = compare::snapshot(&self.master, &users, &sieve);
            (users, ours)
        };
        assert_eq!(users.len(), 3);
        let _there = self.there.enter();
        users.extend(compare::users(replica));
        let theirs = compare::snapshot(replica, &users, &sieve);
        let mut found = compare::diff(&ours, &theirs);
        let lines = format!(
            "sync_host: 127.0.0.1\nsync_port: {}\nsync_authname: {REPL}\n\
             sync_password: {PASSWORD}\nsync_try_imap: no\n",
            replica.csync.number
        );
        let direct = Client {
            conf: self.master.variant(&format!("direct-{channel}"), &lines),
            channel: String::new(),
            ..self.client("")
        };
        found.extend(compare::unsent(&direct, &users));
        assert!(found.is_empty(), "channel {channel:?} differs: {found:#?}");
    }

    /// What a new connection from the master's machine to this address is told, to its end.
    fn told(&self, address: &str) -> String {
        let _here = self.here.enter();
        let mut stream = TcpStream::connect(address).unwrap();
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let _here = self.here.enter();
        let mux = self.mux.as_ref().expect("there is a syncmux");
        mux.metric(name, labels)
    }

    fn log(&self) -> String {
        self.mux.as_ref().map(Mux::log_text).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mux = self.mux.as_ref().map(Mux::log_tail).unwrap_or_default();
            let (master, near) = (self.master.log_tail(), self.near.log_tail());
            eprintln!("--- syncmux:\n{mux}\n--- master:\n{master}\n--- near:\n{near}");
        }
    }
}

#[test]
fn nothing_changes_in_cyruss_configuration() {
    let mut site = Site::start(true);
    // Stock to stock first, by the configuration that stays.
    site.mail("before", true);
    for channel in ["", "far"] {
        site.settle(channel, &mut site.rolling(channel));
    }
    site.add_mux(&["127.0.0.1", "[::1]"], "");
    site.here.load(&site.rules());
    {
        let _here = site.here.enter();
        let (code, said) = site.mux.as_ref().unwrap().check();
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("sync_host and sync_port name the replica"),
            "{said}"
        );
    }
    let mut rolling = ["", "far"].map(|channel| (channel, site.rolling(channel)));
    for what in ["one", "two"] {
        site.mail(what, false);
        for (channel, rolling) in &mut rolling {
            site.settle(channel, rolling);
        }
    }
    assert!(rolling.iter_mut().all(|(_, rolling)| rolling.has_lived()));
    // Each channel by its own lanes and its own sync directory.
    let shared = |channel| {
        let labels = [("channel", channel), ("verb", "APPLY MAILBOX")];
        let early = [labels[0], labels[1], ("early", "true")];
        let lanes = site.metric("syncmux_lanes", &[("channel", channel)]);
        let sessions = site.metric("syncmux_sessions", &[("channel", channel)]);
        let applied = site.metric("syncmux_commands_total", &labels);
        let early = site.metric("syncmux_commands_total", &early);
        (lanes > 0.0, sessions, applied, early)
    };
    assert_eq!(shared(""), (true, 1.0, 6.0, 6.0));
    assert_eq!(shared("far"), (true, 1.0, 6.0, 6.0));
    assert_eq!(
        site.metric("syncmux_commands_total", &[("channel", "six")]),
        0.0
    );
    for (channel, to) in [("\"\"", NEAR), ("\"far\"", FAR)] {
        let says = format!("a redirected connection channel={channel} peer=10.77.0.1:");
        let log = site.log();
        let line = log.lines().find(|line| line.contains(&says));
        let line = line.unwrap_or_else(|| panic!("no {says:?} in {log}"));
        assert!(
            line.ends_with(&format!("destination={to}:{PORT}")),
            "{line}"
        );
    }
    // IPv6.
    {
        let _here = site.here.enter();
        let mut six = Csync::login(&format!("[{FAR_SIX}]:{PORT}"));
        let answer = six.ask("GET USER alice");
        assert!(
            answer.contains("user.alice") && answer.ends_with("OK success\r\n"),
            "{answer}"
        );
    }
    let asked = [("channel", "six"), ("verb", "GET USER")];
    assert_eq!(site.metric("syncmux_commands_total", &asked), 1.0);
    // A destination that is no channel's, and a connection that was not redirected.
    let answer = site.told(&format!("{OTHER}:{PORT}"));
    assert_eq!(
        answer,
        "BYE no channel of syncmux has this replica, see its log\r\n"
    );
    let says = format!("a connection to {OTHER}:{PORT} was redirected here, and no channel");
    assert!(site.log().contains(&says));
    let answer = site.told(&format!("127.0.0.1:{}", site.port()));
    assert!(
        answer.starts_with("BYE several channels listen here"),
        "{answer}"
    );
    // Stopped while the rules stand: nobody gets past, until they are taken out.
    drop(rolling);
    let _here = site.here.enter();
    assert_eq!(site.mux().stop(), Some(0));
    let refused = TcpStream::connect((NEAR, PORT)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let mut waits = site.rolling("");
    wait_for("the client to say that it tries again", || {
        waits
            .output()
            .contains("retrying in 15 seconds")
            .then_some(())
    });
    assert!(waits.has_lived());
    if site.master.version.is_from("3.4") {
        waits.stop();
    } else {
        // The client of 3.2 does not listen to SIGTERM while it waits.
        waits.kill();
    }
    site.here.run("nft delete table inet syncmux");
    site.client("").user(&["alice"]).expect_ok("-u");
    let left = std::fs::read_dir(site.master.sync_directory("")).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left
        .filter(|name| name.starts_with("syncmux-run"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Rules without the guard bring syncmux's own lanes back to it.
#[test]
fn rules_without_the_guard() {
    let mut site = Site::start(false);
    site.mail("one", true);
    // No TLS, and listeners that take both families: nothing else would stop a loop.
    let insists = "[client]\npasswords_without_tls = true\n";
    site.add_mux(&["[::]"], insists);
    site.here.load(&site.rules());
    wait_for("the greetings", || {
        let _here = site.here.enter();
        let all = [NEAR, FAR].map(|host| TcpStream::connect((host, PORT)).unwrap());
        let greeted = all.into_iter().all(|mut stream| {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut start = [0; 2];
            stream.read_exact(&mut start).is_ok() && start == *b"* "
        });
        greeted.then_some(())
    });
    site.here.load(&site.rules_that_loop());
    // Clients that know the password: syncmux asks the replica whether it is right.
    {
        let _here = site.here.enter();
        for _ in 0..5 {
            let mut client = Csync::tcp(&format!("{NEAR}:{PORT}"));
            let answer = client.ask("AUTHENTICATE PLAIN AHJlcGwAc2VjcmV0LWUyZQ==");
            assert_eq!(answer, "NO the replica is away, try again later\r\n");
        }
    }
    let mut rolling = site.rolling("");
    let loops = |site: &Site| site.metric("syncmux_failures_total", &[("kind", "loop")]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = site.mux().pid();
    let connections = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count();
    let counted = loops(&site);
    assert!((5.0..=40.0).contains(&counted), "{counted} times");
    assert!(connections < 60, "{connections} open files");
    let log = site.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    let says = format!("own connection to the replica {NEAR}:{PORT} was redirected to syncmux");
    assert!(
        said[0].contains(&says) && said[0].contains("deploy/transparent"),
        "{said:#?}"
    );
    let sessions = site.metric("syncmux_sessions", &[]);
    assert_eq!(sessions, 0.0, "nobody could log in");
    // With the guard all is well, without a restart.
    site.here.load(&site.rules());
    rolling.kill();
    let counted = loops(&site);
    for channel in ["", "far"] {
        site.settle(channel, &mut site.rolling(channel));
    }
    assert_eq!(loops(&site), counted);
    let early = [
        ("channel", ""),
        ("verb", "APPLY MAILBOX"),
        ("early", "true"),
    ];
    assert_eq!(site.metric("syncmux_commands_total", &early), 3.0);
}
