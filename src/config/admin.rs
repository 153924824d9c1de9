//! The admin endpoint's address: for `run`, and for the tools that ask there and need nothing else
//! of the configuration.

use std::path::{Path, PathBuf};

use super::build::{At, Build};
use super::error::words;
use super::file::{self, File};
use super::{Flags, Listen, Problem};

impl Build<'_> {
    pub(super) fn admin(&mut self, keys: file::Admin, flags: &Flags) -> Option<At<Listen>> {
        let at = self.pick(keys.listen, flags.admin_listen.as_ref(), "--admin-listen")?;
        let listen = self.checked(Listen::parse(&at.value), &at.place)?;
        let is_open = keys.open_to_network.is_some_and(|key| key.into_inner());
        if !listen.is_local() && !is_open && !flags.admin_open_to_network {
            let what = format!(
                "the admin endpoint would be open to the network on {listen}, and it asks nobody \
                 for a password: use an address such as 127.0.0.1:9205 or unix:/PATH, or set \
                 open_to_network = true under [admin] (--admin-open-to-network)"
            );
            self.fail(&at.place, what);
        }
        Some(At {
            value: listen,
            place: at.place,
        })
    }
}

/// What the tools need of a configuration that they do not serve by: nothing in it is opened.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Where the admin endpoint listens.
    pub admin: Option<Listen>,
    /// Each channel's name and sync directory.
    pub channels: Vec<(String, Option<PathBuf>)>,
}

impl Outline {
    /// Reads it.
    ///
    /// # Errors
    /// The file can't be read, or is none.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Problem::file(path, format!("can't be read: {}", words(&error))))?;
        let file = toml::from_str::<File>(&text).map_err(|error| {
            let what = error.message().replace('\n', ", ");
            Problem::file(path, format!("{what}; `syncmux check` says more"))
        })?;
        let admin = file.admin.listen.map(|key| Listen::parse(key.get_ref()));
        let admin = admin.transpose().map_err(|why| Problem::file(path, why))?;
        let channels = file.channel.into_iter().map(|channel| {
            let name = channel.name.map(toml::Spanned::into_inner);
            let directory = channel.sync_directory.map(toml::Spanned::into_inner);
            (name.unwrap_or_default(), directory)
        });
        Ok(Outline {
            admin,
            channels: channels.collect(),
        })
    }
}
