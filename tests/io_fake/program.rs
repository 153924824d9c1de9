//! The program itself between a client and a replica that a test plays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const LOGIN: &str = "AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n";

/// What a replica says to a command: the answer.
pub type Answers = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A replica that knows no literals; files are read over.
pub fn replica(answers: Answers) -> u16 {
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

pub fn serve(mut stream: TcpStream, answers: &dyn Fn(&str) -> String) -> Option<()> {
    stream.write_all(super::GREETING.as_bytes()).ok()?;
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

pub fn ok(_: &str) -> String {
    "OK success\r\n".to_owned()
}

/// The program in a folder of its own.
pub struct Mux {
    pub child: Child,
    pub folder: tempfile::TempDir,
    /// For clients, and of the admin endpoint.
    pub ports: [u16; 2],
}

impl Mux {
    pub fn start(replica: u16, limits: &str, fan_out: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sync")).unwrap();
        Self::start_in(folder, replica, limits, fan_out)
    }

    pub fn start_in(folder: tempfile::TempDir, replica: u16, limits: &str, fan_out: bool) -> Self {
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

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.path("errors")).unwrap()
    }

    pub fn connect(&self) -> Client {
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

    pub fn client(&self) -> Client {
        let mut client = self.connect();
        assert!(client.ask(LOGIN).starts_with("OK"));
        client
    }

    /// Resident memory, in MiB.
    pub fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse::<u64>().unwrap() / 1024
    }

    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Says SIGTERM and expects the end in time.
    pub fn stop(&mut self, within: Duration) {
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

pub struct Client(pub BufReader<TcpStream>);

impl Client {
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// A line; empty at the end of file.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// The answer, untagged lines left out.
    pub fn ask(&mut self, command: impl AsRef<[u8]>) -> String {
        self.send(command.as_ref());
        loop {
            let line = self.line();
            if !line.starts_with("* ") || line.starts_with("* Fatal") {
                return line;
            }
        }
    }
}
