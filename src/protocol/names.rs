//! Mailbox names and userids to user keys, as Cyrus does it (`mbname_from_intname` and
//! `mboxname_to_userid` in `mboxname.c`), and the settings of imapd.conf that this depends on.

use bytes::Bytes;

/// What commands are ordered by: the userid of the owner, or the shared key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey(Bytes);

/// How this site names things; read from imapd.conf or set in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `unixhierarchysep`: userids may hold dots, written `^` in mailbox names. Cyrus 3.x reads
    /// `^` as a dot in internal names whatever this says, and so do the keys.
    pub unixhierarchysep: bool,
    /// `virtdomains` is `userid` or `on`: names carry a domain. Cyrus looks for `!` and `@` in
    /// names whatever this says, and so do the keys.
    pub virtdomains: bool,
    /// `defaultdomain`: this domain is left out of userids.
    pub defaultdomain: Option<String>,
    /// `deletedprefix`, `DELETED` in Cyrus.
    pub deletedprefix: String,
}

impl UserKey {
    /// The key of everything without an owner.
    #[must_use]
    pub fn shared() -> Self {
        UserKey(Bytes::new())
    }

    /// Whether it is that one.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.is_empty()
    }

    /// The userid, without the default domain; empty for the shared key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for UserKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_shared() {
            return f.write_str("(shared)");
        }
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl Default for Site {
    /// The defaults of Cyrus 3.0 and later (`imapoptions`: `unixhierarchysep: yes`,
    /// `virtdomains: off`, `defaultdomain: internal`, `deletedprefix: DELETED`). 2.5 has
    /// `unixhierarchysep: no` and no default domain, which makes no difference to the keys of
    /// names without a domain.
    fn default() -> Self {
        Site {
            unixhierarchysep: true,
            virtdomains: false,
            defaultdomain: Some("internal".into()),
            deletedprefix: "DELETED".into(),
        }
    }
}

impl Site {
    /// Reads the settings from the text of an imapd.conf; those that are not there have the
    /// defaults. `@include:` is not followed and settings for one service (`sync_client_...`) are
    /// not looked at.
    #[must_use]
    pub fn from_imapd_conf(text: &str) -> Self {
        let mut site = Site::default();
        if let Some(on) = imapd_conf_switch(text, "unixhierarchysep") {
            site.unixhierarchysep = on;
        }
        if let Some(value) = imapd_conf_value(text, "virtdomains") {
            // An enumeration whose values for a switch are `on` and `off` (`config_read_file`).
            site.virtdomains = matches!(&value[..], "userid" | "on" | "1" | "yes" | "t" | "true");
        }
        if let Some(domain) = imapd_conf_value(text, "defaultdomain") {
            site.defaultdomain = Some(domain);
        }
        if let Some(prefix) = imapd_conf_value(text, "deletedprefix") {
            site.deletedprefix = prefix;
        }
        site
    }

    /// The key of a mailbox by its internal name, also of a quota root: `user.joe^dot.sub`,
    /// `example.com!user.joe`, `DELETED.user.joe.sub.6B0526F9`.
    ///
    /// As in `mbname_from_intname`: the domain ends at the first `!`, empty parts between dots do
    /// not count (`strtok`), a deleted name has at least three parts of which the last is the
    /// time.
    #[must_use]
    pub fn key_of_mailbox(&self, name: &[u8]) -> UserKey {
        let (domain, local) = match memchr::memchr(b'!', name) {
            Some(at) => (Some(&name[..at]), &name[at + 1..]),
            None => (None, name),
        };
        let parts = || local.split(|&byte| byte == b'.').filter(|p| !p.is_empty());
        let mut count = parts().count();
        let mut rest = parts();
        let mut first = rest.next();
        if count > 2 && first.is_some_and(|part| self.is_deletedprefix(part)) {
            count -= 2;
            first = rest.next();
        }
        match (first, rest.next()) {
            (Some(b"user"), Some(user)) if count > 1 => self.key(user, domain),
            _ => UserKey::shared(),
        }
    }

    /// The key of a userid: `joe.dot@example.com`. The domain begins at the last `@`
    /// (`mbname_from_userid`).
    #[must_use]
    pub fn key_of_user(&self, userid: &[u8]) -> UserKey {
        match memchr::memrchr(b'@', userid) {
            Some(at) => self.key(&userid[..at], Some(&userid[at + 1..])),
            None => self.key(userid, None),
        }
    }

    fn key(&self, local: &[u8], domain: Option<&[u8]>) -> UserKey {
        if local.is_empty() {
            return UserKey::shared();
        }
        let mut key = Vec::with_capacity(local.len() + 1 + domain.map_or(0, <[u8]>::len));
        let dotted = local
            .iter()
            .map(|&byte| if byte == b'^' { b'.' } else { byte });
        key.extend(dotted);
        let default = self.defaultdomain.as_deref().unwrap_or_default().as_bytes();
        if let Some(domain) = domain.filter(|domain| !domain.is_empty() && *domain != default) {
            key.push(b'@');
            key.extend_from_slice(domain);
        }
        UserKey(key.into())
    }

    /// Compared after `^` was read as a dot (`_array_from_intname`).
    fn is_deletedprefix(&self, part: &[u8]) -> bool {
        let prefix = self.deletedprefix.as_bytes();
        let dot = |byte: u8| if byte == b'^' { b'.' } else { byte };
        part.len() == prefix.len() && part.iter().zip(prefix).all(|(a, b)| dot(*a) == *b)
    }
}

/// The value of a setting in the text of an imapd.conf, as `config_read_file` in Cyrus's
/// `libconfig.c` reads it: names in any case, `#` comments, white space around the value left
/// out, a backslash at the end of a line joins it with the next. The first one counts (Cyrus
/// refuses a second). `@include:` is not followed.
#[must_use]
pub fn imapd_conf_value(text: &str, key: &str) -> Option<String> {
    let mut joined = String::new();
    for line in text.lines() {
        if let Some(begun) = line.strip_suffix('\\') {
            joined.push_str(begun);
            continue;
        }
        joined.push_str(line);
        let whole = std::mem::take(&mut joined);
        if let Some(value) = setting(&whole, key) {
            return Some(value);
        }
    }
    setting(&joined, key)
}

fn setting(line: &str, key: &str) -> Option<String> {
    let line = line.trim_ascii();
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once(':')?;
    let value = value.trim_ascii();
    (name.eq_ignore_ascii_case(key) && !value.is_empty()).then(|| value.to_owned())
}

/// The value of a switch: `None` where it is not set or not a switch (`config_parse_switch` in
/// Cyrus's `libconfig.c`, which looks at the first letters only).
#[must_use]
pub fn imapd_conf_switch(text: &str, key: &str) -> Option<bool> {
    match imapd_conf_value(text, key)?.as_bytes() {
        [b'0' | b'n' | b'f', ..] | [b'o', b'f', ..] => Some(false),
        [b'1' | b'y' | b't', ..] | [b'o', b'n', ..] => Some(true),
        _ => None,
    }
}

/// All settings whose name begins with `prefix`, as `(name in lower case, value)`, in order:
/// `imapd_conf_all(text, "partition-")`.
#[must_use]
pub fn imapd_conf_all(text: &str, prefix: &str) -> Vec<(String, String)> {
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.trim_ascii().split_once(':')?;
        let name = name.to_ascii_lowercase();
        name.starts_with(&prefix.to_ascii_lowercase())
            .then_some(name)
    });
    names
        .filter_map(|name| imapd_conf_value(text, &name).map(|value| (name, value)))
        .collect()
}
