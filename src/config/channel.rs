//! The checks of `[[channel]]` and of what must hold between them.

use std::path::PathBuf;

use rustls::pki_types::ServerName;
use toml::Spanned;

use super::build::{At, Build};
use super::client_command;
use super::dialect;
use super::error::{Place, words};
use super::rightnow;
use super::transparent::{self, Taken};
use super::{
    Address, Channel, Client, Flags, Listen, Login, Mechanism, Passwords, Replica, Tls, file, pem,
};
use crate::core::event::Mode;

/// All channels; the flags speak of the first.
pub(super) fn channels(
    build: &mut Build<'_>,
    keys: Vec<file::Channel>,
    flags: &Flags,
    client: &Client,
    admin: Option<&At<Listen>>,
) -> Vec<Channel> {
    let no_flags = Flags::default();
    let mut keys = keys;
    if keys.is_empty() {
        if flags.listen.is_empty() && flags.strict_listen.is_empty() && flags.replica.is_none() {
            let what = "there is no channel: write a [[channel]] into the file of --config, or \
                        give --listen and --replica";
            build.fail(&Place::Missing, what);
            return Vec::new();
        }
        keys.push(file::Channel::default());
    }
    let admin = admin.map(|at| Taken {
        at: at.clone(),
        transparent: None,
    });
    let mut listeners: Vec<Taken> = admin.into_iter().collect();
    let mut names = Vec::new();
    let mut directories = Vec::new();
    let mut channels = Vec::new();
    for (i, key) in keys.into_iter().enumerate() {
        let flags = if i == 0 { flags } else { &no_flags };
        channels.extend(channel(
            build,
            (i, key),
            flags,
            client,
            &mut listeners,
            &mut names,
            &mut directories,
        ));
    }
    transparent::told_apart(build, &channels);
    channels.into_iter().map(|(channel, _)| channel).collect()
}

/// A channel, and where it was made transparent.
fn channel(
    build: &mut Build<'_>,
    (number, keys): (usize, file::Channel),
    flags: &Flags,
    client: &Client,
    listeners: &mut Vec<Taken>,
    names: &mut Vec<String>,
    directories: &mut Vec<PathBuf>,
) -> Option<(Channel, Option<Place>)> {
    let transparent = keys.transparent.map(|key| build.at(key));
    let transparent = transparent.filter(|at| at.value).map(|at| at.place);
    let name = name(build, keys.name, names);
    let is_deaf = [keys.listen.len(), keys.strict_listen.len()] == [0, 0]
        && keys.rightnow_listen.is_empty()
        && [flags.listen.len(), flags.strict_listen.len()] == [0, 0];
    if is_deaf {
        let what = format!(
            "{} listens nowhere: set listen (for the rolling client) or strict_listen, such as \
             [\"127.0.0.1:2005\"], or give --listen 127.0.0.1:2005",
            shown(&name)
        );
        build.fail(&Place::Missing, what);
    }
    let listen = addresses(build, keys.listen, &flags.listen, "--listen");
    let flag = "--strict-listen";
    let strict_listen = addresses(build, keys.strict_listen, &flags.strict_listen, flag);
    let rolling = listen
        .iter()
        .map(|at| (at, transparent.as_ref().map(|_| number)));
    let rightnow_listen = addresses(build, keys.rightnow_listen, &[], "");
    let others = strict_listen.iter().chain(&rightnow_listen);
    for (at, transparent) in rolling.chain(others.map(|at| (at, None))) {
        let taken = Taken {
            at: at.clone(),
            transparent,
        };
        if let Some(Taken { at: other, .. }) = listeners.iter().find(|other| other.clashes(&taken))
        {
            let there = other.place.to_string();
            let what = format!(
                "{} clashes with {} of {}: change one",
                at.value,
                other.value,
                there.trim_end_matches(": ")
            );
            build.fail(&at.place, what);
        }
        listeners.push(taken);
        passwords_protected(build, at, client);
    }
    let spoken = keys.dialect.map(|key| build.at(key));
    let spoken = dialect::of(build, spoken.as_ref());
    let all = listen.iter().chain(&strict_listen).chain(&rightnow_listen);
    dialect::listeners(build, spoken, all);
    let directory = build.pick(
        keys.sync_directory,
        flags.sync_directory.as_ref(),
        "--sync-directory",
    );
    let mode = build.pick(keys.mode, flags.mode.as_ref(), "--mode");
    let mode = mode_of(build, mode, directory.as_ref());
    let has_directory = directory.is_some();
    let directory = directory.and_then(|at| sync_directory(build, at, directories));
    let client_command = keys.client_command.map(|key| build.at(key));
    let client_command = client_command.map_or_else(Vec::new, |at| {
        client_command::check(build, &at, &name, !listen.is_empty(), directory.is_some());
        at.value
    });
    let master = keys.master.and_then(|keys| master(build, keys, &name));
    let replica = replica(build, keys.replica, flags, &name)?;
    rightnow::possible(
        build,
        &rightnow_listen,
        &name,
        client,
        &replica,
        has_directory,
    );
    let sockets = || listen.iter().chain(&strict_listen).chain(&rightnow_listen);
    let speaks_for_itself = matches!(replica.address, Address::Unix(_))
        || replica.identity.is_some()
        || replica.login.is_some();
    if let Some(at) = sockets().find(|at| matches!(at.value, Listen::Unix(_)))
        && !speaks_for_itself
    {
        let what = format!(
            "clients of {} give no password that syncmux could pass on: set username and \
             password_file under [channel.replica], or give --username and --password-file",
            at.value
        );
        build.fail(&at.place, what);
    }
    if let (Passwords::ByReplica, Address::Unix(socket)) = (&client.passwords, &replica.address)
        && let Some(at) = sockets().find(|at| matches!(at.value, Listen::Tcp(_)))
    {
        let what = format!(
            "nobody could check the passwords of clients of {}: the replica on unix:{} asks for \
             none; set username and password_file under [client]",
            at.value,
            socket.display()
        );
        build.fail(&at.place, what);
    }
    let values = |list: Vec<At<Listen>>| list.into_iter().map(|at| at.value).collect();
    let channel = Channel {
        name,
        sync_directory: directory,
        mode,
        listen: values(listen),
        strict_listen: values(strict_listen),
        rightnow_listen: values(rightnow_listen),
        client_command,
        dialect: spoken,
        transparent: transparent.is_some(),
        master,
        replica,
    };
    if let Some(place) = &transparent {
        transparent::possible(build, place, &channel);
    }
    Some((channel, transparent))
}

/// The other end, for `verify`. It has the keys of a replica.
fn master(build: &mut Build<'_>, keys: file::Replica, channel: &str) -> Option<Replica> {
    if keys.address.is_none() {
        let what = format!(
            "the master of {} has no address: set address under [channel.master] to that of its \
             own sync_server, such as unix:/run/cyrus/verify/csync",
            shown(channel)
        );
        build.fail(&Place::Missing, what);
        return None;
    }
    replica(build, keys, &Flags::default(), channel)
}

/// A channel's name in a sentence.
pub(super) fn shown(name: &str) -> String {
    if name.is_empty() {
        "the default channel".to_owned()
    } else {
        format!("channel \"{name}\"")
    }
}

fn name(build: &mut Build<'_>, key: file::Key<String>, names: &mut Vec<String>) -> String {
    let at = match key {
        Some(key) => build.at(key),
        None => At {
            value: String::new(),
            place: Place::Missing,
        },
    };
    // It is a folder and a prefix of options of imapd.conf.
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !at.value.chars().all(is_word) {
        let what = format!(
            "`{}` is no channel's name: use letters, digits, - and _",
            at.value
        );
        build.fail(&at.place, what);
    }
    if names.contains(&at.value) {
        let what = format!("two channels have the name \"{}\": change one", at.value);
        build.fail(&at.place, what);
    }
    names.push(at.value.clone());
    at.value
}

/// The addresses of a list, or of the flag where that is given.
pub(super) fn addresses(
    build: &mut Build<'_>,
    keys: Vec<Spanned<String>>,
    flags: &[String],
    flag: &'static str,
) -> Vec<At<Listen>> {
    let texts: Vec<At<String>> = if flags.is_empty() {
        keys.into_iter().map(|key| build.at(key)).collect()
    } else {
        let at = |text: &String| At {
            value: text.clone(),
            place: Place::Flag(flag),
        };
        flags.iter().map(at).collect()
    };
    let parse = |at: At<String>| {
        let value = build.checked(Listen::parse(&at.value), &at.place)?;
        Some(At {
            value,
            place: at.place,
        })
    };
    texts.into_iter().filter_map(parse).collect()
}

fn passwords_protected(build: &mut Build<'_>, at: &At<Listen>, client: &Client) {
    if !at.value.is_local() && client.identity.is_none() && !client.passwords_without_tls {
        let what = format!(
            "passwords would reach {} in the clear: set cert_file and key_file under [client] for \
             STARTTLS, listen on 127.0.0.1 or a UNIX socket, or insist with passwords_without_tls \
             = true under [client]",
            at.value
        );
        build.fail(&at.place, what);
    }
}

fn mode_of(
    build: &mut Build<'_>,
    mode: Option<At<String>>,
    directory: Option<&At<PathBuf>>,
) -> Mode {
    let Some(at) = mode else {
        return if directory.is_some() {
            Mode::FanOut
        } else {
            Mode::Strict
        };
    };
    let modes = [("fan-out", Mode::FanOut), ("strict", Mode::Strict)];
    let mode = build.word(&at, "mode", &modes).unwrap_or(Mode::Strict);
    if mode == Mode::FanOut && directory.is_none() {
        let what = "fan-out needs the folder of Cyrus's sync log, which is what makes an early \
                    answer safe: set sync_directory, or give --sync-directory (such as \
                    /var/lib/cyrus/sync), or take the mode \"strict\"";
        build.fail(&at.place, what);
    }
    mode
}

fn sync_directory(
    build: &mut Build<'_>,
    at: At<PathBuf>,
    directories: &mut Vec<PathBuf>,
) -> Option<PathBuf> {
    let path = at.value.display();
    let real = std::fs::canonicalize(&at.value).map_err(|error| {
        format!(
            "sync_directory {path}: {}; it is the folder `sync` in Cyrus's configdirectory (for a \
             named channel the channel's folder in it), and must be there before syncmux starts",
            words(&error)
        )
    });
    let real = build.checked(real, &at.place)?;
    if !real.is_dir() {
        build.fail(&at.place, format!("sync_directory {path} is no folder"));
    }
    // Compared by what they are, not by how they are written.
    if directories.contains(&real) {
        let what = format!(
            "sync_directory {path} belongs to another channel already: each channel has a log, \
             and a folder, of its own"
        );
        build.fail(&at.place, what);
    }
    directories.push(real);
    Some(at.value)
}

fn replica(
    build: &mut Build<'_>,
    keys: file::Replica,
    flags: &Flags,
    channel: &str,
) -> Option<Replica> {
    let lanes = build.pick(keys.lanes, flags.lanes.as_ref(), "--lanes");
    let lanes = build.between(lanes, "lanes", 1..=256, 8);
    let Some(at) = build.pick(keys.address, flags.replica.as_ref(), "--replica") else {
        let what = format!(
            "{} has no replica: set address under [channel.replica], or give --replica HOST:PORT",
            shown(channel)
        );
        build.fail(&Place::Missing, what);
        return None;
    };
    let tls = build.pick(keys.tls, flags.replica_tls.as_ref(), "--replica-tls");
    let dialect_key = keys.dialect.map(|key| build.at(key));
    let dialect = dialect::of(build, dialect_key.as_ref());
    let port = dialect::port(dialect, tls.as_ref().map(|at| &at.value[..]));
    let address = build.checked(Address::parse_with(&at.value, port), &at.place);
    let tls = tls_of(build, tls, address.as_ref());
    let ca_file = build.pick(keys.ca_file, flags.ca_file.as_ref(), "--ca-file");
    if let Some(at) = &ca_file {
        let found = pem::certificates(&at.value).map_err(|why| format!("ca_file {why}"));
        build.checked(found, &at.place);
    }
    let ca_file = ca_file.map(|at| at.value);
    let name = build.pick(
        keys.server_name,
        flags.server_name.as_ref(),
        "--server-name",
    );
    let server_name = server_name(build, tls, name, address.as_ref(), &at.place);
    let cert_file = build.pick(keys.cert_file, flags.cert_file.as_ref(), "--cert-file");
    let key_file = build.pick(keys.key_file, flags.key_file.as_ref(), "--key-file");
    if let Some(at) = &cert_file
        && tls == Tls::Off
    {
        build.fail(
            &at.place,
            "cert_file is of no use with tls = \"off\": remove one",
        );
    }
    let identity = build.identity(cert_file, key_file);
    let mechanism = build.pick(keys.mechanism, flags.mechanism.as_ref(), "--mechanism");
    let username = build.pick(keys.username, flags.username.as_ref(), "--username");
    let password_file = build.pick(
        keys.password_file,
        flags.password_file.as_ref(),
        "--password-file",
    );
    let (mechanism, login) = login(
        build,
        mechanism,
        username,
        password_file,
        identity.is_some(),
    );
    let address = address?;
    let has_login = login.is_some() || identity.is_some();
    let found = (&address, &at.place);
    dialect::replica(build, dialect_key.as_ref(), found, tls, has_login);
    if tls == Tls::Off && !address.is_local() {
        let what = format!("mail and passwords go to {address} in the clear: tls is \"off\"");
        build.warn(&at.place, what);
    }
    let compress = keys.compress.is_some_and(Spanned::into_inner);
    Some(Replica {
        address,
        dialect,
        tls,
        ca_file,
        server_name,
        identity,
        mechanism,
        login,
        lanes,
        compress,
    })
}

fn tls_of(build: &mut Build<'_>, tls: Option<At<String>>, address: Option<&Address>) -> Tls {
    let is_unix = matches!(address, Some(Address::Unix(_)));
    let Some(at) = tls else {
        return if is_unix { Tls::Off } else { Tls::StartTls };
    };
    let words = [
        ("starttls", Tls::StartTls),
        ("implicit", Tls::Implicit),
        ("off", Tls::Off),
    ];
    let tls = build
        .word(&at, "kind of TLS", &words)
        .unwrap_or(Tls::StartTls);
    if is_unix && tls != Tls::Off {
        build.fail(
            &at.place,
            "a sync_server has no TLS on a UNIX socket: remove tls",
        );
    }
    tls
}

fn server_name(
    build: &mut Build<'_>,
    tls: Tls,
    name: Option<At<String>>,
    address: Option<&Address>,
    address_place: &Place,
) -> Option<String> {
    let at = match (name, address) {
        _ if tls == Tls::Off => return None,
        (Some(at), _) => at,
        (None, Some(Address::Tcp { host, .. })) => At {
            value: host.clone(),
            place: address_place.clone(),
        },
        (None, _) => return None,
    };
    let what = format!(
        "`{}` can't stand in a certificate: set server_name to the name in the replica's",
        at.value
    );
    let name = ServerName::try_from(at.value.as_str())
        .map(|_| ())
        .map_err(|_| what);
    build.checked(name, &at.place).map(|()| at.value)
}

fn login(
    build: &mut Build<'_>,
    mechanism: Option<At<String>>,
    username: Option<At<String>>,
    password_file: Option<At<PathBuf>>,
    has_certificate: bool,
) -> (Option<Mechanism>, Option<Login>) {
    let known = [
        Mechanism::Plain,
        Mechanism::ScramSha256,
        Mechanism::External,
    ];
    let names = ["PLAIN", "SCRAM-SHA-256", "EXTERNAL"];
    let known: Vec<(&str, Mechanism)> = names.into_iter().zip(known).collect();
    let place = mechanism.as_ref().map(|at| at.place.clone());
    let mechanism = mechanism.and_then(|at| build.word(&at, "mechanism", &known));
    if let (Some(Mechanism::External), Some(place), false) = (mechanism, &place, has_certificate) {
        let what = "EXTERNAL logs in with a certificate: set cert_file and key_file beside it";
        build.fail(place, what);
    }
    let login = match (username, password_file) {
        (None, None) => None,
        (None, Some(at)) => {
            build.fail(
                &at.place,
                "password_file needs a name: set username beside it",
            );
            None
        }
        (Some(at), file) => {
            if file.is_none() && !has_certificate {
                let what = "username needs its password: set password_file beside it";
                build.fail(&at.place, what);
            }
            Some(build.login(at, file))
        }
    };
    (mechanism, login)
}
