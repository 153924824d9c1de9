//! Several versions of Cyrus on one machine: the host's own, and those of other Debians in folders
//! that `tests/install_versions.sh` makes. What is in such a folder is run by chroot.
//!
//! The folders are mounted nothing. A thread that uses one gets a mount namespace of its own, in
//! which `/dev`, `/proc` and the folder for temporary files are seen in them too. Whatever it starts
//! is in that namespace, which is gone with the last of these processes: nothing stays mounted,
//! however a test ends.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::process::{as_cyrus, become_cyrus, cyrus_ids, field, set_mode};

/// Cyrus's versions and the names of the Debians that have them.
const DEBIANS: [(&str, &str); 3] = [("3.2", "bullseye"), ("3.6", "bookworm"), ("3.10", "trixie")];

/// Hidden in our mount namespaces, by the folders in a place that user cyrus can enter.
const EVERYBODY: &str = "/mnt";

thread_local! {
    static PAIR: std::cell::Cell<Option<(&'static str, &'static str)>> =
        const { std::cell::Cell::new(None) };
}

/// Runs a scenario with these Cyruses as master and replica, whatever the environment says.
pub fn between(pair: (&'static str, &'static str), scenario: impl FnOnce()) {
    PAIR.set(Some(pair));
    scenario();
    PAIR.set(None);
}

/// Which Cyrus an instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `3.2`
    pub name: String,
    /// Where it is; the host's own where there is none.
    root: Option<PathBuf>,
}

impl Version {
    /// The host's own.
    pub fn own() -> Self {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release
            .lines()
            .find_map(|l| l.strip_prefix("VERSION_CODENAME="));
        let known = DEBIANS
            .iter()
            .find(|(_, debian)| Some(*debian) == codename)
            .unwrap_or_else(|| panic!("which Cyrus has this system? DEBIANS does not say"));
        Self {
            name: known.0.to_owned(),
            root: None,
        }
    }

    /// The one of this name: the host's own, or one in a folder, which must be there.
    pub fn named(name: &str) -> Self {
        let own = Self::own();
        if own.name == name {
            return own;
        }
        let debian = DEBIANS.iter().find(|(version, _)| *version == name);
        let (_, debian) = debian.unwrap_or_else(|| panic!("no Cyrus {name:?} among {DEBIANS:?}"));
        let root = roots().join(debian);
        assert!(
            root.join("cyrus-version").is_file(),
            "Cyrus {name} is not in {}: tests/install_versions.sh {debian} puts it there",
            root.display()
        );
        let uid = field(&root.join("etc/passwd"), "cyrus", 2);
        let own = cyrus_ids().uid;
        assert_eq!(
            uid,
            own,
            "in {} the user cyrus has another number than here: remove the folder and run \
             tests/install_versions.sh {debian}",
            root.display()
        );
        Self {
            name: name.to_owned(),
            root: Some(root),
        }
    }

    /// The one of [`between`]; else what `SYNCMUX_MASTER` or `SYNCMUX_REPLICA` names; the host's own
    /// where these name nothing.
    pub fn of(replica: bool) -> Self {
        if let Some((from, to)) = PAIR.get() {
            return Self::named(if replica { to } else { from });
        }
        let name = if replica {
            "SYNCMUX_REPLICA"
        } else {
            "SYNCMUX_MASTER"
        };
        match std::env::var(name) {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Self::own(),
        }
    }

    /// Whether it is this version or a later one.
    pub fn is_from(&self, name: &str) -> bool {
        let number = |name: &str| -> Vec<u32> {
            let parts = name.split('.').map(|part| part.parse().unwrap());
            parts.collect()
        };
        number(&self.name) >= number(name)
    }

    /// What this thread starts and mounts from now on is in the mount namespace that this version needs:
    /// also the other end, where that is the host's own.
    pub fn prepare(&self) {
        if let Some(root) = &self.root {
            enter(root);
        }
    }

    /// A program of this Cyrus, run as user cyrus. See [`super::process::as_cyrus`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(root) = &self.root else {
            return as_cyrus(program);
        };
        enter(root);
        let mut command = Command::new("chroot");
        command.arg(root).arg("setpriv");
        become_cyrus(command, program)
    }

    /// A path by which a program that runs as user cyrus can run a program of this Cyrus.
    pub fn wrapper(&self, program: &str) -> PathBuf {
        let own = Path::new(super::cyrus::BIN).join(program);
        let Some(root) = &self.root else {
            return own;
        };
        enter(root);
        let root = for_everybody(root);
        let path = root.with_extension(program);
        let (root, program) = (root.display(), own.display());
        let text = format!(
            "#!/bin/sh\nexec unshare --user --map-current-user --root={root} {program} \"$@\"\n"
        );
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o755);
        path
    }

    /// For this thread and what it starts, `program` of the host's Cyrus is this version's.
    pub fn stands_in_for_own(&self, program: &str) {
        if self.root.is_some() {
            let path = self.wrapper(program);
            let own = Path::new(super::cyrus::BIN).join(program);
            if std::fs::read(&own).unwrap() != std::fs::read(&path).unwrap() {
                mount(&["--bind".as_ref(), path.as_ref(), own.as_ref()]);
            }
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// Where `tests/install_versions.sh` puts them.
fn roots() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("SYNCMUX_CYRUS_ROOTS") {
        return folder.into();
    }
    let home = || PathBuf::from(set("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    let cache = set("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("syncmux-tests/cyrus")
}

/// Sees to it that in this thread's mount namespace, which is not the host's, `/dev`, `/proc` and the
/// folder for temporary files are in `root` as well.
fn enter(root: &Path) {
    /// Namespaces, and what has been mounted in them.
    static DONE: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());
    let here = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let mut done = DONE.lock().unwrap_or_else(|e| e.into_inner());
    if !done.iter().any(|(namespace, _)| *namespace == here()) {
        // The other one is unsafe, since it could unshare open files, too.
        #[expect(deprecated)]
        let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS);
        unshared.expect("a mount namespace needs root");
        // What is mounted here later (a small file system for a test) is to be seen below the roots,
        // and nothing of it outside.
        mount(&["--make-rprivate".as_ref(), "/".as_ref()]);
        mount(&["--make-rshared".as_ref(), "/".as_ref()]);
        let arguments = ["-t", "tmpfs", "-o", "mode=755", "tmpfs", EVERYBODY];
        mount(&arguments.map(OsStr::new));
    }
    let entry = (here(), root.to_path_buf());
    if done.contains(&entry) {
        return;
    }
    let temporary = std::env::temp_dir();
    for path in [Path::new("/dev"), Path::new("/proc"), &temporary] {
        if path != Path::new("/dev") && path.starts_with("/dev") {
            continue;
        }
        let inside = root.join(path.strip_prefix("/").unwrap());
        std::fs::create_dir_all(&inside).unwrap();
        mount(&["--rbind".as_ref(), path.as_ref(), inside.as_ref()]);
    }
    let reachable = for_everybody(root);
    std::fs::create_dir(&reachable).unwrap();
    mount(&["--rbind".as_ref(), root.as_ref(), reachable.as_ref()]);
    done.push(entry);
}

/// Where user cyrus can reach it, in a namespace of ours.
fn for_everybody(root: &Path) -> PathBuf {
    Path::new(EVERYBODY).join(root.file_name().unwrap())
}

fn mount(arguments: &[&OsStr]) {
    let mut command = Command::new("mount");
    let status = command.args(arguments).stdin(Stdio::null()).status();
    assert!(status.unwrap().success(), "mount {arguments:?}: needs root");
}
