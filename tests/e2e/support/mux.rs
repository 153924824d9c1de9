//! `syncmux run --config FILE`, as an operator runs it.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use super::cyrus::{PASSWORD, REPL};
use super::process::{Guard, Port, as_cyrus, give, write};
use super::wait_for;

/// How the lanes are secured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "STARTTLS is called so")]
pub enum Tls {
    Off,
    StartTls { ca: PathBuf, server_name: String },
    Implicit { ca: PathBuf, server_name: String },
}

/// What a test sets; the rest is syncmux's default.
#[derive(Clone, Debug)]
pub struct MuxOptions {
    pub fan_out: bool,
    pub sync_directory: PathBuf,
    /// The replica, or the link to it; `unix:` and a path too.
    pub replica: String,
    pub tls: Tls,
    /// Its name; `""` is the default one.
    pub channel: String,
    pub lanes: usize,
    pub compress: bool,
    pub password: String,
    /// The master's imapd.conf, for its way to write mailbox names.
    pub imapd_conf: PathBuf,
    /// Listen on UNIX sockets instead of TCP.
    pub unix: bool,
    /// Replication over IMAP: on the listeners, and on the lanes.
    pub client_imap: bool,
    pub replica_imap: bool,
    /// It has a listener for imapds, with this limit on their wait.
    pub rightnow: Option<&'static str>,
    /// Where redirected connections come; none for a plain listener.
    pub transparent: Vec<String>,
    /// More lines for the end of the file.
    pub extra: String,
    pub log_level: String,
}

/// A syncmux; ended when dropped.
#[derive(Debug)]
pub struct Mux {
    pub folder: PathBuf,
    /// `host:port`, or a path.
    pub listen: String,
    pub strict_listen: String,
    pub rightnow_listen: String,
    admin: Port,
    _ports: [Port; 3],
    process: Option<Guard>,
    pub config: PathBuf,
    /// For its environment.
    pub environment: Vec<(String, String)>,
    verb: &'static str,
}

impl Mux {
    /// Writes the configuration; [`Mux::start`] starts it.
    pub fn new(folder: &Path, options: &MuxOptions) -> Self {
        super::process::folder(folder);
        let admin = Port::allocate();
        let ports = [Port::allocate(), Port::allocate(), Port::allocate()];
        let (listen, strict_listen) = if options.unix {
            let at = |name: &str| folder.join(name).display().to_string();
            (at("csync.sock"), at("strict.sock"))
        } else {
            (ports[0].address(), ports[1].address())
        };
        let mux = Self {
            folder: folder.to_path_buf(),
            config: folder.join("syncmux.toml"),
            listen,
            strict_listen,
            rightnow_listen: ports[2].address(),
            admin,
            _ports: ports,
            process: None,
            environment: Vec::new(),
            verb: "run",
        };
        mux.configure(options);
        mux
    }

    /// With a configuration of a test's own: `text` is given the addresses of `listen` and of the
    /// admin endpoint. `verb` is `run` or `terminate`.
    pub fn custom(
        folder: &Path,
        verb: &'static str,
        unix: bool,
        text: impl FnOnce(&str, &str) -> String,
    ) -> Self {
        super::process::folder(folder);
        let ports = [Port::allocate(), Port::allocate(), Port::allocate()];
        let listen = if unix {
            folder.join("csync.sock").display().to_string()
        } else {
            ports[0].address()
        };
        let mux = Self {
            folder: folder.to_path_buf(),
            config: folder.join("syncmux.toml"),
            strict_listen: ports[1].address(),
            rightnow_listen: ports[2].address(),
            admin: Port::allocate(),
            _ports: ports,
            process: None,
            environment: Vec::new(),
            verb,
            listen,
        };
        write(&mux.config, text(&mux.listen, &mux.admin.address()));
        mux
    }

    /// Asks it by a signal: SIGHUP.
    pub fn signal(&mut self, signal: Signal) {
        self.process.as_mut().expect("syncmux runs").signal(signal);
    }

    /// Writes the configuration again, for the next start.
    pub fn configure(&self, options: &MuxOptions) {
        let password_file = self.folder.join("password");
        write(&password_file, format!("{}\n", options.password));
        let prefix = if options.unix { "unix:" } else { "" };
        let mode = if options.fan_out { "fan-out" } else { "strict" };
        let listen = if options.transparent.is_empty() {
            format!("[\"{prefix}{}\"]", self.listen)
        } else {
            format!("{:?}\ntransparent = true", options.transparent)
        };
        let dialect = match options.client_imap {
            true => "dialect = \"imap\"\n",
            false => "",
        };
        let mut text = format!(
            "[[channel]]\nname = \"{}\"\nmode = \"{mode}\"\n\
             sync_directory = \"{}\"\nlisten = {listen}\n{dialect}\
             strict_listen = [\"{prefix}{}\"]\n\
             [channel.replica]\naddress = \"{}\"\nusername = \"{REPL}\"\n\
             password_file = \"{}\"\nlanes = {}\ncompress = {}\n",
            options.channel,
            options.sync_directory.display(),
            self.strict_listen,
            options.replica,
            password_file.display(),
            options.lanes,
            options.compress,
        );
        if options.rightnow.is_some() {
            let line = format!("strict_listen = [\"{prefix}{}\"]\n", self.strict_listen);
            let more = format!("{line}rightnow_listen = [\"{}\"]\n", self.rightnow_listen);
            text = text.replace(&line, &more);
        }
        match &options.tls {
            Tls::Off => text.push_str("tls = \"off\"\n"),
            Tls::StartTls { ca, server_name } | Tls::Implicit { ca, server_name } => {
                let word = match options.tls {
                    Tls::Implicit { .. } => "implicit",
                    _ => "starttls",
                };
                writeln!(
                    text,
                    "tls = \"{word}\"\nca_file = \"{}\"\nserver_name = \"{server_name}\"",
                    ca.display()
                )
                .unwrap();
            }
        }
        if options.replica_imap {
            text.push_str("dialect = \"imap\"\n");
        }
        write!(
            text,
            "[site]\nimapd_conf = \"{}\"\n[admin]\nlisten = \"{}\"\n\
             [log]\nformat = \"text\"\nlevel = \"{}\"\n{}",
            options.imapd_conf.display(),
            self.admin.address(),
            options.log_level,
            options.extra
        )
        .unwrap();
        if let Some(limit) = options.rightnow {
            write!(
                text,
                "[limits]\nrightnow_answer_timeout = \"{limit}\"\n\
                 [client]\nusername = \"{REPL}\"\npassword_file = \"{}\"\n",
                password_file.display()
            )
            .unwrap();
        }
        write(&self.config, text);
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "syncmux runs already");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        give(&self.log());
        let mut command = as_cyrus(binary());
        command.args([self.verb, "--config"]).arg(&self.config);
        command.envs(self.environment.iter().cloned());
        command
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log));
        self.process = Some(Guard::spawn("syncmux", &mut command));
        wait_for("syncmux to be ready", || {
            if let Some(status) = self.exited() {
                panic!("syncmux ended at once ({status}):\n{}", self.log_tail());
            }
            self.admin_page("/ready")
                .is_some_and(|(code, _)| code == 200)
                .then_some(())
        });
    }

    /// Runs `syncmux check` on the configuration: exit code and what it said.
    pub fn check(&self) -> (Option<i32>, String) {
        self.tool(&["check"])
    }

    /// Runs a command on the configuration: exit code and what it said.
    pub fn tool(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let command = as_cyrus(binary());
        self.run_to_its_end(command, arguments)
    }

    /// The same as root.
    pub fn tool_as_root(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let command = std::process::Command::new(binary());
        self.run_to_its_end(command, arguments)
    }

    /// A command on the configuration, to be started by the caller.
    pub fn tool_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = as_cyrus(binary());
        command.args(arguments).arg("--config").arg(&self.config);
        command
    }

    fn run_to_its_end(
        &self,
        mut command: std::process::Command,
        arguments: &[&str],
    ) -> (Option<i32>, String) {
        command.args(arguments).arg("--config").arg(&self.config);
        let output = command
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub fn exited(&mut self) -> Option<std::process::ExitStatus> {
        self.process.as_mut().and_then(Guard::exited)
    }

    /// Runs another one by this configuration, which is to end by itself: exit code and what it
    /// said.
    pub fn run_in_vain(&self) -> (Option<i32>, String) {
        self.tool(&["run"])
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        let process = self.process.as_ref().expect("syncmux runs");
        process.pid().as_raw_nonzero().get()
    }

    /// A number of kB from `/proc/PID/status`: `VmRSS`, `VmHWM`.
    pub fn memory(&self, what: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(what));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .unwrap_or_else(|| panic!("no {what} in {text}"))
            .parse()
            .unwrap()
    }

    /// What `/status` says of the first channel.
    pub fn status(&self) -> serde_json::Value {
        let (code, text) = self
            .admin_page("/status")
            .expect("the admin endpoint answers");
        assert_eq!(code, 200, "/status: {text}");
        let all: serde_json::Value = serde_json::from_str(&text).expect("/status is JSON");
        all["channels"][0]["state"].clone()
    }

    /// SIGTERM: drains.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.take().and_then(|mut p| p.terminate().code())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::KILL);
            process.kill();
        }
    }

    /// The sum of all samples of a metric that carry these labels; 0 where there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (code, text) = self
            .admin_page("/metrics")
            .expect("the admin endpoint answers");
        assert_eq!(code, 200, "/metrics: {text}");
        sum(&text, name, labels)
    }

    /// `kill -9` of this one process: not of what it has started.
    pub fn kill_alone(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::KILL);
            wait_for("syncmux to be gone", || process.exited());
            // Dropped, it would kill the whole group.
            std::mem::forget(process);
        }
    }

    pub fn admin_page(&self, path: &str) -> Option<(u16, String)> {
        self.admin("GET", path, "", "")
    }

    /// A request to the admin endpoint with these header lines and this body: code and text.
    pub fn admin(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin.address()).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n")?.1.to_owned();
        Some((code, body))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("syncmux.log")
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

/// The sum of the samples of `name` with these labels in Prometheus text.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None if rest.starts_with(' ') => ("", rest),
            None => return None,
        };
        let carries = |(k, v): &(&str, &str)| set.contains(&format!("{k}=\"{v}\""));
        labels
            .iter()
            .all(carries)
            .then(|| value.trim().parse::<f64>().ok())?
    });
    samples.sum()
}

/// The program: what cargo built for this test, else beside this program, else `SYNCMUX_BIN`.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SYNCMUX_BIN") {
        return path.into();
    }
    let path = match option_env!("CARGO_BIN_EXE_syncmux") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe().unwrap();
            own.ancestors().nth(2).unwrap().join("syncmux")
        }
    };
    assert!(path.exists(), "{} is not built", path.display());
    reachable(path)
}

/// Cyrus's user need not be able to enter the folder of the sources: then a copy is run.
fn reachable(path: PathBuf) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mut command = as_cyrus("test");
    if command
        .arg("-x")
        .arg(&path)
        .status()
        .is_ok_and(|s| s.success())
    {
        return path;
    }
    let meta = path.metadata().unwrap();
    let name = format!(
        "syncmux-e2e-{}-{}-{}",
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let copy = std::env::temp_dir().join(name);
    if !copy.exists() {
        let fresh = copy.with_extension(std::process::id().to_string());
        std::fs::copy(&path, &fresh).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&fresh, &copy).unwrap();
    }
    copy
}

/// The password that the replica knows.
pub fn right_password() -> String {
    PASSWORD.to_owned()
}
