//! What must hold of whatever is said to a client and on a lane, in either dialect.

use bytes::Bytes;
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::{Body, CommandReader, Dialect, Kind, ReplyReader};

use super::limits;

/// What a client is given is lines of an answer and a status at the end, however the replica put it.
pub(super) fn one_answer(body: &Body) {
    let mut input = Bytes::from(body.to_vec().expect("in memory"));
    let mut reader = ReplyReader::new(limits(false));
    loop {
        match reader.feed(&mut input) {
            Ok(Some(Line::Untagged(_))) => {}
            Ok(Some(Line::Status(_))) => return assert!(input.is_empty(), "two answers"),
            other => panic!("{other:?} in {body:?}"),
        }
    }
}

/// In IMAP it is the same, with the tag before its last line and nowhere else.
pub(super) fn tagged_answer(tag: &[u8], body: &Body) {
    let plain = body.to_vec().expect("in memory");
    let tagged = Dialect::Imap.answer(tag, body.clone());
    let tagged = tagged.to_vec().expect("in memory");
    let last = plain[..plain.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n');
    let (before, last) = plain.split_at(last.map_or(0, |at| at + 1));
    assert_eq!(tagged, [before, tag, b" ", last].concat(), "{body:?}");
}

/// In IMAP it is two lines, of which the second has the tag.
pub(super) fn last_words(tag: &[u8], body: &Body) {
    let words = body.to_vec().expect("in memory");
    let words = String::from_utf8(words).expect("words");
    let said = Dialect::Imap.last_words(words.trim_ascii_end(), tag);
    let said = said.to_vec().expect("in memory");
    let mut lines = said.split_inclusive(|byte| *byte == b'\n');
    let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(first.starts_with(b"* BYE ") && first.ends_with(b"\r\n"));
    assert!(second.starts_with(&[tag, b" "].concat()) && second.ends_with(b"\r\n"));
    assert_eq!(lines.next(), None);
}

/// In IMAP it is the same command behind its tag.
pub(super) fn one_request(nth: u64, body: &Body) {
    let request = Dialect::Imap.request(nth, body.clone());
    let mut input = Bytes::from(request.to_vec().expect("in memory"));
    let mut reader = CommandReader::new(limits(false)).speaking(Dialect::Imap);
    reader.set_authenticated(true);
    let command = reader.feed(&mut input).expect("a command");
    let command = command.expect("a whole command");
    assert!(!matches!(command.kind, Kind::Bad { .. }), "{body:?}");
    assert!(input.is_empty(), "two commands in {body:?}");
    assert_eq!(reader.tag(), format!("S{nth}").as_bytes());
}

/// What a lane is sent is one command, however the client put it.
pub(super) fn one_command(body: &Body) {
    let mut input = Bytes::from(body.to_vec().expect("in memory"));
    let mut reader = CommandReader::new(limits(false));
    reader.set_authenticated(true);
    let command = reader.feed(&mut input);
    let command = command.expect("a command").expect("a whole command");
    assert!(!matches!(command.kind, Kind::Bad { .. }), "{body:?}");
    assert!(input.is_empty(), "two commands in {body:?}");
}
