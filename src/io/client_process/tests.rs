//! With small scripts as the client.

use super::*;

struct Place {
    folder: tempfile::TempDir,
    stop: CancellationToken,
}

impl Place {
    fn new() -> Self {
        Place {
            folder: tempfile::tempdir().unwrap(),
            stop: CancellationToken::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the shell's script in the folder; `$1` is the folder.
    fn client(&self, script: &str) -> ClientProcess {
        let folder = self.folder.path().display().to_string();
        ClientProcess {
            channel: "test".to_owned(),
            command: ["/bin/sh", "-c", script, "sh", &folder]
                .map(str::to_owned)
                .to_vec(),
            sync_directory: self.folder.path().to_owned(),
        }
    }

    fn start(&self, script: &str) -> tokio::task::JoinHandle<()> {
        tokio::spawn(self.client(script).run(self.stop.clone()))
    }

    /// The lines of a file, once there are so many.
    async fn lines(&self, name: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(
                Instant::now() < deadline,
                "{name} has {lines:?}, not {count} lines"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn lives(pid: &str) -> bool {
    // Not where it has ended and nobody has asked how.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while lives(pid) {
        assert!(Instant::now() < deadline, "{pid} still runs");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_is_started_again_after_growing_pauses() {
    let place = Place::new();
    let running = place.start("date +%s%N >> \"$1/starts\"; echo $CYRUS_ISDAEMON >> \"$1/env\"");
    let starts = place.lines("starts", 3).await;
    place.stop.cancel();
    running.await.unwrap();
    let at: Vec<u64> = starts.iter().map(|line| line.parse().unwrap()).collect();
    let pauses: Vec<u64> = at
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) / 1_000_000)
        .collect();
    // On a busy machine they may be longer.
    assert!(pauses[0] >= 950 && pauses[1] >= 1_950, "{pauses:?}");
    assert_eq!(place.lines("env", 3).await[0], "1");
}

#[tokio::test]
async fn it_is_ended_with_us_and_may_take_its_time() {
    let place = Place::new();
    let running = place.start(
        "trap 'sleep 0.5; echo left >> \"$1/left\"; exit 0' TERM; echo $$ >> \"$1/pid\"; \
         while :; do sleep 0.05; done",
    );
    let pid = place.lines("pid", 1).await[0].clone();
    assert!(lives(&pid));
    place.stop.cancel();
    running.await.unwrap();
    assert!(!lives(&pid));
    assert_eq!(place.lines("left", 1).await, ["left"]);
    assert_eq!(
        place.lines("pid", 1).await.len(),
        1,
        "it was not started again"
    );
}

#[tokio::test]
async fn a_client_that_was_left_over_is_ended_first() {
    let place = Place::new();
    // As an earlier syncmux that was killed would leave it behind.
    let lock = take(&place.path(LOCK)).unwrap().unwrap();
    let mut old = std::process::Command::new("/bin/sleep")
        .arg("100")
        .stdin(Stdio::from(lock))
        .spawn()
        .unwrap();
    let old_pid = old.id().to_string();
    assert!(take(&place.path(LOCK)).unwrap().is_none());
    let holder = holders(&place.path(LOCK));
    assert_eq!(holder.len(), 1);
    assert_eq!(holder[0].as_raw_nonzero().get().to_string(), old_pid);
    let running = place.start("echo $$ >> \"$1/pid\"; exec sleep 100");
    let pid = place.lines("pid", 1).await[0].clone();
    assert!(!lives(&old_pid), "both ran at once");
    old.wait().unwrap();
    place.stop.cancel();
    running.await.unwrap();
    gone(&pid).await;
}

#[tokio::test]
async fn one_that_goes_into_the_background_does_not_become_two() {
    let place = Place::new();
    // Standard input is given on, as by fork; the shell would take it from what it starts by `&`.
    let running = place.start("exec 3<&0; sleep 100 <&3 & echo $! >> \"$1/pids\"");
    let pids = place.lines("pids", 2).await;
    assert!(!lives(&pids[0]), "the first one went on beside the second");
    place.stop.cancel();
    running.await.unwrap();
    for pid in place.lines("pids", 2).await {
        gone(&pid).await;
    }
}

#[tokio::test]
async fn one_that_is_no_program_is_tried_again() {
    let place = Place::new();
    let program = place.path("client");
    let mut client = place.client("");
    client.command = vec![
        program.display().to_string(),
        place.path("here").display().to_string(),
    ];
    let running = tokio::spawn(client.run(place.stop.clone()));
    sleep(Duration::from_millis(300)).await;
    let ready = place.path("ready");
    std::fs::write(&ready, "#!/bin/sh\necho came >> \"$1\"\nexec sleep 100\n").unwrap();
    std::fs::set_permissions(&ready, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&ready, &program).unwrap();
    place.lines("here", 1).await;
    place.stop.cancel();
    running.await.unwrap();
}

#[test]
fn clients_that_run_are_seen_whoever_started_them() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    let folder = |name: &str| {
        std::fs::create_dir_all(place.path().join(name).join("sync")).unwrap();
        let conf = format!("configdirectory: {}\n", at(name));
        std::fs::write(at(&format!("{name}.conf")), conf).unwrap();
        place.path().join(name).join("sync")
    };
    let (ours, other) = (folder("ours"), folder("other"));
    std::fs::write(at("sync_client"), "read line\n").unwrap();
    let mut client = std::process::Command::new("/bin/sh")
        .args([
            &at("sync_client"),
            "-C",
            &at("ours.conf"),
            "-n",
            "far-5",
            "-R",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = client.id().cast_signed();
    // It is the shell that tests see until it has become that program.
    while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.len() < 20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(running("far-5", &ours), [pid]);
    assert!(running("far-4", &ours).is_empty());
    assert!(running("far-5", &other).is_empty(), "another Cyrus");
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(running("far-5", &ours).is_empty());
}

#[test]
fn ends_in_words() {
    assert!(words(ExitStatus::from_raw(0)).contains("exit code 0"));
    assert!(words(ExitStatus::from_raw(75 << 8)).contains("exit code 75"));
    assert!(words(ExitStatus::from_raw(9)).contains("signal 9"));
}

/// The folder's owner may put a link to something in the place of the file.
#[test]
fn nobody_else_is_taken_for_a_client() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let lock = place.path(LOCK);
    let other = std::process::Command::new("/bin/sleep")
        .arg("100")
        .stdin(Stdio::null())
        .spawn();
    let mut other = other.unwrap();
    symlink("/dev/null", &lock).unwrap();
    assert!(take(&lock).is_err());
    assert_eq!(holders(&lock), []);
    std::fs::remove_file(&lock).unwrap();
    let foreign = place.path("foreign");
    std::fs::write(&foreign, "").unwrap();
    std::fs::hard_link(&foreign, &lock).unwrap();
    assert!(take(&lock).is_err());
    assert_eq!(holders(&lock), []);
    other.kill().unwrap();
    other.wait().unwrap();
}
