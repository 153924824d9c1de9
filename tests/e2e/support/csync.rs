//! csync (or the same in IMAP) spoken by hand, for what no stock client says or shows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::PATIENCE;
use super::cyrus::{PASSWORD, REPL};

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection.
pub struct Csync {
    stream: BufReader<Box<dyn Stream>>,
    pub greeting: String,
}

impl Csync {
    /// To `host:port`; the greeting has been read.
    pub fn tcp(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::greeted(Box::new(stream))
    }

    pub fn unix(path: &Path) -> Self {
        let stream =
            UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::greeted(Box::new(stream))
    }

    /// Logged in as the replication client is.
    pub fn login(address: &str) -> Self {
        let mut csync = Self::tcp(address);
        let proof = STANDARD.encode(format!("\0{REPL}\0{PASSWORD}"));
        let answer = csync.ask(&format!("AUTHENTICATE PLAIN {proof}"));
        assert!(answer.starts_with("OK"), "{answer:?}");
        csync
    }

    fn greeted(stream: Box<dyn Stream>) -> Self {
        let mut csync = Self {
            stream: BufReader::new(stream),
            greeting: String::new(),
        };
        csync.greeting = csync.until(|line| line.starts_with("* OK"));
        csync
    }

    /// A part of a command.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// A command and everything that is said to it. Who greets in IMAP is spoken to in IMAP; the answer
    /// is without its tag.
    pub fn ask(&mut self, command: &str) -> String {
        let imap = self.greeting.starts_with("* OK [CAPABILITY ");
        let tag = match (imap, command.starts_with("AUTHENTICATE ")) {
            (false, _) => "",
            (true, true) => "T1 ",
            (true, false) => "T1 SYNC",
        };
        let command = format!("{tag}{command}\r\n");
        self.stream.get_mut().write_all(command.as_bytes()).unwrap();
        let tag = if imap { "T1 " } else { "" };
        let answer = self.until(|line| {
            ["OK", "NO", "BAD", "BYE"]
                .iter()
                .any(|s| line.starts_with(&format!("{tag}{s}")))
        });
        let last = answer.trim_end().rfind('\n').map_or(0, |end| end + 1);
        let (before, status) = answer.split_at(last);
        format!("{before}{}", status.strip_prefix(tag).unwrap())
    }

    fn until(&mut self, is_last: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        loop {
            let from = text.len();
            let read = self.stream.read_line(&mut text).unwrap();
            assert!(read > 0, "closed after {text:?}");
            if is_last(&text[from..]) {
                return text;
            }
        }
    }
}
