//! What an imapd's session is in the middle of: where one commit ends and the next one begins, and
//! the lines that bring back what the replica has not got of it (see [`super::rightnow`]).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashSet;

use super::event::Mode;
use super::plan::Plan;
use super::session::{Asked, Session};
use crate::protocol::synclog::Line;
use crate::protocol::{Apply, Get, Kind, Site};

/// What comes after so long a silence belongs to another commit.
pub(super) const QUIET: Duration = Duration::from_secs(1);

/// The users of a commit that are noted; a message goes to more only by LMTP.
const USERS: usize = 100;

/// No commit says more outside of groups: beyond it another one has begun.
const LINES: usize = 1000;

/// A commit, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Commit {
    /// How long its commands have waited for the replica.
    pub(super) waited: Duration,
    /// When the pending command is answered in any case.
    pub(super) until: Option<Duration>,
    /// Until then it waits for the disk, and not for the replica.
    pub(super) on_disk: bool,
    /// When the last command was answered.
    pub(super) answered: Duration,
    /// There was a RESTART, or something that belongs to no group, so that the next group of
    /// mailboxes is another commit's.
    group_over: bool,
    /// GET META of this user: what follows is part of it.
    meta: Option<Bytes>,
    /// What was sent for no group. No commit says the same twice.
    lines: HashSet<Line>,
    /// Whose mailboxes it is about.
    pub(super) users: BTreeSet<Bytes>,
}

impl Session {
    /// Whether a commit has begun that is not over, as far as that can be seen.
    pub(super) fn in_the_middle(&self) -> bool {
        self.mode == Mode::RightNow && !self.group.asked_nothing()
    }

    /// The client has said RESTART.
    pub(super) fn group_is_over(&mut self) {
        self.commit.group_over = true;
    }

    /// A command comes: does it belong to the same commit as the last one? (`sync_do_reader`: the
    /// mailboxes of each user, RESTART, then what belongs to no group, each once.)
    pub(super) fn commit_goes_on(
        &mut self,
        kind: &Kind,
        line: Option<&Line>,
        now: Duration,
        site: &Site,
    ) {
        let commit = &mut self.commit;
        let outside = self.group.asked_nothing();
        let of_group = matches!(
            kind,
            Kind::Get(Get::Mailboxes(_)) | Kind::Apply(Apply::Mailbox(_) | Apply::Reserve { .. })
        );
        let line = line.filter(|_| outside && !of_group).cloned();
        let quiet = now.saturating_sub(commit.answered) >= QUIET;
        let next_group = outside && of_group && commit.group_over;
        let again = line
            .as_ref()
            .is_some_and(|line| commit.lines.contains(line));
        if quiet || next_group || again || commit.lines.len() >= LINES {
            *commit = Commit {
                answered: commit.answered,
                ..Commit::default()
            };
        }
        if outside && of_group {
            commit.group_over = false;
        } else if let Some(line) = line {
            commit.group_over = true;
            commit.lines.insert(line);
        }
        let names: &[Bytes] = match kind {
            Kind::Get(Get::Mailboxes(names))
            | Kind::Apply(Apply::Reserve {
                mailboxes: names, ..
            }) => names,
            Kind::Apply(Apply::Mailbox(mailbox)) => std::slice::from_ref(&mailbox.name),
            _ => &[],
        };
        for name in names {
            let key = site.key_of_mailbox(name);
            if !key.is_shared() && commit.users.len() < USERS {
                commit.users.insert(Bytes::copy_from_slice(key.as_bytes()));
            }
        }
        match kind {
            Kind::Get(Get::Meta(user)) => commit.meta = Some(user.clone()),
            Kind::Apply(
                Apply::Seen { .. } | Apply::Sub { .. } | Apply::Unsub { .. } | Apply::Sieve { .. },
            ) => {}
            _ => commit.meta = None,
        }
    }

    /// An imapd with a cache of its own does not ask, and says by RESERVE which mailboxes it is at.
    pub(super) fn commit_reserves(&mut self, kind: &Kind, now: Duration, site: &Site) {
        self.commit_goes_on(kind, None, now, site);
        if let (Kind::Apply(Apply::Reserve { mailboxes, .. }), None) = (kind, &self.group.user) {
            self.group.asked_mailboxes(mailboxes, site);
        }
    }

    /// The lines that bring back what the client is in the middle of: the mailboxes of its group,
    /// or the user of a USER or META sync, and what it says just now.
    pub(super) fn lines(&self, pending: Option<(&Plan, &Asked)>, site: &Site) -> Vec<Line> {
        let mut lines = Vec::new();
        let user = self.group.user.as_ref();
        lines.extend(user.map(|(user, _)| Line::User(user.clone())));
        let asked = pending.map_or(&Asked::Other, |(_, asked)| asked);
        if user.is_none() {
            let group = self.group.deferred(asked, site);
            lines.extend(group.into_iter().map(|(_, line)| line));
            lines.extend(pending.and_then(|(plan, _)| plan.line.clone()));
            let meta = self.commit.meta.clone().filter(|_| pending.is_some());
            lines.extend(meta.map(Line::Meta));
        }
        lines.retain(|line| line.check().is_ok());
        lines.sort_unstable();
        lines.dedup();
        lines
    }
}

/// The line that makes a client ask this.
pub(super) fn line_of(kind: &Kind) -> Option<Line> {
    match kind {
        Kind::Get(Get::User(user)) => Some(Line::User(user.clone())),
        Kind::Get(Get::Meta(user) | Get::FetchSieve { user }) => Some(Line::Meta(user.clone())),
        Kind::Get(Get::Annotation(name)) => Some(Line::Annotation(name.clone())),
        Kind::Get(Get::Quota(root)) => Some(Line::Quota(root.clone())),
        _ => None,
    }
}
