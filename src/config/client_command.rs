//! The checks of `client_command`: what syncmux starts must be the rolling client of that channel.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::build::{At, Build};
use super::channel::shown;

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
    let path = Path::new(program);
    let runs = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if !path.is_absolute() || !runs(path) {
        let what = format!(
            "client_command: {program} is no program: write the whole path of Cyrus's sync_client, \
             such as /usr/lib/cyrus/bin/sync_client"
        );
        build.fail(&at.place, what);
    }
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
    // Another program may be a script that knows what it does.
    if path.file_name().is_none_or(|name| name != "sync_client") {
        return;
    }
    let named = name(arguments).unwrap_or_default();
    if named != channel {
        let what = format!(
            "client_command works on the log of {}, and this is {}: give sync_client the option \
             -n of this channel",
            shown(named),
            shown(channel)
        );
        build.fail(&at.place, what);
    }
    if !arguments.iter().any(|word| word == "-R" || word == "-r") {
        let what = "client_command starts the rolling client: give sync_client the option -R";
        build.fail(&at.place, what);
    }
    let talks = |word: &&String| word.starts_with("-v") && word.chars().skip(1).all(|c| c == 'v');
    let v: usize = arguments
        .iter()
        .filter(talks)
        .map(|word| word.len() - 1)
        .sum();
    if v > 1 {
        let what = "client_command: with -v twice sync_client writes the mail itself into the log: \
                    once at most";
        build.fail(&at.place, what);
    }
}

/// What `-n` says.
fn name(arguments: &[String]) -> Option<&str> {
    let at = arguments.iter().position(|word| word.starts_with("-n"))?;
    match arguments.get(at)?.strip_prefix("-n") {
        Some("") => arguments.get(at + 1).map(String::as_str),
        joined => joined,
    }
}
