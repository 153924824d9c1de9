//! `check` of `[shard]`: folders, and whether Cyrus's files fit; and the lines that these need
//! (`syncmux shard --print-config`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::{Report, Severity, cyrus_conf, directory};
use crate::config::{ImapdConf, Shard};
use crate::io::shard::{numbers, was_shard};

/// What is printed in the place of a password.
const PASSWORD: &str = "PASSWORD";

/// More clients than this are worth a thought: each is a process on either end.
const MANY: usize = 64;

/// Looks at everything. Nothing is changed; files are made and removed in the folders that are there.
#[must_use]
pub fn check(config: &Shard) -> Report {
    let mut report = Report::default();
    report.fine("the configuration of [shard] is complete".to_owned());
    for warning in &config.warnings {
        report.warning(warning.to_string());
    }
    if config.shards == 1 {
        report.warning("one shard is one client, as without syncmux shard: set shards".to_owned());
    }
    if config.shards > MANY {
        report.warning(format!(
            "{} shards are {} processes here and as many on the replica, whose maxchild must allow \
             them; 8 or 16 are enough for most sites",
            config.shards, config.shards
        ));
    }
    folders(&mut report, config);
    match &config.imapd_conf {
        Some(conf) => imapd_conf(&mut report, config, conf),
        None => report.warning(
            "imapd.conf can't be read, so nobody knows whether the channels are set: set imapd_conf \
             under [site]"
                .to_owned(),
        ),
    }
    clients(&mut report, config);
    report
}

/// What must not be: nothing is dealt as long as it is so.
#[must_use]
pub fn refusals(config: &Shard) -> Vec<String> {
    let Some(conf) = &config.imapd_conf else {
        return Vec::new();
    };
    let path = conf.path().display();
    let mut refusals = Vec::new();
    let logged = config.logged();
    for shard in (0..config.shards).map(|number| config.shard(number)) {
        if logged.contains(&shard) {
            refusals.push(format!(
                "{path}: sync_log_channels names {shard}, so Cyrus logs everything there too: if it is a \
                 channel of its own set `name` for the shards, else remove it there, its lines come from \
                 syncmux shard"
            ));
        }
    }
    let real = |path: &Path| path.canonicalize().ok();
    let theirs = conf
        .option("configdirectory")
        .map(|top| Path::new(top).join("sync"));
    let theirs = theirs.as_deref().and_then(real);
    if let (Some(ours), Some(theirs)) = (real(&config.base), theirs)
        && ours != theirs
    {
        refusals.push(format!(
            "{path}: Cyrus has its sync logs in {}, and by sync_directory and channel the shards' logs would \
             be in {}, where no client looks for them: set both right",
            theirs.display(),
            ours.display()
        ));
    }
    refusals
}

fn folders(report: &mut Report, config: &Shard) {
    directory::look(report, &config.sync_directory);
    let there = match numbers(&config.base, &config.name) {
        Ok(there) => there,
        Err(error) => {
            let base = config.base.display();
            return report.error(format!("{base}: {}", crate::config::words(&error)));
        }
    };
    if (0..config.shards).any(|number| !there.contains(&number)) {
        directory::look(report, &config.base);
    }
    let mut fine = 0;
    let logged = config.logged();
    for number in there {
        let path = config.base.join(config.shard(number));
        if number >= config.shards && logged.contains(&config.shard(number)) {
            continue;
        }
        if number >= config.shards {
            let has = |name: &&str| path.join(name).exists();
            let files = ["log", "log-run", "syncmux-back", "syncmux-owed"];
            if files.iter().any(has) {
                let what = if was_shard(&path) {
                    "is no shard any more: they are dealt again at the start, once no client works there"
                } else {
                    "has never been one of these shards: they are left to whoever works there"
                };
                report.warning(format!("{} holds lines and {what}", path.display()));
            }
            continue;
        }
        let mut of_it = Report::default();
        directory::look(&mut of_it, &path);
        of_it.0.retain(|finding| finding.severity != Severity::Fine);
        if of_it.0.is_empty() {
            fine += 1;
        }
        report.join(of_it);
    }
    let missing = config.shards - fine.min(config.shards);
    report.fine(match missing {
        0 => format!("the folders of all {fine} shards are there"),
        _ => format!(
            "{fine} of {} shards' folders are as they should be; those that are not there yet \
                      are made at the start",
            config.shards
        ),
    });
}

fn shown(channel: &str) -> String {
    match channel {
        "" => "the default channel".to_owned(),
        name => format!("channel {name}"),
    }
}

fn imapd_conf(report: &mut Report, config: &Shard, conf: &ImapdConf) {
    let path = conf.path().display();
    if !conf.switch("sync_log", false) {
        report.error(format!(
            "{path}: sync_log is off, so Cyrus logs nothing: set sync_log: yes"
        ));
    }
    for refusal in refusals(config) {
        report.error(refusal);
    }
    let theirs = conf
        .option("configdirectory")
        .map(|top| Path::new(top).join("sync"));
    if let Some(theirs) = theirs.filter(|theirs| !theirs.exists()) {
        // In a container the same folder may well have another name.
        report.warning(format!(
            "{path} says that the sync logs are in {}, which is not there: make sure that {} is the same \
             folder",
            theirs.display(),
            config.base.display()
        ));
    }
    if !config.logged().contains(&config.channel) {
        report.error(format!(
            "{path}: Cyrus does not log for {}: add {} to sync_log_channels",
            shown(&config.channel),
            if config.channel.is_empty() {
                "\"\""
            } else {
                &config.channel
            }
        ));
    }
    let shards: Vec<String> = (0..config.shards)
        .map(|number| config.shard(number))
        .collect();
    for shard in &shards {
        let password = conf.own_options(shard);
        if password.contains(&("sync_password", PASSWORD)) {
            report.error(format!(
                "{path}: {shard}_sync_password is still the word {PASSWORD}, which --print-config prints in \
                 the place of the password: write the channel's own"
            ));
        }
    }
    let own: BTreeSet<&str> = conf
        .own_options(&config.channel)
        .into_iter()
        .map(|it| it.0)
        .collect();
    let lacks = |shard: &&String| {
        let has = conf.own_options(shard);
        own.contains("sync_host") && !has.iter().any(|(name, _)| *name == "sync_host")
    };
    let lacking: Vec<&str> = shards.iter().filter(lacks).map(String::as_str).collect();
    if !lacking.is_empty() {
        report.error(format!(
            "{path}: {} has a sync_host of its own, and these shards have none, so they would replicate \
             to another place: {}; syncmux shard --print-config prints the lines",
            shown(&config.channel),
            lacking.join(" ")
        ));
    }
    let cache = |shard: &String| {
        conf.channel_option(shard, "sync_cache_db_path")
            .map(|it| it.0)
    };
    if shards.iter().map(cache).collect::<BTreeSet<_>>().len() > 1 {
        report.error(format!(
            "{path}: the shards have different caches (sync_cache_db_path), and a user goes from one \
             shard to another: the one that it comes back to would believe that the replica has what it \
             had then. Remove the option"
        ));
    }
    let host = |shard: &String| conf.channel_option(shard, "sync_host").map(|it| it.0);
    let hosts: BTreeSet<Option<&str>> = shards.iter().map(host).collect();
    if hosts.contains(&None) {
        report.error(format!("{path}: the shards have no sync_host: set it"));
    } else if hosts.len() > 1 && lacking.is_empty() {
        report.error(format!(
            "{path}: the shards name the replica by different sync_host: Cyrus makes of it the locks that \
             keep two clients off one user, so write the same everywhere"
        ));
    } else if lacking.is_empty() {
        report.fine(format!("{path}: all shards replicate to one sync_host"));
    }
}

fn clients(report: &mut Report, config: &Shard) {
    let (path, started) = cyrus_conf::rolling_clients(config.imapd_conf.as_ref());
    let Some(started) = started else {
        return;
    };
    let path = path.display();
    let starts = |channel: &str| started.iter().any(|name| name == channel);
    if starts(&config.channel) {
        report.error(format!(
            "{path} starts the rolling client of {}, whose log syncmux shard takes over: both would \
             spoil each other's work, remove it",
            shown(&config.channel)
        ));
    }
    let shards: Vec<String> = (0..config.shards)
        .map(|number| config.shard(number))
        .collect();
    let (by_cyrus, not): (Vec<_>, Vec<_>) = shards.into_iter().partition(|shard| starts(shard));
    match (config.client_command.is_empty(), by_cyrus.is_empty(), not.is_empty()) {
        (false, true, _) => report.fine("syncmux itself keeps the shards' clients running".to_owned()),
        (false, false, _) => report.error(format!(
            "{path} starts the rolling clients of {}, and client_command does so too: two of them spoil \
             each other's work, remove one",
            by_cyrus.join(" ")
        )),
        (true, _, true) => report.fine(format!("{path} starts the rolling clients of all shards")),
        (true, _, false) => report.warning(format!(
            "{path} does not start the rolling clients of {}: unless systemd does \
             (cyrus-sync-client@{}), their lines wait",
            not.join(" "),
            not[0]
        )),
    }
    let logged = config.logged();
    let largest = started.iter().filter_map(|name| {
        let number: usize = name
            .strip_prefix(&config.name)?
            .strip_prefix('-')?
            .parse()
            .ok()?;
        (number >= config.shards && !logged.contains(name)).then_some(name.as_str())
    });
    let more: Vec<&str> = largest.collect();
    if !more.is_empty() {
        report.warning(format!(
            "{path} starts clients of shards that there are not any more: {}: remove them",
            more.join(" ")
        ));
    }
}

/// What Cyrus's files, or systemd, need for it.
#[must_use]
pub fn print(config: &Shard) -> String {
    let mut text = String::new();
    let conf = config.imapd_conf.as_ref();
    let path = conf.map_or("/etc/imapd.conf".to_owned(), |conf| {
        conf.path().display().to_string()
    });
    let shards: Vec<String> = (0..config.shards)
        .map(|number| config.shard(number))
        .collect();
    let (first, last) = (&shards[0], &shards[config.shards - 1]);
    let channel = shown(&config.channel);
    // Writing into a String does not fail.
    let _ = writeln!(
        text,
        "# {path} of the master. sync_log_channels stays as it is: Cyrus logs for {channel}, and\n\
         # must not log for {first} to {last}, whose lines come from syncmux shard."
    );
    let own = conf
        .map(|conf| conf.own_options(&config.channel))
        .unwrap_or_default();
    if own.is_empty() {
        let _ = writeln!(
            text,
            "# {channel} has no options of its own there, so the shards take sync_host, sync_port, \
             sync_authname\n# and the others as they stand, and nothing need be added. To send them \
             through syncmux, add sync_host\n# and sync_port for each, as in {first}_sync_host: 127.0.0.1"
        );
    }
    let has_password = own.iter().any(|(name, _)| *name == "sync_password");
    if has_password {
        let _ = writeln!(
            text,
            "# The password is not printed: copy the value of {}_sync_password into each line.",
            config.channel
        );
    }
    for shard in &shards {
        for (name, value) in &own {
            let value = match *name {
                "sync_password" => PASSWORD,
                _ => value,
            };
            let _ = writeln!(text, "{shard}_{name}: {value}");
        }
    }
    let _ = writeln!(
        text,
        "\n# Restart Cyrus, so that all have read it, then end the client of {channel}, and what starts it,\n\
         # for good. Then start syncmux shard, and one client for each shard, in ONE of these ways:"
    );
    let _ = writeln!(text, "#\n# 1. systemd (unit cyrus-sync-client@.service):");
    for shard in &shards {
        let _ = writeln!(
            text,
            "#    systemctl enable --now cyrus-sync-client@{shard}"
        );
    }
    let _ = writeln!(text, "#\n# 2. cyrus.conf, in DAEMON:");
    for shard in &shards {
        let word = shard.replace(['-', '_'], "");
        let _ = writeln!(text, "#      sync{word} cmd=\"sync_client -n {shard} -r\"");
    }
    let _ = writeln!(
        text,
        "#\n# 3. syncmux shard itself, under [shard] in its own file:\n\
         #    client_command = [\"/usr/lib/cyrus/bin/sync_client\", \"-n\", \"%c\", \"-R\"]"
    );
    text
}
