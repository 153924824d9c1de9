//! The two ways in which the same commands are spoken: csync, and in a session of IMAP with a tag
//! before each (`sync_send_apply` and its kin, `sync_parse_response` in Cyrus's `sync_support.c`;
//! `cmdloop`, `cmd_syncapply` in `imapd.c`).
//!
//! Everybody else knows csync alone: here the tag is put on and the word `SYNC` before the verb, and
//! a client's answer gets its tag back. The readers take both off
//! ([`super::CommandReader::speaking`], [`super::ReplyReader::speaking`]).

use bytes::Bytes;

use super::body::{Body, Piece};

/// How a connection is spoken on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `APPLY MAILBOX ...`, answered `OK success`.
    #[default]
    Csync,
    /// `S0 SYNCAPPLY MAILBOX ...`, answered `S0 OK success`.
    Imap,
}

/// What is said of a connection has the same name on both sides, but for EXIT. All other commands
/// get `SYNC` before them.
const OF_THE_CONNECTION: [&[u8]; 5] = [
    b"NOOP\r",
    b"STARTTLS\r",
    b"AUTHENTICATE ",
    b"COMPRESS ",
    b"CAPABILITY\r",
];

/// What imapd says for LOGOUT before its tagged answer (`IMAP_BYE_LOGOUT`).
const LOGOUT: &str = "* BYE LOGOUT received\r\n";

impl std::fmt::Display for Dialect {
    /// The word of the configuration.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dialect::Csync => "csync",
            Dialect::Imap => "imap",
        })
    }
}

impl Dialect {
    /// What goes before a command to the replica; `nth` counts those of the connection from 0. A
    /// replica that is asked in this dialect must answer with the tags `S0`, `S1` ... in order.
    #[must_use]
    pub fn prefix(self, nth: u64, command: &[u8]) -> String {
        let own = |word: &&[u8]| command.starts_with(word);
        match self {
            Dialect::Csync => String::new(),
            Dialect::Imap if OF_THE_CONNECTION.iter().any(own) => format!("S{nth} "),
            Dialect::Imap => format!("S{nth} SYNC"),
        }
    }

    /// A command, written in csync, for the replica; see [`Self::prefix`].
    #[must_use]
    pub fn request(self, nth: u64, command: Body) -> Body {
        // A command on disk is one with a dlist.
        let begin: &[u8] = match command.pieces().first() {
            Some(Piece::Memory(bytes)) => bytes,
            _ => b"",
        };
        match self {
            Dialect::Csync => command,
            Dialect::Imap if begin.starts_with(b"EXIT\r") => format!("S{nth} LOGOUT\r\n").into(),
            Dialect::Imap => {
                let mut whole = Body::from(self.prefix(nth, begin));
                whole.append(command);
                whole
            }
        }
    }

    /// An answer, written in csync, for a client whose command had this tag: before the last line,
    /// which is the one that ends it.
    #[must_use]
    pub fn answer(self, tag: &[u8], mut answer: Body) -> Body {
        if self == Dialect::Csync {
            return answer;
        }
        let pieces = answer.take_pieces();
        let (at, split) = last_line(&pieces);
        let mut tagged = Body::new();
        for (nth, piece) in pieces.into_iter().enumerate() {
            match piece {
                Piece::Memory(mut bytes) if nth == at => {
                    tagged.push(bytes.split_to(split));
                    tagged.push([tag, b" "].concat().into());
                    tagged.push(bytes);
                }
                Piece::Memory(bytes) => tagged.push(bytes),
                Piece::Spilled(spilled) => tagged.push_spilled(spilled),
            }
        }
        tagged
    }

    /// The last words to a client that has logged in, from `BYE why`, `OK Finished` or a stock
    /// server's `* Fatal error: why`; no line end in or behind them. `next` is the tag of the command
    /// that they answer, or that the stock client will use next.
    ///
    /// In IMAP the stock client understands BYE where a status stands, behind its tag
    /// (`sync_parse_response`), and reads over an untagged line only where that is a dlist: so
    /// the words are quoted there.
    #[must_use]
    pub fn last_words(self, words: &str, next: &[u8]) -> Body {
        let tag = String::from_utf8_lossy(next);
        match (self, words.split_once(' ')) {
            (Dialect::Csync, _) => format!("{words}\r\n").into(),
            (Dialect::Imap, Some(("BYE", why))) => {
                let quoted = why.replace(['"', '\\', '%'], "'");
                format!("* BYE \"{quoted}\"\r\n{tag} BYE {why}\r\n").into()
            }
            (Dialect::Imap, Some(("OK", _))) => format!("{LOGOUT}{tag} OK Completed\r\n").into(),
            (Dialect::Imap, _) => self.refusal(words),
        }
    }

    /// The last words to a client that is not, or not any more, waited for: it has not logged in, or
    /// can't be followed.
    #[must_use]
    pub fn refusal(self, words: &str) -> Body {
        let plain = words.strip_prefix("* ").unwrap_or(words);
        match self {
            Dialect::Csync => format!("{words}\r\n").into(),
            Dialect::Imap if plain.starts_with("BYE ") => format!("* {plain}\r\n").into(),
            Dialect::Imap => format!("* BYE {plain}\r\n").into(),
        }
    }
}

/// The tag that the stock client uses behind this one, where it counts: the commands of replication
/// (`sync_gentag` in `sync_support.c`), from 0 in each process. Others have tags of their own, as
/// `N01 NOOP`, and are not counted.
#[must_use]
pub fn next_tag(tag: &[u8]) -> Option<Bytes> {
    let digits = std::str::from_utf8(tag.strip_prefix(b"S")?).ok()?;
    let next = digits.parse::<u64>().ok()?.checked_add(1)?;
    Some(format!("S{next}").into())
}

/// The piece, and the place in it, where the last line begins. It is in memory, and so is the end
/// of the line before it, unless all of that is on disk.
fn last_line(pieces: &[Piece]) -> (usize, usize) {
    let mut begin = (0, 0);
    for (nth, piece) in pieces.iter().enumerate().rev() {
        let Piece::Memory(bytes) = piece else { break };
        let is_last = nth + 1 == pieces.len();
        let before = &bytes[..bytes.len() - usize::from(is_last)];
        if let Some(end) = memchr::memrchr(b'\n', before) {
            // The line before may end with the piece.
            return match end + 1 == bytes.len() {
                true => begin,
                false => (nth, end + 1),
            };
        }
        begin = (nth, 0);
    }
    begin
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use super::*;
    use crate::protocol::{Spilled, print};

    fn text(body: &Body) -> String {
        String::from_utf8(body.to_vec().unwrap()).unwrap()
    }

    #[test]
    fn commands() {
        let request = |text: &'static str| self::text(&Dialect::Imap.request(7, text.into()));
        assert_eq!(request("GET USER joe\r\n"), "S7 SYNCGET USER joe\r\n");
        assert_eq!(request(print::RESTART), "S7 SYNCRESTART\r\n");
        assert_eq!(request(print::NOOP), "S7 NOOP\r\n");
        assert_eq!(request(print::EXIT), "S7 LOGOUT\r\n");
        let plain = Dialect::Csync.request(7, print::EXIT.into());
        assert_eq!(text(&plain), print::EXIT);
    }

    #[test]
    fn the_tag_stands_before_the_last_line_in_whatever_pieces_it_is() {
        let whole = "* MISSING (a\r\nb)\r\n* X\r\nOK success\r\n";
        let wanted = "* MISSING (a\r\nb)\r\n* X\r\nS1 OK success\r\n";
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let mut body = Body::new();
                for part in [&whole[..first], &whole[first..second], &whole[second..]] {
                    body.push(Bytes::copy_from_slice(part.as_bytes()));
                }
                let tagged = Dialect::Imap.answer(b"S1", body);
                assert_eq!(text(&tagged), wanted, "{first} {second}");
                assert_eq!(tagged.len(), wanted.len() as u64);
            }
        }
        let alone = Dialect::Imap.answer(b"a", "OK success\r\n".into());
        assert_eq!(text(&alone), "a OK success\r\n");
    }

    #[test]
    fn lines_on_disk_stay_there() {
        let spilled = || Spilled {
            file: Arc::new(std::fs::File::open("/dev/null").unwrap()),
            offset: 0,
            len: 5,
            lease: Arc::new(()),
        };
        for rest in ["", ")\r\n"] {
            let mut body = Body::new();
            body.push_spilled(spilled());
            body.push(rest.into());
            body.push("OK success\r\n".into());
            let tagged = Dialect::Imap.answer(b"S1", body);
            let after: Vec<u8> = tagged
                .pieces()
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Memory(bytes) => Some(bytes.to_vec()),
                    Piece::Spilled(_) => None,
                })
                .flatten()
                .collect();
            assert_eq!(after, format!("{rest}S1 OK success\r\n").as_bytes());
            assert!(matches!(tagged.pieces()[0], Piece::Spilled(_)));
        }
    }

    #[test]
    fn last_words() {
        let said = |words| text(&Dialect::Imap.last_words(words, b"S4"));
        assert_eq!(
            said("BYE going down"),
            "* BYE \"going down\"\r\nS4 BYE going down\r\n"
        );
        assert_eq!(
            said("OK Finished"),
            "* BYE LOGOUT received\r\nS4 OK Completed\r\n"
        );
        let refused = |words| text(&Dialect::Imap.refusal(words));
        assert_eq!(refused("BYE too many"), "* BYE too many\r\n");
        assert_eq!(
            refused("* Fatal error: [TOOBIG] Word too long"),
            "* BYE Fatal error: [TOOBIG] Word too long\r\n"
        );
        for (tag, next) in [
            ("S0", Some("S1")),
            ("S41", Some("S42")),
            ("A01", None),
            ("S", None),
            ("S18446744073709551615", None),
        ] {
            assert_eq!(next_tag(tag.as_bytes()).as_deref(), next.map(str::as_bytes));
        }
    }
}
