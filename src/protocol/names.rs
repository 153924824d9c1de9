//! Mailbox names and userids to user keys, as Cyrus does it (`mboxname_to_userid` in
//! `mboxname.c`).

use bytes::Bytes;

/// What commands are ordered by: the userid of the owner, or the shared key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey(Bytes);

/// How this site names things; read from imapd.conf or set in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `unixhierarchysep`: userids may hold dots, written `^` in mailbox names.
    pub unixhierarchysep: bool,
    /// `virtdomains` is `userid` or `on`: names carry a domain.
    pub virtdomains: bool,
    /// `defaultdomain`: this domain is left out of userids.
    pub defaultdomain: Option<String>,
    /// `deletedprefix`, `DELETED` in Cyrus.
    pub deletedprefix: String,
}
