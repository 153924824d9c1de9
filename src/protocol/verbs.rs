//! From what was picked out of a value to a typed command. What lacks a field that its verb needs
//! is not refused but carried as `Other`: the replica answers it.

use bytes::Bytes;

use super::command::{Apply, Get, Kind, Mailbox};
use super::facts::{Facts, Family, Field, Top};

/// The command that `facts` add up to.
pub(crate) fn kind(family: Family, facts: &mut Facts) -> Kind {
    match family {
        Family::Get => Kind::Get(get(facts).unwrap_or_else(|| Get::Other(facts.verb.clone()))),
        Family::Apply | Family::Reply => {
            Kind::Apply(apply(facts).unwrap_or_else(|| Apply::Other(facts.verb.clone())))
        }
        Family::Restore => Kind::Restore {
            mailbox: match &facts.verb[..] {
                b"MAILBOX" | b"LOCAL_MAILBOX" => facts.text(Field::MboxName).unwrap_or_default(),
                _ => Bytes::new(),
            },
        },
    }
}

fn get(facts: &mut Facts) -> Option<Get> {
    Some(match &facts.verb[..] {
        b"USER" => Get::User(text(facts)?),
        b"META" => Get::Meta(text(facts)?),
        b"MAILBOXES" => Get::Mailboxes(names(facts)?),
        b"FULLMAILBOX" => Get::FullMailbox(text(facts)?),
        b"FETCH" => Get::Fetch {
            mailbox: facts.text(Field::MboxName)?,
        },
        b"ANNOTATION" => Get::Annotation(text(facts)?),
        b"QUOTA" => Get::Quota(text(facts)?),
        b"FETCH_SIEVE" => Get::FetchSieve {
            user: facts.text(Field::UserId)?,
        },
        b"UNIQUEIDS" => Get::UniqueIds,
        _ => return None,
    })
}

fn apply(facts: &mut Facts) -> Option<Apply> {
    let verb = facts.verb.clone();
    Some(match &verb[..] {
        b"MAILBOX" => Apply::Mailbox(mailbox(facts, false)?),
        b"LOCAL_MAILBOX" => Apply::Mailbox(mailbox(facts, true)?),
        b"MESSAGE" if facts.message => Apply::Message {
            files: std::mem::take(&mut facts.files),
            nil: facts.not_files,
        },
        b"RESERVE" => {
            let partition = facts.text(Field::Partition)?;
            let lists = facts.has_list(Field::MboxName) && facts.has_list(Field::Guid);
            if facts.unsuited || !lists {
                return None;
            }
            Apply::Reserve {
                partition,
                mailboxes: std::mem::take(&mut facts.names),
                guids: std::mem::take(&mut facts.guids),
            }
        }
        b"EXPUNGE" => Apply::Expunge {
            mailbox: facts.text(Field::MboxName)?,
        },
        b"RENAME" | b"LOCAL_RENAME" => Apply::Rename {
            old: facts.text(Field::OldName)?,
            new: facts.text(Field::NewName)?,
        },
        b"UNMAILBOX" | b"LOCAL_UNMAILBOX" => Apply::Unmailbox(text(facts)?),
        b"UNUSER" | b"LOCAL_UNUSER" => Apply::Unuser(text(facts)?),
        b"SUB" => Apply::Sub {
            user: facts.text(Field::UserId)?,
            mailbox: facts.text(Field::MboxName)?,
        },
        b"UNSUB" => Apply::Unsub {
            user: facts.text(Field::UserId)?,
            mailbox: facts.text(Field::MboxName)?,
        },
        b"SEEN" => Apply::Seen {
            user: facts.text(Field::UserId)?,
            uniqueid: facts.text(Field::UniqueId)?,
        },
        b"QUOTA" => Apply::Quota {
            root: facts.text(Field::Root)?,
        },
        b"UNQUOTA" => Apply::Unquota { root: text(facts)? },
        b"ANNOTATION" | b"UNANNOTATION" => Apply::Annotation {
            mailbox: facts.text(Field::MboxName)?,
            verb,
        },
        b"SIEVE" | b"UNSIEVE" | b"ACTIVATE_SIEVE" | b"UNACTIVATE_SIEVE" => Apply::Sieve {
            user: facts.text(Field::UserId)?,
            verb,
        },
        b"FORCE" => Apply::Force,
        b"CAPABILITIES" => Apply::Capabilities(names(facts)?),
        _ => return None,
    })
}

/// The value, where it is a usable string.
fn text(facts: &Facts) -> Option<Bytes> {
    match &facts.top {
        Top::Text(text) => text.clone(),
        _ => None,
    }
}

/// The value, where it is a list of usable strings.
fn names(facts: &mut Facts) -> Option<Vec<Bytes>> {
    (facts.top == Top::Plain && !facts.unsuited).then(|| std::mem::take(&mut facts.names))
}

fn mailbox(facts: &mut Facts, local: bool) -> Option<Mailbox> {
    let name = facts.text(Field::MboxName)?;
    let uniqueid = facts.text(Field::UniqueId)?;
    let kind = facts.text(Field::MboxType).unwrap_or_default();
    let mut guids = std::mem::take(&mut facts.guids);
    guids.shrink_to_fit();
    // `mboxlist_mbtype_to_string` writes one letter for each type, `i` for intermediate.
    let intermediate =
        kind.contains(&b'i') && !facts.has(Field::LastUid) && !facts.has(Field::Record);
    let state = facts.state.finish().filter(|_| !intermediate);
    Some(Mailbox {
        name,
        uniqueid,
        partition: facts.text(Field::Partition).unwrap_or_default(),
        local,
        intermediate,
        since: facts.has(Field::SinceModseq) || facts.has(Field::FolderModseq),
        state,
        guids,
        records: facts.records,
    })
}
