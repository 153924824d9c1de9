//! What is different in IMAP: a tag comes first, and imapd knows other words (`cmdloop` in Cyrus's
//! `imapd.c`). Of these only what a replication client says is understood here.

use bytes::{Buf, Bytes};

use super::{CommandReader, Simple, State, is_atom};
use crate::protocol::command::Kind;
use crate::protocol::facts::Family;

/// What stands before csync's own verbs.
pub(super) const SYNC: &str = "SYNC";

/// A longer tag is not repeated. The stock client's have at most 11 bytes.
const MAX_TAG: usize = 64;

/// imapd would take it from a client before its login.
const LOGIN: &str = "NO this is syncmux, for replication between Cyrus servers only: a mail client must be told the \
                     mail server's own port";

const UNKNOWN: &str = "BAD Unrecognized command: this is syncmux, for replication only";
const NO_LOGIN: &str =
    "BAD Please login first, by AUTHENTICATE: this is syncmux, for replication only";

impl CommandReader {
    /// The tag is complete; `end`, the next byte of `input`, ended it.
    pub(super) fn tag_done(&mut self, end: u8, input: &mut Bytes) {
        let word = std::mem::take(&mut self.word);
        if end != b' ' || !is_atom(&word) || word == b"*" || word.len() > MAX_TAG {
            self.tag = b"*".to_vec();
            self.eat("BAD Invalid tag");
            return;
        }
        self.tag = word;
        input.advance(1);
        self.len += 1;
        self.state = State::Word;
    }

    /// The word behind the tag is complete; `end`, the next byte of `input`, ended it.
    pub(super) fn imap_word_done(&mut self, end: u8, input: &mut Bytes) {
        let simple = match &self.verb[..] {
            "Authenticate" => Simple::Authenticate,
            "Capability" => Simple::Capability,
            "Logout" => Simple::Exit,
            "Noop" => Simple::Noop,
            "Starttls" => Simple::Starttls,
            "Id" => return self.eat_as(Kind::Id),
            "Login" if !self.authenticated => return self.eat(LOGIN),
            "Login" => return self.eat("BAD Already logged in"),
            // From here on imapd asks for a login, and for replication for an administrator's.
            _ if !self.authenticated => return self.eat(NO_LOGIN),
            "Compress" => Simple::Compress,
            "Syncrestart" => Simple::Restart,
            "Syncapply" => return self.begin_value(Family::Apply, input),
            "Syncget" => return self.begin_value(Family::Get, input),
            "Syncrestore" => return self.begin_value(Family::Restore, input),
            _ => return self.eat(UNKNOWN),
        };
        self.begin_simple(simple, end, input);
    }
}
