//! Cyrus's cyrus.conf: is the rolling client started, and again when it ends?

use std::path::{Path, PathBuf};

use super::{Report, paste};
use crate::config::{Channel, Config, ImapdConf, SyncClient};

/// A rolling client in cyrus.conf.
#[derive(Debug, PartialEq, Eq)]
struct Started {
    section: String,
    channel: String,
}

/// Looks at the file beside imapd.conf. Where there is none the client may be started otherwise.
pub(super) fn look(report: &mut Report, config: &Config) {
    let path = beside(config.imapd_conf.as_ref());
    let shown = path.display().to_string();
    let rolling = || {
        config
            .channels
            .iter()
            .filter(|channel| !channel.listen.is_empty())
    };
    let text = read(&path);
    let started = started(text.as_deref().unwrap_or_default());
    let mut missing: Vec<&Channel> = Vec::new();
    for channel in rolling() {
        let name = if channel.name.is_empty() {
            "the default channel".to_owned()
        } else {
            format!("channel {}", channel.name)
        };
        let own = started
            .iter()
            .filter(|client| client.channel == channel.name);
        let sections: Vec<&str> = own.map(|client| client.section.as_str()).collect();
        if !channel.client_command.is_empty() {
            if let Some(section) = sections.first() {
                report.error(format!(
                    "{shown} starts the rolling client of {name} in {section}, and client_command \
                     does so too: two of them spoil each other's work, remove one"
                ));
            } else {
                report.fine(format!(
                    "syncmux itself keeps the rolling client of {name} running"
                ));
            }
            continue;
        }
        if sections.contains(&"DAEMON") {
            report.fine(format!(
                "{shown}: Cyrus starts the rolling client of {name} again when it ends"
            ));
            continue;
        }
        missing.push(channel);
        match sections.first() {
            Some(section) => report.warning(format!(
                "{shown}: the rolling client of {name} is started in {section}, and never again when it \
                 has ended, which it does with each restart of syncmux: move the line to DAEMON"
            )),
            None if text.is_some() => report.warning(format!(
                "{shown} does not start the rolling client of {name}: unless something else does, \
                 such as a systemd service with Restart=always, nothing is replicated"
            )),
            None => {}
        }
    }
    report.paste(paste::daemon(&missing, &shown));
}

fn beside(conf: Option<&ImapdConf>) -> PathBuf {
    let beside = conf.map(|conf| conf.path().with_file_name("cyrus.conf"));
    beside.unwrap_or_else(|| PathBuf::from("/etc/cyrus.conf"))
}

/// The cyrus.conf beside this imapd.conf, and the channels whose rolling clients it starts; nothing
/// where there is no such file.
pub(super) fn rolling_clients(conf: Option<&ImapdConf>) -> (PathBuf, Option<Vec<String>>) {
    let path = beside(conf);
    let text = read(&path);
    let found = text.map(|text| started(&text).into_iter().map(|it| it.channel).collect());
    (path, found)
}

fn read(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The rolling clients that a cyrus.conf names.
fn started(text: &str) -> Vec<Started> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let opened = line.strip_suffix('{').map(str::trim);
        if let Some(name) = opened.filter(|name| !name.contains(char::is_whitespace)) {
            section = name.to_ascii_uppercase();
        }
        let Some((_, command)) = line.split_once("sync_client") else {
            continue;
        };
        let command = command.split('"').next().unwrap_or_default();
        let words: Vec<&str> = command.split_whitespace().collect();
        let SyncClient {
            rolling, channel, ..
        } = SyncClient::read(&words);
        let section = section.clone();
        if rolling {
            found.push(Started { section, channel });
        }
    }
    found
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
        assert_eq!(found("", command)[0].0, Severity::Fine);
        let none = found("", "");
        assert!(
            none[0].1.contains("does not start the rolling client"),
            "{none:?}"
        );
    }

    #[test]
    fn clients() {
        let text = "START {\n  recover cmd=\"ctl_cyrusdb -r\"\n  # x cmd=\"sync_client -r\"\n  \
            a cmd=\"/usr/sbin/cyrus sync_client -r\"\n}\nSERVICES {\n  imap cmd=\"imapd\"\n}\n\
            DAEMON {\n  b cmd=\"sync_client -C /etc/x -n far -r\"\n  c cmd=\"sync_client -A\"\n  \
            d cmd=\"sync_client -rv\"\n  e cmd=\"sync_client -vRnnear\"\n}\n";
        let is = |section: &str, channel: &str| Started {
            section: section.to_owned(),
            channel: channel.to_owned(),
        };
        assert_eq!(
            started(text),
            [
                is("START", ""),
                is("DAEMON", "far"),
                is("DAEMON", ""),
                is("DAEMON", "near"),
            ]
        );
    }
}
