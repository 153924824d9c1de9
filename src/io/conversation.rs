//! A client's connection as commands and answers.

use std::fs::File;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::memory::{MemoryGauge, Share};
use super::registry::SessionLimits;
use super::spill::{Spill, SpillError, SpillWriter, Writing};
use super::stream::{self, BoxStream, Meter};
use crate::protocol::command::Secret;
use crate::protocol::dialect::next_tag;
use crate::protocol::{
    Apply, Body, Command, CommandReader, Dialect, Fatal, Kind, ReaderLimits, Spilled,
};

/// How much is read at once, and how much of what comes too early is kept.
const READ_BUFFER: usize = 64 * 1024;

/// How much of an unfinished command is not spilled even when memory is tight.
const UNFINISHED: u64 = 16 * 1024;

/// As much memory any command's lists of names and GUIDs may take, whatever others hold.
const SHORT_LISTS: u64 = 64 * 1024;

/// What is not spilled of a finished one: a spilled piece costs some hundred bytes.
const SMALL: u64 = 1024;

/// How long a client gets to read the last line before the connection is cut.
const GOODBYE: Duration = Duration::from_secs(2);

/// One client's connection.
pub(super) struct Conversation {
    stream: BoxStream,
    dialect: Dialect,
    reader: CommandReader,
    /// The last command has no answer yet.
    asked: bool,
    /// The client is waited for: it has logged in.
    is_in: bool,
    /// In IMAP: a command with a tag has come.
    had_tag: bool,
    /// In IMAP: the tag of its next command of replication, as far as can be known.
    next_tag: Bytes,
    /// Filled from the stream; split off into `input`.
    buffer: BytesMut,
    input: Bytes,
    spill: SpillWriter,
    /// The spill directory took no more of the command under way: its rest is thrown away.
    overflow: Option<String>,
    command_memory: u64,
    memory: Arc<MemoryGauge>,
    /// What of the command that is read, or was answered last, is in memory.
    arriving: Share,
    /// And its names and GUIDs, which do not spill.
    lists: Share,
    write_timeout: Duration,
    idle: Duration,
    meter: Meter,
}

/// Why a conversation is over.
#[derive(Debug)]
pub(super) enum Ended {
    /// The client has closed the connection.
    Closed(When),
    /// The connection broke.
    Broken(std::io::Error),
    /// What the client sent cannot be followed any further.
    Fatal(Fatal),
    /// Ended from here, for this reason, which the client is still to be told.
    Here(&'static str),
    /// It had not logged in and had to make way for others who want to.
    Crowded,
    /// Ended from here, and the client has got its last line or takes none.
    Told(&'static str),
}

/// When a client closed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Between two commands.
    Between,
    /// In the middle of one.
    Midway,
    /// While it waited for an answer.
    Waiting,
}

impl Conversation {
    pub(super) fn new(
        stream: BoxStream,
        dialect: Dialect,
        limits: &SessionLimits,
        spill: SpillWriter,
        memory: Arc<MemoryGauge>,
        meter: Meter,
    ) -> Self {
        Self {
            stream,
            dialect,
            reader: CommandReader::new(limits.reader.clone()).speaking(dialect),
            asked: false,
            is_in: false,
            had_tag: false,
            next_tag: Bytes::from_static(b"S0"),
            buffer: BytesMut::with_capacity(READ_BUFFER),
            input: Bytes::new(),
            spill,
            overflow: None,
            command_memory: limits.command_memory,
            arriving: memory.arriving(),
            lists: memory.lists(),
            memory,
            write_timeout: limits.write_timeout,
            idle: limits.idle,
            meter,
        }
    }

    /// From now on commands are read; before, short lines.
    pub(super) fn logged_in(&mut self) {
        self.reader.set_authenticated(true);
        self.is_in = true;
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Nothing that has come was IMAP, which this client was to speak.
    pub(super) fn is_foreign(&self) -> bool {
        self.dialect == Dialect::Imap && !self.had_tag
    }

    /// The next command. May be dropped half-way when the connection is given up.
    pub(super) async fn next(&mut self) -> Result<Command, Ended> {
        loop {
            if let Some(command) = self.reader.feed(&mut self.input).map_err(Ended::Fatal)? {
                let command = match self.overflow.take() {
                    None => self.put_by(command),
                    Some(answer) => Command {
                        kind: Kind::Bad { answer },
                        raw: Body::new(),
                    },
                };
                self.asked = true;
                self.had_tag |= self.reader.tag() != b"*";
                if self.is_in
                    && let Some(next) = next_tag(self.reader.tag())
                {
                    self.next_tag = next;
                }
                self.hold(command.memory(), command.listed())?;
                return Ok(command);
            }
            self.hold_unfinished()?;
            self.fill(self.reader.mid_command()).await?;
        }
    }

    /// Counts what there is of an unfinished command, and spills it where it is too much.
    fn hold_unfinished(&mut self) -> Result<(), Ended> {
        let spillable = self.reader.spillable();
        let lists = self.reader.held().saturating_sub(spillable);
        self.hold(spillable, lists)?;
        let tight = self.memory.is_tight();
        let most = if tight {
            UNFINISHED.min(self.command_memory)
        } else {
            self.command_memory
        };
        if spillable > most {
            self.spill_command()?;
            self.arriving.set(self.reader.spillable());
        }
        Ok(())
    }

    fn hold(&mut self, memory: u64, lists: u64) -> Result<(), Ended> {
        self.arriving.set(memory);
        self.lists.set(lists);
        if lists > SHORT_LISTS && !self.lists.fits() {
            return Err(Ended::Here("no room for so long a list, try again later"));
        }
        Ok(())
    }

    /// The next line, for SASL.
    pub(super) async fn line(&mut self) -> Result<Secret, Ended> {
        loop {
            let line = self.reader.feed_line(&mut self.input);
            if let Some(line) = line.map_err(Ended::Fatal)? {
                return Ok(line);
            }
            self.fill(true).await?;
        }
    }

    /// Gets more input.
    async fn fill(&mut self, midway: bool) -> Result<(), Ended> {
        if self.buffer.is_empty() {
            stream::make_room(&mut self.buffer, READ_BUFFER);
            let read = stream::read(&mut self.stream, &mut self.buffer);
            match timeout(self.idle, read).await {
                Ok(Ok(0)) if midway => return Err(Ended::Closed(When::Midway)),
                Ok(Ok(0)) => return Err(Ended::Closed(When::Between)),
                Ok(Ok(n)) => self.meter.read.increment(n as u64),
                Ok(Err(error)) => return Err(Ended::Broken(error)),
                Err(_) => return Err(Ended::Here("nothing came for too long")),
            }
        }
        self.input = self.buffer.split().freeze();
        Ok(())
    }

    /// A finished command, out of memory where that is tight. Where there is no room for it on
    /// disk either it stays: the core refuses what is beyond both.
    fn put_by(&mut self, mut command: Command) -> Command {
        if self.memory.is_tight() && command.memory() > SMALL {
            let spill = &mut self.spill;
            let spilled =
                command.spill(&mut |pieces| spill.append(pieces).map_err(std::io::Error::other));
            if let Err(error) = spilled {
                tracing::debug!(%error, "a command stays in memory");
            }
        }
        Spill::complete(&command.raw);
        if let Kind::Apply(Apply::Message { files, .. }) = &command.kind {
            files.iter().for_each(|file| Spill::complete(&file.content));
        }
        command
    }

    fn spill_command(&mut self) -> Result<(), Ended> {
        let Self {
            reader,
            spill,
            overflow,
            ..
        } = self;
        let spilled = reader.spill(&mut |pieces| {
            if overflow.is_none() {
                match spill.append(pieces) {
                    Ok(spilled) => return Ok(spilled),
                    Err(error) => *overflow = Some(no_space(&error)),
                }
            }
            // The command must still be read to its end, which may be far: nothing of it is kept.
            void(pieces)
        });
        spilled.map_err(Ended::Broken)
    }

    /// Writes a replica's answer, which may be large. The client may read it as slowly as it likes:
    /// meanwhile it is on disk, or counted where the disk takes no more.
    pub(super) async fn pass_on(&mut self, body: Body) -> Result<(), Ended> {
        let mut body = self.dialect.answer(self.reader.tag(), body);
        let mut share = self.spill.answers();
        if body.memory() > self.command_memory {
            let spill = &mut self.spill;
            let write = &mut |run: &[Bytes]| spill.append(run).map_err(std::io::Error::other);
            if let Err(error) = body.spill(write) {
                tracing::debug!(%error, "an answer stays in memory");
                share.set(body.memory());
                if !share.fits() {
                    return Err(Ended::Here("no room for the answer, try again later"));
                }
            }
        }
        self.asked = false;
        self.answer(&body).await
    }

    /// Writes bytes of an answer, all of it. The limit is for progress, not for the whole.
    pub(super) async fn answer(&mut self, body: &Body) -> Result<(), Ended> {
        self.meter.written.increment(body.len());
        let mut writing = Writing::new(body);
        while within(self.write_timeout, writing.step(&mut self.stream)).await? {}
        // A TLS stream holds bytes back until it is told not to.
        within(self.write_timeout, self.stream.flush()).await
    }

    /// Writes the line that ends an answer.
    pub(super) async fn say(&mut self, line: &str) -> Result<(), Ended> {
        let line = Body::from(format!("{line}\r\n"));
        let line = self.dialect.answer(self.reader.tag(), line);
        self.asked = false;
        self.answer(&line).await
    }

    /// Asks for the next line of a SASL exchange.
    pub(super) async fn ask_on(&mut self) -> Result<(), Ended> {
        self.answer(&"+ \r\n".into()).await
    }

    /// Writes the last line: `BYE why`, or `OK Finished` to somebody who wants to go. Without words
    /// nothing at all is said, as by a connection that broke.
    pub(super) async fn last_words(&mut self, words: &str) -> Result<(), Ended> {
        if words.is_empty() {
            return Ok(());
        }
        let tag = self.reader.tag();
        let asked = self.asked || self.reader.is_tagged();
        let body = match (self.is_in, asked) {
            // Who leaves before the login is answered as well.
            (_, true) if words.starts_with("OK ") => self.dialect.last_words(words, tag),
            (false, _) => self.dialect.refusal(words),
            (true, true) => self.dialect.last_words(words, tag),
            (true, false) => self.dialect.last_words(words, &self.next_tag),
        };
        self.answer(&body).await
    }

    /// Writes the last line to a client that cannot be followed.
    pub(super) async fn give_up(&mut self, fatal: &Fatal) -> Result<(), Ended> {
        let body = self.dialect.refusal(&fatal.answer);
        self.answer(&body).await
    }

    /// Resolves when the client is gone. Meanwhile it may send ahead, what the buffer takes; that
    /// is kept for [`Self::next`].
    pub(super) async fn gone(&mut self) -> Ended {
        // With something in it, it would be copied into a new one.
        if self.buffer.is_empty() {
            stream::make_room(&mut self.buffer, READ_BUFFER);
        }
        while self.buffer.len() < self.buffer.capacity() {
            match stream::read(&mut self.stream, &mut self.buffer).await {
                Ok(0) => return Ended::Closed(When::Waiting),
                Ok(n) => self.meter.read.increment(n as u64),
                Err(error) => return Ended::Broken(error),
            }
        }
        std::future::pending().await
    }

    /// Goes over to TLS. What the client has sent behind STARTTLS in the clear is thrown away.
    pub(super) async fn start_tls(
        &mut self,
        acceptor: &TlsAcceptor,
        limits: &ReaderLimits,
    ) -> Result<(), Ended> {
        self.input = Bytes::new();
        self.buffer.clear();
        self.reader = CommandReader::new(limits.clone()).speaking(self.dialect);
        let plain = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let stream = acceptor.accept(plain).await.map_err(Ended::Broken)?;
        self.stream = Box::new(stream);
        Ok(())
    }

    /// Closes so that the last line arrives: a connection that is closed with something unread is
    /// reset, and the client might never see it.
    pub(super) async fn close(mut self) {
        let goodbye = async {
            self.stream.shutdown().await?;
            let mut rest = vec![0; 4096];
            while self.stream.read(&mut rest).await? > 0 {}
            Ok::<_, std::io::Error>(())
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }
}

async fn within<T>(
    limit: Duration,
    write: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Ended> {
    match timeout(limit, write).await {
        Ok(written) => written.map_err(Ended::Broken),
        Err(_) => Err(Ended::Told("it takes no answer")),
    }
}

fn no_space(error: &SpillError) -> String {
    tracing::error!(%error, "a command does not fit; it is answered NO");
    "NO syncmux has no room for this command, try again later".to_owned()
}

/// Stands for bytes that were thrown away.
fn void(pieces: &[Bytes]) -> std::io::Result<Spilled> {
    let len = pieces.iter().map(|piece| piece.len() as u64).sum();
    Ok(Spilled {
        file: nothing()?,
        offset: 0,
        len,
        lease: Arc::new(()),
    })
}

/// One descriptor for all that is thrown away: a large command is in thousands of stretches.
fn nothing() -> std::io::Result<Arc<File>> {
    static NOTHING: OnceLock<Arc<File>> = OnceLock::new();
    if let Some(file) = NOTHING.get() {
        return Ok(Arc::clone(file));
    }
    let file = Arc::new(File::open("/dev/null")?);
    Ok(Arc::clone(NOTHING.get_or_init(|| file)))
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(when) => {
                f.write_str("the client closed the connection")?;
                f.write_str(match when {
                    When::Between => "",
                    When::Midway => " in the middle of a command",
                    When::Waiting => " while it waited for an answer",
                })
            }
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::Fatal(fatal) => write!(f, "{fatal}"),
            Self::Crowded => f.write_str("it made way for others before its login"),
            Self::Here(why) | Self::Told(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// More than anybody may have.
    const ALL: u64 = 1 << 40;

    fn conversation(spill: &Arc<Spill>, memory: &Arc<MemoryGauge>) -> (Conversation, BoxStream) {
        let limits = SessionLimits {
            command_memory: 1000,
            ..SessionLimits::default()
        };
        let (here, there) = tokio::io::duplex(1 << 20);
        let writer = spill.writer();
        let meter = Meter::new("", "client");
        let conversation = Conversation::new(
            Box::new(here),
            Dialect::Csync,
            &limits,
            writer,
            Arc::clone(memory),
            meter,
        );
        (conversation, Box::new(there))
    }

    fn full() -> (Arc<Spill>, Arc<MemoryGauge>) {
        let spill = Spill::new(&std::env::temp_dir(), 0).unwrap();
        let memory = MemoryGauge::new(1000, Arc::clone(&spill));
        (spill, memory)
    }

    #[tokio::test]
    async fn an_answer_for_which_there_is_no_room_anywhere_ends_the_session() {
        let (spill, memory) = full();
        let (mut session, _client) = conversation(&spill, &memory);
        let (mut slow, _slow_client) = conversation(&spill, &memory);
        let mut others = spill.writer().answers();
        others.set(ALL);
        let answer = || Body::from("x".repeat(2000));
        let refused = session.pass_on(answer()).await;
        let Err(Ended::Here(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(why.starts_with("no room for the answer"));
        // A small one needs none, and one that is alone has all there is.
        slow.pass_on(Body::from("OK success\r\n")).await.unwrap();
        others.set(0);
        slow.pass_on(answer()).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_no_answers_is_given_up() {
        let (spill, memory) = full();
        let (mut session, _client) = conversation(&spill, &memory);
        session.write_timeout = Duration::from_millis(50);
        let answer = Body::from("x".repeat(4 << 20));
        assert!(session.answer(&answer).await.is_err());
    }

    #[tokio::test]
    async fn lists_that_are_too_long_all_together_end_the_session() {
        let (spill, memory) = full();
        let (mut session, mut client) = conversation(&spill, &memory);
        session.logged_in();
        let mut others = memory.lists();
        others.set(ALL);
        let names = |count| format!("GET MAILBOXES ({})\r\n", vec!["user.joe"; count].join(" "));
        // Short ones are taken whatever others hold.
        client.write_all(names(100).as_bytes()).await.unwrap();
        session.next().await.unwrap();
        client.write_all(names(20_000).as_bytes()).await.unwrap();
        let refused = session.next().await;
        let Err(Ended::Here(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(why.starts_with("no room for so long a list"));
    }
}
