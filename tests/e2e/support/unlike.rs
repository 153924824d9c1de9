//! What two versions of Cyrus do not hold alike, stock to stock: it is left out of the comparison of
//! both ends, so that all the rest of a scenario is compared.

use super::compare::Snapshot;
use super::version::Version;

/// Versions before keep sieve scripts as files and a user's data by name.
const NEW: &str = "3.4";

/// Takes out of both snapshots what these versions can't have in common.
pub fn leave_out(master: &Version, replica: &Version, ours: &mut Snapshot, theirs: &mut Snapshot) {
    if master.is_from(NEW) != replica.is_from(NEW) {
        let (old, new) = if master.is_from(NEW) {
            (&mut *theirs, &mut *ours)
        } else {
            (&mut *ours, &mut *theirs)
        };
        sieve_mailboxes(old, new);
    }
    if !replica.is_from(NEW) {
        deleted_users(ours, theirs);
    }
    if intermediates_differ(master, replica) {
        for all in [ours, theirs] {
            for (key, value) in all.iter_mut() {
                if key == "mailboxes" || key.ends_with(": LIST") {
                    keep_lines(value, |line| !line.contains("\\Noselect"));
                }
            }
        }
    }
}

/// A newer replica has records of intermediate mailboxes. A master of Cyrus 3.2 knows none, and its
/// `-A` sends UNMAILBOX for them.
fn intermediates_differ(master: &Version, replica: &Version) -> bool {
    !master.is_from(NEW) && replica.is_from(NEW)
}

/// Whether what the direct client sends is about such mailboxes alone: records of intermediate ones, or
/// deleted ones of a user who was deleted, which `-A` brings back to a replica of Cyrus 3.2. (A mailbox
/// that differs otherwise is seen by IMAP, before; and a message that is sent is followed by its MAILBOX.)
pub fn is_in_vain(master: &Version, replica: &Version, line: &str) -> bool {
    let says = |what: &str| line.contains(what);
    if !replica.is_from(NEW) {
        return says("APPLY RESERVE ")
            || says("APPLY MESSAGE ")
            || (says("APPLY MAILBOX ") && says("DELETED."));
    }
    intermediates_differ(master, replica) && says("APPLY UNMAILBOX ")
}

/// A mailbox `#sieve` has the scripts of Cyrus 3.6 and later, and counts for the quota. (The scripts
/// themselves are compared by ManageSieve.)
fn sieve_mailboxes(old: &mut Snapshot, new: &mut Snapshot) {
    let owners: Vec<String> = new
        .keys()
        .filter_map(|key| {
            let name = key.strip_prefix("GETACL \"")?.strip_suffix('"')?;
            let owner = name.strip_suffix("#sieve")?;
            Some(owner.trim_end_matches(['.', '/']).to_owned())
        })
        .collect();
    new.retain(|key, _| !key.ends_with("#sieve\""));
    if let Some(list) = new.get_mut("mailboxes") {
        keep_lines(list, |line| !line.ends_with("#sieve"));
    }
    for owner in &owners {
        let user = owner
            .trim_start_matches("user")
            .trim_start_matches(['.', '/']);
        for all in [&mut *old, &mut *new] {
            for (key, value) in all.iter_mut() {
                if key.starts_with(&format!("GETQUOTAROOT \"{owner}")) {
                    *value = without_usage(value);
                } else if key == "mailboxes" {
                    without_children(value, &format!(" {owner}"));
                } else if *key == format!("{user}: LIST") {
                    without_children(value, " INBOX");
                }
            }
        }
    }
}

/// UNUSER takes the user's deleted mailboxes along on a replica of Cyrus 3.2; the master keeps them for
/// a while, as newer replicas do.
fn deleted_users(ours: &mut Snapshot, theirs: &Snapshot) {
    let deleted = |text: &str| text.contains("DELETED.") || text.contains("DELETED/");
    ours.retain(|key, _| !deleted(key) || theirs.contains_key(key));
    let listed = theirs.get("mailboxes").cloned().unwrap_or_default();
    if let Some(list) = ours.get_mut("mailboxes") {
        keep_lines(list, |line| {
            !deleted(line) || listed.lines().any(|l| l == line)
        });
    }
}

fn keep_lines(text: &mut String, keep: impl Fn(&str) -> bool) {
    let kept: Vec<&str> = text.lines().filter(|line| keep(line)).collect();
    *text = kept.join("\n");
}

/// Whether a mailbox that ends so has children is not said any more.
fn without_children(list: &mut String, end: &str) {
    let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
    for line in lines.iter_mut().filter(|line| line.ends_with(end)) {
        *line = line
            .replace("\\HasChildren", "")
            .replace("\\HasNoChildren", "");
    }
    // They were sorted by that.
    lines.sort();
    *list = lines.join("\n");
}

/// `(STORAGE 3 100000)` becomes `(STORAGE 100000)`.
fn without_usage(text: &str) -> String {
    let mut parts = text.split("(STORAGE ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let limit = part.split_once(' ').map_or(part, |(_, limit)| limit);
        out.push_str("(STORAGE ");
        out.push_str(limit);
    }
    out
}
