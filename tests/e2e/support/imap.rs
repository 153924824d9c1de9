//! A small IMAP client: enough to make work on the master and to read everything back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::PATIENCE;

/// A piece of a command.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    Text(&'a str),
    /// Sent as a literal.
    Literal(&'a [u8]),
}

/// One untagged response. A literal in it is replaced by `{size:hash}`, so that responses can be
/// compared and printed whatever they hold.
pub type Line = String;

/// A connection, logged in.
#[derive(Debug)]
pub struct Imap {
    stream: BufReader<TcpStream>,
    tag: u32,
    /// The bytes of the last command's literals, kept when they are small.
    pub literals: Vec<Vec<u8>>,
}

/// A string as IMAP wants it: quoted.
pub fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A message of about `size` bytes that differs from every other by `id`.
pub fn message(id: &str, size: usize) -> Vec<u8> {
    let mut text = format!(
        "From: <sender@example.com>\r\nTo: <to@example.com>\r\nSubject: {id}\r\n\
         Message-ID: <{id}@example.com>\r\nDate: Tue, 24 Nov 2026 08:00:00 +0000\r\n\r\n"
    )
    .into_bytes();
    let line = format!("{id} the quick brown fox jumps over the lazy dog 0123456789\r\n");
    while text.len() + line.len() <= size {
        text.extend_from_slice(line.as_bytes());
    }
    text
}

impl Imap {
    pub fn login(address: &str, user: &str, admin: &str, password: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut imap = Self {
            stream: BufReader::new(stream),
            tag: 0,
            literals: Vec::new(),
        };
        let greeting = imap.line();
        assert!(
            greeting.starts_with("* OK"),
            "greeting of {address}: {greeting}"
        );
        let proof = if user == admin {
            format!("\0{admin}\0{password}")
        } else {
            format!("{user}\0{admin}\0{password}")
        };
        imap.run(&format!("AUTHENTICATE PLAIN {}", STANDARD.encode(proof)));
        imap
    }

    /// Runs a command; panics unless it is answered OK.
    pub fn run(&mut self, command: &str) -> Vec<Line> {
        self.send(&[Part::Text(command)])
    }

    /// Runs a command and answers what the server said to it: `OK`, `NO ...`.
    pub fn attempt(&mut self, parts: &[Part<'_>]) -> (Vec<Line>, String) {
        self.tag += 1;
        self.literals.clear();
        let tag = format!("a{}", self.tag);
        let mut out = format!("{tag} ").into_bytes();
        for part in parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Literal(bytes) => {
                    // Not "{n+}": Cyrus limits those.
                    out.extend_from_slice(format!("{{{}}}\r\n", bytes.len()).as_bytes());
                    self.stream.get_mut().write_all(&out).unwrap();
                    let go = self.line();
                    if !go.starts_with('+') {
                        let refusal = go.strip_prefix(&format!("{tag} ")).unwrap_or(&go);
                        return (Vec::new(), refusal.to_owned());
                    }
                    out = bytes.to_vec();
                }
            }
        }
        out.extend_from_slice(b"\r\n");
        self.stream.get_mut().write_all(&out).unwrap();
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if let Some(answer) = line.strip_prefix(&format!("{tag} ")) {
                return (lines, answer.to_owned());
            }
            let head = out.get(..out.len().min(80)).unwrap_or_default();
            let head = String::from_utf8_lossy(head);
            assert!(
                !line.starts_with("* BYE"),
                "the server said {line} to {head} of {parts:?}"
            );
            lines.push(line);
        }
    }

    pub fn send(&mut self, parts: &[Part<'_>]) -> Vec<Line> {
        let (lines, answer) = self.attempt(parts);
        if !answer.starts_with("OK") {
            let command = match parts.first() {
                Some(Part::Text(text)) if !text.starts_with("AUTH") => text,
                _ => "the command",
            };
            panic!("{command:?} was answered {answer:?} {lines:?}");
        }
        lines
    }

    pub fn create(&mut self, mailbox: &str) {
        self.run(&format!("CREATE {}", quote(mailbox)));
    }

    pub fn delete(&mut self, mailbox: &str) {
        self.run(&format!("DELETE {}", quote(mailbox)));
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        self.run(&format!("RENAME {} {}", quote(from), quote(to)));
    }

    pub fn set_acl(&mut self, mailbox: &str, who: &str, rights: &str) {
        self.run(&format!(
            "SETACL {} {} {}",
            quote(mailbox),
            quote(who),
            quote(rights)
        ));
    }

    pub fn append(&mut self, mailbox: &str, flags: &str, message: &[u8]) {
        let head = format!("APPEND {} ({flags}) ", quote(mailbox));
        self.send(&[Part::Text(&head), Part::Literal(message)]);
    }

    /// Many messages in one command (MULTIAPPEND).
    pub fn append_many(&mut self, mailbox: &str, messages: &[Vec<u8>]) {
        let head = format!("APPEND {}", quote(mailbox));
        let mut parts = vec![Part::Text(&head)];
        for message in messages {
            parts.extend([Part::Text(" "), Part::Literal(message)]);
        }
        self.send(&parts);
    }

    pub fn select(&mut self, mailbox: &str) {
        self.run(&format!("SELECT {}", quote(mailbox)));
    }

    pub fn examine(&mut self, mailbox: &str) -> Vec<Line> {
        self.run(&format!("EXAMINE {}", quote(mailbox)))
    }

    /// `what` is for instance `+FLAGS (\Seen)`.
    pub fn store(&mut self, sequence: &str, what: &str) {
        self.run(&format!("STORE {sequence} {what}"));
    }

    pub fn expunge(&mut self) {
        self.run("EXPUNGE");
    }

    pub fn copy(&mut self, sequence: &str, to: &str) {
        self.run(&format!("COPY {sequence} {}", quote(to)));
    }

    pub fn move_to(&mut self, sequence: &str, to: &str) {
        self.run(&format!("MOVE {sequence} {}", quote(to)));
    }

    pub fn subscribe(&mut self, mailbox: &str) {
        self.run(&format!("SUBSCRIBE {}", quote(mailbox)));
    }

    pub fn unsubscribe(&mut self, mailbox: &str) {
        self.run(&format!("UNSUBSCRIBE {}", quote(mailbox)));
    }

    /// `limits` is for instance `STORAGE 1000 MESSAGE 50`.
    pub fn set_quota(&mut self, root: &str, limits: &str) {
        self.run(&format!("SETQUOTA {} ({limits})", quote(root)));
    }

    /// Sets an entry of a mailbox, or of the server where `mailbox` is empty; NIL where `None`.
    pub fn set_metadata(&mut self, mailbox: &str, entry: &str, value: Option<&[u8]>) {
        let head = format!("SETMETADATA {} ({entry} ", quote(mailbox));
        match value {
            Some(value) => {
                self.send(&[Part::Text(&head), Part::Literal(value), Part::Text(")")]);
            }
            None => {
                self.run(&format!("{head}NIL)"));
            }
        }
    }

    pub fn set_message_annotation(&mut self, sequence: &str, entry: &str, value: &str) {
        self.run(&format!(
            "STORE {sequence} ANNOTATION ({entry} (value.shared {}))",
            quote(value)
        ));
    }

    /// The names that LIST shows, without the server's escapes.
    pub fn list_names(&mut self, pattern: &str) -> Vec<String> {
        let lines = self.run(&format!("LIST \"\" {}", quote(pattern)));
        let literals = std::mem::take(&mut self.literals);
        let mut literals = literals.into_iter();
        let mut names = Vec::new();
        for line in lines
            .iter()
            .filter(|l| l.starts_with("* LIST") && !l.contains("\\Noselect"))
        {
            if line.ends_with('}') && line.contains(" {") {
                names.push(String::from_utf8(literals.next().unwrap()).unwrap());
                continue;
            }
            let (_, rest) = line.split_once(") ").unwrap();
            let name = rest.split_once(' ').unwrap().1;
            names.push(
                match name.strip_prefix('"').and_then(|n| n.strip_suffix('"')) {
                    Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
                    None => name.to_owned(),
                },
            );
        }
        names
    }

    /// One response line with its literals taken out.
    fn line(&mut self) -> Line {
        let mut line = String::new();
        loop {
            let mut part = Vec::new();
            // Cyrus writes with Nagle on: an answer in two pieces would wait for a delayed ACK.
            let _ = rustix::net::sockopt::set_tcp_quickack(self.stream.get_ref(), true);
            self.stream.read_until(b'\n', &mut part).unwrap();
            assert!(
                part.ends_with(b"\n"),
                "the server closed the connection after {line:?}"
            );
            while part.last().is_some_and(|b| matches!(b, b'\r' | b'\n')) {
                part.pop();
            }
            line.push_str(&String::from_utf8_lossy(&part));
            let Some(size) = literal_size(&part) else {
                return line;
            };
            let mut bytes = vec![0; size];
            self.stream.read_exact(&mut bytes).unwrap();
            line.truncate(line.rfind('{').unwrap());
            line.push_str(&format!("{{{size}:{:016x}}}", hash(&bytes)));
            if size <= 64 << 10 {
                self.literals.push(bytes);
            }
        }
    }
}

fn literal_size(line: &[u8]) -> Option<usize> {
    let text = line.strip_suffix(b"}")?;
    let open = text.iter().rposition(|b| *b == b'{')?;
    std::str::from_utf8(&text[open + 1..])
        .ok()?
        .trim_end_matches('+')
        .parse()
        .ok()
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
