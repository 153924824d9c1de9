//! Lines back and forth before a connection carries commands.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::lane_connect::ConnectError;
use super::stream::{self, BoxStream};
use crate::protocol::reply_reader::Line;
use crate::protocol::{ReaderLimits, ReplyReader};

/// More than any line of a greeting or a login has.
const LINE: usize = 32 * 1024;

/// A stream read by lines.
pub(super) struct Wire {
    stream: BoxStream,
    reader: ReplyReader,
    buffer: BytesMut,
    input: Bytes,
}

impl Wire {
    pub(super) fn new(stream: BoxStream) -> Self {
        let limits = ReaderLimits {
            text: LINE as u64,
            message: LINE as u64,
            line: LINE,
            ..ReaderLimits::default()
        };
        Self {
            stream,
            reader: ReplyReader::new(limits),
            buffer: BytesMut::with_capacity(4096),
            input: Bytes::new(),
        }
    }

    /// The next line.
    pub(super) async fn line(&mut self) -> Result<Line, ConnectError> {
        loop {
            let line = self.reader.feed(&mut self.input).map_err(|fatal| {
                ConnectError::protocol(format!(
                    "what answers is not a sync_server, or one that cannot be followed: {fatal}"
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
