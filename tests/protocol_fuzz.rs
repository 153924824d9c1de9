//! Whatever the bytes: no panic, no hang, bounded memory, and the same result for every cut.

mod fuzz_bodies;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use fuzz_bodies::{commands, limits, pieces, replies, synclog};
use proptest::prelude::*;
use syncmux::protocol::scan::{List, LiteralForm, Progress, ScanLimits, Scanner, Sink, Token};
use syncmux::protocol::synclog::{Line, LineReader};
use syncmux::protocol::{CommandReader, Get, Kind, Site, print};

/// What a client's bytes are read as, in words.
fn client(bytes: &[u8], seed: u64, authenticated: bool) -> Vec<String> {
    let flags = if authenticated {
        commands::LOGGED_IN
    } else {
        0
    };
    commands::read(bytes, seed, flags, false)
}

/// What a replica's bytes are read as, in words.
fn replica(bytes: &[u8], seed: u64) -> Vec<String> {
    replies::read(bytes, seed, 0, false)
}

/// Captures of up to 8 KB, in both directions.
fn seeds() -> Vec<(bool, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/3.6.1");
    let mut paths: Vec<_> = fs::read_dir(root)
        .expect("the captures")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let mut seeds = Vec::new();
    for path in paths {
        let c2s = path.extension().is_some_and(|e| e == "c2s");
        if c2s || path.extension().is_some_and(|e| e == "s2c") {
            let bytes = fs::read(&path).expect("a capture");
            if !bytes.is_empty() && bytes.len() <= 8192 {
                seeds.push((c2s, bytes));
            }
        }
    }
    seeds
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    for _ in 0..rng.usize(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        match rng.u8(..6) {
            0 => bytes[at] = rng.u8(..),
            1 => bytes[at] ^= 1 << rng.u8(..8),
            2 => bytes.insert(at, b" (){}%\"\\\r\n+0"[rng.usize(..12)]),
            3 => {
                bytes.remove(at);
            }
            4 => {
                let end = (at + rng.usize(1..40)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + rng.usize(1..40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = rng.usize(..bytes.len());
                bytes.splice(to..to, copy);
            }
        }
    }
}

#[test]
fn mutated_captures() {
    let seeds = seeds();
    assert!(seeds.len() > 150, "{}", seeds.len());
    let mut fatal = 0;
    for round in 0..20_000u64 {
        let mut rng = fastrand::Rng::with_seed(round);
        let (c2s, bytes) = &seeds[rng.usize(..seeds.len())];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, &mut rng);
        // Now and then the readers get each other's bytes.
        let as_client = *c2s != (round % 50 == 0);
        let (whole, cut) = if as_client {
            (client(&bytes, 0, true), client(&bytes, round + 1, true))
        } else {
            (replica(&bytes, 0), replica(&bytes, round + 1))
        };
        assert!(whole == cut, "round {round}: {whole:#?} {cut:#?}");
        fatal += usize::from(whole.last().is_some_and(|last| last.starts_with("fatal")));
    }
    assert!(fatal > 1000, "{fatal}");
}

/// Bytes of which many are special.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(b" (){}%\"\\\r\n+*0123ANILPY!.^@".to_vec());
    let byte = prop_oneof![4 => special, 1 => any::<u8>()];
    let word = prop::sample::select(vec![
        "APPLY ",
        "GET ",
        "MAILBOX ",
        "MESSAGE (",
        "RESERVE %(",
        "USER ",
        "* ",
        "OK ",
        "%{p ",
        "0102030405060708090a0b0c0d0e0f1011121314 ",
        "{3+}\r\n",
        "%(",
        "RECORD (",
        "\r\n",
        "MBOXNAME ",
        "UNIQUEID ",
        "GUID ",
        "NIL ",
        "C01 CAPABILITY",
        "user.",
        "DELETED.",
    ]);
    let part = prop_oneof![
        prop::collection::vec(byte, 0..12),
        word.prop_map(|word| word.as_bytes().to_vec()),
    ];
    prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
}

/// A dlist value, as text.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Nil,
    Text(Vec<u8>),
    Plain(Vec<Value>),
    Pairs(Vec<(Vec<u8>, Value)>),
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-zA-Z0-9.^!_-]{0,20}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
        Just(b"NIL".to_vec()),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Nil), text().prop_map(Value::Text)];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Plain),
            prop::collection::vec((text(), inner), 0..6).prop_map(Value::Pairs),
        ]
    })
}

fn print_value(out: &mut Vec<u8>, value: &Value, form: LiteralForm) {
    match value {
        Value::Nil => out.extend_from_slice(b"NIL"),
        Value::Text(text) => print::astring(out, text, form),
        Value::Plain(values) => {
            out.push(b'(');
            for (nth, value) in values.iter().enumerate() {
                out.extend_from_slice(if nth > 0 { b" " } else { b"" });
                print_value(out, value, form);
            }
            out.push(b')');
        }
        Value::Pairs(pairs) => {
            out.extend_from_slice(b"%(");
            for (nth, (key, value)) in pairs.iter().enumerate() {
                out.extend_from_slice(if nth > 0 { b" " } else { b"" });
                print::astring(out, key, form);
                out.push(b' ');
                print_value(out, value, form);
            }
            out.push(b')');
        }
    }
}

/// Prints the tokens again.
#[derive(Default)]
struct Again {
    raw: Vec<u8>,
    tokens: Vec<String>,
}

impl Sink for Again {
    fn raw(&mut self, bytes: Bytes) {
        self.raw.extend_from_slice(&bytes);
    }

    fn content(&mut self, bytes: Bytes) {
        self.raw.extend_from_slice(&bytes);
    }

    fn token(&mut self, token: Token<'_>) -> Result<(), String> {
        self.tokens.push(match token {
            Token::Key(text) => format!("key {:?}", text.usable()),
            Token::Text(text) => format!("text {:?}", text.usable()),
            other => format!("{other:?}"),
        });
        Ok(())
    }
}

fn tokens(out: &mut Vec<String>, value: &Value) {
    let usable = |text: &'_ Vec<u8>| {
        Some(&text[..])
            .filter(|_| !text.contains(&0))
            .map(<[u8]>::to_vec)
    };
    match value {
        Value::Nil => out.push(format!("{:?}", Token::Nil)),
        Value::Text(text) => out.push(format!("text {:?}", usable(text))),
        Value::Plain(values) => {
            out.push(format!("{:?}", Token::Open(List::Plain)));
            values.iter().for_each(|value| tokens(out, value));
            out.push(format!("{:?}", Token::Close));
        }
        Value::Pairs(pairs) => {
            out.push(format!("{:?}", Token::Open(List::Pairs)));
            for (key, value) in pairs {
                out.push(format!("key {:?}", usable(key)));
                tokens(out, value);
            }
            out.push(format!("{:?}", Token::Close));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_from_a_client(bytes in noise(), seed in 1u64.., login in any::<bool>()) {
        prop_assert_eq!(client(&bytes, 0, login), client(&bytes, seed, login));
    }

    #[test]
    fn any_bytes_from_a_replica(bytes in noise(), seed in 1u64..) {
        prop_assert_eq!(replica(&bytes, 0), replica(&bytes, seed));
    }

    #[test]
    fn any_sync_log(bytes in noise(), seed in 1u64..) {
        prop_assert_eq!(synclog::read(&bytes, 0), synclog::read(&bytes, seed));
    }

    #[test]
    fn any_name(bytes in noise()) {
        let site = Site::default();
        let key = site.key_of_mailbox(&bytes);
        // A key is the userid it came from (but for domains that hold an `@`, which none do).
        let domain = bytes.split(|byte| *byte == b'!').next().unwrap_or_default();
        if !key.is_shared() && !domain.contains(&b'@') {
            prop_assert_eq!(site.key_of_user(key.as_bytes()), key);
        }
        let _ = site.key_of_user(&bytes);
    }

    #[test]
    fn any_imapd_conf(text in ".{0,200}") {
        let _ = Site::from_imapd_conf(&text);
    }

    #[test]
    fn printed_values_are_read_back(value in value(), seed in 0u64.., plus in any::<bool>()) {
        let form = if plus { LiteralForm::Plus } else { LiteralForm::Plain };
        let mut wire = b"KEY ".to_vec();
        print_value(&mut wire, &value, form);
        wire.extend_from_slice(b"\r\n");
        let mut expected = vec![format!("key {:?}", Some(b"KEY".to_vec()))];
        tokens(&mut expected, &value);
        // Read in the other form, written in this one.
        let limits = ScanLimits { depth: 8, text: 1 << 20, file: 1 << 20 };
        let mut scanner = Scanner::new(form, limits);
        let mut again = Again::default();
        let mut done = false;
        for mut piece in pieces(&wire, seed) {
            done = scanner.feed(&mut piece, &mut again).expect("a value") == Progress::Done;
        }
        prop_assert!(done);
        prop_assert_eq!(&again.raw, &wire);
        prop_assert_eq!(again.tokens, expected);
    }

    #[test]
    fn built_commands_are_read_back(names in prop::collection::vec(text(), 0..8)) {
        let wire = print::get_mailboxes(names.iter().map(|name| &name[..]));
        let mut wire = Bytes::from(wire.to_vec().expect("in memory"));
        let mut reader = CommandReader::new(limits(false));
        reader.set_authenticated(true);
        let command = reader.feed(&mut wire).expect("a command").expect("whole");
        match command.kind {
            Kind::Get(Get::Mailboxes(read)) => prop_assert_eq!(read, names),
            Kind::Get(Get::Other(_)) => prop_assert!(names.iter().any(|n| n.contains(&0))),
            kind => prop_assert!(false, "{:?}", kind),
        }
    }

    #[test]
    fn printed_lines_are_read_back(user in text(), name in text()) {
        let line = Line::Sub(user.clone().into(), name.clone().into());
        let mut out = Vec::new();
        if line.print(&mut out).is_ok() {
            let mut input = Bytes::from(out);
            let item = LineReader::new().feed(&mut input).expect("not torn").expect("an item");
            prop_assert_eq!(item.lines(), vec![line]);
        } else {
            prop_assert!([user, name].concat().iter().any(|b| b"\r\n\0\x0b\x0c".contains(b)));
        }
    }
}
