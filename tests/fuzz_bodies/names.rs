//! Mailbox names and userids: a user's mailboxes, his deleted ones and his userid have one key.
//!
//! The rest of an input is `userid LF folder LF imapd.conf`.

use syncmux::protocol::Site;
use syncmux::protocol::names::{imapd_conf_all, imapd_conf_switch};

use super::split;

const DOTS: u8 = 1;
const DOMAINS: u8 = 2;
const DEFAULT_DOMAIN: u8 = 4;
const OTHER_PREFIX: u8 = 8;

pub fn run(data: &[u8]) {
    let Some((flags, _, rest)) = split(data) else {
        return;
    };
    let site = Site {
        unixhierarchysep: flags & DOTS != 0,
        virtdomains: flags & DOMAINS != 0,
        defaultdomain: (flags & DEFAULT_DOMAIN != 0).then(|| "example.com".to_owned()),
        deletedprefix: if flags & OTHER_PREFIX != 0 {
            "gone.by".to_owned()
        } else {
            "DELETED".to_owned()
        },
    };
    let mut parts = rest.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (userid, folder, conf) = (part(), part(), part());
    any_bytes(&site, rest);
    any_bytes(&site, userid);
    one_user_has_one_key(&site, userid, folder);
    let conf = String::from_utf8_lossy(conf);
    any_bytes(&Site::from_imapd_conf(&conf), userid);
    let _ = imapd_conf_all(&conf, "partition-");
    let _ = imapd_conf_switch(&conf, "virtdomains");
}

fn any_bytes(site: &Site, name: &[u8]) {
    let _ = site.key_of_user(name).to_string();
    let key = site.key_of_mailbox(name);
    assert!(key.as_bytes().len() <= name.len() + 1);
    // A key is the userid that it came from (but for domains that hold an `@`, which none do).
    // Nor does the rest of a userid, which would then read as one with a domain.
    let ats = key.as_bytes().iter().filter(|byte| **byte == b'@').count();
    let domain = memchr::memchr(b'!', name).map_or(&b""[..], |at| &name[..at]);
    let ordinary = ats == 0 || (ats == 1 && key.as_bytes().ends_with(&[b"@", domain].concat()));
    let ordinary = ordinary && !(ats == 1 && domain.is_empty());
    if !key.is_shared() && ordinary {
        assert_eq!(site.key_of_user(key.as_bytes()), key);
    }
}

/// Builds names as Cyrus does (`mbname_intname` in `mboxname.c`).
fn one_user_has_one_key(site: &Site, userid: &[u8], folder: &[u8]) {
    let (local, domain) = match userid.iter().rposition(|byte| *byte == b'@') {
        Some(at) => (&userid[..at], &userid[at + 1..]),
        None => (userid, &b""[..]),
    };
    // What no userid holds: it would be another name.
    let bad = |byte: &u8| matches!(*byte, b'!' | 0);
    if local.is_empty() || userid.iter().any(bad) || folder.iter().any(bad) {
        return;
    }
    let key = site.key_of_user(userid);
    assert!(!key.is_shared());
    let local: Vec<u8> = local
        .iter()
        .map(|byte| if *byte == b'.' { b'^' } else { *byte })
        .collect();
    let prefix: Vec<u8> = match domain {
        b"" => Vec::new(),
        domain => [domain, b"!"].concat(),
    };
    let deleted = site.deletedprefix.replace('.', "^");
    let inbox = [&prefix, &b"user."[..], &local].concat();
    let below = [&inbox, &b"."[..], folder].concat();
    let gone = |name: &[u8]| {
        let name = &name[prefix.len()..];
        [&prefix, deleted.as_bytes(), b".", name, b".6B0526F9"].concat()
    };
    for name in [&inbox, &below, &gone(&inbox), &gone(&below)] {
        let found = site.key_of_mailbox(name);
        assert_eq!(found, key, "{}", name.escape_ascii());
    }
}
