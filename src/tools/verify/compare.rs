//! What two ends say of a user, and where they disagree.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ends::{Said, Untold};
use crate::protocol::Site;
use crate::protocol::dlist::Value;

/// Fields of a MAILBOX line that must be the same (`is_unchanged` in Cyrus's `sync_support.c`), and
/// that every server says.
const NEEDED: [&str; 5] = [
    "UNIQUEID",
    "UIDVALIDITY",
    "LAST_UID",
    "HIGHESTMODSEQ",
    "SYNC_CRC",
];

/// The same of others. What one end does not say at all, being older, is not compared.
const FIELDS: [&str; 10] = [
    "SYNC_CRC_ANNOT",
    "RECENTUID",
    "RECENTTIME",
    "POP3_LAST_LOGIN",
    "POP3_SHOW_AFTER",
    "CREATEDMODSEQ",
    "FOLDERMODSEQ",
    "PARTITION",
    "ACL",
    "OPTIONS",
];

/// In the place of what is [`NEEDED`] and not there.
const MISSING: &str = "missing";

/// Fields that are left out where there is nothing to say.
const OPTIONAL: [&str; 2] = ["MBOXTYPE", "QUOTAROOT"];

/// In the place of what is [`OPTIONAL`] and not there, and of a limit that is not there.
const NONE: &str = "none";

/// Where one of these differs the messages differ.
const OF_MESSAGES: [&str; 4] = ["LAST_UID", "HIGHESTMODSEQ", "SYNC_CRC", "SYNC_CRC_ANNOT"];

/// Fields of a message.
const OF_RECORD: [&str; 6] = [
    "MODSEQ",
    "FLAGS",
    "INTERNALDATE",
    "SIZE",
    "GUID",
    "ANNOTATIONS",
];

/// The messages of so many mailboxes of a user are looked at.
const MAILBOXES: usize = 20;

/// So many messages of a mailbox are named.
const MESSAGES: usize = 10;

/// So much of a value is shown.
const VALUE: usize = 120;

/// So much of a line that nobody understands is shown.
const LINE: usize = 60;

/// What is said of a user whom neither end has.
pub(super) const NOBODY: &str = "neither end has such a user";

/// What an end says of one thing, by field.
type Fields = BTreeMap<String, String>;

/// Things of a user by a name that is good to read.
type Things = BTreeMap<String, Fields>;

/// What differs, each in a line.
pub(super) fn users(master: &Said, replica: &Said, site: &Site) -> Vec<String> {
    let (ours, theirs) = match both(master, replica) {
        Ok(both) => both,
        Err(refusals) => return refusals,
    };
    if ours.is_empty() && theirs.is_empty() {
        return vec![NOBODY.to_owned()];
    }
    let mut found = not_understood(ours, theirs);
    let (ours, theirs) = (things(ours), things(theirs));
    for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        match (ours.get(name), theirs.get(name)) {
            (Some(ours), Some(theirs)) => {
                let both = [(ours, theirs), (theirs, ours)];
                let [ours, theirs] = both.map(|(one, other)| with_limits(name, one.clone(), other));
                found.extend(unlike(&ours, &theirs).map(|what| format!("{name}: {what}")));
            }
            // Each end removes for good what was deleted when it likes.
            _ if name
                .strip_prefix("mailbox ")
                .is_some_and(|name| is_deleted(name, site)) => {}
            (Some(_), None) => found.push(format!("{name}: only on the master")),
            (None, _) => found.push(format!("{name}: only on the replica")),
        }
    }
    found
}

/// The names of mailboxes that both have, and whose messages differ.
pub(super) fn unlike_mailboxes(master: &Said, replica: &Said) -> Vec<Bytes> {
    let (Ok(ours), Ok(theirs)) = (master, replica) else {
        return Vec::new();
    };
    let theirs: BTreeMap<&Bytes, &Value> = theirs
        .iter()
        .filter(|(kind, _)| kind == "MAILBOX")
        .filter_map(|(_, line)| Some((line.text("MBOXNAME")?, line)))
        .collect();
    let differs = |(kind, line): &(Bytes, Value)| {
        let name = line.text("MBOXNAME").filter(|_| kind == "MAILBOX")?;
        let there = theirs.get(name)?;
        let unlike = |field: &&str| line.get(field) != there.get(field);
        OF_MESSAGES.iter().any(unlike).then(|| name.clone())
    };
    ours.iter().filter_map(differs).take(MAILBOXES).collect()
}

/// What differs of a mailbox's messages.
pub(super) fn messages(name: &Bytes, master: &Said, replica: &Said) -> Vec<String> {
    let name = String::from_utf8_lossy(name);
    let (ours, theirs) = match both(master, replica) {
        Ok((ours, theirs)) => {
            let strange = not_understood(ours, theirs);
            if !strange.is_empty() {
                let told = strange.iter().map(|what| format!("mailbox {name}: {what}"));
                return told.collect();
            }
            (records(ours), records(theirs))
        }
        Err(refusals) => {
            let told = refusals
                .iter()
                .map(|why| format!("mailbox {name}: its messages: {why}"));
            return told.collect();
        }
    };
    let mut found = Vec::new();
    for uid in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let message = format!("mailbox {name}: message {uid}");
        match (ours.get(uid), theirs.get(uid)) {
            (Some(ours), Some(theirs)) => {
                let what: Vec<String> = unlike(&record(ours), &record(theirs)).collect();
                if !what.is_empty() {
                    found.push(format!("{message}: {}", what.join("; ")));
                }
            }
            (Some(one), None) if !is_expunged(one) => {
                found.push(format!("{message}: only on the master ({})", modseq(one)));
            }
            (None, Some(one)) if !is_expunged(one) => {
                found.push(format!("{message}: only on the replica ({})", modseq(one)));
            }
            // Each end cleans up when it likes.
            _ => {}
        }
    }
    if found.len() > MESSAGES {
        let more = found.len() - MESSAGES;
        found.truncate(MESSAGES);
        found.push(format!("mailbox {name}: and {more} more messages"));
    }
    found
}

type Lines = [(Bytes, Value)];

/// What both say, or who refuses.
fn both<'a>(master: &'a Said, replica: &'a Said) -> Result<(&'a Lines, &'a Lines), Vec<String>> {
    match (master, replica) {
        (Ok(ours), Ok(theirs)) => Ok((ours, theirs)),
        (ours, theirs) => {
            let refusal = |who: &str, said: &Said| {
                Some(match said.as_ref().err()? {
                    Untold::Refused(why) => format!("{who} refuses to tell: {why}"),
                    Untold::TooLong(bytes) => format!(
                        "the answer of {who} is too long to be compared here: {bytes} bytes"
                    ),
                })
            };
            let all = [refusal("the master", ours), refusal("the replica", theirs)];
            Err(all.into_iter().flatten().collect())
        }
    }
}

/// Lines that are no lines, at either end.
fn not_understood(ours: &Lines, theirs: &Lines) -> Vec<String> {
    let of = |who: &'static str, lines: &Lines| {
        let strange = lines.iter().filter(|(kind, _)| kind.is_empty());
        let told = strange.map(|(_, line)| {
            let line = canonical(line);
            format!(
                "a line of {who} can't be understood: {}",
                short(line.trim_end(), LINE)
            )
        });
        told.collect::<Vec<_>>()
    };
    [of("the master", ours), of("the replica", theirs)].concat()
}

fn things(lines: &Lines) -> Things {
    let mut things = Things::new();
    for (kind, line) in lines.iter().filter(|(kind, _)| !kind.is_empty()) {
        let named = |key: &str| line.text(key).map(|name| String::from_utf8_lossy(name));
        let thing = match &kind[..] {
            b"MAILBOX" => named("MBOXNAME").map(|name| {
                things.extend(annotations(&name, line));
                (format!("mailbox {name}"), mailbox(line))
            }),
            b"LSUB" if matches!(line, Value::List(_)) => {
                let names = line.elements().iter().map(canonical);
                let subscription = |name| (format!("subscription to {name}"), Fields::new());
                things.extend(names.map(subscription));
                continue;
            }
            b"SEEN" => named("UNIQUEID").map(|id| {
                let fields = ["LASTUID", "SEENUIDS"].into_iter();
                (format!("what is seen of {id}"), some(line, fields))
            }),
            b"SIEVE" => named("FILENAME").map(|name| {
                let fields = ["GUID", "ISACTIVE"].into_iter();
                (format!("sieve script {name}"), some(line, fields))
            }),
            b"QUOTA" => named("ROOT").map(|root| (format!("{QUOTA}{root}"), limits(line))),
            _ => None,
        };
        // Of what is not known here only the whole can be compared.
        let (name, fields) = thing.unwrap_or_else(|| {
            let kind = String::from_utf8_lossy(kind);
            let name = format!("a line {kind} {}", canonical(line));
            (name, Fields::new())
        });
        things.insert(name, fields);
    }
    things
}

const QUOTA: &str = "quota of ";

fn mailbox(line: &Value) -> Fields {
    let mut fields = some(line, FIELDS.into_iter());
    let needed = NEEDED.map(|name| (name, MISSING));
    for (name, absent) in needed.into_iter().chain(OPTIONAL.map(|name| (name, NONE))) {
        let value = line.get(name).map_or(absent.to_owned(), canonical);
        fields.insert(name.to_owned(), value);
    }
    fields
}

/// What a mailbox has of them. Each end counts their modseqs for itself, and Cyrus does not compare
/// these either.
fn annotations(mailbox: &str, line: &Value) -> Vec<(String, Fields)> {
    let all = line.get("ANNOTATIONS").map_or(&[][..], Value::elements);
    let one = |annotation: &Value| {
        let text = |key| annotation.get(key).map_or(String::new(), canonical);
        let whose = match text("USERID") {
            nobody if nobody.is_empty() => String::new(),
            user => format!(" of {user}"),
        };
        let name = format!("mailbox {mailbox}: annotation {}{whose}", text("ENTRY"));
        (name, some(annotation, ["VALUE"].into_iter()))
    };
    all.iter().map(one).collect()
}

/// Older servers write `X-NUM-FOLDERS` and `X-ANNOTATION-STORAGE`, newer ones both names.
fn limits(line: &Value) -> Fields {
    let Value::Pairs(pairs) = line else {
        return Fields::new();
    };
    let limit = |(key, _): &&(Bytes, Value)| key != "ROOT" && key != "MODSEQ";
    let text = |(key, value): &(Bytes, Value)| {
        let name = match &key[..] {
            b"X-NUM-FOLDERS" => "MAILBOX".into(),
            b"X-ANNOTATION-STORAGE" => "ANNOTATION-STORAGE".into(),
            other => String::from_utf8_lossy(other),
        };
        (name.into_owned(), canonical(value))
    };
    pairs.iter().filter(limit).map(text).collect()
}

fn some<'a>(line: &Value, names: impl Iterator<Item = &'a str>) -> Fields {
    let field = |name: &'a str| Some((name.to_owned(), canonical(line.get(name)?)));
    names.filter_map(field).collect()
}

/// By UID, as they stand in the answer: there may be many.
fn records(lines: &Lines) -> BTreeMap<u64, &Value> {
    let all = lines.iter().filter_map(|(_, line)| line.get("RECORD"));
    let record = |record| {
        let uid = Value::text(record, "UID")?;
        let uid = std::str::from_utf8(uid).ok()?.parse().ok()?;
        Some((uid, record))
    };
    all.flat_map(Value::elements).filter_map(record).collect()
}

fn record(record: &Value) -> Fields {
    some(record, OF_RECORD.into_iter())
}

/// A limit that is not said is none. Other fields count that both have.
fn with_limits(name: &str, mut fields: Fields, others: &Fields) -> Fields {
    if name.starts_with(QUOTA) {
        for other in others.keys() {
            fields.entry(other.clone()).or_insert(NONE.to_owned());
        }
    }
    fields
}

/// Fields that both have and that differ, with both values.
fn unlike<'a>(ours: &'a Fields, theirs: &'a Fields) -> impl Iterator<Item = String> + 'a {
    ours.iter().filter_map(|(name, ours)| {
        let theirs = theirs.get(name)?;
        let (a, b) = (short(ours, VALUE), short(theirs, VALUE));
        if ours == theirs {
            let missing = ours == MISSING && NEEDED.contains(&name.as_str());
            return missing.then(|| format!("{name} is missing at both ends"));
        }
        Some(if a == b {
            format!("{name} differs, behind {a}")
        } else {
            format!("{name} is {a} on the master and {b} on the replica")
        })
    })
}

/// Whether a mailbox has been deleted, by its internal name.
pub(super) fn is_deleted(name: &str, site: &Site) -> bool {
    let local = name.split_once('!').map_or(name, |(_, local)| local);
    local.starts_with(&format!("{}.", site.deletedprefix.replace('.', "^")))
}

fn is_expunged(record: &Value) -> bool {
    let flags = record.get("FLAGS").map_or(&[][..], Value::elements);
    let expunged = |flag: &Value| matches!(flag, Value::Text(flag) if flag.eq_ignore_ascii_case(b"\\expunged"));
    flags.iter().any(expunged)
}

fn modseq(record: &Value) -> String {
    let modseq = record.get("MODSEQ");
    format!("modseq {}", modseq.map_or("unknown".to_owned(), canonical))
}

/// A value as text. The order in a list, and the case of flags, say nothing.
fn canonical(value: &Value) -> String {
    match value {
        Value::Nil => "NIL".to_owned(),
        Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
        Value::List(list) => {
            let text = |value: &Value| match value {
                Value::Text(text) if text.starts_with(b"\\") => canonical(value).to_lowercase(),
                other => canonical(other),
            };
            let mut all: Vec<String> = list.iter().map(text).collect();
            all.sort_unstable();
            format!("({})", all.join(" "))
        }
        Value::Pairs(pairs) => {
            let text = |(key, value): &(Bytes, Value)| {
                format!("{} {}", String::from_utf8_lossy(key), canonical(value))
            };
            let mut all: Vec<String> = pairs.iter().map(text).collect();
            all.sort_unstable();
            format!("({})", all.join(" "))
        }
    }
}

/// For a sentence.
fn short(text: &str, most: usize) -> String {
    if text.is_empty() {
        return "empty".to_owned();
    }
    let cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        format!("{cut}...")
    } else {
        cut
    }
}

#[cfg(test)]
mod tests;
