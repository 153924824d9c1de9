//! The program as a person meets it: exit codes, help, and what `check` says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

/// Exit code, and both outputs.
fn syncmux(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_syncmux"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

fn ends(args: &[&str], code: i32, says: &[&str]) {
    let (found, text) = syncmux(args);
    assert_eq!(found, code, "{args:?}: {text}");
    for say in says {
        assert!(text.contains(say), "{args:?}: {say:?} is not in:\n{text}");
    }
}

#[test]
fn usage() {
    ends(&[], 64, &["Usage: syncmux"]);
    ends(&["frobnicate"], 64, &["unrecognized subcommand"]);
    ends(&["run", "--lanes", "many"], 64, &["--lanes"]);
    ends(&["run", "--password", "x"], 64, &["unexpected argument"]);
    ends(
        &["--version"],
        0,
        &[concat!("syncmux ", env!("CARGO_PKG_VERSION"))],
    );
    ends(
        &["--help"],
        0,
        &[
            "run",
            "check",
            "status",
            "drain",
            "resync",
            "verify",
            "completions",
            "man",
            "Exit codes",
        ],
    );
    ends(
        &["run", "--help"],
        0,
        &["--replica <ADDRESS>", "--sync-directory", "Exit codes"],
    );
}

#[test]
fn wrong_configuration() {
    for command in ["run", "check"] {
        let missing = "syncmux: /no/such/file: can't be read: no such file or directory\n";
        ends(&[command, "--config", "/no/such/file"], 64, &[missing]);
        ends(&[command], 64, &["syncmux: there is no channel"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncmux.toml");
    fs::write(
        &path,
        "[[channel]]\nlisten = [\"127.0.0.1:2005\"]\nlanes = 8\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let line = format!("syncmux: {path}, line 3: unknown field `lanes`");
    ends(&["run", "--config", path], 64, &[&line]);
}

/// A set-up on this machine: a sync directory and an imapd.conf that agree.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().to_str().unwrap().to_owned();
        fs::create_dir(folder.path().join("sync")).unwrap();
        let conf = format!(
            "configdirectory: {top}\nsync_log: yes\nsync_host: 127.0.0.1\nsync_port: 2005\n\
             sync_try_imap: no\nsync_authname: repl\nsync_password: x\n{more}"
        );
        fs::write(folder.path().join("imapd.conf"), conf).unwrap();
        fs::write(folder.path().join("password"), "swordfish\n").unwrap();
        let password = folder.path().join("password");
        fs::set_permissions(password, fs::Permissions::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            for path in [folder.path().to_owned(), folder.path().join("sync")] {
                chown(path, Some(12_345), Some(12_345)).unwrap();
            }
        }
        Site { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn ends(&self, command: &str, replica: &str, code: i32, says: &[&str]) -> String {
        let (sync, conf, password) = (
            self.path("sync"),
            self.path("imapd.conf"),
            self.path("password"),
        );
        let args = [
            command,
            "--listen",
            "127.0.0.1:2005",
            "--replica",
            replica,
            "--replica-tls",
            "off",
            "--username",
            "repl",
            "--password-file",
            &password,
            "--sync-directory",
            &sync,
            "--imapd-conf",
            &conf,
        ];
        ends(&args, code, says);
        syncmux(&args).1
    }
}

/// A replica that lets `repl` in by this password, for as many connections as come.
fn replica(password: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut to = stream.unwrap();
            let from = BufReader::new(to.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = to.write_all(b"* SASL PLAIN\r\n* OK fake Cyrus sync server 3.6.1\r\n");
                for line in from.lines().map_while(Result::ok) {
                    let answer: &[u8] = if line.starts_with("AUTHENTICATE") {
                        let right = format!("\0repl\0{password}");
                        let right = base64::Engine::encode(
                            &base64::engine::general_purpose::STANDARD,
                            right,
                        );
                        if line.ends_with(&right) {
                            b"OK Success (no protection)\r\n"
                        } else {
                            b"NO authentication failure\r\n"
                        }
                    } else {
                        b"OK done\r\n"
                    };
                    let _ = to.write_all(answer);
                    if line == "EXIT" {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_good_set_up() {
    let site = Site::new("");
    let text = site.ends(
        "check",
        &replica("swordfish"),
        0,
        &[
            "lets repl in",
            "sync_host and sync_port lead here",
            "Cyrus logs into",
        ],
    );
    assert!(
        !text.contains("ERROR") && !text.contains("warning"),
        "{text}"
    );
    assert!(!text.contains("swordfish"), "{text}");
    // There is no cyrus.conf.
    assert!(
        text.contains("syncclient cmd=\"sync_client -r\"\n"),
        "{text}"
    );
    assert!(!text.contains("sync_host: "), "{text}");
    let left: Vec<_> = fs::read_dir(site.path("sync")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn no_replica() {
    let site = Site::new("");
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    site.ends(
        "check",
        &free,
        69,
        &["ERROR    replica", "can't be reached", &free],
    );
}

#[test]
fn wrong_password() {
    let site = Site::new("");
    site.ends("check", &replica("other"), 64, &["ERROR    replica"]);
}

#[test]
fn a_client_with_a_cache() {
    let site = Site::new("sync_cache_db_path: /var/lib/cyrus/cache.db\n");
    let place = format!(
        "{}, line 8: sync_cache_db_path is set",
        site.path("imapd.conf")
    );
    site.ends("check", "127.0.0.1:1", 64, &[&place, "mode = \"strict\""]);
    site.ends("run", "127.0.0.1:1", 64, &[&format!("syncmux: {place}")]);
}

#[test]
fn cyrus_goes_elsewhere() {
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("sync")).unwrap();
    let site = Site::new("");
    let conf = format!(
        "configdirectory: {}\nsync_log_channels: far\nsync_host: replica\nsync_timeout: 10m\n",
        other.path().display()
    );
    fs::write(site.path("imapd.conf"), conf).unwrap();
    site.ends(
        "check",
        "127.0.0.1:1",
        64,
        &[
            "sync_log is off",
            "sync_log_channels does not name channel \"\"",
            "Cyrus writes this channel's log into",
            "the client goes past it",
            "sync_try_imap is on",
            "set replica_absence",
            "    sync_timeout: 30m\n",
            "    sync_log_channels: far \"\"\n",
        ],
    );
}

/// Cyrus names the replica, and the redirect rules bring it here.
#[test]
fn redirected_clients() {
    let address = replica("swordfish");
    let (host, port) = address.split_once(':').unwrap();
    let site = Site::new("");
    let check = |sync_host: &str, sync_port: &str, code, says: &str| {
        let conf = format!(
            "configdirectory: {}\nsync_log: yes\nsync_log_channels: \"\" far\nsync_try_imap: no\n\
             sync_host: {sync_host}\nsync_port: {sync_port}\n",
            site.folder.path().display()
        );
        fs::write(site.path("imapd.conf"), conf).unwrap();
        let config = format!(
            "[[channel]]\nsync_directory = \"{0}/sync\"\ntransparent = true\n\
             listen = [\"127.0.0.1:2005\"]\n[channel.replica]\naddress = \"{address}\"\n\
             tls = \"off\"\nusername = \"repl\"\npassword_file = \"{0}/password\"\n\
             [site]\nimapd_conf = \"{0}/imapd.conf\"\n",
            site.folder.path().display()
        );
        fs::write(site.path("alone.toml"), &config).unwrap();
        let second = format!(
            "[[channel]]\nname = \"far\"\nmode = \"strict\"\ntransparent = true\n\
             listen = [\"127.0.0.1:2005\"]\n[channel.replica]\naddress = \"localhost:{port}\"\n\
             tls = \"off\"\n"
        );
        fs::write(site.path("two.toml"), config + &second).unwrap();
        let file = site.path(if code == 0 { "alone.toml" } else { "two.toml" });
        ends(&["check", "--config", &file], code, &[says]);
    };
    check(host, port, 0, "ok       ");
    check(host, port, 0, "sync_host and sync_port name the replica");
    check("127.0.0.1", "2005", 0, "sync_host and sync_port lead here");
    check(
        "replica.test",
        "2005",
        0,
        "served only if it was to go to an address of the replica",
    );
    check(
        "127.0.0.1",
        "2005",
        64,
        "several channels listen for redirected connections",
    );
}

#[test]
fn somebody_elses_log() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::new("");
    fs::write(site.path("sync/log"), "").unwrap();
    site.ends(
        "check",
        "127.0.0.1:1",
        64,
        &["log belongs to root and not to uid 12345", "chown"],
    );
}

#[test]
fn what_cyrus_is_to_be_told() {
    let site = Site::new("sync_compress: yes\nsync_rightnow_channel: \"\"\n");
    let conf = "START {\n  syncclient cmd=\"sync_client -r\"\n}\n";
    fs::write(site.path("cyrus.conf"), conf).unwrap();
    site.ends(
        "check",
        "127.0.0.1:1",
        69,
        &[
            "sync_compress is on",
            "    sync_compress: no\n",
            "sync_rightnow_channel sends every imapd",
            "is started in START, and never again",
            "    syncclient cmd=\"sync_client -r\"\n",
            "cyrus.conf of the master, between DAEMON { and }",
            "only if nothing else starts it (a systemd unit, client_command)",
        ],
    );
    fs::write(site.path("imapd.conf"), "configdirectory: /nowhere\n").unwrap();
    fs::write(site.path("cyrus.conf"), conf.replace("START", "DAEMON")).unwrap();
    let text = site.ends(
        "check",
        "127.0.0.1:1",
        64,
        &[
            "    sync_log: yes\n    sync_host: 127.0.0.1\n    sync_port: 2005\n    sync_authname: repl\n",
            "    sync_try_imap: no\n",
            "sync_host is not set",
            "starts the rolling client of the default channel again",
        ],
    );
    assert!(!text.contains("DAEMON {"), "{text}");
    assert!(!text.contains("sync_log_channels"), "{text}");
}

#[test]
fn nobody_reads_what_check_says() {
    let site = Site::new("");
    let args = [
        "check",
        "--listen",
        "127.0.0.1:2005",
        "--replica",
        "127.0.0.1:1",
        "--replica-tls",
        "off",
        "--sync-directory",
        &site.path("sync"),
    ];
    let mut checks = Command::new(env!("CARGO_BIN_EXE_syncmux"))
        .args(args)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(checks.stdout.take());
    let output = checks.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    assert_ne!(output.status.code(), Some(70));
}

#[test]
fn nobody_to_ask() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    for command in ["status", "drain"] {
        let says = [
            "no syncmux answers at the admin endpoint",
            &free,
            "connection refused",
        ];
        ends(&[command, "--admin", &free], 69, &says);
        ends(
            &[command, "--admin", "unix:/no/such/socket"],
            69,
            &["no such file or directory"],
        );
        ends(
            &[command, "--admin", "nowhere"],
            64,
            &["--admin: `nowhere` is no address to connect to"],
        );
        let missing = "syncmux: /no/such/file: can't be read: no such file or directory\n";
        ends(&[command, "--config", "/no/such/file"], 64, &[missing]);
    }
    ends(
        &["status", "--watch", "--json", "--admin", &free],
        69,
        &["no syncmux answers"],
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncmux.toml");
    fs::write(&path, "[[channel]]\nlisten = [\"127.0.0.1:2005\"]\n").unwrap();
    let path = path.to_str().unwrap();
    ends(
        &["status", "--config", path],
        64,
        &["has no admin endpoint", "[admin]"],
    );
    // Something else listens there.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.unwrap().write_all(b"220 mail.example.com ESMTP\r\n");
        }
    });
    ends(&["status", "--admin", &address], 69, &["it speaks no HTTP"]);
}

/// A configuration with one channel for each of these names, each with a folder.
fn channels(folder: &std::path::Path, names: &[&str]) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let sync = folder.join(format!("sync{i}"));
        fs::create_dir(&sync).unwrap();
        text.push_str(&format!(
            "[[channel]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:{}\"]\n\
             sync_directory = \"{}\"\n[channel.replica]\naddress = \"127.0.0.1:1\"\n\
             tls = \"off\"\n",
            2005 + i,
            sync.display()
        ));
    }
    let path = folder.join("syncmux.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn resync() {
    let folder = tempfile::tempdir().unwrap();
    let config = channels(folder.path(), &["", "far"]);
    let log = |i: u32| fs::read_to_string(folder.path().join(format!("sync{i}/log")));
    ends(&["resync"], 64, &["USER"]);
    ends(
        &["resync", "joe", "--config", &config],
        64,
        &["--channel", "\"\", \"far\""],
    );
    ends(
        &["resync", "joe", "--config", &config, "--channel", "x"],
        64,
        &["the configuration has no channel \"x\" (there are: \"\", \"far\")"],
    );
    for wrong in ["a\nb", "a\rb", ""] {
        let args = [
            "resync",
            "joe",
            wrong,
            "--config",
            &config,
            "--channel",
            "far",
        ];
        ends(&args, 64, &["nothing was written"]);
    }
    assert!(log(1).is_err());
    let args = [
        "resync",
        "joe",
        "a b",
        "joe",
        "--config",
        &config,
        "--channel",
        "far",
    ];
    ends(
        &args,
        0,
        &[
            "sync1/log",
            "  USER joe\n",
            "channel \"far\" takes this",
            "syncmux verify",
        ],
    );
    assert_eq!(log(1).unwrap(), "USER \"a b\"\nUSER joe\n");
    ends(&args, 0, &[]);
    assert_eq!(log(1).unwrap().lines().count(), 4);
    assert!(log(0).is_err());
    fs::remove_dir_all(folder.path().join("sync0")).unwrap();
    let args = ["resync", "joe", "--config", &config, "--channel", ""];
    ends(
        &args,
        64,
        &["nothing was written: ", "no such file or directory"],
    );
}

#[test]
fn resync_makes_a_log_of_cyrus() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = channels(folder.path(), &[""]);
    let sync = folder.path().join("sync0");
    chown(&sync, Some(12_345), Some(12_345)).unwrap();
    ends(&["resync", "joe", "--config", &config], 0, &[]);
    let meta = sync.join("log").metadata().unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o777),
        (12_345, 12_345, 0o640)
    );
    let names: Vec<_> = fs::read_dir(&sync)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert_eq!(names, ["log"]);
}

#[test]
fn papers() {
    ends(&["completions", "bash"], 0, &["_syncmux()", "resync"]);
    ends(&["completions", "fish"], 0, &["complete -c syncmux"]);
    ends(&["completions", "tcsh"], 64, &["invalid value 'tcsh'"]);
    ends(&["man"], 0, &[".TH syncmux 1", "resync"]);
    ends(
        &["man", "status"],
        0,
        &[".TH syncmux-status 1", "\\-\\-watch"],
    );
    ends(
        &["man", "frobnicate"],
        64,
        &["there is no command \"frobnicate\"", "resync"],
    );
}
