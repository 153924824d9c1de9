//! `syncmux resync`: USER and MAILBOX lines into a channel's sync log, by which the rolling client
//! compares the whole user, or the mailbox, with the replica and repairs what differs.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{CONFIG, Failed, printable, say};
use crate::config::Outline;
use crate::io::sync_directory::SyncDirectory;
use crate::protocol::synclog::Line;

/// Who, and where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// The users, as Cyrus writes their names: joe, joe@example.com
    #[arg(required_unless_present = "mailboxes", value_name = "USER")]
    pub users: Vec<String>,

    /// A mailbox by its internal name, such as a shared one that `verify` shows; can be repeated
    #[arg(long = "mailbox", value_name = "NAME")]
    pub mailboxes: Vec<String>,

    /// The channel of the configuration; without it the only one there is
    #[arg(long, value_name = "NAME")]
    pub channel: Option<String>,

    /// The configuration [default: /etc/syncmux/syncmux.toml]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Writes the lines.
///
/// # Errors
/// Wrong names, no such channel, or a directory that does not take it.
pub fn run(args: &Args) -> Result<(), Failed> {
    let path = args.config.as_deref().unwrap_or(Path::new(CONFIG));
    let outline = Outline::read(path).map_err(Failed::usage)?;
    let (channel, directory) = pick(&outline, args.channel.as_deref())?;
    let shown = |name: &str| match name {
        "" => "the default channel".to_owned(),
        name => format!("channel \"{name}\""),
    };
    let Some(directory) = directory else {
        return Err(Failed::usage(format!(
            "{} has no sync_directory, so there is no log to write to: run sync_client -u instead",
            shown(channel)
        )));
    };
    let mut lines = Vec::new();
    for user in &args.users {
        let name = Bytes::copy_from_slice(user.as_bytes());
        lines.push(checked("user", user, Line::User(name))?);
    }
    for mailbox in &args.mailboxes {
        let name = Bytes::copy_from_slice(mailbox.as_bytes());
        lines.push(checked("mailbox", mailbox, Line::Mailbox(name))?);
    }
    lines.sort_unstable();
    lines.dedup();
    let opened = SyncDirectory::beside(directory);
    let written = opened.and_then(|directory| directory.append_lines(&lines));
    written.map_err(|error| {
        let hint = if rustix::process::geteuid().is_root() {
            ""
        } else {
            "; run this as root, or as the user that Cyrus runs as"
        };
        Failed::usage(format!("nothing was written: {error}{hint}"))
    })?;
    let mut text = format!("written into {}:\n", directory.join("log").display());
    for line in &lines {
        let (verb, name) = match line {
            Line::User(name) => ("USER", name),
            Line::Mailbox(name) => ("MAILBOX", name),
            _ => continue,
        };
        let name = String::from_utf8_lossy(name);
        text.push_str(&format!("  {verb} {}\n", printable(&name)));
    }
    text.push_str(&format!(
        "The rolling client of {} takes this with its next run, compares each of these with the \
         replica, and repairs what differs.\n`syncmux status` shows who fails; `syncmux \
         verify` compares both ends.\n",
        shown(channel)
    ));
    say(&text);
    Ok(())
}

fn checked(what: &str, name: &str, line: Line) -> Result<Line, Failed> {
    let other = match line {
        Line::User(_) => "sync_client -u",
        _ => "sync_client -m",
    };
    if name.is_empty() {
        return Err(Failed::usage(format!(
            "nothing was written: a {what}'s name is empty"
        )));
    }
    match line.check() {
        Ok(()) => Ok(line),
        Err(why) => Err(Failed::usage(format!(
            "nothing was written: {name:?}: {why}; sync this {what} with {other}"
        ))),
    }
}

/// The channel's name and its directory.
pub(super) fn pick<'a>(
    outline: &'a Outline,
    wanted: Option<&str>,
) -> Result<(&'a str, Option<&'a Path>), Failed> {
    let names = || {
        let names = outline
            .channels
            .iter()
            .map(|(name, _)| format!("\"{name}\""));
        names.collect::<Vec<_>>().join(", ")
    };
    let found = match (wanted, &outline.channels[..]) {
        (None, [only]) => Some(only),
        (None, []) => None,
        (None, _) => {
            return Err(Failed::usage(format!(
                "there are several channels: say which with --channel (there are {})",
                names()
            )));
        }
        (Some(wanted), all) => all.iter().find(|(name, _)| name == wanted),
    };
    match found {
        Some((name, directory)) => Ok((name, directory.as_deref())),
        None => Err(Failed::usage(format!(
            "the configuration has no channel \"{}\" (there are: {})",
            wanted.unwrap_or_default(),
            names()
        ))),
    }
}
