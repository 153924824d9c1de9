//! What a client on a fan-out listener is told when the replica refuses (design.md, promise 7):
//! one bad user must not stop the others, and what the real client does with an answer decides
//! which answer it is given. Whom it is made to leave alone: `left_alone`.

use super::plan::Plan;
use super::session::{Asked, Session};
use crate::protocol::synclog::Line;
use crate::protocol::{Status, StatusKind};

/// The answer to a refused command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) answer: Answer,
    /// The line to be owed before the answer goes out.
    pub(super) owe: Option<Line>,
}

/// What goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The replica's own words.
    AsIs,
    /// The replica's refusal without its token: `IMAP_MAILBOX_LOCKED` would stick.
    Plain,
    /// `IMAP_MAILBOX_LOCKED`: the client defers this user by itself.
    Locked,
    /// OK: the client goes on with the others, and the line brings it back.
    Ok,
    /// As if the replica had nothing of the user, who is left alone until RESTART.
    Nothing,
}

/// Whether the client takes this refusal for success (`sync_do_folder_delete`, `do_unuser` and
/// `sync_do_user` in `sync_support.c`): what is to be removed was never there.
pub(super) fn is_success(status: &Status, asked: &Asked) -> bool {
    matches!(asked, Asked::Removal | Asked::User)
        && status.token() == Some(b"IMAP_MAILBOX_NONEXISTENT")
}

/// Decides. `named` tells whether the channel has a name: only then does the client know how to
/// defer (`sync_cs->channel` in `sync_support.c`).
pub(super) fn refused(
    status: &Status,
    plan: &Plan,
    asked: &Asked,
    session: &Session,
    named: bool,
    force: bool,
) -> Verdict {
    debug_assert!(matches!(status.kind, StatusKind::No | StatusKind::Bad));
    let group = &session.group;
    let is_read = plan.class == super::plan::Class::Read;
    let token = status.token();
    if let (Asked::Mailbox(name), Some(b"IMAP_SYNC_CHECKSUM")) = (asked, token) {
        let again = group.full.contains(name) || (force && group.checksums.contains(name));
        if !again {
            // Two of these in a row make the client fetch FULLMAILBOX and copy back.
            return Verdict {
                answer: Answer::AsIs,
                owe: None,
            };
        }
    }
    if let Some((user, _)) = &group.user {
        // Any refusal here, or a dead lane, would end the client.
        let owe = writable(Line::User(user.clone()));
        return match (named, is_read, asked) {
            (true, ..) => Verdict {
                answer: Answer::Locked,
                owe,
            },
            (false, _, Asked::User) if owe.is_some() && session.under_run => Verdict {
                answer: Answer::Nothing,
                owe,
            },
            // A RENAME is looked at again by the client's next GET; what else is read in a USER
            // sync can't be made up: it ends this run, and the next GET USER is left alone.
            (false, true, _) | (false, _, Asked::Rename(_)) => Verdict {
                answer: Answer::AsIs,
                owe,
            },
            (false, false, _) => Verdict {
                answer: told_ok(&owe),
                owe,
            },
        };
    }
    let locked = token == Some(b"IMAP_MAILBOX_LOCKED");
    if is_read {
        let sticks = locked && matches!(asked, Asked::Never);
        return Verdict {
            answer: if sticks { Answer::Plain } else { Answer::AsIs },
            owe: None,
        };
    }
    let owe = plan.line.clone().and_then(writable);
    let answer = match asked {
        Asked::Fatal | Asked::Removal if owe.is_some() => Answer::Ok,
        Asked::Mailbox(_) | Asked::Other
            if owe.is_some() && group.concerns_others(&plan.subjects) =>
        {
            Answer::Ok
        }
        Asked::Fatal | Asked::Removal | Asked::Never if locked => Answer::Plain,
        _ => Answer::AsIs,
    };
    Verdict { answer, owe }
}

/// A line that can't stand in the sync log brings nothing back.
fn writable(line: Line) -> Option<Line> {
    line.check().is_ok().then_some(line)
}

/// OK only where a line brings it back.
fn told_ok(owe: &Option<Line>) -> Answer {
    if owe.is_some() {
        Answer::Ok
    } else {
        Answer::AsIs
    }
}
