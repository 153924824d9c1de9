//! The program itself, against clients that send too much. What it holds is read in /proc.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const GREETING: &[u8] = b"* SASL PLAIN\r\n* OK replica Cyrus sync server 3.6.1\r\n";
const LOGIN: &[u8] = b"AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";
const GUID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const MIB: usize = 1 << 20;

/// Greets, and says OK to every line but APPLY MAILBOX, to which it says NO.
fn replica() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.write_all(GREETING);
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for line in lines.map_while(Result::ok) {
                    let end = line.starts_with("EXIT");
                    let answer: &[u8] = match line.starts_with("APPLY MAILBOX") {
                        true => b"NO IMAP_MAILBOX_NONEXISTENT no\r\n",
                        false => b"OK success\r\n",
                    };
                    if stream.write_all(answer).is_err() || end {
                        return;
                    }
                }
            });
        }
    });
    port
}

static STARTING: Mutex<()> = Mutex::new(());

struct Syncmux {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Syncmux {
    /// On loopback, with these limits.
    fn start(mode: &str, limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().to_str().unwrap();
        // A process that is being started has our open sockets for a moment: no other may start
        // between the probe for a free port and its end.
        let starting = STARTING
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let password = folder.path().join("password");
        fs::write(&password, "replpw\n").unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        let login = format!("username = \"repl\"\npassword_file = \"{top}/password\"\n");
        fs::create_dir(folder.path().join("sync")).unwrap();
        let text = format!(
            "[[channel]]\nmode = \"{mode}\"\nsync_directory = \"{top}/sync\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             [channel.replica]\naddress = \"127.0.0.1:{}\"\ntls = \"off\"\n{login}\
             [client]\n{login}[site]\nunixhierarchysep = true\nvirtdomains = \"off\"\n\
             [limits]\nspill_directory = \"{top}\"\n{limits}",
            replica()
        );
        let path = folder.path().join("syncmux.toml");
        fs::write(&path, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_syncmux"))
            .args(["run", "--config", path.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        drop(starting);
        Syncmux {
            child,
            port,
            folder,
        }
    }

    fn client(&self) -> Client {
        let until = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut client = Client {
            lines: BufReader::new(stream.try_clone().unwrap()),
            stream,
        };
        while !client.line().starts_with("* OK") {}
        assert_eq!(client.ask(LOGIN), "OK Success (no protection)\r\n");
        client
    }

    /// SIGTERM, and how long it took.
    fn terminate(&mut self) -> Duration {
        let began = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        while self.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(40), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
    }

    /// Resident memory in bytes.
    fn memory(&self) -> usize {
        let path = format!("/proc/{}/statm", self.child.id());
        let pages = fs::read_to_string(path).unwrap();
        let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }

    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).unwrap().count()
    }
}

impl Drop for Syncmux {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the connection was closed");
        line
    }

    fn ask(&mut self, command: &[u8]) -> String {
        self.stream.write_all(command).unwrap();
        self.line()
    }
}

#[test]
fn a_message_for_which_there_is_no_room() {
    let syncmux = Syncmux::start(
        "strict",
        "staged_memory = \"1MiB\"\nspill_size = \"4MiB\"\n",
    );
    let mut client = syncmux.client();
    let before = (syncmux.memory(), syncmux.descriptors());
    let size = 96 * MIB;
    let header = format!("APPLY MESSAGE (%{{default {GUID} {size}}}\r\n");
    client.stream.write_all(header.as_bytes()).unwrap();
    let mut message = std::io::repeat(b'x').take(size as u64);
    std::io::copy(&mut message, &mut client.stream).unwrap();
    let after = (syncmux.memory(), syncmux.descriptors());
    let answer = client.ask(b")\r\n");
    assert!(answer.starts_with("NO syncmux has no room"), "{answer}");
    assert!(
        after.0 < before.0 + 32 * MIB,
        "bytes: {before:?}, {after:?}"
    );
    assert!(after.1 < before.1 + 10, "files: {before:?}, {after:?}");
    assert_eq!(client.ask(b"GET USER joe\r\n"), "OK success\r\n");
}

#[test]
fn many_messages_that_nobody_takes() {
    let syncmux = Syncmux::start(
        "strict",
        "staged_memory = \"4MiB\"\nspill_size = \"1GiB\"\n",
    );
    let mut client = syncmux.client();
    let before = syncmux.memory();
    for (count, size) in [(1000, 100_000), (4000, 8_000)] {
        for n in 0..count {
            let header = format!("APPLY MESSAGE (%{{default {size:020x}{n:020x} {size}}}\r\n");
            let command = [header.as_bytes(), &vec![b'x'; size], b")\r\n"].concat();
            assert_eq!(client.ask(&command), "OK success\r\n");
        }
    }
    let after = syncmux.memory();
    assert!(after < before + 32 * MIB, "{before} {after}");
}

#[test]
fn a_lock_on_the_sync_log_that_is_never_given_back() {
    let mut syncmux = Syncmux::start("fan-out", "drain_grace = \"1s\"\n");
    let mut client = syncmux.client();
    let sync = syncmux.folder.path().join("sync");
    let log = fs::File::create(sync.join("log")).unwrap();
    log.lock().unwrap();
    fs::write(sync.join("log-run"), "MAILBOX user.joe\n").unwrap();
    assert_eq!(
        client.ask(b"GET MAILBOXES (user.joe)\r\n"),
        "OK success\r\n"
    );
    let apply = b"APPLY MAILBOX %(UNIQUEID x MBOXNAME user.joe LAST_UID 0 RECORD ())\r\n";
    assert_eq!(client.ask(apply), "OK success\r\n");
    let took = syncmux.terminate();
    assert!(took < Duration::from_secs(20), "{took:?}");
    // What was acknowledged is not forgotten.
    let names = fs::read_dir(&sync)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let links = names.filter(|name| name.to_str().unwrap().starts_with("syncmux-run-"));
    assert_eq!(links.count(), 1);
}
