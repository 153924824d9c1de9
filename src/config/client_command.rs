//! The checks of `client_command`: what syncmux starts must be the rolling client of that channel.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::build::{At, Build};
use super::channel::shown;
use super::error::Place;

/// Says what is wrong with the command of this channel.
pub(super) fn check(
    build: &mut Build<'_>,
    at: &At<Vec<String>>,
    channel: &str,
    listens: bool,
    has_directory: bool,
) {
    let Some((program, arguments)) = at.value.split_first() else {
        let what = "client_command is empty: write program and arguments, such as \
                    [\"/usr/lib/cyrus/bin/sync_client\", \"-R\"], or leave it away";
        return build.fail(&at.place, what);
    };
    must_run(build, program, &at.place);
    if !listens {
        let what = "client_command starts the rolling client, which needs a listener of its own: \
                    set listen";
        build.fail(&at.place, what);
    }
    if !has_directory {
        let what = "client_command needs the folder of the channel's log, where a lock keeps a \
                    second client away: set sync_directory";
        build.fail(&at.place, what);
    }
    let Some(client) = SyncClient::of(program, arguments) else {
        return;
    };
    let named = client.channel.as_str();
    if named != channel {
        let what = format!(
            "client_command works on the log of {}, and this is {}: give sync_client the option \
             -n of this channel",
            shown(named),
            shown(channel)
        );
        build.fail(&at.place, what);
    }
    client.must_roll(build, &at.place);
}

/// Says so where this is no program.
pub(super) fn must_run(build: &mut Build<'_>, program: &str, place: &Place) {
    let path = Path::new(program);
    let runs = path
        .metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if !path.is_absolute() || !runs {
        let what = format!(
            "client_command: {program} is no program: write the whole path of Cyrus's sync_client, \
             such as /usr/lib/cyrus/bin/sync_client"
        );
        build.fail(place, what);
    }
}

/// What the options of a `sync_client` say, as its `getopt_long` reads them: several may stand in one
/// word, and a value may stand behind its option in the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncClient {
    pub(crate) rolling: bool,
    /// Empty: the default channel.
    pub(crate) channel: String,
    pub(crate) verbose: usize,
}

/// Options that have a value, of all versions.
const WITH_VALUE: &str = "CFSdfnptw";
const LONG_WITH_VALUE: [&str; 7] = [
    "shutdown-file",
    "server",
    "delay",
    "input-file",
    "dest-partition",
    "timeout",
    "delayed-startup",
];

impl SyncClient {
    /// `None` for another program, which may be a script that knows what it does.
    pub(super) fn of(program: &str, arguments: &[String]) -> Option<Self> {
        let name = Path::new(program).file_name();
        (name.is_some_and(|name| name == "sync_client")).then(|| Self::read(arguments))
    }

    /// Says what a client that is started and watched must have.
    pub(super) fn must_roll(&self, build: &mut Build<'_>, place: &Place) {
        if !self.rolling {
            let what = "client_command starts a rolling client: give sync_client the option -R";
            build.fail(place, what);
        }
        if self.verbose > 1 {
            let what = "client_command: with -v twice sync_client writes the mail itself into the \
                        log: once at most";
            build.fail(place, what);
        }
    }

    pub(crate) fn read<T: AsRef<str>>(arguments: &[T]) -> Self {
        let mut client = SyncClient::default();
        let mut words = arguments.iter().map(AsRef::as_ref);
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, joined) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (long, None),
                };
                match name {
                    "rolling" | "foreground-rolling" => client.rolling = true,
                    "verbose" => client.verbose += 1,
                    "channel" => client.name(joined.or_else(|| words.next())),
                    name if LONG_WITH_VALUE.contains(&name) && joined.is_none() => {
                        let _ = words.next();
                    }
                    _ => {}
                }
                continue;
            }
            let Some(options) = word.strip_prefix('-') else {
                continue;
            };
            for (at, option) in options.char_indices() {
                match option {
                    'r' | 'R' => client.rolling = true,
                    'v' => client.verbose += 1,
                    option if WITH_VALUE.contains(option) => {
                        let joined = Some(&options[at + 1..]).filter(|text| !text.is_empty());
                        let value = joined.or_else(|| words.next());
                        if option == 'n' {
                            client.name(value);
                        }
                        break;
                    }
                    _ => {}
                }
            }
        }
        client
    }

    fn name(&mut self, channel: Option<&str>) {
        let channel = channel.filter(|name| *name != "\"\"");
        self.channel = channel.unwrap_or_default().to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_client() {
        let is = |rolling, channel: &str, verbose| SyncClient {
            rolling,
            channel: channel.to_owned(),
            verbose,
        };
        for (line, client) in [
            ("-rv", is(true, "", 1)),
            ("-vR", is(true, "", 1)),
            ("-rnfar", is(true, "far", 0)),
            ("-nfar -R", is(true, "far", 0)),
            ("-vn far -vr", is(true, "far", 2)),
            ("-n \"\" -r", is(true, "", 0)),
            // A value that looks like an option.
            ("-C -r -n far", is(false, "far", 0)),
            ("-S/run/r -A", is(false, "", 0)),
            ("-u user -- -r", is(false, "", 0)),
            ("--rolling --channel=far --verbose", is(true, "far", 1)),
            ("--server -r --channel far", is(false, "far", 0)),
            ("--channel far -r", is(true, "far", 0)),
        ] {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(SyncClient::read(&words), client, "{line}");
        }
    }
}
