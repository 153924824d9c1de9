//! The Debian package: built from the metadata in Cargo.toml, installed, changed, removed and
//! purged by dpkg in a root of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A machine that has the C library installed and nothing else, as far as dpkg knows.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let admin = root.path().join("var/lib/dpkg");
        for folder in ["info", "updates", "triggers"] {
            fs::create_dir_all(admin.join(folder)).unwrap();
        }
        // As it stands on this machine: the dependencies of the package are really compared.
        let status = run(Command::new("dpkg-query").args(["-s", "libc6", "libgcc-s1"]));
        let without = |line: &&str| {
            !["Depends:", "Pre-Depends:", "Breaks:", "Conflicts:"]
                .iter()
                .any(|key| line.starts_with(key))
        };
        let status: Vec<&str> = status.lines().filter(without).collect();
        fs::write(admin.join("status"), format!("{}\n", status.join("\n"))).unwrap();
        fs::write(admin.join("available"), "").unwrap();
        Machine { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn dpkg(&self, arguments: &[&str]) -> String {
        let log = self.path("dpkg.log");
        run(Command::new("dpkg")
            .arg(format!("--root={}", self.root.path().display()))
            .arg(format!("--log={}", log.display()))
            // There is no shell in it. The scripts get DPKG_ROOT instead.
            .args([
                "--force-script-chrootless",
                "--force-confdef",
                "--force-confold",
            ])
            .args(arguments))
    }

    fn query(&self, format: &str) -> String {
        run(Command::new("dpkg-query")
            .arg(format!(
                "--admindir={}",
                self.path("var/lib/dpkg").display()
            ))
            .args(["-W", "-f", format, "syncmux"]))
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }
}

#[test]
fn installed_changed_removed_and_purged() {
    let output = tempfile::tempdir().unwrap();
    // The program that was built for this test: no release build for it.
    let binary = Path::new(env!("CARGO_BIN_EXE_syncmux"));
    let target = binary.ancestors().nth(2).unwrap();
    run(Command::new(top().join("deploy/debian/build.sh"))
        .args(["--profile", "dev", "--no-build", "--output"])
        .arg(output.path())
        .env("CARGO_TARGET_DIR", target));
    let built = fs::read_dir(output.path()).unwrap().filter_map(Result::ok);
    let package = built
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.expect("a package is built");
    let package = package.to_str().unwrap();
    let fields = run(Command::new("dpkg-deb").args(["--field", package]));
    assert!(
        fields.contains(&format!("Version: {}-1", env!("CARGO_PKG_VERSION"))),
        "{fields}"
    );
    assert!(
        fields.contains("Depends: ") && fields.contains("libc6 (>= 2."),
        "{fields}"
    );

    let machine = Machine::new();
    machine.dpkg(&["--install", package]);
    assert_eq!(machine.query("${db:Status-Abbrev}"), "ii ");
    let program = machine.path("usr/bin/syncmux");
    let version = run(Command::new(&program).arg("--version"));
    assert_eq!(
        version.trim(),
        concat!("syncmux ", env!("CARGO_PKG_VERSION"))
    );
    for (name, mode) in [
        ("usr/bin/syncmux", 0o755),
        ("etc/syncmux/syncmux.toml", 0o644),
        ("etc/syncmux/terminate.toml", 0o644),
        ("etc/syncmux/shard.toml", 0o644),
        ("usr/lib/systemd/system/syncmux.service", 0o644),
        ("usr/lib/systemd/system/syncmux-terminate.service", 0o644),
        ("usr/lib/systemd/system/syncmux-shard.service", 0o644),
        ("usr/lib/systemd/system/cyrus-sync-client.service", 0o644),
        ("usr/lib/systemd/system/cyrus-sync-client@.service", 0o644),
        ("usr/share/doc/syncmux/examples/client.conf", 0o644),
        ("usr/share/man/man1/syncmux.1.gz", 0o644),
        ("usr/share/bash-completion/completions/syncmux", 0o644),
        ("usr/share/zsh/vendor-completions/_syncmux", 0o644),
        ("usr/share/fish/vendor_completions.d/syncmux.fish", 0o644),
        ("usr/share/doc/syncmux/copyright", 0o644),
        ("usr/share/doc/syncmux/deploy/RUNBOOKS.md", 0o644),
        ("usr/share/doc/syncmux/deploy/grafana/alerts.yml", 0o644),
        (
            "usr/share/doc/syncmux/deploy/transparent/syncmux.nft",
            0o644,
        ),
        ("usr/share/doc/syncmux/certs/make.sh", 0o755),
    ] {
        let meta = machine
            .path(name)
            .metadata()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        assert!(meta.len() > 0, "{name} is empty");
    }
    let page = run(Command::new("man")
        .args(["--local-file", "--pager=cat"])
        .arg(machine.path("usr/share/man/man1/syncmux.1.gz")));
    assert!(page.contains("syncmux"), "{page}");
    let completions = machine.path("usr/share/bash-completion/completions/syncmux");
    run(Command::new("bash").arg("-n").arg(completions));
    // It is enabled and started by nobody.
    assert!(!machine.has("etc/systemd"));
    let conffiles = machine.query("${Conffiles}");
    for name in ["syncmux", "terminate", "shard"] {
        let name = format!("/etc/syncmux/{name}.toml");
        assert!(conffiles.contains(&name), "{conffiles}");
    }
    assert_eq!(conffiles.trim().lines().count(), 3, "{conffiles}");

    // What the site wrote outlives an upgrade.
    let config = machine.path("etc/syncmux/syncmux.toml");
    fs::write(&config, "# ours\n").unwrap();
    machine.dpkg(&["--install", package]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "# ours\n");

    machine.dpkg(&["--remove", "syncmux"]);
    assert!(machine.has("etc/syncmux/syncmux.toml"));
    assert!(!machine.has("usr/bin/syncmux"));
    assert!(!machine.has("usr/lib/systemd/system/syncmux.service"));
    assert!(!machine.has("usr/share/doc/syncmux"));

    // A password that is not dpkg's stays.
    fs::write(machine.path("etc/syncmux/password"), "secret\n").unwrap();
    machine.dpkg(&["--purge", "syncmux"]);
    assert!(!machine.has("etc/syncmux/syncmux.toml"));
    assert!(!machine.has("etc/syncmux/terminate.toml"));
    assert!(machine.has("etc/syncmux/password"));

    fs::remove_file(machine.path("etc/syncmux/password")).unwrap();
    machine.dpkg(&["--install", package]);
    machine.dpkg(&["--purge", "syncmux"]);
    assert!(!machine.has("etc/syncmux"));
    assert_eq!(
        run(Command::new("dpkg-query")
            .arg(format!(
                "--admindir={}",
                machine.path("var/lib/dpkg").display()
            ))
            .args(["-W", "-f", "${Package} "])),
        "libc6 libgcc-s1 "
    );
}

/// With systemd, which does not run here: a stand-in notes what the scripts ask of it.
#[test]
fn what_the_scripts_ask_of_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("asked");
    let stand_in = folder.path().join("systemctl");
    let text = format!("#!/bin/sh\necho \"$*\" >> {}\n", note.display());
    fs::write(&stand_in, text).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    let booted = folder.path().join("booted");
    fs::create_dir(&booted).unwrap();
    let asked = |script: &str, arguments: &[&str], root: Option<&str>| {
        let _ = fs::remove_file(&note);
        let text = fs::read_to_string(top().join("deploy/debian").join(script)).unwrap();
        let text = text.replace("/run/systemd/system", booted.to_str().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &text, script]).args(arguments);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", folder.path().display()));
        command.env_remove("DPKG_ROOT");
        if let Some(root) = root {
            command.env("DPKG_ROOT", root);
        }
        run(&mut command);
        fs::read_to_string(&note).unwrap_or_default()
    };
    let units = "syncmux.service syncmux-terminate.service syncmux-shard.service";
    assert_eq!(
        asked("postinst", &["configure", ""], None),
        "daemon-reload\n"
    );
    let upgrade = format!("daemon-reload\ntry-restart {units}\n");
    assert_eq!(asked("postinst", &["configure", "0.0.9-1"], None), upgrade);
    assert_eq!(asked("prerm", &["upgrade", "0.2.0-1"], None), "");
    let removal = format!("disable --now cyrus-sync-client*.service\ndisable --now {units}\n");
    assert_eq!(asked("prerm", &["remove"], None), removal);
    assert_eq!(asked("postrm", &["remove"], None), "daemon-reload\n");
    let root = Some(folder.path().to_str().unwrap());
    for (script, arguments) in [
        ("postinst", ["configure", "0.0.9-1"].as_slice()),
        ("prerm", &["remove"]),
        ("postrm", &["purge"]),
    ] {
        assert_eq!(
            asked(script, arguments, root),
            "",
            "{script} in another root"
        );
    }
}
