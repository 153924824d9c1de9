//! The container image, as far as it can be tried without an engine: the script that the
//! Containerfile runs, and its result as a read-only root for a user that is nobody.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Of the pod in deploy/kubernetes.
const UID: u32 = 999;
const GID: u32 = 8;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What gcr.io/distroless/cc-debian12 has of what the program is linked to.
const BASE: [&str; 4] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
];

fn assemble() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(top().join("deploy/container/build.sh"))
        .arg(root.path())
        .arg(env!("CARGO_BIN_EXE_syncmux"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    root
}

/// Puts the libraries there that the base of the image brings, and nothing that it does not.
fn add_base(root: &Path) {
    let output = Command::new("ldd")
        .arg(root.join("usr/bin/syncmux"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        // The loader of other machines is called otherwise.
        let is_known = BASE.contains(&name) || name.starts_with("ld-linux");
        assert!(is_known, "the base of the image has no {name}");
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

/// Runs the program in that root, read-only, as the pod does. Only `writable` can be written.
fn in_image(root: &Path, writable: &[&str], arguments: &str) -> Output {
    let root = root.display();
    let mut script = format!("set -e; mount --bind {root} {root}; ");
    for folder in writable {
        script += &format!("mount --bind {root}{folder} {root}{folder}; ");
    }
    script += &format!("mount -o remount,bind,ro {root}; ");
    script += &format!("! touch {root}/here 2>/dev/null; ");
    script += &format!("exec chroot --userspec={UID}:{GID} {root} /usr/bin/syncmux {arguments}");
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn it_runs_read_only_as_anybody() {
    let root = assemble();
    add_base(root.path());
    let version = in_image(root.path(), &[], "--version");
    assert_eq!(
        text(&version).trim(),
        concat!("syncmux ", env!("CARGO_PKG_VERSION"))
    );

    // As mounted in the pod: the configuration, the sync directory, a disk.
    let at = |name: &str| -> PathBuf { root.path().join(name) };
    fs::create_dir_all(at("var/lib/cyrus/sync")).unwrap();
    chown(at("var/lib/cyrus/sync"), Some(UID), Some(GID)).unwrap();
    fs::write(at("etc/hosts"), "127.0.0.1 replica.example.com\n").unwrap();
    fs::write(at("etc/syncmux/password"), "secret\n").unwrap();
    fs::set_permissions(
        at("etc/syncmux/password"),
        fs::Permissions::from_mode(0o440),
    )
    .unwrap();
    chown(at("etc/syncmux/password"), Some(0), Some(GID)).unwrap();
    let conf = "configdirectory: /var/lib/cyrus\nsync_log: yes\nsync_host: 127.0.0.1\n\
                sync_port: 2005\nsync_try_imap: no\n";
    fs::write(at("etc/imapd.conf"), conf).unwrap();
    let toml = "[[channel]]\nsync_directory = \"/var/lib/cyrus/sync\"\n\
                listen = [\"127.0.0.1:2005\"]\n[channel.replica]\n\
                address = \"replica.example.com:1\"\ntls = \"off\"\nusername = \"repl\"\n\
                password_file = \"/etc/syncmux/password\"\n";
    fs::write(at("etc/syncmux/syncmux.toml"), toml).unwrap();
    let writable = ["/var/lib/cyrus/sync", "/var/tmp"];
    let check = "check --config /etc/syncmux/syncmux.toml";
    let output = in_image(root.path(), &writable, check);
    let said = text(&output);
    // The name is found, nobody listens: all else is as it should be.
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains("replica.example.com:1 can't be reached: Connection refused"),
        "{said}"
    );
    assert!(
        said.contains("ok       the configuration is complete"),
        "{said}"
    );
    // And without a place to write it says what is missing.
    let output = in_image(root.path(), &[], check);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output));
    assert!(
        text(&output).contains("no file can be made in /var/tmp"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_image_has_what_it_needs_and_no_more() {
    let root = assemble();
    let mut found = Vec::new();
    let mut folders = vec![root.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.is_symlink(), "{}", path.display());
            if path.is_dir() {
                folders.push(path);
            } else {
                let mode = path.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o6022, 0, "{}", path.display());
                let name = path.strip_prefix(root.path()).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    let doc = "usr/share/doc/syncmux";
    let expected = ["CHANGELOG.md", "LICENSE", "syncmux.toml"].map(|name| format!("{doc}/{name}"));
    assert_eq!(
        found,
        [&["usr/bin/syncmux".to_owned()], expected.as_slice()].concat()
    );
}

/// What the image's builder does is what was tried above; the rest of the Containerfile is looked
/// at.
#[test]
fn the_containerfile_runs_the_script_and_is_no_root() {
    let text = fs::read_to_string(top().join("deploy/container/Containerfile")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let value = |word: &str| -> Vec<String> {
        let rest = |line: &&str| Some(line.strip_prefix(word)?.strip_prefix(' ')?.to_owned());
        lines.iter().filter_map(rest).collect()
    };
    assert_eq!(value("RUN"), ["deploy/container/build.sh /image"]);
    assert_eq!(value("COPY"), [". .", "--from=build /image/ /"]);
    let from = value("FROM");
    assert_eq!(from.len(), 2);
    assert!(from[0].ends_with("-bookworm AS build"), "{from:?}");
    assert!(
        from[1].contains("cc-debian12"),
        "the same C library as in the builder: {from:?}"
    );
    let user: Vec<u32> = value("USER")[0]
        .split(':')
        .map(|id| id.parse().unwrap())
        .collect();
    // A number: a pod with runAsNonRoot has to see that it is not root.
    assert!(user.iter().all(|id| *id > 0));
    assert!(value("ENTRYPOINT")[0].contains("\"/usr/bin/syncmux\""));
    // The builder's Rust is new enough.
    let manifest = fs::read_to_string(top().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let wanted = manifest["package"]["rust-version"].as_str().unwrap();
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    let has = from[0]
        .split(':')
        .nth(1)
        .unwrap()
        .split('-')
        .next()
        .unwrap();
    assert!(minor(has) >= minor(wanted));
    // What is left out of the build's context is not needed: the program's own sources are there.
    let ignored = fs::read_to_string(top().join(".dockerignore")).unwrap();
    for needed in [
        "src",
        "deploy",
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "CHANGELOG.md",
    ] {
        assert!(!ignored.lines().any(|line| line == needed), "{needed}");
    }
}
