//! The checks of `dialect`: csync, or the same in IMAP.

use super::build::{At, Build};
use super::error::Place;
use super::{Address, Listen, Tls};
use crate::protocol::Dialect;

/// The word, where it is set.
pub(super) fn of(build: &mut Build<'_>, at: Option<&At<String>>) -> Dialect {
    let words = [("csync", Dialect::Csync), ("imap", Dialect::Imap)];
    let word = at.and_then(|at| build.word(at, "dialect", &words));
    word.unwrap_or_default()
}

/// Where replication over IMAP listens. On a UNIX socket the stock client never gets so far: it asks
/// for the peer's IP address before it logs in by IMAP (`backend_authenticate` in `backend.c`), and
/// speaks csync then.
pub(super) fn listeners<'a>(
    build: &mut Build<'_>,
    dialect: Dialect,
    listen: impl Iterator<Item = &'a At<Listen>>,
) {
    for at in listen.filter(|_| dialect == Dialect::Imap) {
        if let Listen::Unix(_) = at.value {
            let what = format!(
                "no client comes to {} by IMAP: on a UNIX socket the stock client speaks csync \
                 only; listen on 127.0.0.1, or remove dialect",
                at.value
            );
            build.fail(&at.place, what);
        }
    }
}

/// The port of a replica where none is written: imapd has two that everybody knows.
pub(super) fn port(dialect: Dialect, tls: Option<&str>) -> Option<u16> {
    match dialect {
        Dialect::Csync => None,
        Dialect::Imap if tls.is_some_and(|tls| tls.eq_ignore_ascii_case("implicit")) => Some(993),
        Dialect::Imap => Some(143),
    }
}

/// A replica that is asked by IMAP. It shows what it has for replication only to somebody who has
/// logged in (`base_capabilities` in `imapd.c`), and a client must be told of it at once.
pub(super) fn replica(
    build: &mut Build<'_>,
    dialect: Option<&At<String>>,
    (address, place): (&Address, &Place),
    tls: Tls,
    has_login: bool,
) {
    let Some(at) = dialect.filter(|at| at.value.eq_ignore_ascii_case("imap")) else {
        return;
    };
    match address {
        Address::Unix(_) => build.fail(
            &at.place,
            "IMAP needs a login, which there is none for on a UNIX socket: write the HOST:PORT of \
             imapd as address, or remove dialect",
        ),
        Address::Tcp { port: 993, .. } if tls == Tls::StartTls => {
            build.warn(
                place,
                "port 993 is TLS from the first byte almost everywhere: set tls = \"implicit\"",
            );
        }
        Address::Tcp { .. } => {}
    }
    if !has_login {
        build.fail(
            &at.place,
            "an imapd tells what it offers for replication only to who has logged in, and clients \
             must be told: set username and password_file beside dialect",
        );
    }
}

/// `[terminate]`, which knows csync alone.
pub(super) fn terminated(build: &mut Build<'_>, at: Option<&At<String>>) {
    let Some(at) = at else { return };
    if of(build, Some(at)) == Dialect::Imap {
        build.fail(
            &at.place,
            "`syncmux terminate` is for sync_server, whose TLS can't ask for a client's \
             certificate: imapd has TLS of its own (imaps, and STARTTLS), remove dialect",
        );
    }
}
