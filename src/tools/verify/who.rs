//! Whom and what to compare. csync has no question for "who is there": the master's own list of mailboxes is
//! read by Cyrus's `ctl_mboxlist`, as `sync_client -A` reads it. Users that only the replica has are
//! not found so.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::Failed;
use super::{Subject, Who, compare};
use crate::config::{Channel, Config, words};
use crate::protocol::Site;

/// Where packages put Cyrus's programs.
const PLACES: [&str; 6] = [
    "/usr/lib/cyrus/bin",
    "/usr/cyrus/bin",
    "/usr/lib/cyrus-imapd",
    "/usr/libexec/cyrus-imapd",
    "/usr/cyrus/libexec",
    "/usr/local/cyrus/bin",
];

/// Each once, in order: shared mailboxes first.
pub(super) async fn subjects(
    who: &Who,
    config: &Config,
    channel: &Channel,
) -> Result<Vec<Subject>, Failed> {
    let users = if who.all {
        let (conf, owner) = cyrus(config, channel)?;
        let site = config.site.clone();
        let listed = tokio::task::spawn_blocking(move || list(&conf, owner));
        let listed = listed.await.map_err(Failed::unreachable)??;
        return some(subjects_of(&listed, &site));
    } else if let Some(path) = &who.users_from {
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        let shown = path.display();
        let text = text.map_err(|error| Failed::usage(format!("{shown}: {}", words(&error))))?;
        // Editors of other systems begin a file with this mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let names = text.lines().map(str::trim);
        let names = names.filter(|name| !name.is_empty() && !name.starts_with('#'));
        names.map(str::to_owned).collect()
    } else {
        who.users.iter().cloned().collect::<BTreeSet<_>>()
    };
    if let Some(wrong) = users
        .iter()
        .find(|name| name.is_empty() || name.contains(['\0', '\n', '\r']))
    {
        return Err(Failed::usage(format!("{wrong:?} is no user's name")));
    }
    some(users.into_iter().map(Subject::User).collect())
}

fn some(found: BTreeSet<Subject>) -> Result<Vec<Subject>, Failed> {
    if found.is_empty() {
        return Err(Failed::usage("there is nobody to compare"));
    }
    Ok(found.into_iter().collect())
}

/// Its imapd.conf, and whom it runs as: ctl_mboxlist refuses root.
fn cyrus(config: &Config, channel: &Channel) -> Result<(PathBuf, Option<(u32, u32)>), Failed> {
    let Some(conf) = &config.imapd_conf else {
        return Err(Failed::usage(
            "--all reads the master's list of mailboxes, and there is no imapd.conf: run it on the \
             master, set imapd_conf under [site], or name users with --users-from",
        ));
    };
    let owned = conf.option("configdirectory").map(PathBuf::from);
    let owned = owned.or_else(|| channel.sync_directory.clone());
    let meta = owned.and_then(|path| std::fs::metadata(path).ok());
    let owner = meta.map(|meta| (meta.uid(), meta.gid()));
    let owner = owner.filter(|_| rustix::process::geteuid().is_root());
    Ok((conf.path().to_owned(), owner))
}

fn list(conf: &Path, owner: Option<(u32, u32)>) -> Result<String, Failed> {
    let places = PLACES
        .iter()
        .map(|place| Path::new(place).join("ctl_mboxlist"));
    let program = places.into_iter().find(|path| path.exists());
    let program = program.unwrap_or_else(|| "ctl_mboxlist".into());
    let mut command = Command::new(&program);
    command
        .arg("-C")
        .arg(conf)
        .arg("-d")
        .stdin(Stdio::null())
        .current_dir("/");
    if let Some((uid, gid)) = owner {
        command.gid(gid).uid(uid);
    }
    let shown = program.display();
    let output = command.output().map_err(|error| {
        Failed::usage(format!(
            "{shown} can't be run: {}; --all needs Cyrus's own program on this machine, \
             --users-from does not",
            words(&error)
        ))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failed::usage(format!(
            "{shown} -d failed ({}): {said}",
            output.status
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The users and shared mailboxes of a list of mailboxes: JSON from Cyrus 3.4 on, lines with tabs
/// before.
fn subjects_of(text: &str, site: &Site) -> BTreeSet<Subject> {
    let json: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(text).ok();
    let names: Vec<String> = match json {
        Some(map) => map.into_iter().map(|(name, _)| name).collect(),
        None => {
            let lines = text.lines().filter_map(|line| line.split_once('\t'));
            lines.map(|(name, _)| name.to_owned()).collect()
        }
    };
    let subject = |name: String| {
        let key = site.key_of_mailbox(name.as_bytes());
        // Not what was deleted: each end removes it for good when it likes.
        let deleted = compare::is_deleted(&name, site);
        let subject = match key.is_shared() {
            true => Subject::Mailbox(name),
            false => Subject::User(String::from_utf8_lossy(key.as_bytes()).into_owned()),
        };
        (!deleted).then_some(subject)
    };
    names.into_iter().filter_map(subject).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_mailboxes() {
        let json = r#"{
            "DELETED.user.old.65000000": {"name": "DELETED.user.old.65000000"},
            "example.com!user.a": {}, "example.com!user.a.sub": {},
            "DELETED.shared.y.65000000": {},
            "shared.x": {}, "user.a^b": {}, "user.joe": {}
        }"#;
        let lines = "user.joe\t0 default joe\tlrs\t\nuser.joe.sub\t0 default joe\tlrs\t\n";
        let site = Site::default();
        let all = |text| {
            let found = subjects_of(text, &site).into_iter();
            found.map(|one| one.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            all(json),
            ["mailbox shared.x", "a.b", "a@example.com", "joe"]
        );
        assert_eq!(all(lines), ["joe"]);
        assert_eq!(all("{\n\n}\n").len(), 0);
    }
}
