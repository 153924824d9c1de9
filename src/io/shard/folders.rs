//! The shards' folders: beside the channel's own, made as Cyrus would.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::io::sync_directory::{Error, SyncDirectory};

/// Stands in every folder that has been a shard. By its name alone a folder might be another channel's,
/// with another replica.
const MARK: &str = "syncmux-shard";

/// Where they are.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The folder with the `log` that is taken over.
    pub channel: PathBuf,
    /// The folder of all channels, `sync` in Cyrus's configdirectory.
    pub base: PathBuf,
    /// The shards are this name, a hyphen and a number.
    pub name: String,
    /// So many.
    pub shards: usize,
    /// Channels that Cyrus itself logs for: no shards, whatever they are called.
    pub logged: Vec<String>,
}

impl Folders {
    /// The channel of a shard.
    #[must_use]
    pub fn shard(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// Makes the folders that are missing, and opens all: the shards in order, and those with larger
    /// numbers, which may hold lines from before. Takes the channel's folder, which no other syncmux
    /// may have.
    ///
    /// # Errors
    /// What can't be made or opened.
    pub fn open(&self) -> Result<(SyncDirectory, Vec<(String, SyncDirectory)>), Error> {
        let main = SyncDirectory::open(&self.channel)?;
        for number in 0..self.shards {
            let path = self.base.join(self.shard(number));
            self.make(&path)
                .and_then(|()| mark(&path))
                .map_err(|source| Error::in_words("make", &path, source))?;
        }
        let more = self.retired();
        let more = more.map_err(|source| Error::in_words("list", &self.base, source))?;
        let open = |number: usize| {
            let name = self.shard(number);
            SyncDirectory::beside(&self.base.join(&name)).map(|directory| (name, directory))
        };
        let all: Result<_, _> = (0..self.shards).chain(more).map(open).collect();
        Ok((main, all?))
    }

    /// The numbers of folders that are no shards any more.
    ///
    /// # Errors
    /// The folder of all channels can't be read.
    pub fn retired(&self) -> io::Result<Vec<usize>> {
        let mut found = numbers(&self.base, &self.name)?;
        let is_retired = |number: &usize| {
            let name = self.shard(*number);
            let was_one = was_shard(&self.base.join(&name));
            *number >= self.shards && was_one && !self.logged.contains(&name)
        };
        found.retain(is_retired);
        Ok(found)
    }

    /// With the owner and the mode of the channel's folder.
    fn make(&self, path: &Path) -> io::Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let model = std::fs::metadata(&self.channel)?;
        let mode = model.permissions().mode() & 0o7777;
        // By another name first, so that nobody meets it half made. Not syncmux-tmp-: a start removes
        // such files from the folder of the default channel, and can't remove folders.
        let temp = path.with_file_name(format!(".syncmux-{}", self.name));
        let _ = std::fs::remove_dir(&temp);
        std::fs::DirBuilder::new().mode(0o700).create(&temp)?;
        // As root we change what we have made, and not what its owner may have put in its place.
        let made = std::fs::File::options()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed())
            .open(&temp)?;
        let euid = rustix::process::geteuid();
        if made.metadata()?.uid() != euid.as_raw() {
            return Err(io::Error::other(
                "somebody else has put a folder in its place",
            ));
        }
        made.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if euid.is_root() {
            std::os::unix::fs::fchown(&made, Some(model.uid()), Some(model.gid()))?;
        }
        std::fs::rename(&temp, path)?;
        std::fs::File::open(&self.base)?.sync_all()
    }
}

/// Whether this folder has been a shard.
#[must_use]
pub fn was_shard(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder.join(MARK)).is_ok_and(|meta| meta.is_file())
}

/// Before a line is dealt to it, so that what is left in it is found where it is no shard any more.
fn mark(folder: &Path) -> io::Result<()> {
    if was_shard(folder) {
        return Ok(());
    }
    let mut new = std::fs::File::options();
    let new = new.write(true).create_new(true).mode(0o644);
    new.open(folder.join(MARK))?.sync_all()?;
    std::fs::File::open(folder)?.sync_all()
}

/// The numbers N of all folders `NAME-N`, in order.
///
/// # Errors
/// The folder can't be read.
pub fn numbers(base: &Path, name: &str) -> io::Result<Vec<usize>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base)? {
        let entry = entry?;
        let file = entry.file_name();
        let number = file
            .to_str()
            .and_then(|file| file.strip_prefix(name)?.strip_prefix('-'))
            // As we write it: no sign, no zeros in front.
            .and_then(|text| Some((text, text.parse::<usize>().ok()?)))
            .filter(|(text, number)| *text == number.to_string());
        if let (Some((_, number)), true) = (number, entry.file_type()?.is_dir()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn folders_are_made_like_the_channels_own_and_old_ones_are_found() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let folders = Folders {
            channel: at("far"),
            base: base.path().to_owned(),
            name: "far".to_owned(),
            shards: 2,
            logged: vec![String::new(), "far".to_owned(), "far-8".to_owned()],
        };
        std::fs::create_dir(at("far")).unwrap();
        std::fs::set_permissions(at("far"), std::fs::Permissions::from_mode(0o751)).unwrap();
        // A crash has left one half made.
        std::fs::create_dir(at(".syncmux-far")).unwrap();
        // far-8 is a channel of Cyrus's own, with another replica.
        for name in [
            "far-10",
            "far-7",
            "far-8",
            "far-07",
            "far-x",
            "farther-9",
            "far--3",
        ] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("far-6"), "").unwrap();
        // far-11 neither, although nothing says so.
        std::fs::create_dir(at("far-11")).unwrap();
        for name in ["far-7", "far-8", "far-10"] {
            std::fs::write(at(name).join(MARK), "").unwrap();
        }
        let (main, all) = folders.open().unwrap();
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["far-0", "far-1", "far-7", "far-10"]);
        for number in 0..2 {
            let meta = std::fs::metadata(at(&folders.shard(number))).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, 0o751);
            assert_eq!(meta.uid(), std::fs::metadata(at("far")).unwrap().uid());
        }
        assert!(was_shard(&at("far-0")) && !was_shard(&at("far-11")));
        assert!(!at(".syncmux-far").exists());
        assert!(
            matches!(folders.open(), Err(Error::Held { .. })),
            "a second one"
        );
        drop(main);
        assert!(folders.open().is_ok());
        // Somebody's file in the place of a shard's folder.
        let more = Folders {
            shards: 9,
            ..folders
        };
        assert!(more.open().is_err());
    }
}
