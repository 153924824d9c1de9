//! A lane: one connection to the replica, commands written one behind the other, answers read
//! as they come.
//!
//! Reading and writing go on side by side: a replica that cannot get rid of its answers stops
//! reading commands, so a writer that waits must not keep the answers from being read.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use super::lane_connect::{Connected, Replica};
use super::replies::{Broken, Replies};
use super::spill::write_body;
use super::stream::{self, BoxStream};
use crate::core::event::{Event, LaneId, Pool};
use crate::protocol::{Body, print};

/// Commands are gathered up to this many bytes before they are written.
const WRITE_AT_ONCE: u64 = 64 * 1024;

/// How much is read at once.
const READ_BUFFER: usize = 64 * 1024;

/// What the core's actions are carried out with. Dropping it ends the lane.
#[derive(Debug)]
pub struct LaneHandle {
    requests: UnboundedSender<Request>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Request {
    Send(Body),
    Exit,
}

#[derive(Debug, Default)]
struct Shared {
    /// Requests handed over and not answered yet.
    in_flight: AtomicUsize,
    /// EXIT was asked for; its answer belongs to nobody.
    exiting: AtomicBool,
    /// Cancelled when the lane is to end in whatever way.
    closing: CancellationToken,
    /// Cancelled when it is to end at once.
    aborted: CancellationToken,
}

/// How a lane ended.
struct Loss {
    why: String,
    orderly: bool,
    /// The replica's end of file was seen, or waited for in vain.
    ended: bool,
}

/// Connects in the background and then carries commands. What happens is told in `events`:
/// `LaneOpened` and in the end one `LaneLost`, or one `LaneRefused`.
///
/// The channel is unbounded on purpose: a lane answers only what it was asked, so there is never
/// more in it than the core has in flight; and a lane that had to wait for the core could not read
/// on while the core waits for it.
pub fn open(
    lane: LaneId,
    pool: Pool,
    replica: Arc<Replica>,
    credentials: Option<Credentials>,
    events: UnboundedSender<Event>,
) -> LaneHandle {
    // Unbounded too: the core limits what it has in flight and queued.
    let (requests, queue) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    let task = Lane {
        lane,
        replica,
        events,
        shared: Arc::clone(&shared),
    };
    tokio::spawn(task.run(pool, credentials, queue));
    LaneHandle { requests, shared }
}

impl LaneHandle {
    /// Sends one command; its answer comes as one `LaneReply`.
    pub fn send(&self, body: Body) {
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        // A lane that is gone has said so, or is about to, with `LaneLost`.
        let _ = self.requests.send(Request::Send(body));
    }

    /// Ends the lane: by EXIT behind what was sent, or at once. Ends in `LaneLost`.
    pub fn close(&self, polite: bool) {
        if polite {
            self.shared.exiting.store(true, Ordering::Relaxed);
            let _ = self.requests.send(Request::Exit);
        } else {
            self.shared.aborted.cancel();
        }
        self.shared.closing.cancel();
    }
}

impl Drop for LaneHandle {
    fn drop(&mut self) {
        if !self.shared.exiting.load(Ordering::Relaxed) {
            self.close(false);
        }
    }
}

struct Lane {
    lane: LaneId,
    replica: Arc<Replica>,
    events: UnboundedSender<Event>,
    shared: Arc<Shared>,
}

impl Lane {
    async fn run(
        self,
        pool: Pool,
        credentials: Option<Credentials>,
        queue: UnboundedReceiver<Request>,
    ) {
        let lane = self.lane;
        let connected = tokio::select! {
            connected = self.replica.connect(&pool, credentials.as_ref()) => connected,
            () = self.shared.closing.cancelled() => {
                let why = "closed before it was open".to_owned();
                self.tell(Event::LaneLost { lane, why, orderly: true });
                return;
            }
        };
        let event = match connected {
            Ok(connected) => {
                let enabled = connected.enabled.clone();
                tracing::info!(lane = lane.0, ?enabled, "a lane is open");
                self.tell(Event::LaneOpened { lane, enabled });
                let Loss { why, orderly, .. } = self.carry(connected, queue).await;
                tracing::info!(lane = lane.0, why, orderly, "a lane is gone");
                if !orderly {
                    self.count("lane lost");
                }
                Event::LaneLost { lane, why, orderly }
            }
            Err(error) => {
                // The core decides when it is tried again, and says so in the log.
                tracing::debug!(lane = lane.0, %error, "a lane could not be opened");
                self.count(error.kind());
                Event::LaneRefused {
                    lane,
                    why: error.to_string(),
                }
            }
        };
        self.tell(event);
    }

    fn count(&self, kind: &'static str) {
        stream::count_failure(&self.replica.settings.channel, "replica", kind);
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more only when the program is ending.
        let _ = self.events.send(event);
    }

    /// Carries commands until the lane ends, and then waits for the replica's end of file.
    async fn carry(&self, connected: Connected, queue: UnboundedReceiver<Request>) -> Loss {
        let linger = self.replica.settings.linger;
        let (mut read, mut write) = tokio::io::split(connected.stream);
        let mut loss = self
            .until_loss(&mut read, connected.received, &mut write, queue)
            .await;
        if !loss.ended {
            self.tell(Event::LaneFailing { lane: self.lane });
            // Only what the replica is doing right now may still happen: nothing more goes out.
            let ending = async {
                let (_, ended) = tokio::join!(write.shutdown(), drain(&mut read));
                ended
            };
            if timeout(linger, ending).await.is_err() {
                let waited = linger.as_secs();
                loss.why += &format!(
                    "; the replica did not close within {waited} seconds, a command may still run"
                );
            }
        }
        loss
    }

    async fn until_loss(
        &self,
        read: &mut ReadHalf<BoxStream>,
        received: Bytes,
        write: &mut WriteHalf<BoxStream>,
        queue: UnboundedReceiver<Request>,
    ) -> Loss {
        let mut reading = pin!(self.read_replies(read, received));
        let written = {
            let writing = pin!(self.write_requests(write, queue));
            tokio::select! {
                loss = &mut reading => return loss,
                written = writing => written,
                () = self.shared.aborted.cancelled() => Ok(()),
            }
        };
        // What the replica has answered already still comes in, until its end of file.
        self.tell(Event::LaneFailing { lane: self.lane });
        let polite = self.shared.exiting.load(Ordering::Relaxed) && written.is_ok();
        let linger = self.replica.settings.linger;
        let why = match written {
            Err(error) => format!("writing to the replica failed: {error}"),
            Ok(()) => "closed".to_owned(),
        };
        let patience = if polite {
            self.replica.settings.exit_wait
        } else {
            linger
        };
        let ending = async {
            if !polite {
                let shut = write.shutdown();
                return tokio::join!(shut, &mut reading).1;
            }
            (&mut reading).await
        };
        match timeout(patience, ending).await {
            Ok(loss) => Loss {
                why: if loss.orderly { why } else { loss.why },
                orderly: polite || self.idle(),
                ended: loss.ended,
            },
            Err(_) if !polite || self.idle() => Loss {
                why,
                orderly: self.idle(),
                // It has been waited for.
                ended: true,
            },
            Err(_) => Loss {
                why,
                orderly: false,
                ended: false,
            },
        }
    }

    fn exiting(&self) -> bool {
        self.shared.exiting.load(Ordering::Relaxed)
    }

    fn idle(&self) -> bool {
        self.shared.in_flight.load(Ordering::Relaxed) == 0
    }

    /// Writes commands in order; what is small goes out together once the queue is empty for a
    /// moment. Returns after EXIT.
    async fn write_requests(
        &self,
        write: &mut WriteHalf<BoxStream>,
        mut queue: UnboundedReceiver<Request>,
    ) -> std::io::Result<()> {
        let dialect = self.replica.settings.dialect;
        let mut sent = 0;
        let mut gathered = Body::new();
        let mut exit = false;
        while !exit {
            let request = match queue.try_recv() {
                Ok(request) => request,
                Err(_) => {
                    self.write_gathered(write, &mut gathered).await?;
                    write.flush().await?;
                    match queue.recv().await {
                        Some(request) => request,
                        // The handle is dropped, which ends the lane in its own way.
                        None => std::future::pending().await,
                    }
                }
            };
            let command = match request {
                Request::Send(body) => body,
                Request::Exit => {
                    exit = true;
                    print::EXIT.into()
                }
            };
            gathered.append(dialect.request(sent, command));
            sent += 1;
            if gathered.len() >= WRITE_AT_ONCE {
                self.write_gathered(write, &mut gathered).await?;
            }
        }
        self.write_gathered(write, &mut gathered).await?;
        write.flush().await
    }

    async fn write_gathered(
        &self,
        write: &mut WriteHalf<BoxStream>,
        gathered: &mut Body,
    ) -> std::io::Result<()> {
        write_body(write, gathered).await?;
        self.replica.meter.written.increment(gathered.len());
        gathered.take_pieces();
        Ok(())
    }

    async fn read_replies(&self, read: &mut ReadHalf<BoxStream>, received: Bytes) -> Loss {
        let settings = &self.replica.settings;
        let spill = self.replica.spill.writer();
        let mut replies = Replies::new(settings.reply_memory, spill, settings.dialect);
        let mut buffer = BytesMut::with_capacity(READ_BUFFER);
        let mut input = received;
        loop {
            match self.deliver(&mut replies, &mut input) {
                Ok(()) => {}
                Err(loss) => return loss,
            }
            stream::make_room(&mut buffer, READ_BUFFER);
            match stream::read(read, &mut buffer).await {
                Ok(0) => return self.end_of_file(&replies),
                Ok(n) => self.replica.meter.read.increment(n as u64),
                Err(error) => {
                    // The kernel has given the connection up: there is no end of file to wait for.
                    return Loss {
                        why: format!("reading from the replica failed: {error}"),
                        orderly: false,
                        ended: true,
                    };
                }
            }
            input = buffer.split().freeze();
        }
    }

    /// Hands on every reply that is complete in `input`.
    fn deliver(&self, replies: &mut Replies, input: &mut Bytes) -> Result<(), Loss> {
        let broken = |why| Loss {
            why,
            orderly: false,
            ended: false,
        };
        loop {
            let reply = match replies.feed(input) {
                Ok(None) if replies.unasked() && self.idle() && !self.exiting() => {
                    let why = "the replica says something without being asked".to_owned();
                    return Err(broken(why));
                }
                Ok(None) => return Ok(()),
                Ok(Some(reply)) => reply,
                Err(Broken::Bye(why)) => {
                    return Err(Loss {
                        why,
                        orderly: true,
                        ended: false,
                    });
                }
                Err(Broken::Garbage(why)) => return Err(broken(why)),
            };
            let count = |n: usize| n.checked_sub(1);
            let in_flight = &self.shared.in_flight;
            let counted = in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
            if counted.is_ok() {
                let lane = self.lane;
                self.tell(Event::LaneReply { lane, reply });
            } else if !self.exiting() {
                let line = super::handshake::shown(&reply.status.line());
                return Err(broken(format!(
                    "the replica says {line} without being asked"
                )));
            }
        }
    }

    fn end_of_file(&self, replies: &Replies) -> Loss {
        let orderly = self.idle() && !replies.partial();
        let why = match replies.last_words() {
            Some(words) => format!("the replica said {words} and closed the connection"),
            None if orderly => "the replica closed the idle connection".to_owned(),
            None => "the replica closed the connection in the middle of a command".to_owned(),
        };
        Loss {
            why,
            orderly,
            ended: true,
        }
    }
}

/// Reads until the end of file and throws it away.
async fn drain(read: &mut ReadHalf<BoxStream>) {
    let mut buffer = vec![0; 4096];
    while matches!(read.read(&mut buffer).await, Ok(n) if n > 0) {}
}
