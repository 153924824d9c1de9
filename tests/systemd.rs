//! What the program tells systemd, and the units of `deploy/systemd`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use syncmux::config::Limits;

const BIN: &str = env!("CARGO_BIN_EXE_syncmux");
const UNITS: [&str; 5] = [
    "syncmux.service",
    "syncmux-terminate.service",
    "syncmux-shard.service",
    "cyrus-sync-client.service",
    "cyrus-sync-client@.service",
];

/// A folder with a configuration whose replica is not there.
struct Site {
    folder: tempfile::TempDir,
    systemd: UnixDatagram,
    told: Vec<(Instant, String)>,
    process: Option<Child>,
}

impl Site {
    fn start(watchdog: Option<Duration>, wrapper: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sync")).unwrap();
        fs::write(at("password"), "secret\n").unwrap();
        fs::write(at("imapd.conf"), "sync_log: yes\n").unwrap();
        let text = format!(
            "[[channel]]\nsync_directory = \"{0}/sync\"\nlisten = [\"unix:{0}/csync.sock\"]\n\
             [channel.replica]\naddress = \"unix:{0}/away\"\nusername = \"repl\"\n\
             password_file = \"{0}/password\"\n[site]\nimapd_conf = \"{0}/imapd.conf\"\n",
            folder.path().display()
        );
        fs::write(at("syncmux.toml"), text).unwrap();
        let systemd = UnixDatagram::bind(at("notify")).unwrap();
        let mut words: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        words.extend([BIN, "run", "--config"].map(str::to_owned));
        words.push(at("syncmux.toml").display().to_string());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("NOTIFY_SOCKET", at("notify"))
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC");
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        let process = Some(command.spawn().unwrap());
        Site {
            folder,
            systemd,
            told: Vec::new(),
            process,
        }
    }

    /// `syncmux shard` with two shards and no clients.
    fn shard(watchdog: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sync")).unwrap();
        fs::write(at("imapd.conf"), "sync_log: yes\n").unwrap();
        let text = format!(
            "[shard]\nsync_directory = \"{0}/sync\"\nshards = 2\n[site]\n\
             imapd_conf = \"{0}/imapd.conf\"\n",
            folder.path().display()
        );
        fs::write(at("shard.toml"), text).unwrap();
        let systemd = UnixDatagram::bind(at("notify")).unwrap();
        let mut command = Command::new(BIN);
        command
            .args(["shard", "--config"])
            .arg(at("shard.toml"))
            .env("NOTIFY_SOCKET", at("notify"))
            .env_remove("WATCHDOG_PID")
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        let process = Some(command.spawn().unwrap());
        Site {
            folder,
            systemd,
            told: Vec::new(),
            process,
        }
    }

    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.systemd.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 4096];
            if let Ok(len) = self.systemd.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
                let lines = text.lines().map(|line| (Instant::now(), line.to_owned()));
                self.told.extend(lines);
            }
        }
    }

    fn wait_for(&mut self, what: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.has(what) {
            assert!(Instant::now() < end, "no {what} in {:?}", self.told);
            self.listen(Duration::from_millis(50));
        }
    }

    fn has(&self, what: &str) -> bool {
        self.told.iter().any(|(_, line)| line.starts_with(what))
    }

    fn end(mut self) -> (i32, Vec<String>) {
        let mut process = self.process.take().unwrap();
        let pid = Pid::from_raw(process.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let end = Instant::now() + Duration::from_secs(40);
        let code = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break status.code().unwrap();
            }
            assert!(Instant::now() < end, "it does not end");
            self.listen(Duration::from_millis(50));
        };
        self.listen(Duration::from_millis(50));
        (code, self.told.drain(..).map(|(_, line)| line).collect())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn ready_status_watchdog_and_the_end() {
    let mut site = Site::start(Some(Duration::from_secs(2)), &[]);
    site.wait_for("READY=1");
    assert!(
        site.folder.path().join("csync.sock").exists(),
        "the listeners are bound by then"
    );
    assert!(
        !site.has("WATCHDOG=1") || site.told[0].1 == "READY=1",
        "{:?}",
        site.told
    );
    site.listen(Duration::from_secs(3));
    let pings: Vec<_> = site
        .told
        .iter()
        .filter(|(_, line)| line == "WATCHDOG=1")
        .collect();
    // Each half second; never as late as systemd's two.
    assert!(pings.len() >= 4, "{:?}", site.told);
    for pair in pings.windows(2) {
        assert!(
            pair[1].0 - pair[0].0 < Duration::from_secs(2),
            "{:?}",
            site.told
        );
    }
    assert!(site.has("STATUS=clients 0, lanes 0, unconfirmed users 0, owed lines 0"));
    let (code, told) = site.end();
    assert_eq!(code, 0);
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    assert!(told.contains(&"STOPPING=1"), "{told:?}");
    // The default drain_grace of 20 s, 5 for the disk, twice 3 for goodbyes.
    assert!(told.contains(&"EXTEND_TIMEOUT_USEC=31000000"), "{told:?}");
}

#[test]
fn shard_tells_ready_status_and_watchdog() {
    let mut site = Site::shard(Duration::from_secs(2));
    site.wait_for("READY=1");
    site.wait_for("STATUS=shards 2, unfinished users 0, held lines 0");
    assert!(site.folder.path().join("sync/shard-1").is_dir());
    let log = site.folder.path().join("sync/log");
    fs::write(log, "APPEND user.joe\nAPPEND user.eve\n").unwrap();
    site.wait_for("STATUS=shards 2, unfinished users 2, held lines 0");
    site.wait_for("WATCHDOG=1");
    let (code, told) = site.end();
    assert_eq!(code, 0);
    assert!(told.iter().any(|line| line == "STOPPING=1"), "{told:?}");
}

#[test]
fn without_a_watchdog_there_are_no_pings() {
    let mut site = Site::start(None, &[]);
    site.wait_for("READY=1");
    site.wait_for("STATUS=");
    site.listen(Duration::from_secs(1));
    let (code, told) = site.end();
    assert_eq!(code, 0);
    assert!(!told.iter().any(|line| line == "WATCHDOG=1"), "{told:?}");
}

fn unit(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// All values of a setting.
fn setting<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    unit.lines().filter_map(value).collect()
}

fn systemd_analyze(arguments: &[&str], files: &[PathBuf]) -> String {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .args(files)
        .output()
        .expect("systemd-analyze is missing: tests/install_deploy.sh installs it");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "systemd-analyze {arguments:?}: {text}"
    );
    text
}

/// The units as they are, with the program that was built.
fn installed(folder: &Path) -> Vec<PathBuf> {
    let write = |name: &&str| {
        let text = unit(name).replace("ExecStart=syncmux ", &format!("ExecStart={BIN} "));
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let drop_in = folder.join("syncmux.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::write(
        drop_in.join("client.conf"),
        unit("syncmux.service.d/client.conf"),
    )
    .unwrap();
    UNITS.iter().map(write).collect()
}

#[test]
fn the_units_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let files = installed(folder.path());
    let text = systemd_analyze(&["verify", "--man=no"], &files);
    // Unknown settings are only mentioned.
    assert_eq!(text, "", "systemd-analyze verify has something to say");
}

/// The figure of `systemd-analyze security` times ten, which is also in deploy/systemd/README.md.
#[test]
fn the_units_expose_little() {
    let folder = tempfile::tempdir().unwrap();
    let readme = unit("README.md");
    for (file, most) in installed(folder.path())
        .into_iter()
        .zip([14, 14, 14, 18, 18])
    {
        let most = most.to_string();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let arguments = [
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold",
            &most,
        ];
        let text = systemd_analyze(&arguments, &[file]);
        let level = text.split("exposure level for ").nth(1).unwrap();
        let level = level
            .split(": ")
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        let row = format!("| `{name}` | {level} |");
        assert!(
            readme.contains(&row),
            "deploy/systemd/README.md lacks {row}"
        );
    }
}

#[test]
fn the_units_fit_the_program() {
    let service = unit("syncmux.service");
    assert_eq!(
        setting(&service, "ReadWritePaths"),
        ["-/var/lib/cyrus/sync"]
    );
    assert_eq!(setting(&service, "Type"), ["notify"]);
    assert_eq!(setting(&service, "User"), ["cyrus"]);
    assert_eq!(setting(&service, "Before"), ["cyrus-imapd.service"]);
    let shard = unit("syncmux-shard.service");
    assert_eq!(setting(&shard, "ReadWritePaths"), ["-/var/lib/cyrus/sync"]);
    assert_eq!(setting(&shard, "Type"), ["notify"]);
    assert_eq!(setting(&shard, "User"), ["cyrus"]);
    assert_eq!(setting(&shard, "KillMode"), ["mixed"]);
    let seconds: u64 = setting(&service, "TimeoutStopSec")[0].parse().unwrap();
    assert!(Duration::from_secs(seconds) > Limits::default().drain_grace + Duration::from_secs(13));
    assert_eq!(
        setting(&unit("syncmux-terminate.service"), "ReadWritePaths"),
        [""; 0]
    );
    for name in UNITS {
        let unit = unit(name);
        // For ever: an upgrade must not end replication, and neither may a bad hour.
        assert_eq!(setting(&unit, "Restart"), ["always"], "{name}");
        assert_eq!(setting(&unit, "StartLimitIntervalSec"), ["0"], "{name}");
        assert_eq!(setting(&unit, "CapabilityBoundingSet"), [""], "{name}");
    }
    for (name, command) in [
        (
            "cyrus-sync-client.service",
            "/usr/lib/cyrus/bin/sync_client -R",
        ),
        (
            "cyrus-sync-client@.service",
            "/usr/lib/cyrus/bin/sync_client -n %i -R",
        ),
    ] {
        assert_eq!(setting(&unit(name), "ExecStart"), [command]);
    }
}

/// systemd does not run here, so nobody filters: the calls that the program makes are looked for
/// among those that the unit allows.
#[test]
fn the_filter_allows_what_the_program_calls() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let trace_path = trace.to_str().unwrap();
    let wrapper = ["strace", "-f", "-qq", "-o", trace_path, "--signal=none"];
    let mut site = Site::start(Some(Duration::from_secs(60)), &wrapper);
    site.wait_for("READY=1");
    let socket = site.folder.path().join("csync.sock");
    drop(std::os::unix::net::UnixStream::connect(socket).unwrap());
    site.listen(Duration::from_millis(500));
    let children = fs::read_to_string({
        let id = site.process.as_ref().unwrap().id();
        format!("/proc/{id}/task/{id}/children")
    });
    let child: i32 = children.unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(child).unwrap(), Signal::TERM).unwrap();
    assert!(site.process.as_mut().unwrap().wait().unwrap().success());
    let text = fs::read_to_string(&trace).unwrap();
    let call = |line: &str| {
        let line = line.split_once(' ')?.1.trim_start();
        let name = line.strip_prefix("<... ").unwrap_or(line);
        let name = name.split(['(', ' ']).next()?;
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        (is_name && !name.is_empty()).then(|| name.to_owned())
    };
    let called: BTreeSet<String> = text.lines().filter_map(call).collect();
    assert!(
        called.contains("sendto") && called.contains("flock"),
        "{called:?}"
    );
    let allowed = calls("@system-service");
    let denied = calls("@privileged");
    // The first one is strace's own.
    let outside: Vec<_> = called
        .iter()
        .filter(|call| !allowed.contains(*call) || denied.contains(*call))
        .filter(|call| !matches!(call.as_str(), "exit" | "strace"))
        .collect();
    assert!(outside.is_empty(), "the unit forbids {outside:?}");
}

/// The calls of a set, and of those in it.
fn calls(set: &str) -> BTreeSet<String> {
    let text = systemd_analyze(&["syscall-filter", "--no-pager", set], &[]);
    let mut all = BTreeSet::new();
    for word in text.lines().map(str::trim) {
        if word.starts_with('@') && word != set {
            all.extend(calls(word));
        } else if !word.starts_with(['#', '@']) && !word.is_empty() {
            all.insert(word.to_owned());
        }
    }
    all
}
