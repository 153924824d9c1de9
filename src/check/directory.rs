//! The sync directory: whose it is, and what can be done in it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Report;
use crate::config::words;

/// Looks at the directory; makes and removes one file in it.
pub(super) fn look(report: &mut Report, path: &Path) {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return report.error(format!("{shown}: {}", words(&error))),
    };
    let euid = rustix::process::geteuid().as_raw();
    if euid != 0 && euid != meta.uid() {
        return report.error(format!(
            "{shown} belongs to {}, and syncmux runs as {}: a `log` made by another user stops \
             replication; run syncmux as {} or as root",
            user(meta.uid()),
            user(euid),
            user(meta.uid())
        ));
    }
    if meta.uid() == 0 {
        report.error(format!(
            "{shown} belongs to root, but Cyrus never runs as root and can't write its log there: \
             chown it to Cyrus's user"
        ));
    }
    let parent = path
        .parent()
        .and_then(|parent| std::fs::metadata(parent).ok());
    if let Some(parent) = parent.filter(|parent| parent.uid() != meta.uid()) {
        report.warning(format!(
            "{shown} belongs to {}, but the folder above it to {}: both should be Cyrus's",
            user(meta.uid()),
            user(parent.uid())
        ));
    }
    for name in ["log", "log-run"] {
        let file = path.join(name);
        if let Ok(log) = std::fs::metadata(&file)
            && log.uid() != meta.uid()
        {
            report.error(format!(
                "{} belongs to {} and not to {}: sync_client opens it for writing and stops with \
                 \"Permission denied\"; chown {} it",
                file.display(),
                user(log.uid()),
                user(meta.uid()),
                user(meta.uid())
            ));
        }
    }
    try_links(report, path);
}

fn try_links(report: &mut Report, path: &Path) {
    let shown = path.display();
    // By a name that a start would clean up.
    let one = path.join(format!("syncmux-tmp-check-{}", std::process::id()));
    let two = path.join(format!("syncmux-tmp-check-{}-link", std::process::id()));
    if let Err(error) = std::fs::File::create_new(&one) {
        return report.error(format!(
            "no file can be made in {shown}: {}; syncmux must be able to write there",
            words(&error)
        ));
    }
    let linked = std::fs::hard_link(&one, &two);
    let _ = std::fs::remove_file(&one);
    let _ = std::fs::remove_file(&two);
    match linked {
        Ok(()) => report.fine(format!("{shown}: files can be made and linked there")),
        Err(error) => report.warning(format!(
            "{shown}: files can't be linked there ({}), so each run of the log is copied instead",
            words(&error)
        )),
    }
}

/// A user by name, where there is one.
fn user(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}
