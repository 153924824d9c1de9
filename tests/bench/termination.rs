//! `terminate` beside stunnel: the same client and the same end behind, TLS with certificates on
//! both sides, one connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustls::{ClientConnection, StreamOwned};
use syncmux::io::tls::{ClientFiles, client_config, server_name};

use super::support::certs::{Certs, SERVER_NAME};
use super::support::mux::Mux;
use super::support::process::{Guard, Port, as_cyrus, folder, give, write};
use super::support::wait_for;

const CHUNK: usize = 64 * 1024;

/// What stands between the client and the end.
#[derive(Clone, Copy, Debug)]
pub enum Between {
    Syncmux,
    Stunnel,
}

/// What one of them needed.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Seconds of a gigabyte towards the server, and of its processor time.
    pub up: [f64; 2],
    /// The same of one from the server.
    pub down: [f64; 2],
    /// Small commands a second that wait for each other, and processor seconds of 10,000.
    pub commands: [f64; 2],
}

enum Process {
    Mux(Mux),
    Stunnel(Guard),
}

impl Process {
    fn pid(&self) -> i32 {
        match self {
            Process::Mux(mux) => mux.pid(),
            Process::Stunnel(guard) => guard.pid().as_raw_nonzero().get(),
        }
    }

    /// Seconds of processor time so far.
    fn used(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = text[text.rfind(')').unwrap()..].split(' ').collect();
        let ticks = |i: usize| fields[i].parse::<f64>().unwrap();
        (ticks(12) + ticks(13)) / rustix::param::clock_ticks_per_second() as f64
    }
}

/// Starts one of them in front of an end of its own, and measures.
pub fn measure(between: Between, at: &Path, megabytes: usize) -> Cost {
    let at = folder(at);
    give(&at);
    let certs = Certs::make(&folder(&at.join("certs")));
    let end = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = end.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in end.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(stream));
        }
    });
    let (process, address) = start(between, &at, &certs, &server);
    let mut stream = connect(&certs, &address);
    let bytes = megabytes << 20;
    let mut timed = |work: &mut dyn FnMut(&mut Tls)| {
        let (began, used) = (Instant::now(), process.used());
        work(&mut stream);
        let scale = 1e9 / bytes as f64;
        let (seconds, used) = (began.elapsed().as_secs_f64(), process.used() - used);
        [seconds, used].map(|it| it * scale)
    };
    let chunk = vec![b'x'; CHUNK];
    let up = timed(&mut |stream| {
        stream
            .write_all(format!("TAKE {bytes}\n").as_bytes())
            .unwrap();
        for _ in 0..bytes / CHUNK {
            stream.write_all(&chunk).unwrap();
        }
        expect(stream, "OK");
    });
    let down = timed(&mut |stream| {
        stream
            .write_all(format!("GIVE {bytes}\n").as_bytes())
            .unwrap();
        stream.flush().unwrap();
        let mut buffer = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            left -= stream.read(&mut buffer[..CHUNK.min(left)]).unwrap();
        }
    });
    let rounds = 20_000;
    let (began, used) = (Instant::now(), process.used());
    for _ in 0..rounds {
        stream.write_all(b"NOOP\n").unwrap();
        expect(&mut stream, "OK");
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = (process.used() - used) * 10_000.0 / f64::from(rounds);
    Cost {
        up,
        down,
        commands: [f64::from(rounds) / seconds, used],
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn start(between: Between, at: &Path, certs: &Certs, server: &str) -> (Process, String) {
    let (cert, key, ca) = (
        certs.cert.display(),
        certs.key.display(),
        certs.ca.display(),
    );
    match between {
        Between::Syncmux => {
            let text = |listen: &str, admin: &str| {
                format!(
                    "[terminate]\nlisten = [\"{listen}\"]\nserver = \"{server}\"\n\
                     cert_file = \"{cert}\"\nkey_file = \"{key}\"\nclient_ca_file = \"{ca}\"\n\
                     tls = \"implicit\"\n[admin]\nlisten = \"{admin}\"\n"
                )
            };
            let mut mux = Mux::custom(&at.join("mux"), "terminate", false, text);
            mux.start();
            let address = mux.listen.clone();
            (Process::Mux(mux), address)
        }
        Between::Stunnel => {
            let port = Port::allocate();
            let address = port.address();
            let conf = at.join("stunnel.conf");
            let text = format!(
                "foreground = yes\npid =\n[csync]\naccept = {address}\nconnect = {server}\n\
                 cert = {cert}\nkey = {key}\nCAfile = {ca}\nverifyChain = yes\n"
            );
            write(&conf, text);
            drop(port);
            let log = std::fs::File::create(at.join("stunnel.log")).unwrap();
            let mut command = as_cyrus("stunnel4");
            command
                .arg(&conf)
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            let guard = Guard::spawn("stunnel4", &mut command);
            wait_for("stunnel to listen", || {
                TcpStream::connect(&address).ok().map(drop)
            });
            (Process::Stunnel(guard), address)
        }
    }
}

fn connect(certs: &Certs, address: &str) -> Tls {
    let files = ClientFiles {
        ca_file: Some(certs.ca.clone()),
        identity: Some((certs.client_cert.clone(), certs.client_key.clone())),
    };
    let config = Arc::new(client_config(&files).unwrap());
    let session = ClientConnection::new(config, server_name(SERVER_NAME).unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    while !line(&mut stream).starts_with("* OK") {}
    stream
}

fn expect(stream: &mut Tls, what: &str) {
    stream.flush().unwrap();
    assert_eq!(line(stream), what);
}

fn line(stream: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'\n' => return String::from_utf8(line).unwrap().trim_end().to_owned(),
            byte => line.push(byte),
        }
    }
}

/// The end behind: greets as a `sync_server` does, takes and gives bytes.
fn serve(stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut write = stream.try_clone().unwrap();
    let mut read = BufReader::with_capacity(CHUNK, stream);
    let _ = write.write_all(b"* SASL PLAIN\r\n* OK end Cyrus sync server 3.6.1\r\n");
    let chunk = vec![b'y'; CHUNK];
    let mut command = String::new();
    while read.read_line(&mut command).is_ok_and(|n| n > 0) {
        let mut words = command.split_whitespace();
        let verb = words.next().unwrap_or_default().to_owned();
        let bytes: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        command.clear();
        match verb.as_str() {
            "GIVE" => {
                for _ in 0..bytes / CHUNK as u64 {
                    write.write_all(&chunk).unwrap();
                }
            }
            verb => {
                if verb == "TAKE" {
                    std::io::copy(&mut read.by_ref().take(bytes), &mut std::io::sink()).unwrap();
                }
                write.write_all(b"OK\n").unwrap();
            }
        }
    }
}
