//! What the tests of the configuration have in common.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use syncmux::config::Config;

/// A folder with everything that a configuration may name.
pub struct Files {
    pub folder: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files { folder };
        let write = |name: &str, text: &str| fs::write(files.path(name), text).unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for name in ["ca.pem", "client.pem", "server.pem"] {
            write(name, &certified.cert.pem());
        }
        for name in ["client.key", "server.key"] {
            write(name, &certified.signing_key.serialize_pem());
        }
        write("other.key", &other.signing_key.serialize_pem());
        write("password", "secret word\n");
        write(
            "imapd.conf",
            "virtdomains: userid\ndefaultdomain: example.com\n",
        );
        fs::create_dir(files.path("sync")).unwrap();
        let client = files.path("sync_client");
        fs::write(&client, "").unwrap();
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
        files
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// With `DIR` standing for the folder.
    pub fn parse(&self, text: &str) -> Result<Config, Vec<String>> {
        let text = text.replace("DIR", self.folder.path().to_str().unwrap());
        Config::parse(Path::new("syncmux.toml"), &text)
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
    }
}

pub const SIMPLE: &str = r#"
[[channel]]
listen = ["127.0.0.1:2005"]
[channel.replica]
address = "replica.example.com:2005"
[site]
imapd_conf = "DIR/imapd.conf"
"#;

/// All that is wrong with it, a line each.
pub fn errors(text: &str) -> String {
    Files::new().parse(text).unwrap_err().join("\n")
}

pub fn example() -> String {
    include_str!("../../deploy/syncmux.toml")
        .replace("/etc/syncmux/", "DIR/")
        .replace("/etc/imapd.conf", "DIR/imapd.conf")
        .replace("/usr/lib/cyrus/bin/", "DIR/")
        .replace("/var/lib/cyrus/sync", "DIR/sync")
}

/// `was` is replaced by `is` in a good file; the one error must hold each of `say`.
pub fn refused(was: &str, is: &str, say: &[&str]) {
    let files = Files::new();
    let good = example();
    assert!(good.contains(was), "{was}");
    let errors = files.parse(&good.replacen(was, is, 1)).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let line = 1 + good[..good.find(was).unwrap()].matches('\n').count();
    for say in [format!("syncmux.toml, line {line}: ").as_str()]
        .iter()
        .chain(say)
    {
        assert!(errors[0].contains(say), "{say:?} is not in: {}", errors[0]);
    }
    assert!(!errors[0].contains('\n'));
}
