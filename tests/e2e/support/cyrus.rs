//! One instance of Debian's Cyrus in a folder of its own, as master or as replica.

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::{Pid, Signal};

use super::certs::Certs;
use super::imap::Imap;
use super::process::{Guard, Port, folder, give, write};
use super::sieve::Sieve;
use super::syslog::Syslog;
use super::version::Version;
use super::wait_for;

/// Where Debian keeps Cyrus's programs.
pub const BIN: &str = "/usr/lib/cyrus/bin";
/// Cyrus's administrator, who may act in any user's name.
pub const ADMIN: &str = "cyrus";
/// Who the replication client logs in as.
pub const REPL: &str = "repl";
/// The password of both.
pub const PASSWORD: &str = "secret-e2e";

/// What is not the same for every instance.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of mailboxes use `/`, users have domains.
    pub virtual_domains: bool,
    /// Offers TLS; a replica then refuses passwords without it.
    pub certs: Option<Certs>,
    /// Names of sync channels beside the default one.
    pub channels: Vec<String>,
    /// Lines for imapd.conf.
    pub extra: Vec<String>,
    /// `delete_mode` and `expunge_mode` immediate.
    pub immediate: bool,
    pub conversations: bool,
    /// csync on a UNIX socket, beside the TCP port that a replica has.
    pub unix_socket: bool,
    /// Addresses (`host:port`) of the replica's csync beside its own port on loopback.
    pub csync_at: Vec<String>,
    /// Another one than the environment names for this side.
    pub version: Option<Version>,
}

/// A running (or stopped) Cyrus.
#[derive(Debug)]
pub struct Instance {
    pub name: String,
    pub folder: PathBuf,
    pub imap: Port,
    /// TLS from the first byte, where there are certificates.
    pub imaps: Port,
    pub csync: Port,
    pub sieve: Port,
    pub virtual_domains: bool,
    pub version: Version,
    replica: bool,
    process: Option<Guard>,
    base: String,
    _syslog: Arc<Syslog>,
}

impl Instance {
    /// Writes the configuration and the users, and starts; [`Instance::ready`] waits.
    pub fn start(folder_path: &Path, replica: bool, options: &Options) -> Self {
        let role = if replica { "replica" } else { "master" };
        let name = format!("{role}{:06x}", fastrand::u32(..1 << 24));
        let dir = folder(folder_path);
        for sub in [
            "conf",
            "conf/sync",
            "spool",
            "spool2",
            "proc",
            "lock",
            "sieve",
            "socket",
            "conf/socket",
            "conf/db",
        ] {
            folder(&dir.join(sub));
        }
        let mut instance = Self {
            base: String::new(),
            imap: Port::allocate(),
            imaps: Port::allocate(),
            csync: Port::allocate(),
            sieve: Port::allocate(),
            virtual_domains: options.virtual_domains,
            process: None,
            _syslog: Syslog::shared(),
            version: options
                .version
                .clone()
                .unwrap_or_else(|| Version::of(replica)),
            name,
            folder: dir,
            replica,
        };
        instance.base = instance.imapd_conf(options);
        write(&instance.conf(), &instance.base);
        write(&instance.path("cyrus.conf"), instance.cyrus_conf(options));
        instance.users();
        instance.resume();
        instance
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Its imapd.conf.
    pub fn conf(&self) -> PathBuf {
        self.path("imapd.conf")
    }

    /// The folder with the `log` of a channel (`""` is the default one).
    pub fn sync_directory(&self, channel: &str) -> PathBuf {
        let base = self.path("conf/sync");
        if channel.is_empty() {
            base
        } else {
            base.join(channel)
        }
    }

    /// Another imapd.conf for the same mail: for clients that reach the replica another way.
    pub fn variant(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.path(&format!("{name}.conf"));
        write(&path, format!("{}{lines}", self.base));
        path
    }

    /// Starts it (again).
    pub fn resume(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        // The processes of one that was killed may take a moment to be gone, and hold its ports.
        for port in self.ports() {
            let free = || std::net::TcpListener::bind(("127.0.0.1", port)).ok();
            drop(wait_for(&format!("port {port} of {}", self.name), free));
        }
        let log = std::fs::File::create(self.path("master.out")).unwrap();
        give(&self.path("master.out"));
        let mut command = self.version.command(format!("{BIN}/master"));
        command
            .arg("-C")
            .arg(self.conf())
            .arg("-M")
            .arg(self.path("cyrus.conf"))
            .arg("-p")
            .arg(self.path("master.pid"))
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log));
        self.process = Some(Guard::spawn(&self.name, &mut command));
    }

    /// Waits until every service answers.
    pub fn ready(&mut self) {
        let ports = self.ports();
        let name = self.name.clone();
        let out = self.path("master.out");
        let process = self.process.as_mut().unwrap();
        for port in ports {
            wait_for(&format!("{name} to listen on {port}"), || {
                assert!(
                    process.exited().is_none(),
                    "{name} ended at once: {}\n{}",
                    std::fs::read_to_string(&out).unwrap_or_default(),
                    super::syslog::tail(&name, 20)
                );
                TcpStream::connect(("127.0.0.1", port)).ok()
            });
        }
    }

    fn ports(&self) -> Vec<u16> {
        let csync = self.replica.then_some(self.csync.number);
        [self.imap.number, self.sieve.number]
            .into_iter()
            .chain(csync)
            .collect()
    }

    /// SIGTERM, as an operator would; and SIGKILL after a while, as systemd would: Cyrus's `master`
    /// waits for ever for a child that it started just before it was told to stop.
    pub fn stop(&mut self) {
        // Dropping it does both.
        drop(self.process.take());
    }

    /// `kill -9` for it and all of its processes.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts again with these lines more in imapd.conf.
    pub fn reconfigure(&mut self, lines: &str) {
        self.base.push_str(lines);
        write(&self.conf(), &self.base);
        self.stop();
        self.resume();
        self.ready();
    }

    /// Stops all of its processes where they are (SIGSTOP), or lets them go on.
    pub fn freeze(&self, on: bool) {
        let process = self.process.as_ref().expect("it runs");
        let signal = if on { Signal::STOP } else { Signal::CONT };
        rustix::process::kill_process_group(process.pid(), signal).unwrap();
    }

    /// Its running processes of this program.
    pub fn processes(&self, program: &str) -> Vec<Pid> {
        let process = self.process.as_ref().expect("it runs");
        super::process::children(process.pid(), program)
    }

    /// Its running `sync_server` processes.
    pub fn sync_servers(&self) -> Vec<Pid> {
        let Some(process) = &self.process else {
            return Vec::new();
        };
        super::process::children(process.pid(), "sync_server")
    }

    /// Its `imapd` processes that serve this user now (`proc_register` writes that down).
    pub fn imapds_of(&self, user: &str) -> Vec<Pid> {
        let Some(process) = &self.process else {
            return Vec::new();
        };
        let serves = |pid: &Pid| {
            let path = self.path("proc").join(pid.as_raw_nonzero().to_string());
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().any(|word| word == user)
        };
        let all = super::process::children(process.pid(), "imapd");
        all.into_iter().filter(serves).collect()
    }

    /// From the next start on it is a replica: what was the master, after the roles have changed.
    pub fn become_replica(&mut self) {
        self.replica = true;
        let conf = self.cyrus_conf(&Options::default());
        write(&self.path("cyrus.conf"), conf);
    }

    /// The folder with the messages of a mailbox.
    pub fn mailbox_folder(&self, mailbox: &str) -> PathBuf {
        let mut command = self.version.command(format!("{BIN}/mbpath"));
        command.arg("-C").arg(self.conf()).arg(mailbox);
        let output = command.output().unwrap();
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        assert!(path.is_dir(), "mbpath of {mailbox}: {output:?}");
        path
    }

    /// A session in the name of `user`.
    pub fn login(&self, user: &str) -> Imap {
        Imap::login(&self.imap.address(), user, ADMIN, PASSWORD)
    }

    pub fn admin(&self) -> Imap {
        self.login(ADMIN)
    }

    pub fn manage_sieve(&self, user: &str) -> Sieve {
        Sieve::login(&self.sieve.address(), user, ADMIN, PASSWORD)
    }

    /// The mailbox of a user, as the administrator writes it: `user.joe.sub`.
    pub fn mailbox(&self, user: &str, sub: &str) -> String {
        if self.virtual_domains {
            let (local, domain) = user.split_once('@').unwrap_or((user, ""));
            let at = if domain.is_empty() { "" } else { "@" };
            let sub = if sub.is_empty() {
                String::new()
            } else {
                format!("/{sub}")
            };
            format!("user/{local}{sub}{at}{domain}")
        } else if sub.is_empty() {
            format!("user.{user}")
        } else {
            format!("user.{user}.{sub}")
        }
    }

    /// What its log says, for failures.
    pub fn log_tail(&self) -> String {
        super::syslog::tail(&self.name, 40)
    }

    fn imapd_conf(&self, options: &Options) -> String {
        let dir = self.folder.display();
        let name = &self.name;
        let mut conf = format!(
            "configdirectory: {dir}/conf\npartition-default: {dir}/spool\n\
             partition-fast: {dir}/spool2\ndefaultpartition: default\nproc_path: {dir}/proc\n\
             mboxname_lockpath: {dir}/lock\nsievedir: {dir}/sieve\nservername: {name}\n\
             syslog_prefix: {name}\nadmins: {ADMIN} {REPL}\nallowusermoves: yes\n\
             sasl_pwcheck_method: auxprop\nsasl_auxprop_plugin: sasldb\n\
             sasl_sasldb_path: {dir}/sasldb2\nsasl_mech_list: PLAIN\n\
             lmtpsocket: {dir}/socket/lmtp\nidlesocket: {dir}/socket/idle\n\
             notifysocket: {dir}/socket/notify\nduplicatesuppression: no\n\
             sync_log: yes\nmaxmessagesize: 0\nannotation_allow_undefined: yes\n\
             timeout: 120\n\
             sync_repeat_interval: 0\n"
        );
        let domains = if options.virtual_domains {
            "unixhierarchysep: yes\nvirtdomains: userid\ndefaultdomain: internal.test\n"
        } else {
            "unixhierarchysep: no\nvirtdomains: off\n"
        };
        conf.push_str(domains);
        conf.push_str("altnamespace: no\n");
        let mode = if options.immediate {
            "immediate"
        } else {
            "delayed"
        };
        write!(conf, "delete_mode: {mode}\nexpunge_mode: {mode}\n").unwrap();
        if !options.channels.is_empty() {
            writeln!(
                conf,
                "sync_log_channels: \"\" {}",
                options.channels.join(" ")
            )
            .unwrap();
            for channel in &options.channels {
                folder(&self.sync_directory(channel));
            }
        }
        match &options.certs {
            Some(certs) if self.replica => write!(
                conf,
                "tls_server_cert: {}\ntls_server_key: {}\ntls_client_ca_file: {}\n\
                 allowstarttls: yes\n",
                certs.cert.display(),
                certs.key.display(),
                certs.ca.display(),
            )
            .unwrap(),
            _ => {}
        }
        conf.push_str("allowplaintext: yes\n");
        if options.conversations {
            conf.push_str("conversations: yes\nreverseacls: yes\n");
        }
        for line in &options.extra {
            writeln!(conf, "{line}").unwrap();
        }
        conf
    }

    fn cyrus_conf(&self, options: &Options) -> String {
        let conf = self.conf();
        let conf = conf.display();
        let mut services = format!(
            "  imap cmd=\"{BIN}/imapd -C {conf}\" listen=\"{}\" prefork=3\n  \
             sieve cmd=\"{BIN}/timsieved -C {conf}\" listen=\"{}\" prefork=0\n",
            self.imap.address(),
            self.sieve.address(),
        );
        if self.replica && options.certs.is_some() {
            writeln!(
                services,
                "  imaps cmd=\"{BIN}/imapd -s -C {conf}\" listen=\"{}\" prefork=0",
                self.imaps.address(),
            )
            .unwrap();
        }
        if self.replica {
            let tls = if options.certs.is_some() {
                self.csync_conf()
            } else {
                self.conf()
            };
            writeln!(
                services,
                "  csync cmd=\"{BIN}/sync_server -C {}\" listen=\"{}\" prefork=0",
                tls.display(),
                self.csync.address()
            )
            .unwrap();
        }
        for (i, address) in options.csync_at.iter().enumerate() {
            let tls = if options.certs.is_some() {
                self.csync_conf()
            } else {
                self.conf()
            };
            writeln!(
                services,
                "  csync{i} cmd=\"{BIN}/sync_server -C {}\" listen=\"{address}\" prefork=0",
                tls.display(),
            )
            .unwrap();
        }
        // A master's is for `syncmux verify`.
        if options.unix_socket {
            writeln!(
                services,
                "  csyncunix cmd=\"{BIN}/sync_server -C {conf}\" listen=\"{}\" prefork=0",
                self.csync_socket().display()
            )
            .unwrap();
        }
        format!(
            "START {{\n  recover cmd=\"{BIN}/ctl_cyrusdb -r -C {conf}\"\n}}\n\
             SERVICES {{\n{services}}}\nEVENTS {{\n}}\n"
        )
    }

    /// The UNIX socket of its sync_server, where [`Options::unix_socket`] was asked for.
    pub fn csync_socket(&self) -> PathBuf {
        self.path("socket/csync")
    }

    /// The csync service alone demands TLS; our own IMAP client on loopback need not speak it.
    fn csync_conf(&self) -> PathBuf {
        let path = self.path("csync.conf");
        write(
            &path,
            self.base
                .replace("allowplaintext: yes", "allowplaintext: no"),
        );
        path
    }

    fn users(&self) {
        for user in [ADMIN, REPL] {
            use std::io::Write as _;
            let mut command = self.version.command("/usr/sbin/saslpasswd2");
            command.args(["-p", "-c", "-f"]).arg(self.path("sasldb2"));
            command.args(["-u", &self.name, user]).stdin(Stdio::piped());
            let mut child = command.spawn().expect("saslpasswd2 (package sasl2-bin)");
            child
                .stdin
                .take()
                .unwrap()
                .write_all(PASSWORD.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success(), "saslpasswd2 failed");
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.stop();
    }
}
