//! Stand-in until the protocol module has these.

use std::fs::File;
use std::io;

use crate::protocol::Site;
use crate::protocol::synclog::{Coverage, Line};

pub(super) fn print(line: &Line, to: &mut Vec<u8>) -> Result<(), ()> {
    let (word, names): (&str, Vec<&[u8]>) = match line {
        Line::Mailbox(a) => ("MAILBOX", vec![a]),
        Line::User(a) => ("USER", vec![a]),
        Line::Meta(a) => ("META", vec![a]),
        Line::Seen(a, b) => ("SEEN", vec![a, b]),
        Line::Sub(a, b) => ("SUB", vec![a, b]),
        Line::Unmailbox(a) => ("UNMAILBOX", vec![a]),
        Line::Unuser(a) => ("UNUSER", vec![a]),
        Line::Quota(a) => ("QUOTA", vec![a]),
        Line::Annotation(a) => ("ANNOTATION", vec![a]),
    };
    if names
        .iter()
        .any(|name| name.iter().any(|byte| b"\r\n\0".contains(byte)))
    {
        return Err(());
    }
    to.extend_from_slice(word.as_bytes());
    for name in names {
        to.extend_from_slice(b" \"");
        for byte in name {
            if b"\\\"{}".contains(byte) {
                to.push(b'\\');
            }
            to.push(*byte);
        }
        to.push(b'"');
    }
    to.push(b'\n');
    Ok(())
}

pub(super) fn coverage(_file: &File, _site: &Site) -> io::Result<Coverage> {
    Ok(Coverage::default())
}
