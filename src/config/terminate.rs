//! What `terminate` needs to know: `[terminate]`, and `[admin]` and `[log]` as for `run`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::build::{At, Build};
use super::channel::addresses;
use super::error::{Errors, Place, Problem, words};
use super::{Address, Flags, Identity, Listen, Log, file, pem};

/// Before somebody who says nothing is greeted in the clear. A TLS client speaks at once: its first
/// bytes come right behind the connection, whatever the round-trip time.
const WAIT: Duration = Duration::from_millis(400);

/// Everything that `terminate` needs to know.
#[derive(Clone, Debug)]
pub struct Terminate {
    /// Where it listens; at least one.
    pub listen: Vec<SocketAddr>,
    /// The `sync_server` behind.
    pub server: Address,
    /// What it shows.
    pub identity: Identity,
    /// Whose certificates it asks for; `None`: it asks for none.
    pub client_ca_file: Option<std::path::PathBuf>,
    /// One of these must be in the client's certificate; `None`: any certificate will do.
    pub allowed_names: Option<Vec<String>>,
    /// How TLS begins.
    pub begin: Begin,
    /// Offer COMPRESS DEFLATE.
    pub compress: bool,
    /// Connections at once.
    pub connections: usize,
    /// From the connection to the end of the login.
    pub login_time: Duration,
    /// How long connections may take to come to rest after SIGTERM.
    pub drain_grace: Duration,
    /// Where the admin endpoint listens, if at all.
    pub admin: Option<Listen>,
    /// How to log.
    pub log: Log,
    /// What is not wrong but should be seen.
    pub warnings: Vec<Problem>,
}

/// How TLS begins on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Either way; who says nothing for so long is greeted in the clear.
    Both(Duration),
    /// From the first byte.
    Implicit,
    /// By STARTTLS.
    StartTls,
}

impl Terminate {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Errors> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problem::file(path, format!("can't be read: {}", words(&error))))?;
        Self::parse(path, &text)
    }

    /// Reads a configuration from text; `path` is what the errors call it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Errors> {
        let (mut build, file) = Build::read(Some((path, text)))?;
        let Some(keys) = file.terminate else {
            let what = "there is no [terminate] in it: write one, with listen, server, cert_file \
                        and key_file";
            return Err(Problem::file(path, what).into());
        };
        let no_flags = Flags::default();
        let log = build.log(file.log, &no_flags);
        let admin = build.admin(file.admin, &no_flags);
        let keys = build.at(keys);
        let found = terminate(&mut build, keys, admin, log);
        let warnings = build.end()?;
        // What is missing has been told by now.
        let mut found = found.ok_or_else(|| Problem::file(path, "[terminate] is incomplete"))?;
        found.warnings = warnings;
        Ok(found)
    }
}

fn terminate(
    build: &mut Build<'_>,
    keys: At<file::Terminate>,
    admin: Option<At<Listen>>,
    log: Log,
) -> Option<Terminate> {
    let At { value: keys, place } = keys;
    if keys.listen.is_empty() {
        let what = "[terminate] listens nowhere: set listen, such as [\"*:2005\"]";
        build.fail(&place, what);
    }
    let listen = listen(build, keys.listen, admin.as_ref());
    let server = match keys.server.map(|key| build.at(key)) {
        Some(at) => build.checked(Address::parse(&at.value), &at.place),
        None => {
            let what = "[terminate] has no server: set it to where the sync_server listens, such \
                        as \"unix:/run/cyrus/csync/sync\" or \"127.0.0.1:2006\"";
            build.fail(&place, what);
            None
        }
    };
    let cert_file = keys.cert_file.map(|key| build.at(key));
    let key_file = keys.key_file.map(|key| build.at(key));
    if cert_file.is_none() && key_file.is_none() {
        let what = "[terminate] has no certificate: set cert_file and key_file";
        build.fail(&place, what);
    }
    let identity = build.identity(cert_file, key_file);
    let client_ca_file = keys.client_ca_file.map(|key| build.at(key));
    if let Some(at) = &client_ca_file {
        let found = pem::certificates(&at.value).map_err(|why| format!("client_ca_file {why}"));
        build.checked(found, &at.place);
    }
    let names = keys.allowed_names.map(|key| build.at(key));
    who(
        build,
        &place,
        server.as_ref(),
        client_ca_file.is_some(),
        names.as_ref(),
    );
    let dialect = keys.dialect.map(|key| build.at(key));
    super::dialect::terminated(build, dialect.as_ref());
    let begins = [
        ("both", Begin::Both(WAIT)),
        ("implicit", Begin::Implicit),
        ("starttls", Begin::StartTls),
    ];
    let begin = keys.tls.map(|key| build.at(key));
    let begin = begin.and_then(|at| build.word(&at, "kind of TLS", &begins));
    let connections = keys.connections.map(|key| build.at(key));
    let connections = build.between(connections, "connections", 1..=100_000, 256);
    let (minute, grace) = (Duration::from_secs(60), Duration::from_secs(20));
    Some(Terminate {
        listen,
        identity: identity?,
        client_ca_file: client_ca_file.map(|at| at.value),
        allowed_names: names.map(|at| at.value),
        begin: begin.unwrap_or(Begin::Both(WAIT)),
        compress: keys.compress.is_some_and(Spanned::into_inner),
        connections,
        login_time: build.time(keys.login_time, "login_time", 600, minute),
        drain_grace: build.time(keys.drain_grace, "drain_grace", 3_600, grace),
        admin: admin.map(|at| at.value),
        log,
        warnings: Vec::new(),
        server: server?,
    })
}

fn listen(
    build: &mut Build<'_>,
    keys: Vec<Spanned<String>>,
    admin: Option<&At<Listen>>,
) -> Vec<SocketAddr> {
    let mut all: Vec<At<Listen>> = admin.into_iter().cloned().collect();
    let mut found = Vec::new();
    for at in addresses(build, keys, &[], "") {
        if let Some(other) = all.iter().find(|other| other.value.clashes(&at.value)) {
            let what = format!("{} clashes with {}: change one", at.value, other.value);
            build.fail(&at.place, what);
        }
        match &at.value {
            Listen::Tcp(address) => found.push(*address),
            Listen::Unix(_) => {
                let what = "TLS on a UNIX socket protects from nobody: write IP:PORT";
                build.fail(&at.place, what);
            }
        }
        all.push(at);
    }
    found
}

/// Who may come: on a UNIX socket whoever comes to the `sync_server` is an administrator.
fn who(
    build: &mut Build<'_>,
    place: &Place,
    server: Option<&Address>,
    asks: bool,
    names: Option<&At<Vec<String>>>,
) {
    if let Some(at) = names {
        if !asks {
            let what = "allowed_names are looked for in the client's certificate: set \
                        client_ca_file, which makes it show one";
            build.fail(&at.place, what);
        }
        if at.value.is_empty() {
            let what = "allowed_names is empty, so nobody could come: write a name, or remove it";
            build.fail(&at.place, what);
        }
        for name in &at.value {
            if name.trim() != name || name.is_empty() || name.contains('*') {
                let what = format!(
                    "{name:?} in allowed_names is no name of a certificate: write each name as it \
                     stands there; a * does not stand for others"
                );
                build.fail(&at.place, what);
            }
        }
    }
    let Some(Address::Unix(socket)) = server else {
        return;
    };
    let socket = socket.display();
    if !asks {
        let what = format!(
            "whoever connects would be an administrator of the replica, since the sync_server on \
             unix:{socket} asks for no password: set client_ca_file and allowed_names, or reach it \
             over TCP"
        );
        build.fail(place, what);
    } else if names.is_none() {
        let what = format!(
            "every certificate of the authorities in client_ca_file makes an administrator of the \
             replica, since the sync_server on unix:{socket} asks for no password: set \
             allowed_names, unless these authorities have no other certificates"
        );
        build.warn(place, what);
    }
}
