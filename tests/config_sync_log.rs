//! The sync directory against Cyrus's own programs: what `sync_client` reads of what is written
//! here, and whether `cyr_synclog` and syncmux stay out of each other's way. Needs Cyrus, and
//! root to become its user.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use syncmux::config::ImapdConf;
use syncmux::io::sync_directory::{Error, SyncDirectory};
use syncmux::protocol::synclog::Line;

const PROGRAMS: &str = "/usr/lib/cyrus/bin";

/// A Cyrus that has a configuration and no processes.
struct Cyrus {
    folder: tempfile::TempDir,
}

impl Cyrus {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests must run as root"
        );
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().to_owned();
        let conf = format!(
            "configdirectory: {0}/conf\npartition-default: {0}/spool\nproc_path: {0}/conf/proc\n\
             mboxname_lockpath: {0}/conf/lock\nservername: master\nadmins: cyrus\n\
             sync_host: {0}/replica\nsync_try_imap: no\nsync_log: yes\n",
            top.display()
        );
        fs::write(top.join("imapd.conf"), conf).unwrap();
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields = passwd.lines().find(|line| line.starts_with("cyrus:"));
        let fields: Vec<&str> = fields.expect("there is no user cyrus").split(':').collect();
        let (uid, gid) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
        for name in [
            "",
            "conf",
            "conf/sync",
            "conf/proc",
            "conf/lock",
            "conf/db",
            "spool",
        ] {
            fs::create_dir_all(top.join(name)).unwrap();
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            chown(top.join(name), Some(uid), Some(gid)).unwrap();
        }
        Cyrus { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str) -> Command {
        let path = Path::new(PROGRAMS).join(name);
        assert!(
            path.exists(),
            "{} is missing: install cyrus-replication",
            path.display()
        );
        let mut command = Command::new("setpriv");
        command.args(["--reuid=cyrus", "--regid=mail", "--init-groups", "--"]);
        command.arg(path).arg("-C").arg(self.path("imapd.conf"));
        command
    }

    fn directory(&self) -> SyncDirectory {
        SyncDirectory::open(&self.path("conf/sync")).unwrap()
    }

    fn log(&self) -> Vec<u8> {
        fs::read(self.path("conf/sync/log")).unwrap()
    }

    /// What `sync_client` says that it does with the log: a replica that knows nothing and says OK
    /// to everything is there for it.
    fn read_back(&self) -> Vec<u8> {
        let socket = self.path("replica");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        std::thread::spawn(move || {
            let (mut to, _) = listener.accept().unwrap();
            let mut from = BufReader::new(to.try_clone().unwrap());
            to.write_all(b"* OK replica Cyrus sync server 3.6.1\r\n")
                .unwrap();
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                // A literal is a part of the command.
                if let Some(len) = literal(&line) {
                    let mut text = vec![0; len];
                    from.read_exact(&mut text).unwrap();
                } else {
                    let _ = to.write_all(b"OK done\r\n");
                }
                line.clear();
            }
        });
        let log = self.path("conf/sync/log");
        let output = self
            .program("sync_client")
            .args(["-v", "-o", "-r", "-f"])
            .arg(log)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }
}

fn literal(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line.strip_suffix(b"+}\r\n")?).ok()?;
    text.rsplit_once('{')?.1.parse().ok()
}

/// Names that are all different users'.
fn hostile() -> Vec<Vec<u8>> {
    let odd: [&[u8]; 22] = [
        b"plain",
        b"a b",
        b" leading",
        b"trailing ",
        b"two  spaces",
        b"quote\"",
        b"\"",
        b"back\\slash",
        b"end\\",
        b"\\\"",
        b"{5}",
        b"brace}",
        b"{10+}",
        b"(list)",
        b"tab\there",
        b"percent%star*",
        b"NIL",
        b"caf\xc3\xa9",
        b"\xff\xfe",
        b"\x01\x7f",
        b"MAILBOX user.x",
        b"^&#!$'`|;<>?",
    ];
    let long = [vec![b'x'; 900], vec![b'"'; 480]];
    let odd = odd.into_iter().map(<[u8]>::to_vec).chain(long);
    odd.enumerate()
        .map(|(i, odd)| [format!("user.u{i}.").as_bytes(), &odd].concat())
        .collect()
}

fn mailboxes(names: &[Vec<u8>]) -> Vec<Line> {
    names
        .iter()
        .map(|name| Line::Mailbox(name.clone().into()))
        .collect()
}

#[test]
fn sync_client_reads_what_is_written() {
    let cyrus = Cyrus::new();
    let directory = cyrus.directory();
    let names = hostile();
    directory
        .append_lines(&[Line::Mailbox("user.first".into())])
        .unwrap();
    // A tail that would swallow what comes after it.
    let mut log = fs::File::options()
        .append(true)
        .open(cyrus.path("conf/sync/log"))
        .unwrap();
    log.write_all(b"MAILBOX \"user.torn").unwrap();
    assert_eq!(directory.append_lines(&mailboxes(&names)).unwrap(), []);
    directory
        .append_lines(&[Line::User("fred smith".into()), Line::Meta("wilma".into())])
        .unwrap();
    let said = cyrus.read_back();
    let said: Vec<&[u8]> = said.split(|byte| *byte == b'\n').collect();
    for name in [b"user.first".to_vec(), b"user.torn".to_vec()]
        .iter()
        .chain(&names)
    {
        let line = [b"MAILBOXES ", name.as_slice()].concat();
        assert!(
            said.contains(&line.as_slice()),
            "{} was not read; all that was:\n{}",
            name.escape_ascii(),
            said.join(&b'\n')
                .escape_ascii()
                .to_string()
                .replace("\\n", "\n")
        );
    }
    assert!(said.contains(&b"USER fred smith".as_slice()));
    assert!(said.contains(&b"META wilma".as_slice()));
}

#[test]
fn sync_client_reads_what_was_put_back() {
    let cyrus = Cyrus::new();
    let directory = cyrus.directory();
    let names = hostile();
    directory.store_owed(&mailboxes(&names)).unwrap();
    let run = "USER \"torn\nAPPEND user.appended\nRENAME user.old user.new\nSEEN a\n(\n";
    fs::write(cyrus.path("conf/sync/syncmux-run-1"), run).unwrap();
    directory.recover().unwrap();
    let said = cyrus.read_back();
    let said: Vec<&[u8]> = said.split(|byte| *byte == b'\n').collect();
    let expected = ["user.appended", "user.old user.new"].map(|name| name.as_bytes().to_vec());
    for name in expected.iter().chain(&names) {
        let line = [b"MAILBOXES ", name.as_slice()].concat();
        assert!(
            said.contains(&line.as_slice()),
            "{} was not read",
            name.escape_ascii()
        );
    }
}

#[test]
fn the_same_bytes_as_cyrus() {
    let (ours, theirs) = (Cyrus::new(), Cyrus::new());
    let names = hostile();
    ours.directory().append_lines(&mailboxes(&names)).unwrap();
    for name in &names {
        let name = std::ffi::OsStr::from_bytes(name);
        let status = theirs
            .program("cyr_synclog")
            .arg("-m")
            .arg(name)
            .status()
            .unwrap();
        assert!(status.success());
    }
    assert_eq!(
        ours.log().escape_ascii().to_string(),
        theirs.log().escape_ascii().to_string()
    );
}

#[test]
fn the_configuration_is_read_as_by_cyrus() {
    let cyrus = Cyrus::new();
    let conf = ImapdConf::read(&cyrus.path("imapd.conf")).unwrap();
    assert!(conf.switch("sync_log", false));
    assert_eq!(conf.option("servername"), Some("master"));
}

/// Cyrus, syncmux and a client that takes the log away, each in processes of their own, since a
/// POSIX lock does not keep a process from itself. Nothing may be lost, torn or written twice.
#[test]
fn writers_and_a_reader() {
    let cyrus = Cyrus::new();
    let directory = cyrus.directory();
    let mut reader = this_test("reader");
    let mut reader = Ended(
        reader
            .env("SYNCMUX_TEST", cyrus.folder.path())
            .spawn()
            .unwrap(),
    );
    let cyrus = &cyrus;
    let ours = std::thread::scope(|scope| {
        for writer in 0..3 {
            scope.spawn(move || {
                for i in 0..40 {
                    let name = format!("user.cyrus{writer}.f{i}");
                    let mut command = cyrus.program("cyr_synclog");
                    assert!(command.args(["-m", &name]).status().unwrap().success());
                }
            });
        }
        let mut ours = 0;
        let start = Instant::now();
        while ours < 1_000 && start.elapsed() < Duration::from_secs(20) {
            let lines = [ours, ours + 1].map(|i| Line::Mailbox(format!("user.ours.f{i}").into()));
            match directory.append_lines(&lines) {
                Ok(_) => ours += 2,
                // This reader takes the log away faster than any client: it is tried again later.
                Err(Error::Busy { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        ours
    });
    fs::write(cyrus.path("stop"), "").unwrap();
    assert!(reader.0.wait().unwrap().success());
    let read = fs::read_to_string(cyrus.path("read")).unwrap();
    let runs = fs::read_to_string(cyrus.path("runs")).unwrap();
    println!("{ours} lines of ours in {runs} runs");
    let mut read: Vec<String> = read.lines().map(str::to_owned).collect();
    let count = read.len();
    read.sort();
    read.dedup();
    assert_eq!(read.len(), count, "a line was written twice");
    let theirs = (0..3).flat_map(|w| (0..40).map(move |i| format!("MAILBOX user.cyrus{w}.f{i}")));
    let all: BTreeSet<String> = theirs
        .chain((0..ours).map(|i| format!("MAILBOX user.ours.f{i}")))
        .collect();
    let read: BTreeSet<String> = read.into_iter().collect();
    let lost: Vec<&String> = all.difference(&read).collect();
    let torn: Vec<&String> = read.difference(&all).collect();
    assert!(
        lost.is_empty() && torn.is_empty(),
        "lost {lost:?}, torn {torn:?}"
    );
}

/// Not a test by itself: the client of the one above, as `sync_log_reader_begin` does it.
#[test]
fn reader() {
    let Some(top) = std::env::var_os("SYNCMUX_TEST").map(PathBuf::from) else {
        return;
    };
    let (log, run) = (top.join("conf/sync/log"), top.join("conf/sync/log-run"));
    let (mut read, mut runs) = (Vec::new(), 0);
    let parent = std::os::unix::process::parent_id();
    loop {
        // A test that was killed tells nobody to stop.
        let last = top.join("stop").exists() || parent != std::os::unix::process::parent_id();
        if fs::rename(&log, &run).is_ok() {
            let mut file = fs::File::options()
                .read(true)
                .write(true)
                .open(&run)
                .unwrap();
            rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::Unlock).unwrap();
            file.read_to_end(&mut read).unwrap();
            fs::remove_file(&run).unwrap();
            runs += 1;
        } else if last {
            break;
        }
    }
    fs::write(top.join("read"), read).unwrap();
    fs::write(top.join("runs"), runs.to_string()).unwrap();
}

/// A process that does not outlive a test that fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn this_test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .stdout(Stdio::null());
    command
}

#[test]
fn what_does_not_fit_is_taken_back() {
    let exe = std::env::current_exe().unwrap();
    // A file may grow to 8 blocks, of 512 bytes or 1,024, and a write beyond is cut short.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact full_disk --nocapture";
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(exe)
        .env("SYNCMUX_TEST", folder.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Not a test by itself: the one above in a process whose files can't grow.
#[test]
fn full_disk() {
    let Some(top) = std::env::var_os("SYNCMUX_TEST").map(PathBuf::from) else {
        return;
    };
    let directory = SyncDirectory::open(&top).unwrap();
    let line = |i| Line::Mailbox(format!("user.joe.folder{i}").into());
    directory.append_lines(&[line(0)]).unwrap();
    let before = fs::read(top.join("log")).unwrap();
    let many: Vec<Line> = (0..2_000).map(line).collect();
    let error = directory.append_lines(&many).unwrap_err();
    assert!(matches!(error, Error::Short { .. }), "{error}");
    assert_eq!(fs::read(top.join("log")).unwrap(), before);
    assert!(directory.store_owed(&many).is_err());
    directory.store_owed(&[line(7)]).unwrap();
    assert!(directory.store_owed(&many).is_err());
    assert_eq!(
        directory.load_owed().unwrap(),
        [b"MAILBOX user.joe.folder7".to_vec()]
    );
    // There is room for the little ones again.
    directory.append_lines(&[line(1)]).unwrap();
    let names: BTreeSet<String> = fs::read_dir(&top)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = ["log", "syncmux-lock", "syncmux-owed"].map(str::to_owned);
    assert_eq!(names, BTreeSet::from(expected));
}
