//! A master, a replica, the link between them and the way that replication takes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use tempfile::TempDir;

use super::certs::{Certs, SERVER_NAME};
use super::client::{Client, Rolling, wait_until_drained};
use super::compare;
use super::cyrus::{Instance, Options, PASSWORD, REPL};
use super::imap::message;
use super::literals;
use super::mux::{Mux, MuxOptions, Tls, right_password};
use super::process::{folder, give};
use super::relay::Relay;
use super::version::Version;
use super::wait_for;

/// The way from the stock client to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Stock to stock, through the link alone.
    Direct,
    Strict,
    FanOut,
}

/// What is spoken on each side of syncmux; stock to stock, what the client tries and the link leads
/// to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    pub client_imap: bool,
    pub replica: ReplicaPort,
}

/// The port of the replica that the link leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaPort {
    #[default]
    Csync,
    /// As 143, with STARTTLS where there are certificates.
    Imap,
    /// As 993.
    Imaps,
}

thread_local! {
    static SPOKEN: std::cell::Cell<Spoken> = std::cell::Cell::default();
}

/// Every [`Setup`] that this test makes from now on has this.
pub fn speak(spoken: Spoken) {
    SPOKEN.set(spoken);
}

/// How the master's imapds sync their own commits.
#[derive(Clone, Copy, Debug)]
pub struct RightNow {
    /// Cyrus logs for the channel as well.
    pub logged: bool,
    /// The imapds remember what the replica has.
    pub cached: bool,
    /// `rightnow_answer_timeout`
    pub limit: &'static str,
}

/// What is not the same for every test.
#[derive(Clone, Debug)]
pub struct Setup {
    pub way: Way,
    pub spoken: Spoken,
    pub round_trip: Duration,
    pub lanes: usize,
    pub tls: bool,
    /// The link may catch single commands; without TLS only.
    pub traps: bool,
    pub compress: bool,
    /// The sync channel of the rolling client; the default one where empty.
    pub channel: String,
    /// The replica is reached by its UNIX socket, past the link.
    pub replica_socket: bool,
    /// Every imapd of the master syncs its own commits by `channel`.
    pub rightnow: Option<RightNow>,
    /// syncmux listens on UNIX sockets.
    pub unix: bool,
    /// Options of both instances.
    pub both: Options,
    /// Lines for the master's imapd.conf alone.
    pub master_extra: Vec<String>,
    /// Lines for imapd.conf of the client of the default channel alone.
    pub client_extra: String,
    /// Options of the rolling client beside `-R`.
    pub client_options: Vec<&'static str>,
    /// For syncmux.toml.
    pub mux_extra: String,
    pub log_level: String,
    /// Which Cyrus master and replica are; what the environment names where nothing is said.
    pub versions: Option<(String, String)>,
}

impl Setup {
    pub fn new(way: Way) -> Self {
        Self {
            way,
            spoken: SPOKEN.get(),
            round_trip: Duration::ZERO,
            lanes: 4,
            tls: true,
            traps: false,
            compress: false,
            channel: String::new(),
            replica_socket: false,
            rightnow: None,
            unix: false,
            both: Options::default(),
            master_extra: Vec::new(),
            client_extra: String::new(),
            client_options: Vec::new(),
            mux_extra: String::new(),
            log_level: "debug".to_owned(),
            versions: None,
        }
    }

    pub fn start(self) -> Lab {
        Lab::start(self)
    }
}

/// Everything that one test needs. Dropping it ends every process.
#[derive(Debug)]
pub struct Lab {
    pub setup: Setup,
    // In the order in which they are to end.
    rolling: Option<Rolling>,
    pub mux: Option<Mux>,
    pub master: Instance,
    pub replica: Instance,
    pub relay: Relay,
    pub certs: Certs,
    /// Users that have sieve scripts: logging in to timsieved makes a folder for any other.
    pub sieve_users: BTreeSet<String>,
    step: String,
    dir: TempDir,
}

impl Lab {
    pub fn start(setup: Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("syncmux-e2e-")
            .tempdir()
            .unwrap();
        give(dir.path());
        let at = |name: &str| dir.path().join(name);
        let certs = Certs::make(&folder(&at("certs")));
        let mut options = setup.both.clone();
        if !setup.channel.is_empty() && setup.rightnow.is_none_or(|it| it.logged) {
            options.channels.push(setup.channel.clone());
        }
        let mut master_options = options.clone();
        if let Some((master, replica)) = &setup.versions {
            master_options.version = Some(Version::named(master));
            options.version = Some(Version::named(replica));
        }
        master_options
            .extra
            .extend(setup.master_extra.iter().cloned());
        options.certs = setup.tls.then(|| certs.clone());
        options.unix_socket = true;
        match &options.version {
            Some(replica) => replica.prepare(),
            None => Version::of(true).prepare(),
        }
        let mut master = Instance::start(&at("master"), false, &master_options);
        let mut replica = Instance::start(&at("replica"), true, &options);
        master.ready();
        replica.ready();
        // What `syncmux verify` asks who is there.
        master.version.stands_in_for_own("ctl_mboxlist");
        let port = match setup.spoken.replica {
            ReplicaPort::Csync => replica.csync.address(),
            ReplicaPort::Imap => replica.imap.address(),
            ReplicaPort::Imaps => replica.imaps.address(),
        };
        let relay = Relay::start(&port, setup.round_trip);
        if setup.traps {
            assert!(!setup.tls, "the link could not be read");
            relay.watch();
        }
        let mut lab = Self {
            rolling: None,
            mux: None,
            master,
            replica,
            relay,
            certs,
            sieve_users: BTreeSet::new(),
            step: String::from("start"),
            dir,
            setup,
        };
        if lab.setup.rightnow.is_some() {
            folder(&lab.sync_directory());
        }
        if lab.setup.way != Way::Direct {
            lab.add_mux();
        }
        lab.sync_right_now();
        lab
    }

    /// The master's imapds sync their commits from now on, as README.md says how.
    fn sync_right_now(&mut self) {
        let Some(how) = self.setup.rightnow else {
            return;
        };
        assert!(!self.old_master(), "Cyrus 3.2 has no sync_rightnow_channel");
        let channel = self.setup.channel.clone();
        let port = |at: &str| at.rsplit_once(':').unwrap().1.to_owned();
        let (imapd, client) = match &self.mux {
            Some(mux) => (port(&mux.rightnow_listen), port(&mux.listen)),
            None => (port(&self.relay.address()), port(&self.relay.address())),
        };
        let mut lines = format!(
            "sync_rightnow_channel: {channel}\n{channel}_sync_host: 127.0.0.1\n\
             {channel}_sync_port: {imapd}\nsync_client_{channel}_sync_port: {client}\n\
             {channel}_sync_authname: {REPL}\n{channel}_sync_password: {PASSWORD}\n\
             {channel}_sync_try_imap: no\n"
        );
        if how.cached {
            let path = self.master.path("conf/rightnow-cache.db");
            writeln!(
                lines,
                "imap_{channel}_sync_cache_db_path: {}",
                path.display()
            )
            .unwrap();
        }
        self.master.reconfigure(&lines);
    }

    /// Starts a syncmux by [`Lab::mux_options`], in place of the one that there may be.
    pub fn add_mux(&mut self) {
        self.mux = None;
        let options = self.mux_options();
        let mut mux = Mux::new(&self.dir.path().join("mux"), &options);
        mux.start();
        self.mux = Some(mux);
    }

    /// The configuration that this lab gives to syncmux.
    pub fn mux_options(&self) -> MuxOptions {
        let (ca, server_name) = (self.certs.ca.clone(), SERVER_NAME.to_owned());
        let tls = match (self.setup.tls, self.setup.spoken.replica) {
            (false, _) => Tls::Off,
            (true, ReplicaPort::Imaps) => Tls::Implicit { ca, server_name },
            (true, _) => Tls::StartTls { ca, server_name },
        };
        MuxOptions {
            channel: self.setup.channel.clone(),
            fan_out: self.setup.way == Way::FanOut,
            sync_directory: self.sync_directory(),
            replica: if self.setup.replica_socket {
                format!("unix:{}", self.replica.csync_socket().display())
            } else {
                self.relay.address()
            },
            tls,
            lanes: self.setup.lanes,
            compress: self.setup.compress,
            password: right_password(),
            imapd_conf: self.master.conf(),
            unix: self.setup.unix,
            client_imap: self.setup.spoken.client_imap,
            replica_imap: self.setup.spoken.replica != ReplicaPort::Csync,
            rightnow: self.setup.rightnow.map(|it| it.limit),
            transparent: Vec::new(),
            extra: self.setup.mux_extra.clone(),
            log_level: self.setup.log_level.clone(),
        }
    }

    pub fn mux(&mut self) -> &mut Mux {
        self.mux.as_mut().expect("this lab has a syncmux")
    }

    /// Names what is being done, for failures.
    pub fn step(&mut self, name: &str) {
        name.clone_into(&mut self.step);
    }

    /// The sync directory of this lab's channel.
    pub fn sync_directory(&self) -> std::path::PathBuf {
        self.master.sync_directory(&self.setup.channel)
    }

    /// The client of this lab's channel, by the way of this lab.
    pub fn client(&self) -> Client {
        let target = match &self.mux {
            Some(mux) => mux.listen.clone(),
            None if self.setup.replica_socket => self.replica.csync_socket().display().to_string(),
            None => self.relay.address(),
        };
        let mut client = self.client_to("rolling", &target, PASSWORD, "");
        client.channel.clone_from(&self.setup.channel);
        client.options.clone_from(&self.setup.client_options);
        client
    }

    /// A client for one-shot runs, on the strict listener.
    pub fn strict_client(&self) -> Client {
        let target = self.mux.as_ref().map(|m| m.strict_listen.clone());
        self.client_to(
            "strict",
            &target.unwrap_or(self.relay.address()),
            PASSWORD,
            "",
        )
    }

    /// The replica's processes that serve the link.
    pub fn replica_at_work(&self) -> Vec<rustix::process::Pid> {
        match self.setup.spoken.replica {
            ReplicaPort::Csync => self.replica.sync_servers(),
            ReplicaPort::Imap | ReplicaPort::Imaps => self.replica.imapds_of(REPL),
        }
    }

    /// The independent one: straight to the replica.
    pub fn direct_client(&self) -> Client {
        let target = if self.old_replica() && !self.old_master() {
            // Stock to stock it could not read the answers (`versions`).
            let socket = self.dir.path().join(&self.replica.name);
            let socket = literals::translated(socket, &self.replica.csync_socket());
            socket.display().to_string()
        } else if self.setup.replica_socket {
            // What the socket left there in the way of scripts, a client by TCP cannot bear, stock to
            // stock: it finds a mailbox #sieve with another uniqueid.
            self.replica.csync_socket().display().to_string()
        } else {
            self.replica.csync.address()
        };
        self.client_to("direct", &target, PASSWORD, "")
    }

    /// A stock client by the link, without syncmux.
    pub fn link_client(&self) -> Client {
        self.client_to("link", &self.relay.address(), PASSWORD, "")
    }

    /// Whether clients of this target try IMAP: those of syncmux do where it listens for that, and
    /// those of the link where that leads to imapd.
    fn tries_imap(&self, target: &str) -> bool {
        let link = self.relay.address() == target;
        match &self.mux {
            Some(mux) if mux.listen == target || mux.strict_listen == target => {
                self.setup.spoken.client_imap
            }
            _ => link && self.setup.spoken.replica != ReplicaPort::Csync,
        }
    }

    /// A client of any target (`host:port` or the path of a UNIX socket).
    pub fn client_to(&self, name: &str, target: &str, password: &str, extra: &str) -> Client {
        let mut lines = if target.starts_with('/') {
            format!("sync_host: {target}\n")
        } else {
            let (host, port) = target.split_once(':').unwrap();
            format!(
                "sync_host: {host}\nsync_port: {port}\nsync_authname: {REPL}\n\
                 sync_password: {password}\n"
            )
        };
        if !extra.contains("sync_try_imap") {
            let tries = if self.tries_imap(target) { "yes" } else { "no" };
            lines.push_str(&format!("sync_try_imap: {tries}\n"));
        }
        lines.push_str(extra);
        if name == "rolling" {
            lines.push_str(&self.setup.client_extra);
        }
        let conf = self.master.variant(&format!("client-{name}"), &lines);
        Client {
            conf,
            channel: String::new(),
            options: Vec::new(),
            scratch: folder(&self.dir.path().join("scratch")),
            verbose: true,
            version: self.master.version.clone(),
        }
    }

    /// The rolling client of this lab's channel, started when it is first needed.
    pub fn rolling(&mut self) -> &mut Rolling {
        if self.rolling.is_none() {
            self.rolling = Some(self.client().rolling());
        }
        self.rolling.as_mut().unwrap()
    }

    /// Ends the rolling client; the next [`Lab::rolling`] starts another one.
    pub fn end_rolling(&mut self) {
        self.rolling = None;
    }

    /// Replicates what there is by the rolling client: waits until nothing is left to do.
    pub fn replicate(&mut self) {
        let directory = self.sync_directory();
        self.rolling();
        wait_until_drained(&directory, self.rolling.as_mut().unwrap());
    }

    /// By fan-out whatever happened has not ended the client. Otherwise it may have, as stock to
    /// stock.
    pub fn one_client_was_enough(&mut self) {
        if self.setup.way == Way::FanOut {
            assert!(self.client_has_lived(), "the client ended");
        }
    }

    /// Whether the first rolling client still runs.
    pub fn client_has_lived(&mut self) -> bool {
        self.rolling.as_mut().is_some_and(Rolling::has_lived)
    }

    /// A lane for each of these users at least: lanes are opened when there is work for them.
    /// Needs a link that can be read.
    pub fn open_lanes(&mut self, users: &[&str]) {
        self.relay.hold_answers_to(Some("GET USER"));
        let run = |user: &&str| {
            let (client, user) = (self.strict_client(), (*user).to_owned());
            std::thread::spawn(move || client.user(&[&user]).expect_ok("-u"))
        };
        let clients: Vec<_> = users.iter().map(run).collect();
        wait_for("the lanes", || {
            let mut lanes = |state| self.mux().metric("syncmux_lanes", &[("state", state)]);
            (lanes("idle") + lanes("busy") >= users.len() as f64).then_some(())
        });
        self.relay.hold_answers_to(None);
        for client in clients {
            client.join().unwrap();
        }
    }

    pub fn differences(&self) -> Vec<String> {
        let direct = self.direct_client();
        compare::differences(&self.master, &self.replica, &direct, &self.sieve_users)
    }

    /// Panics unless both ends hold the same.
    pub fn assert_same(&mut self) {
        let found = self.differences();
        if !found.is_empty() {
            let shown = found
                .iter()
                .take(20)
                .cloned()
                .collect::<Vec<_>>()
                .join("\n");
            panic!(
                "after {:?} the ends differ in {} things:\n{shown}",
                self.step,
                found.len()
            );
        }
    }

    /// Whether master and client are Cyrus 3.2: one group for many users, no former names, no cache.
    pub fn old_master(&self) -> bool {
        !self.master.version.is_from("3.4")
    }

    /// Whether the replica is Cyrus 3.2: no FORCE, no CAPABILITIES, no annotations of the server.
    pub fn old_replica(&self) -> bool {
        !self.replica.version.is_from("3.4")
    }

    /// The client of Cyrus 3.2 sends subscriptions before the mailboxes, stock to stock. A newer replica,
    /// which files them by the INBOX, forgets them.
    pub fn subscribed_too_early(&self) -> &'static [&'static str] {
        if self.old_master() && !self.old_replica() {
            &["LSUB", "APPLY SUB"]
        } else {
            &[]
        }
    }

    /// Replicates and compares: the end of a scenario.
    pub fn settle(&mut self) {
        self.replicate();
        self.assert_same();
    }

    /// As [`Lab::settle`], where the stock client itself, run stock to stock, leaves differences of
    /// these kinds behind: they may be there, a direct client mends them, nothing else may differ.
    pub fn settle_but(&mut self, known_defect: &[&str]) {
        self.replicate();
        self.assert_same_but(known_defect);
    }

    /// As [`Lab::assert_same`], with what [`Lab::settle_but`] lets pass.
    pub fn assert_same_but(&mut self, known_defect: &[&str]) {
        let found = self.differences();
        let known = |f: &String| known_defect.iter().any(|k| f.contains(k));
        let other: Vec<&String> = found.iter().filter(|f| !known(f)).collect();
        assert!(
            other.is_empty(),
            "after {:?} the ends differ: {other:#?}",
            self.step
        );
        self.assert_same();
    }

    /// So many of them, by name.
    pub fn add_users(&self, count: usize) -> Vec<String> {
        let users: Vec<String> = (0..count).map(|i| format!("u{i:03}")).collect();
        users.iter().for_each(|user| self.add_user(user));
        users
    }

    /// A message of about `size` bytes into the INBOX of each.
    pub fn mail(&self, users: &[impl AsRef<str>], what: &str, size: usize) {
        for user in users.iter().map(AsRef::as_ref) {
            let text = message(&format!("{user} {what}"), size);
            self.master.login(user).append("INBOX", "", &text);
        }
    }

    /// A user with an INBOX on the master.
    pub fn add_user(&self, user: &str) {
        let mut admin = self.master.admin();
        let inbox = self.master.mailbox(user, "");
        admin.create(&inbox);
        admin.set_acl(&inbox, super::cyrus::ADMIN, "lrswipkxtecdan");
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut text = format!("--- {:?}: failed at step {:?}\n", self.setup.way, self.step);
        if let Some(mux) = &self.mux {
            writeln!(text, "--- syncmux:\n{}", mux.log_tail()).unwrap();
        }
        writeln!(text, "--- master:\n{}", self.master.log_tail()).unwrap();
        writeln!(text, "--- replica:\n{}", self.replica.log_tail()).unwrap();
        if let Some(rolling) = &self.rolling {
            let output = rolling.output();
            let tail: Vec<&str> = output.lines().rev().take(20).collect();
            let tail: Vec<String> = tail
                .iter()
                .rev()
                .map(|l| l.chars().take(300).collect())
                .collect();
            writeln!(text, "--- rolling client:\n{}", tail.join("\n")).unwrap();
        }
        eprintln!("{text}");
    }
}
