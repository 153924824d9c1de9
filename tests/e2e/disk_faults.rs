//! A sync directory that is full, read-only, not ours any more, or without hard links; a full
//! spill directory. Nothing is acknowledged early without its cover, and all comes back by itself.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::client::leftovers;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::mount::{Mount, fill, fill_names, free_names};
use crate::support::process::{folder, give};
use crate::support::wait_for;

/// A lab whose sync directory is a file system of its own. It can be read on the wire.
fn on_tmpfs(options: &str) -> (Lab, Mount) {
    let mut setup = Setup::new(Way::FanOut);
    setup.tls = false;
    let mut lab = setup.start();
    lab.mux().stop();
    let mount = Mount::tmpfs(&lab.sync_directory(), options);
    lab.mux().start();
    (lab, mount)
}

/// How many changes of mailboxes were acknowledged before the replica had them.
fn early(lab: &mut Lab) -> f64 {
    let labels = [("verb", "APPLY MAILBOX"), ("early", "true")];
    lab.mux().metric("syncmux_commands_total", &labels)
}

fn disk_failures(lab: &mut Lab, kind: &str) -> f64 {
    let labels = [("side", "disk"), ("kind", kind)];
    lab.mux().metric("syncmux_failures_total", &labels)
}

/// How often the log has said so.
fn complaints(lab: &mut Lab) -> usize {
    let text = lab.mux().log_text();
    text.lines()
        .filter(|l| l.contains("the sync directory can't be used"))
        .count()
}

/// Mail goes early again, without anybody's help.
fn assert_early_again(lab: &mut Lab, users: &[String]) {
    lab.step("it is as before");
    let before = early(lab);
    lab.mail(users, "afterwards", 1000);
    lab.settle();
    assert!(early(lab) > before, "still strict");
}

#[test]
fn no_room_for_a_link() {
    let (mut lab, _mount) = on_tmpfs("nr_inodes=40");
    let directory = lab.sync_directory();
    let users = lab.add_users(6);
    lab.mail(&users, "1", 1000);
    lab.settle();
    let before = early(&mut lab);
    for round in 0..2 {
        lab.step(&format!("full, round {round}"));
        lab.end_rolling();
        // In a full one Cyrus itself can't make `log`.
        lab.mail(&users, "full", 1000);
        fill_names(&directory);
        lab.settle();
        assert_eq!(early(&mut lab), before, "acknowledged without a cover");
        assert!(disk_failures(&mut lab, "not_covered") > 0.0);
        assert_eq!(complaints(&mut lab), 1);
        free_names(&directory, 10);
    }
    free_names(&directory, 0);
    assert_early_again(&mut lab, &users);
}

#[test]
fn no_room_for_owed_lines() {
    let (mut lab, _mount) = on_tmpfs("size=64k");
    let directory = lab.sync_directory();
    let users = lab.add_users(6);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.step("full while one user is refused");
    lab.end_rolling();
    let bad = lab.replica.mailbox_folder("user.u002");
    let mode = |mode| std::fs::set_permissions(&bad, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o555);
    lab.mail(&users, "2", 1000);
    fill(&directory.join("filler"));
    lab.rolling();
    wait_for("a line that can't be written", || {
        lab.rolling().keep_alive();
        (disk_failures(&mut lab, "not_written") > 0.0).then_some(())
    });
    let is_link = |name: &String| name.starts_with("syncmux-run-");
    let stands = |what: &str| {
        let left = leftovers(&directory);
        assert!(left.iter().any(is_link), "{what}: {left:?}");
    };
    stands("the only trace of what was acknowledged");
    lab.step("killed, and started while there is no room");
    lab.mux().kill();
    let (code, said) = lab.mux().run_in_vain();
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("no space left"), "{said}");
    stands("after a start in vain");
    lab.step("there is room, and the user is in order");
    std::fs::remove_file(directory.join("filler")).unwrap();
    lab.mux().start();
    mode(0o755);
    lab.settle();
    assert_early_again(&mut lab, &users);
}

/// While it lasts nothing can be linked, nor can the client unlink `log-run`.
fn not_ours(take: impl FnOnce(&Path) -> Option<Mount>, give_back: impl FnOnce(&Path)) {
    let mut setup = Setup::new(Way::FanOut);
    // So that the client waits for the replica before anything is linked.
    setup.mux_extra = "[limits]\nknown_state = 0\n".to_owned();
    let mut lab = setup.start();
    let directory = lab.sync_directory();
    let users = lab.add_users(6);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.end_rolling();
    lab.mail(&users, "2", 1000);
    lab.step("it is not ours any more, just after the client has begun its run");
    let before = early(&mut lab);
    // The client can't even open the file later.
    lab.relay.stall(true);
    lab.rolling();
    wait_for("the client to be in need of the replica", || {
        let asked = lab.mux().status()["in_flight"].as_u64() > Some(0);
        (asked && directory.join("log-run").exists()).then_some(())
    });
    let mount = take(&directory);
    let refused = lab.mux().check();
    assert!(refused.1.contains("ERROR"), "{}", refused.1);
    lab.relay.stall(false);
    wait_for("the replica to have it all", || {
        lab.rolling().keep_alive();
        let count = |user: &String| {
            let lines = lab
                .replica
                .admin()
                .run(&format!("STATUS user.{user} (MESSAGES)"));
            lines[0].ends_with("(MESSAGES 2)")
        };
        users.iter().all(count).then_some(())
    });
    assert_eq!(early(&mut lab), before, "acknowledged without a cover");
    assert!(disk_failures(&mut lab, "not_covered") > 0.0);
    assert_eq!(complaints(&mut lab), 1);
    lab.step("it is ours again");
    drop(mount);
    give_back(&directory);
    lab.settle();
    assert_early_again(&mut lab, &users);
}

#[test]
fn permission_lost() {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let take = |path: &Path| {
        mode(path, 0o555);
        None
    };
    not_ours(take, |path| mode(path, 0o755));
}

#[test]
fn read_only() {
    not_ours(|path| Some(Mount::read_only(path)), |_| ());
}

/// A run that was there before syncmux was, all of it acknowledged and nothing confirmed when
/// syncmux is killed.
fn covered(environment: impl FnOnce(&Lab) -> Vec<(String, String)>, hard_links: bool) {
    let mut setup = Setup::new(Way::FanOut);
    setup.tls = false;
    let mut lab = setup.start();
    let directory = lab.sync_directory();
    let users = lab.add_users(3);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.mux().stop();
    lab.end_rolling();
    // One: no GET of another one must meet the lane whose answers are held back.
    lab.mail(&users[..1], "left", 1000);
    // As a client leaves it that was killed.
    std::fs::rename(directory.join("log"), directory.join("log-run")).unwrap();
    lab.step("started with log-run there");
    lab.mux().environment = environment(&lab);
    lab.mux().start();
    lab.relay.hold_answers_to(Some("APPLY MAILBOX"));
    lab.rolling();
    let run = |left: &[String]| left.iter().find(|n| n.starts_with("syncmux-run-")).cloned();
    let link = wait_for("the run to be covered", || run(&leftovers(&directory)));
    let inode = directory.join(&link).metadata().unwrap().ino();
    let is_link = link == format!("syncmux-run-{inode}");
    assert_eq!(is_link, hard_links, "{link} is {inode}");
    wait_for("the client to be done", || {
        (!directory.join("log-run").exists()).then_some(())
    });
    let text = std::fs::read_to_string(directory.join(&link)).unwrap();
    assert!(text.contains(&users[0]), "{text}");
    assert_eq!(early(&mut lab), 1.0);
    lab.step("killed with nothing confirmed");
    lab.mux().kill();
    lab.relay.hold_answers_to(None);
    lab.mux().start();
    lab.settle();
    assert_eq!(complaints(&mut lab), 0);
}

#[test]
fn run_that_is_there_at_the_start() {
    covered(|_| Vec::new(), true);
}

/// No file system without hard links can be mounted everywhere, so the call says what it says there
/// (EPERM). All else is real.
#[test]
fn without_hard_links() {
    covered(
        |lab| {
            let library = without_link(&folder(&lab.path("no-links")));
            vec![("LD_PRELOAD".to_owned(), library.display().to_string())]
        },
        false,
    );
}

fn without_link(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("link.c"), folder.join("link.so"));
    let text = "#include <errno.h>\n\
        int linkat(int a, const char *b, int c, const char *d, int e) { errno = EPERM; return -1; }\n\
        int link(const char *a, const char *b) { errno = EPERM; return -1; }\n";
    std::fs::write(&source, text).unwrap();
    let mut command = Command::new("cc");
    command
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(
        command
            .status()
            .expect("cc, which Rust needs too")
            .success()
    );
    give(&library);
    library
}

ways!(full_spill: strict, fan_out);

fn full_spill(way: Way) {
    let mut lab = Setup::new(way).start();
    let users = lab.add_users(4);
    lab.mail(&users, "1", 1000);
    lab.settle();
    lab.mux().stop();
    let spill = folder(&lab.path("spill"));
    let _mount = Mount::tmpfs(&spill, "size=8m");
    let mut options = lab.mux_options();
    options.extra = format!(
        "[limits]\nstaged_memory = \"64KiB\"\nspill_directory = \"{}\"\n",
        spill.display()
    );
    lab.mux().configure(&options);
    lab.mux().start();
    lab.end_rolling();
    lab.step("a message that finds no room");
    lab.mail(&users[..3], "small", 1000);
    lab.mail(&users[3..], "large", 1_200_000);
    fill(&spill.join("filler"));
    lab.rolling();
    wait_for("it to be refused", || {
        lab.rolling().keep_alive();
        (disk_failures(&mut lab, "no_room") > 0.0).then_some(())
    });
    lab.step("there is room again");
    std::fs::remove_file(spill.join("filler")).unwrap();
    lab.settle();
}
