//! `sync_rightnow_channel`: every imapd syncs its own commits, beside the channel's rolling client.

use super::Report;
use super::cyrus::{leads_to, service};
use crate::config::{Channel, Config, ImapdConf, Listen};
use crate::core::event::Mode;

/// The name that `cyrus.conf` gives to imapd nearly everywhere; others read the same options unless
/// they have some of their own (`lmtp_...`).
const SERVICE: &str = "imap";

/// Looks at what the imapds and the rolling client of this channel are told.
pub(super) fn look(report: &mut Report, config: &Config, channel: &Channel, conf: &ImapdConf) {
    let shown = conf.path().display();
    let named = conf.option("sync_rightnow_channel");
    let named = named.map(|name| if name == "\"\"" { "" } else { name });
    if channel.rightnow_listen.is_empty() {
        if let Some(named) = named {
            wrong_door(report, channel, conf, named);
        }
        return;
    }
    let name = &channel.name;
    match named {
        None => report.error(format!(
            "{shown}: sync_rightnow_channel is not set, so nobody comes to rightnow_listen: set \
             sync_rightnow_channel: {name}, or remove rightnow_listen"
        )),
        Some(named) if named != name => report.error(format!(
            "{shown}: sync_rightnow_channel is \"{named}\", and rightnow_listen is that of \
             \"{name}\": both must be the same channel"
        )),
        Some(_) => {}
    }
    hosts(report, channel, conf);
    let cache = |service| conf.service_option(service, name, "sync_cache_db_path");
    if cache("sync_client").is_some() {
        report.error(format!(
            "{shown}: the rolling client answers from a cache (sync_cache_db_path), so what was put \
             off would never be looked at: leave the cache to imapd, {SERVICE}_{name}_\
             sync_cache_db_path"
        ));
    }
    report.fine(format!(
        "every imapd, lmtpd, pop3d and httpd that has changed something has a session of its own: \
         sessions is {}",
        config.limits.sessions
    ));
}

/// Where both go, and whether they name it by one string, of which their locks are made
/// (`sync_lock` in `sync_support.c`).
fn hosts(report: &mut Report, channel: &Channel, conf: &ImapdConf) {
    let shown = conf.path().display();
    let name = &channel.name;
    let option = |service, option| {
        let found = conf.service_option(service, name, option);
        found.map(|(value, _)| value)
    };
    let host = |service| option(service, "sync_host").unwrap_or_default();
    let standard = service(channel.dialect);
    let port = |service| option(service, "sync_port").unwrap_or(standard);
    let leads = |service, to: &[Listen]| {
        to.iter()
            .any(|listen| leads_to(host(service), port(service), listen))
    };
    if leads(SERVICE, &channel.rightnow_listen) {
        report.fine(format!(
            "{shown}: the imapds come to rightnow_listen ({name}_sync_host, {name}_sync_port)"
        ));
    } else {
        let list: Vec<String> = channel
            .rightnow_listen
            .iter()
            .map(ToString::to_string)
            .collect();
        report.error(format!(
            "{shown}: the imapds go to {} port {}, and not to rightnow_listen ({}): set \
             {name}_sync_host and {name}_sync_port to that",
            host(SERVICE),
            port(SERVICE),
            list.join(" ")
        ));
    }
    if leads("sync_client", &channel.rightnow_listen) {
        report.error(format!(
            "{shown}: the rolling client comes to rightnow_listen, where it would be told that \
             the replica is away after a few seconds: give it a port of its own, \
             sync_client_{name}_sync_port, that leads to listen"
        ));
    }
    if host(SERVICE) != host("sync_client") {
        report.error(format!(
            "{shown}: imapd calls the replica {} and the rolling client {}: their locks are made of \
             that name, so they would not see each other; set {name}_sync_host for both, and only \
             the ports apart",
            host(SERVICE),
            host("sync_client")
        ));
    }
}

/// Imapds that come to a channel without a door for them.
fn wrong_door(report: &mut Report, channel: &Channel, conf: &ImapdConf, named: &str) {
    let option = |name| {
        let found = conf.service_option(SERVICE, named, name);
        found.map(|(value, _)| value)
    };
    let Some(host) = option("sync_host") else {
        return;
    };
    let port = option("sync_port").unwrap_or(service(channel.dialect));
    let leads = |to: &[Listen]| to.iter().any(|listen| leads_to(host, port, listen));
    let list = if leads(&channel.listen) && channel.mode == Mode::FanOut {
        "listen, which is for the rolling client"
    } else if leads(&channel.listen) || leads(&channel.strict_listen) {
        "a listener without a limit on the wait: a replica that is away would stop every user"
    } else {
        return;
    };
    report.warning(format!(
        "{}: sync_rightnow_channel sends every imapd to {list}; set rightnow_listen in the channel \
         of that name, and give imapd its port (README, Synchronous replication)",
        conf.path().display()
    ));
}
