//! The program between clients and replicas that mean no good: what it holds, whom it answers,
//! and whether it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod io_fake;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const LOGIN: &str = "AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";

/// What a replica says to a command: the answer.
type Answers = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A replica that knows no literals; files are read over.
fn replica(answers: Answers) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answers = Arc::clone(&answers);
            std::thread::spawn(move || serve(stream.unwrap(), &*answers));
        }
    });
    port
}

fn serve(mut stream: TcpStream, answers: &dyn Fn(&str) -> String) -> Option<()> {
    stream.write_all(io_fake::GREETING.as_bytes()).ok()?;
    let mut input = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut command = String::new();
        loop {
            let mut line = String::new();
            if input.read_line(&mut line).ok()? == 0 {
                return None;
            }
            command += &line;
            let size = line.trim_end().strip_suffix('}');
            let size = size.and_then(|line| line.rsplit([' ', '{']).next()?.parse().ok());
            let Some(size) = size else { break };
            std::io::copy(&mut input.by_ref().take(size), &mut std::io::sink()).ok()?;
        }
        let answer = match command.split_whitespace().next()? {
            "AUTHENTICATE" => "OK Success\r\n".to_owned(),
            "NOOP" => "OK Noop completed\r\n".to_owned(),
            "EXIT" => return None,
            _ => answers(&command),
        };
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

fn ok(_: &str) -> String {
    "OK success\r\n".to_owned()
}

/// The program in a folder of its own.
struct Mux {
    child: Child,
    folder: tempfile::TempDir,
    ports: [u16; 2],
}

impl Mux {
    fn start(replica: u16, limits: &str, fan_out: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sync")).unwrap();
        Self::start_in(folder, replica, limits, fan_out)
    }

    fn start_in(folder: tempfile::TempDir, replica: u16, limits: &str, fan_out: bool) -> Self {
        let at = folder.path().display();
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let ports = [free(), free()];
        let mode = if fan_out {
            format!("sync_directory = \"{at}/sync\"\nmode = \"fan-out\"")
        } else {
            "mode = \"strict\"".to_owned()
        };
        let text = format!(
            "[[channel]]\n{mode}\nlisten = [\"127.0.0.1:{}\"]\n[channel.replica]\n\
             address = \"127.0.0.1:{replica}\"\ntls = \"off\"\nusername = \"repl\"\n\
             password_file = \"{at}/password\"\n[client]\nusername = \"repl\"\n\
             password_file = \"{at}/password\"\n[site]\nunixhierarchysep = true\n[limits]\n\
             spill_directory = \"{at}\"\n{limits}\n[admin]\nlisten = \"127.0.0.1:{}\"\n",
            ports[0], ports[1]
        );
        let config = folder.path().join("syncmux.toml");
        std::fs::write(&config, text).unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, "replpw\n").unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&password, private).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_syncmux"))
            .args(["run", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .stderr(std::fs::File::create(folder.path().join("errors")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Mux {
            child,
            folder,
            ports,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.path("errors")).unwrap()
    }

    fn connect(&self) -> Client {
        let until = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            // A byte, or it may be the port of a moment ago, in a process that another test starts.
            match TcpStream::connect(("127.0.0.1", self.ports[0])) {
                Ok(stream) if matches!(stream.peek(&mut [0]), Ok(1)) => break stream,
                other => assert!(Instant::now() < until, "{other:?}: {}", self.errors()),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        let mut client = Client(BufReader::new(stream));
        while !client.line().starts_with("* OK") {}
        client
    }

    fn client(&self) -> Client {
        let mut client = self.connect();
        assert!(client.ask(LOGIN).starts_with("OK"));
        client
    }

    /// Resident memory, in MiB.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse::<u64>().unwrap() / 1024
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Says SIGTERM and expects the end in time.
    fn stop(&mut self, within: Duration) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let until = Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "still there: {}", self.errors());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!self.errors().contains("panicked"), "{}", self.errors());
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// A line; empty at the end of file.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// The answer, untagged lines left out.
    fn ask(&mut self, command: impl AsRef<[u8]>) -> String {
        self.send(command.as_ref());
        loop {
            let line = self.line();
            if !line.starts_with("* ") || line.starts_with("* Fatal") {
                return line;
            }
        }
    }
}

fn message(number: usize, size: usize) -> Vec<u8> {
    let mut text = format!("APPLY MESSAGE (%{{default {number:040x} {size}}}\r\n").into_bytes();
    text.resize(text.len() + size, b'x');
    text.extend_from_slice(b")\r\n");
    text
}

fn mailbox(user: &str) -> String {
    format!(
        "APPLY MAILBOX %(UNIQUEID u{user} MBOXNAME user.{user} PARTITION default LAST_UID 1 \
         SYNC_CRC 1 RECORD (%(UID 1 GUID {:040x})))\r\n",
        7
    )
}

#[test]
fn what_a_stranger_says_is_answered_or_ends_the_connection() {
    let mux = Mux::start(replica(Arc::new(ok)), "", false);
    let long = "x".repeat(200_000);
    let literal = "GET USER {5+}\r\nEXIT\r\n";
    for (said, answer) in [
        ("\0\0\r\n", "BAD "),
        ("\r\r\r\n", "BAD Null command"),
        ("((((\r\n", "BAD Null command"),
        ("NOOP\rEXIT\r\n", "BAD Unexpected extra arguments"),
        ("AUTHENTICATE PLAIN *\r\n", "BAD Client canceled"),
        ("GET USER {99999999999}\r\n", "NO Please authenticate"),
        ("APPLY MESSAGE (%{a b 4}\r\nabcd)\r\n", "BYE "),
        (literal, "BYE a literal before the login"),
        (&long, "* Fatal error: [TOOBIG]"),
        ("STARTTLS\r\nNOOP\r\n", "BAD "),
    ] {
        let mut client = mux.connect();
        let found = client.ask(said);
        assert!(found.starts_with(answer), "{said:.40}: {found}");
    }
    // A name cannot write lines of its own into the log, nor as many bytes as it likes.
    let mut client = mux.connect();
    let name = format!("\0joe\r\nERROR forged{}\0secretpw", "y".repeat(20_000));
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, name);
    assert!(
        client
            .ask(format!("AUTHENTICATE PLAIN {encoded}\r\n"))
            .starts_with("NO ")
    );
    let errors = mux.errors();
    assert!(
        !errors
            .lines()
            .any(|line| line.starts_with("ERROR") || line.len() > 500)
    );
    assert!(errors.contains("forged") && !errors.contains("secretpw"));
}

#[test]
fn sessions_get_their_own_answers_whatever_others_do() {
    let answers = |command: &str| {
        let user = command.split_whitespace().nth(2).unwrap_or_default();
        format!("* SEEN %(USERID {user})\r\nOK for {user}\r\n")
    };
    let mux = Mux::start(replica(Arc::new(answers)), "", false);
    let mut clients: Vec<_> = (0..60).map(|_| mux.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let said = match i % 4 {
            0 => format!("GET USER u{i}\r\n"),
            // Two at once, one of them with a literal that looks like commands.
            1 => format!("GET USER u{i}\r\nGET USER {{14+}}\r\nx\r\nGET USER a\r\n\r\n"),
            2 => format!("GET USER u{i} x\r\nGET USER u{i}\r\n"),
            _ => "APPLY MESSAGE (%{default ".to_owned(),
        };
        client.send(said.as_bytes());
    }
    for i in (3..60).step_by(4) {
        clients[i]
            .0
            .get_ref()
            .shutdown(std::net::Shutdown::Both)
            .unwrap();
    }
    for (i, client) in clients.iter_mut().enumerate().filter(|(i, _)| i % 4 != 3) {
        if i % 4 == 2 {
            assert!(client.line().starts_with("BAD "));
        }
        assert_eq!(client.line(), format!("* SEEN %(USERID u{i})\r\n"));
        assert_eq!(client.line(), format!("OK for u{i}\r\n"));
    }
}

#[test]
fn a_session_that_waits_keeps_no_space_on_disk() {
    let limits = "staged_memory = \"1MiB\"\nspill_size = \"8MiB\"";
    let mux = Mux::start(replica(Arc::new(ok)), limits, false);
    let mut idle = mux.client();
    assert!(idle.ask(message(1, 6_000_000)).starts_with("OK"));
    assert!(idle.ask("RESTART\r\n").starts_with("OK"));
    let mut other = mux.client();
    assert!(other.ask(message(2, 6_000_000)).starts_with("OK"));
}

#[test]
fn an_answer_without_end_costs_the_lane_and_not_the_memory() {
    let answers = |command: &str| {
        let mut lines = String::new();
        if command.contains("flood") {
            for number in 0..1_000_000 {
                let _ = writeln!(lines, "* SEEN %(USERID joe UNIQUEID {number})\r");
            }
        }
        lines + "OK success\r\n"
    };
    let mux = Mux::start(replica(Arc::new(answers)), "", false);
    let mut client = mux.client();
    let before = mux.memory();
    client.send(b"GET USER flood\r\n");
    let mut most = 0;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(50));
        most = most.max(mux.memory() - before);
    }
    assert!(most < 200, "{most} MiB");
    let mut other = mux.client();
    assert!(other.ask("GET USER joe\r\n").starts_with("OK success"));
}

#[test]
fn a_flood_of_the_admin_port_leaves_descriptors_to_clients() {
    let mux = Mux::start(replica(Arc::new(ok)), "", false);
    drop(mux.client());
    let mut flood = Vec::new();
    for _ in 0..110 {
        let mut stream = TcpStream::connect(("127.0.0.1", mux.ports[1])).unwrap();
        stream.write_all(b"GET /met").unwrap();
        flood.push(stream);
    }
    std::thread::sleep(Duration::from_millis(300));
    let found = mux.descriptors();
    assert!(found < 100, "{found}");
    assert!(mux.client().ask("GET USER joe\r\n").starts_with("OK"));
}

/// Locks `log` as a Cyrus that was stopped would.
fn lock(path: &Path) -> std::fs::File {
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let log = log.unwrap();
    rustix::fs::fcntl_lock(&log, rustix::fs::FlockOperation::LockExclusive).unwrap();
    log
}

#[test]
fn a_locked_log_does_not_keep_the_program_that_starts_from_ending() {
    let port = replica(Arc::new(ok));
    let folder = tempfile::tempdir().unwrap();
    let sync = folder.path().join("sync");
    std::fs::create_dir(&sync).unwrap();
    std::fs::write(sync.join("syncmux-run-77"), "MAILBOX user.joe\n").unwrap();
    let _log = lock(&sync.join("log"));
    let mut mux = Mux::start_in(folder, port, "", true);
    std::thread::sleep(Duration::from_millis(500));
    mux.stop(Duration::from_secs(5));
    assert!(mux.path("sync/syncmux-run-77").exists());
}

#[test]
fn a_sync_directory_that_is_gone_does_not_keep_the_program_from_ending() {
    let refuse = |command: &str| {
        let answer = if command.starts_with("APPLY MAILBOX") {
            "NO IMAP_IOERROR x"
        } else {
            "OK"
        };
        format!("{answer}\r\n")
    };
    let mut mux = Mux::start(replica(Arc::new(refuse)), "drain_grace = \"1s\"", true);
    std::fs::write(mux.path("sync/log-run"), "MAILBOX user.bad\n").unwrap();
    let mut client = mux.client();
    assert!(client.ask("GET MAILBOXES (user.bad)\r\n").starts_with("OK"));
    std::fs::remove_dir_all(mux.path("sync")).unwrap();
    client.send(mailbox("bad").as_bytes());
    std::thread::sleep(Duration::from_millis(300));
    mux.stop(Duration::from_secs(12));
}
