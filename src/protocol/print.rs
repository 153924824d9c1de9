//! What syncmux itself writes: strings as Cyrus prints them (`prot_printastring`), and the few
//! commands that are built here.

use bytes::Bytes;

use super::body::Body;
use super::command::{File, Guid};
use super::scan::LiteralForm;

/// `RESTART`: the replica forgets what was staged on this connection.
pub const RESTART: &str = "RESTART\r\n";
/// `NOOP`
pub const NOOP: &str = "NOOP\r\n";
/// `EXIT`: answered `OK Finished`, then the replica closes.
pub const EXIT: &str = "EXIT\r\n";
/// `APPLY FORCE %()`
pub const FORCE: &str = "APPLY FORCE %()\r\n";

/// A mailbox that no replica has: see [`placeholder`].
pub const PLACEHOLDER: &str = "syncmux.left-alone";

/// Strings of this length and more are literals (`MAXQSTRING`, `imparse_isatom`).
const MAX_QUOTED: usize = 1024;

/// Prints a string: an atom where it can be one, else quoted, else a literal. Escapes are never
/// written, as in Cyrus. What one version of Cyrus takes for an atom and another does not (0x1f)
/// is quoted.
pub fn astring(out: &mut Vec<u8>, text: &[u8], form: LiteralForm) {
    let special = |byte: &u8| !matches!(byte, 0x21..0x7f) || b"{()\"%*\\".contains(byte);
    let unquotable = |byte: &u8| *byte >= 0x80 || b"\r\n\"%\\\0".contains(byte);
    if text.len() < MAX_QUOTED && !text.is_empty() && !text.iter().any(special) && text != b"NIL" {
        out.extend_from_slice(text);
    } else if text.len() < MAX_QUOTED && !text.iter().any(unquotable) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        let plus = if form == LiteralForm::Plus { "+" } else { "" };
        out.extend_from_slice(format!("{{{}{plus}}}\r\n", text.len()).as_bytes());
        out.extend_from_slice(text);
    }
}

/// A list of strings in parentheses, for a replica.
fn list<'a>(out: &mut Vec<u8>, texts: impl IntoIterator<Item = &'a [u8]>) {
    out.push(b'(');
    for (nth, text) in texts.into_iter().enumerate() {
        if nth > 0 {
            out.push(b' ');
        }
        astring(out, text, LiteralForm::Plus);
    }
    out.push(b')');
}

fn guid(out: &mut Vec<u8>, guid: &Guid) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in guid.0 {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn guid_list(out: &mut Vec<u8>, guids: &[Guid]) {
    out.reserve(guids.len() * 41 + 2);
    out.push(b'(');
    for (nth, one) in guids.iter().enumerate() {
        if nth > 0 {
            out.push(b' ');
        }
        guid(out, one);
    }
    out.push(b')');
}

fn body(out: Vec<u8>) -> Body {
    Bytes::from(out).into()
}

/// `APPLY RESERVE %(PARTITION p MBOXNAME (name ...) GUID (guid ...))`
#[must_use]
pub fn reserve(partition: &[u8], mailboxes: &[Bytes], guids: &[Guid]) -> Body {
    let mut out = b"APPLY RESERVE %(PARTITION ".to_vec();
    astring(&mut out, partition, LiteralForm::Plus);
    out.extend_from_slice(b" MBOXNAME ");
    list(&mut out, mailboxes.iter().map(|name| &name[..]));
    out.extend_from_slice(b" GUID ");
    guid_list(&mut out, guids);
    out.extend_from_slice(b")\r\n");
    body(out)
}

/// `APPLY MESSAGE (%{partition guid size}` CR LF content ` ` ... `)`. Contents are shared, not
/// copied. The stock client sends at most 1,024 files in one.
#[must_use]
pub fn message<'a>(files: impl IntoIterator<Item = &'a File>) -> Body {
    let mut whole = Body::new();
    let mut before: &[u8] = b"APPLY MESSAGE (";
    let empty = [before, b")\r\n"].concat();
    for file in files {
        let mut header = Vec::with_capacity(128);
        header.extend_from_slice(before);
        before = b" ";
        header.extend_from_slice(b"%{");
        astring(&mut header, &file.partition, LiteralForm::Plus);
        header.push(b' ');
        guid(&mut header, &file.guid);
        header.extend_from_slice(format!(" {}}}\r\n", file.content.len()).as_bytes());
        whole.push(header.into());
        whole.append(file.content.clone());
    }
    if whole.is_empty() {
        return body(empty);
    }
    whole.push(Bytes::from_static(b")\r\n"));
    whole
}

/// `GET MAILBOXES (name ...)`
#[must_use]
pub fn get_mailboxes<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Body {
    let mut out = b"GET MAILBOXES ".to_vec();
    list(&mut out, names);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `GET USER name`
#[must_use]
pub fn get_user(user: &[u8]) -> Body {
    let mut out = b"GET USER ".to_vec();
    astring(&mut out, user, LiteralForm::Plus);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `GET FULLMAILBOX name`
#[must_use]
pub fn get_full_mailbox(name: &[u8]) -> Body {
    let mut out = b"GET FULLMAILBOX ".to_vec();
    astring(&mut out, name, LiteralForm::Plus);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `APPLY CAPABILITIES (name ...)`
#[must_use]
pub fn capabilities<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Body {
    let mut out = b"APPLY CAPABILITIES ".to_vec();
    list(&mut out, names);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `* ENABLED (name ...)`, for a client.
#[must_use]
pub fn enabled<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Body {
    let mut out = b"* ENABLED ".to_vec();
    list(&mut out, names);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `* MISSING (guid ...)`, for a client. A replica sends no line at all where nothing is missing.
#[must_use]
pub fn missing(guids: &[Guid]) -> Body {
    let mut out = b"* MISSING ".to_vec();
    guid_list(&mut out, guids);
    out.extend_from_slice(b"\r\n");
    body(out)
}

/// `* MAILBOX %(...)` of a mailbox that does not exist, for a client that is to believe that the
/// replica lacks all others. An answer without any line would make it upload every message
/// unasked (`sync_reserve_partition` in Cyrus's `sync_support.c`); with this one it asks first, by
/// RESERVE. The fields are those without which the client refuses a line (`sync_kl_parse`).
#[must_use]
pub fn placeholder() -> Body {
    let line = format!(
        "* MAILBOX %(UNIQUEID {PLACEHOLDER} MBOXNAME {PLACEHOLDER} LAST_UID 0 HIGHESTMODSEQ 1 \
         RECENTUID 0 RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 1 \
         PARTITION default ACL \"\" OPTIONS \"\")\r\n"
    );
    body(line.into_bytes())
}
