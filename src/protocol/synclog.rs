//! Cyrus's sync log: writing lines as `sync_log.c` does (`sync_quote_name`), and what a run
//! covers. Reading is in [`reader`].

use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::Bytes;

use super::names::{Site, UserKey};

pub mod reader;

pub use reader::{Item, ItemKind, LineReader, Torn};

/// One line of a sync log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// `MAILBOX name`
    Mailbox(Bytes),
    /// `USER userid`
    User(Bytes),
    /// `META userid`
    Meta(Bytes),
    /// `SEEN userid uniqueid-or-name`
    Seen(Bytes, Bytes),
    /// `SUB userid name`
    Sub(Bytes, Bytes),
    /// `UNMAILBOX name`
    Unmailbox(Bytes),
    /// `UNUSER userid`
    Unuser(Bytes),
    /// `QUOTA root`
    Quota(Bytes),
    /// `ANNOTATION name`
    Annotation(Bytes),
}

/// A name that can't stand in a sync log: the client would read the file wrongly from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// CR, LF or NUL; also VT and FF, which the writing side does not quote and the reading side
    /// takes for the end of a word.
    #[error("a name with a control character can't stand in the sync log")]
    Control,
    /// More than 1,023 bytes when quoted (`MAX_MAILBOX_BUFFER`), or a line of more than 4,096
    /// (`BUFSIZE`).
    #[error("a name is too long for the sync log")]
    TooLong,
}

/// `MAX_MAILBOX_BUFFER` in Cyrus's `mailbox.h`, in bytes.
const MAX_MAILBOX_BUFFER: usize = 1024;

/// `BUFSIZE` in Cyrus's `sync_log.c`: the longest line, in bytes.
const BUFSIZE: usize = 4096;

impl Line {
    /// The type and the names.
    fn parts(&self) -> (&'static str, &Bytes, Option<&Bytes>) {
        match self {
            Line::Mailbox(name) => ("MAILBOX", name, None),
            Line::User(user) => ("USER", user, None),
            Line::Meta(user) => ("META", user, None),
            Line::Seen(user, id) => ("SEEN", user, Some(id)),
            Line::Sub(user, name) => ("SUB", user, Some(name)),
            Line::Unmailbox(name) => ("UNMAILBOX", name, None),
            Line::Unuser(user) => ("UNUSER", user, None),
            Line::Quota(root) => ("QUOTA", root, None),
            Line::Annotation(name) => ("ANNOTATION", name, None),
        }
    }

    /// Appends the line, line feed included, as `sync_log` would write it.
    ///
    /// # Errors
    /// Where a name can't stand in a sync log; `out` is unchanged then.
    pub fn print(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let (kind, first, second) = self.parts();
        print(out, kind, first, second)
    }

    /// Whether [`Self::print`] can write it.
    ///
    /// # Errors
    /// Why it can't.
    pub fn check(&self) -> Result<(), Unwritable> {
        let (kind, first, second) = self.parts();
        len(kind, first, second).map(drop)
    }
}

pub(crate) fn print(
    out: &mut Vec<u8>,
    kind: &str,
    first: &[u8],
    second: Option<&Bytes>,
) -> Result<(), Unwritable> {
    out.reserve(len(kind, first, second)?);
    out.extend_from_slice(kind.as_bytes());
    quote(out, first)?;
    if let Some(second) = second {
        quote(out, second)?;
    }
    out.push(b'\n');
    Ok(())
}

/// The length of the line, line feed included.
fn len(kind: &str, first: &[u8], second: Option<&Bytes>) -> Result<usize, Unwritable> {
    let (_, first) = quoted(first)?;
    let second = match second {
        Some(second) => quoted(second)?.1,
        None => 0,
    };
    match kind.len() + first + second + 1 {
        len @ 0..=BUFSIZE => Ok(len),
        _ => Err(Unwritable::TooLong),
    }
}

/// Whether a name needs quotes, and the length of a space and the name as it is written.
fn quoted(name: &[u8]) -> Result<(bool, usize), Unwritable> {
    let mut needed = name.is_empty();
    let mut len = name.len();
    for &byte in name {
        match byte {
            b'\r' | b'\n' | 0 | 0x0b | 0x0c => return Err(Unwritable::Control),
            b'\\' | b'"' | b'{' | b'}' => {
                needed = true;
                len += 1;
            }
            b' ' | b'\t' | b'(' | b')' => needed = true,
            _ => {}
        }
    }
    // Cyrus counts the opening quote as well.
    if len + 1 > MAX_MAILBOX_BUFFER {
        return Err(Unwritable::TooLong);
    }
    Ok((needed, 1 + len + if needed { 2 } else { 0 }))
}

/// Appends a space and the name (`sync_quote_name`).
fn quote(out: &mut Vec<u8>, name: &[u8]) -> Result<(), Unwritable> {
    let (needed, _) = quoted(name)?;
    out.push(b' ');
    if !needed {
        out.extend_from_slice(name);
        return Ok(());
    }
    out.push(b'"');
    for &byte in name {
        if matches!(byte, b'\\' | b'"' | b'{' | b'}') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
    Ok(())
}

/// What the lines of a run name, in bounded memory: one 64-bit hash, keyed at random, for each
/// thing named (about 19 MB for a million lines). Two different things having the same hash is a
/// matter of one in 10^13 for a run of a million lines, and can't be brought about from outside.
#[derive(Debug, Default)]
pub struct Coverage {
    keys: RandomState,
    hashes: hashbrown::HashSet<u64, AsIs>,
    mailboxes: Names,
    users: Names,
}

/// Names, one behind the other: by itself each would cost several times its bytes.
#[derive(Debug, Default)]
struct Names {
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Names {
    fn get(&self, number: usize) -> Option<&[u8]> {
        let end = *self.ends.get(number)?;
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[begin..end])
    }

    fn push(&mut self, name: &[u8]) {
        if self.ends.len() < MAX_NAMES && self.text.len() + name.len() <= MAX_NAMES_BYTES {
            self.text.extend_from_slice(name);
            self.ends.push(self.text.len());
        }
    }

    fn memory(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * size_of::<usize>()
    }
}

/// What lines name, each once, in order of appearance.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The mailboxes.
    pub mailboxes: Vec<Bytes>,
    /// The users of USER lines.
    pub users: Vec<Bytes>,
}

impl Named {
    /// Whether it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mailboxes.is_empty() && self.users.is_empty()
    }
}

/// So many names of mailboxes, and of users, of a run are kept, in order.
const MAX_NAMES: usize = 100_000;

/// So many bytes of them.
const MAX_NAMES_BYTES: usize = 16 << 20;

/// The hashes are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl BuildHasher for AsIs {
    type Hasher = AsIs;

    fn build_hasher(&self) -> AsIs {
        AsIs(0)
    }
}

/// What is named.
#[derive(Clone, Copy)]
enum Class {
    Mailbox = 1,
    User,
    Meta,
    Seen,
    Sub,
    Unuser,
}

impl Coverage {
    /// Adds what a line names, by what the client does with it (`sync_do_reader` in
    /// `sync_support.c`):
    /// - MAILBOX, APPEND: the mailbox named; DOUBLEMAILBOX, RENAME: both of them. A second name
    ///   behind MAILBOX or APPEND is the next line after a torn one, and clients before 3.4 do
    ///   not look at it;
    /// - SEEN, SUB, UNSUB: the pair; META and SIEVE: the user's seen, subscriptions and scripts;
    ///   USER: all of the user. An UNUSER in the run takes these four out of the client's work,
    ///   wherever it stands, and so out of what is covered; lines that name mailboxes stay.
    ///
    /// The other lines (QUOTA, ANNOTATION, UNMAILBOX) cover nothing.
    pub fn add(&mut self, item: &Item, site: &Site) {
        let key = || site.key_of_user(&item.first);
        item.mailboxes().for_each(|name| self.insert_mailbox(name));
        match (item.kind, &item.second) {
            (ItemKind::User, _) => self.insert_user(&item.first, &key()),
            (ItemKind::Meta | ItemKind::Sieve, _) => drop(self.insert_key(Class::Meta, &key())),
            (ItemKind::Unuser, _) => drop(self.insert_key(Class::Unuser, &key())),
            (ItemKind::Seen, Some(id)) => drop(self.insert(Class::Seen, &item.first, id)),
            (ItemKind::Sub | ItemKind::Unsub, Some(name)) => {
                self.insert(Class::Sub, &item.first, name);
            }
            _ => {}
        }
    }

    /// Whether the run makes the client look at this mailbox: by its name, or by USER of its
    /// owner.
    #[must_use]
    pub fn covers_mailbox(&self, name: &[u8], owner: &UserKey) -> bool {
        self.has(Class::Mailbox, name, b"") || self.covers_user(owner)
    }

    /// Whether the run makes the client send this reader's state of this mailbox: `key` is the
    /// reader's.
    #[must_use]
    pub fn covers_seen(&self, user: &[u8], uniqueid: &[u8], key: &UserKey) -> bool {
        self.covers_meta(key)
            || (self.has(Class::Seen, user, uniqueid) && !self.has_key(Class::Unuser, key))
    }

    /// Whether the run makes the client compare this subscription: `key` is the subscriber's.
    #[must_use]
    pub fn covers_sub(&self, user: &[u8], mailbox: &[u8], key: &UserKey) -> bool {
        self.covers_meta(key)
            || (self.has(Class::Sub, user, mailbox) && !self.has_key(Class::Unuser, key))
    }

    /// Whether the run holds a USER line of this user that no UNUSER line takes back.
    #[must_use]
    pub fn covers_user(&self, key: &UserKey) -> bool {
        self.has_key(Class::User, key) && !self.has_key(Class::Unuser, key)
    }

    /// The mailboxes that it names, by number, each once, in order of appearance: the first 100,000
    /// of them, or 16 MiB. The client goes by users, which it takes in an order that can't be known
    /// (a hash keyed at random).
    #[must_use]
    pub fn name(&self, number: usize) -> Option<&[u8]> {
        self.mailboxes.get(number)
    }

    /// The users of its USER lines, likewise. The client takes them after the mailboxes, in this
    /// order.
    #[must_use]
    pub fn user(&self, number: usize) -> Option<&[u8]> {
        self.users.get(number)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.hashes.allocation_size() + self.mailboxes.memory() + self.users.memory()
    }

    fn covers_meta(&self, key: &UserKey) -> bool {
        (self.has_key(Class::Meta, key) || self.has_key(Class::User, key))
            && !self.has_key(Class::Unuser, key)
    }

    fn hash(&self, class: Class, first: &[u8], second: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u8(class as u8);
        hasher.write_usize(first.len());
        hasher.write(first);
        hasher.write(second);
        hasher.finish()
    }

    fn insert(&mut self, class: Class, first: &[u8], second: &[u8]) -> bool {
        self.hashes.insert(self.hash(class, first, second))
    }

    fn insert_mailbox(&mut self, name: &Bytes) {
        if self.insert(Class::Mailbox, name, b"") {
            self.mailboxes.push(name);
        }
    }

    fn insert_user(&mut self, user: &Bytes, key: &UserKey) {
        if self.insert_key(Class::User, key) {
            self.users.push(user);
        }
    }

    /// Whether it is new. Lines about no user are ignored by the client.
    fn insert_key(&mut self, class: Class, key: &UserKey) -> bool {
        !key.is_shared() && self.insert(class, key.as_bytes(), b"")
    }

    fn has(&self, class: Class, first: &[u8], second: &[u8]) -> bool {
        self.hashes.contains(&self.hash(class, first, second))
    }

    fn has_key(&self, class: Class, key: &UserKey) -> bool {
        !key.is_shared() && self.has(class, key.as_bytes(), b"")
    }
}
