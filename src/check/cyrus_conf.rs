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
    use super::*;

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
