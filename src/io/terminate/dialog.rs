//! From the first byte to the login.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::login::stranger_answer;
use super::super::stream::{self, BoxStream};
use super::super::tls;
use super::{Begin, Refused, Terminator};
use crate::protocol::{CommandReader, Greeting, Kind, ReaderLimits};

/// The first byte of a TLS record with a handshake in it (RFC 8446, 5.1).
const HANDSHAKE: u8 = 0x16;

/// How much is read at once of lines.
const LINES: usize = 4096;

/// How long somebody who is sent away gets to read why.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection that is let in.
pub(super) struct Admitted {
    pub(super) ends: Ends,
    /// The names in the client's certificate.
    pub(super) names: Vec<String>,
    /// `None` where the server asks for a login of its own, which is still to come.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Both ends.
pub(super) struct Ends {
    pub(super) client: BoxStream,
    /// What it has sent already of what the server is to get.
    pub(super) sent: Bytes,
    pub(super) server: BoxStream,
    /// What the server has said already beyond its greeting.
    pub(super) said: Bytes,
}

/// Lets a connection in, or not.
pub(super) async fn admit(of: &Terminator, stream: TcpStream) -> Result<Admitted, Refused> {
    let stream = if begins_with_tls(of.begin, &stream).await? {
        stream
    } else {
        in_the_clear(of, stream).await?
    };
    let (client, names) = secure(of, stream).await?;
    let mut lines = Lines::new(client);
    let permit = std::sync::Arc::clone(&of.permits).try_acquire_owned();
    let Ok(permit) = permit else {
        lines
            .leave("BYE too many connections, try again later")
            .await;
        return Err(Refused::Full);
    };
    let connected = match of.server.connect().await {
        Ok(connected) => connected,
        Err(error) => {
            lines
                .leave("BYE the sync_server is away, try again later")
                .await;
            return Err(Refused::Server(error.to_string()));
        }
    };
    let (server, said, greeting) = connected;
    lines.say(&banner(of, &greeting)).await?;
    if of.server.trusts() {
        external(&mut lines).await?;
    }
    let (client, sent) = lines.into_parts();
    let ends = Ends {
        client: Box::new(client),
        sent,
        server,
        said,
    };
    // Who has yet to log in holds none, or strangers could hold them all.
    let permit = of.server.trusts().then_some(permit);
    Ok(Admitted {
        ends,
        names,
        permit,
    })
}

/// Whether the client begins with TLS: it does so at once, or waits for the banner.
async fn begins_with_tls(begin: Begin, stream: &TcpStream) -> Result<bool, Refused> {
    let wait = match begin {
        // As long as it may take to log in.
        Begin::Implicit => Duration::MAX,
        Begin::Starttls => return Ok(false),
        Begin::Both(wait) => wait,
    };
    let mut first = [0];
    match timeout(wait, stream.peek(&mut first)).await {
        // As those do who ask whether the port is open.
        Ok(Ok(0)) => Err(Refused::Quiet("it closed the connection at once")),
        Ok(Ok(_)) => Ok(begin == Begin::Implicit || first[0] == HANDSHAKE),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Greets, and waits for STARTTLS. No mechanism is offered: the stock client takes STARTTLS only
/// where it has no other choice (`backend_authenticate` in `backend.c`).
async fn in_the_clear(of: &Terminator, stream: TcpStream) -> Result<TcpStream, Refused> {
    let mut lines = Lines::new(stream);
    let greeting = match of.server.greeting().await {
        Ok(greeting) => greeting,
        Err(error) => {
            lines
                .leave("BYE the sync_server is away, try again later")
                .await;
            return Err(Refused::Server(error.to_string()));
        }
    };
    lines.say(&greeting.render::<&str>(&[], true)).await?;
    loop {
        match lines.next().await? {
            Kind::Starttls => break,
            Kind::Authenticate { .. } => {
                lines
                    .say(b"NO SASL(-4): no mechanism available\r\n")
                    .await?;
            }
            other => lines.answer(&other).await?,
        }
    }
    lines.say(b"OK Begin TLS negotiation now\r\n").await?;
    let (stream, early) = lines.into_parts();
    if !early.is_empty() {
        // Plain bytes would be taken for the client's own once there is TLS.
        return Err(Refused::Tls(
            "it sent something in the clear between STARTTLS and TLS".to_owned(),
        ));
    }
    Ok(stream)
}

/// TLS, and the name in the certificate.
async fn secure(
    of: &Terminator,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Vec<String>), Refused> {
    let acceptor = TlsAcceptor::from(of.tls.current());
    let client = acceptor.accept(stream).await;
    let client = client.map_err(|error| Refused::Tls(tls::explain_client(&error)))?;
    let (_, session) = client.get_ref();
    let first = session.peer_certificates().and_then(<[_]>::first);
    let names = first.map(tls::names).unwrap_or_default();
    // A session that is resumed brings the certificate along without a look at it.
    let in_time = first.map_or(Ok(()), |it| tls::in_time(it, SystemTime::now()));
    if let Err(why) = in_time {
        let mut lines = Lines::new(client);
        lines.leave(&format!("BYE your certificate {why}")).await;
        return Err(Refused::Tls(format!("its certificate {why}")));
    }
    if let Some(allowed) = &of.names {
        let is_allowed = |name: &String| allowed.iter().any(|it| tls::same_name(it, name));
        if !names.iter().any(is_allowed) {
            let mut lines = Lines::new(client);
            lines
                .leave("BYE your certificate has no name that may come here")
                .await;
            return Err(Refused::Name(names));
        }
    }
    Ok((client, names))
}

/// What is said after TLS. On a UNIX socket the certificate is the login, over TCP the server's own
/// mechanisms count.
fn banner(of: &Terminator, greeting: &Greeting) -> Bytes {
    let mut greeting = greeting.clone();
    if of.compress {
        greeting
            .capabilities
            .insert(0, Bytes::from_static(b"COMPRESS DEFLATE"));
    }
    let mechanisms = if of.server.trusts() {
        vec!["EXTERNAL".to_owned()]
    } else {
        greeting.mechanisms.clone()
    };
    greeting.render(&mechanisms, false)
}

/// The login of somebody whom the certificate has let in.
async fn external(lines: &mut Lines<TlsStream<TcpStream>>) -> Result<(), Refused> {
    loop {
        match lines.next().await? {
            Kind::Authenticate { mechanism, initial } if mechanism == "EXTERNAL" => {
                if initial.is_none() {
                    lines.say(b"+ \r\n").await?;
                    // For whom it wants to act: whoever comes to the socket is the administrator.
                    let identity = lines.line().await?;
                    if identity == b"*" {
                        lines.say(b"BAD Client canceled authentication\r\n").await?;
                        continue;
                    }
                }
                lines.say(b"OK Success (tls protection)\r\n").await?;
                return Ok(());
            }
            Kind::Authenticate { .. } => {
                lines
                    .say(b"NO SASL(-4): no mechanism available\r\n")
                    .await?;
            }
            Kind::Starttls => {
                lines
                    .say(b"NO Already successfully executed STARTTLS\r\n")
                    .await?;
            }
            other => lines.answer(&other).await?,
        }
    }
}

/// A connection by lines, before its login.
struct Lines<S> {
    stream: S,
    reader: CommandReader,
    input: Bytes,
    /// Commands so far: nobody needs many before a login.
    commands: usize,
}

/// So many commands before a login are answered.
const COMMANDS: usize = 32;

impl<S: stream::Stream> Lines<S> {
    fn new(stream: S) -> Self {
        Lines {
            stream,
            reader: CommandReader::new(ReaderLimits::default()),
            input: Bytes::new(),
            commands: 0,
        }
    }

    async fn next(&mut self) -> Result<Kind, Refused> {
        self.commands += 1;
        if self.commands > COMMANDS {
            self.leave("BYE log in first").await;
            return Err(Refused::Login(
                "it does not log in: the mechanism for server = \"unix:...\" is EXTERNAL",
            ));
        }
        loop {
            let command = self.reader.feed(&mut self.input);
            let command = command.map_err(|fatal| Refused::Client(fatal.to_string()))?;
            if let Some(command) = command {
                return Ok(command.kind);
            }
            self.fill().await?;
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, Refused> {
        loop {
            let line = self.reader.feed_line(&mut self.input);
            let line = line.map_err(|fatal| Refused::Client(fatal.to_string()))?;
            if let Some(line) = line {
                return Ok(line.0.clone());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Refused> {
        let mut buffer = BytesMut::with_capacity(LINES);
        if stream::read(&mut self.stream, &mut buffer).await? == 0 {
            return Err(Refused::Client(
                "it went away before it logged in".to_owned(),
            ));
        }
        self.input = buffer.freeze();
        Ok(())
    }

    async fn say(&mut self, text: &[u8]) -> Result<(), Refused> {
        self.stream.write_all(text).await?;
        Ok(self.stream.flush().await?)
    }

    /// What stock says to everything else before a login.
    async fn answer(&mut self, kind: &Kind) -> Result<(), Refused> {
        match kind {
            Kind::Exit => {
                self.leave("OK Finished").await;
                // As a syncmux does that only wants to know how the replica greets.
                Err(Refused::Quiet("it said EXIT before it logged in"))
            }
            other => {
                let answer = format!("{}\r\n", stranger_answer(other));
                self.say(answer.as_bytes()).await
            }
        }
    }

    /// A last line, and the end.
    async fn leave(&mut self, line: &str) {
        let goodbye = async {
            self.say(format!("{line}\r\n").as_bytes()).await.ok()?;
            self.stream.shutdown().await.ok()
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.input)
    }
}
