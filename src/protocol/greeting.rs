//! What a `sync_server` says first (`dobanner` in Cyrus's `sync_server.c`), and what imapd tells of
//! itself in its greeting, with its OK to a login, and when it is asked (`capa_response` in
//! `imapd.c`; `imap_csync_protocol` in `sync_support.c` is what the stock client looks for).

use bytes::Bytes;

use super::reply::{StatusKind, Untagged};
use super::reply_reader::Line;

/// What is offered to a replication client, with the names that it has in csync and in IMAP.
const OFFERS: [(&str, &str); 2] = [
    ("SIEVE-MAILBOX", "X-SIEVE-MAILBOX"),
    ("REPLICATION-ARCHIVE", "X-REPLICATION-ARCHIVE"),
];

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
    /// In IMAP: `X-REPLICATION`, which imapd shows after a login.
    pub replication: bool,
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
            b"OK" if greets_as_imapd(untagged) => return Err("an imapd".into()),
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

    /// Takes imapd's first line, and whether it tells of capabilities.
    ///
    /// # Errors
    /// In words, where this is not how imapd greets.
    pub fn read_imap(&mut self, line: &Line) -> Result<bool, String> {
        let untagged = match line {
            Line::Untagged(untagged)
                if &untagged.kind[..] == b"OK" && !greets_as_sync_server(untagged) =>
            {
                untagged
            }
            Line::Untagged(untagged) => {
                let raw = untagged.raw.to_vec().unwrap_or_default();
                return Err(String::from_utf8_lossy(&raw).into());
            }
            Line::Status(status) => return Err(String::from_utf8_lossy(&status.line()).into()),
            Line::Continuation(_) => return Err("+ where a greeting was expected".into()),
        };
        let raw = untagged.raw.to_vec().unwrap_or_default();
        let text = raw.strip_prefix(b"* OK ").unwrap_or(&raw).trim_ascii_end();
        // Some of it is repeated to clients.
        if text.iter().any(u8::is_ascii_control) {
            return Err("a greeting with control characters".into());
        }
        let (capabilities, text) = code(text);
        self.text = Bytes::copy_from_slice(text);
        Ok(capabilities.is_some_and(|words| self.take_capabilities(words)))
    }

    /// Takes what the text of a tagged OK tells of capabilities, if it does.
    pub fn read_code(&mut self, text: &[u8]) -> bool {
        let (capabilities, _) = code(text);
        capabilities.is_some_and(|words| self.take_capabilities(words))
    }

    /// Takes `* CAPABILITY ...`; any other line is passed over.
    pub fn read_capability(&mut self, line: &Untagged) {
        if &line.kind[..] == b"CAPABILITY" {
            self.take_capabilities(&line.words.join(&b' '));
        }
    }

    /// They come all at once, and replace what was known. True.
    fn take_capabilities(&mut self, words: &[u8]) -> bool {
        let (mut mechanisms, mut capabilities) = (Vec::new(), Vec::new());
        (self.starttls, self.compress, self.replication) = (false, false, false);
        for word in words.split(|&byte| byte == b' ') {
            // They are shown to people.
            if word.iter().any(u8::is_ascii_control) {
                continue;
            }
            let word = String::from_utf8_lossy(word).to_ascii_uppercase();
            match &word[..] {
                "STARTTLS" => self.starttls = true,
                "COMPRESS=DEFLATE" => self.compress = true,
                "X-REPLICATION" => self.replication = true,
                other => {
                    mechanisms.extend(other.strip_prefix("AUTH=").map(str::to_owned));
                    let offer = OFFERS.iter().find(|(_, imap)| *imap == other);
                    capabilities.extend(offer.map(|(csync, _)| Bytes::from(*csync)));
                }
            }
        }
        (self.mechanisms, self.capabilities) = (mechanisms, capabilities);
        true
    }

    /// The capabilities in IMAP for a client that has not logged in.
    #[must_use]
    pub fn imap_before_login<S: AsRef<str>>(mechanisms: &[S], starttls: bool) -> String {
        let mut words = format!("{IMAP}{}", if starttls { " STARTTLS" } else { "" });
        // There is no LOGIN, which passwords of mail clients would come by.
        words.push_str(" LOGINDISABLED");
        for mechanism in mechanisms {
            words.push_str(" AUTH=");
            words.push_str(mechanism.as_ref());
        }
        // As in imapd, only where there is a mechanism.
        if !mechanisms.is_empty() {
            words.push_str(" SASL-IR");
        }
        words
    }

    /// The capabilities in IMAP for a client that has logged in. Never COMPRESS, as in
    /// [`Self::render`].
    #[must_use]
    pub fn imap_after_login(&self) -> String {
        let mut words = format!("{IMAP} LOGINDISABLED X-REPLICATION");
        for (csync, imap) in OFFERS {
            if self.has(csync) {
                words.push(' ');
                words.push_str(imap);
            }
        }
        words
    }
}

/// What every IMAP server has, and the literals that replication needs.
const IMAP: &str = "IMAP4rev1 LITERAL+ ID";

/// Whether this line of a greeting is imapd's, which tells of its capabilities in it (`dobanner` in
/// `imapd.c`).
#[must_use]
pub fn greets_as_imapd(line: &Untagged) -> bool {
    let text = line.words.first();
    &line.kind[..] == b"OK" && text.is_some_and(|word| word.eq_ignore_ascii_case(b"[CAPABILITY"))
}

/// Whether this line of a greeting is a `sync_server`'s.
#[must_use]
pub fn greets_as_sync_server(line: &Untagged) -> bool {
    let is_named = || {
        let mut pairs = line.words.windows(2);
        pairs.any(|pair| pair[0] == "sync" && pair[1] == "server")
    };
    match &line.kind[..] {
        b"SASL" | b"STARTTLS" | b"COMPRESS" => true,
        // A server may be called `sync`.
        b"OK" => !greets_as_imapd(line) && is_named(),
        kind => OFFERS.iter().any(|(csync, _)| kind == csync.as_bytes()),
    }
}

/// The words of a code `[CAPABILITY ...]` at the beginning of a text, and what is behind it.
fn code(text: &[u8]) -> (Option<&[u8]>, &[u8]) {
    const BEGIN: &[u8] = b"[CAPABILITY ";
    let begins = text.get(..BEGIN.len());
    if begins.is_none_or(|begin| !begin.eq_ignore_ascii_case(BEGIN)) {
        return (None, text);
    }
    match memchr::memchr(b']', text) {
        Some(end) => (
            Some(&text[BEGIN.len()..end]),
            text[end + 1..].trim_ascii_start(),
        ),
        None => (None, text),
    }
}
