//! The IMAP dialect: the captures of real connections, what imapd would answer, and hostile input.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod protocol_reader;

use std::path::Path;

use bytes::Bytes;
use protocol_reader::text;
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::{
    Apply, Body, Command, CommandReader, Dialect, Fatal, Get, Greeting, Kind, ReaderLimits,
    ReplyReader, StatusKind, print,
};

/// Real connections, and how many commands of replication each has (`grep -ac '^S[0-9]* SYNC'`).
const CAPTURES: [(&str, u64); 4] = [
    ("94-try-imap-vs-imap-port", 6),
    ("94b-try-imap-A", 4),
    ("94c-try-imap-rename", 11),
    ("94d-try-imap-splitbrain", 9),
];

fn capture(name: &str, direction: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/3.6.1");
    let path = root.join(format!("{name}.{direction}"));
    std::fs::read(&path).unwrap().into()
}

/// Pieces of random length; all of it for 0.
fn pieces(bytes: &Bytes, seed: u64) -> Vec<Bytes> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rest = bytes.clone();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let len = match seed {
            0 => rest.len(),
            1 => 1,
            _ if rng.bool() => rng.usize(1..=8),
            _ => rng.usize(1..=500),
        };
        all.push(rest.split_to(len.min(rest.len())));
    }
    all
}

fn reader() -> CommandReader {
    CommandReader::new(ReaderLimits::default()).speaking(Dialect::Imap)
}

/// The commands with their tags.
fn read(input: &Bytes, seed: u64, logged_in: bool) -> Result<Vec<(String, Command)>, Fatal> {
    let mut reader = reader();
    reader.set_authenticated(logged_in);
    let mut all = Vec::new();
    for mut piece in pieces(input, seed) {
        while let Some(command) = reader.feed(&mut piece)? {
            if let Kind::Authenticate { .. } = command.kind {
                reader.set_authenticated(true);
            }
            let tag = String::from_utf8_lossy(reader.tag()).into_owned();
            all.push((tag, command));
        }
    }
    assert!(!reader.mid_command());
    Ok(all)
}

/// As csync has it.
fn csync(command: &Command) -> Body {
    match &command.kind {
        Kind::Apply(Apply::Message { files, nil: 0 }) => print::message(files),
        _ => command.raw.clone(),
    }
}

/// Every command of the stock client is read, and written again byte for byte as it was, by the
/// way that a lane takes it.
#[test]
fn what_a_client_says_is_what_a_lane_would_say() {
    for (name, count) in CAPTURES {
        let bytes = capture(name, "c2s");
        for seed in 0..40 {
            let mut again = Vec::new();
            let mut nth = 0_u64;
            for (tag, command) in read(&bytes, seed, false).unwrap() {
                match &command.kind {
                    Kind::Authenticate { mechanism, initial } => {
                        let initial = initial.as_ref().unwrap();
                        let initial = String::from_utf8_lossy(&initial.0);
                        let line = format!("{tag} AUTHENTICATE {mechanism} {initial}\r\n");
                        again.extend(line.into_bytes());
                    }
                    Kind::Exit => again.extend(format!("{tag} LOGOUT\r\n").into_bytes()),
                    Kind::Bad { answer } => panic!("{name}: {answer}"),
                    _ => {
                        assert_eq!(tag, format!("S{nth}"));
                        let request = Dialect::Imap.request(nth, csync(&command));
                        again.extend(request.to_vec().unwrap());
                        nth += 1;
                    }
                }
            }
            assert_eq!(nth, count, "{name}");
            assert_eq!(Bytes::from(again), bytes, "{name} {seed}");
        }
    }
}

/// Every answer of a real imapd is read as csync would have it, and is again what it was when it
/// gets its tag back.
#[test]
fn what_imapd_answers_is_what_a_client_is_answered() {
    for (name, count) in CAPTURES {
        let bytes = capture(name, "s2c");
        let end = memchr::memmem::find(&bytes, b"\r\nA01 OK").unwrap() + 2;
        let (greets, rest) = (bytes.slice(..end), bytes.slice(end..));
        let end = memchr::memchr(b'\n', &rest).unwrap() + 1;
        let (login, rest) = (rest.slice(..end), rest.slice(end..));
        let greeting = greeting(&greets, &login[b"A01 OK ".len()..]);
        assert!(greeting.replication && greeting.compress, "{greeting:?}");
        assert_eq!(greeting.capabilities, ["SIEVE-MAILBOX"]);
        assert!(greeting.text.starts_with(b"replica Cyrus IMAP 3.6.1"));
        for seed in 0..40 {
            let mut reader = ReplyReader::new(ReaderLimits::default()).speaking(Dialect::Imap);
            let (mut again, mut answer, mut nth) = (Vec::new(), Body::new(), 0_u64);
            'all: for mut piece in pieces(&rest, seed) {
                while let Some(line) = reader.feed(&mut piece).unwrap() {
                    match line {
                        Line::Untagged(line) => answer.append(line.raw),
                        Line::Status(status) if status.kind == StatusKind::Bye => break 'all,
                        Line::Status(status) => {
                            answer.push(status.line().into());
                            answer.push("\r\n".into());
                            let tag = format!("S{nth}");
                            let whole = std::mem::take(&mut answer);
                            let whole = Dialect::Imap.answer(tag.as_bytes(), whole);
                            again.extend(whole.to_vec().unwrap());
                            nth += 1;
                        }
                        Line::Continuation(_) => panic!("{name}: a continuation"),
                    }
                }
            }
            let logout = "* BYE LOGOUT received\r\nQ01 OK Completed\r\n";
            again.extend(logout.as_bytes());
            assert_eq!(nth, count, "{name}");
            assert_eq!(Bytes::from(again), rest, "{name} {seed}");
        }
    }
}

/// Of imapd's first line, and of the text of its OK to the login.
fn greeting(first: &Bytes, login: &[u8]) -> Greeting {
    let mut greeting = Greeting::default();
    let line = line(first);
    assert!(
        greeting.read_imap(&line).unwrap(),
        "it tells of capabilities"
    );
    assert_eq!(greeting.mechanisms, ["PLAIN"]);
    assert!(!greeting.replication && greeting.capabilities.is_empty());
    assert!(greeting.read_code(login));
    greeting
}

fn line(text: &[u8]) -> Line {
    let mut reader = ReplyReader::new(ReaderLimits::default()).speaking(Dialect::Imap);
    let mut input = Bytes::copy_from_slice(text);
    reader.feed(&mut input).unwrap().unwrap()
}

#[test]
fn capabilities_in_whatever_way_they_come() {
    let mut greeting = Greeting::default();
    let first = line(b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] box ready\r\n");
    assert!(greeting.read_imap(&first).unwrap());
    assert!(greeting.starttls && greeting.mechanisms.is_empty());
    assert_eq!(greeting.text, "box ready");
    let asked = line(b"* CAPABILITY IMAP4rev1 auth=SCRAM-SHA-256 AUTH=PLAIN\r\n");
    let Line::Untagged(asked) = asked else {
        panic!("{asked:?}")
    };
    greeting.read_capability(&asked);
    assert_eq!(greeting.mechanisms, ["SCRAM-SHA-256", "PLAIN"]);
    assert!(!greeting.starttls);
    assert!(!greeting.read_code(b"Success [CAPABILITY X-REPLICATION]"));
    assert!(!greeting.replication);
    assert!(greeting.read_code(b"[capability X-REPLICATION X-REPLICATION-ARCHIVE] Success"));
    assert!(greeting.replication);
    assert_eq!(greeting.capabilities, ["REPLICATION-ARCHIVE"]);
    assert_eq!(
        greeting.imap_after_login(),
        "IMAP4rev1 LITERAL+ ID LOGINDISABLED X-REPLICATION X-REPLICATION-ARCHIVE"
    );
    // A csync client is told the same in its own way.
    let csync = greeting.render(&["PLAIN"], false);
    assert_eq!(
        csync,
        "* SASL PLAIN\r\n* REPLICATION-ARCHIVE\r\n* OK box ready\r\n"
    );
    for plain in [
        "* OK ready\r\n",
        "* OK [ALERT] no\r\n",
        "* OK [CAPABILITY x\r\n",
    ] {
        assert_eq!(
            Greeting::default().read_imap(&line(plain.as_bytes())),
            Ok(false)
        );
    }
    for wrong in [
        "* PREAUTH ready\r\n",
        "* BYE too many\r\n",
        "* SASL PLAIN\r\n",
        "* OK a\x07b\r\n",
        "+ \r\n",
    ] {
        assert!(
            Greeting::default()
                .read_imap(&line(wrong.as_bytes()))
                .is_err(),
            "{wrong}"
        );
    }
}

/// Each with the tag and the answer that it gets, before and after a login.
#[test]
fn what_is_not_understood_is_answered_and_read_over() {
    let stranger = "BAD Please login first";
    let unknown = "BAD Unrecognized command: this is syncmux";
    for (said, tag, before, after) in [
        ("\r\n", "*", "BAD Invalid tag", "BAD Invalid tag"),
        ("NOOP\r\n", "*", "BAD Invalid tag", "BAD Invalid tag"),
        ("* NOOP\r\n", "*", "BAD Invalid tag", "BAD Invalid tag"),
        ("a(b NOOP\r\n", "*", "BAD Invalid tag", "BAD Invalid tag"),
        ("a\x7f NOOP\r\n", "*", "BAD Invalid tag", "BAD Invalid tag"),
        ("a \r\n", "a", "BAD Null command", "BAD Null command"),
        ("a SELECT INBOX\r\n", "a", stranger, unknown),
        ("a IDLE\r\n", "a", stranger, unknown),
        ("a UNAUTHENTICATE\r\n", "a", stranger, unknown),
        ("a GET USER joe\r\n", "a", stranger, unknown),
        ("a EXIT\r\n", "a", stranger, unknown),
        ("a SYNCGET USER joe\r\n", "a", stranger, ""),
        (
            "a LOGIN joe pw\r\n",
            "a",
            "NO this is syncmux",
            "BAD Already logged in",
        ),
        (
            "a LOGOUT now\r\n",
            "a",
            "BAD Unexpected extra arguments to Logout",
            "BAD Unexpected extra arguments to Logout",
        ),
        (
            "a AUTHENTICATE\r\n",
            "a",
            "BAD Missing required argument to Authenticate",
            "BAD Missing required argument to Authenticate",
        ),
        (
            "a SYNCAPPLY MAILBOX )\r\n",
            "a",
            stranger,
            "BAD Replication parse failure in Syncapply",
        ),
        (
            "a SYNCGET  USER joe\r\n",
            "a",
            stranger,
            "BAD Replication parse failure in Syncget",
        ),
    ] {
        for (logged_in, wanted) in [(false, before), (true, after)] {
            let input = Bytes::from([said, "b NOOP\r\n"].concat());
            for seed in 0..20 {
                let all = read(&input, seed, logged_in).unwrap();
                assert_eq!(all[0].0, tag, "{said}");
                match &all[0].1.kind {
                    Kind::Bad { answer } => assert!(answer.starts_with(wanted), "{said} {answer}"),
                    other => assert!(wanted.is_empty(), "{said} {other:?}"),
                }
                assert_eq!(all[1].0, "b", "{said}");
                assert!(matches!(all[1].1.kind, Kind::Noop), "{said}");
                assert_eq!(all.len(), 2);
            }
        }
    }
}

#[test]
fn what_is_understood() {
    let one = |said: &'static str| {
        let mut all = read(&Bytes::from_static(said.as_bytes()), 1, true).unwrap();
        assert_eq!(all.len(), 1, "{said}");
        all.remove(0)
    };
    let (tag, command) = one("x.1 SyncGet MAILBOXES (user.joe {7+}\r\nuser.ü)\r\n");
    assert_eq!(tag, "x.1");
    assert!(matches!(&command.kind, Kind::Get(Get::Mailboxes(names)) if names.len() == 2));
    assert!(text(&command.raw).starts_with("Get MAILBOXES (user.joe {7+}\r\n"));
    assert_eq!(text(&one("a SYNCRESTART\r\n").1.raw), "RESTART\r\n");
    assert!(matches!(one("a LOGOUT\r\n").1.kind, Kind::Exit));
    assert!(matches!(one("a capability\r\n").1.kind, Kind::Capability));
    assert!(matches!(one("a ID (\"name\" \"x\")\r\n").1.kind, Kind::Id));
    let restore = one("a SYNCRESTORE MAILBOX %(MBOXNAME user.joe)\r\n").1;
    assert!(matches!(&restore.kind, Kind::Restore { mailbox } if mailbox == "user.joe"));
    assert!(text(&restore.raw).starts_with("RESTORE MAILBOX"));
}

/// A name of words that a literal holds is a name, whatever it looks like.
#[test]
fn commands_in_literals_stay_there() {
    let inner = "x\r\nb SYNCAPPLY UNUSER joe\r\n";
    let said = format!(
        "a SYNCGET USER {{{}+}}\r\n{inner}\r\nc NOOP\r\n",
        inner.len()
    );
    for seed in 0..60 {
        let all = read(&Bytes::from(said.clone()), seed, true).unwrap();
        assert_eq!(all.len(), 2);
        assert!(matches!(&all[0].1.kind, Kind::Get(Get::User(name)) if *name == inner));
        assert!(matches!(all[1].1.kind, Kind::Noop));
    }
    // Nothing of a line that is not understood is one either.
    let said = format!("a FETCH {{{}+}}\r\n{inner}\r\nc NOOP\r\n", inner.len());
    let all = read(&Bytes::from(said), 7, true).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].0, "c");
}

#[test]
fn huge_lines_end_the_connection() {
    let no_end = |begin: &str, len: usize| {
        let mut all = begin.as_bytes().to_vec();
        all.resize(len, b'x');
        Bytes::from(all)
    };
    for (logged_in, begin) in [
        (false, ""),
        (true, ""),
        (false, "a "),
        (true, "a "),
        (false, "a AUTHENTICATE PLAIN "),
        (false, "a LOGIN joe "),
        (false, "a ID ("),
    ] {
        for seed in [0, 3, 4] {
            let failed = read(&no_end(begin, 300 << 10), seed, logged_in).unwrap_err();
            assert!(failed.why.contains("too long"), "{begin} {failed}");
            let said = Dialect::Imap.refusal(&failed.answer);
            let said = text(&said);
            assert!(
                said.starts_with("* BYE ") && said.ends_with("\r\n"),
                "{said}"
            );
        }
    }
    // Before a login there are no literals.
    let literal = Bytes::from("a LOGIN {4+}\r\njoe1 {4+}\r\npass\r\n");
    assert!(read(&literal, 0, false).is_err());
    // A client that may send a literal only when asked to is answered at once.
    let waits = Bytes::from("a LOGIN {4}\r\n");
    assert_eq!(read(&waits, 0, false).unwrap().len(), 1);
    // Old clients' literals are those of a replica again.
    let sized = Bytes::from("a SYNCGET USER {4}\r\njo 1\r\n");
    let all = read(&sized, 1, true).unwrap();
    assert_eq!(text(&all[0].1.raw), "GET USER {4+}\r\njo 1\r\n");
    let deep = Bytes::from("a SYNCGET MAILBOXES ((((((((((((((((((((((((");
    assert!(read(&deep, 1, true).is_err());
}

fn replies(input: &str) -> Result<Vec<Line>, Fatal> {
    let mut of_all = None;
    for seed in 0..20 {
        let mut reader = ReplyReader::new(ReaderLimits::default()).speaking(Dialect::Imap);
        let mut lines = Vec::new();
        let mut result = Ok(());
        for mut piece in pieces(&Bytes::from(input.to_owned()), seed) {
            loop {
                match reader.feed(&mut piece) {
                    Ok(Some(line)) => lines.push(line),
                    Ok(None) => break,
                    Err(fatal) => {
                        result = Err(fatal);
                        break;
                    }
                }
            }
        }
        let result = result.map(|()| lines);
        let shown = match &result {
            Ok(lines) => format!("{}", lines.len()),
            Err(fatal) => fatal.why.clone(),
        };
        if let Some((first, _)) = &of_all {
            assert_eq!(*first, shown, "the cuts matter");
        }
        of_all = Some((shown, result));
    }
    of_all.unwrap().1
}

/// An answer under another tag is nobody's: the lane is broken.
#[test]
fn a_replica_answers_in_order() {
    let good = "S0 OK\r\n* MISSING ()\r\nS1 NO IMAP_MAILBOX_NONEXISTENT no\r\nS2 BAD x\r\n";
    assert_eq!(replies(good).unwrap().len(), 4);
    let after = |rest: &str| replies(&format!("S0 OK success\r\n{rest}"));
    for (rest, why) in [
        ("S0 OK success\r\n", "S0 where S1 was to be answered"),
        ("S2 OK success\r\n", "S2 where S1 was to be answered"),
        ("A01 OK success\r\n", "A01 where S1 was to be answered"),
        ("OK success\r\n", "OK where S1 was to be answered"),
        ("s1 OK success\r\n", "s1 where S1 was to be answered"),
        ("S01 OK success\r\n", "S01 where S1 was to be answered"),
        ("S1\r\n", "neither an untagged line nor a status"),
        ("OK\r\n", "neither an untagged line nor a status"),
        ("S1 HELLO\r\n", "no status behind the tag"),
        ("S1 ok\r\n", "no status behind the tag"),
        ("S1  OK\r\n", "no status behind the tag"),
        (
            "S11111111111111111111111111 OK\r\n",
            "the first word is too long",
        ),
    ] {
        let failed = after(rest).unwrap_err();
        assert!(failed.why.contains(why), "{rest}: {failed}");
    }
    // A tag in a literal is none.
    let inner = "x\r\nS1 OK no\r\n";
    let lines = after(&format!(
        "* MAILBOX %(UNIQUEID a MBOXNAME {{{}}}\r\n{inner})\r\nS1 OK yes\r\n",
        inner.len()
    ));
    let lines = lines.unwrap();
    assert!(
        matches!(&lines[1], Line::Untagged(line) if line.mailbox.as_deref() == Some(inner.as_bytes()))
    );
    assert!(matches!(&lines[2], Line::Status(status) if status.text == "yes"));
}

/// imapd has its own words for an end in the middle of something.
#[test]
fn ends_that_are_no_goodbye() {
    for (said, fatal) in [
        ("* BYE LOGOUT received\r\n", false),
        ("* BYE [ALERT] going down\r\n", false),
        ("* BYE idle for too long\r\n", false),
        (
            "* BYE Fatal error: Internal error: assertion failed\r\n",
            true,
        ),
        ("* BYE [TOOBIG] Word too long\r\n", true),
    ] {
        match line(said.as_bytes()) {
            Line::Untagged(line) => {
                assert!(fatal && &line.kind[..] == b"FATAL", "{said}");
                assert_eq!(text(&line.raw), said);
            }
            Line::Status(status) => assert!(!fatal && status.kind == StatusKind::Bye, "{said}"),
            Line::Continuation(_) => panic!("{said}"),
        }
    }
}
