//! Raw lines of a sync log, by what Cyrus's reader does with them (`sync_log_reader_getitem` in
//! `sync_log.c`, `getxstring` and `eatline` in `imapparse.c`).
//!
//! That reader takes anything wrong inside a name for the end of the file and forgets all lines
//! behind it. So one torn line can cost everybody's, and what goes into `log` is looked at first.

use std::io::{self, BufRead};

/// Longer lines are not Cyrus's: a name has at most 1,024 bytes, and there are two.
const LONGEST: usize = 64 << 10;

/// What Cyrus's reader does with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Reads it, or skips over it and goes on.
    Harmless,
    /// Takes it for the end of the file, or takes the next line for a part of it.
    Poison,
}

/// Where a line broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// These bytes make it a line that does no harm.
    Mend(&'static [u8]),
    /// Nothing does: it must be cut off.
    Cut,
}

/// Looks at a line without its newline.
pub(super) fn shape(line: &[u8]) -> Shape {
    match walk(line) {
        End::Clean => Shape::Harmless,
        _ => Shape::Poison,
    }
}

/// Looks at the last line of a file that does not end in a newline.
pub(super) fn tail(line: &[u8]) -> Tail {
    match walk(line) {
        End::Clean => Tail::Mend(b"\n"),
        End::InQuotes => Tail::Mend(b"\"\n"),
        End::AfterBackslash => Tail::Mend(b"\\\"\n"),
        End::Poison => Tail::Cut,
    }
}

enum End {
    Clean,
    InQuotes,
    AfterBackslash,
    Poison,
}

fn walk(line: &[u8]) -> End {
    if line.len() > LONGEST {
        return End::Poison;
    }
    let ends_word = |byte: &u8| byte.is_ascii_whitespace() || b"()\"\x0b".contains(byte);
    let word = line.iter().position(ends_word).unwrap_or(line.len());
    let mut rest = &line[word..];
    for _ in 0..2 {
        let Some(after) = rest.strip_prefix(b" ") else {
            break;
        };
        rest = match after.first() {
            None | Some(b' ' | b'(' | b')' | b'\r' | b'{') => return End::Poison,
            Some(b'"') => match quoted(&after[1..]) {
                Ok(rest) => rest,
                Err(end) => return end,
            },
            Some(_) => {
                let end = after.iter().position(ends_word).unwrap_or(after.len());
                &after[end..]
            }
        };
    }
    // What is left over is garbage, and skipped; but a literal at its end would be skipped over
    // as well, into the next lines. Cyrus writes none, and quotes every name with a brace.
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    if rest.ends_with(b"+}") {
        End::Poison
    } else {
        End::Clean
    }
}

/// What stands behind the closing quote.
fn quoted(text: &[u8]) -> Result<&[u8], End> {
    let mut bytes = text.iter().enumerate();
    while let Some((i, byte)) = bytes.next() {
        match byte {
            b'"' => return Ok(&text[i + 1..]),
            b'\r' => return Err(End::Poison),
            b'\\' if bytes.next().is_none() => return Err(End::AfterBackslash),
            _ => {}
        }
    }
    Err(End::InQuotes)
}

/// Calls `take` with each line, without newline, with what Cyrus's reader does with it, and with its
/// bytes in the file, newline included. Lines that are too long are not collected: they come empty,
/// as [`Shape::Poison`].
pub(super) fn each_line(
    mut from: impl BufRead,
    mut take: impl FnMut(&[u8], Shape, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut len = 0;
    loop {
        let chunk = match from.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            chunk => chunk?,
        };
        if chunk.is_empty() {
            break;
        }
        let newline = memchr::memchr(b'\n', chunk);
        let piece = &chunk[..newline.unwrap_or(chunk.len())];
        too_long |= line.len() + piece.len() > LONGEST;
        if too_long {
            line.clear();
        } else {
            line.extend_from_slice(piece);
        }
        let used = piece.len() + usize::from(newline.is_some());
        from.consume(used);
        len += used as u64;
        if newline.is_some() {
            let shape = if too_long {
                Shape::Poison
            } else {
                shape(&line)
            };
            take(&line, shape, std::mem::take(&mut len))?;
            line.clear();
            too_long = false;
        }
    }
    // The reader sees the end of the file inside this one and forgets it. But a last line that
    // lacks nothing else is worth reading.
    if !line.is_empty() {
        take(&line, shape(&line), len)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn shapes() {
        for line in [
            &b"MAILBOX user.joe"[..],
            b"MAILBOX \"user.joe.a b\\\"c\"",
            b"SEEN joe 1234-5",
            b"SUB joe \"user.joe.x y\"\r",
            b"",
            b"\r",
            b"rubbish",
            b"MAILBOX \"a\" \"b\" c {7}",
            b"MAILBOX \xff\xfe",
            b"MAILBOX a\"b",
            b"MAILBOX a+}",
            b"MAILBOX a(b",
        ] {
            assert_eq!(shape(line), Shape::Harmless, "{}", line.escape_ascii());
        }
        for line in [
            &b"MAILBOX \"user.joe"[..],
            b"MAILBOX ",
            b"MAILBOX  user.joe",
            b"SEEN joe ",
            b"MAILBOX (a",
            b"MAILBOX {3}",
            b"rubbish {10+}",
            b"MAILBOX a b {10+}",
            b"rubbish\t{10+}\r",
            b"MAILBOX \"a\\",
        ] {
            assert_eq!(shape(line), Shape::Poison, "{}", line.escape_ascii());
        }
        assert_eq!(shape(&[b'a'; LONGEST + 1]), Shape::Poison);
    }

    #[test]
    fn mended_tails_do_no_harm() {
        for torn in [
            "MAIL",
            "MAILBOX user.j",
            "MAILBOX \"user.j",
            "MAILBOX \"a\\",
            "SEEN \"a\" \"b",
        ] {
            let Tail::Mend(with) = tail(torn.as_bytes()) else {
                panic!("{torn}")
            };
            let whole = [torn.as_bytes(), with].concat();
            let line = whole.strip_suffix(b"\n").unwrap();
            assert_eq!(shape(line), Shape::Harmless, "{torn}");
        }
        for torn in ["MAILBOX ", "SEEN joe ", "MAILBOX {5"] {
            assert_eq!(tail(torn.as_bytes()), Tail::Cut, "{torn}");
        }
    }

    #[test]
    fn lines_in_pieces() {
        let text = [
            b"MAILBOX a\n\nMAILBOX \"b\n".to_vec(),
            vec![b'x'; LONGEST * 2],
        ]
        .concat();
        let text = [text, b"\nMAILBOX c".to_vec()].concat();
        for size in [1, 7, 4096] {
            let mut found = Vec::new();
            let from = io::BufReader::with_capacity(size, &text[..]);
            each_line(from, |line, shape, _| {
                found.push((line.to_vec(), shape));
                Ok(())
            })
            .unwrap();
            let expected = vec![
                (b"MAILBOX a".to_vec(), Shape::Harmless),
                (b"".to_vec(), Shape::Harmless),
                (b"MAILBOX \"b".to_vec(), Shape::Poison),
                (b"".to_vec(), Shape::Poison),
                (b"MAILBOX c".to_vec(), Shape::Harmless),
            ];
            assert_eq!(found, expected, "{size}");
        }
    }
}
