//! The checks of `rightnow_listen`: what an imapd needs that has somebody waiting.

use super::build::{At, Build};
use super::{Address, Client, Listen, Passwords, Replica};

/// Whether commits can be put off and imapds let in while the replica is away.
pub(super) fn possible(
    build: &mut Build<'_>,
    listen: &[At<Listen>],
    name: &str,
    client: &Client,
    replica: &Replica,
    has_directory: bool,
) {
    let Some(at) = listen.first() else { return };
    if name.is_empty() {
        let what = "rightnow_listen needs a channel with a name: told that the replica is away, an \
                    imapd of the default channel forgets the rest of its commit; set name, such as \
                    \"far\", and sync_rightnow_channel: far in imapd.conf";
        build.fail(&at.place, what);
    }
    if !has_directory {
        let what = "rightnow_listen needs the folder of the channel's sync log, into which goes \
                    what the replica did not get in time: set sync_directory, such as \
                    /var/lib/cyrus/sync/far";
        build.fail(&at.place, what);
    }
    let tcp = listen.iter().find(|at| matches!(at.value, Listen::Tcp(_)));
    if let (Some(at), Passwords::ByReplica) = (tcp, &client.passwords) {
        let what = format!(
            "nobody could check the passwords of the imapds on {} while the replica is away, and \
             what they could not send would be forgotten: set username and password_file under \
             [client], or use a UNIX socket",
            at.value
        );
        build.fail(&at.place, what);
    }
    let speaks_for_itself = matches!(replica.address, Address::Unix(_))
        || replica.identity.is_some()
        || replica.login.is_some();
    if let (Some(at), false) = (tcp, speaks_for_itself) {
        let what = format!(
            "the lanes for the imapds on {} need a login of their own: set username and \
             password_file under [channel.replica]",
            at.value
        );
        build.fail(&at.place, what);
    }
}
