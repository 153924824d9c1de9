//! A replica's bytes: however they are cut and spilled they are read as the same lines, and no
//! more is held than they justify.

use bytes::Bytes;
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::{Dialect, Greeting, ReplyReader, dlist};

use super::{SpillFile, check, limits, pieces, split};

const SMALL: u8 = 2;
pub const IMAP: u8 = 4;

pub fn run(data: &[u8]) {
    let Some((flags, seed, bytes)) = split(data) else {
        return;
    };
    let whole = read(bytes, 0, flags, false);
    assert_eq!(
        whole,
        read(bytes, seed + 1, flags, false),
        "the cuts matter"
    );
    assert_eq!(
        whole,
        read(bytes, seed + 2, flags, true),
        "spilling matters"
    );
    if let Some(greeting) = greeting(bytes) {
        // What clients are told is no more and no less than what the replica said.
        let again = self::greeting(&greeting.render(&greeting.mechanisms, greeting.starttls));
        let expected = Greeting {
            compress: false,
            ..greeting
        };
        assert_eq!(again, Some(expected));
    }
}

/// A greeting that is complete.
fn greeting(bytes: &[u8]) -> Option<Greeting> {
    let mut input = Bytes::copy_from_slice(bytes);
    let mut reader = ReplyReader::new(limits(false));
    let mut greeting = Greeting::default();
    while let Some(line) = reader.feed(&mut input).ok()? {
        if greeting.read(&line).ok()? {
            return Some(greeting);
        }
    }
    None
}

pub fn read(bytes: &[u8], seed: u64, flags: u8, spill: bool) -> Vec<String> {
    let dialect = match flags & IMAP {
        0 => Dialect::Csync,
        _ => Dialect::Imap,
    };
    let mut reader = ReplyReader::new(limits(flags & SMALL != 0)).speaking(dialect);
    let mut file = SpillFile::default();
    let mut out = Vec::new();
    let mut fed = 0;
    for (nth, mut piece) in pieces(bytes, seed).into_iter().enumerate() {
        fed += piece.len() as u64;
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(Line::Untagged(line))) => {
                    let raw = file.read(&line.raw);
                    let tree = raw.strip_prefix(b"* ");
                    let tree = tree.and_then(|line| dlist::parse(line.to_vec().into()));
                    if let (Some((_, tree)), Some(name)) = (tree, &line.mailbox) {
                        // Both read the same; a tree keeps what follows a NUL.
                        let text = tree.text("MBOXNAME").expect("a name");
                        assert!(text.starts_with(name), "{text:?} is not {name:?}");
                    }
                    let rest = (&line.kind, &line.mailbox, &line.uniqueid, &line.guids);
                    out.push(format!("{rest:?} {:?} {raw:?}", line.words));
                }
                Ok(Some(Line::Status(status))) => {
                    let token = status.token().map(<[u8]>::to_vec);
                    let line = status.line();
                    out.push(format!("{status:?} {token:?} {line:?}"));
                }
                Ok(Some(line)) => out.push(format!("{line:?}")),
                Ok(None) => break,
                Err(fatal) => {
                    assert!(reader.feed(&mut piece).is_err(), "it goes on");
                    out.push(format!("fatal {}", fatal.why));
                    return out;
                }
            }
        }
        let (held, spillable) = (reader.held(), reader.spillable());
        check(&piece, held, spillable, reader.scanned_bytes(), fed);
        if spill && nth % 3 == 1 {
            reader.spill(&mut |run| file.write(run)).unwrap();
            assert_eq!(reader.spillable(), 0);
        }
    }
    out
}
