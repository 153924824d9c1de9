//! Lines back and forth before a connection carries commands.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lane_connect::ConnectError;
use super::stream::BoxStream;

/// A line longer than any that a greeting or a login has.
const LINE: usize = 32 * 1024;

/// A stream read by lines.
pub(super) struct Wire {
    stream: BoxStream,
    buffer: BytesMut,
    /// How much of the buffer was looked through for a line end already.
    scanned: usize,
}

impl Wire {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::with_capacity(4096),
            scanned: 0,
        }
    }

    /// The next line without its end.
    pub(super) async fn line(&mut self) -> Result<Bytes, ConnectError> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let mut line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                line.truncate(line.len() - 1);
                if line.last() == Some(&b'\r') {
                    line.truncate(line.len() - 1);
                }
                return Ok(line.freeze());
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > LINE {
                return Err(ConnectError::protocol(
                    "the replica sends a line without end: is it a sync_server?",
                ));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ConnectError::unreachable(
                    "the replica closed the connection before it was ready for commands",
                ));
            }
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The stream and what was read of it but not asked for.
    pub(super) fn into_parts(self) -> (BoxStream, Bytes) {
        (self.stream, self.buffer.freeze())
    }
}
