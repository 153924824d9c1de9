//! What a command means to the scheduler: whom it concerns, whether it changes anything, and which
//! line of the sync log makes the client send it again.

use bytes::Bytes;

use super::queue::Keys;
use crate::protocol::synclog::{Coverage, Line};
use crate::protocol::{Apply, Command, Get, Kind, Site, UserKey};

/// Whom a failure concerns: a user, or one shared mailbox (the shared key is ordered as one, but
/// one bad folder must not stop the others; design.md, promise 2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Subject {
    /// Everything of this user.
    User(UserKey),
    /// This shared mailbox, or the server's own annotations where the name is empty.
    Mailbox(Bytes),
}

/// What kind of work a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Changes nothing; may be repeated on another lane.
    Read,
    /// Changes something; carried as it is.
    Write,
    /// Like `Write`, but only on a lane with nothing in flight.
    Exclusive,
    /// A mailbox update that takes its messages along.
    Unit,
}

/// A command seen by the scheduler.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// For logs and metrics.
    pub(super) verb: &'static str,
    pub(super) class: Class,
    pub(super) keys: Keys,
    pub(super) subjects: Vec<Subject>,
    /// The line that makes the client send this again; `None` where no line does.
    pub(super) line: Option<Line>,
    /// An OK to this command alone does all that the line asks for.
    pub(super) settles: bool,
    /// A write of this kind may be acknowledged early where the run covers it.
    pub(super) coverable: bool,
    /// The names of a GET MAILBOXES.
    pub(super) asks: Vec<Bytes>,
}

impl Subject {
    /// The subject of a mailbox name.
    pub(super) fn of_mailbox(site: &Site, name: &Bytes) -> Self {
        Subject::of(site.key_of_mailbox(name), name)
    }

    /// The subject of a mailbox of this key.
    fn of(key: UserKey, name: &Bytes) -> Self {
        if key.is_shared() {
            Subject::Mailbox(name.clone())
        } else {
            Subject::User(key)
        }
    }

    /// For logs and the admin endpoint.
    pub(super) fn name(&self) -> String {
        match self {
            Subject::User(key) => String::from_utf8_lossy(key.as_bytes()).into_owned(),
            Subject::Mailbox(name) if name.is_empty() => "the server's annotations".into(),
            Subject::Mailbox(name) => String::from_utf8_lossy(name).into_owned(),
        }
    }
}

impl Plan {
    /// The plan for a command that goes to the replica; `None` for what is answered here.
    pub(super) fn of(command: &Command, site: &Site) -> Option<Plan> {
        match &command.kind {
            Kind::Get(get) => Some(of_get(get, site)),
            Kind::Apply(apply) => of_apply(apply, site),
            Kind::Restore { mailbox } => {
                Some(Plan::mailbox("RESTORE", Class::Exclusive, mailbox, site))
            }
            _ => None,
        }
    }

    /// A plan without a line.
    pub(super) fn new(
        verb: &'static str,
        class: Class,
        keys: Keys,
        subjects: Vec<Subject>,
    ) -> Self {
        Plan {
            verb,
            class,
            keys,
            subjects,
            line: None,
            settles: false,
            coverable: false,
            asks: Vec::new(),
        }
    }

    /// A GET MAILBOXES.
    pub(super) fn mailboxes(names: Vec<Bytes>, site: &Site) -> Self {
        let (keys, subjects) = all(&names, site);
        let mut plan = Plan::new("GET MAILBOXES", Class::Read, keys, subjects);
        plan.asks = names;
        plan
    }

    fn mailbox(verb: &'static str, class: Class, name: &Bytes, site: &Site) -> Self {
        let key = site.key_of_mailbox(name);
        let subject = Subject::of(key.clone(), name);
        Plan::new(verb, class, Keys::Of(vec![key]), vec![subject])
    }

    fn user(verb: &'static str, class: Class, user: &Bytes, site: &Site) -> Self {
        let key = site.key_of_user(user);
        Plan::new(
            verb,
            class,
            Keys::Of(vec![key.clone()]),
            vec![Subject::User(key)],
        )
    }

    fn barrier(verb: &'static str, class: Class) -> Self {
        Plan::new(verb, class, Keys::Barrier, Vec::new())
    }

    fn line(mut self, line: Line) -> Self {
        self.line = Some(line);
        self.settles = true;
        self
    }

    /// One of several commands that the line makes the client send: an OK to one says nothing of
    /// the others.
    fn part_of(mut self, line: Line) -> Self {
        self.line = Some(line);
        self
    }

    fn coverable(mut self) -> Self {
        self.coverable = true;
        self
    }
}

fn of_get(get: &Get, site: &Site) -> Plan {
    let read = Class::Read;
    match get {
        Get::User(user) => Plan::user("GET USER", read, user, site),
        Get::Meta(user) => Plan::user("GET META", read, user, site),
        Get::Mailboxes(names) => Plan::mailboxes(names.clone(), site),
        Get::FullMailbox(name) => Plan::mailbox("GET FULLMAILBOX", read, name, site),
        Get::Fetch { mailbox } => Plan::mailbox("GET FETCH", read, mailbox, site),
        Get::Annotation(name) => Plan::mailbox("GET ANNOTATION", read, name, site),
        Get::Quota(root) => Plan::mailbox("GET QUOTA", read, root, site),
        Get::FetchSieve { user } => Plan::user("GET FETCH_SIEVE", read, user, site),
        // It names mailboxes by id alone, so any queued unit may concern it.
        Get::UniqueIds => Plan::barrier("GET UNIQUEIDS", read),
        Get::Other(_) => Plan::barrier("GET other", read),
    }
}

fn of_apply(apply: &Apply, site: &Site) -> Option<Plan> {
    let plan = match apply {
        Apply::Mailbox(mailbox) => {
            let plan = Plan::mailbox("APPLY MAILBOX", Class::Unit, &mailbox.name, site)
                .line(Line::Mailbox(mailbox.name.clone()));
            // The short form carries no version, so nothing would protect a later one from it.
            if mailbox.intermediate {
                plan
            } else {
                plan.coverable()
            }
        }
        Apply::Seen { user, uniqueid } => Plan::user("APPLY SEEN", Class::Write, user, site)
            .line(Line::Seen(user.clone(), uniqueid.clone()))
            .coverable(),
        Apply::Sub { user, mailbox } => Plan::user("APPLY SUB", Class::Write, user, site)
            .line(Line::Sub(user.clone(), mailbox.clone()))
            .coverable(),
        Apply::Unsub { user, mailbox } => Plan::user("APPLY UNSUB", Class::Write, user, site)
            .line(Line::Sub(user.clone(), mailbox.clone()))
            .coverable(),
        Apply::Expunge { mailbox } => Plan::mailbox("APPLY EXPUNGE", Class::Write, mailbox, site)
            .part_of(Line::Mailbox(mailbox.clone())),
        Apply::Rename { old, new } => {
            let (keys, subjects) = all(&[old.clone(), new.clone()], site);
            Plan::new("APPLY RENAME", Class::Exclusive, keys, subjects)
        }
        Apply::Unmailbox(name) => Plan::mailbox("APPLY UNMAILBOX", Class::Exclusive, name, site)
            .line(Line::Unmailbox(name.clone())),
        Apply::Unuser(user) => Plan::user("APPLY UNUSER", Class::Exclusive, user, site)
            .line(Line::Unuser(user.clone())),
        Apply::Quota { root } => {
            Plan::mailbox("APPLY QUOTA", Class::Write, root, site).line(Line::Quota(root.clone()))
        }
        Apply::Unquota { root } => {
            Plan::mailbox("APPLY UNQUOTA", Class::Write, root, site).line(Line::Quota(root.clone()))
        }
        Apply::Annotation { mailbox, .. } => {
            Plan::mailbox("APPLY ANNOTATION", Class::Write, mailbox, site)
                .part_of(Line::Annotation(mailbox.clone()))
        }
        Apply::Sieve { user, .. } => {
            Plan::user("APPLY SIEVE", Class::Write, user, site).part_of(Line::Meta(user.clone()))
        }
        Apply::Other(_) => Plan::barrier("APPLY other", Class::Exclusive),
        Apply::Message { .. } | Apply::Reserve { .. } | Apply::Force | Apply::Capabilities(_) => {
            return None;
        }
    };
    Some(plan)
}

/// The keys and subjects of several names, each once, in order of appearance.
pub(super) fn all(names: &[Bytes], site: &Site) -> (Keys, Vec<Subject>) {
    let mut seen = hashbrown::HashSet::new();
    let mut list = Vec::new();
    let mut whom = Vec::new();
    let mut shared = false;
    for name in names {
        let key = site.key_of_mailbox(name);
        let subject = Subject::of(key.clone(), name);
        // In most commands there is one.
        if names.len() > 1 && !seen.insert(subject.clone()) {
            continue;
        }
        // A user is one subject; all shared mailboxes have one key.
        if !key.is_shared() || !std::mem::replace(&mut shared, true) {
            list.push(key);
        }
        whom.push(subject);
    }
    (Keys::Of(list), whom)
}

/// Whether the run names what makes the client send this line's command again (the table in
/// design.md, "The one rule of fan-out").
pub(super) fn covered(line: &Line, coverage: &Coverage, site: &Site) -> bool {
    match line {
        Line::Mailbox(name) => coverage.covers_mailbox(name, &site.key_of_mailbox(name)),
        Line::Seen(user, uniqueid) => coverage.covers_seen(user, uniqueid, &site.key_of_user(user)),
        Line::Sub(user, name) => coverage.covers_sub(user, name, &site.key_of_user(user)),
        Line::User(user) => coverage.covers_user(&site.key_of_user(user)),
        _ => false,
    }
}
