//! User keys, imapd.conf, and the sync log.

use bytes::Bytes;
use syncmux::protocol::names::{imapd_conf_all, imapd_conf_switch, imapd_conf_value};
use syncmux::protocol::synclog::{Coverage, Item, ItemKind, Line, LineReader, Unwritable};
use syncmux::protocol::{Site, UserKey};

fn key(name: &str) -> String {
    let key = Site::default().key_of_mailbox(name.as_bytes());
    String::from_utf8(key.as_bytes().to_vec()).expect("text")
}

#[test]
fn mailboxes_have_owners() {
    for (name, owner) in [
        ("user.joe", "joe"),
        ("user.joe.sub.sub", "joe"),
        ("user.john^doe.x", "john.doe"),
        ("example.com!user.joe", "joe@example.com"),
        ("example.com!user.joe^dot.sub", "joe.dot@example.com"),
        ("internal!user.joe", "joe"),
        ("DELETED.user.joe.6B0526F9", "joe"),
        ("DELETED.user.joe.sub.6B0526F9", "joe"),
        ("example.com!DELETED.user.joe.6B0526F9", "joe@example.com"),
        ("user..joe", "joe"),
        (".user.joe", "joe"),
        ("user.joe.", "joe"),
        // Without an owner.
        ("", ""),
        ("shared", ""),
        ("shared.user.joe", ""),
        ("example.com!shared", ""),
        ("example.com!", ""),
        ("user", ""),
        ("user.", ""),
        ("USER.joe", ""),
        ("DELETED.user.6B0526F9", ""),
        ("DELETED.user.joe", ""),
        ("DELETED.shared.x.6B0526F9", ""),
        ("DELETED.DELETED.user.joe.6B0526F9", ""),
    ] {
        assert_eq!(key(name), owner, "{name}");
        assert_eq!(
            Site::default().key_of_mailbox(name.as_bytes()).is_shared(),
            owner.is_empty()
        );
    }
}

#[test]
fn userids_and_mailboxes_agree() {
    let site = Site {
        defaultdomain: Some("example.org".into()),
        deletedprefix: "GONE".into(),
        ..Site::default()
    };
    for (userid, mailbox) in [
        ("joe", "user.joe"),
        ("john.doe", "user.john^doe"),
        ("joe@example.com", "example.com!user.joe.x"),
        ("joe@example.org", "example.org!user.joe"),
        ("joe@example.org", "user.joe"),
        ("a@b@example.com", "example.com!user.a@b"),
        ("j.d@example.com", "example.com!GONE.user.j^d.6B0526F9"),
    ] {
        assert_eq!(
            site.key_of_user(userid.as_bytes()),
            site.key_of_mailbox(mailbox.as_bytes()),
            "{userid}"
        );
    }
    assert_eq!(site.key_of_user(b""), UserKey::shared());
    assert_eq!(site.key_of_user(b"joe@example.org").as_bytes(), b"joe");
    assert_eq!(
        site.key_of_mailbox(b"DELETED.user.joe.6B0526F9"),
        UserKey::shared()
    );
    assert_eq!(UserKey::shared().to_string(), "(shared)");
}

const CONF: &str = "
# unixhierarchysep: no
  UnixHierarchySep:  off
virtdomains: userid\r
defaultdomain: example.org
sync_log_channels: repl \\
  squatter
empty:
@include: /etc/other.conf
partition-default: /var/spool/cyrus
partition-fast: /ssd
";

#[test]
fn imapd_conf() {
    let site = Site::from_imapd_conf(CONF);
    assert!(!site.unixhierarchysep && site.virtdomains);
    assert_eq!(site.defaultdomain.as_deref(), Some("example.org"));
    assert_eq!(site.deletedprefix, "DELETED");
    assert_eq!(Site::from_imapd_conf(""), Site::default());
    let value = |key| imapd_conf_value(CONF, key);
    assert_eq!(
        value("sync_log_channels").as_deref(),
        Some("repl   squatter")
    );
    assert_eq!(value("empty"), None);
    assert_eq!(value("absent"), None);
    for (text, on) in [
        ("x: yes", Some(true)),
        ("x: on", Some(true)),
        ("x: 1", Some(true)),
        ("x: true", Some(true)),
        ("x: no", Some(false)),
        ("x: off", Some(false)),
        ("x: 0", Some(false)),
        ("x: f", Some(false)),
        ("x: maybe", None),
        ("y: yes", None),
    ] {
        assert_eq!(imapd_conf_switch(text, "x"), on, "{text}");
    }
    let partitions = imapd_conf_all(CONF, "partition-");
    let names: Vec<&str> = partitions.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["partition-default", "partition-fast"]);
}

fn printed(line: Line) -> Result<String, Unwritable> {
    let mut out = b"before".to_vec();
    line.print(&mut out)?;
    Ok(String::from_utf8(out.split_off(6)).expect("text"))
}

#[test]
fn lines_are_quoted_as_cyrus_does() {
    for (name, quoted) in [
        ("user.joe", "user.joe"),
        ("", "\"\""),
        ("with space", "\"with space\""),
        ("a\tb", "\"a\tb\""),
        ("a(b)", "\"a(b)\""),
        ("a\"b\\c", "\"a\\\"b\\\\c\""),
        ("a{b}", "\"a\\{b\\}\""),
        ("NIL", "NIL"),
        ("M&APw-ller%*", "M&APw-ller%*"),
    ] {
        assert_eq!(
            printed(Line::Mailbox(name.into())),
            Ok(format!("MAILBOX {quoted}\n"))
        );
    }
    let seen = Line::Seen("joe".into(), "a b".into());
    assert_eq!(printed(seen), Ok("SEEN joe \"a b\"\n".into()));
    assert_eq!(
        printed(Line::Annotation("".into())),
        Ok("ANNOTATION \"\"\n".into())
    );
    for name in ["a\rb", "a\nb", "a\0b", "a\x0bb", "a\x0cb"] {
        assert_eq!(printed(Line::User(name.into())), Err(Unwritable::Control));
    }
    assert!(printed(Line::User("x".repeat(1023).into())).is_ok());
    assert_eq!(
        printed(Line::User("x".repeat(1024).into())),
        Err(Unwritable::TooLong)
    );
    assert_eq!(
        printed(Line::User("{".repeat(512).into())),
        Err(Unwritable::TooLong)
    );
    assert!(printed(Line::Sub("(".repeat(1023).into(), "x".repeat(1023).into())).is_ok());
}

/// Items until the end or the tear, which is the line given.
fn items(text: &[u8], size: usize) -> (Vec<Item>, Option<u64>) {
    let mut reader = LineReader::new();
    let mut all = Vec::new();
    for piece in text.chunks(size) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match reader.feed(&mut piece) {
                Ok(Some(item)) => all.push(item),
                Ok(None) => break,
                Err(torn) => return (all, Some(torn.line)),
            }
        }
    }
    (all, None)
}

#[test]
fn a_log_is_read_as_the_client_does() {
    let text = b"MAILBOX user.joe\n\r\nmailbox \"a \\\"b\\\\\"\r\nFROB\nUSER(x)\nSEEN joe id x\n\
        USER joe \nSUB joe \"x\"y\nMAILBOX a\"b\nRENAME a b\nNOVELTY x\nMAILBOX\tx\nUSER end";
    let (all, torn) = items(text, 1);
    assert_eq!(items(text, 1000), (all.clone(), torn));
    let shown: Vec<String> = all
        .iter()
        .map(|item| format!("{:?} {:?} {:?}", item.kind, item.first, item.second))
        .collect();
    // `USER joe ` has an empty second argument, which is the end of the file for the client.
    assert_eq!(
        shown,
        [
            "Mailbox b\"user.joe\" None",
            "Mailbox b\"a \\\"b\\\\\" None"
        ]
    );
    assert_eq!(torn, Some(7));

    let text = b"SUB joe \"x\"y\nMAILBOX a\"b\nRENAME a b\nNOVELTY x\nMAILBOX\tx\nUSER end";
    let (all, torn) = items(text, 3);
    let kinds: Vec<ItemKind> = all.iter().map(|item| item.kind).collect();
    assert_eq!(
        (kinds, torn),
        (vec![ItemKind::Rename, ItemKind::Other], None)
    );

    for text in [
        &b"USER a\nMAILBOX \"x\ny\"\nUSER b\n"[..],
        b"USER a\nMAILBOX \"x\ry\"\nUSER b\n",
        b"USER a\nMAILBOX  x\nUSER b\n",
        b"USER a\nMAILBOX \nUSER b\n",
        b"USER a\nMAILBOX {3+}\r\nabc\nUSER b\n",
        b"USER a\nMAILBOX x y {3+}\r\nabc\nUSER b\n",
    ] {
        for size in [1, 100] {
            let (all, torn) = items(text, size);
            assert_eq!((all.len(), torn), (1, Some(2)), "{}", text.escape_ascii());
        }
    }
}

#[test]
fn lines_and_items_agree() {
    let lines = [
        Line::Mailbox("a b".into()),
        Line::User("joe".into()),
        Line::Meta("joe".into()),
        Line::Seen("joe".into(), "id".into()),
        Line::Sub("joe".into(), "x{y}".into()),
        Line::Unmailbox("x".into()),
        Line::Unuser("joe".into()),
        Line::Quota("user.joe".into()),
        Line::Annotation("".into()),
    ];
    let mut text = Vec::new();
    for line in &lines {
        line.print(&mut text).expect("writable");
    }
    let (all, torn) = items(&text, 7);
    assert_eq!(torn, None);
    let back: Vec<Line> = all.iter().flat_map(Item::lines).collect();
    assert_eq!(back, lines);
    let mut again = Vec::new();
    for item in &all {
        item.print(&mut again).expect("writable");
    }
    assert_eq!(again, text);
    let (all, _) = items(
        b"RENAME a b\nSIEVE joe\nUNSUB joe x\nAPPEND c\nDOUBLEMAILBOX d e\n",
        9,
    );
    let lines: Vec<Line> = all.iter().flat_map(Item::lines).collect();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[2], Line::Meta("joe".into()));
}

fn coverage(text: &str) -> Coverage {
    let mut coverage = Coverage::default();
    for item in items(text.as_bytes(), 100).0 {
        coverage.add(&item, &Site::default());
    }
    coverage
}

#[test]
fn coverage_is_that_of_the_table() {
    let site = Site::default();
    let joe = site.key_of_user(b"joe");
    let jim = site.key_of_user(b"jim");
    let shared = UserKey::shared();

    let c =
        coverage("APPEND user.a\nDOUBLEMAILBOX user.b user.c\nRENAME user.d user.e\nUSER joe\n");
    for name in ["user.a", "user.b", "user.c", "user.d", "user.e"] {
        assert!(
            c.covers_mailbox(name.as_bytes(), &site.key_of_mailbox(name.as_bytes())),
            "{name}"
        );
    }
    assert!(c.covers_mailbox(b"user.joe.any", &joe));
    assert!(!c.covers_mailbox(b"user.jim", &jim));
    assert!(!c.covers_mailbox(b"shared", &shared));
    assert!(c.covers_user(&joe) && !c.covers_user(&jim) && !c.covers_user(&shared));
    assert!(c.covers_seen(b"joe", b"id", &joe) && !c.covers_seen(b"jim", b"id", &jim));
    assert!(c.covers_sub(b"joe", b"x", &joe));

    let c = coverage("SEEN joe id\nSUB joe x\nUNSUB joe y\nMETA jim\nQUOTA user.joe\n");
    assert!(c.covers_seen(b"joe", b"id", &joe) && !c.covers_seen(b"joe", b"other", &joe));
    assert!(!c.covers_seen(b"jo", b"eid", &joe));
    assert!(c.covers_sub(b"joe", b"x", &joe) && c.covers_sub(b"joe", b"y", &joe));
    assert!(!c.covers_sub(b"joe", b"id", &joe));
    assert!(c.covers_seen(b"jim", b"any", &jim) && c.covers_sub(b"jim", b"any", &jim));
    assert!(!c.covers_mailbox(b"user.jim", &jim) && !c.covers_mailbox(b"user.joe", &joe));
    assert!(coverage("SIEVE jim\n").covers_sub(b"jim", b"any", &jim));

    // UNUSER takes the user's lines out of the client's work, wherever it stands.
    let c = coverage("UNUSER joe\nUSER joe\nMETA joe\nSEEN joe id\nSUB joe x\nMAILBOX user.joe\n");
    assert!(!c.covers_user(&joe) && !c.covers_seen(b"joe", b"id", &joe));
    assert!(!c.covers_sub(b"joe", b"x", &joe));
    assert!(!c.covers_mailbox(b"user.joe.sub", &joe) && c.covers_mailbox(b"user.joe", &joe));
    assert!(coverage("QUOTA x\nNOVELTY x\nUSER \"\"\nRENAME x\nSEEN joe\n").is_empty());
}

/// `MAILBOX ` of a full disk and the next imapd's line: clients before 3.4 look at the first name.
#[test]
fn a_second_name_of_a_mailbox_covers_nothing() {
    let site = Site::default();
    for line in ["APPEND APPEND user.b\n", "MAILBOX user.a user.b\n"] {
        let coverage = coverage(line);
        let covers = |name: &[u8]| coverage.covers_mailbox(name, &site.key_of_mailbox(name));
        assert!(!covers(b"user.b"), "{line}");
        assert!(covers(b"APPEND") || covers(b"user.a"), "{line}");
    }
}

#[test]
fn a_million_lines_take_less_than_32_megabytes() {
    let (mut coverage, site) = (Coverage::default(), Site::default());
    let name = |nth: usize| format!("user.u{nth}.folder");
    for nth in 0..1_000_000 {
        let item = Item {
            kind: ItemKind::Mailbox,
            first: name(nth).into(),
            second: None,
        };
        coverage.add(&item, &site);
    }
    assert!(coverage.memory() < 32 << 20, "{}", coverage.memory());
    let shared = UserKey::shared();
    for nth in (0..1_000_000).step_by(997) {
        assert!(coverage.covers_mailbox(name(nth).as_bytes(), &shared));
        assert!(!coverage.covers_mailbox(name(nth + 1_000_000).as_bytes(), &shared));
    }
}
