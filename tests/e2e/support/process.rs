//! Children that cannot outlive a test: an own process group, ended when the guard is dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::wait_for;

/// The ids of Cyrus's user and group.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// Who Cyrus runs as; fails where Cyrus is missing, since a test that skips proves nothing.
pub fn cyrus_ids() -> Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    *IDS.get_or_init(|| {
        for program in ["master", "sync_server", "sync_client", "imapd", "timsieved"] {
            let path = Path::new(super::cyrus::BIN).join(program);
            assert!(
                path.exists(),
                "Cyrus is not installed ({} is missing): tests/run.sh installs it",
                path.display()
            );
        }
        assert!(
            rustix::process::geteuid().is_root(),
            "the end-to-end tests start Cyrus as user cyrus and therefore must be run as root"
        );
        Ids {
            uid: field(Path::new("/etc/passwd"), "cyrus", 2),
            gid: field(Path::new("/etc/group"), "mail", 2),
        }
    })
}

/// A number of `name` in a file such as /etc/passwd.
pub fn field(file: &Path, name: &str, field: usize) -> u32 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("{name}:")));
    let shown = file.display();
    let line = line.unwrap_or_else(|| panic!("{shown} has no {name}: is Cyrus installed?"));
    line.split(':').nth(field).unwrap().parse().unwrap()
}

/// Gives a file or folder to Cyrus.
pub fn give(path: &Path) {
    let ids = cyrus_ids();
    std::os::unix::fs::chown(path, Some(ids.uid), Some(ids.gid))
        .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
}

/// Creates a folder that belongs to Cyrus.
pub fn folder(path: &Path) -> PathBuf {
    std::fs::create_dir_all(path).unwrap();
    give(path);
    path.to_path_buf()
}

/// Writes a file that belongs to Cyrus.
pub fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    give(path);
}

/// A command run as user cyrus, in its own process group, that gets SIGTERM should this process
/// (the thread that starts it, strictly) disappear without running any destructor.
pub fn as_cyrus(program: impl AsRef<OsStr>) -> Command {
    cyrus_ids();
    become_cyrus(Command::new("setpriv"), program)
}

/// `command` is `setpriv`, or ends with it: what becomes user cyrus and runs `program`.
pub fn become_cyrus(mut command: Command, program: impl AsRef<OsStr>) -> Command {
    use std::os::unix::process::CommandExt;
    command
        .args([
            "--reuid=cyrus",
            "--regid=mail",
            "--init-groups",
            "--pdeathsig",
            "TERM",
        ])
        .arg("--")
        .arg(program.as_ref())
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// `chmod`
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A running child; dropping it ends its whole process group.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    name: String,
    status: Option<ExitStatus>,
}

impl Guard {
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"));
        Self {
            child,
            name: name.to_owned(),
            status: None,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let _ = kill_process(self.pid(), signal);
        }
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let name = format!("{} to end after SIGTERM", self.name);
        wait_for(&name, || self.exited())
    }

    /// `kill -9`, the whole group.
    pub fn kill(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let start = Instant::now();
        while self.exited().is_none() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }
}

/// The children of a process that run this program.
pub fn children(parent: Pid, program: &str) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    // Of each of its threads.
    let threads = std::fs::read_dir(format!("/proc/{parent}/task"));
    let files = threads.into_iter().flatten().filter_map(Result::ok);
    let pids: String = files
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    let runs = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(program)
    };
    let pids = pids.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.filter(runs).filter_map(Pid::from_raw).collect()
}

/// A free TCP port on loopback, ours until dropped: a lock file keeps parallel tests off it.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _lock: File,
}

impl Port {
    pub fn allocate() -> Self {
        let locks = std::env::temp_dir().join("syncmux-e2e-ports");
        std::fs::create_dir_all(&locks).unwrap();
        wait_for("a free port", || {
            // Below the range that outgoing connections take theirs from.
            let number = fastrand::u16(15_000..32_000);
            let lock = File::create(locks.join(number.to_string())).ok()?;
            lock.try_lock().ok()?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            Some(Self {
                number,
                _lock: lock,
            })
        })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
