//! What a replica sends: known lines, free text, status lines, garbage.

use bytes::Bytes;
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::{Fatal, Greeting, Guid, ReaderLimits, ReplyReader, StatusKind, Untagged};

fn read(input: &[u8]) -> Result<Vec<Line>, Fatal> {
    let run = |size: usize| {
        let mut reader = ReplyReader::new(ReaderLimits::default());
        let mut all = Vec::new();
        for piece in input.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(line) = reader.feed(&mut piece)? {
                all.push(line);
            }
        }
        Ok::<_, Fatal>(all)
    };
    let (whole, single) = (run(input.len()), run(1));
    assert_eq!(whole.is_ok(), single.is_ok());
    if let (Ok(whole), Ok(single)) = (&whole, &single) {
        assert_eq!(whole.len(), single.len());
    }
    whole
}

fn untagged(input: &[u8]) -> Untagged {
    match read(input).expect("a line").remove(0) {
        Line::Untagged(untagged) => untagged,
        line => panic!("{line:?}"),
    }
}

fn raw(line: &Untagged) -> String {
    String::from_utf8(line.raw.to_vec().expect("in memory")).expect("text")
}

#[test]
fn known_lines() {
    let sent = b"* MAILBOX %(MBOXNAME {5+}\r\na b\r\n UNIQUEID u RECORD ())\r\n";
    let line = untagged(sent);
    assert_eq!(line.mailbox.as_deref(), Some(&b"a b\r\n"[..]));
    assert_eq!(line.uniqueid.as_deref(), Some(&b"u"[..]));
    // Literals go to clients as `{n}`, whatever the replica's version.
    assert_eq!(
        raw(&line),
        "* MAILBOX %(MBOXNAME {5}\r\na b\r\n UNIQUEID u RECORD ())\r\n"
    );
    let guid = "0102030405060708090a0b0c0d0e0f1011121314";
    let line = untagged(format!("* missing ({guid} {guid})\r\n").as_bytes());
    assert_eq!((&line.kind[..], line.guids.len()), (&b"MISSING"[..], 2));
    assert_eq!(line.guids[0], Guid::parse(guid.as_bytes()).expect("a GUID"));
    let line = untagged(b"* ENABLED (SIEVE-MAILBOX X)\r\n");
    assert_eq!(line.words, ["SIEVE-MAILBOX", "X"]);
    let message = format!("* MESSAGE %{{default {guid} 6}}\r\nOK\r\nx\n\r\n");
    assert_eq!(raw(&untagged(message.as_bytes())), message);
    let line = untagged(b"* NOVELTY (a {4+}\r\nOK\r\n)\r\n");
    assert_eq!(raw(&line), "* NOVELTY (a {4}\r\nOK\r\n)\r\n");
}

#[test]
fn free_text() {
    let line = untagged(b"* Fatal error: Internal error: assertion (failed\r\n");
    assert_eq!((&line.kind[..], line.words.len()), (&b"FATAL"[..], 5));
    assert_eq!(
        untagged(b"* SASL PLAIN SCRAM-SHA-256\r\n").words,
        ["PLAIN", "SCRAM-SHA-256"]
    );
    assert_eq!(untagged(b"* STARTTLS\n").kind, "STARTTLS");
    assert_eq!(untagged(b"* SIEVE-MAILBOX\r\n").kind, "SIEVE-MAILBOX");
    assert_eq!(raw(&untagged(b"* OK a  b\r\n")), "* OK a  b\r\n");
}

#[test]
fn status_lines() {
    let input = b"OK success\r\nNO IMAP_SYNC_CHECKSUM Checksum Failure\r\nBAD x\n\
        BYE shutting down\r\n* BYE now\r\nOK\r\n+ abc=\r\n+\r\n+ \r\n";
    let mut lines = read(input).expect("lines").into_iter();
    let mut status = || match lines.next() {
        Some(Line::Status(status)) => (status.kind, String::from_utf8_lossy(&status.text).into()),
        line => panic!("{line:?}"),
    };
    let all: [(StatusKind, String); 6] = std::array::from_fn(|_| status());
    assert_eq!(all[0], (StatusKind::Ok, "success".into()));
    assert_eq!(
        all[1],
        (StatusKind::No, "IMAP_SYNC_CHECKSUM Checksum Failure".into())
    );
    assert_eq!(all[2], (StatusKind::Bad, "x".into()));
    assert_eq!(all[3], (StatusKind::Bye, "shutting down".into()));
    assert_eq!(all[4], (StatusKind::Bye, "now".into()));
    assert_eq!(all[5], (StatusKind::Ok, String::new()));
    for expected in ["abc=", "", ""] {
        assert!(matches!(lines.next(), Some(Line::Continuation(text)) if text == expected));
    }
}

#[test]
fn garbage_is_fatal() {
    for input in [
        &b"ok success\r\n"[..],
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16 ",
        b"* MAILBOX x y\r\n",
        b"* MAILBOX %(MBOXNAME\r\n)\r\n",
        b"* MAILBOX (\"a\r\n\")\r\n",
        b"* MISSING (a {3x}\r\n",
        b"*\r\n",
    ] {
        let fatal = read(input).expect_err("fatal");
        assert!(!fatal.to_string().is_empty());
    }
    assert!(read(&[b"OK ".to_vec(), vec![b'x'; 70_000]].concat()).is_err());
    assert!(read(&[b"* ".to_vec(), vec![b'x'; 70_000]].concat()).is_err());
    assert!(read(&vec![b'x'; 70_000]).is_err());
}

#[test]
fn limits_hold() {
    let limits = ReaderLimits {
        text: 1000,
        elements: 3,
        names: 3,
        depth: 3,
        line: 200,
        ..ReaderLimits::default()
    };
    let read = |input: &[u8]| {
        let mut reader = ReplyReader::new(limits.clone());
        let mut input = Bytes::copy_from_slice(input);
        while !input.is_empty() {
            let _ = reader.feed(&mut input)?;
        }
        assert!(reader.held() < 3000, "{}", reader.held());
        Ok::<_, Fatal>(())
    };
    let text = |start: &str, len| [start.as_bytes(), &vec![b'x'; len]].concat();
    let guids = |count: u8| {
        let all: Vec<_> = (0..count).map(|n| Guid([n; 20]).to_string()).collect();
        format!("* MISSING ({})\r\n", all.join(" ")).into_bytes()
    };
    for (good, bad) in [
        (text("OK ", 190), text("OK ", 210)),
        (text("* BANNER ", 190), text("* BANNER ", 210)),
        (
            b"* SEEN (((a)))\r\n".to_vec(),
            b"* SEEN ((((a))))\r\n".to_vec(),
        ),
        (text("* SEEN ", 900), text("* SEEN ", 1100)),
        (
            b"* SEEN {900+}\r\n".to_vec(),
            b"* SEEN {2000+}\r\n".to_vec(),
        ),
        (guids(3), guids(4)),
        (
            b"* ENABLED (a b c)\r\n".to_vec(),
            b"* ENABLED (a b c d)\r\n".to_vec(),
        ),
        (text("* ", 1000), text("* ", 1030)),
    ] {
        read(&good).unwrap_or_else(|fatal| panic!("{}: {fatal}", good.escape_ascii()));
        let fatal = read(&bad).expect_err(&bad.escape_ascii().to_string());
        assert!(!fatal.to_string().is_empty());
    }
}

#[test]
fn greetings() {
    let sent: &[u8] = b"* SASL plain SCRAM-SHA-256\r\n* STARTTLS\r\n* COMPRESS DEFLATE\r\n\
        * SIEVE-MAILBOX\r\n* REPLICATION-ARCHIVE\r\n* OK name Cyrus sync server 3.10.2\r\n";
    let mut greeting = Greeting::default();
    let done: Vec<bool> = read(sent)
        .expect("lines")
        .iter()
        .map(|line| greeting.read(line).expect("a greeting"))
        .collect();
    assert_eq!(done, [false, false, false, false, false, true]);
    assert_eq!(greeting.mechanisms, ["PLAIN", "SCRAM-SHA-256"]);
    assert!(greeting.starttls && greeting.compress && greeting.has("sieve-mailbox"));
    assert_eq!(greeting.text, "name Cyrus sync server 3.10.2");
    assert_eq!(
        greeting.render(&["PLAIN"], true),
        "* SASL PLAIN\r\n* STARTTLS\r\n* SIEVE-MAILBOX\r\n* REPLICATION-ARCHIVE\r\n\
         * OK name Cyrus sync server 3.10.2\r\n"
    );
    assert!(!greeting.render::<&str>(&[], false).starts_with(b"* SASL"));
    for line in read(b"BYE no\r\n* Fatal error: x\r\nOK x\r\n+ x\r\n").expect("lines") {
        assert!(Greeting::default().read(&line).is_err());
    }
}

#[test]
fn a_partial_line_can_be_spilled() {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let guid = Guid([1; 20]);
    let mut input = Bytes::from(format!("* MESSAGE %{{default {guid} 50000}}\r\n"));
    assert!(reader.feed(&mut input).expect("partial").is_none());
    let mut input = Bytes::from(vec![b'x'; 40_000]);
    assert!(reader.feed(&mut input).expect("partial").is_none());
    assert!(reader.held() > 40_000 && reader.mid_line());
    let mut calls = 0;
    let failed = reader.spill(&mut |pieces| {
        calls += 1;
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 40_000 + 69);
        Err(std::io::Error::other("full"))
    });
    assert!(failed.is_err() && calls == 1);
    let mut input = Bytes::from([vec![b'x'; 10_000], b"\r\nOK\r\n".to_vec()].concat());
    match reader.feed(&mut input).expect("a line") {
        Some(Line::Untagged(line)) => assert_eq!(line.raw.len(), 50_000 + 69 + 2),
        line => panic!("{line:?}"),
    }
    assert_eq!(input, "OK\r\n");
}
