#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{create_dir, read_to_string, write};
use std::path::{Path, PathBuf};

use super::*;

/// Whether the channel's own client runs.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Option<i32>>>);

impl Clients for Fake {
    fn may_work(&mut self, _: &str, directory: &SyncDirectory) -> bool {
        directory.is_taken()
    }

    fn own(&mut self, _: &SyncDirectory) -> Option<Option<i32>> {
        self.0.lock().unwrap().map(Some)
    }
}

struct Site {
    base: tempfile::TempDir,
    own: Fake,
}

impl Site {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        create_dir(base.path().join("far")).unwrap();
        Site {
            base,
            own: Fake::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn start(&self, shards: usize) -> Sharder {
        let folders = Folders {
            channel: self.at("far"),
            base: self.base.path().to_owned(),
            name: "far".to_owned(),
            shards,
            logged: vec!["far".to_owned()],
        };
        let (main, all) = folders.open().unwrap();
        let how = How {
            shards,
            way: Way::Balanced,
            held_lines: 100,
            mailbox_pairs: false,
        };
        Sharder::new(main, all, how, Site::names(), Box::new(self.own.clone()))
    }

    fn names() -> crate::protocol::Site {
        crate::protocol::Site::default()
    }
}

/// A folder in which a name has just changed can't be looked at exactly: see `Unfinished`.
fn until(sharder: &mut Sharder, is_done: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_done() {
        sharder.step().unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(path: &Path) -> String {
    read_to_string(path).unwrap_or_default()
}

#[test]
fn nothing_is_taken_over_beside_the_channels_own_client() {
    let site = Site::new();
    write(site.at("far/log"), "APPEND user.a\n").unwrap();
    *site.own.0.lock().unwrap() = Some(7);
    let mut sharder = site.start(1);
    let start = Instant::now();
    let error = loop {
        match sharder.step() {
            Ok(()) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => break error.to_string(),
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    };
    assert!(error.contains("still runs (process 7)"), "{error}");
    assert_eq!(text(&site.at("far/log")), "APPEND user.a\n");
    *site.own.0.lock().unwrap() = None;
    until(&mut sharder, || {
        text(&site.at("far-0/log")) == "APPEND user.a\n"
    });
    // It comes back, takes a run away, and is looked for again.
    write(site.at("far/log"), "APPEND user.b\n").unwrap();
    let taken = sharder.main.take_run().unwrap().unwrap();
    std::fs::remove_file(site.at("far/log-run")).unwrap();
    *site.own.0.lock().unwrap() = Some(8);
    assert!(matches!(sharder.deal(taken), Err(Error::TakenAway { .. })));
    let log = text(&site.at("far-0/log"));
    assert_eq!(
        log, "APPEND user.a\nAPPEND user.b\n",
        "what was read is dealt"
    );
    write(site.at("far/log"), "APPEND user.c\n").unwrap();
    assert!(matches!(
        sharder.step(),
        Err(Error::ClientRuns { pid: Some(8), .. })
    ));
    assert_eq!(text(&site.at("far/log")), "APPEND user.c\n");
}

/// The clients went through a fan-out syncmux, and there are fewer shards now.
#[test]
fn what_a_syncmux_run_owes_in_a_folder_that_is_no_shard_is_dealt_again() {
    let site = Site::new();
    drop(site.start(2));
    write(site.at("far-1/log-run"), "APPEND user.a\n").unwrap();
    write(site.at("far-1/syncmux-owed"), "USER a\n").unwrap();
    write(site.at("far-1/syncmux-run-7"), "SEEN b 12\n").unwrap();
    write(site.at("far/log"), "APPEND user.a.new\nAPPEND user.b.new\n").unwrap();
    let other = SyncDirectory::open(&site.at("far-1")).unwrap();
    let mut sharder = site.start(1);
    until(&mut sharder, || sharder_has_held(&site.at("far"), 2));
    assert_eq!(
        text(&site.at("far-0/log")),
        "",
        "as long as the other one works there"
    );
    drop(other);
    let out = site.at("far-0/log");
    until(&mut sharder, || text(&out).lines().count() == 5);
    assert_eq!(
        text(&out),
        "APPEND user.a\nSEEN b 12\nUSER a\nAPPEND user.a.new\nAPPEND user.b.new\n"
    );
    for name in [
        "log",
        "log-run",
        "syncmux-owed",
        "syncmux-run-7",
        "syncmux-back",
    ] {
        assert!(!site.at("far-1").join(name).exists(), "{name}");
    }
}

/// N was made smaller and then larger again, and it was killed while it took back.
#[test]
fn what_was_being_taken_back_goes_before_what_was_held() {
    let site = Site::new();
    drop(site.start(3));
    write(site.at("far-2/syncmux-back"), "APPEND user.a\n").unwrap();
    write(site.at("far/syncmux-held"), "APPEND user.a.new\n").unwrap();
    let mut sharder = site.start(3);
    let all = || -> String {
        let logs = (0..3).map(|n| text(&site.at(&format!("far-{n}/log"))));
        logs.collect()
    };
    until(&mut sharder, || all().lines().count() == 2);
    assert_eq!(all(), "APPEND user.a\nAPPEND user.a.new\n");
    assert!(!site.at("far-2/syncmux-back").exists());
}

/// The same where it is no shard this time either.
#[test]
fn what_is_taken_back_twice_keeps_its_order() {
    let site = Site::new();
    drop(site.start(3));
    write(site.at("far-2/log-run"), "APPEND user.a\n").unwrap();
    write(site.at("far-2/syncmux-back"), "APPEND user.a.second\n").unwrap();
    write(site.at("far/log"), "APPEND user.a.third\n").unwrap();
    let mut sharder = site.start(1);
    let out = site.at("far-0/log");
    until(&mut sharder, || text(&out).lines().count() == 3);
    assert_eq!(
        text(&out),
        "APPEND user.a\nAPPEND user.a.second\nAPPEND user.a.third\n"
    );
}

fn sharder_has_held(main: &Path, lines: usize) -> bool {
    text(&main.join("syncmux-held")).lines().count() == lines
}
