//! A few questions to a `sync_server`, one after the other: for tools that look at both ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::credentials::Credentials;
use super::lane_connect::{ConnectError, Replica};
use super::replies::{Broken, Replies};
use super::spill::write_body;
use super::stream::{self, BoxStream};
use crate::core::event::{Identity, Pool};
use crate::protocol::{Body, Dialect, Reply, print};

/// Bytes of one answer in memory; what is beyond spills.
const REPLY: u64 = 16 << 20;

/// A connection that is logged in as a lane is, and asks.
pub struct Asker {
    stream: BoxStream,
    replies: Replies,
    buffer: BytesMut,
    input: Bytes,
    timeout: Duration,
    dialect: Dialect,
    /// Commands so far.
    sent: u64,
}

impl Asker {
    /// Connects and logs in; an answer may take as long as `timeout`.
    ///
    /// # Errors
    /// As for a lane.
    pub async fn connect(
        server: &Arc<Replica>,
        credentials: Option<&Credentials>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let pool = Pool {
            identity: Identity::Configured,
            capabilities: Vec::new(),
            force: None,
        };
        let connected = server.connect(&pool, credentials).await?;
        Ok(Asker {
            stream: connected.stream,
            replies: Replies::new(REPLY, server.spill.writer(), server.settings.dialect),
            buffer: BytesMut::new(),
            input: connected.received,
            timeout,
            dialect: server.settings.dialect,
            sent: 0,
        })
    }

    /// Sends one command and waits for its whole answer.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub async fn ask(&mut self, command: &Body) -> Result<Reply, ConnectError> {
        let timeout = self.timeout;
        tokio::time::timeout(timeout, self.exchange(command))
            .await
            .unwrap_or_else(|_| {
                let seconds = timeout.as_secs();
                let why = format!("there was no answer within {seconds} seconds");
                Err(ConnectError::unreachable(why))
            })
    }

    async fn exchange(&mut self, command: &Body) -> Result<Reply, ConnectError> {
        self.send(command.clone()).await?;
        loop {
            match self.replies.feed(&mut self.input) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(Broken::Bye(why)) => return Err(ConnectError::unreachable(why)),
                Err(Broken::Garbage(why)) => return Err(ConnectError::protocol(why)),
            }
            self.buffer.reserve(64 << 10);
            if stream::read(&mut self.stream, &mut self.buffer).await? == 0 {
                let why = match self.replies.last_words() {
                    Some(words) => format!("it said {words} and closed the connection"),
                    None => "it closed the connection in the middle of an answer".to_owned(),
                };
                return Err(ConnectError::unreachable(why));
            }
            self.input = self.buffer.split().freeze();
        }
    }

    async fn send(&mut self, command: Body) -> std::io::Result<()> {
        let request = self.dialect.request(self.sent, command);
        self.sent += 1;
        write_body(&mut self.stream, &request).await?;
        self.stream.flush().await
    }

    /// Says goodbye.
    pub async fn leave(mut self) {
        let goodbye = async {
            self.send(print::EXIT.into()).await?;
            self.stream.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asker")
    }
}
