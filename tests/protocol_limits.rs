//! Limits of the command reader, its memory, and spilling.

mod protocol_reader;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use protocol_reader::{guid, read, reader, text};
use syncmux::protocol::{
    Apply, Body, CommandReader, Guid, Kind, Piece, ReaderLimits, Spilled, print,
};

#[test]
fn limits_hold() {
    let limits = ReaderLimits {
        text: 1000,
        message: 100,
        files: 2,
        elements: 3,
        names: 3,
        depth: 3,
        line: 200,
    };
    let small = || {
        let mut reader = CommandReader::new(limits.clone());
        reader.set_authenticated(true);
        reader
    };
    let file = |size: usize| {
        let content = vec![b'x'; size];
        [
            format!("%{{p {} {size}}}\r\n", guid(1)).into_bytes(),
            content,
        ]
        .concat()
    };
    let message = |parts: &[Vec<u8>]| {
        [
            b"APPLY MESSAGE (".to_vec(),
            parts.join(&b' '),
            b")\r\n".to_vec(),
        ]
        .concat()
    };
    assert!(read(small, &message(&[file(100), b"NIL".to_vec()])).is_ok());
    assert!(read(small, &message(&[file(101)])).is_err());
    assert!(read(small, &message(&[file(1), file(1), b"NIL".to_vec()])).is_err());
    assert!(read(small, b"GET MAILBOXES (a b c)\r\n").is_ok());
    assert!(read(small, b"GET MAILBOXES (a b c d)\r\n").is_err());
    assert!(read(small, b"GET X (((a)))\r\n").is_ok());
    assert!(read(small, b"GET X ((((a))))\r\n").is_err());
    assert!(
        read(
            small,
            &[b"GET X ".to_vec(), vec![b'x'; 900], b"\r\n".to_vec()].concat()
        )
        .is_ok()
    );
    assert!(read(small, &[b"GET X ".to_vec(), vec![b'x'; 1100]].concat()).is_err());
    assert!(read(small, b"GET X {2000+}\r\n").is_err());
    assert!(read(small, &[b"GET  X ".to_vec(), vec![b'x'; 1100]].concat()).is_err());
}

#[test]
fn a_message_of_1024_files() {
    let contents: Vec<Vec<u8>> = (0..1024)
        .map(|n| vec![b'a' + (n % 26) as u8; n * 7])
        .collect();
    let mut sent = b"APPLY MESSAGE (".to_vec();
    for (nth, content) in contents.iter().enumerate() {
        if nth > 0 {
            sent.push(b' ');
        }
        if nth == 500 {
            sent.extend_from_slice(b"NIL ");
        }
        let header = format!("%{{default {} {}}}\r\n", guid(nth as u8), content.len());
        sent.extend_from_slice(header.as_bytes());
        sent.extend_from_slice(content);
    }
    sent.extend_from_slice(b")\r\n");
    let mut reader = reader();
    let mut command = None;
    for piece in sent.chunks(4000) {
        let mut piece = Bytes::copy_from_slice(piece);
        assert!(command.is_none());
        command = reader.feed(&mut piece).expect("a command");
    }
    let Some(Kind::Apply(Apply::Message { files, nil })) = command.map(|command| command.kind)
    else {
        panic!()
    };
    assert_eq!((files.len(), nil), (1024, 1));
    for (nth, (file, content)) in files.iter().zip(&contents).enumerate() {
        assert_eq!(file.guid, guid(nth as u8));
        assert_eq!(file.content.to_vec().as_ref(), Some(content));
    }
    let again = print::message(&files).to_vec().expect("in memory");
    let nil = memchr::memmem::find(&sent, b"NIL ").expect("NIL");
    assert!(again == [&sent[..nil], &sent[nil + 4..]].concat());
    assert_eq!(text(&print::message(&[])), "APPLY MESSAGE ()\r\n");
}

#[test]
fn a_hundred_thousand_records_take_20_bytes_each() {
    let mut sent = b"APPLY MAILBOX %(UNIQUEID u MBOXNAME a LAST_UID 1 RECORD (".to_vec();
    for nth in 0..100_000u32 {
        let mut guid = [7; 20];
        guid[..4].copy_from_slice(&nth.to_be_bytes());
        let record = format!(
            "%(UID {nth} MODSEQ 3 LAST_UPDATED 1795499767 FLAGS (\\Seen) INTERNALDATE 1795499767 \
             SIZE 116 GUID {}) ",
            Guid(guid)
        );
        sent.extend_from_slice(record.as_bytes());
    }
    sent.extend_from_slice(b"))\r\n");
    let mut reader = reader();
    let mut most = 0;
    let mut command = None;
    let mut fed = 0;
    for piece in sent.chunks(16 * 1024) {
        let mut piece = Bytes::copy_from_slice(piece);
        fed += piece.len() as u64;
        command = reader.feed(&mut piece).expect("a command");
        most = most.max(reader.held().saturating_sub(fed));
    }
    // The list of GUIDs may be twice as large while it grows.
    assert!(most < 100_000 * 20 * 2 * 11 / 10, "{most}");
    let command = command.expect("complete");
    assert_eq!(command.raw.len(), sent.len() as u64);
    let Kind::Apply(Apply::Mailbox(mailbox)) = command.kind else {
        panic!()
    };
    assert_eq!((mailbox.records, mailbox.guids.len()), (100_000, 100_000));
    assert!(mailbox.guids.capacity() < 101_000);
}

/// A spill file of a test: one buffer behind offsets.
struct Spill {
    bytes: Vec<u8>,
    file: Arc<std::fs::File>,
}

impl Spill {
    fn new() -> Self {
        Spill {
            bytes: Vec::new(),
            file: Arc::new(tempfile::tempfile().expect("a file")),
        }
    }

    fn write(&mut self, pieces: &[Bytes]) -> io::Result<Spilled> {
        let offset = self.bytes.len() as u64;
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        Ok(Spilled {
            file: self.file.clone(),
            offset,
            len: self.bytes.len() as u64 - offset,
            lease: Arc::new(()),
        })
    }

    fn read(&self, body: &Body) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in body.pieces() {
            match piece {
                Piece::Memory(bytes) => out.extend_from_slice(bytes),
                Piece::Spilled(spilled) => {
                    let from = spilled.offset as usize;
                    out.extend_from_slice(&self.bytes[from..from + spilled.len as usize]);
                }
            }
        }
        out
    }
}

#[test]
fn a_partial_command_can_be_spilled() {
    let contents: Vec<Vec<u8>> = (0..20).map(|n| vec![b'a' + n as u8; n * 900]).collect();
    let mut message = b"APPLY MESSAGE (".to_vec();
    for content in &contents {
        let header = format!(" %{{p {} {}}}\r\n", guid(1), content.len());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(content);
    }
    message.extend_from_slice(b")\r\n");
    let value = vec![b'v'; 100_000];
    let sieve = [
        b"APPLY SIEVE %(USERID joe CONTENT {100000}\r\n".to_vec(),
        value,
        b")\r\n".to_vec(),
    ]
    .concat();
    let (mut spilled, mut spill) = (0, Spill::new());
    let mut commands = Vec::new();
    let mut reader = reader();
    for (nth, piece) in [message, sieve.clone()].concat().chunks(1777).enumerate() {
        let mut piece = Bytes::copy_from_slice(piece);
        while let Some(command) = reader.feed(&mut piece).expect("a command") {
            commands.push(command);
        }
        let held = reader.held();
        if nth % 3 == 0 && held > 0 {
            let failed = reader.spill(&mut |_| Err(io::Error::other("full")));
            assert!(failed.is_err() || held < 5000);
            assert_eq!(reader.held(), held);
            reader
                .spill(&mut |pieces| spill.write(pieces))
                .expect("spilled");
            assert!(reader.held() < 10_000, "{}", reader.held());
            spilled += 1;
        }
    }
    assert!(spilled > 30);
    assert_eq!(commands.len(), 2);
    let Kind::Apply(Apply::Message { files, .. }) = &commands[0].kind else {
        panic!()
    };
    for (file, content) in files.iter().zip(&contents) {
        assert_eq!(file.content.len(), content.len() as u64);
        assert!(spill.read(&file.content) == *content);
    }
    let raw = String::from_utf8(spill.read(&commands[1].raw)).expect("text");
    let sent = String::from_utf8(sieve).expect("text");
    assert!(raw == sent.replace("{100000}", "{100000+}"));
    assert!(
        commands[1]
            .raw
            .pieces()
            .iter()
            .any(|p| matches!(p, Piece::Spilled(_)))
    );
}

#[test]
fn a_byte_at_a_time_costs_no_more_memory() {
    let mut reader = reader();
    for _ in 0..100_000 {
        let mut piece = Bytes::from_static(b"APPLY X (aaaaaaaaa)").slice(..1);
        if !reader.mid_command() {
            piece = Bytes::from_static(b"APPLY X (");
        }
        assert!(reader.feed(&mut piece).expect("partial").is_none());
    }
    let mut pieces = 0;
    reader
        .spill(&mut |run| {
            pieces = run.len();
            Spill::new().write(run)
        })
        .expect("spilled");
    assert!(pieces < 20, "{pieces}");
}
