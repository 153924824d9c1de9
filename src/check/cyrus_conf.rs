//! Cyrus's cyrus.conf, beside imapd.conf: does something start the rolling client again, and only
//! one?

use super::Report;
use crate::config::{Channel, ImapdConf};

/// Looks for the rolling client of this channel. Where the file can't be read nothing is said.
pub(super) fn look(report: &mut Report, channel: &Channel, conf: &ImapdConf) {
    let path = conf.path().with_file_name("cyrus.conf");
    let Ok(text) = std::fs::read(&path) else {
        return;
    };
    let Some(section) = section(&String::from_utf8_lossy(&text), &channel.name) else {
        return;
    };
    let shown = path.display();
    if !channel.client_command.is_empty() {
        report.error(format!(
            "{shown} starts the rolling client of this channel in {section}, and client_command \
             does so too: two of them spoil each other's work, remove one"
        ));
    } else if section == "START" {
        report.warning(format!(
            "{shown} starts the rolling client in START, where nobody starts it again once its \
             connection has ended: move the line to DAEMON"
        ));
    } else {
        report.fine(format!("{shown} starts the rolling client in {section}"));
    }
}

/// The section with a rolling `sync_client` of this channel.
fn section(text: &str, channel: &str) -> Option<String> {
    let mut section = String::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        if let Some((name, _)) = line.split_once('{') {
            name.trim().to_ascii_uppercase().clone_into(&mut section);
        }
        let Some((_, command)) = line.split_once("cmd=") else {
            continue;
        };
        let command = command.trim_start_matches('"');
        let command = command.split('"').next().unwrap_or_default();
        let words: Vec<&str> = command.split_whitespace().collect();
        let is_client = words
            .iter()
            .any(|word| word.rsplit('/').next() == Some("sync_client"));
        let rolls = words.iter().any(|word| matches!(*word, "-r" | "-R"));
        let named = words.iter().position(|word| *word == "-n");
        let named = named.and_then(|at| words.get(at + 1)).copied();
        if is_client && rolls && named.unwrap_or_default() == channel {
            return Some(section);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::check::{Severity, local};
    use crate::config::Config;

    /// What is said of the client by a site with this cyrus.conf.
    fn found(cyrus_conf: &str, command: &str) -> Vec<(Severity, String)> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(at("sync")).unwrap();
        fs::write(at("imapd.conf"), "sync_log: yes\n").unwrap();
        fs::write(at("cyrus.conf"), cyrus_conf).unwrap();
        fs::write(at("sync_client"), "").unwrap();
        fs::set_permissions(at("sync_client"), fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "[[channel]]\nsync_directory = \"DIR/sync\"\nlisten = [\"127.0.0.1:2005\"]\n{command}\n\
             [channel.replica]\naddress = \"replica:2005\"\n[site]\nimapd_conf = \"DIR/imapd.conf\"\n"
        );
        let text = text.replace("DIR", &folder.path().display().to_string());
        let config = Config::parse(Path::new("syncmux.toml"), &text).unwrap();
        let all = local(&config).0.into_iter();
        all.filter(|finding| finding.what.contains("rolling client"))
            .map(|finding| (finding.severity, finding.what))
            .collect()
    }

    #[test]
    fn exactly_one_is_to_start_it_again() {
        let line = |section: &str| format!("{section} {{\n  c cmd=\"sync_client -r\"\n}}\n");
        let command = "client_command = [\"DIR/sync_client\", \"-R\"]";
        let one = found(&line("DAEMON"), "");
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].0, Severity::Fine);
        let once = found(&line("START"), "");
        assert_eq!(once[0].0, Severity::Warning);
        assert!(once[0].1.ends_with("move the line to DAEMON"));
        let two = found(&line("DAEMON"), command);
        assert_eq!(two[0].0, Severity::Error);
        assert!(two[0].1.contains("remove one"));
        assert!(found("", command).is_empty());
        assert!(found("", "").is_empty());
    }

    #[test]
    fn sections() {
        let text = "START {\n  # sync cmd=\"sync_client -r\"\n  far cmd=\"/usr/sbin/cyrus sync_client \
                    -n far -r\"\n}\nDAEMON {\n  near cmd=\"sync_client -r\" # here\n  once \
                    cmd=\"sync_client -A\"\n}\n";
        assert_eq!(section(text, "").as_deref(), Some("DAEMON"));
        assert_eq!(section(text, "far").as_deref(), Some("START"));
        assert_eq!(section(text, "other"), None);
    }
}
