//! What is picked from a value while it is scanned: the few fields that decide where a command
//! goes, never the whole tree. Memory is bounded by the limits, whatever the value holds.

use std::io;

use bytes::Bytes;

use super::body::Body;
use super::command::{File, Guid};
use super::gather::{self, Gather, Write};
use super::scan::{List, Sink, Text, Token};
use super::state::StateText;

/// Where a value stands, which tells what its verbs mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Get,
    Apply,
    Restore,
    /// An untagged line of a replica.
    Reply,
}

/// What to look for besides the scalar fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Nothing.
    Fields,
    /// The elements of a plain list as strings.
    Names,
    /// The elements of a plain list as GUIDs.
    Guids,
    /// The lists under MBOXNAME and GUID.
    Reserve,
    /// The lists under RECORD.
    Records,
    /// Files.
    Files,
}

/// The value itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Top {
    #[default]
    Nothing,
    Text(Option<Bytes>),
    Nil,
    Plain,
    Pairs,
    File,
}

/// Keys that matter. `dlist_getchild` compares them case for case and takes the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Field {
    MboxName,
    UniqueId,
    Partition,
    UserId,
    OldName,
    NewName,
    Root,
    MboxType,
    LastUid,
    FolderModseq,
    SinceModseq,
    Record,
    Guid,
    Flags,
}

/// One more than the last of [`Field`].
const FIELDS: usize = Field::Flags as usize + 1;

impl Field {
    fn of(key: &[u8]) -> Option<Self> {
        Some(match key {
            b"MBOXNAME" => Field::MboxName,
            b"UNIQUEID" => Field::UniqueId,
            b"PARTITION" => Field::Partition,
            b"USERID" => Field::UserId,
            b"OLDMBOXNAME" => Field::OldName,
            b"NEWMBOXNAME" => Field::NewName,
            b"ROOT" => Field::Root,
            b"MBOXTYPE" => Field::MboxType,
            b"LAST_UID" => Field::LastUid,
            b"FOLDERMODSEQ" => Field::FolderModseq,
            b"SINCE_MODSEQ" => Field::SinceModseq,
            b"RECORD" => Field::Record,
            b"GUID" => Field::Guid,
            b"FLAGS" => Field::Flags,
            _ => return None,
        })
    }
}

/// What a field holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Slot {
    #[default]
    Absent,
    Text(Bytes),
    List,
    /// NIL, a file, or a string that can't be a name.
    Unusable,
}

/// How many elements are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// GUIDs, RECORDs.
    pub(crate) elements: usize,
    /// Names, and GUIDs of a RESERVE.
    pub(crate) names: usize,
    /// Elements of one MESSAGE.
    pub(crate) files: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Facts {
    family: Family,
    bounds: Bounds,
    want: Want,
    depth: usize,
    /// The key of the field that comes, in the outer list of pairs.
    key: Option<Field>,
    /// The repetition of a key that was there before: it does not count.
    repeated: bool,
    /// The key of the field that comes, in a RECORD.
    record_key: Option<Field>,
    in_flags: bool,
    record_guid: Option<Guid>,
    record_expunged: bool,
    /// The verb, in upper case; empty where it can't be a verb.
    pub(crate) verb: Bytes,
    pub(crate) top: Top,
    fields: [Slot; FIELDS],
    pub(crate) names: Vec<Bytes>,
    names_memory: u64,
    pub(crate) guids: Vec<Guid>,
    /// A list holds elements that are not what the verb needs.
    pub(crate) unsuited: bool,
    pub(crate) records: usize,
    pub(crate) files: Vec<File>,
    files_memory: u64,
    pub(crate) not_files: usize,
    /// `APPLY MESSAGE (`: raw bytes are dropped, contents go to the files.
    pub(crate) message: bool,
    current: Option<(Bytes, Guid)>,
    content: Gather,
    pub(crate) raw: Gather,
    /// Of an APPLY MAILBOX.
    pub(crate) state: StateText,
}

/// What a name costs in memory, the list that it stands in included.
pub(super) fn name_memory(name: &[u8]) -> u64 {
    (name.len() + 2 * size_of::<Bytes>()) as u64
}

impl Facts {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Facts {
            family: Family::Get,
            bounds,
            want: Want::Fields,
            depth: 0,
            key: None,
            repeated: false,
            record_key: None,
            in_flags: false,
            record_guid: None,
            record_expunged: false,
            verb: Bytes::new(),
            top: Top::Nothing,
            fields: Default::default(),
            names: Vec::new(),
            names_memory: 0,
            guids: Vec::new(),
            unsuited: false,
            records: 0,
            files: Vec::new(),
            files_memory: 0,
            not_files: 0,
            message: false,
            current: None,
            content: Gather::default(),
            raw: Gather::default(),
            state: StateText::default(),
        }
    }

    /// Forgets everything; `family` is what comes next.
    pub(crate) fn begin(&mut self, family: Family) {
        // These keep their buffers.
        let mut buffers = (
            std::mem::take(&mut self.raw),
            std::mem::take(&mut self.content),
            std::mem::take(&mut self.state),
        );
        buffers.0.clear();
        buffers.1.clear();
        buffers.2.clear();
        *self = Facts::new(self.bounds);
        self.family = family;
        (self.raw, self.content, self.state) = buffers;
    }

    /// Sets the verb, where it was read outside of the scanner.
    pub(crate) fn set_verb(&mut self, verb: &[u8]) {
        self.verb = verb.to_ascii_uppercase().into();
        self.want = match (self.family, &self.verb[..]) {
            (Family::Get, b"MAILBOXES") => Want::Names,
            (Family::Apply, b"CAPABILITIES") => Want::Names,
            (Family::Apply, b"RESERVE") => Want::Reserve,
            (Family::Apply, b"MAILBOX" | b"LOCAL_MAILBOX") => Want::Records,
            (Family::Apply, b"MESSAGE") => Want::Files,
            (Family::Reply, b"MISSING") => Want::Guids,
            (Family::Reply, b"ENABLED") => Want::Names,
            _ => Want::Fields,
        };
    }

    /// Bytes held in memory.
    pub(crate) fn held(&self) -> u64 {
        let guids = (self.guids.capacity() * size_of::<Guid>()) as u64;
        let files = self.files_memory + (self.files.capacity() * size_of::<File>()) as u64;
        self.raw.memory()
            + self.content.memory()
            + files
            + guids
            + self.names_memory
            + self.state.memory()
    }

    /// As much of it as [`Self::spill`] moves out.
    pub(crate) fn spillable(&self) -> u64 {
        self.raw.memory() + self.content.memory() + self.files_memory
    }

    pub(crate) fn spill(&mut self, write: &mut Write<'_>) -> io::Result<()> {
        let mut bodies: Vec<&mut Body> = self.files.iter_mut().map(|f| &mut f.content).collect();
        gather::spill(&mut [&mut self.raw, &mut self.content], &mut bodies, write)?;
        self.files_memory = 0;
        Ok(())
    }

    /// The string under a key, where it is there and usable.
    pub(crate) fn text(&self, field: Field) -> Option<Bytes> {
        match &self.fields[field as usize] {
            Slot::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// Whether the key is there.
    pub(crate) fn has(&self, field: Field) -> bool {
        self.fields[field as usize] != Slot::Absent
    }

    /// Whether there is a list under the key.
    pub(crate) fn has_list(&self, field: Field) -> bool {
        self.fields[field as usize] == Slot::List
    }

    fn set(&mut self, slot: Slot) {
        if let Some(field) = self.key {
            let place = &mut self.fields[field as usize];
            self.repeated = *place != Slot::Absent;
            if !self.repeated {
                if let Slot::Text(text) = &slot {
                    self.names_memory += text.len() as u64;
                }
                *place = slot;
            }
        }
    }

    fn push_name(&mut self, text: Option<&[u8]>) -> Result<(), String> {
        match text {
            None => self.unsuited = true,
            Some(_) if self.names.len() >= self.bounds.names => {
                return Err(format!("more than {} names", self.bounds.names));
            }
            Some(name) => {
                self.names_memory += name_memory(name);
                self.names.push(Bytes::copy_from_slice(name));
            }
        }
        Ok(())
    }

    fn push_guid(&mut self, guid: Option<Guid>) -> Result<(), String> {
        let most = match self.want {
            Want::Reserve => self.bounds.names,
            _ => self.bounds.elements,
        };
        match guid {
            None => self.unsuited = true,
            Some(_) if self.guids.len() >= most => {
                return Err(format!("more than {most} GUIDs"));
            }
            Some(guid) => self.guids.push(guid),
        }
        Ok(())
    }

    /// Whether the innermost list is one directly under `field` of the outer pairs.
    fn under(&self, field: Field) -> bool {
        self.depth == 2 && self.top == Top::Pairs && self.key == Some(field) && !self.repeated
    }

    /// A string, or NIL.
    fn scalar(&mut self, text: Option<Text<'_>>) -> Result<(), String> {
        // Most strings are not looked at any further.
        let usable = || text.as_ref().and_then(Text::usable);
        match (self.depth, self.want) {
            (0, _) => {
                self.top = match text {
                    None => Top::Nil,
                    Some(_) => Top::Text(usable().map(Bytes::copy_from_slice)),
                }
            }
            (1, _) if self.top == Top::Pairs => {
                let kept = self.key.filter(|key| *key < Field::LastUid);
                let kept = kept.and_then(|_| usable());
                self.set(kept.map_or(Slot::Unusable, |text| {
                    Slot::Text(Bytes::copy_from_slice(text))
                }));
            }
            (1, Want::Names) => self.push_name(usable())?,
            (1, Want::Guids) => self.push_guid(usable().and_then(Guid::parse))?,
            (1, Want::Files) => self.not_file()?,
            (2, Want::Reserve) if self.under(Field::MboxName) => self.push_name(usable())?,
            (2, Want::Reserve) if self.under(Field::Guid) => {
                self.push_guid(usable().and_then(Guid::parse))?;
            }
            (3, Want::Records) if self.record_key == Some(Field::Guid) => {
                self.record_guid = self.record_guid.or_else(|| usable().and_then(Guid::parse));
            }
            (4, Want::Records) if self.in_flags => {
                let expunged = usable().is_some_and(|f| f.eq_ignore_ascii_case(b"\\Expunged"));
                self.record_expunged |= expunged;
            }
            _ => {}
        }
        Ok(())
    }

    fn not_file(&mut self) -> Result<(), String> {
        self.not_files += 1;
        self.check_files()
    }

    fn check_files(&self) -> Result<(), String> {
        if self.files.len() + self.not_files > self.bounds.files {
            return Err(format!("more than {} messages", self.bounds.files));
        }
        Ok(())
    }

    fn open(&mut self, list: List) -> Result<(), String> {
        match (self.depth, self.want) {
            (0, want) => {
                self.top = match list {
                    List::Plain => Top::Plain,
                    List::Pairs => Top::Pairs,
                };
                self.message = want == Want::Files && list == List::Plain;
                if self.message {
                    self.raw.clear();
                }
            }
            (1, _) if self.top == Top::Pairs => self.set(match list {
                List::Plain => Slot::List,
                List::Pairs => Slot::Unusable,
            }),
            (1, Want::Names | Want::Guids) => self.unsuited = true,
            (1, Want::Files) => self.not_file()?,
            (2, Want::Reserve) => self.unsuited = true,
            (2, Want::Records) if self.under(Field::Record) && list == List::Pairs => {
                self.records += 1;
                self.record_key = None;
                self.record_guid = None;
                self.record_expunged = false;
            }
            (3, Want::Records) => self.in_flags = self.record_key == Some(Field::Flags),
            _ => {}
        }
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        self.depth -= 1;
        match (self.depth, self.want) {
            (3, Want::Records) => self.in_flags = false,
            (2, Want::Records) if self.under(Field::Record) => {
                let guid = self.record_guid.take();
                let fresh = guid.filter(|_| !self.record_expunged);
                if fresh.is_some() && fresh.as_ref() != self.guids.last() {
                    self.push_guid(fresh)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn key(&mut self, text: Text<'_>) {
        let usable = text.usable();
        match self.depth {
            0 => self.set_verb(usable.unwrap_or_default()),
            1 => {
                self.key = usable.and_then(Field::of);
                self.repeated = false;
            }
            3 if self.want == Want::Records => self.record_key = usable.and_then(Field::of),
            _ => {}
        }
    }

    fn file(&mut self, partition: &[u8], guid: Guid) -> Result<(), String> {
        if self.message && self.depth == 1 {
            self.names_memory += name_memory(partition);
            self.current = Some((Bytes::copy_from_slice(partition), guid));
            return self.check_files();
        }
        match self.depth {
            0 => self.top = Top::File,
            1 if self.top == Top::Pairs => self.set(Slot::Unusable),
            1 if self.want == Want::Files => self.not_file()?,
            _ => self.unsuited = true,
        }
        Ok(())
    }
}

impl Sink for Facts {
    fn raw(&mut self, bytes: Bytes) {
        if !self.message {
            self.raw.push(bytes);
        }
    }

    fn content(&mut self, bytes: Bytes) {
        if self.current.is_some() {
            self.content.push(bytes);
        } else {
            self.raw(bytes);
        }
    }

    fn token(&mut self, token: Token<'_>) -> Result<(), String> {
        if self.want == Want::Records {
            self.state.token(&token);
        }
        match token {
            Token::Key(text) => self.key(text),
            Token::Text(text) => self.scalar(Some(text))?,
            Token::Nil => self.scalar(None)?,
            Token::Open(list) => self.open(list)?,
            Token::Close => self.close()?,
            Token::File {
                partition, guid, ..
            } => self.file(partition, guid)?,
            Token::FileEnd => {
                if let Some((partition, guid)) = self.current.take() {
                    let content = self.content.finish();
                    self.files_memory += content.memory();
                    self.files.push(File {
                        partition,
                        guid,
                        content,
                    });
                }
            }
        }
        Ok(())
    }
}
