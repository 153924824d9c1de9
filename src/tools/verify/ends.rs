//! The two ends, and what they say.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::super::Failed;
use crate::config::{Channel, Config, Replica as End};
use crate::io::ask::Asker;
use crate::io::credentials::Credentials;
use crate::io::lane_connect::{ConnectError, Replica};
use crate::io::spill::{Spill, collect};
use crate::protocol::dlist::{self, Value};
use crate::protocol::{Body, Reply, Site, StatusKind, print};
use crate::settings;

/// How both are reached.
pub(super) struct Servers {
    master: Server,
    replica: Server,
    pub(super) site: Site,
}

struct Server {
    what: &'static str,
    /// `sync_server` or `imapd`.
    runs: &'static str,
    replica: Arc<Replica>,
    login: Option<Credentials>,
    timeout: Duration,
}

/// A connection to each.
pub(super) struct Ends {
    master: Asker,
    replica: Asker,
}

/// What one end says of something: its lines, or why there are none. A line that is not understood
/// has no kind.
pub(super) type Said = Result<Vec<(Bytes, Value)>, Untold>;

/// Why there is nothing to compare.
#[derive(Debug)]
pub(super) enum Untold {
    /// The server's words.
    Refused(String),
    /// So many bytes.
    TooLong(u64),
}

/// An answer of more bytes is not taken apart, which takes several times its length in memory. The
/// messages of a mailbox with 40,000 of them take less.
const MOST: u64 = 8 << 20;

impl Servers {
    pub(super) fn new(config: &Config, channel: &Channel) -> Result<Self, Failed> {
        let Some(master) = &channel.master else {
            return Err(Failed::usage(
                "the master can't be asked: set address under [channel.master] to that of its own \
                 sync_server, such as unix:/run/cyrus/verify/csync; the README says how to set \
                 that up",
            ));
        };
        let limits = &config.limits;
        let spill = Spill::new(&limits.spill_directory, limits.spill_size);
        let spill = spill.map_err(Failed::usage)?;
        let server = |what, end: &End| {
            let mut at = channel.clone();
            at.replica = end.clone();
            let mut settings = settings::replica(&at, limits);
            // Somebody sits and waits.
            settings.connect_timeout = Duration::from_secs(5);
            settings.login_timeout = Duration::from_secs(10);
            let replica = Replica::new(settings, Arc::clone(&spill));
            Ok(Server {
                what,
                runs: crate::check::server(end.dialect),
                replica: replica.map_err(|error| Failed::usage(format!("{what}: {error}")))?,
                login: end.login.as_ref().and_then(settings::credentials),
                timeout: limits.answer_timeout,
            })
        };
        Ok(Servers {
            master: server("the master", master)?,
            replica: server("the replica", &channel.replica)?,
            site: config.site.clone(),
        })
    }
}

impl Server {
    async fn connect(&self) -> Result<Asker, Failed> {
        Asker::connect(&self.replica, self.login.as_ref(), self.timeout)
            .await
            .map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ConnectError) -> Failed {
        let hint = match error {
            ConnectError::Unreachable { .. } => {
                format!("; see that {} runs and listens there", self.runs)
            }
            _ => String::new(),
        };
        let why = failed(self.what, error);
        Failed(why.0, format!("{}{hint}", why.1))
    }
}

/// The words are those of a lane, to which every end is a replica.
fn failed(what: &str, error: &ConnectError) -> Failed {
    let why = error.to_string();
    let why = why.split(" (os error ").next().unwrap_or(&why);
    Failed::unreachable(format!("{what} can't be asked: {why}"))
}

impl Ends {
    pub(super) async fn connect(servers: &Servers) -> Result<Self, Failed> {
        let (master, replica) = tokio::join!(servers.master.connect(), servers.replica.connect());
        Ok(Ends {
            master: master?,
            replica: replica?,
        })
    }

    pub(super) async fn user(&mut self, user: &str) -> Result<[Said; 2], Failed> {
        self.ask(&print::get_user(user.as_bytes())).await
    }

    pub(super) async fn mailbox(&mut self, name: &[u8]) -> Result<[Said; 2], Failed> {
        self.ask(&print::get_mailboxes([name])).await
    }

    pub(super) async fn full_mailbox(&mut self, name: &[u8]) -> Result<[Said; 2], Failed> {
        self.ask(&print::get_full_mailbox(name)).await
    }

    async fn ask(&mut self, command: &Body) -> Result<[Said; 2], Failed> {
        let (master, replica) = tokio::join!(self.master.ask(command), self.replica.ask(command));
        let master = master.map_err(|error| failed("the master", &error))?;
        let replica = replica.map_err(|error| failed("the replica", &error))?;
        Ok([said(master).await?, said(replica).await?])
    }

    pub(super) async fn leave(self) {
        tokio::join!(self.master.leave(), self.replica.leave());
    }
}

async fn said(reply: Reply) -> Result<Said, Failed> {
    if reply.status.kind != StatusKind::Ok {
        let words = String::from_utf8_lossy(&reply.status.line()).into_owned();
        return Ok(Err(Untold::Refused(words)));
    }
    let all = reply.untagged.iter().map(|line| line.raw.len()).sum();
    if all > MOST {
        return Ok(Err(Untold::TooLong(all)));
    }
    let mut lines = Vec::with_capacity(reply.untagged.len());
    for line in reply.untagged {
        let text = collect(&line.raw).await;
        let text = text.map_err(|error| Failed::unreachable(format!("a long answer: {error}")))?;
        lines.push(line_of(text.into()));
    }
    Ok(Ok(lines))
}

fn line_of(mut text: Bytes) -> (Bytes, Value) {
    if text.starts_with(b"* ") {
        text.advance(2);
    }
    dlist::parse(text.clone()).unwrap_or_else(|| (Bytes::new(), Value::Text(text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::protocol::{Status, Untagged};

    fn untagged(raw: Body) -> Untagged {
        Untagged {
            kind: Bytes::new(),
            mailbox: None,
            uniqueid: None,
            since: false,
            guids: Vec::new(),
            words: Vec::new(),
            raw,
        }
    }

    async fn of(lines: Vec<Body>) -> Said {
        let reply = Reply {
            untagged: lines.into_iter().map(untagged).collect(),
            status: Status {
                kind: StatusKind::Ok,
                text: Bytes::new(),
            },
        };
        said(reply).await.unwrap()
    }

    #[tokio::test]
    async fn lines_and_what_is_none() {
        let lines = ["* LSUB (user.a)\r\n", "* LSUB (user.a\r\n"].map(Body::from);
        let lines = of(lines.into()).await.unwrap();
        assert_eq!(lines[0].0, "LSUB");
        let text = Value::Text(Bytes::from("LSUB (user.a\r\n"));
        assert_eq!(lines[1], (Bytes::new(), text));
    }

    #[tokio::test]
    async fn a_long_answer_is_not_taken_apart() {
        let mut long = Body::new();
        (0..9).for_each(|_| long.push(Bytes::from(vec![b'x'; 1 << 20])));
        let told = of(vec![long]).await;
        assert!(matches!(told, Err(Untold::TooLong(len)) if len == 9 << 20));
    }
}
