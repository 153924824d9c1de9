//! Input that no stock client would send, well-formed or not, against the answers of a real
//! `sync_server` (Debian's 3.6.1-4+deb12u5, over a UNIX socket; recorded in
//! `captures/stock-answers.json` as pairs of input and answer, each input followed by NOOP).
//! The reader must see the same commands and give the same answers to bad ones.

use bytes::Bytes;
use syncmux::protocol::{CommandReader, Kind, ReaderLimits};

/// One line for each command; `None` where syncmux closes the connection instead.
fn ours(input: &[u8]) -> (Option<Vec<String>>, bool) {
    let mut input = Bytes::from([input, b"NOOP\r\n"].concat());
    let mut reader = CommandReader::new(ReaderLimits::default());
    reader.set_authenticated(true);
    let mut answers = Vec::new();
    loop {
        let command = match reader.feed(&mut input) {
            Ok(Some(command)) => command,
            Ok(None) => return (Some(answers), reader.mid_command()),
            Err(_) => return (None, false),
        };
        answers.push(match command.kind {
            Kind::Bad { answer } => answer,
            Kind::Noop => "OK Noop completed".into(),
            Kind::Restart => "OK Restarting".into(),
            Kind::Exit => "OK Finished".into(),
            // No TLS was configured there, and a csync server knows no IMAP.
            Kind::Starttls | Kind::ImapProbe { .. } | Kind::Capability | Kind::Id => {
                "BAD IMAP_PROTOCOL_ERROR Unrecognized command".into()
            }
            _ => "carried".into(),
        });
    }
}

fn theirs(answer: &str) -> Vec<String> {
    let carried = |line: &str| {
        line.starts_with("OK success")
            || line.starts_with("NO ")
            || line.starts_with("BAD IMAP_PROTOCOL_ERROR Protocol")
    };
    let status = answer.lines().filter(|line| !line.starts_with("* "));
    status
        .map(|line| if carried(line) { "carried" } else { line })
        .map(str::to_owned)
        .collect()
}

#[test]
fn answers_are_those_of_a_stock_server() {
    let text = include_str!("captures/stock-answers.json");
    let pairs: Vec<(String, String)> = serde_json::from_str(text).expect("pairs");
    let (mut same, mut closed) = (0, 0);
    for (input, answer) in &pairs {
        // Bytes are kept as the characters U+0000 to U+00FF.
        let input: Vec<u8> = input.chars().map(|c| c as u8).collect();
        let what = input.escape_ascii().to_string();
        let mut theirs = theirs(answer);
        let (ours, partial) = ours(&input);
        let Some(ours) = ours else {
            // Only where a literal or a message is involved whose end can't be trusted.
            assert!(what.contains('{'), "{what}");
            closed += 1;
            continue;
        };
        if partial && theirs.len() > ours.len() {
            // The end of the connection ended their last command.
            theirs.pop();
        }
        assert_eq!(ours, theirs, "{what}");
        same += 1;
    }
    assert_eq!((same + closed, pairs.len()), (776, 776));
    assert!(same > 650, "{same}");
}
