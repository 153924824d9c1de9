//! What two ends say of a user, and where they disagree.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ends::Said;
use crate::protocol::Site;
use crate::protocol::dlist::Value;

/// Fields of a MAILBOX line that must be the same (`is_unchanged` in Cyrus's `sync_support.c`). What
/// one end does not say at all, being older, is not compared.
const FIELDS: [&str; 12] = [
    "UNIQUEID",
    "UIDVALIDITY",
    "LAST_UID",
    "HIGHESTMODSEQ",
    "SYNC_CRC",
    "SYNC_CRC_ANNOT",
    "RECENTUID",
    "RECENTTIME",
    "POP3_LAST_LOGIN",
    "PARTITION",
    "ACL",
    "OPTIONS",
];

/// Fields that are left out where there is nothing to say.
const OPTIONAL: [&str; 2] = ["MBOXTYPE", "QUOTAROOT"];

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
        return vec!["neither end has such a user".to_owned()];
    }
    let (ours, theirs) = (things(ours), things(theirs));
    let mut found = Vec::new();
    for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        match (ours.get(name), theirs.get(name)) {
            (Some(ours), Some(theirs)) => {
                found.extend(unlike(ours, theirs).map(|what| format!("{name}: {what}")))
            }
            // Each end removes for good what was deleted when it likes.
            _ if is_deleted(name, site) => {}
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
        Ok((ours, theirs)) => (records(ours), records(theirs)),
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
                let what: Vec<String> = unlike(ours, theirs).collect();
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
                let why = said.as_ref().err()?;
                Some(format!("{who} refuses to tell: {why}"))
            };
            let all = [refusal("the master", ours), refusal("the replica", theirs)];
            Err(all.into_iter().flatten().collect())
        }
    }
}

fn things(lines: &Lines) -> Things {
    let mut things = Things::new();
    for (kind, line) in lines {
        let named = |key: &str| line.text(key).map(|name| String::from_utf8_lossy(name));
        match &kind[..] {
            b"MAILBOX" => {
                if let Some(name) = named("MBOXNAME") {
                    things.insert(format!("mailbox {name}"), mailbox(line));
                }
            }
            b"LSUB" => {
                for name in line.elements() {
                    things.insert(
                        format!("subscription to {}", canonical(name)),
                        Fields::new(),
                    );
                }
            }
            b"SEEN" => {
                let fields = ["LASTUID", "SEENUIDS"].into_iter();
                if let Some(id) = named("UNIQUEID") {
                    things.insert(format!("what is seen of {id}"), some(line, fields));
                }
            }
            b"SIEVE" => {
                if let Some(name) = named("FILENAME") {
                    let fields = ["GUID", "ISACTIVE"].into_iter();
                    things.insert(format!("sieve script {name}"), some(line, fields));
                }
            }
            b"QUOTA" => {
                if let (Some(root), Value::Pairs(pairs)) = (named("ROOT"), line) {
                    let limit = |(key, _): &&(Bytes, Value)| key != "ROOT" && key != "MODSEQ";
                    let limits = pairs.iter().filter(limit);
                    let text = |(key, value): &(Bytes, Value)| {
                        (String::from_utf8_lossy(key).into_owned(), canonical(value))
                    };
                    things.insert(format!("quota of {root}"), limits.map(text).collect());
                }
            }
            _ => {}
        }
    }
    things
}

fn mailbox(line: &Value) -> Fields {
    let mut fields = some(line, FIELDS.into_iter());
    for name in OPTIONAL {
        let value = line.get(name).map_or("none".to_owned(), canonical);
        fields.insert(name.to_owned(), value);
    }
    fields
}

fn some<'a>(line: &Value, names: impl Iterator<Item = &'a str>) -> Fields {
    let field = |name: &'a str| Some((name.to_owned(), canonical(line.get(name)?)));
    names.filter_map(field).collect()
}

fn records(lines: &Lines) -> BTreeMap<u64, Fields> {
    let all = lines.iter().filter_map(|(_, line)| line.get("RECORD"));
    let record = |record: &Value| {
        let uid = std::str::from_utf8(record.text("UID")?)
            .ok()?
            .parse()
            .ok()?;
        Some((uid, some(record, OF_RECORD.into_iter())))
    };
    all.flat_map(Value::elements).filter_map(record).collect()
}

/// Fields that both have and that differ, with both values.
fn unlike<'a>(ours: &'a Fields, theirs: &'a Fields) -> impl Iterator<Item = String> + 'a {
    ours.iter().filter_map(|(name, ours)| {
        let theirs = theirs.get(name)?;
        let (a, b) = (short(ours), short(theirs));
        (ours != theirs).then(|| format!("{name} is {a} on the master and {b} on the replica"))
    })
}

fn is_deleted(name: &str, site: &Site) -> bool {
    let Some(name) = name.strip_prefix("mailbox ") else {
        return false;
    };
    let local = name.split_once('!').map_or(name, |(_, local)| local);
    local.starts_with(&format!("{}.", site.deletedprefix.replace('.', "^")))
}

fn is_expunged(record: &Fields) -> bool {
    let flags = record.get("FLAGS").map(String::as_str).unwrap_or_default();
    flags.contains("\\expunged")
}

fn modseq(record: &Fields) -> String {
    format!(
        "modseq {}",
        record.get("MODSEQ").map_or("unknown", String::as_str)
    )
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
fn short(text: &str) -> String {
    const MOST: usize = 120;
    if text.is_empty() {
        return "empty".to_owned();
    }
    let cut: String = text.chars().take(MOST).collect();
    if cut.len() < text.len() {
        format!("{cut}...")
    } else {
        cut
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::protocol::dlist::parse;

    fn said(lines: &[&str]) -> Said {
        let parsed = lines
            .iter()
            .map(|line| parse(format!("{line}\r\n").as_bytes()).unwrap());
        Ok(parsed.collect())
    }

    const INBOX: &str = "MAILBOX %(UNIQUEID a MBOXNAME user.joe SYNC_CRC 5 LAST_UID 3 \
        HIGHESTMODSEQ 9 UIDVALIDITY 7 ACL \"joe\tlrs\t\" OPTIONS P)";

    #[test]
    fn the_same() {
        let one = said(&[
            INBOX,
            "LSUB (user.a user.b)",
            "QUOTA %(ROOT user.joe STORAGE 5 MODSEQ 3)",
        ]);
        let other = said(&[
            "LSUB (user.b user.a)",
            "QUOTA %(ROOT user.joe STORAGE 5 MODSEQ 4)",
            // An older end says less; the other one has cleaned up.
            &INBOX.replace(" OPTIONS P", ""),
            "MAILBOX %(MBOXNAME DELETED.user.joe.x.65000000 UNIQUEID b)",
        ]);
        let none = Vec::<String>::new();
        assert_eq!(users(&one, &other, &Site::default()), none);
        assert_eq!(unlike_mailboxes(&one, &other).len(), 0);
    }

    #[test]
    fn what_differs() {
        let ours = said(&[
            INBOX,
            "MAILBOX %(MBOXNAME user.joe.x UNIQUEID c)",
            "LSUB (user.a)",
            "SEEN %(UNIQUEID a LASTUID 3 SEENUIDS 1:3)",
        ]);
        let theirs = said(&[
            &INBOX.replace("SYNC_CRC 5", "SYNC_CRC 6"),
            "SEEN %(UNIQUEID a LASTUID 3 SEENUIDS \"\")",
            "SIEVE %(FILENAME s.script GUID 00 ISACTIVE 1)",
        ]);
        assert_eq!(
            users(&ours, &theirs, &Site::default()),
            [
                "mailbox user.joe: SYNC_CRC is 5 on the master and 6 on the replica",
                "mailbox user.joe.x: only on the master",
                "sieve script s.script: only on the replica",
                "subscription to user.a: only on the master",
                "what is seen of a: SEENUIDS is 1:3 on the master and empty on the replica",
            ]
        );
        assert_eq!(unlike_mailboxes(&ours, &theirs), ["user.joe"]);
    }

    #[test]
    fn refusals_and_nobody() {
        let refused: Said = Err("NO IMAP_IOERROR System I/O error".to_owned());
        let found = users(&said(&[INBOX]), &refused, &Site::default());
        assert_eq!(
            found,
            ["the replica refuses to tell: NO IMAP_IOERROR System I/O error"]
        );
        let nobody = users(&said(&[]), &said(&[]), &Site::default());
        assert_eq!(nobody, ["neither end has such a user"]);
    }

    #[test]
    fn messages_that_differ() {
        let line =
            |records: &str| said(&[&format!("MAILBOX %(MBOXNAME user.joe RECORD ({records}))")]);
        let record = |uid: u32, flags: &str| {
            format!(
                "%(UID {uid} MODSEQ {} FLAGS ({flags}) GUID 0{uid})",
                uid + 10
            )
        };
        let ours = [
            record(1, "\\Seen x"),
            record(2, ""),
            record(3, ""),
            record(4, "\\Expunged"),
        ];
        let theirs = [record(1, "x \\seen"), record(2, "\\Seen"), record(5, "")];
        let (ours, theirs) = (line(&ours.join(" ")), line(&theirs.join(" ")));
        let name = Bytes::from("user.joe");
        assert_eq!(
            messages(&name, &ours, &theirs),
            [
                "mailbox user.joe: message 2: FLAGS is () on the master and (\\seen) on the replica",
                "mailbox user.joe: message 3: only on the master (modseq 13)",
                "mailbox user.joe: message 5: only on the replica (modseq 15)",
            ]
        );
        let many: Vec<String> = (1..100).map(|uid| record(uid, "")).collect();
        let found = messages(&name, &line(&many.join(" ")), &line(""));
        assert_eq!(found.len(), 11);
        assert_eq!(found[10], "mailbox user.joe: and 89 more messages");
    }
}
