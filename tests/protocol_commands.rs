//! One command at a time: the typed fields, malformed input and the stock server's answers to it.

mod protocol_reader;

use bytes::Bytes;
use protocol_reader::{guid, read, reader, text};
use syncmux::protocol::{Apply, Command, CommandReader, Get, Kind, ReaderLimits};

fn one(input: &[u8]) -> Command {
    let mut commands = read(reader, input).expect("a command");
    assert_eq!(commands.len(), 1, "{commands:?}");
    commands.remove(0)
}

fn apply(input: &[u8]) -> Apply {
    match one(input).kind {
        Kind::Apply(apply) => apply,
        kind => panic!("{kind:?}"),
    }
}

fn get(input: &[u8]) -> Get {
    match one(input).kind {
        Kind::Get(get) => get,
        kind => panic!("{kind:?}"),
    }
}

#[test]
fn gets() {
    assert_eq!(get(b"GET USER joe\r\n"), Get::User("joe".into()));
    assert_eq!(get(b"get user joe\n"), Get::User("joe".into()));
    assert_eq!(get(b"GET META \"a b\"\r\n"), Get::Meta("a b".into()));
    assert_eq!(
        get(b"GET MAILBOXES ( a  \"b c\" {3+}\r\nd e\r\n)\r\n"),
        Get::Mailboxes(vec!["a".into(), "b c".into(), "d e".into()])
    );
    assert_eq!(get(b"GET MAILBOXES ()\r\n"), Get::Mailboxes(vec![]));
    assert_eq!(
        get(b"GET FULLMAILBOX user.joe\r\n"),
        Get::FullMailbox("user.joe".into())
    );
    assert_eq!(
        get(b"GET FETCH %(UID 1 MBOXNAME user.joe PARTITION default)\r\n"),
        Get::Fetch {
            mailbox: "user.joe".into()
        }
    );
    assert_eq!(get(b"GET ANNOTATION \"\"\r\n"), Get::Annotation("".into()));
    assert_eq!(
        get(b"GET QUOTA user.joe\r\n"),
        Get::Quota("user.joe".into())
    );
    assert_eq!(
        get(b"GET FETCH_SIEVE %(FILENAME x USERID joe)\r\n"),
        Get::FetchSieve { user: "joe".into() }
    );
    assert_eq!(get(b"GET UNIQUEIDS (a b)\r\n"), Get::UniqueIds);
    assert_eq!(
        get(b"GET \"USER\" \"j\\\"oe\"\r\n"),
        Get::User("j\"oe".into())
    );
    // White space after the key, line ends included, is skipped by Cyrus.
    assert_eq!(get(b"GET USER  \r\n joe\r\n"), Get::User("joe".into()));
}

#[test]
fn what_lacks_its_fields_is_carried() {
    for (input, verb) in [
        (&b"GET NOVELTY x\r\n"[..], "NOVELTY"),
        (b"GET USER NIL\r\n", "USER"),
        (b"GET USER (joe)\r\n", "USER"),
        (b"GET USER {3+}\r\na\0b\r\n", "USER"),
        (b"GET MAILBOXES user.joe\r\n", "MAILBOXES"),
        (b"GET MAILBOXES (user.joe NIL)\r\n", "MAILBOXES"),
        (b"GET MAILBOXES (user.joe (x))\r\n", "MAILBOXES"),
        (b"GET FETCH %(UID 1)\r\n", "FETCH"),
        (b"GET FETCH (MBOXNAME x)\r\n", "FETCH"),
    ] {
        assert_eq!(
            get(input),
            Get::Other(Bytes::from(verb)),
            "{}",
            input.escape_ascii()
        );
    }
    for (input, verb) in [
        (&b"APPLY NOVELTY %(A {2+}\r\n)))\r\n"[..], "NOVELTY"),
        (b"APPLY seen %(UNIQUEID x LASTUID 3)\r\n", "SEEN"),
        (b"APPLY SEEN %(USERID (joe) UNIQUEID x)\r\n", "SEEN"),
        (b"APPLY SUB %(USERID NIL MBOXNAME x)\r\n", "SUB"),
        (b"APPLY MAILBOX %(UNIQUEID x)\r\n", "MAILBOX"),
        (b"APPLY MAILBOX (a b)\r\n", "MAILBOX"),
        (b"APPLY RENAME %(OLDMBOXNAME a)\r\n", "RENAME"),
        (
            b"APPLY RESERVE %(PARTITION p MBOXNAME (a) GUID (xyz))\r\n",
            "RESERVE",
        ),
        (b"APPLY RESERVE %(PARTITION p MBOXNAME (a))\r\n", "RESERVE"),
        (b"APPLY MESSAGE x\r\n", "MESSAGE"),
    ] {
        let command = one(input);
        let sent = input.strip_prefix(b"").expect("all");
        assert_eq!(command.raw.to_vec().expect("raw"), sent);
        match command.kind {
            Kind::Apply(Apply::Other(other)) => assert_eq!(other, verb),
            kind => panic!("{kind:?}"),
        }
    }
}

#[test]
fn applies() {
    let Apply::Seen { user, uniqueid } = apply(b"APPLY SEEN %(UNIQUEID u USERID joe USERID x)\r\n")
    else {
        panic!()
    };
    assert_eq!((&user[..], &uniqueid[..]), (&b"joe"[..], &b"u"[..]));
    let Apply::Rename { old, new } =
        apply(b"APPLY LOCAL_RENAME %(OLDMBOXNAME a NEWMBOXNAME b PARTITION p UIDVALIDITY 3)\r\n")
    else {
        panic!()
    };
    assert_eq!((&old[..], &new[..]), (&b"a"[..], &b"b"[..]));
    assert!(matches!(apply(b"APPLY UNMAILBOX a.b\r\n"), Apply::Unmailbox(name) if name == "a.b"));
    assert!(matches!(apply(b"APPLY LOCAL_UNUSER joe\r\n"), Apply::Unuser(user) if user == "joe"));
    assert!(matches!(apply(b"APPLY FORCE %()\r\n"), Apply::Force));
    assert!(matches!(apply(b"APPLY UNQUOTA r\r\n"), Apply::Unquota { root } if root == "r"));
    assert!(matches!(
        apply(b"APPLY QUOTA %(ROOT r LIMIT 4294967295)\r\n"),
        Apply::Quota { root } if root == "r"
    ));
    assert!(matches!(
        apply(b"APPLY UNACTIVATE_SIEVE %(USERID joe)\r\n"),
        Apply::Sieve { user, verb } if user == "joe" && verb == "UNACTIVATE_SIEVE"
    ));
    assert!(matches!(
        apply(b"APPLY unannotation %(MBOXNAME \"\" ENTRY /x USERID \"\" VALUE NIL)\r\n"),
        Apply::Annotation { mailbox, verb } if mailbox.is_empty() && verb == "UNANNOTATION"
    ));
    assert!(matches!(
        apply(b"APPLY CAPABILITIES (SIEVE-MAILBOX)\r\n"),
        Apply::Capabilities(names) if names == ["SIEVE-MAILBOX"]
    ));
    let restore = one(b"RESTORE LOCAL_MAILBOX %(MBOXNAME user.joe)\r\n").kind;
    assert!(matches!(restore, Kind::Restore { mailbox } if mailbox == "user.joe"));
}

#[test]
fn mailboxes() {
    let records = format!(
        "%(UID 1 GUID {a} FLAGS (\\Seen)) %(UID 2 FLAGS () GUID {a}) \
         %(UID 3 GUID {b} FLAGS (\\Deleted \\Expunged)) %(FLAGS (x) UID 4 GUID {c} \
         ANNOTATIONS (%(ENTRY /e USERID \"\" VALUE {{4+}}\r\n))))))) %(UID 5)",
        a = guid(1),
        b = guid(2),
        c = guid(3)
    );
    let sent = format!(
        "APPLY LOCAL_MAILBOX %(JMAPID x MBOXNAME user.joe UNIQUEID u PARTITION p LAST_UID 5 \
         ANNOTATIONS (%(GUID {b} VALUE x)) RECORD ({records}) RECORD (%(GUID {b})))\r\n",
        b = guid(9)
    );
    let command = one(sent.as_bytes());
    assert_eq!(text(&command.raw), sent);
    let Kind::Apply(Apply::Mailbox(mailbox)) = command.kind else {
        panic!()
    };
    assert!(mailbox.local && !mailbox.intermediate);
    assert_eq!(mailbox.guids, [guid(1), guid(3)]);
    assert_eq!(mailbox.records, 5);
    assert_eq!(mailbox.partition, "p");

    let short = b"APPLY MAILBOX %(UNIQUEID u MBOXNAME a MBOXTYPE i HIGHESTMODSEQ 3)\r\n";
    assert!(matches!(apply(short), Apply::Mailbox(m) if m.intermediate && !m.local));
    let full = b"APPLY MAILBOX %(UNIQUEID u MBOXNAME a MBOXTYPE i LAST_UID 3 RECORD ())\r\n";
    assert!(matches!(apply(full), Apply::Mailbox(m) if !m.intermediate));
}

#[test]
fn literal_headers_are_rewritten() {
    let command = one(b"APPLY SUB %(USERID {3}\r\njoe MBOXNAME {0003+}\r\n\r\n()\r\n");
    // The second literal holds CR LF and a bracket.
    assert_eq!(
        text(&command.raw),
        "APPLY SUB %(USERID {3+}\r\njoe MBOXNAME {3+}\r\n\r\n()\r\n"
    );
    assert!(matches!(
        command.kind,
        Kind::Apply(Apply::Sub { user, mailbox }) if user == "joe" && mailbox == "\r\n("
    ));
}

#[test]
fn simple_commands() {
    assert!(matches!(one(b"EXIT\r\n").kind, Kind::Exit));
    assert!(matches!(one(b"nOOp\n").kind, Kind::Noop));
    assert!(matches!(one(b"RESTART\r\n").kind, Kind::Restart));
    assert!(matches!(one(b"STARTTLS\r\n").kind, Kind::Starttls));
    assert!(matches!(
        one(b"COMPRESS DEFLATE\r\n").kind,
        Kind::Compress { algorithm } if algorithm == "DEFLATE"
    ));
    for tag in ["C01", "A01", "x"] {
        let probe = format!("{tag} CAPABILITY\r\n");
        assert!(matches!(
            one(probe.as_bytes()).kind,
            Kind::ImapProbe { tag: read } if read == tag
        ));
    }
    let new = || CommandReader::new(ReaderLimits::default());
    for (line, initial) in [
        ("AUTHENTICATE plain\r\n", None),
        ("authenticate PLAIN =\r\n", Some("=")),
        (
            "AUTHENTICATE PLAIN AGpvZQBzZWNyZXQ=\r\n",
            Some("AGpvZQBzZWNyZXQ="),
        ),
    ] {
        let commands = read(new, line.as_bytes()).expect("a command");
        let Kind::Authenticate {
            mechanism,
            initial: read,
        } = &commands[0].kind
        else {
            panic!("{commands:?}")
        };
        assert_eq!(mechanism, "PLAIN");
        assert_eq!(
            read.as_ref().map(|secret| &secret.0[..]),
            initial.map(str::as_bytes)
        );
        assert!(commands[0].raw.is_empty());
        assert!(!format!("{commands:?}").contains("AGpv"));
    }
}

#[test]
fn malformed_input_gets_the_stock_answers() {
    const APPLY: &str = "BAD IMAP_PROTOCOL_ERROR Failed to parse APPLY line";
    const GET: &str = "BAD IMAP_PROTOCOL_ERROR Failed to parse GET line";
    const UNKNOWN: &str = "BAD IMAP_PROTOCOL_ERROR Unrecognized command";
    for (input, answer) in [
        (&b"\r\n"[..], "BAD Null command"),
        (b"\n", "BAD Null command"),
        (b" GET USER joe\r\n", "BAD Null command"),
        (b"(x) {3+}\r\n\n\n\n\r\n", "BAD Null command"),
        (b"FROB\r\n", UNKNOWN),
        (b"FROB CAPABILITIES\r\n", UNKNOWN),
        (b"C01 CAPABILITY x\r\n", UNKNOWN),
        (b"C01 {2+}\r\n\n\n.\r\n", UNKNOWN),
        (b"EXIT now\r\n", "BAD Unexpected extra arguments to Exit"),
        (b"EXIT \r\n", "BAD Unexpected extra arguments to Exit"),
        (b"noop\r x\r\n", "BAD Unexpected extra arguments to Noop"),
        (b"RESTART(\r\n", "BAD Unexpected extra arguments to Restart"),
        (b"COMPRESS\r\n", "BAD Missing required argument to Compress"),
        (
            b"COMPRESS DEFLATE x\r\n",
            "BAD Unexpected extra arguments to Compress",
        ),
        (
            b"AUTHENTICATE\r\n",
            "BAD Missing required argument to Authenticate",
        ),
        (b"AUTHENTICATE PL*IN x\r\n", "BAD Invalid mechanism"),
        (
            b"AUTHENTICATE PLAIN x y\r\n",
            "BAD Unexpected extra arguments to Authenticate",
        ),
        (b"AUTHENTICATE PLAIN x\r\n", "BAD Already authenticated"),
        (b"GET\r\n", GET),
        (b"GET \r\n", GET),
        (b"GET  USER joe\r\n", GET),
        (b"GET USER joe \r\n", GET),
        (b"GET USER joe x\r\n", GET),
        (b"GET USER joe\rx\r\n", GET),
        (b"GET USER )\r\n", GET),
        (b"GET USER \"joe\r\n", GET),
        (b"GET USER \"joe\"x\r\n", GET),
        (b"GET MAILBOXES (a b))\r\n", GET),
        (b"GET MAILBOXES %x\r\n", GET),
        (b"APPLY SUB %(USERID)\r\n", APPLY),
        (
            b"APPLY SUB %(USERID joe MBOXNAME x) {4+}\r\n\r\n\r\n.\r\n",
            APPLY,
        ),
        (b"APPLY SUB %(%(a b) c)\r\n", APPLY),
        (
            b"RESTORE  x\r\n",
            "BAD IMAP_PROTOCOL_ERROR Failed to parse RESTORE line",
        ),
    ] {
        let both = [input, b"NOOP\r\n"].concat();
        let commands = read(reader, &both).expect("commands");
        let what = input.escape_ascii();
        assert_eq!(commands.len(), 2, "{what}: {commands:?}");
        let Kind::Bad { answer: read } = &commands[0].kind else {
            panic!("{what}: {commands:?}")
        };
        assert_eq!(read, answer, "{what}");
        assert!(matches!(commands[1].kind, Kind::Noop), "{what}");
    }
}

#[test]
fn before_the_login_only_short_lines_are_read() {
    let new = || CommandReader::new(ReaderLimits::default());
    let input = b"GET USER joe\r\nAPPLY X (\r\nRESTORE x\r\nAB\r\nRESTART\r\nNOOP\r\nX\r\n";
    let commands = read(new, input).expect("commands");
    let kinds: Vec<String> = commands.iter().map(|c| format!("{:?}", c.kind)).collect();
    let no = "Bad { answer: \"NO Please authenticate first\" }";
    assert_eq!(kinds[..6], [no, no, no, no, "Restart", "Noop"]);
    assert!(kinds[6].contains("Unrecognized"));
    assert!(read(new, b"GET USER {3+}\r\njoe\r\n").is_err());
    let long = [b"GET ".to_vec(), vec![b'x'; 70_000]].concat();
    assert!(read(new, &long).is_err());
    assert!(read(new, &vec![b'x'; 70_000]).is_err());
}

#[test]
fn what_can_not_be_delimited_is_fatal() {
    let deep = [b"APPLY X ".to_vec(), vec![b'('; 17]].concat();
    let word = [b"APPLY X ".to_vec(), vec![b'x'; 140_000], b"\r\n".to_vec()].concat();
    let quoted = [
        b"APPLY X \"".to_vec(),
        vec![b'x'; 140_000],
        b"\"\r\n".to_vec(),
    ]
    .concat();
    for (input, answer) in [
        (&b"GET USER {3x}\r\n"[..], "BYE the header of a literal"),
        (b"GET USER {}\r\n", "BYE the header of a literal"),
        (b"GET USER {3+}\njoe\r\n", "BYE the header of a literal"),
        (b"GET USER {99999999999+}\r\n", "* Fatal error: num too big"),
        (b"GET USER {300000000+}\r\n", "BYE longer than"),
        (
            b"APPLY MESSAGE (%{default xyz 3}\r\n",
            "BYE the header of a message",
        ),
        (
            b"APPLY MESSAGE (%{default  \r\n",
            "BYE the header of a message",
        ),
        (b"APPLY  MESSAGE (%{default", "BYE a message in a command"),
        (&deep, "BYE nested deeper than 16"),
        (&word, "* Fatal error: [TOOBIG] Word too long"),
        (&quoted, "* Fatal error: [TOOBIG] Quoted value too long"),
    ] {
        let fatal = read(reader, input).expect_err("fatal");
        assert!(fatal.answer.starts_with(answer), "{fatal:?}");
        assert!(!fatal.to_string().is_empty());
    }
    // A reader stays dead.
    let mut reader = reader();
    assert!(
        reader
            .feed(&mut Bytes::from_static(b"GET USER {x\r\n"))
            .is_err()
    );
    assert!(reader.feed(&mut Bytes::from_static(b"NOOP\r\n")).is_err());
    assert_eq!(reader.held(), 0);
}

#[test]
fn raw_lines_for_sasl() {
    let mut reader = CommandReader::new(ReaderLimits::default());
    let mut input = Bytes::from_static(b"biwsbj1q");
    assert_eq!(reader.feed_line(&mut input).expect("a line"), None);
    let mut input = Bytes::from_static(b"b2U=\r\n*\nNOOP\r\n");
    assert_eq!(
        reader
            .feed_line(&mut input)
            .expect("a line")
            .expect("whole")
            .0,
        b"biwsbj1qb2U="
    );
    assert_eq!(
        reader
            .feed_line(&mut input)
            .expect("a line")
            .expect("whole")
            .0,
        b"*"
    );
    assert!(reader.feed(&mut input).expect("a command").is_some());
    let mut input = Bytes::from(vec![b'x'; 70_000]);
    assert!(reader.feed_line(&mut input).is_err());
}
