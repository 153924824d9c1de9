//! The lines that Cyrus's configuration on the master lacks, ready to be pasted.

use super::Paste;
use crate::config::{Channel, Config, ImapdConf, Listen, Passwords, is_on};
use crate::core::event::Mode;
use crate::protocol::Dialect;

/// For imapd.conf: what is not set, or not as it must be.
pub(super) fn imapd_conf(config: &Config) -> Option<Paste> {
    let conf = config.imapd_conf.as_ref();
    let mut lines = log_lines(config, conf);
    for channel in &config.channels {
        lines.extend(client_lines(config, channel, conf));
    }
    lines.dedup();
    let path = conf.map_or("/etc/imapd.conf".into(), |conf| {
        conf.path().display().to_string()
    });
    (!lines.is_empty()).then(|| Paste {
        into: format!("{path} of the master, in the place of lines with these names"),
        lines,
    })
}

fn log_lines(config: &Config, conf: Option<&ImapdConf>) -> Vec<String> {
    let rolling = |channel: &&Channel| !channel.listen.is_empty();
    let names: Vec<&str> = config
        .channels
        .iter()
        .filter(rolling)
        .map(|channel| quoted(&channel.name))
        .collect();
    let mut lines = Vec::new();
    if names.is_empty() {
        return lines;
    }
    let logs = conf.is_some_and(|conf| conf.switch("sync_log", false));
    if !logs {
        lines.push("sync_log: yes".to_owned());
    }
    let now = conf.and_then(|conf| conf.option("sync_log_channels"));
    // What is logged already goes on. A log that nobody takes would only grow.
    let unset = if logs || names.contains(&"\"\"") {
        "\"\""
    } else {
        ""
    };
    let now: Vec<&str> = now.unwrap_or(unset).split_whitespace().collect();
    let missing: Vec<&str> = names
        .into_iter()
        .filter(|name| !now.contains(name))
        .collect();
    if !missing.is_empty() {
        let all = now.into_iter().chain(missing).collect::<Vec<_>>().join(" ");
        lines.push(format!("sync_log_channels: {all}"));
    }
    lines
}

fn client_lines(config: &Config, channel: &Channel, conf: Option<&ImapdConf>) -> Vec<String> {
    let now = |name: &str| {
        let option = conf?.channel_option(&channel.name, name);
        option.map(|(value, _)| value.to_owned())
    };
    let prefix = if channel.name.is_empty() {
        String::new()
    } else {
        format!("{}_", channel.name)
    };
    let mut lines = Vec::new();
    let mut want = |name: &str, value: &str, is_right: bool| {
        if !is_right {
            lines.push(format!("{prefix}{name}: {value}"));
        }
    };
    if let Some(listen) = channel.listen.first() {
        let (host, port) = host_and_port(listen);
        let here = now("sync_host").is_some_and(|host| {
            let port = now("sync_port")
                .unwrap_or_else(|| super::cyrus::service(channel.dialect).to_owned());
            let all = channel.listen.iter().chain(&channel.strict_listen);
            all.into_iter()
                .any(|listen| super::cyrus::leads_to(&host, &port, listen))
        });
        want("sync_host", &host, here);
        if let Some(port) = port {
            // Where imapd comes by the same channel the port is imapd's, and the client has its own.
            if channel.rightnow_listen.is_empty() {
                want("sync_port", &port, here);
            }
            let name = match (&config.client.passwords, &channel.replica.login) {
                (Passwords::Configured(login), _) | (_, Some(login)) => login.username.clone(),
                _ => "NAME OF AN ADMINISTRATOR OF THE REPLICA".to_owned(),
            };
            want("sync_authname", &name, now("sync_authname").is_some());
            let password = "THE PASSWORD OF sync_authname";
            want("sync_password", password, now("sync_password").is_some());
        }
    }
    if let (Some(listen), Some(client)) = (channel.rightnow_listen.first(), channel.listen.first())
    {
        lines.extend(rightnow_lines(channel, conf, listen, client));
    }
    let mut want = |name: &str, value: &str, is_right: bool| {
        if !is_right {
            lines.push(format!("{prefix}{name}: {value}"));
        }
    };
    let off = |name| now(name).is_some_and(|value| !is_on(&value));
    match channel.dialect {
        Dialect::Csync => want("sync_try_imap", "no", off("sync_try_imap")),
        Dialect::Imap => want("sync_try_imap", "yes", !off("sync_try_imap")),
    }
    let unset_or_off = now("sync_compress").is_none_or(|value| !is_on(&value));
    want("sync_compress", "no", unset_or_off);
    // The client must wait longer than syncmux waits for the replica.
    let waits = now("sync_timeout").and_then(|text| super::cyrus::duration(&text));
    let long = waits.is_none_or(|time| time > config.limits.replica_absence);
    want("sync_timeout", "30m", long);
    if channel.mode == Mode::FanOut && now("sync_cache_db_path").is_some() {
        lines.push(format!(
            "# and no line {prefix}sync_cache_db_path, nor sync_cache_db_path"
        ));
    }
    lines
}

/// For cyrus.conf: the rolling client of each channel. It ends with 0 whenever its connection
/// ends, so something must start it again, which Cyrus's `master` does for `DAEMON`.
pub(super) fn daemon(channels: &[&Channel], path: &str) -> Option<Paste> {
    let line = |channel: &&Channel| match channel.name.as_str() {
        "" => "syncclient cmd=\"sync_client -r\"".to_owned(),
        name => format!("syncclient{name} cmd=\"sync_client -n {name} -r\""),
    };
    let lines: Vec<String> = channels.iter().map(line).collect();
    (!lines.is_empty()).then(|| Paste {
        into: format!(
            "{path} of the master, between DAEMON {{ and }} (make that section where there is none), \
             only if nothing else starts it (a systemd unit, client_command)"
        ),
        lines,
    })
}

/// As in `sync_log_channels`.
pub(super) fn quoted(name: &str) -> &str {
    if name.is_empty() { "\"\"" } else { name }
}

fn host_and_port(listen: &Listen) -> (String, Option<String>) {
    match listen {
        Listen::Tcp(at) if at.ip().is_unspecified() => {
            ("127.0.0.1".to_owned(), Some(at.port().to_string()))
        }
        Listen::Tcp(at) => (at.ip().to_string(), Some(at.port().to_string())),
        Listen::Unix(path) => (path.display().to_string(), None),
    }
}

/// For imapds that sync their own commits: one host for both, of which their locks are made, and a
/// port each.
fn rightnow_lines(
    channel: &Channel,
    conf: Option<&ImapdConf>,
    listen: &Listen,
    client: &Listen,
) -> Vec<String> {
    let name = &channel.name;
    let now = |service: &str, option: &str| {
        let found = conf?.service_option(service, name, option);
        found.map(|(value, _)| value.to_owned())
    };
    let mut lines = Vec::new();
    let channel_now = conf.and_then(|conf| conf.option("sync_rightnow_channel"));
    if channel_now != Some(name) {
        lines.push(format!("sync_rightnow_channel: {name}"));
    }
    for (service, key, to) in [
        ("imap", format!("{name}_sync_port"), listen),
        (
            "sync_client",
            format!("sync_client_{name}_sync_port"),
            client,
        ),
    ] {
        let host = now(service, "sync_host").unwrap_or_default();
        let port = now(service, "sync_port").unwrap_or_else(|| "csync".to_owned());
        if !super::cyrus::leads_to(&host, &port, to)
            && let (_, Some(port)) = host_and_port(to)
        {
            lines.push(format!("{key}: {port}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// What imapd.conf lacks where it says this and there is one channel of this name.
    fn lines(name: &str, says: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        fs::write(folder.path().join("imapd.conf"), says).unwrap();
        let text = format!(
            "[[channel]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:2005\"]\n\
             sync_directory = \"{shown}\"\n[channel.replica]\naddress = \"replica:2005\"\n\
             [site]\nimapd_conf = \"{shown}/imapd.conf\"\n"
        );
        let config = Config::parse(Path::new("syncmux.toml"), &text).unwrap();
        let paste = imapd_conf(&config).unwrap();
        let lines = paste.lines.into_iter();
        lines.filter(|line| line.starts_with("sync_log")).collect()
    }

    #[test]
    fn imapd_and_the_rolling_client_have_a_port_each() {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let text = format!(
            "[[channel]]\nname = \"far\"\nlisten = [\"127.0.0.1:2005\"]\n\
             rightnow_listen = [\"127.0.0.1:2007\"]\nsync_directory = \"{shown}\"\n\
             [channel.replica]\naddress = \"unix:/run/replica\"\n\
             [client]\nusername = \"repl\"\npassword_file = \"{shown}/password\"\n\
             [site]\nimapd_conf = \"{shown}/imapd.conf\"\n"
        );
        fs::write(folder.path().join("password"), "secret\n").unwrap();
        let lines = |says: &str| {
            fs::write(folder.path().join("imapd.conf"), says).unwrap();
            let config = Config::parse(Path::new("syncmux.toml"), &text).unwrap();
            let lines = imapd_conf(&config).map_or_else(Vec::new, |paste| paste.lines);
            let about = |line: &String| line.contains("port") || line.contains("rightnow");
            lines.into_iter().filter(about).collect::<Vec<_>>()
        };
        let all = [
            "sync_rightnow_channel: far",
            "far_sync_port: 2007",
            "sync_client_far_sync_port: 2005",
        ];
        assert_eq!(lines("a: b\n"), all);
        let done = format!("{}\nfar_sync_host: 127.0.0.1\n", all.join("\n"));
        assert_eq!(lines(&done), [""; 0]);
    }

    /// Nobody would take the default channel's log, which would only grow.
    #[test]
    fn only_what_somebody_takes_is_logged() {
        assert_eq!(
            lines("far", "a: b\n"),
            ["sync_log: yes", "sync_log_channels: far"]
        );
        assert_eq!(
            lines("far", "sync_log: yes\n"),
            ["sync_log_channels: \"\" far"]
        );
        assert_eq!(lines("", "a: b\n"), ["sync_log: yes"]);
        assert_eq!(
            lines("far", "sync_log: no\nsync_log_channels: near\n"),
            ["sync_log: yes", "sync_log_channels: near far"]
        );
    }
}
