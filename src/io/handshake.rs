//! What is said to a replica before its connection carries commands, in either dialect: greeting,
//! capabilities, STARTTLS, COMPRESS, what the pool of the lane asks for, and the goodbye.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::compress::Deflated;
use super::lane_connect::ConnectError;
use super::wire::{Wire, server};
use crate::core::event::Pool;
use crate::protocol::greeting::{greets_as_imapd, greets_as_sync_server};
use crate::protocol::reply_reader::Line;
use crate::protocol::{Dialect, Greeting, StatusKind, print};

/// More lines than any `sync_server` says before `* OK`.
const GREETING_LINES: usize = 64;

/// More words than any answer to APPLY CAPABILITIES has.
const ENABLED_WORDS: usize = 1000;

pub(super) async fn read_greeting(wire: &mut Wire) -> Result<Greeting, ConnectError> {
    let mut greeting = Greeting::default();
    for _ in 0..GREETING_LINES {
        let line = wire.any_line().await?;
        let read = match wire.dialect {
            Dialect::Csync => greeting.read(&line),
            Dialect::Imap => greeting.read_imap(&line),
        };
        match (wire.dialect, read) {
            (_, Err(_)) => return Err(unexpected("a new connection", &line, wire.dialect)),
            (_, Ok(true)) => return Ok(greeting),
            (Dialect::Csync, Ok(false)) => {}
            (Dialect::Imap, Ok(false)) => {
                ask_capabilities(wire, &mut greeting).await?;
                return Ok(greeting);
            }
        }
    }
    Err(ConnectError::protocol(
        "the replica's greeting does not end: is it a sync_server?",
    ))
}

/// CAPABILITY, in IMAP. Nothing that was known before counts any more: it may have been said in the
/// clear, by anybody.
pub(super) async fn ask_capabilities(
    wire: &mut Wire,
    greeting: &mut Greeting,
) -> Result<(), ConnectError> {
    *greeting = Greeting {
        text: std::mem::take(&mut greeting.text),
        ..Greeting::default()
    };
    wire.command(b"CAPABILITY\r\n").await?;
    loop {
        match wire.line().await? {
            Line::Untagged(line) if &line.kind[..] == b"CAPABILITY" => {
                greeting.read_capability(&line);
            }
            line if is_ok(&line) => return Ok(()),
            line => return Err(unexpected("CAPABILITY", &line, wire.dialect)),
        }
    }
}

pub(super) async fn starttls(wire: &mut Wire, greeting: &Greeting) -> Result<(), ConnectError> {
    if !greeting.starttls {
        return Err(ConnectError::tls(
            "the replica does not offer STARTTLS: set tls_server_cert and tls_server_key in its \
             imapd.conf (and allowstarttls: yes, which Cyrus 3.10 wants), or write tls = \"off\" here \
             if the way to it is safe",
        ));
    }
    wire.command(b"STARTTLS\r\n").await?;
    let line = wire.line().await?;
    if is_ok(&line) {
        return Ok(());
    }
    Err(ConnectError::tls(format!(
        "the replica refuses STARTTLS: {}",
        show(&line)
    )))
}

pub(super) async fn compress(mut wire: Wire) -> Result<Wire, ConnectError> {
    wire.command(b"COMPRESS DEFLATE\r\n").await?;
    let line = wire.line().await?;
    if !is_ok(&line) {
        tracing::info!(answer = %show(&line), "the replica refuses COMPRESS; going on without");
        return Ok(wire);
    }
    let dialect = wire.dialect;
    let (stream, received) = wire.into_parts();
    Ok(Wire::new(
        Box::new(Deflated::new(stream, &received)),
        dialect,
    ))
}

/// Sends what the pool asks for in one burst; FORCE is the core's, whose client must have the
/// replica's own answer. The first shows at once, and by its name, what would
/// else be a NO to every command: a login that is not an administrator's.
pub(super) async fn set_up(
    wire: &mut Wire,
    pool: &Pool,
    who: Option<&str>,
) -> Result<Option<Vec<Bytes>>, ConnectError> {
    wire.write(Bytes::from_static(harmless(wire.dialect)).into())
        .await?;
    if !pool.capabilities.is_empty() {
        let names = pool.capabilities.iter().map(|name| &name[..]);
        wire.write(print::capabilities(names)).await?;
    }
    wire.send(b"").await?;
    read_harmless(wire, who).await?;
    let mut enabled = Some(Vec::new());
    if !pool.capabilities.is_empty() {
        enabled = read_enabled(wire).await?;
    }
    Ok(enabled)
}

/// What changes nothing and is not answered OK to others than administrators: a `sync_server` says
/// NO to all that they say (`cmdloop` in `sync_server.c`), imapd does not know `SYNCRESTART` then
/// (`cmdloop` in `imapd.c`), although it shows X-REPLICATION to everybody.
pub(super) fn harmless(dialect: Dialect) -> &'static [u8] {
    match dialect {
        Dialect::Csync => b"NOOP\r\n",
        Dialect::Imap => b"RESTART\r\n",
    }
}

pub(super) async fn read_harmless(wire: &mut Wire, who: Option<&str>) -> Result<(), ConnectError> {
    let refusal = match wire.dialect {
        Dialect::Csync => StatusKind::No,
        Dialect::Imap => StatusKind::Bad,
    };
    match wire.line().await? {
        line if is_ok(&line) => Ok(()),
        Line::Status(status) if status.kind == refusal => {
            let who = who.map_or("the user".to_owned(), |who| format!("{who:?}"));
            Err(ConnectError::login(format!(
                "the replica lets {who} in but does not serve it: {}. Is it among admins in the \
                 replica's imapd.conf?",
                shown(&status.line())
            )))
        }
        line => Err(unexpected("the first command", &line, wire.dialect)),
    }
}

/// The answer to APPLY CAPABILITIES; `None` where the replica does not know it (3.2).
pub(super) async fn read_enabled(wire: &mut Wire) -> Result<Option<Vec<Bytes>>, ConnectError> {
    let mut enabled = Vec::new();
    loop {
        match wire.line().await? {
            Line::Untagged(line) if &line.kind[..] == b"ENABLED" => {
                enabled.extend(line.words);
                if enabled.len() > ENABLED_WORDS {
                    let why = "the replica enables more than was ever asked for";
                    return Err(ConnectError::protocol(why));
                }
            }
            Line::Status(status) => match status.kind {
                StatusKind::Ok => return Ok(Some(enabled)),
                StatusKind::No | StatusKind::Bad => return Ok(None),
                StatusKind::Bye => {
                    let line = Line::Status(status);
                    return Err(unexpected("APPLY CAPABILITIES", &line, wire.dialect));
                }
            },
            line => return Err(unexpected("APPLY CAPABILITIES", &line, wire.dialect)),
        }
    }
}

/// Says EXIT and does not wait for what comes.
pub(super) async fn leave(mut wire: Wire) {
    let goodbye = async {
        wire.write(print::EXIT.into()).await?;
        wire.send(b"").await?;
        let (mut stream, _) = wire.into_parts();
        stream.shutdown().await.map_err(ConnectError::from)
    };
    let _ = timeout(Duration::from_secs(1), goodbye).await;
}

fn is_ok(line: &Line) -> bool {
    matches!(line, Line::Status(status) if status.kind == StatusKind::Ok)
}

pub(super) fn unexpected(to: &str, line: &Line, dialect: Dialect) -> ConnectError {
    let what = show(line);
    let leaving = match line {
        Line::Status(status) => status.kind == StatusKind::Bye,
        Line::Untagged(untagged) => &untagged.kind[..] == b"FATAL",
        Line::Continuation(_) => false,
    };
    if leaving {
        return ConnectError::unreachable(format!("the replica answers {to} with {what}"));
    }
    let hint = match (dialect, line) {
        (Dialect::Csync, Line::Untagged(line)) if greets_as_imapd(line) => {
            "that is an imapd: write the port of its sync_server (csync) as address, or set dialect \
             = \"imap\""
                .to_owned()
        }
        (Dialect::Imap, Line::Untagged(line)) if greets_as_sync_server(line) => {
            "that is a sync_server: write the port of its imapd as address, or remove dialect"
                .to_owned()
        }
        _ => format!("is it {}?", server(dialect)),
    };
    ConnectError::protocol(format!("the replica answers {to} with {what}: {hint}"))
}

fn show(line: &Line) -> String {
    match line {
        Line::Untagged(untagged) => shown(&untagged.raw.to_vec().unwrap_or_default()),
        Line::Status(status) => shown(&status.line()),
        Line::Continuation(_) => "\"+\"".to_owned(),
    }
}

/// A line for the log: short, and with nothing in it that a terminal would obey.
pub(super) fn shown(line: &[u8]) -> String {
    let line = line.trim_ascii_end();
    let line = &line[..line.len().min(200)];
    format!("\"{}\"", line.escape_ascii())
}
