//! What the tests of the command reader share.

#![allow(dead_code, unreachable_pub)]

use bytes::Bytes;
use syncmux::protocol::{Body, Command, CommandReader, Fatal, Guid, ReaderLimits};

/// After the login, with the ordinary limits.
pub fn reader() -> CommandReader {
    let mut reader = CommandReader::new(ReaderLimits::default());
    reader.set_authenticated(true);
    reader
}

/// Reads everything in `input`, whole and a byte at a time, which must agree.
pub fn read(
    mut reader: impl FnMut() -> CommandReader,
    input: &[u8],
) -> Result<Vec<Command>, Fatal> {
    let run = |mut reader: CommandReader, size: usize| {
        let mut all = Vec::new();
        for piece in input.chunks(size.max(1)) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(command) = reader.feed(&mut piece)? {
                all.push(command);
            }
        }
        Ok(all)
    };
    let whole = run(reader(), input.len());
    let single: Result<Vec<Command>, Fatal> = run(reader(), 1);
    match (&whole, &single) {
        (Ok(whole), Ok(single)) => {
            let show = |all: &[Command]| {
                let each = all
                    .iter()
                    .map(|c| (format!("{:?}", c.kind), c.raw.to_vec()));
                each.filter(|(kind, _)| !kind.contains("Message"))
                    .collect::<Vec<_>>()
            };
            assert_eq!(whole.len(), single.len());
            assert_eq!(show(whole), show(single));
        }
        (Err(whole), Err(single)) => assert_eq!(whole.why, single.why),
        _ => panic!("the cuts matter: {whole:?} {single:?}"),
    }
    whole
}

pub fn text(body: &Body) -> String {
    String::from_utf8(body.to_vec().expect("in memory")).expect("text")
}

pub fn guid(byte: u8) -> Guid {
    Guid([byte; 20])
}
