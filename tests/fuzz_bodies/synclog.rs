//! A sync log: however it is cut it is read as the same items; what they owe is printed and read
//! back as the same lines, and covered.

use bytes::Bytes;
use syncmux::protocol::Site;
use syncmux::protocol::synclog::{Coverage, Item, ItemKind, Line, LineReader};

use super::{pieces, split};

pub fn run(data: &[u8]) {
    let Some((_, seed, bytes)) = split(data) else {
        return;
    };
    let (items, torn) = read(bytes, 0);
    assert_eq!(
        (&items, &torn),
        (&read(bytes, seed + 1).0, &read(bytes, seed + 2).1)
    );
    let site = Site::default();
    let mut coverage = Coverage::default();
    for item in &items {
        coverage.add(item, &site);
    }
    for item in &items {
        let mut out = Vec::new();
        if item.print(&mut out).is_ok() && item.kind != ItemKind::Other {
            assert_eq!(read(&out, 0), (vec![item.clone()], None), "an item");
        }
        for line in item.lines() {
            comes_back(&line);
            if let Line::Mailbox(name) = &line {
                let owner = site.key_of_mailbox(name);
                assert!(coverage.covers_mailbox(name, &owner), "{line:?}");
            }
        }
    }
    // Any two names make a line that can be read, or none.
    let middle = bytes.len() / 2;
    let (a, b) = (&bytes[..middle], &bytes[middle..]);
    let name = Bytes::copy_from_slice;
    comes_back(&Line::Sub(name(a), name(b)));
    comes_back(&Line::Mailbox(name(a)));
    comes_back(&Line::Seen(name(b), name(a)));
}

fn comes_back(line: &Line) {
    let mut out = b"MAILBOX before\n".to_vec();
    if line.print(&mut out).is_err() {
        assert_eq!(out, b"MAILBOX before\n");
        return;
    }
    out.extend_from_slice(b"MAILBOX after\n");
    let (items, torn) = read(&out, 0);
    assert_eq!(torn, None);
    assert_eq!(items.len(), 3, "one line");
    assert_eq!(items[1].lines(), std::slice::from_ref(line));
}

/// The items, and where it is torn.
pub fn read(bytes: &[u8], seed: u64) -> (Vec<Item>, Option<u64>) {
    let mut reader = LineReader::new();
    let mut items = Vec::new();
    for mut piece in pieces(bytes, seed) {
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(torn) => return (items, Some(torn.line)),
            }
        }
        assert!(piece.is_empty());
    }
    (items, None)
}
