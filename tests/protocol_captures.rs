//! Real streams between stock Cyrus ends, read with syncmux's readers: nothing may be lost or
//! changed, however the bytes are cut. What each capture is stands in `captures/INDEX.md`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use syncmux::protocol::reply_reader::Line;
use syncmux::protocol::{
    Apply, Body, Command, CommandReader, Get, Greeting, Kind, ReaderLimits, ReplyReader, print,
};

/// Connections that are not plain csync from the first byte to the last.
const EXCLUDED: [(&str, &str); 12] = [
    ("18-compress", "deflated after COMPRESS"),
    ("88-compress", "deflated after COMPRESS"),
    ("89-compress-z", "deflated after COMPRESS"),
    ("91-tls-required", "TLS after STARTTLS"),
    ("92-tls-required-client-ca", "TLS after STARTTLS"),
    ("92b-tls-required-badca", "TLS after STARTTLS"),
    (
        "92c-tls-host-suffix",
        "a TLS handshake sent to a plain port",
    ),
    ("94-try-imap-vs-imap-port", "the IMAP dialect"),
    ("94b-try-imap-A", "the IMAP dialect"),
    ("94c-try-imap-rename", "the IMAP dialect"),
    ("94d-try-imap-splitbrain", "the IMAP dialect"),
    ("95-csync-client-vs-imap-port", "an IMAP server's greeting"),
];

/// Connections in each direction; counted by hand, as are the numbers below (`grep`), so that
/// the tests can't pass by reading nothing.
const EXPECTED_CONNECTIONS: usize = 194;
const EXPECTED_COMMANDS: usize = 1623;
const EXPECTED_KINDS: &str = "ANNOTATION 1, Bad 3, Bye 1, ENABLED 121, FATAL 1, LSUB 23, \
    MAILBOX 328, MESSAGE 8, MISSING 64, No 31, OK 194, Ok 1583, QUOTA 17, SASL 193, SEEN 16, \
    SIEVE 24, SIEVE-MAILBOX 146, STARTTLS 1";

struct Capture {
    /// `3.6.1/02-append-new-mailbox`
    name: String,
    bytes: Bytes,
}

fn captures(direction: &str) -> Vec<Capture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(&root).expect("the captures") {
        let folder = folder.expect("an entry").path();
        if folder.is_dir() {
            let files = fs::read_dir(folder).expect("a folder");
            paths.extend(files.map(|file| file.expect("an entry").path()));
        }
    }
    paths.sort();
    let mut captures = Vec::new();
    for path in paths {
        let text = path.to_string_lossy().into_owned();
        let plain = text.strip_suffix(".gz").unwrap_or(&text);
        let Some(name) = plain.strip_suffix(direction) else {
            continue;
        };
        let name = name.trim_end_matches('.').to_owned();
        let name = name[root.to_string_lossy().len() + 1..].to_owned();
        let stem = name.split('/').nth(1).expect("a folder");
        let excluded = EXCLUDED
            .iter()
            .any(|(prefix, _)| stem == *prefix || stem.starts_with(&format!("{prefix}.")));
        if excluded {
            continue;
        }
        let mut bytes = fs::read(&path).expect("a capture");
        if text.ends_with(".gz") {
            let mut inflated = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..])
                .read_to_end(&mut inflated)
                .expect("gzip");
            bytes = inflated;
        }
        captures.push(Capture {
            name,
            bytes: bytes.into(),
        });
    }
    captures
}

/// How to cut the input.
#[derive(Clone, Copy)]
enum Cut {
    Whole,
    Single,
    Random(u64),
}

impl Cut {
    fn pieces(self, bytes: &Bytes) -> Vec<Bytes> {
        let mut rng = match self {
            Cut::Random(seed) => fastrand::Rng::with_seed(seed),
            _ => fastrand::Rng::with_seed(0),
        };
        let mut rest = bytes.clone();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let len = match self {
                Cut::Whole => rest.len(),
                Cut::Single => 1,
                Cut::Random(_) if rng.bool() => rng.usize(1..=8),
                Cut::Random(_) => rng.usize(1..=3000),
            };
            pieces.push(rest.split_to(len.min(rest.len())));
        }
        pieces
    }
}

fn bytes_of(body: &Body) -> Vec<u8> {
    body.to_vec().expect("nothing was spilled")
}

fn commands(capture: &Capture, cut: Cut) -> (Vec<Command>, u64) {
    let mut reader = CommandReader::new(ReaderLimits::default());
    // A UNIX socket needs no login.
    reader.set_authenticated(capture.name.contains("87-unix-socket"));
    let mut commands = Vec::new();
    for mut piece in cut.pieces(&capture.bytes) {
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(command)) => {
                    if let Kind::Authenticate { .. } = command.kind {
                        reader.set_authenticated(true);
                    }
                    commands.push(command);
                }
                Ok(None) => break,
                Err(fatal) => panic!("{}: {fatal}", capture.name),
            }
        }
        assert!(piece.is_empty(), "{}", capture.name);
    }
    assert!(!reader.mid_command(), "{}", capture.name);
    assert_eq!(reader.held(), 0, "{}", capture.name);
    (commands, reader.scanned_bytes())
}

/// A command as it was on the wire.
fn wire(command: &Command) -> Vec<u8> {
    match &command.kind {
        Kind::Authenticate { mechanism, initial } => {
            let mut line = format!("AUTHENTICATE {mechanism}").into_bytes();
            if let Some(initial) = initial {
                line.push(b' ');
                line.extend_from_slice(&initial.0);
            }
            line.extend_from_slice(b"\r\n");
            line
        }
        Kind::ImapProbe { tag } => [tag, &b" CAPABILITY\r\n"[..]].concat(),
        Kind::Apply(Apply::Message { files, nil }) => {
            assert_eq!(*nil, 0);
            assert!(command.raw.is_empty());
            bytes_of(&print::message(files))
        }
        _ => bytes_of(&command.raw),
    }
}

/// A command without the cuts of its pieces.
fn show(command: &Command) -> String {
    let kind = match &command.kind {
        Kind::Apply(Apply::Message { files, nil }) => {
            let files: Vec<_> = files
                .iter()
                .map(|f| (&f.partition, f.guid, Bytes::from(bytes_of(&f.content))))
                .collect();
            format!("{files:?} {nil}")
        }
        kind => format!("{kind:?}"),
    };
    format!("{kind} {:?}", Bytes::from(bytes_of(&command.raw)))
}

/// The contents of the literals in a command or line, in bytes.
fn literal_bytes(wire: &[u8]) -> usize {
    let mut at = 0;
    let mut sum = 0;
    while let Some(begin) = memchr::memchr(b'{', &wire[at..]).map(|begin| at + begin) {
        at = begin + 1;
        let digits = wire[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let rest = &wire[at + digits..];
        if digits > 0 && (rest.starts_with(b"+}\r\n") || rest.starts_with(b"}\r\n")) {
            let size: usize = String::from_utf8_lossy(&wire[at..at + digits])
                .parse()
                .expect("a number");
            sum += size;
            at += digits + size;
        }
    }
    sum
}

/// `{n+}` as `{n}`, in the headers of literals.
fn plain_literals(wire: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        if wire[at..].starts_with(b"+}\r\n") {
            at += 1;
        }
        out.push(wire[at]);
        at += 1;
    }
    out
}

#[test]
fn commands_are_read_whole() {
    let all = captures("c2s");
    assert_eq!(all.len(), EXPECTED_CONNECTIONS);
    let mut read = 0;
    for capture in &all {
        let (commands, scanned) = commands(capture, Cut::Whole);
        let mut joined = Vec::new();
        let mut expected = 0;
        for command in &commands {
            assert!(
                !matches!(command.kind, Kind::Bad { .. }),
                "{}: {command:?}",
                capture.name
            );
            let wire = wire(command);
            joined.extend_from_slice(&wire);
            let word = memchr::memchr(b' ', &wire).unwrap_or(0) + 1;
            match &command.kind {
                Kind::Apply(Apply::Message { files, .. }) => {
                    let contents: u64 = files.iter().map(|file| file.content.len()).sum();
                    expected += wire.len() - word - contents as usize;
                }
                Kind::Apply(_) | Kind::Get(_) => {
                    expected += wire.len() - word - literal_bytes(&wire);
                }
                _ => {}
            }
        }
        assert!(joined == capture.bytes, "{} is not the same", capture.name);
        assert_eq!(scanned, expected as u64, "{}", capture.name);
        read += commands.len();
    }
    assert_eq!(read, EXPECTED_COMMANDS);
}

#[test]
fn commands_do_not_depend_on_the_cuts() {
    for (nth, capture) in captures("c2s").iter().enumerate() {
        let (whole, scanned) = commands(capture, Cut::Whole);
        let whole: Vec<String> = whole.iter().map(show).collect();
        let seed = nth as u64;
        let mut cuts = vec![Cut::Random(seed), Cut::Random(seed + 1000)];
        if capture.bytes.len() < 100_000 {
            cuts.push(Cut::Single);
        }
        for cut in cuts {
            let (cut_up, cut_scanned) = commands(capture, cut);
            let cut_up: Vec<String> = cut_up.iter().map(show).collect();
            assert!(whole == cut_up, "{}", capture.name);
            assert_eq!(scanned, cut_scanned, "{}", capture.name);
        }
    }
}

fn lines(capture: &Capture, cut: Cut) -> (Vec<Line>, u64) {
    let mut reader = ReplyReader::new(ReaderLimits::default());
    let mut lines = Vec::new();
    for mut piece in cut.pieces(&capture.bytes) {
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => break,
                Err(fatal) => panic!("{}: {fatal}", capture.name),
            }
        }
        assert!(piece.is_empty(), "{}", capture.name);
    }
    assert!(!reader.mid_line(), "{}", capture.name);
    assert_eq!(reader.held(), 0, "{}", capture.name);
    (lines, reader.scanned_bytes())
}

fn line_wire(line: &Line) -> Vec<u8> {
    match line {
        Line::Untagged(untagged) => bytes_of(&untagged.raw),
        Line::Status(status) => [&status.line()[..], b"\r\n"].concat(),
        Line::Continuation(text) => [b"+ ", &text[..], b"\r\n"].concat(),
    }
}

fn line_show(line: &Line) -> String {
    match line {
        Line::Untagged(untagged) => format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}",
            untagged.kind,
            untagged.mailbox,
            untagged.uniqueid,
            untagged.guids,
            untagged.words,
            Bytes::from(bytes_of(&untagged.raw))
        ),
        line => format!("{line:?}"),
    }
}

#[test]
fn replies_are_read_whole() {
    let all = captures("s2c");
    assert_eq!(all.len(), EXPECTED_CONNECTIONS);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for capture in &all {
        let (lines, _) = lines(capture, Cut::Whole);
        let joined: Vec<u8> = lines.iter().flat_map(line_wire).collect();
        let expected = plain_literals(&capture.bytes);
        assert!(joined == expected, "{} is not the same", capture.name);
        for line in &lines {
            let kind = match line {
                Line::Untagged(untagged) => {
                    if untagged.kind == "MAILBOX" {
                        assert!(untagged.mailbox.is_some() && untagged.uniqueid.is_some());
                    }
                    if untagged.kind == "MISSING" {
                        assert!(!untagged.guids.is_empty());
                    }
                    String::from_utf8_lossy(&untagged.kind).into_owned()
                }
                Line::Status(status) => format!("{:?}", status.kind),
                Line::Continuation(_) => "+".into(),
            };
            *kinds.entry(kind).or_default() += 1;
        }
    }
    let kinds: Vec<String> = kinds.iter().map(|(k, n)| format!("{k} {n}")).collect();
    assert_eq!(kinds.join(", "), EXPECTED_KINDS);
}

#[test]
fn replies_do_not_depend_on_the_cuts() {
    for (nth, capture) in captures("s2c").iter().enumerate() {
        let (whole, scanned) = lines(capture, Cut::Whole);
        let whole: Vec<String> = whole.iter().map(line_show).collect();
        for cut in [Cut::Single, Cut::Random(nth as u64)] {
            let (cut_up, cut_scanned) = lines(capture, cut);
            let cut_up: Vec<String> = cut_up.iter().map(line_show).collect();
            assert!(whole == cut_up, "{}", capture.name);
            assert_eq!(scanned, cut_scanned, "{}", capture.name);
        }
    }
}

/// The verbs of a capture, counted.
fn verbs(name: &str) -> String {
    let all = captures("c2s");
    let capture = all.iter().find(|c| c.name == name).expect("the capture");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for command in commands(capture, Cut::Whole).0 {
        let wire = wire(&command);
        let words: Vec<&[u8]> = wire.split(|b| b" \r".contains(b)).take(2).collect();
        let verb = match &command.kind {
            Kind::Get(_) | Kind::Apply(_) => words.join(&b' '),
            _ => words[0].to_vec(),
        };
        *counts
            .entry(String::from_utf8_lossy(&verb).into_owned())
            .or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
    counts.join(", ")
}

#[test]
fn verbs_are_those_of_the_index() {
    let expected = [
        (
            "3.6.1/33-first-sync-4-users",
            "APPLY CAPABILITIES 1, APPLY MAILBOX 5, APPLY MESSAGE 5, AUTHENTICATE 1, EXIT 1, \
             GET MAILBOXES 4, RESTART 4",
        ),
        (
            "3.6.1/35-rename-user",
            "APPLY CAPABILITIES 1, APPLY MAILBOX 2, APPLY QUOTA 1, APPLY RENAME 2, \
             APPLY UNUSER 1, AUTHENTICATE 1, EXIT 1, GET MAILBOXES 3, GET USER 1, RESTART 3",
        ),
        (
            "3.6.1/47b-L-rename",
            "APPLY CAPABILITIES 1, APPLY LOCAL_MAILBOX 1, APPLY LOCAL_RENAME 1, \
             AUTHENTICATE 1, EXIT 1, GET MAILBOXES 2",
        ),
        (
            "3.6.1/55-1100-messages",
            "APPLY CAPABILITIES 1, APPLY MAILBOX 1, APPLY MESSAGE 2, AUTHENTICATE 1, EXIT 1, \
             GET MAILBOXES 1, RESTART 1",
        ),
        (
            "3.2.6-to-3.2.6/10-sieve",
            "APPLY ACTIVATE_SIEVE 1, APPLY SIEVE 1, AUTHENTICATE 1, EXIT 1, GET META 1, RESTART 1",
        ),
    ];
    for (name, counts) in expected {
        assert_eq!(verbs(name), counts, "{name}");
    }
}

/// What syncmux builds itself is what a stock client sends.
#[test]
fn built_commands_are_those_of_the_stock_client() {
    let mut built = 0;
    for capture in &captures("c2s") {
        for command in commands(capture, Cut::Whole).0 {
            let again = match &command.kind {
                Kind::Apply(Apply::Reserve {
                    partition,
                    mailboxes,
                    guids,
                }) => print::reserve(partition, mailboxes, guids),
                Kind::Get(Get::Mailboxes(names)) => {
                    print::get_mailboxes(names.iter().map(|name| &name[..]))
                }
                Kind::Apply(Apply::Capabilities(names)) => {
                    print::capabilities(names.iter().map(|name| &name[..]))
                }
                Kind::Apply(Apply::Force) => print::FORCE.into(),
                Kind::Restart => print::RESTART.into(),
                Kind::Exit => print::EXIT.into(),
                Kind::Noop => print::NOOP.into(),
                _ => continue,
            };
            let (again, wire) = (bytes_of(&again), wire(&command));
            assert_eq!(Bytes::from(again), Bytes::from(wire), "{}", capture.name);
            built += 1;
        }
    }
    assert_eq!(built, 787);
    let mut missing = 0;
    for capture in &captures("s2c") {
        for line in lines(capture, Cut::Whole).0 {
            if let Line::Untagged(line) = line {
                let again = match &line.kind[..] {
                    b"MISSING" => print::missing(&line.guids),
                    b"ENABLED" => print::enabled(line.words.iter().map(|word| &word[..])),
                    _ => continue,
                };
                assert_eq!(bytes_of(&again), bytes_of(&line.raw), "{}", capture.name);
                missing += 1;
            }
        }
    }
    assert_eq!(missing, 121 + 64);
}

/// Every greeting is taken apart and put together again.
#[test]
fn greetings_agree() {
    for capture in &captures("s2c") {
        let (lines, _) = lines(capture, Cut::Whole);
        let mut greeting = Greeting::default();
        let mut wire = Vec::new();
        for line in &lines {
            wire.extend_from_slice(&line_wire(line));
            if greeting.read(line).expect("a greeting") {
                break;
            }
        }
        assert!(
            greeting.text.starts_with(b"replica Cyrus sync server"),
            "{greeting:?}"
        );
        assert!(!greeting.compress);
        let again = greeting.render(&greeting.mechanisms, greeting.starttls);
        assert_eq!(again, wire, "{}", capture.name);
    }
}

/// What was read makes sense: every GUID staged or reserved is named by a RECORD of the MAILBOX.
#[test]
fn mailboxes_name_what_was_uploaded() {
    let all = captures("c2s");
    let capture = all.iter().find(|c| c.name == "3.6.1/55-1100-messages");
    let (mut files, mut named) = (Vec::new(), Vec::new());
    for command in commands(capture.expect("the capture"), Cut::Whole).0 {
        match command.kind {
            Kind::Apply(Apply::Message { files: some, .. }) => files.push(some),
            Kind::Apply(Apply::Mailbox(mailbox)) => {
                assert_eq!(&mailbox.name[..], b"user.bob");
                assert_eq!(&mailbox.partition[..], b"default");
                assert!(!mailbox.intermediate && !mailbox.local);
                assert_eq!(mailbox.records, mailbox.guids.len());
                named = mailbox.guids;
            }
            _ => {}
        }
    }
    assert_eq!(files.iter().map(Vec::len).collect::<Vec<_>>(), [1024, 76]);
    assert!(
        files
            .iter()
            .flatten()
            .all(|file| named.contains(&file.guid))
    );
}

/// The fields of a `* MAILBOX` line that have no list in them.
fn fields(line: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(line);
    let inner = text.trim().trim_start_matches("* MAILBOX %(");
    let inner = inner.split(" ANNOTATIONS ").next().unwrap_or_default();
    let words: Vec<&str> = inner.trim_end_matches(')').split(' ').collect();
    words
        .chunks(2)
        .filter_map(|pair| Some((pair.first()?.to_string(), pair.get(1)?.to_string())))
        .collect()
}

/// The line made of an APPLY MAILBOX is what the replica says of that mailbox when it is asked
/// next, in the same connection or a later one of the same lab.
#[test]
fn the_state_that_an_update_leaves_is_what_the_replica_says_next() {
    let (all, answers) = (captures("c2s"), captures("s2c"));
    let mut made: BTreeMap<(String, Bytes), Bytes> = BTreeMap::new();
    let (mut equal, mut differing) = (0, BTreeMap::<String, usize>::new());
    for (capture, answer) in all.iter().zip(&answers) {
        let lab = capture.name.split('/').next().unwrap_or_default();
        let (said, _) = lines(answer, Cut::Whole);
        let mut replies = said.split(|line| matches!(line, Line::Status(_)));
        let mut statuses = said.iter().filter_map(|line| match line {
            Line::Status(status) => Some(status.kind == syncmux::protocol::StatusKind::Ok),
            _ => None,
        });
        for command in commands(capture, Cut::Whole).0 {
            let (Some(untagged), Some(ok)) = (replies.next(), statuses.next()) else {
                break;
            };
            match &command.kind {
                Kind::Apply(Apply::Mailbox(mailbox)) => {
                    let at = (lab.to_owned(), mailbox.name.clone());
                    made.remove(&at);
                    if let (true, Some(state)) = (ok, &mailbox.state) {
                        made.insert(at, state.clone());
                    }
                }
                Kind::Apply(
                    Apply::Rename { .. }
                    | Apply::Unmailbox(_)
                    | Apply::Unuser(_)
                    | Apply::Expunge { .. }
                    | Apply::Quota { .. }
                    | Apply::Unquota { .. },
                ) => made.clear(),
                Kind::Get(Get::Mailboxes(_)) => {
                    for line in untagged {
                        let Line::Untagged(line) = line else { continue };
                        let name = line.mailbox.clone().unwrap_or_default();
                        let Some(made) = made.remove(&(lab.to_owned(), name)) else {
                            continue;
                        };
                        let real = bytes_of(&line.raw);
                        if made == real {
                            equal += 1;
                            continue;
                        }
                        let (ours, theirs) = (fields(&made), fields(&real));
                        let keys: std::collections::BTreeSet<_> =
                            ours.keys().chain(theirs.keys()).collect();
                        let other: Vec<_> = keys
                            .into_iter()
                            .filter(|key| ours.get(*key) != theirs.get(*key))
                            .map(String::as_str)
                            .collect();
                        // Another mailbox: the lab began anew between the two captures.
                        if !other.contains(&"UNIQUEID") {
                            *differing.entry(other.join(" ")).or_default() += 1;
                        }
                    }
                }
                _ => {}
            }
        }
    }
    let expected = [
        // `34-prep-for-rename`: it was changed between the captures.
        ("FOLDERMODSEQ HIGHESTMODSEQ".to_owned(), 1),
        // The replica hears of a new quota root only by the APPLY QUOTA that follows. No client
        // looks at this field (`sync_kl_parse`).
        ("QUOTAROOT".to_owned(), 7),
    ];
    assert_eq!((equal, differing), (100, BTreeMap::from(expected)));
}
