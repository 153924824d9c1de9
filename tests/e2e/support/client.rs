//! The stock `sync_client`, in each of its modes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use super::cyrus::BIN;
use super::process::{Guard, give, write};
use super::version::Version;
use super::{PATIENCE, wait_for};

/// How a client reaches the replica: the imapd.conf that says so.
#[derive(Clone, Debug)]
pub struct Client {
    pub conf: PathBuf,
    /// Its sync channel; the default one where empty.
    pub channel: String,
    /// Options of the rolling client beside `-R`.
    pub options: Vec<&'static str>,
    /// A folder for its output, owned by Cyrus.
    pub scratch: PathBuf,
    /// Whether the rolling client writes its conversation down.
    pub verbose: bool,
    /// That of the master.
    pub version: Version,
}

/// What a one-shot run said and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub output: String,
    pub seconds: f64,
}

impl Outcome {
    /// Panics where the client did not end well.
    pub fn expect_ok(self, what: &str) -> Self {
        assert_eq!(
            self.code,
            Some(0),
            "sync_client {what} failed:\n{}",
            self.output
        );
        self
    }

    /// The commands of the conversation that start with `prefix`.
    pub fn commands(&self, prefix: &str) -> Vec<&str> {
        self.output
            .lines()
            .map(str::trim_start)
            .filter(|l| l.starts_with(prefix))
            .collect()
    }
}

impl Client {
    /// Runs it with these arguments to its end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let output = self
            .scratch
            .join(format!("client-{:08x}.out", fastrand::u32(..)));
        let start = Instant::now();
        let mut guard = self.spawn(&output, arguments);
        let name = format!("sync_client {}", arguments.join(" "));
        let status = loop {
            if let Some(status) = guard.exited() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                let text = read(&output);
                panic!("{name} still runs after {PATIENCE:?}:\n{text}");
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        };
        let seconds = start.elapsed().as_secs_f64();
        Outcome {
            code: status.code(),
            output: read(&output),
            seconds,
        }
    }

    /// One-shot over lines of a sync log.
    pub fn log(&self, lines: &[String]) -> Outcome {
        self.log_with(&[], lines)
    }

    pub fn log_with(&self, options: &[&str], lines: &[String]) -> Outcome {
        let file = self
            .scratch
            .join(format!("lines-{:08x}", fastrand::u32(..)));
        write(
            &file,
            lines.iter().map(|l| format!("{l}\n")).collect::<String>(),
        );
        let arguments = ["-v", "-v", "-o", "-r", "-f", file.to_str().unwrap()];
        let outcome = self.run(&[options, &arguments].concat());
        let _ = std::fs::remove_file(&file);
        outcome
    }

    pub fn user(&self, users: &[&str]) -> Outcome {
        self.run(&[&["-v", "-v", "-o", "-u"], users].concat())
    }

    pub fn all(&self) -> Outcome {
        self.run(&["-v", "-v", "-o", "-A"])
    }

    pub fn mailboxes(&self, names: &[&str]) -> Outcome {
        self.run(&[&["-v", "-v", "-o", "-m"], names].concat())
    }

    pub fn meta(&self, users: &[&str]) -> Outcome {
        self.run(&[&["-v", "-v", "-o", "-s"], users].concat())
    }

    /// The rolling client of this channel, in the foreground.
    pub fn rolling(&self) -> Rolling {
        let mut rolling = Rolling {
            client: self.clone(),
            guard: None,
            starts: 0,
            output: None,
        };
        rolling.start();
        rolling
    }

    fn spawn(&self, output: &Path, arguments: &[&str]) -> Guard {
        let out = std::fs::File::create(output).unwrap();
        give(output);
        let mut command = self.version.command(format!("{BIN}/sync_client"));
        command.arg("-C").arg(&self.conf);
        if !self.channel.is_empty() {
            command.args(["-n", &self.channel]);
        }
        command.args(arguments);
        command
            .stdout(Stdio::from(out.try_clone().unwrap()))
            .stderr(Stdio::from(out));
        Guard::spawn("sync_client", &mut command)
    }
}

/// A rolling client; ended when dropped.
#[derive(Debug)]
pub struct Rolling {
    client: Client,
    guard: Option<Guard>,
    /// How often it had to be started: 1 as long as it has lived.
    pub starts: u32,
    output: Option<PathBuf>,
}

impl Rolling {
    fn start(&mut self) {
        let name = format!("rolling-{:08x}.out", fastrand::u32(..));
        let output = self.client.scratch.join(name);
        let mut arguments = self.client.options.clone();
        if self.client.verbose {
            arguments.extend(["-v", "-v"]);
        }
        arguments.push("-R");
        self.guard = Some(self.client.spawn(&output, &arguments));
        self.output = Some(output);
        self.starts += 1;
    }

    /// Starts it again should it have ended, as Cyrus's master does for a DAEMON.
    pub fn keep_alive(&mut self) {
        if self.guard.as_mut().is_none_or(|g| g.exited().is_some()) {
            // Cyrus's master is not faster either, and a client that ends at once must not spin.
            std::thread::sleep(std::time::Duration::from_millis(200));
            self.start();
        }
    }

    /// Whether the first one still runs.
    pub fn has_lived(&mut self) -> bool {
        self.starts == 1 && self.is_alive()
    }

    pub fn is_alive(&mut self) -> bool {
        self.guard.as_mut().is_some_and(|g| g.exited().is_none())
    }

    /// It does nothing until it is told to go on: its log can be filled meanwhile.
    pub fn pause(&mut self, on: bool) {
        use rustix::process::Signal;
        if let Some(guard) = &mut self.guard {
            // Before that it is the programs that start it.
            let name = format!("/proc/{}/comm", guard.pid().as_raw_nonzero());
            wait_for("the client to be one", || {
                let is_it = std::fs::read_to_string(&name).is_ok_and(|it| it == "sync_client\n");
                (is_it || guard.exited().is_some()).then_some(())
            });
            guard.signal(if on { Signal::STOP } else { Signal::CONT });
        }
    }

    /// The conversation so far, of the last start.
    pub fn output(&self) -> String {
        self.output.as_deref().map(read).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.kill();
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.terminate();
        }
    }
}

/// What is left to do in a sync directory: `log`, `log-run`, syncmux's links and its owed file.
pub fn leftovers(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    // The order matters: a healed line goes from a link to `log`, from there to `log-run`.
    let entries = std::fs::read_dir(directory).unwrap();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = entry.metadata().map(|m| m.len()).unwrap_or(0);
        if name.starts_with("syncmux-run-") || (name.starts_with("syncmux-owed") && size > 0) {
            names.push(name);
        }
    }
    for name in ["log", "log-run"] {
        if directory.join(name).exists() {
            names.push(name.to_owned());
        }
    }
    names
}

/// Waits until nothing is left to do for a while, starting the client again whenever it ends.
pub fn wait_until_drained(directory: &Path, rolling: &mut Rolling) {
    let mut quiet = 0;
    let start = Instant::now();
    loop {
        let left = leftovers(directory);
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if quiet == 4 {
            return;
        }
        if start.elapsed() > PATIENCE {
            let text = rolling.output();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            panic!(
                "the rolling client (start {}) still has work after {PATIENCE:?}: {left:?}\n{}",
                rolling.starts,
                tail.join("\n")
            );
        }
        rolling.keep_alive();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Waits until Cyrus has written the lines of the last change, and takes them from `log`.
pub fn take_log(directory: &Path) -> Vec<String> {
    let taken = directory.join("taken");
    if std::fs::rename(directory.join("log"), &taken).is_err() {
        return Vec::new();
    }
    let text = std::fs::read_to_string(&taken).unwrap();
    std::fs::remove_file(&taken).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Puts lines into `log` in one piece, so that the client finds all of them or none.
pub fn put_log(directory: &Path, lines: &[String]) {
    let ready = directory.join("put");
    write(
        &ready,
        lines.iter().map(|l| format!("{l}\n")).collect::<String>(),
    );
    wait_for("the log to be taken", || {
        (!directory.join("log").exists()).then_some(())
    });
    std::fs::rename(&ready, directory.join("log")).unwrap();
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
