//! A small ManageSieve client.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::PATIENCE;
use super::imap::quote;

/// A connection, logged in.
#[derive(Debug)]
pub struct Sieve {
    stream: BufReader<TcpStream>,
}

impl Sieve {
    pub fn login(address: &str, user: &str, admin: &str, password: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut sieve = Self {
            stream: BufReader::new(stream),
        };
        sieve.answer("greeting");
        let proof = STANDARD.encode(format!("{user}\0{admin}\0{password}"));
        sieve.run(&format!("AUTHENTICATE \"PLAIN\" \"{proof}\""));
        sieve
    }

    pub fn put(&mut self, name: &str, script: &str) {
        self.run(&format!(
            "PUTSCRIPT {} {{{}+}}\r\n{script}",
            quote(name),
            script.len()
        ));
    }

    /// The empty name deactivates.
    pub fn activate(&mut self, name: &str) {
        self.run(&format!("SETACTIVE {}", quote(name)));
    }

    pub fn delete(&mut self, name: &str) {
        self.run(&format!("DELETESCRIPT {}", quote(name)));
    }

    /// Every script: its name (with ` ACTIVE` behind it) and its text.
    pub fn scripts(&mut self) -> BTreeMap<String, String> {
        let mut scripts = BTreeMap::new();
        for line in self.run("LISTSCRIPTS") {
            let name = line.split('"').nth(1).expect("a quoted name").to_owned();
            let text = self.run(&format!("GETSCRIPT {}", quote(&name))).join("\n");
            scripts.insert(line.replace('"', ""), text);
        }
        scripts
    }

    fn run(&mut self, command: &str) -> Vec<String> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .unwrap();
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let line = line.trim_end().to_owned();
            if line.starts_with("OK") {
                return lines;
            }
            let refused = ["NO", "BYE"].iter().any(|r| line.starts_with(r)) || line.is_empty();
            let shown = if command.starts_with("AUTH") {
                "AUTHENTICATE"
            } else {
                command
            };
            assert!(
                !refused,
                "timsieved answered {shown:?} with {line:?} {lines:?}"
            );
            match line.strip_prefix('{').and_then(|l| l.strip_suffix('}')) {
                Some(size) => {
                    let mut bytes = vec![0; size.trim_end_matches('+').parse().unwrap()];
                    self.stream.read_exact(&mut bytes).unwrap();
                    lines.push(String::from_utf8(bytes).unwrap());
                    self.stream.read_line(&mut String::new()).unwrap();
                }
                None => lines.push(line),
            }
        }
    }
}

impl Drop for Sieve {
    fn drop(&mut self) {
        // Debian's timsieved crashes when the connection just ends.
        let _ = self.stream.get_mut().write_all(b"LOGOUT\r\n");
        let _ = self.stream.read_line(&mut String::new());
    }
}
