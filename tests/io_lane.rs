//! Lanes against replicas that misbehave: pieces, ends of file, BYE, garbage, full buffers.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]
mod io_fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use io_fake::{Fake, Peer, pool, settings, spill};
use syncmux::core::event::{Event, LaneId, SessionId};
use syncmux::io::credentials::Credentials;
use syncmux::io::lane::{self, LaneHandle};
use syncmux::io::lane_connect::{Replica, ReplicaSettings};
use syncmux::io::spill::collect;
use syncmux::protocol::{Body, Reply, StatusKind};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const LANE: LaneId = LaneId(7);

struct Lane {
    handle: LaneHandle,
    events: UnboundedReceiver<Event>,
}

impl Lane {
    fn open(settings: ReplicaSettings) -> Self {
        Self::open_pool(settings, pool())
    }

    fn open_pool(settings: ReplicaSettings, pool: syncmux::core::event::Pool) -> Self {
        let replica = Replica::new(settings, spill(1 << 30)).unwrap();
        let (sender, events) = unbounded_channel();
        let credentials = Some(Credentials::new("repl", "replpw"));
        let handle = lane::open(LANE, pool, replica, credentials, sender);
        Self { handle, events }
    }

    /// The next event. That a lane will be lost is said before it is, which few tests look at.
    async fn event(&mut self) -> Event {
        loop {
            match self.any_event().await {
                Event::LaneFailing { lane: LANE } => {}
                event => return event,
            }
        }
    }

    async fn any_event(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .expect("an event in time")
            .expect("an event")
    }

    async fn opened(&mut self) -> Option<Vec<Bytes>> {
        match self.event().await {
            Event::LaneOpened {
                lane: LANE,
                enabled,
            } => enabled,
            other => panic!("{other:?}"),
        }
    }

    async fn reply(&mut self) -> Reply {
        match self.event().await {
            Event::LaneReply { lane: LANE, reply } => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&mut self) -> (String, bool) {
        match self.event().await {
            Event::LaneLost {
                lane: LANE,
                why,
                orderly,
            } => (why, orderly),
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self) -> String {
        match self.event().await {
            Event::LaneRefused { lane: LANE, why } => why,
            other => panic!("{other:?}"),
        }
    }
}

/// A replica that lets the lane in and then does what `then` says.
async fn opened<F, T>(then: F) -> Lane
where
    F: FnOnce(Peer) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let fake = Fake::bind().await;
    let mut lane = Lane::open(settings(&fake.address));
    tokio::spawn(async move {
        let mut peer = fake.accept().await;
        peer.let_in().await;
        then(peer).await;
    });
    assert_eq!(lane.opened().await, Some(Vec::new()));
    lane
}

async fn raw(reply: &Reply) -> Vec<u8> {
    let mut all = Vec::new();
    for line in &reply.untagged {
        all.extend(collect(&line.raw).await.unwrap());
    }
    all
}

#[tokio::test]
async fn replies_come_in_order_in_whatever_pieces() {
    let mut lane = opened(async |mut peer| {
        peer.expect("GET USER a\r\nGET USER b\r\n").await;
        let answer =
            b"* MAILBOX %(UNIQUEID 1 MBOXNAME user.a X {3}\r\na\r\n)\r\nOK one\r\nNO two\r\n";
        for byte in answer {
            peer.send(&[*byte]).await;
        }
        peer.hold().await;
    })
    .await;
    lane.handle.send(Body::from("GET USER a\r\n"));
    lane.handle.send(Body::from("GET USER b\r\n"));
    let first = lane.reply().await;
    assert_eq!(first.status.kind, StatusKind::Ok);
    assert_eq!(
        raw(&first).await,
        b"* MAILBOX %(UNIQUEID 1 MBOXNAME user.a X {3}\r\na\r\n)\r\n"
    );
    let second = lane.reply().await;
    assert_eq!(second.status.kind, StatusKind::No);
    assert_eq!(&second.status.text[..], b"two");
}

#[tokio::test]
async fn full_buffers_on_both_sides_do_not_stop_a_lane() {
    const N: usize = 24;
    const SIZE: usize = 2_000_000;
    let mut lane = opened(async |mut peer| {
        // Answers each command in full before it reads the next one.
        for _ in 0..N {
            peer.skip(SIZE).await;
            peer.send(format!("* MESSAGE {{{SIZE}}}\r\n").as_bytes())
                .await;
            peer.send(&vec![b'y'; SIZE]).await;
            peer.send(b"\r\nOK done\r\n").await;
        }
        peer.hold().await;
    })
    .await;
    for _ in 0..N {
        lane.handle.send(Body::from(Bytes::from(vec![b'x'; SIZE])));
    }
    for _ in 0..N {
        let reply = lane.reply().await;
        assert_eq!(reply.status.kind, StatusKind::Ok);
        // Beyond reply_memory (and one read buffer): on disk.
        assert!(reply.untagged[0].raw.memory() < 200_000);
        let all = raw(&reply).await;
        assert!(all.starts_with(b"* MESSAGE {2000000}\r\nyyy") && all.ends_with(b"yyy\r\n"));
        assert_eq!(all.len(), SIZE + b"* MESSAGE {2000000}\r\n\r\n".len());
    }
}

#[tokio::test]
async fn an_idle_connection_that_closes_is_no_error() {
    let mut lane = opened(async |mut peer| {
        peer.expect("NOOP\r\n").await;
        peer.send(b"OK Noop completed\r\n").await;
    })
    .await;
    lane.handle.send(Body::from("NOOP\r\n"));
    lane.reply().await;
    let (why, orderly) = lane.lost().await;
    assert!(orderly, "{why}");
}

#[tokio::test]
async fn an_end_of_file_in_the_middle_is_an_error() {
    for said in [
        "",
        "* MAILBOX %(UNIQ",
        "* MAILBOX %(UNIQUEID a)\r\n",
        "OK don",
    ] {
        let mut lane = opened(async |mut peer| {
            peer.expect("GET USER a\r\n").await;
            peer.send(said.as_bytes()).await;
        })
        .await;
        lane.handle.send(Body::from("GET USER a\r\n"));
        let (why, orderly) = lane.lost().await;
        assert!(!orderly && why.contains("middle"), "{why}");
    }
}

#[tokio::test]
async fn the_last_words_of_a_server_are_told() {
    let mut lane = opened(async |mut peer| {
        peer.expect("APPLY X\r\n").await;
        peer.send(b"* Fatal error: Internal error: assertion failed\r\n")
            .await;
    })
    .await;
    lane.handle.send(Body::from("APPLY X\r\n"));
    let (why, orderly) = lane.lost().await;
    assert!(!orderly && why.contains("assertion failed"), "{why}");
}

#[tokio::test]
async fn after_bye_the_end_of_file_is_waited_for() {
    let mut lane = opened(async |mut peer| {
        peer.expect("GET USER a\r\n").await;
        peer.send(b"BYE shutting down\r\n").await;
        // Nothing more comes from the lane.
        assert_eq!(peer.rest().await, b"");
        tokio::time::sleep(Duration::from_millis(300)).await;
    })
    .await;
    let began = Instant::now();
    lane.handle.send(Body::from("GET USER a\r\n"));
    let (why, orderly) = lane.lost().await;
    assert!(orderly && why.contains("shutting down"), "{why}");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn garbage_and_unasked_answers_end_a_lane() {
    for said in [
        "OK unasked\r\n",
        "HELLO\r\n",
        "+ go on\r\n",
        "* MAILBOX )(\r\n",
    ] {
        let mut lane = opened(async |mut peer| {
            peer.send(said.as_bytes()).await;
            assert_eq!(peer.rest().await, b"");
        })
        .await;
        let (why, orderly) = lane.lost().await;
        assert!(!orderly, "{said:?}: {why}");
    }
}

#[tokio::test]
async fn lines_that_nobody_asked_for_end_a_lane() {
    let mut lane = opened(async |mut peer| {
        peer.send(b"* SEEN %(USERID joe UNIQUEID abc)\r\n").await;
        peer.rest().await;
    })
    .await;
    let (why, orderly) = lane.lost().await;
    assert!(
        why.contains("without being asked") && !orderly,
        "{why} {orderly}"
    );
}

#[tokio::test]
async fn an_answer_without_end_ends_a_lane() {
    let mut lane = opened(async |mut peer| {
        peer.expect("GET USER a\r\n").await;
        let lines = b"* SEEN %(USERID joe UNIQUEID abc)\r\n".repeat(1000);
        while peer.0.write_all(&lines).await.is_ok() {}
    })
    .await;
    lane.handle.send(Body::from("GET USER a\r\n"));
    let (why, orderly) = lane.lost().await;
    assert!(why.contains("too large") && !orderly, "{why} {orderly}");
}

#[tokio::test]
async fn a_replica_that_does_not_close_is_waited_for_as_long_as_set() {
    let mut lane = opened(async |mut peer| {
        peer.send(b"OK unasked\r\n").await;
        peer.hold().await;
    })
    .await;
    let began = Instant::now();
    // Nothing more is to be put on it meanwhile.
    let failing = lane.any_event().await;
    assert!(matches!(failing, Event::LaneFailing { lane: LANE }));
    assert!(began.elapsed() < Duration::from_millis(900));
    let (why, orderly) = lane.lost().await;
    assert!(!orderly && why.contains("may still run"), "{why}");
    assert!(began.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn polite_and_impolite_ends() {
    let mut lane = opened(async |mut peer| {
        peer.expect("NOOP\r\nEXIT\r\n").await;
        peer.send(b"OK Noop completed\r\nOK Finished\r\n").await;
    })
    .await;
    lane.handle.send(Body::from("NOOP\r\n"));
    lane.handle.close(true);
    lane.reply().await;
    assert!(lane.lost().await.1);

    let mut lane = opened(async |mut peer| {
        peer.expect("GET USER a\r\n").await;
        assert_eq!(peer.rest().await, b"");
        peer.send(b"OK late\r\n").await;
    })
    .await;
    lane.handle.send(Body::from("GET USER a\r\n"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    lane.handle.close(false);
    // The answer was on its way: it is told, because it is true.
    assert_eq!(lane.reply().await.status.kind, StatusKind::Ok);
    lane.lost().await;
}

#[tokio::test]
async fn a_lane_that_is_closed_while_it_connects_is_lost() {
    let fake = Fake::bind().await;
    let mut lane = Lane::open(settings(&fake.address));
    lane.handle.close(true);
    assert!(lane.lost().await.1);
}

#[tokio::test]
async fn what_the_pool_asks_for_is_sent() {
    for (answer, enabled) in [
        (
            "* ENABLED (SIEVE-MAILBOX)\r\nOK success\r\n",
            Some(vec![Bytes::from("SIEVE-MAILBOX")]),
        ),
        ("NO IMAP_PROTOCOL_ERROR unknown\r\n", None),
    ] {
        let fake = Fake::bind().await;
        let mut wanted = pool();
        wanted.capabilities = vec![
            Bytes::from("REPLICATION-ARCHIVE"),
            Bytes::from("SIEVE-MAILBOX"),
        ];
        // FORCE is the core's own command: its client must have the replica's answer.
        wanted.force = Some(SessionId(1));
        let mut lane = Lane::open_pool(settings(&fake.address), wanted);
        let mut peer = fake.accept().await;
        peer.greet_and_login().await;
        peer.expect("NOOP\r\nAPPLY CAPABILITIES (REPLICATION-ARCHIVE SIEVE-MAILBOX)\r\n")
            .await;
        peer.send(format!("OK Noop completed\r\n{answer}").as_bytes())
            .await;
        assert_eq!(lane.opened().await, enabled);
    }
}

#[tokio::test]
async fn logins_that_fail_say_why() {
    for (login, noop, wanted) in [
        (
            "NO authentication failure\r\n",
            "",
            "authentication failure",
        ),
        ("OK Success\r\n", "NO Permission denied\r\n", "admins"),
        ("BYE shutting down\r\n", "", "shutting down"),
    ] {
        let fake = Fake::bind().await;
        let mut lane = Lane::open(settings(&fake.address));
        let mut peer = fake.accept().await;
        peer.send(io_fake::GREETING.as_bytes()).await;
        peer.expect("AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n").await;
        peer.send(login.as_bytes()).await;
        if !noop.is_empty() {
            peer.expect("NOOP\r\n").await;
            peer.send(noop.as_bytes()).await;
        }
        let why = lane.refused().await;
        assert!(why.contains(wanted), "{why}");
    }
}

#[tokio::test]
async fn what_is_no_sync_server_is_refused() {
    for said in ["HTTP/1.1 400 Bad Request\r\n", "", "* SASL PLAIN\r\n"] {
        let fake = Fake::bind().await;
        let mut lane = Lane::open(settings(&fake.address));
        let mut peer = fake.accept().await;
        peer.send(said.as_bytes()).await;
        drop(peer);
        assert!(!lane.refused().await.is_empty());
    }
    // Nobody there, and somebody who says nothing.
    let fake = Fake::bind().await;
    let mut silent = settings(&fake.address);
    silent.login_timeout = Duration::from_millis(200);
    silent.connect_timeout = Duration::from_millis(200);
    assert!(Lane::open(silent).refused().await.contains("not ready"));
    let gone = settings(&fake.address);
    drop(fake);
    assert!(Lane::open(gone).refused().await.contains("refused"));
}

#[tokio::test]
async fn compression_is_used_where_it_is_wanted_and_offered() {
    use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
    let fake = Fake::bind().await;
    let mut wanted = settings(&fake.address);
    wanted.compress = true;
    let mut lane = Lane::open(wanted);
    let mut peer = fake.accept().await;
    peer.greet_and_login().await;
    peer.expect("COMPRESS DEFLATE\r\n").await;
    peer.send(b"OK DEFLATE active\r\n").await;
    let (mut deflate, mut inflate) = (
        Compress::new(Compression::fast(), false),
        Decompress::new(false),
    );
    for (asked, answer) in [
        ("NOOP\r\n", "OK Noop completed\r\n"),
        ("GET USER a\r\n", "OK success\r\n"),
    ] {
        if asked.starts_with("GET") {
            assert_eq!(lane.opened().await, Some(Vec::new()));
            lane.handle.send(Body::from(asked));
        }
        let mut got = Vec::with_capacity(1000);
        while got.len() < asked.len() {
            let byte = [tokio::io::AsyncReadExt::read_u8(&mut peer.0).await.unwrap()];
            inflate
                .decompress_vec(&byte, &mut got, FlushDecompress::Sync)
                .unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&got), asked);
        let mut out = Vec::with_capacity(1000);
        deflate
            .compress_vec(answer.as_bytes(), &mut out, FlushCompress::Sync)
            .unwrap();
        peer.send(&out).await;
    }
    assert_eq!(lane.reply().await.status.kind, StatusKind::Ok);
}

#[tokio::test]
async fn a_password_is_never_taken_for_good_without_being_looked_at() {
    // A UNIX socket would let anybody in.
    let mut on_socket = settings(&"127.0.0.1:1".parse().unwrap());
    on_socket.address = "unix:/nonexistent/csync".parse().unwrap();
    let replica = Replica::new(on_socket, spill(1)).unwrap();
    assert!(!replica.checks_passwords());
    let checked = replica.login_check()(Credentials::new("repl", "any")).await;
    assert_eq!(checked.unwrap_err().kind(), "mechanism");
    // So would our own certificate.
    let fake = Fake::bind().await;
    let mut external = settings(&fake.address);
    external.mechanism = Some("EXTERNAL".to_owned());
    let replica = Replica::new(external, spill(1)).unwrap();
    let check = replica.login_check()(Credentials::new("repl", "wrong"));
    let server = async {
        let mut peer = fake.accept().await;
        peer.send(b"* SASL EXTERNAL PLAIN\r\n* OK replica\r\n")
            .await;
        peer.expect("AUTHENTICATE PLAIN AHJlcGwAd3Jvbmc=\r\n").await;
        peer.send(b"NO authentication failure\r\n").await;
    };
    let (checked, ()) = tokio::join!(check, server);
    assert_eq!(checked.unwrap_err().kind(), "login");
}
