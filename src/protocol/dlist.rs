//! A whole line of a replica as a tree, for those who compare two of them. Traffic is not read by
//! this: what it needs is found while it passes (`facts`).

use bytes::Bytes;

use super::scan::{List, LiteralForm, Progress, ScanLimits, Scanner, Sink, Token};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `NIL`, or a file.
    Nil,
    /// A string, whole.
    Text(Bytes),
    /// `(a b)`
    List(Vec<Value>),
    /// `%(K v ...)`
    Pairs(Vec<(Bytes, Value)>),
}

impl Value {
    /// What stands under a key of `%(K v ...)`; the first one counts.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Pairs(pairs) => {
                let found = pairs.iter().find(|(name, _)| name == key.as_bytes());
                found.map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The string under a key.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&Bytes> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list; nothing where it is none.
    #[must_use]
    pub fn elements(&self) -> &[Value] {
        match self {
            Value::List(list) => list,
            _ => &[],
        }
    }
}

/// Deeper lists are in no answer of a replica.
const DEPTH: usize = 16;

/// Reads `KIND value` and its line end; `None` where that is no such line. The strings are slices
/// of the line, but for those that stand there escaped.
#[must_use]
pub fn parse(line: Bytes) -> Option<(Bytes, Value)> {
    let limits = ScanLimits {
        depth: DEPTH,
        text: line.len() as u64,
        file: line.len() as u64,
    };
    let mut scanner = Scanner::new(LiteralForm::Plain, limits).keeping(line.len());
    let mut input = line.clone();
    let mut tree = Tree {
        line,
        ..Tree::default()
    };
    match scanner.feed(&mut input, &mut tree) {
        Ok(Progress::Done) if input.is_empty() => tree.kind.zip(tree.done),
        _ => None,
    }
}

#[derive(Default)]
struct Tree {
    line: Bytes,
    kind: Option<Bytes>,
    done: Option<Value>,
    open: Vec<Open>,
}

struct Open {
    value: Value,
    /// The key whose value comes next.
    key: Bytes,
}

impl Tree {
    /// Without a copy where it stands in the line as it is.
    fn own(&self, text: &[u8]) -> Bytes {
        let (line, part) = (self.line.as_ptr_range(), text.as_ptr_range());
        if line.start <= part.start && part.end <= line.end {
            self.line.slice_ref(text)
        } else {
            Bytes::copy_from_slice(text)
        }
    }

    fn put(&mut self, value: Value) {
        match self.open.last_mut() {
            None => self.done = Some(value),
            Some(Open { value: outer, key }) => match outer {
                Value::List(list) => list.push(value),
                Value::Pairs(pairs) => pairs.push((std::mem::take(key), value)),
                Value::Nil | Value::Text(_) => {}
            },
        }
    }
}

impl Sink for Tree {
    fn raw(&mut self, _: Bytes) {}

    fn content(&mut self, _: Bytes) {}

    fn token(&mut self, token: Token<'_>) -> Result<(), String> {
        match token {
            Token::Key(text) => {
                let text = self.own(text.usable().unwrap_or_default());
                match self.open.last_mut() {
                    None => self.kind = Some(text),
                    Some(open) => open.key = text,
                }
            }
            Token::Text(text) => {
                let text = self.own(text.kept());
                self.put(Value::Text(text));
            }
            Token::Nil | Token::FileEnd => self.put(Value::Nil),
            Token::Open(list) => self.open.push(Open {
                value: match list {
                    List::Plain => Value::List(Vec::new()),
                    List::Pairs => Value::Pairs(Vec::new()),
                },
                key: Bytes::new(),
            }),
            Token::Close => {
                if let Some(open) = self.open.pop() {
                    self.put(open.value);
                }
            }
            Token::File { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_line_of_a_replica() {
        let line = b"MAILBOX %(MBOXNAME user.joe ACL \"joe\tlrs\t\" RECORD (%(UID 1 FLAGS \
            (\\Seen {4}\r\na b ) GUID NIL)))\r\n";
        let (kind, value) = parse(Bytes::from_static(line)).unwrap();
        assert_eq!(kind, "MAILBOX");
        assert_eq!(value.text("MBOXNAME").unwrap(), "user.joe");
        assert_eq!(value.text("ACL").unwrap(), "joe\tlrs\t");
        let record = &value.get("RECORD").unwrap().elements()[0];
        let flags = record.get("FLAGS").unwrap().elements();
        let text = |text: &'static str| Value::Text(Bytes::from_static(text.as_bytes()));
        assert_eq!(flags, [text("\\Seen"), text("a b ")]);
        assert_eq!(record.get("GUID"), Some(&Value::Nil));
        assert_eq!(record.text("UID").unwrap(), "1");
    }

    #[test]
    fn long_strings_are_whole() {
        let long = "x".repeat(100_000);
        for written in [
            long.clone(),
            format!("\"{long}\""),
            format!("{{100000}}\r\n{long}"),
        ] {
            let line = Bytes::from(format!("A %(K {written} L b)\r\n"));
            let (_, value) = parse(line).unwrap();
            assert_eq!(value.text("K").unwrap(), long.as_bytes());
            assert_eq!(value.text("L").unwrap(), "b");
        }
    }

    #[test]
    fn nothing_is_copied() {
        let line = Bytes::from_static(b"A %(KEY user.joe)\r\n");
        let (_, value) = parse(line.clone()).unwrap();
        let text = value.text("KEY").unwrap();
        assert!(line.as_ptr_range().contains(&text.as_ptr()));
    }

    #[test]
    fn what_is_no_line() {
        for line in [
            &b""[..],
            b"MAILBOX",
            b"MAILBOX %(A b\r\n",
            b"LSUB (a) b\r\n",
        ] {
            assert_eq!(
                parse(Bytes::from_static(line)),
                None,
                "{}",
                line.escape_ascii()
            );
        }
    }
}
