//! Renames in the log of an old Cyrus.

use super::LogLine;

/// Puts lines together that may be the two halves of a rename or of a copy. Cyrus before 3.4 logs these as
/// `MAILBOX old` and `MAILBOX new`, in one write (`sync_log_mailbox_double` in its `sync_log.h`), and its
/// client understands a rename only where it has both in one run: by itself the new name is refused with
/// `IMAP_MAILBOX_MOVED`, for ever where each of two clients waits for what the other one would remove.
///
/// Two MAILBOX lines of two users, one behind the other, look the same by chance. So this costs some of
/// the parallelism, and nothing else.
#[derive(Debug)]
pub struct Pairs {
    on: bool,
    /// The last lines, where the next one may belong to them.
    open: Vec<LogLine>,
}

impl Pairs {
    /// With `on` false lines come out as they go in.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Pairs {
            on,
            open: Vec::new(),
        }
    }

    /// The next line. What is complete by it comes out.
    pub fn push(&mut self, line: LogLine) -> Option<LogLine> {
        if !self.on {
            return Some(line);
        }
        let last = self.open.last();
        let belongs = is_mailbox(&line)
            && last.is_some_and(|last| is_mailbox(last) && last.first != line.first);
        let complete = if belongs { None } else { self.end() };
        self.open.push(line);
        complete
    }

    /// There are no more.
    pub fn end(&mut self) -> Option<LogLine> {
        let mut lines = std::mem::take(&mut self.open);
        let first = lines.first()?.first.clone();
        if lines.len() == 1 {
            return lines.pop();
        }
        let texts: Vec<&[u8]> = lines.iter().map(|line| &line.text[..]).collect();
        let text = texts.join(&b'\n').into();
        let mut more: Vec<_> = lines.into_iter().map(|line| line.first).collect();
        more.sort_unstable();
        more.dedup();
        more.retain(|key| *key != first);
        Some(LogLine { text, first, more })
    }
}

fn is_mailbox(line: &LogLine) -> bool {
    line.text.starts_with(b"MAILBOX ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::Site;

    fn joined(on: bool, names: &[&str]) -> Vec<String> {
        let mut pairs = Pairs::new(on);
        let line = |text: &&str| LogLine {
            text: Bytes::copy_from_slice(text.as_bytes()),
            first: Site::default()
                .key_of_mailbox(text.split(' ').nth(1).unwrap_or_default().as_bytes()),
            more: Vec::new(),
        };
        let lines: Vec<LogLine> = names.iter().map(line).collect();
        let mut out: Vec<LogLine> = lines
            .into_iter()
            .filter_map(|line| pairs.push(line))
            .collect();
        out.extend(pairs.end());
        let shown = |line: LogLine| {
            let keys = line.keys().map(ToString::to_string).collect::<Vec<_>>();
            let text = String::from_utf8_lossy(&line.text).replace('\n', ", ");
            assert_eq!(line.lines(), text.split(", ").count() as u64);
            format!("{}: {text}", keys.join(" "))
        };
        out.into_iter().map(shown).collect()
    }

    #[test]
    fn two_halves_of_a_rename_are_one() {
        let log = [
            "APPEND user.a",
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
            joined(true, &log),
            [
                "a: APPEND user.a",
                "a b: MAILBOX user.a, MAILBOX user.b",
                "b: APPEND user.b",
                "c: MAILBOX user.c",
                "c d: MAILBOX user.c.box, MAILBOX user.d.box, MAILBOX user.c",
                "e: APPEND user.e",
            ]
        );
        assert_eq!(joined(false, &log).len(), log.len());
        assert!(joined(true, &[]).is_empty());
    }
}
