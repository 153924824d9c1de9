//! Lines back and forth before a connection carries commands.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::handshake::shown;
use super::lane_connect::ConnectError;
use super::stream::{self, BoxStream};
use crate::protocol::reply_reader::Line;
use crate::protocol::{Body, Dialect, ReaderLimits, ReplyReader, Untagged};

/// More than any line of a greeting or a login has.
const LINE: usize = 32 * 1024;

/// More remarks than an imapd makes before it answers.
pub(super) const REMARKS: usize = 64;

/// A stream read by lines.
pub(super) struct Wire {
    stream: BoxStream,
    pub(super) dialect: Dialect,
    /// Commands so far.
    sent: u64,
    reader: ReplyReader,
    buffer: BytesMut,
    input: Bytes,
}

impl Wire {
    pub(super) fn new(stream: BoxStream, dialect: Dialect) -> Self {
        let limits = ReaderLimits {
            text: LINE as u64,
            message: LINE as u64,
            line: LINE,
            ..ReaderLimits::default()
        };
        Self {
            stream,
            dialect,
            sent: 0,
            reader: ReplyReader::new(limits).speaking(dialect),
            buffer: BytesMut::with_capacity(4096),
            input: Bytes::new(),
        }
    }

    /// The next line of an answer. What imapd says beside it (`* OK [ALERT] ...`) is passed over.
    pub(super) async fn line(&mut self) -> Result<Line, ConnectError> {
        for _ in 0..REMARKS {
            let line = self.any_line().await?;
            match &line {
                Line::Untagged(untagged) if is_remark(self.dialect, untagged) => {
                    let said = untagged.raw.to_vec().unwrap_or_default();
                    tracing::info!(said = shown(&said), "the replica remarks");
                }
                _ => return Ok(line),
            }
        }
        Err(ConnectError::protocol("the replica's remarks do not end"))
    }

    /// The next line, whatever it is.
    pub(super) async fn any_line(&mut self) -> Result<Line, ConnectError> {
        loop {
            let line = self.reader.feed(&mut self.input).map_err(|fatal| {
                ConnectError::protocol(format!(
                    "what answers is not {}, or one that cannot be followed: {fatal}",
                    server(self.dialect)
                ))
            })?;
            if let Some(line) = line {
                return Ok(line);
            }
            self.buffer.reserve(4096);
            if stream::read(&mut self.stream, &mut self.buffer).await? == 0 {
                return Err(ConnectError::unreachable(
                    "the replica closed the connection before it was ready for commands",
                ));
            }
            self.input = self.buffer.split().freeze();
        }
    }

    /// One command of the connection, its line end included, as csync has it.
    pub(super) async fn command(&mut self, line: &[u8]) -> Result<(), ConnectError> {
        self.begin(line).await?;
        self.send(line).await
    }

    /// One command of whatever kind, to be flushed with the next.
    pub(super) async fn write(&mut self, command: Body) -> Result<(), ConnectError> {
        let request = self.dialect.request(self.sent, command);
        self.sent += 1;
        self.stream
            .write_all(&request.to_vec().unwrap_or_default())
            .await?;
        Ok(())
    }

    async fn begin(&mut self, line: &[u8]) -> Result<(), ConnectError> {
        let prefix = self.dialect.prefix(self.sent, line);
        self.sent += 1;
        self.stream.write_all(prefix.as_bytes()).await?;
        Ok(())
    }

    /// Bytes as they are.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The stream and what was read of it but not asked for.
    pub(super) fn into_parts(self) -> (BoxStream, Bytes) {
        (self.stream, self.input)
    }
}

/// What is said beside answers: in IMAP a server may remark something at any time, and imapd does
/// (`* OK [ALERT] ...`).
pub(super) fn is_remark(dialect: Dialect, line: &Untagged) -> bool {
    dialect == Dialect::Imap && matches!(&line.kind[..], b"OK" | b"NO")
}

/// What should be there, in a sentence.
pub(super) fn server(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Csync => "a sync_server",
        Dialect::Imap => "an imapd",
    }
}
