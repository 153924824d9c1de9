//! A client's bytes: however they are cut and spilled they are read as the same commands, and
//! no more is held than they justify.

use syncmux::protocol::{Apply, Command, CommandReader, Dialect, Kind};

use super::{SpillFile, check, limits, pieces, split};

pub const LOGGED_IN: u8 = 1;
pub const IMAP: u8 = 4;
const SMALL: u8 = 2;

pub fn run(data: &[u8]) {
    let Some((flags, seed, bytes)) = split(data) else {
        return;
    };
    let whole = read(bytes, 0, flags, false);
    assert_eq!(
        whole,
        read(bytes, seed + 1, flags, false),
        "the cuts matter"
    );
    assert_eq!(
        whole,
        read(bytes, seed + 2, flags, true),
        "spilling matters"
    );
}

/// What they are read as, in words.
pub fn read(bytes: &[u8], seed: u64, flags: u8, spill: bool) -> Vec<String> {
    let dialect = match flags & IMAP {
        0 => Dialect::Csync,
        _ => Dialect::Imap,
    };
    let mut reader = CommandReader::new(limits(flags & SMALL != 0)).speaking(dialect);
    reader.set_authenticated(flags & LOGGED_IN != 0);
    let mut file = SpillFile::default();
    let mut out = Vec::new();
    let mut fed = 0;
    for (nth, mut piece) in pieces(bytes, seed).into_iter().enumerate() {
        fed += piece.len() as u64;
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(command)) => {
                    let tag = reader.tag();
                    assert!(tag.len() <= 64 && tag.iter().all(u8::is_ascii_graphic));
                    assert_eq!(tag.is_empty(), dialect == Dialect::Csync);
                    let tag = String::from_utf8_lossy(tag);
                    out.push(format!("{tag} {}", describe(&command, &file)));
                }
                Ok(None) => break,
                Err(fatal) => {
                    assert_eq!(reader.held(), 0, "something is held of what is given up");
                    assert!(reader.feed(&mut piece).is_err(), "it goes on");
                    out.push(format!("fatal {} {}", fatal.why, fatal.answer));
                    return out;
                }
            }
        }
        let (held, spillable) = (reader.held(), reader.spillable());
        check(&piece, held, spillable, reader.scanned_bytes(), fed);
        if spill && nth % 3 == 1 {
            reader.spill(&mut |run| file.write(run)).unwrap();
            assert_eq!(reader.spillable(), 0);
        }
    }
    out
}

fn describe(command: &Command, file: &SpillFile) -> String {
    let raw = file.read(&command.raw);
    match &command.kind {
        Kind::Apply(Apply::Message { files, nil }) => {
            let files: Vec<_> = files
                .iter()
                .map(|one| (&one.partition, one.guid, file.read(&one.content)))
                .collect();
            format!("{files:?} {nil} {raw:?}")
        }
        Kind::Bad { answer } => {
            let one_line = !answer.contains(['\r', '\n']);
            assert!(one_line && answer.len() < 1024, "{answer:?}");
            format!("{answer} {raw:?}")
        }
        kind => format!("{kind:?} {raw:?}"),
    }
}
