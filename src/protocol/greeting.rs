//! What a `sync_server` says first (`dobanner` in Cyrus's `sync_server.c`).

use bytes::Bytes;

use super::reply::StatusKind;
use super::reply_reader::Line;

/// A replica's greeting, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// Of `* SASL PLAIN SCRAM-SHA-256`.
    pub mechanisms: Vec<String>,
    /// `* STARTTLS`
    pub starttls: bool,
    /// `* COMPRESS DEFLATE`
    pub compress: bool,
    /// Every other capability line in order, without `* `: `SIEVE-MAILBOX`, `REPLICATION-ARCHIVE`.
    pub capabilities: Vec<Bytes>,
    /// The text of the last line after `* OK `: `NAME Cyrus sync server VERSION`.
    pub text: Bytes,
}

impl Greeting {
    /// Takes the next line of a connection that has just been opened (or upgraded by STARTTLS);
    /// true when the greeting is complete.
    ///
    /// # Errors
    /// In words, where the line does not belong to a greeting.
    pub fn read(&mut self, line: &Line) -> Result<bool, String> {
        let untagged = match line {
            Line::Untagged(untagged) => untagged,
            Line::Status(status) if status.kind == StatusKind::Ok => {
                return Err("OK where a greeting was expected".into());
            }
            Line::Status(status) => return Err(String::from_utf8_lossy(&status.line()).into()),
            Line::Continuation(_) => return Err("+ where a greeting was expected".into()),
        };
        let raw = untagged.raw.to_vec().unwrap_or_default();
        let text = raw.strip_prefix(b"* ").unwrap_or(&raw);
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        // It is repeated to clients, who would take a line end in it (in a literal) for a line, and
        // might take what is no STARTTLS here for one.
        if text.iter().any(u8::is_ascii_control) {
            return Err("a greeting with control characters".into());
        }
        match &untagged.kind[..] {
            b"OK" => {
                self.text = Bytes::copy_from_slice(text.get(3..).unwrap_or_default());
                return Ok(true);
            }
            b"SASL" => {
                let words = untagged.words.iter();
                self.mechanisms = words
                    .map(|word| String::from_utf8_lossy(word).to_ascii_uppercase())
                    .collect();
            }
            b"STARTTLS" => self.starttls = true,
            b"COMPRESS" => self.compress = true,
            b"FATAL" | b"BAD" | b"NO" => return Err(String::from_utf8_lossy(text).into()),
            _ => self.capabilities.push(Bytes::copy_from_slice(text)),
        }
        Ok(false)
    }

    /// Whether this capability line is in it: `SIEVE-MAILBOX`.
    #[must_use]
    pub fn has(&self, capability: &str) -> bool {
        let mut lines = self.capabilities.iter();
        lines.any(|line| line.eq_ignore_ascii_case(capability.as_bytes()))
    }

    /// The greeting for a client, in the order of `dobanner`: these mechanisms (none: no SASL
    /// line), STARTTLS where asked for, the replica's other capabilities, the replica's text.
    /// Never COMPRESS: the stock client uses it wherever it is offered (protocol.md 15).
    #[must_use]
    pub fn render<S: AsRef<str>>(&self, mechanisms: &[S], starttls: bool) -> Bytes {
        let mut out = Vec::new();
        if !mechanisms.is_empty() {
            out.extend_from_slice(b"* SASL");
            for mechanism in mechanisms {
                out.push(b' ');
                out.extend_from_slice(mechanism.as_ref().as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        }
        if starttls {
            out.extend_from_slice(b"* STARTTLS\r\n");
        }
        for capability in &self.capabilities {
            out.extend_from_slice(b"* ");
            out.extend_from_slice(capability);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"* OK ");
        out.extend_from_slice(&self.text);
        out.extend_from_slice(b"\r\n");
        out.into()
    }
}
