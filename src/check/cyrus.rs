//! Cyrus's imapd.conf: does the client log what it should, and does it come here?

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::{Report, rightnow};
use crate::config::{Address, Channel, Config, ImapdConf, Listen, is_on, is_same_host};
use crate::core::event::Mode;
use crate::protocol::Dialect;

/// Looks at the options that concern this channel.
pub(super) fn look(report: &mut Report, config: &Config, channel: &Channel, conf: &ImapdConf) {
    let shown = conf.path().display();
    let option = |name| {
        conf.channel_option(&channel.name, name)
            .map(|(value, _)| value)
    };
    if channel.mode == Mode::FanOut || !channel.rightnow_listen.is_empty() {
        logging(report, channel, conf);
    }
    destination(report, config, channel, conf);
    // The default is yes from Cyrus 3.0 on.
    match (channel.dialect, option("sync_try_imap").is_none_or(is_on)) {
        (Dialect::Csync, true) => report.warning(format!(
            "{shown}: sync_try_imap is on, so the client asks for IMAP first: one question more \
             for each connection, set sync_try_imap: no"
        )),
        (Dialect::Imap, false) => report.error(format!(
            "{shown}: sync_try_imap is off, so the client speaks csync, and the channel's dialect \
             is \"imap\": it would never get in; set sync_try_imap: yes, or remove dialect"
        )),
        (Dialect::Csync, false) | (Dialect::Imap, true) => {}
    }
    if option("sync_compress").is_some_and(is_on) {
        report.warning(format!(
            "{shown}: sync_compress is on, but syncmux offers no compression to clients, which are \
             beside it: set sync_compress: no, and compress = true under [channel.replica] if the \
             way to the replica is narrow"
        ));
    }
    credentials(report, channel, conf);
    rightnow::look(report, config, channel, conf);
    let timeout = option("sync_timeout").map_or(Some(Duration::from_secs(1_800)), duration);
    if let Some(timeout) = timeout
        && timeout <= config.limits.replica_absence
    {
        report.warning(format!(
            "{shown}: the client waits {} seconds for an answer (sync_timeout), and syncmux up to \
             {} for an absent replica: set replica_absence under [limits] below that",
            timeout.as_secs(),
            config.limits.replica_absence.as_secs()
        ));
    }
}

/// A TCP client must log in.
fn credentials(report: &mut Report, channel: &Channel, conf: &ImapdConf) {
    let option = |name| conf.channel_option(&channel.name, name);
    let host = option("sync_host").map_or("", |(host, _)| host);
    if host.is_empty() || host.starts_with('/') {
        return;
    }
    for name in ["sync_authname", "sync_password"] {
        if option(name).is_none() {
            report.warning(format!(
                "{}: {name} is not set, so the client can't log in over TCP: set sync_authname \
                 and sync_password, or let it come by a UNIX socket",
                conf.path().display()
            ));
        }
    }
}

fn logging(report: &mut Report, channel: &Channel, conf: &ImapdConf) {
    let shown = conf.path().display();
    if !conf.switch("sync_log", false) {
        report.error(format!(
            "{shown}: sync_log is off, so Cyrus logs no changes and nothing is replicated in \
             rolling mode: set sync_log: yes"
        ));
    }
    let channels = conf.option("sync_log_channels").unwrap_or("\"\"");
    let named = if channel.name.is_empty() {
        "\"\""
    } else {
        channel.name.as_str()
    };
    if !channels.split_whitespace().any(|other| other == named) {
        report.error(format!(
            "{shown}: sync_log_channels does not name channel {named}, so Cyrus does not log for \
             it: add it there"
        ));
    }
    let (Some(directory), Some(top)) = (
        channel.sync_directory.as_deref(),
        conf.option("configdirectory"),
    ) else {
        return;
    };
    let theirs = if channel.name.is_empty() {
        Path::new(top).join("sync")
    } else {
        Path::new(top).join("sync").join(&channel.name)
    };
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    match (real(directory), real(&theirs)) {
        (Some(ours), Some(real)) if ours != real => report.error(format!(
            "Cyrus writes this channel's log into {}, and sync_directory is {}: set it to the \
             former",
            theirs.display(),
            directory.display()
        )),
        (Some(_), Some(_)) => {
            report.fine(format!("{shown}: Cyrus logs into {}", directory.display()));
        }
        // In a container the same folder may well have another name.
        _ => report.warning(format!(
            "{shown} says that the log is in {}, which is not there: make sure that {} is the \
             same folder",
            theirs.display(),
            directory.display()
        )),
    }
}

fn destination(report: &mut Report, config: &Config, channel: &Channel, conf: &ImapdConf) {
    let shown = conf.path().display();
    let option = |name| {
        conf.channel_option(&channel.name, name)
            .map(|(value, _)| value)
    };
    let listeners = || channel.listen.iter().chain(&channel.strict_listen);
    let ours = listeners()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" or ");
    let replica = &channel.replica.address;
    let Some(host) = option("sync_host") else {
        if channel.transparent {
            return report.warning(format!(
                "{shown}: sync_host is not set; the client is to connect to {replica}, and the \
                 redirect rules bring it here"
            ));
        }
        return report.warning(format!(
            "{shown}: sync_host is not set; the client is to connect to {ours}"
        ));
    };
    let port = option("sync_port").unwrap_or(service(channel.dialect));
    if channel.transparent && is_replica(host, port, replica) {
        return report.fine(format!(
            "{shown}: sync_host and sync_port name the replica; the redirect rules must bring the \
             client here (deploy/transparent)"
        ));
    }
    let shared = |listen: &&Listen| {
        let others = config.channels.iter().filter(|other| {
            let mut theirs = other.transparent_listen();
            theirs.any(|their| their == *listen)
        });
        others.count() > 1
    };
    let straight = listeners().find(|listen| leads_to(host, port, listen));
    if let Some(listen) = straight.filter(shared) {
        return report.error(format!(
            "{shown}: sync_host and sync_port lead straight to {listen}, where several channels \
             listen for redirected connections, and nobody knows which is meant: set them to the \
             replica, {replica}"
        ));
    }
    if channel.transparent && straight.is_none() {
        return report.warning(format!(
            "{shown}: sync_host is {host} and sync_port {port}, but the replica is {replica}: a \
             redirected connection is served only if it was to go to an address of the replica; \
             make sure that both are the same, or write the same name into both"
        ));
    }
    if straight.is_some() {
        report.fine(format!("{shown}: sync_host and sync_port lead here"));
    } else {
        report.warning(format!(
            "{shown}: sync_host is {host} and sync_port {port}, but syncmux listens on {ours}: \
             unless the connection is redirected, the client goes past it"
        ));
    }
}

/// Where the client goes without `sync_port` (`sync_connect` in `sync_support.c`): by IMAP first.
pub(super) fn service(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Csync => "csync",
        Dialect::Imap => "imap",
    }
}

/// Whether a client that is told this host and port comes to this listener, as far as that can be
/// told without asking for names.
pub(super) fn leads_to(host: &str, port: &str, listen: &Listen) -> bool {
    let address = match listen {
        Listen::Unix(path) => return Path::new(host) == path,
        Listen::Tcp(address) => address,
    };
    let (host, port) = host_and_port(host, port);
    let same_host = match host.parse::<IpAddr>() {
        Ok(ip) => address.ip() == ip || address.ip().is_unspecified(),
        Err(_) if host == "localhost" => {
            address.ip().is_loopback() || address.ip().is_unspecified()
        }
        // A name: it may be ours.
        Err(_) => !address.ip().is_loopback(),
    };
    same_host && port == Some(address.port())
}

/// Whether a client that is told this host and port wants to go to this replica, as far as that can
/// be told without asking for names.
fn is_replica(host: &str, port: &str, replica: &Address) -> bool {
    let (host, port) = host_and_port(host, port);
    match replica {
        Address::Tcp {
            host: theirs,
            port: number,
        } => is_same_host(host, theirs) && port == Some(*number),
        Address::Unix(_) => false,
    }
}

/// `sync_host` can be `host:port/tls` and the like.
fn host_and_port<'a>(host: &'a str, port: &'a str) -> (&'a str, Option<u16>) {
    let host = host.split('/').next().unwrap_or(host);
    let (host, port) = match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, port),
        _ => (host, port),
    };
    let port = match port {
        "csync" => Some(2005),
        "imap" => Some(143),
        "imaps" => Some(993),
        number => number.parse().ok(),
    };
    (host, port)
}

/// As Cyrus reads it: `30m`, `1h30m`, a bare number is seconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut number = None;
    for c in text.trim().chars() {
        if let Some(digit) = c.to_digit(10) {
            number = Some(
                number
                    .unwrap_or(0_u64)
                    .checked_mul(10)?
                    .checked_add(digit.into())?,
            );
            continue;
        }
        let each = match c {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        seconds = seconds.checked_add(number.take()?.checked_mul(each)?)?;
    }
    seconds
        .checked_add(number.unwrap_or(0))
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let leads = |host, port, to| Listen::parse(to).is_ok_and(|to| leads_to(host, port, &to));
        assert!(leads("127.0.0.1", "2005", "127.0.0.1:2005"));
        assert!(leads("localhost", "csync", "127.0.0.1:2005"));
        assert!(leads("localhost", service(Dialect::Imap), "127.0.0.1:143"));
        assert!(leads("localhost:2006", "csync", "127.0.0.1:2006"));
        assert!(leads("syncmux.example.com", "2005", "*:2005"));
        assert!(leads("/run/syncmux", "csync", "unix:/run/syncmux"));
        assert!(!leads("replica.example.com", "2005", "127.0.0.1:2005"));
        assert!(!leads("127.0.0.1", "2006", "127.0.0.1:2005"));
        assert!(!leads("/run/other", "csync", "unix:/run/syncmux"));
    }

    #[test]
    fn replicas() {
        let is = |host, port, to| Address::parse(to).is_ok_and(|to| is_replica(host, port, &to));
        assert!(is(
            "replica.example.com",
            "csync",
            "Replica.example.com:2005"
        ));
        assert!(is("replica:2006/tls", "csync", "replica:2006"));
        assert!(is("2001:db8::1", "2005", "[2001:db8:0::1]:2005"));
        assert!(!is("replica", "2006", "replica:2005"));
        assert!(!is("replica", "2005", "unix:/run/replica"));
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("1800", 1800), ("30m", 1800), ("1h30m", 5400), ("1m5", 65)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("soon"), None);
    }
}
