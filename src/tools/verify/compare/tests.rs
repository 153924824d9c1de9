#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::protocol::dlist::parse;

fn said(lines: &[&str]) -> Said {
    let parsed = lines
        .iter()
        .map(|line| parse(format!("{line}\r\n").into()).unwrap());
    Ok(parsed.collect())
}

const INBOX: &str = "MAILBOX %(UNIQUEID a MBOXNAME user.joe SYNC_CRC 5 LAST_UID 3 \
    HIGHESTMODSEQ 9 UIDVALIDITY 7 ACL \"joe\tlrs\t\" OPTIONS P)";

#[test]
fn the_same() {
    let one = said(&[
        INBOX,
        "LSUB (user.a user.b)",
        "QUOTA %(ROOT user.joe STORAGE 5 MODSEQ 3)",
    ]);
    let other = said(&[
        "LSUB (user.b user.a)",
        "QUOTA %(ROOT user.joe STORAGE 5 MODSEQ 4)",
        // An older end says less; the other one has cleaned up.
        &INBOX.replace(" OPTIONS P", ""),
        "MAILBOX %(MBOXNAME DELETED.user.joe.x.65000000 UNIQUEID b)",
    ]);
    let none = Vec::<String>::new();
    assert_eq!(users(&one, &other, &Site::default()), none);
    assert_eq!(unlike_mailboxes(&one, &other).len(), 0);
}

#[test]
fn what_differs() {
    let ours = said(&[
        INBOX,
        "MAILBOX %(MBOXNAME user.joe.x UNIQUEID c)",
        "LSUB (user.a)",
        "SEEN %(UNIQUEID a LASTUID 3 SEENUIDS 1:3)",
    ]);
    let theirs = said(&[
        &INBOX.replace("SYNC_CRC 5", "SYNC_CRC 6"),
        "SEEN %(UNIQUEID a LASTUID 3 SEENUIDS \"\")",
        "SIEVE %(FILENAME s.script GUID 00 ISACTIVE 1)",
    ]);
    assert_eq!(
        users(&ours, &theirs, &Site::default()),
        [
            "mailbox user.joe: SYNC_CRC is 5 on the master and 6 on the replica",
            "mailbox user.joe.x: only on the master",
            "sieve script s.script: only on the replica",
            "subscription to user.a: only on the master",
            "what is seen of a: SEENUIDS is 1:3 on the master and empty on the replica",
        ]
    );
    assert_eq!(unlike_mailboxes(&ours, &theirs), ["user.joe"]);
}

#[test]
fn refusals_and_nobody() {
    let refused: Said = Err(Untold::Refused(
        "NO IMAP_IOERROR System I/O error".to_owned(),
    ));
    let found = users(&said(&[INBOX]), &refused, &Site::default());
    assert_eq!(
        found,
        ["the replica refuses to tell: NO IMAP_IOERROR System I/O error"]
    );
    let nobody = users(&said(&[]), &said(&[]), &Site::default());
    assert_eq!(nobody, ["neither end has such a user"]);
}

/// What is found where the other end says this.
fn between(ours: &[&str], theirs: &[&str]) -> Vec<String> {
    users(&said(ours), &said(theirs), &Site::default())
}

#[test]
fn a_limit_at_one_end_only() {
    let storage = "QUOTA %(ROOT user.joe LIMIT 5 STORAGE 5 MODSEQ 3)";
    let more = "QUOTA %(ROOT user.joe LIMIT 5 STORAGE 5 MESSAGE 7 MODSEQ 3)";
    let is = |a: &str, b: &str| {
        format!("quota of user.joe: MESSAGE is {a} on the master and {b} on the replica")
    };
    assert_eq!(between(&[storage], &[more]), [is("none", "7")]);
    assert_eq!(between(&[more], &[storage]), [is("7", "none")]);
    let older = "QUOTA %(ROOT user.joe X-NUM-FOLDERS 5)";
    let newer = "QUOTA %(ROOT user.joe MAILBOX 5 X-NUM-FOLDERS 5)";
    assert_eq!(between(&[older], &[newer]).len(), 0);
}

#[test]
fn what_stands_behind_the_first_kilobytes_counts() {
    let seen = |end: &str| {
        let uids = format!("{}{end}", "1,".repeat(8_000));
        format!("SEEN %(UNIQUEID a LASTUID 9 SEENUIDS {uids})")
    };
    let found = between(&[&seen("3")], &[&seen("4")]);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("what is seen of a: SEENUIDS differs, behind 1,1,"),
        "{found:?}"
    );
    assert!(found[0].len() < 200);
}

#[test]
fn annotations_of_a_mailbox() {
    let with = |annotations: &str| INBOX.replace(" OPTIONS", &format!("{annotations} OPTIONS"));
    let one = |value: &str, modseq: u32| {
        format!("%(ENTRY /comment USERID \"\" MODSEQ {modseq} VALUE {value})")
    };
    let other = "%(ENTRY /check USERID joe MODSEQ 0 VALUE true)";
    let both = with(&format!(" ANNOTATIONS ({} {other})", one("x", 4)));
    let turned = with(&format!(" ANNOTATIONS ({other} {})", one("x", 5)));
    assert_eq!(between(&[&both], &[&turned]).len(), 0);
    assert_eq!(between(&[INBOX], &[&with(" ANNOTATIONS ()")]).len(), 0);
    assert_eq!(
        between(
            &[&both],
            &[&with(&format!(" ANNOTATIONS ({})", one("y", 4)))]
        ),
        [
            "mailbox user.joe: annotation /check of joe: only on the master",
            "mailbox user.joe: annotation /comment: VALUE is x on the master and y on the \
             replica",
        ]
    );
}

#[test]
fn fields_of_newer_servers() {
    for field in ["POP3_SHOW_AFTER", "CREATEDMODSEQ", "FOLDERMODSEQ"] {
        let with = |n| INBOX.replace(" OPTIONS", &format!(" {field} {n} OPTIONS"));
        assert_eq!(between(&[&with(1)], &[INBOX]).len(), 0);
        assert_eq!(
            between(&[&with(1)], &[&with(2)]),
            [format!(
                "mailbox user.joe: {field} is 1 on the master and 2 on the replica"
            )]
        );
    }
}

#[test]
fn fields_that_must_be_there() {
    for field in NEEDED {
        // Another name in its place, that nobody knows.
        let without = INBOX.replace(&format!("{field} "), "X ");
        let found = between(&[INBOX], &[&without]);
        assert!(
            found[0].ends_with("and missing on the replica"),
            "{found:?}"
        );
        let found = between(&[&without], &[&without]);
        let both = format!("mailbox user.joe: {field} is missing at both ends");
        assert_eq!(found, [both]);
    }
}

#[test]
fn lines_that_nobody_knows() {
    let line = "NEWS %(A b)";
    assert_eq!(between(&[INBOX, line], &[line, INBOX]).len(), 0);
    assert_eq!(
        between(&[INBOX], &[INBOX, line]),
        ["a line NEWS (A b): only on the replica"]
    );
    // No name of a mailbox.
    let nameless = between(&[INBOX, "MAILBOX %(A b)"], &[INBOX]);
    assert_eq!(nameless, ["a line MAILBOX (A b): only on the master"]);
    let strange = || vec![(Bytes::new(), Value::Text(Bytes::from("LSUB (user.a\r\n")))];
    let found = users(&Ok(strange()), &Ok(strange()), &Site::default());
    assert_eq!(
        found,
        [
            "a line of the master can't be understood: LSUB (user.a",
            "a line of the replica can't be understood: LSUB (user.a",
        ]
    );
}

#[test]
fn answers_that_are_too_long() {
    let long: Said = Err(Untold::TooLong(9_000_000));
    let what = "the answer of the replica is too long to be compared here: 9000000 bytes";
    assert_eq!(users(&said(&[INBOX]), &long, &Site::default()), [what]);
    assert_eq!(
        messages(&Bytes::from("user.joe"), &said(&[INBOX]), &long),
        [format!("mailbox user.joe: its messages: {what}")]
    );
}

#[test]
fn messages_that_differ() {
    let line = |records: &str| said(&[&format!("MAILBOX %(MBOXNAME user.joe RECORD ({records}))")]);
    let record = |uid: u32, flags: &str| {
        format!(
            "%(UID {uid} MODSEQ {} FLAGS ({flags}) GUID 0{uid})",
            uid + 10
        )
    };
    let ours = [
        record(1, "\\Seen x"),
        record(2, ""),
        record(3, ""),
        record(4, "\\Expunged"),
    ];
    let theirs = [record(1, "x \\seen"), record(2, "\\Seen"), record(5, "")];
    let (ours, theirs) = (line(&ours.join(" ")), line(&theirs.join(" ")));
    let name = Bytes::from("user.joe");
    assert_eq!(
        messages(&name, &ours, &theirs),
        [
            "mailbox user.joe: message 2: FLAGS is () on the master and (\\seen) on the replica",
            "mailbox user.joe: message 3: only on the master (modseq 13)",
            "mailbox user.joe: message 5: only on the replica (modseq 15)",
        ]
    );
    let many: Vec<String> = (1..100).map(|uid| record(uid, "")).collect();
    let found = messages(&name, &line(&many.join(" ")), &line(""));
    assert_eq!(found.len(), 11);
    assert_eq!(found[10], "mailbox user.joe: and 89 more messages");
}
