//! One connection from a client: what it has staged, what it is in the middle of, and what its
//! answer waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use super::commit::Commit;
use super::event::{Identity, Mode, Pool, RunId};
use super::known::{Doubt, State};
use super::plan::{Plan, Subject};
use super::staging::Staging;
use crate::protocol::synclog::Line;
use crate::protocol::{Apply, Body, Command, Get, Kind, Reply, Site, UserKey};

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) mode: Mode,
    /// It came by the rolling client's listener.
    pub(super) rolling: bool,
    /// The client says what it believes of the replica (SINCE_MODSEQ, 3.2 and later).
    pub(super) since: bool,
    pub(super) pool: Pool,
    pub(super) staging: Staging,
    pub(super) group: Group,
    /// Where somebody waits: how long by now.
    pub(super) commit: Commit,
    pub(super) pending: Option<Pending>,
    /// What the client writes to by what it was told from known state, and what a refusal may make
    /// it forget. Only in strict mode, where it gets the replica's own answer.
    pub(super) acting: Vec<(Bytes, Doubt)>,
    /// Since when the pending command waits for what was asked ahead.
    pub(super) ahead_since: Option<Duration>,
    /// When it logged in.
    pub(super) opened: Duration,
    /// When the pending command came.
    pub(super) arrived: Duration,
    /// As much of what is noted of it is in the sum over all sessions.
    pub(super) counted: u64,
    /// Units acknowledged to this session and not confirmed.
    pub(super) unconfirmed: usize,
    /// The client has a cache of its own: nothing is acknowledged early any more.
    pub(super) has_cache: bool,
    /// The last command came while there was a `log-run`, so this may be the rolling client.
    pub(super) under_run: bool,
}

/// What the client has asked about since its last RESTART, which tells what it is doing
/// (`sync_do_reader`, `sync_do_user` and `do_folders` in Cyrus's `sync_support.c`).
#[derive(Debug, Default)]
pub(super) struct Group {
    /// GET USER: a USER sync, in which any refusal ends the client.
    pub(super) user: Option<(Bytes, UserKey)>,
    /// GET USER was answered as if the replica had nothing.
    pub(super) user_left_alone: bool,
    /// GET MAILBOXES was answered as if the replica had none of these.
    pub(super) left_alone: Names,
    /// The names of GET MAILBOXES.
    pub(super) names: Names,
    /// Their users.
    pub(super) keys: HashSet<UserKey>,
    /// There were too many of both to keep them.
    pub(super) countless: bool,
    /// GET FULLMAILBOX was answered for these: the client's own repair has run.
    pub(super) full: Names,
    /// IMAP_SYNC_CHECKSUM was handed on for these.
    pub(super) checksums: Names,
    /// What was answered from known state, and for which nothing was sent yet.
    pub(super) told: BTreeMap<Bytes, Doubt>,
}

/// Names, and what they cost in memory.
#[derive(Debug, Default)]
pub(super) struct Names {
    set: HashSet<Bytes>,
    noted: u64,
}

/// What a name costs in memory beside its bytes: it and its user, in a set each.
const NAME: u64 = 256;

impl Names {
    /// Whether it is new.
    pub(super) fn insert(&mut self, name: Bytes) -> bool {
        let cost = name.len() as u64 + NAME;
        let new = self.set.insert(name);
        self.noted += if new { cost } else { 0 };
        new
    }

    pub(super) fn remove(&mut self, name: &Bytes) {
        if self.set.remove(name) {
            self.noted -= name.len() as u64 + NAME;
        }
    }

    pub(super) fn contains(&self, name: &Bytes) -> bool {
        self.set.contains(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }
}

/// What an answer waits for.
#[derive(Debug)]
pub(super) enum Pending {
    /// Answers of the replica.
    Jobs(Waiting),
    /// The run that this command came under is being linked.
    Cover {
        command: Command,
        plan: Plan,
        run: RunId,
    },
    /// An answer that was asked for ahead is under way.
    Ahead {
        command: Command,
        plan: Plan,
        run: Option<RunId>,
    },
    /// There is no room for another unconfirmed unit.
    Room {
        command: Command,
        plan: Plan,
        run: RunId,
    },
    /// A lane of the session's pool, to know what the replica enables.
    Enabled,
    /// A lane on which FORCE was said.
    Forced,
    /// Lines must be durable before this answer goes out.
    Durable {
        lines: usize,
        body: Body,
        outcome: &'static str,
        verb: &'static str,
    },
    /// Everything that was acknowledged to this session, for EXIT.
    Exit,
}

/// A command that was split into one or more jobs.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) plan: Plan,
    pub(super) command: Asked,
    /// One answer for each job.
    pub(super) parts: Vec<Option<Reply>>,
    /// How many of them have not come.
    pub(super) missing: usize,
    /// Bytes of memory of those that have.
    pub(super) held: u64,
    /// For a GET MAILBOXES over many users: the names in the order asked, each with its part.
    pub(super) order: Vec<(Bytes, usize)>,
}

impl Waiting {
    /// So many answers are to come.
    pub(super) fn new(
        plan: Plan,
        command: Asked,
        missing: usize,
        order: Vec<(Bytes, usize)>,
    ) -> Self {
        Waiting {
            plan,
            command,
            parts: (0..missing).map(|_| None).collect(),
            missing,
            held: 0,
            order,
        }
    }
}

/// What is still to be known of a command after it went out.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    /// GET MAILBOXES
    Mailboxes(AskedMailboxes),
    /// GET FULLMAILBOX, or GET FETCH for what it showed.
    FullMailbox(Bytes),
    /// GET USER
    User,
    /// APPLY RESERVE, made real.
    Reserve,
    /// APPLY MAILBOX
    Mailbox(Bytes),
    /// APPLY RENAME: the old name and the new one.
    Rename([Bytes; 2]),
    /// UNMAILBOX, UNUSER: a refusal ends the client's run.
    Removal,
    /// Annotations, quotas: likewise. The client promotes them to USER of nobody (`GET USER NIL`)
    /// and does not survive the answer.
    Fatal,
    /// SEEN, SUB, sieve, GET META: LOCKED would stick.
    Never,
    /// Anything else.
    Other,
}

/// A GET MAILBOXES, as far as it goes to the replica.
#[derive(Clone, Debug, Default)]
pub(super) struct AskedMailboxes {
    /// The names, in the order asked.
    pub(super) names: Vec<Bytes>,
    /// Names that the client asked for too, and that are left alone.
    pub(super) left_out: Vec<Bytes>,
    /// What need not be asked, in order.
    pub(super) known: Vec<(Bytes, State)>,
    /// Each name is asked for by itself, to find out whom the replica refuses.
    pub(super) singly: bool,
}

impl Asked {
    /// What it was that a client sent.
    pub(super) fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Get(Get::Mailboxes(names)) => Asked::Mailboxes(AskedMailboxes {
                names: names.clone(),
                ..AskedMailboxes::default()
            }),
            Kind::Get(Get::FullMailbox(name) | Get::Fetch { mailbox: name }) => {
                Asked::FullMailbox(name.clone())
            }
            Kind::Get(Get::User(_)) => Asked::User,
            Kind::Get(Get::Meta(_)) => Asked::Never,
            Kind::Apply(Apply::Mailbox(mailbox)) => Asked::Mailbox(mailbox.name.clone()),
            Kind::Apply(Apply::Rename { old, new }) => Asked::Rename([old.clone(), new.clone()]),
            Kind::Apply(Apply::Unmailbox(_) | Apply::Unuser(_)) => Asked::Removal,
            Kind::Apply(Apply::Annotation { .. } | Apply::Quota { .. } | Apply::Unquota { .. }) => {
                Asked::Fatal
            }
            Kind::Apply(
                Apply::Seen { .. } | Apply::Sub { .. } | Apply::Unsub { .. } | Apply::Sieve { .. },
            ) => Asked::Never,
            _ => Asked::Other,
        }
    }
}

impl Session {
    /// A session that has just logged in.
    pub(super) fn new(mode: Mode, rolling: bool, identity: Identity, now: Duration) -> Self {
        Session {
            mode,
            rolling,
            since: false,
            pool: Pool {
                identity,
                capabilities: Vec::new(),
                force: None,
            },
            staging: Staging::default(),
            group: Group::default(),
            commit: Commit::default(),
            pending: None,
            acting: Vec::new(),
            ahead_since: None,
            opened: now,
            arrived: now,
            counted: 0,
            unconfirmed: 0,
            has_cache: false,
            under_run: false,
        }
    }

    /// Whether writes of this session may be acknowledged early at all.
    pub(super) fn fans_out(&self) -> bool {
        self.mode == Mode::FanOut && !self.has_cache
    }

    /// Bytes of memory of the parts of an answer that others are still to come for.
    pub(super) fn partial_answer(&self) -> u64 {
        match &self.pending {
            Some(Pending::Jobs(waiting)) => waiting.held,
            _ => 0,
        }
    }

    /// What is noted of it until RESTART costs so much memory, about: all but the content of
    /// messages.
    pub(super) fn noted(&self) -> u64 {
        let group = &self.group;
        let names = [
            &group.left_alone,
            &group.names,
            &group.full,
            &group.checksums,
        ];
        self.staging.noted() + names.iter().map(|names| names.noted).sum::<u64>()
    }

    /// Forgets what it can do without: more is asked of the replica then, and a refusal is taken
    /// to concern others.
    pub(super) fn forget(&mut self) {
        self.staging.forget_reserved();
        if self.mode == Mode::RightNow {
            // Nobody else knows what this client is at.
            return;
        }
        let group = &mut self.group;
        group.countless |= !group.names.is_empty();
        group.names = Names::default();
        group.keys = HashSet::new();
        // The replica's next IMAP_SYNC_CHECKSUM counts as the first one again.
        group.full = Names::default();
        group.checksums = Names::default();
    }
}

impl Group {
    /// GET MAILBOXES: a group of mailboxes begins, or is looked at again. Who is left alone is
    /// found out anew: not every client says RESTART between two runs.
    pub(super) fn asked_mailboxes(&mut self, names: &[Bytes], site: &Site) {
        for name in names {
            self.left_alone.remove(name);
            self.names.insert(name.clone());
            self.keys.insert(site.key_of_mailbox(name));
        }
    }

    /// The lines of what the client writes back by itself when one of its group is locked: of the
    /// mailboxes that it asked about, and of the one that is locked. Where they are not known any
    /// more the whole user's.
    pub(super) fn deferred(&self, asked: &Asked, site: &Site) -> Vec<(Subject, Line)> {
        let own = match asked {
            Asked::Mailboxes(asked) => &asked.names[..],
            Asked::FullMailbox(name) | Asked::Mailbox(name) => std::slice::from_ref(name),
            Asked::Rename(names) => &names[..],
            _ => &[],
        };
        let mut lines = BTreeSet::new();
        for name in self.names.set.iter().chain(own) {
            let subject = Subject::of_mailbox(site, name);
            if let (true, Subject::User(key)) = (self.countless, &subject) {
                let user = Bytes::copy_from_slice(key.as_bytes());
                lines.insert((subject.clone(), Line::User(user)));
            }
            lines.insert((subject, Line::Mailbox(name.clone())));
        }
        lines.retain(|(_, line)| line.check().is_ok());
        lines.into_iter().collect()
    }

    /// Whether the client has asked the replica nothing that it could go on.
    pub(super) fn asked_nothing(&self) -> bool {
        self.names.is_empty() && !self.countless && self.user.is_none()
    }

    /// Whether the client asked the replica about this mailbox before it sends an update of it. A
    /// client that did not has the replica's state from a cache of its own.
    pub(super) fn asked_about(&self, name: &Bytes, site: &Site) -> bool {
        let key = || site.key_of_mailbox(name);
        self.countless
            || self.names.contains(name)
            || self.user.as_ref().is_some_and(|(_, user)| *user == key())
    }

    /// Whether one refusal of this subject would fail others with it: the group spans shared
    /// mailboxes or several users (`do_mailboxes` in `sync_support.c`).
    pub(super) fn concerns_others(&self, subjects: &[Subject]) -> bool {
        self.countless
            || self.keys.len() > 1
            || self.keys.iter().any(UserKey::is_shared)
            || subjects
                .iter()
                .any(|subject| matches!(subject, Subject::Mailbox(_)))
    }
}
