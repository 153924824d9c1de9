//! Proof that both ends hold the same, by two ways that share nothing with syncmux: a direct stock
//! `sync_client` that finds nothing to send, and everything that IMAP and ManageSieve show.

use std::collections::{BTreeMap, BTreeSet};

use super::client::Client;
use super::cyrus::Instance;
use super::imap::{Imap, Part, quote};
use super::unlike;

/// What one end holds: a name for each thing, and what it is.
pub type Snapshot = BTreeMap<String, String>;

/// Annotations of a mailbox that are copied to a replica and stay the same there.
const ENTRIES: &str = "/shared/comment /private/comment /private/specialuse \
    /shared/vendor/cmu/cyrus-imapd/expire /shared/vendor/cmu/cyrus-imapd/sharedseen \
    /shared/vendor/cmu/cyrus-imapd/duplicatedeliver /shared/vendor/cmu/cyrus-imapd/uniqueid";

/// What differs between the ends; empty where nothing does.
pub fn differences(
    master: &Instance,
    replica: &Instance,
    direct: &Client,
    sieve_users: &BTreeSet<String>,
) -> Vec<String> {
    // IMAP first: the direct client would repair what it finds.
    let users: BTreeSet<String> = [master, replica].iter().flat_map(|i| users(i)).collect();
    let mut ours = snapshot(master, &users, sieve_users);
    let mut theirs = snapshot(replica, &users, sieve_users);
    unlike::leave_out(&master.version, &replica.version, &mut ours, &mut theirs);
    let mut found = diff(&ours, &theirs);
    let in_vain = |line: &str| unlike::is_in_vain(&master.version, &replica.version, line);
    found.extend(unsent_but(direct, &users, in_vain));
    found
}

/// Whether IMAP shows anything of a user that is not the same on both ends.
pub fn snapshots_differ(master: &Instance, replica: &Instance, user: &str) -> bool {
    let of = |instance| {
        let mut all = Snapshot::new();
        of_user(instance, user, &mut all);
        all
    };
    of(master) != of(replica)
}

/// What a direct client still wants to send.
pub fn unsent(direct: &Client, users: &BTreeSet<String>) -> Vec<String> {
    unsent_but(direct, users, |_| false)
}

fn unsent_but(
    direct: &Client,
    users: &BTreeSet<String>,
    in_vain: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut runs = vec![("-A", direct.all())];
    if !users.is_empty() {
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        runs.push(("-u", direct.user(&users)));
    }
    let mut found = Vec::new();
    for (mode, outcome) in runs {
        if outcome.code != Some(0) {
            found.push(format!(
                "direct sync_client {mode} failed:\n{}",
                outcome.output
            ));
        }
        let sends = outcome
            .output
            .lines()
            .filter(|line| writes(line) && !in_vain(line));
        let sends: Vec<&str> = sends.map(|l| &l[..l.len().min(400)]).collect();
        if !sends.is_empty() {
            found.push(format!(
                "direct sync_client {mode} had to send:\n{}",
                sends.join("\n")
            ));
        }
        if !outcome.output.contains("GET ") && mode == "-u" {
            found.push(format!(
                "direct sync_client {mode} asked nothing:\n{}",
                outcome.output
            ));
        }
    }
    found
}

/// Whether a line of `-v -v` output shows a command that changes the replica.
fn writes(line: &str) -> bool {
    line.contains("APPLY ") && !line.contains("APPLY CAPABILITIES")
}

/// The users of an instance.
pub fn users(instance: &Instance) -> BTreeSet<String> {
    let pattern = if instance.virtual_domains {
        "user/*"
    } else {
        "user.%"
    };
    let names = instance.admin().list_names(pattern);
    let names = names.iter().filter_map(|name| {
        if instance.virtual_domains {
            let (local, domain) = name.strip_prefix("user/")?.split_once('@')?;
            (!local.contains('/')).then(|| format!("{local}@{domain}"))
        } else {
            name.strip_prefix("user.").map(str::to_owned)
        }
    });
    names.collect()
}

/// Everything that an instance shows.
pub fn snapshot(
    instance: &Instance,
    users: &BTreeSet<String>,
    sieve_users: &BTreeSet<String>,
) -> Snapshot {
    let mut all = Snapshot::new();
    let mut admin = instance.admin();
    let mut list = admin.run("LIST \"\" \"*\"");
    list.sort();
    all.insert("mailboxes".into(), list.join("\n"));
    for name in admin.list_names("*") {
        let name = quote(&name);
        for command in ["GETACL", "GETQUOTAROOT"] {
            let (lines, answer) = admin.attempt(&[Part::Text(&format!("{command} {name}"))]);
            all.insert(
                format!("{command} {name}"),
                format!("{lines:#?} {}", verdict(&answer)),
            );
        }
        let items = "(MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ)";
        let (lines, answer) = admin.attempt(&[Part::Text(&format!("STATUS {name} {items}"))]);
        all.insert(
            format!("STATUS {name}"),
            format!("{lines:#?} {}", verdict(&answer)),
        );
    }
    all.insert(
        "server annotations".into(),
        metadata(&mut admin, "\"\"", "/shared/comment"),
    );
    for user in users {
        of_user(instance, user, &mut all);
    }
    for user in sieve_users.intersection(users) {
        let scripts = instance.manage_sieve(user).scripts();
        all.insert(format!("{user}: sieve"), format!("{scripts:#?}"));
    }
    all
}

fn of_user(instance: &Instance, user: &str, all: &mut Snapshot) {
    let mut imap = instance.login(user);
    for command in ["LIST", "LSUB"] {
        let mut lines = imap.run(&format!("{command} \"\" \"*\""));
        lines.sort();
        all.insert(format!("{user}: {command}"), lines.join("\n"));
    }
    let private = metadata(&mut imap, "\"\"", "/private/comment");
    all.insert(format!("{user}: server annotations"), private);
    for name in imap.list_names("*") {
        let name = quote(&name);
        let (lines, answer) = imap.attempt(&[Part::Text(&format!("EXAMINE {name}"))]);
        let shown = lines
            .iter()
            .filter(|l| l.contains("UIDVALIDITY") || l.contains("EXISTS"));
        let shown: Vec<&String> = shown.collect();
        all.insert(
            format!("{user}: EXAMINE {name}"),
            format!("{shown:#?} {}", verdict(&answer)),
        );
        if !answer.starts_with("OK") {
            continue;
        }
        all.insert(
            format!("{user}: annotations of {name}"),
            metadata(&mut imap, &name, ENTRIES),
        );
        if lines.iter().any(|l| l == "* 0 EXISTS") {
            continue;
        }
        let fetched = imap.run(
            "UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ \
             ANNOTATION (/comment (value.priv value.shared)) BODY.PEEK[])",
        );
        for line in fetched.iter().filter(|l| l.contains(" FETCH (")) {
            let line = sorted_flags(line);
            let number = line.split(' ').nth(1).unwrap_or_default();
            all.insert(format!("{user}: {name} message {number:>7}"), line);
        }
    }
}

fn metadata(imap: &mut Imap, mailbox: &str, entries: &str) -> String {
    let (mut lines, answer) =
        imap.attempt(&[Part::Text(&format!("GETMETADATA {mailbox} ({entries})"))]);
    lines.sort();
    format!("{lines:#?} {}", verdict(&answer))
}

fn verdict(answer: &str) -> &str {
    answer.split(' ').next().unwrap_or_default()
}

/// Flags come in the order of a table that each end has for itself; \Recent belongs to a session.
fn sorted_flags(line: &str) -> String {
    let Some((head, rest)) = line.split_once("FLAGS (") else {
        return line.to_owned();
    };
    let Some((flags, tail)) = rest.split_once(')') else {
        return line.to_owned();
    };
    let mut flags: Vec<&str> = flags.split(' ').filter(|f| *f != "\\Recent").collect();
    flags.sort_unstable();
    format!("{head}FLAGS ({}){tail}", flags.join(" "))
}

/// What differs between two snapshots, readably.
pub fn diff(ours: &Snapshot, theirs: &Snapshot) -> Vec<String> {
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let mut found = Vec::new();
    for key in keys {
        let (a, b) = (ours.get(key), theirs.get(key));
        if a == b {
            continue;
        }
        let lines = |side: Option<&String>| -> Vec<String> {
            side.map(|t| t.lines().map(str::to_owned).collect())
                .unwrap_or_default()
        };
        let (a, b) = (lines(a), lines(b));
        let mut text = format!("{key}:");
        for line in a.iter().filter(|l| !b.contains(l)) {
            text.push_str(&format!("\n  master:  {line}"));
        }
        for line in b.iter().filter(|l| !a.contains(l)) {
            text.push_str(&format!("\n  replica: {line}"));
        }
        found.push(text);
    }
    found
}
