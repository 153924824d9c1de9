//! `syncmux check`: would `run` work, and would replication? In plain words, with the way to mend
//! it.

use std::fmt;

use crate::cli::Exit;
use crate::config::{Address, Channel, Config, Place, Problem, Replica};
use crate::core::event::Mode;
use crate::protocol::Dialect;

pub mod connect;
mod cyrus;
mod cyrus_conf;
mod directory;
mod paste;
mod rightnow;
pub mod shard;
pub mod terminate;

/// How a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// It works, but look at it.
    Warning,
    /// The replica can't be reached.
    Unreachable,
    /// It does not work, or is not safe.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it weighs.
    pub severity: Severity,
    /// What was found, and what to do.
    pub what: String,
}

/// Everything that was looked at, in order; and what is to be put into other files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(pub Vec<Finding>, pub Vec<Paste>);

/// Lines to paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paste {
    /// Into which file, and where.
    pub into: String,
    /// As they are to stand there.
    pub lines: Vec<String>,
}

/// Why there is no connection to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotConnected {
    /// It does not answer.
    Unreachable(String),
    /// It answers, but its certificate, or our login, is wrong.
    Refused(String),
}

/// Looks at everything. `connect` connects to the channel's replica, logs in where there is a
/// login, and says what it met.
pub async fn check<C, F>(config: &Config, connect: C) -> Report
where
    C: Fn(Channel) -> F,
    F: Future<Output = Result<String, NotConnected>>,
{
    let mut report = local(config);
    for channel in &config.channels {
        let replica = &channel.replica;
        match connect(channel.clone()).await {
            Ok(met) => {
                report.fine(format!("replica {}: {met}", replica.address));
                if replica.login.is_none() && replica.identity.is_none() {
                    no_login(&mut report, &replica.address);
                }
            }
            Err(NotConnected::Unreachable(why)) => {
                report.add(Severity::Unreachable, not_reached(replica, &why))
            }
            Err(NotConnected::Refused(why)) => {
                report.error(format!("replica {}: {why}", replica.address));
            }
        }
    }
    report
}

/// The part of [`check()`] that does not touch the network.
#[must_use]
pub fn local(config: &Config) -> Report {
    let mut report = Report::default();
    report.fine("the configuration is complete".to_owned());
    for warning in &config.warnings {
        report.warning(warning.to_string());
    }
    for refusal in refusals(config) {
        report.error(refusal.to_string());
    }
    for channel in &config.channels {
        if let Some(path) = &channel.sync_directory {
            directory::look(&mut report, path);
        }
        match &config.imapd_conf {
            Some(conf) => cyrus::look(&mut report, config, channel, conf),
            None if channel.mode == Mode::FanOut => report.warning(
                "imapd.conf can't be read, so nobody knows whether sync_cache_db_path is set, \
                 which fan-out does not bear: set imapd_conf under [site]"
                    .to_owned(),
            ),
            None => {}
        }
    }
    report.paste(paste::imapd_conf(config));
    cyrus_conf::look(&mut report, config);
    report
}

/// What keeps `run` from starting, beside mistakes in the configuration itself.
#[must_use]
pub fn refusals(config: &Config) -> Vec<Problem> {
    let Some(conf) = &config.imapd_conf else {
        return Vec::new();
    };
    let fan_out = config
        .channels
        .iter()
        .filter(|channel| channel.mode == Mode::FanOut);
    let cached = |channel: &Channel| {
        let (_, place) = conf.channel_option(&channel.name, "sync_cache_db_path")?;
        let what = format!(
            "sync_cache_db_path is set for channel \"{}\": the client then answers itself from \
             that cache, and what fails in fan-out could not be healed; remove the option, or set \
             mode = \"strict\"",
            channel.name
        );
        Some(Problem {
            place: Place::clone(place),
            what,
        })
    };
    fan_out.filter_map(cached).collect()
}

/// What is to run there.
pub(crate) fn server(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Csync => "sync_server",
        Dialect::Imap => "imapd",
    }
}

/// A lane's own words begin with the address, which stands there already.
fn not_reached(replica: &Replica, why: &str) -> String {
    let address = &replica.address;
    let why = why
        .strip_prefix(&address.to_string())
        .map_or(why, |rest| rest.trim_start_matches([':', ' ']));
    let why = why.split(" (os error ").next().unwrap_or(why);
    let hint = match address {
        _ if why.ends_with('?') => String::new(),
        Address::Unix(_) => "; see that sync_server runs and listens there".to_owned(),
        Address::Tcp { .. } => {
            let server = server(replica.dialect);
            format!("; see that {server} runs there and that no firewall is in between")
        }
    };
    format!("replica {address} can't be reached: {why}{hint}")
}

fn no_login(report: &mut Report, address: &Address) {
    if !matches!(address, Address::Unix(_)) {
        report.warning(
            "no login was tried: without username and password_file under [channel.replica] each \
             client's own are used"
                .to_owned(),
        );
    }
}

impl Report {
    /// How the program should end.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let any = |severity| self.0.iter().any(|finding| finding.severity == severity);
        if any(Severity::Error) {
            Exit::Usage
        } else if any(Severity::Unreachable) {
            Exit::Unreachable
        } else {
            Exit::Fine
        }
    }

    /// What another report found, too.
    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
        self.1.extend(other.1);
    }

    fn fine(&mut self, what: String) {
        self.add(Severity::Fine, what);
    }

    fn warning(&mut self, what: String) {
        self.add(Severity::Warning, what);
    }

    fn error(&mut self, what: String) {
        self.add(Severity::Error, what);
    }

    fn paste(&mut self, paste: Option<Paste>) {
        self.1.extend(paste);
    }

    fn add(&mut self, severity: Severity, what: String) {
        self.0.push(Finding { severity, what });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { severity, what } in &self.0 {
            let word = match severity {
                Severity::Fine => "ok",
                Severity::Warning => "warning",
                Severity::Unreachable | Severity::Error => "ERROR",
            };
            writeln!(f, "{word:<8} {what}")?;
        }
        for Paste { into, lines } in &self.1 {
            writeln!(f, "\nTo be pasted into {into}:\n")?;
            for line in lines {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}
