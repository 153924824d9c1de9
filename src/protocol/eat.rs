//! Reads over the rest of a bad line, as `eatline` in Cyrus's `imapparse.c` and `sync_eatline` in
//! `sync_support.c` do: to the next line feed that is not in a literal `{n+}`.

use bytes::{Buf, Bytes};

/// Where in a line it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Digits(u64),
    Brace(u64),
    Cr(u64),
    Lf(u64),
    Literal(u64),
    Percent,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Eater {
    state: State,
    eaten: u64,
}

/// Why it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// A message in a line that could not be read: its size can't be trusted.
    File,
    /// A literal where none is allowed.
    Literal,
    /// More than the given limit.
    TooLong,
}

impl Eater {
    /// Begins with a new line.
    pub(crate) fn restart(&mut self) {
        *self = Eater::default();
    }

    /// Reads on, at most `limit` bytes; true when the line is over.
    pub(crate) fn feed(
        &mut self,
        input: &mut Bytes,
        limit: u64,
        literals: bool,
    ) -> Result<bool, Stuck> {
        while let Some(&byte) = input.first() {
            let (state, take) = match (self.state, byte) {
                (State::Literal(left), _) => {
                    let len = left.min(input.len() as u64);
                    input.advance(len as usize);
                    self.count(len, limit)?;
                    self.state = match left - len {
                        0 => State::Text,
                        left => State::Literal(left),
                    };
                    continue;
                }
                (State::Text, b'\n') => {
                    input.advance(1);
                    return Ok(true);
                }
                (State::Text, b'{') => (State::Digits(0), 1),
                (State::Text, b'%') => (State::Percent, 1),
                (State::Text, _) => {
                    let end = memchr::memchr3(b'\n', b'{', b'%', input).unwrap_or(input.len());
                    (State::Text, end)
                }
                (State::Percent, b'{') => return Err(Stuck::File),
                (State::Digits(size), b'0'..=b'9') if size <= u64::from(u32::MAX) / 10 => {
                    (State::Digits(size * 10 + u64::from(byte - b'0')), 1)
                }
                (State::Digits(size), b'+') => (State::Brace(size), 1),
                (State::Brace(size), b'}') => (State::Cr(size), 1),
                (State::Cr(size), b'\r') => (State::Lf(size), 1),
                (State::Cr(size) | State::Lf(size), b'\n') => {
                    if !literals {
                        return Err(Stuck::Literal);
                    }
                    let state = match size {
                        0 => State::Text,
                        size => State::Literal(size),
                    };
                    (state, 1)
                }
                // Not a literal after all: the byte is looked at anew.
                _ => (State::Text, 0),
            };
            self.state = state;
            input.advance(take);
            self.count(take as u64, limit)?;
        }
        Ok(false)
    }

    fn count(&mut self, len: u64, limit: u64) -> Result<(), Stuck> {
        self.eaten += len;
        if self.eaten > limit {
            return Err(Stuck::TooLong);
        }
        Ok(())
    }
}
