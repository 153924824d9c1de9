#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use super::disk::Stat;
use super::*;
use crate::protocol::Site;
use crate::protocol::synclog::Line;

fn mailbox(name: &str) -> Line {
    Line::Mailbox(name.to_owned().into())
}

/// A file system that has no hard links.
#[derive(Debug)]
struct WithoutLinks(real::RealDisk);

impl Disk for WithoutLinks {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn makes_files_of_cyrus(&self) -> bool {
        self.0.makes_files_of_cyrus()
    }
    fn open(&self, name: &str, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        self.0.open(name, mode)
    }
    fn stat(&self, name: &str) -> io::Result<Stat> {
        self.0.stat(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
        // As the kernel does it: that the name is taken is seen first.
        if self.0.stat(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.0.stat(from)?;
        Err(rustix::io::Errno::PERM.into())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename_new(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn names_mark(&self) -> io::Result<Option<(i64, i64)>> {
        self.0.names_mark()
    }

    fn sync_names(&self) -> io::Result<()> {
        self.0.sync_names()
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Place {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> SyncDirectory {
        SyncDirectory::open(self.folder.path()).unwrap()
    }

    fn open_without_links(&self) -> SyncDirectory {
        let real = real::RealDisk::take(self.folder.path()).unwrap();
        SyncDirectory::on(Box::new(WithoutLinks(real)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> RunId {
        fs::write(self.path(name), text).unwrap();
        RunId(fs::metadata(self.path(name)).unwrap().ino())
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// Everything but the lock.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != LOCK).collect();
        names.sort();
        names
    }
}

#[test]
fn one_at_a_time() {
    let place = Place::new();
    let first = place.open();
    let error = SyncDirectory::open(place.folder.path()).unwrap_err();
    assert!(matches!(error, Error::Held { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(
        error
            .to_string()
            .contains(&format!("held by process {}", std::process::id()))
    );
    drop(first);
    place.open();
}

/// A tool beside a syncmux that has the directory.
#[test]
fn lines_of_another_process() {
    let place = Place::new();
    let held = place.open();
    let beside = SyncDirectory::beside(place.folder.path()).unwrap();
    beside.append_lines(&[Line::User("joe".into())]).unwrap();
    held.append_lines(&[mailbox("user.ann")]).unwrap();
    beside.append_lines(&[Line::User("jim".into())]).unwrap();
    let lines = "USER joe\nMAILBOX user.ann\nUSER jim\n";
    assert_eq!(place.read("log").as_deref(), Some(lines));
    drop(beside);
    // It took nothing, so it gave nothing back.
    let error = SyncDirectory::open(place.folder.path()).unwrap_err();
    assert!(matches!(error, Error::Held { .. }));
    assert_eq!(place.names(), ["log"]);
}

#[test]
fn missing_directory() {
    let error = SyncDirectory::open(Path::new("/no/such/folder")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "can't open /no/such/folder: no such file or directory"
    );
}

#[test]
fn the_current_run() {
    let place = Place::new();
    let directory = place.open();
    let lookup = directory.lookup();
    assert_eq!(lookup.current(), None);
    let run = place.write("log-run", "");
    assert_eq!(lookup.current(), Some(run));
    assert_eq!(directory.current_run(), Some(run));
    fs::remove_file(place.path("log-run")).unwrap();
    assert_eq!(lookup.current(), None);
}

#[test]
fn linking_keeps_and_covers() {
    let place = Place::new();
    let directory = place.open();
    let site = Site::default();
    let run = place.write("log-run", "MAILBOX user.joe\nUSER fred\n");
    let coverage = directory.link(run, &site).unwrap();
    assert!(coverage.covers_mailbox(b"user.joe", &site.key_of_mailbox(b"user.joe")));
    assert!(coverage.covers_mailbox(b"user.fred.x", &site.key_of_mailbox(b"user.fred.x")));
    assert!(!coverage.covers_mailbox(b"user.jane", &site.key_of_mailbox(b"user.jane")));
    // Once more is fine.
    directory.link(run, &site).unwrap();
    let link = format!("{RUN_PREFIX}{}", run.0);
    fs::remove_file(place.path("log-run")).unwrap();
    assert!(place.read(&link).unwrap().contains("fred"));
    directory.drop_link(run).unwrap();
    directory.drop_link(run).unwrap();
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_run_that_has_changed_is_not_linked() {
    let place = Place::new();
    let directory = place.open();
    let run = place.write("log-run", "MAILBOX user.joe\n");
    let other = RunId(run.0 + 1);
    let error = directory.link(other, &Site::default()).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    fs::remove_file(place.path("log-run")).unwrap();
    let error = directory.link(run, &Site::default()).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn without_hard_links_a_run_is_copied() {
    let place = Place::new();
    let directory = place.open_without_links();
    let site = Site::default();
    let run = place.write("log-run", "MAILBOX user.joe\n");
    let error = directory.link(RunId(run.0 + 1), &site).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    let coverage = directory.link(run, &site).unwrap();
    assert!(coverage.covers_mailbox(b"user.joe", &site.key_of_mailbox(b"user.joe")));
    assert!(!directory.link(run, &site).unwrap().is_empty());
    let link = format!("{RUN_PREFIX}{}", run.0);
    assert_eq!(place.names(), ["log-run".to_owned(), link.clone()]);
    fs::remove_file(place.path("log-run")).unwrap();
    assert_eq!(place.read(&link).unwrap(), "MAILBOX user.joe\n");
    // No new log gets the number while the copy is there.
    for name in ["a", "b", "c", "d"] {
        assert_ne!(place.write(name, ""), run);
        fs::remove_file(place.path(name)).unwrap();
    }
    directory.drop_link(run).unwrap();
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn what_a_torn_line_hides_is_put_back() {
    let place = Place::new();
    let directory = place.open();
    let site = Site::default();
    let run = place.write("log-run", "USER a\nMAILBOX \"b\nUSER c\nUSER d\n");
    let coverage = directory.link(run, &site).unwrap();
    assert!(coverage.covers_user(&site.key_of_user(b"a")));
    assert!(!coverage.covers_user(&site.key_of_user(b"c")));
    assert_eq!(place.read("log").unwrap(), "USER c\nUSER d\n");
    directory.drop_link(run).unwrap();
    let run = place.write("log-run", "USER a\nUSER e");
    directory.link(run, &site).unwrap();
    assert_eq!(place.read("log").unwrap(), "USER c\nUSER d\nUSER e\n");
}

#[test]
fn appending() {
    let place = Place::new();
    let directory = place.open();
    assert_eq!(directory.append_lines(&[]).unwrap(), []);
    assert_eq!(place.names(), Vec::<String>::new());
    let bad = mailbox("user.a\nUSER b");
    let lines = [mailbox("user.joe"), bad.clone(), mailbox("user.a b")];
    assert_eq!(directory.append_lines(&lines).unwrap(), [bad]);
    assert_eq!(
        place.read("log").unwrap(),
        "MAILBOX user.joe\nMAILBOX \"user.a b\"\n"
    );
    let mode = fs::metadata(place.path("log"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    // After a rename a new one is made.
    fs::rename(place.path("log"), place.path("log-run")).unwrap();
    directory.append_lines(&[mailbox("user.x")]).unwrap();
    assert_eq!(place.read("log").unwrap(), "MAILBOX user.x\n");
}

#[test]
fn torn_tails_are_mended() {
    for (torn, whole) in [
        ("USER a\nMAILBOX user.b", "USER a\nMAILBOX user.b\n"),
        ("USER a\nMAILBOX \"user.b", "USER a\nMAILBOX \"user.b\"\n"),
        ("MAILBOX \"user.b\\", "MAILBOX \"user.b\\\\\"\n"),
        ("USER a\nMAILBOX ", "USER a\n"),
        ("SEEN joe ", ""),
        ("MAIL", "MAIL\n"),
    ] {
        let place = Place::new();
        let directory = place.open();
        place.write("log", torn);
        directory.append_lines(&[mailbox("user.x")]).unwrap();
        assert_eq!(
            place.read("log").unwrap(),
            format!("{whole}MAILBOX user.x\n"),
            "{torn:?}"
        );
    }
}

#[test]
fn files_belong_to_cyrus_also_when_root_makes_them() {
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let place = Place::new();
    std::os::unix::fs::chown(place.folder.path(), Some(12_345), Some(54_321)).unwrap();
    let directory = place.open();
    directory.append_lines(&[mailbox("user.x")]).unwrap();
    directory.append_lines(&[mailbox("user.y")]).unwrap();
    assert_eq!(
        place.read("log").unwrap(),
        "MAILBOX user.x\nMAILBOX user.y\n"
    );
    directory.store_owed(&[mailbox("user.x")]).unwrap();
    let run = place.write("log-run", "USER a\n");
    drop(directory);
    let directory = place.open_without_links();
    directory.link(run, &Site::default()).unwrap();
    fs::remove_file(place.path("log-run")).unwrap();
    for entry in fs::read_dir(place.folder.path()).unwrap() {
        let meta = entry.as_ref().unwrap().metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12_345, 54_321), "{entry:?}");
    }
    assert_eq!(place.names().len(), 3, "{:?}", place.names());
}

#[test]
fn a_log_of_root_is_given_to_cyrus() {
    if rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let place = Place::new();
    std::os::unix::fs::chown(place.folder.path(), Some(12_345), Some(54_321)).unwrap();
    place.write("log", "");
    let directory = SyncDirectory::beside(place.folder.path()).unwrap();
    directory.append_lines(&[mailbox("user.x")]).unwrap();
    let meta = fs::metadata(place.path("log")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12_345, 54_321));
    // Another name of it may be anywhere.
    fs::remove_file(place.path("log")).unwrap();
    let other = tempfile::tempdir_in(place.folder.path()).unwrap();
    let other = other.path().join("other");
    fs::write(&other, "").unwrap();
    fs::hard_link(&other, place.path("log")).unwrap();
    let refused = directory.append_lines(&[mailbox("user.x")]).unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("it belongs to uid 0 and not to uid 12345"),
        "{refused}"
    );
    assert_eq!(fs::read(&other).unwrap(), b"");
    assert_eq!(fs::metadata(&other).unwrap().uid(), 0);
}

#[test]
fn symbolic_links_are_not_followed() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let aim = tempfile::NamedTempFile::new().unwrap();
    symlink(aim.path(), place.path(LOCK)).unwrap();
    assert!(SyncDirectory::open(place.folder.path()).is_err());
    fs::remove_file(place.path(LOCK)).unwrap();
    let directory = place.open();
    symlink(aim.path(), place.path("log")).unwrap();
    assert!(directory.append_lines(&[mailbox("user.x")]).is_err());
    symlink(aim.path(), place.path("syncmux-tmp-owed")).unwrap();
    directory.store_owed(&[mailbox("user.x")]).unwrap();
    assert_eq!(fs::read(aim.path()).unwrap(), b"");
}

#[test]
fn owed_lines() {
    let place = Place::new();
    let directory = place.open();
    assert_eq!(directory.store_owed(&[]).unwrap(), []);
    assert_eq!(directory.load_owed().unwrap(), Vec::<Vec<u8>>::new());
    directory
        .store_owed(&[mailbox("user.x"), mailbox("user.a b")])
        .unwrap();
    directory
        .store_owed(&[mailbox("user.y"), mailbox("user.a b")])
        .unwrap();
    let expected = [b"MAILBOX user.y".to_vec(), b"MAILBOX \"user.a b\"".to_vec()];
    assert_eq!(directory.load_owed().unwrap(), expected);
    assert_eq!(place.names(), [OWED]);
    directory.store_owed(&[]).unwrap();
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn recovering() {
    let place = Place::new();
    let directory = place.open();
    assert_eq!(directory.recover().unwrap(), Recovered::default());
    place.write("log", "USER there\nMAILBOX \"torn");
    place.write(
        "syncmux-run-7",
        "USER a\nSIEVE b\n\nUSER there\nAPPEND user.c\nUSER a\n",
    );
    place.write("log-run", "USER d\n");
    fs::hard_link(place.path("log-run"), place.path("syncmux-run-9")).unwrap();
    place.write(OWED, "MAILBOX \"half\nUSER e\nUSER a\nUSER f");
    place.write("syncmux-tmp-run", "USER never");
    let done = directory.recover().unwrap();
    assert_eq!(
        done,
        Recovered {
            files: 3,
            lines: 6,
            repeated: 3,
            unreadable: 1
        }
    );
    let log = place.read("log").unwrap();
    let (before, lines) = log.split_once("MAILBOX \"torn\"\n").unwrap();
    assert_eq!(before, "USER there\n");
    assert!(lines.ends_with("USER e\nUSER f\n"), "{lines}");
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    let expected = [
        "APPEND user.c",
        "SIEVE b",
        "USER a",
        "USER d",
        "USER e",
        "USER f",
    ];
    assert_eq!(lines, expected);
    assert_eq!(place.names(), ["log", "log-run"]);
}

#[test]
fn recovering_again_adds_nothing() {
    let place = Place::new();
    let directory = place.open();
    for _ in 0..3 {
        // As if the crash came before the files went.
        place.write("syncmux-run-7", "USER a\nUSER b\n");
        place.write(OWED, "USER c\n");
        directory.recover().unwrap();
        assert_eq!(place.read("log").unwrap(), "USER a\nUSER b\nUSER c\n");
    }
}

/// The client would stop at the torn line and forget what is behind it, ours as well.
#[test]
fn torn_lines_in_the_middle_are_blanked() {
    let place = Place::new();
    let directory = place.open();
    place.write("log", "USER a\nMAILBOX \"torn\nUSER b\n");
    place.write("syncmux-run-7", "USER a\nUSER b\nUSER c\n");
    assert_eq!(directory.recover().unwrap().lines, 1);
    let blank = "\n".repeat("MAILBOX \"torn\n".len());
    let text = format!("USER a\n{blank}USER b\nUSER c\n");
    assert_eq!(place.read("log").unwrap(), text);
    directory.append_lines(&[mailbox("user.d")]).unwrap();
    assert_eq!(place.read("log").unwrap(), text + "MAILBOX user.d\n");
}

#[test]
fn a_million_lines() {
    use std::fmt::Write as _;
    let place = Place::new();
    let directory = place.open();
    let mut text = String::new();
    for i in 0..1_000_000 {
        writeln!(text, "MAILBOX user.u{:06}.folder", i % 400_000).unwrap();
    }
    place.write("syncmux-run-7", &text);
    let start = std::time::Instant::now();
    let done = directory.recover().unwrap();
    println!("recovered in {:?}", start.elapsed());
    assert_eq!((done.lines, done.repeated), (400_000, 600_000));
    assert_eq!(place.read("log").unwrap().lines().count(), 400_000);
}

/// As root we would read for Cyrus what it may not, and at a FIFO we would wait for ever.
#[test]
fn only_plain_files_are_read() {
    use std::os::unix::fs::symlink;
    let fifo = |path: &Path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        RunId(fs::symlink_metadata(path).unwrap().ino())
    };
    let place = Place::new();
    let directory = place.open();
    let log_run = place.path("log-run");
    let run = fifo(&log_run);
    assert_eq!(directory.current_run(), None);
    assert!(directory.link(run, &Site::default()).is_err());
    fs::remove_file(&log_run).unwrap();
    let aim = tempfile::NamedTempFile::new().unwrap();
    fs::write(aim.path(), "MAILBOX user.x\n").unwrap();
    symlink(aim.path(), &log_run).unwrap();
    let run = RunId(fs::metadata(&log_run).unwrap().ino());
    assert_eq!(directory.current_run(), None);
    assert!(directory.link(run, &Site::default()).is_err());
    fs::remove_file(&log_run).unwrap();
    fs::create_dir(&log_run).unwrap();
    assert_eq!(directory.current_run(), None);
    assert_eq!(place.names(), ["log-run"]);
    for name in ["syncmux-run-1", OWED] {
        fifo(&place.path(name));
        assert!(directory.recover().is_err());
        fs::remove_file(place.path(name)).unwrap();
        symlink(aim.path(), place.path(name)).unwrap();
        assert!(directory.recover().is_err());
        fs::remove_file(place.path(name)).unwrap();
    }
    assert_eq!(directory.recover().unwrap().lines, 0);
}
