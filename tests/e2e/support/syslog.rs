//! Cyrus logs to /dev/log only. Where nothing listens there, we do, as long as an instance runs.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

const SOCKET: &str = "/dev/log";

/// A listener on /dev/log, shared by all instances of this process. Best effort: where another
/// process listens already, its file (the same one if it is a test of ours) has the lines.
#[derive(Debug)]
pub struct Syslog {
    stop: Arc<AtomicBool>,
    ours: bool,
}

static CURRENT: Mutex<Weak<Syslog>> = Mutex::new(Weak::new());

impl Syslog {
    pub fn shared() -> Arc<Self> {
        let mut current = CURRENT.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = current.upgrade() {
            return found;
        }
        let made = Arc::new(Self::listen());
        *current = Arc::downgrade(&made);
        made
    }

    fn listen() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let _one_at_a_time = lock();
        let probe = UnixDatagram::unbound().unwrap();
        if probe.connect(SOCKET).is_ok() {
            return Self { stop, ours: false };
        }
        let _ = std::fs::remove_file(SOCKET);
        let Ok(socket) = UnixDatagram::bind(SOCKET) else {
            return Self { stop, ours: false };
        };
        let _ = std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o666));
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let too_long = std::fs::metadata(file()).is_ok_and(|m| m.len() > 64 << 20);
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file())
            .expect("syslog file");
        if too_long {
            let _ = out.set_len(0);
        }
        let stopped = stop.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(n) = socket.recv(&mut buffer) {
                    buffer[n] = b'\n';
                    let _ = out.write_all(&buffer[..=n]);
                }
            }
        });
        Self { stop, ours: true }
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        if self.ours {
            let _one_at_a_time = lock();
            let _ = std::fs::remove_file(SOCKET);
        }
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Where the lines go.
pub fn file() -> PathBuf {
    std::env::temp_dir().join("syncmux-e2e-syslog")
}

/// The last lines that carry `prefix` (an instance's `syslog_prefix`), to be shown on failure.
pub fn tail(prefix: &str, lines: usize) -> String {
    let text = std::fs::read(file()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let noise = [
        "login: ",
        "verify error",
        "IDLE: error",
        "starttls: ",
        "supports #sieve",
    ];
    let tells = |l: &&str| l.contains(prefix) && !noise.iter().any(|n| l.contains(n));
    let ours: Vec<&str> = text.lines().filter(tells).collect();
    ours[ours.len().saturating_sub(lines)..].join("\n")
}

fn lock() -> File {
    let path = std::env::temp_dir().join("syncmux-e2e-syslog.lock");
    let file = File::create(path).unwrap();
    let _ = file.lock();
    file
}
