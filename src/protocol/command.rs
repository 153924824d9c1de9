//! What a csync client can say: the commands of Cyrus's `sync_server.c` (`cmdloop`) and the
//! verbs of `sync_support.c` (`sync_get`, `sync_apply`, `sync_restore`), typed.
//!
//! Names are the internal ones, as on the wire (`user.joe^dot`, `example.com!user.joe`).

use bytes::Bytes;

use super::body::Body;
use super::facts::name_memory;
use super::gather::{self, Write};

/// A message's GUID: the SHA-1 of its content, 40 hex digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 20]);

/// One command of a client.
#[derive(Clone, Debug)]
pub struct Command {
    /// What it is.
    pub kind: Kind,
    /// The whole command as it goes to a replica, line end included: byte for byte what the
    /// client sent, but for literal headers, which are written `{n+}`. For
    /// [`Apply::Message`] this is empty: the files stand in [`Apply::Message::files`].
    pub raw: Body,
}

/// A command by its first word.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `GET ...`: changes nothing.
    Get(Get),
    /// `APPLY ...`
    Apply(Apply),
    /// `RESTORE [LOCAL_]MAILBOX ...`, sent by Cyrus's backup `restore` tool.
    Restore {
        /// The mailbox, where it could be read; else empty.
        mailbox: Bytes,
    },
    /// `RESTART`: empties the staging.
    Restart,
    /// `EXIT`
    Exit,
    /// `NOOP`
    Noop,
    /// `AUTHENTICATE mechanism [initial-response]`; the response is base64 as sent.
    Authenticate {
        /// In upper case.
        mechanism: String,
        /// Base64, `=` for an empty one.
        initial: Option<Secret>,
    },
    /// `STARTTLS`
    Starttls,
    /// `COMPRESS algorithm`
    Compress {
        /// As sent.
        algorithm: Bytes,
    },
    /// `tag CAPABILITY`: an IMAP client probing (`sync_try_imap: yes`).
    ImapProbe {
        /// The tag to answer with.
        tag: Bytes,
    },
    /// `tag CAPABILITY`, in IMAP alone.
    Capability,
    /// `tag ID ...`, in IMAP alone.
    Id,
    /// Malformed, but its end is known: it has been read over and is answered with this line
    /// (no CRLF), which is what a stock `sync_server` says.
    Bad {
        /// The answer, `BAD ...` or `NO ...`, without a tag.
        answer: String,
    },
}

/// Base64 of a SASL response: does not print and is wiped.
#[derive(Clone, PartialEq, Eq, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct Secret(pub Vec<u8>);

/// `GET`: questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Get {
    /// `GET USER userid`
    User(Bytes),
    /// `GET META userid`
    Meta(Bytes),
    /// `GET MAILBOXES (name ...)`
    Mailboxes(Vec<Bytes>),
    /// `GET FULLMAILBOX name`
    FullMailbox(Bytes),
    /// `GET FETCH %(MBOXNAME name ...)`
    Fetch {
        /// The mailbox.
        mailbox: Bytes,
    },
    /// `GET ANNOTATION name`, "" for the server's own.
    Annotation(Bytes),
    /// `GET QUOTA root`
    Quota(Bytes),
    /// `GET FETCH_SIEVE %(USERID userid ...)`
    FetchSieve {
        /// The owner of the script.
        user: Bytes,
    },
    /// `GET UNIQUEIDS (id ...)`: names no mailbox.
    UniqueIds,
    /// A verb that is not known here: carried in order, as a barrier on everything.
    Other(Bytes),
}

/// `APPLY`: changes, and what prepares them.
#[derive(Clone, Debug)]
pub enum Apply {
    /// `APPLY [LOCAL_]MAILBOX %(...)`
    Mailbox(Mailbox),
    /// `APPLY MESSAGE (%{partition guid size} ...)`
    Message {
        /// The files in order. An element that came as NIL is left out of this list and counted.
        files: Vec<File>,
        /// How many elements were NIL (unreadable on the master).
        nil: usize,
    },
    /// `APPLY RESERVE %(PARTITION p MBOXNAME (name ...) GUID (guid ...))`
    Reserve {
        /// The partition.
        partition: Bytes,
        /// Mailboxes of the replica in which the messages may be found.
        mailboxes: Vec<Bytes>,
        /// The messages asked for.
        guids: Vec<Guid>,
    },
    /// `APPLY EXPUNGE %(MBOXNAME name ...)`
    Expunge {
        /// The mailbox.
        mailbox: Bytes,
    },
    /// `APPLY [LOCAL_]RENAME %(OLDMBOXNAME a NEWMBOXNAME b ...)`; equal names are a move to
    /// another partition.
    Rename {
        /// The old name.
        old: Bytes,
        /// The new name.
        new: Bytes,
    },
    /// `APPLY [LOCAL_]UNMAILBOX name`
    Unmailbox(Bytes),
    /// `APPLY [LOCAL_]UNUSER userid`
    Unuser(Bytes),
    /// `APPLY SUB %(USERID u MBOXNAME name)`
    Sub {
        /// Who subscribes.
        user: Bytes,
        /// To what; may be another user's.
        mailbox: Bytes,
    },
    /// `APPLY UNSUB %(USERID u MBOXNAME name)`
    Unsub {
        /// Who unsubscribes.
        user: Bytes,
        /// From what.
        mailbox: Bytes,
    },
    /// `APPLY SEEN %(USERID u UNIQUEID id ...)`
    Seen {
        /// The reader; the mailbox may live elsewhere.
        user: Bytes,
        /// The mailbox's unique id.
        uniqueid: Bytes,
    },
    /// `APPLY QUOTA %(ROOT root ...)`
    Quota {
        /// The quota root, a mailbox name.
        root: Bytes,
    },
    /// `APPLY UNQUOTA root`
    Unquota {
        /// The quota root, a mailbox name.
        root: Bytes,
    },
    /// `APPLY ANNOTATION %(MBOXNAME name ...)` and `UNANNOTATION`
    Annotation {
        /// The mailbox, "" for the server's own.
        mailbox: Bytes,
        /// The verb as sent, in upper case.
        verb: Bytes,
    },
    /// `SIEVE`, `UNSIEVE`, `ACTIVATE_SIEVE`, `UNACTIVATE_SIEVE`
    Sieve {
        /// The owner.
        user: Bytes,
        /// The verb as sent, in upper case.
        verb: Bytes,
    },
    /// `APPLY FORCE %()`: changes the state of the connection.
    Force,
    /// `APPLY CAPABILITIES (name ...)`: changes the state of the connection.
    Capabilities(Vec<Bytes>),
    /// A verb that is not known here: carried in order, as a barrier on everything.
    Other(Bytes),
}

/// What there is to know of an `APPLY MAILBOX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// MBOXNAME
    pub name: Bytes,
    /// UNIQUEID
    pub uniqueid: Bytes,
    /// PARTITION, empty in the short form.
    pub partition: Bytes,
    /// `LOCAL_MAILBOX`
    pub local: bool,
    /// The short form of an intermediate mailbox, which carries no version (no RECORD, no
    /// LAST_UID; `sync_do_update_mailbox` in `sync_support.c`).
    pub intermediate: bool,
    /// The client says what it believed of the replica (3.2 and later): SINCE_MODSEQ is there, or
    /// FOLDERMODSEQ, which came with it and is said of new mailboxes, too.
    pub since: bool,
    /// The line `* MAILBOX %(...)`, line end included, with which a replica that has executed
    /// this would answer. `None` for the short form, which says too little, for a part of the
    /// changes (SYNC_CRC 0), and where the line would be longer than 64 KiB.
    pub state: Option<Bytes>,
    /// The GUIDs of the RECORDs that are not expunged, in order, repeats left out where they
    /// follow each other: those of them that were staged or reserved are what the update needs.
    pub guids: Vec<Guid>,
    /// How many RECORDs there are.
    pub records: usize,
}

/// One element of `APPLY MESSAGE`.
#[derive(Clone, Debug)]
pub struct File {
    /// Partition on the replica.
    pub partition: Bytes,
    /// GUID
    pub guid: Guid,
    /// The message itself, without its header `%{...}\r\n`.
    pub content: Body,
}

impl Command {
    /// Bytes of it and of its messages that are in memory.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let files: u64 = match &self.kind {
            Kind::Apply(Apply::Message { files, .. }) => {
                files.iter().map(|file| file.content.memory()).sum()
            }
            _ => 0,
        };
        self.raw.memory() + files
    }

    /// Bytes of memory that its lists of names and GUIDs take: what [`Self::spill`] leaves.
    #[must_use]
    pub fn listed(&self) -> u64 {
        let names = |names: &[Bytes]| names.iter().map(|name| name_memory(name)).sum::<u64>();
        let guids = |guids: &[Guid]| size_of_val(guids) as u64;
        match &self.kind {
            Kind::Get(Get::Mailboxes(list)) | Kind::Apply(Apply::Capabilities(list)) => names(list),
            Kind::Apply(Apply::Reserve {
                mailboxes,
                guids: list,
                ..
            }) => names(mailboxes) + guids(list),
            Kind::Apply(Apply::Mailbox(mailbox)) => guids(&mailbox.guids),
            Kind::Apply(Apply::Message { files, .. }) => {
                let files = files.iter();
                files.map(|file| 2 * name_memory(&file.partition)).sum()
            }
            _ => 0,
        }
    }

    /// Moves these out of memory; see [`super::CommandReader::spill`].
    ///
    /// # Errors
    /// Those of `write`; nothing has changed then.
    pub fn spill(&mut self, write: &mut Write<'_>) -> std::io::Result<()> {
        let mut bodies = vec![&mut self.raw];
        if let Kind::Apply(Apply::Message { files, .. }) = &mut self.kind {
            bodies.extend(files.iter_mut().map(|file| &mut file.content));
        }
        gather::spill(&mut [], &mut bodies, write)
    }
}

impl Guid {
    /// Reads 40 hex digits of either case (`message_guid_decode` in Cyrus's `message_guid.c`).
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let mut guid = [0; 20];
        if text.len() != 40 {
            return None;
        }
        for (byte, pair) in guid.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Guid(guid))
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
