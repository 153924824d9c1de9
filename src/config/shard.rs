//! What `shard` needs to know: `[shard]`, and `[site]`, `[admin]` and `[log]` as for `run`.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::build::{At, Build};
use super::client_command::must_run;
use super::error::{Errors, Place, Problem, words};
use super::{Flags, ImapdConf, Listen, Log, SyncClient, file};
use crate::core::shard::Way;
use crate::protocol::Site;

/// More clients than this help nobody: each is a process on both ends.
const MOST: u32 = 256;

/// Lines that may be held back before the log is left to grow instead.
const HELD: usize = 10_000;

/// Everything that `shard` needs to know.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The channel whose log is taken over; "" is the default one.
    pub channel: String,
    /// The folder of its `log`.
    pub sync_directory: PathBuf,
    /// The folder of all channels' folders, `sync` in Cyrus's configdirectory.
    pub base: PathBuf,
    /// The shards' channels are this name, a hyphen and a number.
    pub name: String,
    /// How many; at least one.
    pub shards: usize,
    /// How lines are dealt.
    pub way: Way,
    /// With so many lines held back no more are taken over.
    pub held_lines: usize,
    /// The master is a Cyrus before 3.4, which logs a rename as two MAILBOX lines: these stay together.
    pub mailbox_pairs: bool,
    /// Program and arguments of a shard's client, `%c` is its channel; empty: something else starts
    /// them.
    pub client_command: Vec<String>,
    /// How this site names things.
    pub site: Site,
    /// Cyrus's own configuration, where it could be read.
    pub imapd_conf: Option<ImapdConf>,
    /// Where the admin endpoint listens, if at all.
    pub admin: Option<Listen>,
    /// How to log.
    pub log: Log,
    /// What is not wrong but should be seen.
    pub warnings: Vec<Problem>,
}

impl Shard {
    /// For whom there is something in the file: `terminate`, `shard`, `run`.
    ///
    /// # Errors
    /// Where the file can't be read.
    pub fn tables(path: &Path) -> Result<[bool; 3], Errors> {
        let text = read(path)?;
        let (_, file) = Build::read(Some((path, &text)))?;
        let (terminate, shard) = (file.terminate.is_some(), file.shard.is_some());
        Ok([terminate, shard, !file.channel.is_empty()])
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        Self::parse(path, &read(path)?)
    }

    /// Reads a configuration from text; `path` is what the errors call it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Errors> {
        let (mut build, file) = Build::read(Some((path, text)))?;
        let Some(keys) = file.shard else {
            let what = "there is no [shard] in it: write one, with sync_directory and shards";
            return Err(Problem::file(path, what).into());
        };
        let no_flags = Flags::default();
        let imapd_conf = build.imapd_conf(file.site.imapd_conf.as_ref(), &no_flags);
        let site = build.site(file.site, imapd_conf.as_ref());
        let log = build.log(file.log, &no_flags);
        let admin = build.admin(file.admin, &no_flags).map(|at| at.value);
        let keys = build.at(keys);
        let found = shard(&mut build, keys);
        let warnings = build.end()?;
        // What is missing has been told by now.
        let found = found.ok_or_else(|| Problem::file(path, "[shard] is incomplete"))?;
        Ok(Shard {
            channel: found.channel,
            sync_directory: found.sync_directory,
            base: found.base,
            name: found.name,
            shards: found.shards,
            way: found.way,
            held_lines: found.held_lines,
            mailbox_pairs: found.mailbox_pairs,
            client_command: found.client_command,
            site,
            imapd_conf,
            admin,
            log,
            warnings,
        })
    }

    /// The channel of a shard.
    #[must_use]
    pub fn shard(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The channels that Cyrus itself logs for, as far as its configuration could be read.
    #[must_use]
    pub fn logged(&self) -> Vec<String> {
        let channels = self.imapd_conf.as_ref().map(|conf| {
            let names = conf.option("sync_log_channels").unwrap_or("\"\"");
            let names = names.split_whitespace();
            names
                .map(|name| if name == "\"\"" { "" } else { name }.to_owned())
                .collect()
        });
        channels.unwrap_or_default()
    }

    /// The command of the client of a shard.
    #[must_use]
    pub fn command_of(&self, number: usize) -> Vec<String> {
        let name = self.shard(number);
        let words = self.client_command.iter();
        words.map(|word| word.replace("%c", &name)).collect()
    }
}

struct Found {
    channel: String,
    sync_directory: PathBuf,
    base: PathBuf,
    name: String,
    shards: usize,
    way: Way,
    held_lines: usize,
    mailbox_pairs: bool,
    client_command: Vec<String>,
}

fn read(path: &Path) -> Result<String, Problem> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| Problem::file(path, format!("can't be read: {}", words(&error))))
}

fn shard(build: &mut Build<'_>, keys: At<file::Shard>) -> Option<Found> {
    let At { value: keys, place } = keys;
    let channel = keys.channel.map(|key| build.at(key));
    let channel = channel.map_or(String::new(), |at| name_of(build, at, true));
    let directory = sync_directory(build, &place, keys.sync_directory, &channel);
    let name = match keys.name.map(|key| build.at(key)) {
        Some(at) => name_of(build, at, false),
        None if channel.is_empty() => "shard".to_owned(),
        None => channel.clone(),
    };
    usable(build, &place, &name, &channel);
    let shards = keys.shards.map(|key| build.at(key));
    if shards.is_none() {
        let what = "[shard] does not say how many clients there are: set shards, such as 8";
        build.fail(&place, what);
    }
    let shards = build.between(shards, "shards", 1..=MOST, 1);
    let ways = [("fixed", Way::Fixed), ("balanced", Way::Balanced)];
    let deal = keys.deal.map(|key| build.at(key));
    let way = deal.and_then(|at| build.word(&at, "way to deal", &ways));
    let held = keys.held_lines.map(|key| build.at(key));
    let held_lines = build.between(held, "held_lines", 1..=1_000_000, HELD);
    let mailbox_pairs = keys.mailbox_pairs.is_some_and(Spanned::into_inner);
    let command = keys.client_command.map(|key| build.at(key));
    if let Some(at) = &command {
        client_command(build, at);
    }
    let (sync_directory, base) = directory?;
    Some(Found {
        channel,
        sync_directory,
        base,
        name,
        shards,
        way: way.unwrap_or(Way::Balanced),
        held_lines,
        mailbox_pairs,
        client_command: command.map_or_else(Vec::new, |at| at.value),
    })
}

fn name_of(build: &mut Build<'_>, at: At<String>, may_be_empty: bool) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !at.value.chars().all(is_word) || (at.value.is_empty() && !may_be_empty) {
        let what = format!(
            "`{}` is no channel's name: use letters, digits, - and _",
            at.value
        );
        build.fail(&at.place, what);
    }
    at.value
}

/// Whether channels called so can be told from the one whose log it is, and have options.
fn usable(build: &mut Build<'_>, place: &Place, name: &str, channel: &str) {
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        let what = format!(
            "the shards would be called {name}-0 and so on, and Cyrus finds no options of a channel with \
             capital letters (such as {name}-0_sync_host): set name to one without"
        );
        build.fail(place, what);
    }
    let number = channel
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-'));
    if number.is_some_and(|number| number.parse::<usize>().is_ok()) {
        let what = format!(
            "the channel {channel} is called as one of its own shards would be ({name}-0 and so on): set \
             name to another one"
        );
        build.fail(place, what);
    }
}

fn sync_directory(
    build: &mut Build<'_>,
    place: &Place,
    key: Option<Spanned<PathBuf>>,
    channel: &str,
) -> Option<(PathBuf, PathBuf)> {
    let Some(at) = key.map(|key| build.at(key)) else {
        let what = "[shard] has no sync_directory: set it to the folder of the log that is taken over, \
                    such as /var/lib/cyrus/sync, or /var/lib/cyrus/sync/far for the channel far";
        build.fail(place, what);
        return None;
    };
    let path = at.value.display();
    if !at.value.is_dir() {
        let what = format!(
            "sync_directory {path} is no folder; it is the folder `sync` in Cyrus's configdirectory (for \
             a named channel the channel's folder in it), and must be there before syncmux starts"
        );
        build.fail(&at.place, what);
        return None;
    }
    if channel.is_empty() {
        return Some((at.value.clone(), at.value));
    }
    let is_named = at.value.file_name().is_some_and(|name| name == channel);
    let base = at.value.parent().map(Path::to_owned);
    if let (true, Some(base)) = (is_named, base) {
        return Some((at.value, base));
    }
    let what = format!(
        "sync_directory {path} is not the folder of the channel \"{channel}\", which Cyrus calls \
         {channel} too: set channel, or sync_directory, right"
    );
    build.fail(&at.place, what);
    None
}

fn client_command(build: &mut Build<'_>, at: &At<Vec<String>>) {
    let Some((program, arguments)) = at.value.split_first() else {
        let what = "client_command is empty: write program and arguments, such as \
                    [\"/usr/lib/cyrus/bin/sync_client\", \"-n\", \"%c\", \"-R\"], or leave it away";
        return build.fail(&at.place, what);
    };
    must_run(build, program, &at.place);
    if !arguments.iter().any(|word| word.contains("%c")) {
        let what = "client_command names no channel, so all clients would work on one log: write %c \
                    where the shard's channel is to stand, as in \"-n\", \"%c\"";
        return build.fail(&at.place, what);
    }
    let Some(client) = SyncClient::of(program, arguments) else {
        return;
    };
    if client.channel != "%c" {
        let what = "client_command: give sync_client the shard's channel, \"-n\", \"%c\"";
        build.fail(&at.place, what);
    }
    client.must_roll(build, &at.place);
}
