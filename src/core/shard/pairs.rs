//! Renames in the log of an old Cyrus.

use bytes::Bytes;
use hashbrown::HashMap;

use super::LogLine;

/// So many lines behind a rename the APPEND of its new name may still come.
const BEHIND: usize = 1000;

/// Puts the lines of a run together that may be the two halves of a rename. Cyrus before 3.4 logs it as
/// `MAILBOX old` and `MAILBOX new`, in one write, and `APPEND new` soon after (`mboxlist_renamemailbox`,
/// and `sync_log_mailbox_double` in its `sync_log.h`). Its client understands a rename only where it has
/// both names in one run: by itself the new one is refused with `IMAP_MAILBOX_MOVED`, for ever where each
/// of two clients waits for what the other one would remove.
///
/// Two MAILBOX lines of two users, one behind the other, may look the same by chance, and so may a row of
/// them. They are kept together too unless what follows them shows that nothing was renamed. This costs
/// some of the parallelism; and a user whose shard does not get on holds up more others than his own.
#[must_use]
pub fn join_renames(lines: Vec<LogLine>) -> Vec<LogLine> {
    let mut appends: HashMap<Bytes, usize> = HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(name) = name(line, b"APPEND ") {
            appends.insert(name, at);
        }
    }
    let count = lines.len();
    let is_pair = |at: usize, old: &LogLine, new: &LogLine| {
        let (Some(from), Some(to)) = (name(old, b"MAILBOX "), name(new, b"MAILBOX ")) else {
            return false;
        };
        let appended = |name: &Bytes| appends.get(name).is_some_and(|append| *append > at);
        let may_follow = count - at < BEHIND && !appended(&from);
        old.first != new.first && (appended(&to) || may_follow)
    };
    let mut joined = Vec::with_capacity(count);
    let mut group: Vec<LogLine> = Vec::new();
    for (at, line) in lines.into_iter().enumerate() {
        let belongs = group.last().is_some_and(|last| is_pair(at, last, &line));
        if !belongs {
            joined.extend(as_one(std::mem::take(&mut group)));
        }
        group.push(line);
    }
    joined.extend(as_one(group));
    joined
}

fn name(line: &LogLine, word: &[u8]) -> Option<Bytes> {
    line.text
        .starts_with(word)
        .then(|| line.text.slice(word.len()..))
}

fn as_one(mut lines: Vec<LogLine>) -> Option<LogLine> {
    if lines.len() < 2 {
        return lines.pop();
    }
    let texts: Vec<&[u8]> = lines.iter().map(|line| &line.text[..]).collect();
    let text = texts.join(&b'\n').into();
    let first = lines.first()?.first.clone();
    let mut more: Vec<_> = lines.into_iter().map(|line| line.first).collect();
    more.sort_unstable();
    more.dedup();
    more.retain(|key| *key != first);
    Some(LogLine { text, first, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Site;

    fn joined(log: &[&str]) -> Vec<String> {
        let line = |text: &&str| {
            let name = text.split(' ').nth(1).unwrap_or_default();
            LogLine {
                text: Bytes::copy_from_slice(text.as_bytes()),
                first: Site::default().key_of_mailbox(name.as_bytes()),
                more: Vec::new(),
            }
        };
        let shown = |line: LogLine| {
            let keys: Vec<String> = line.keys().map(ToString::to_string).collect();
            let text = String::from_utf8_lossy(&line.text).replace('\n', ", ");
            assert_eq!(line.lines(), text.split(", ").count() as u64);
            format!("{}: {text}", keys.join(" "))
        };
        let lines = join_renames(log.iter().map(line).collect());
        lines.into_iter().map(shown).collect()
    }

    #[test]
    fn two_halves_of_a_rename_are_one() {
        let log = [
            "MAILBOX user.a",
            "MAILBOX user.b",
            "APPEND user.b",
            "MAILBOX user.c",
            "MAILBOX user.c.box",
            "MAILBOX user.d.box",
            "MAILBOX user.c",
            "APPEND user.e",
        ];
        assert_eq!(
            joined(&log),
            [
                "a b: MAILBOX user.a, MAILBOX user.b",
                "b: APPEND user.b",
                "c: MAILBOX user.c",
                "c d: MAILBOX user.c.box, MAILBOX user.d.box, MAILBOX user.c",
                "e: APPEND user.e",
            ]
        );
        assert!(joined(&[]).is_empty());
    }

    #[test]
    fn what_follows_shows_that_nothing_was_renamed() {
        // user.a is there still.
        let log = ["MAILBOX user.a", "MAILBOX user.b", "APPEND user.a"];
        assert_eq!(joined(&log).len(), 3);
        // So it may be once more, behind what looks like a rename in everything.
        let log = [
            "MAILBOX user.a",
            "MAILBOX user.b",
            "APPEND user.b",
            "APPEND user.a",
        ];
        assert_eq!(joined(&log).len(), 3);
        // Nothing is said of user.b for very long.
        let mut log = vec!["MAILBOX user.a", "MAILBOX user.b"];
        log.extend(std::iter::repeat_n("SEEN user.c", BEHIND));
        assert_eq!(joined(&log).len(), log.len());
        log.push("APPEND user.b");
        assert_eq!(joined(&log).len(), log.len() - 1);
    }
}
