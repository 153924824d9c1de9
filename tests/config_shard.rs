//! `[shard]`: a sentence with its line for each mistake; what `check` says, and what is printed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use syncmux::check::shard::{check, print, refusals};
use syncmux::check::{Report, Severity};
use syncmux::config::Shard;
use syncmux::core::shard::Way;

const GOOD: &str = r#"
[shard]
channel = "far"
sync_directory = "DIR/sync/far"
shards = 3
[site]
imapd_conf = "DIR/imapd.conf"
"#;

const IMAPD_CONF: &str = "sync_log: yes\nsync_log_channels: \"\" far\nsync_host: near\n\
                          far_sync_host: replica\nfar_sync_password: secret\n";

struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let site = Site(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(site.0.path().join("sync/far")).unwrap();
        site.write("imapd.conf", IMAPD_CONF);
        site.write("sync_client", "");
        let program = site.0.path().join("sync_client");
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
        site
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn parse(&self, text: &str) -> Result<Shard, Vec<String>> {
        let text = text.replace("DIR", self.0.path().to_str().unwrap());
        Shard::parse(Path::new("shard.toml"), &text)
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect())
    }

    fn check(&self, text: &str) -> Report {
        check(&self.parse(text).unwrap())
    }
}

fn says(report: &Report, severity: Severity, what: &str) -> bool {
    let mut all = report.0.iter();
    all.any(|finding| finding.severity == severity && finding.what.contains(what))
}

#[test]
fn little_is_needed() {
    let site = Site::new();
    let config = site.parse(GOOD).unwrap();
    assert_eq!(config.shard(2), "far-2");
    assert_eq!(config.base, site.0.path().join("sync"));
    assert_eq!((config.shards, config.way), (3, Way::Balanced));
    assert_eq!((config.held_lines, config.mailbox_pairs), (10_000, false));
    assert!(config.client_command.is_empty() && config.warnings.is_empty());
    // The default channel.
    let text = GOOD.replace(
        "channel = \"far\"",
        "deal = \"fixed\"\nheld_lines = 7\nmailbox_pairs = true",
    );
    let config = site.parse(&text.replace("sync/far", "sync")).unwrap();
    assert_eq!(config.shard(0), "shard-0");
    assert_eq!(config.base, site.0.path().join("sync"));
    assert_eq!((config.way, config.held_lines), (Way::Fixed, 7));
    assert!(config.mailbox_pairs);
    let named = GOOD.replace("shards = 3", "name = \"mine\"\nshards = 3");
    assert_eq!(site.parse(&named).unwrap().shard(1), "mine-1");
}

#[test]
fn the_file_in_deploy_is_right() {
    let site = Site::new();
    let text = std::fs::read_to_string("deploy/shard.toml").unwrap();
    let sync = site.0.path().join("sync").display().to_string();
    let conf = site.0.path().join("imapd.conf").display().to_string();
    let text = text.replace("/var/lib/cyrus/sync", &sync);
    let text = text.replace(
        "#imapd_conf = \"/etc/imapd.conf\"",
        &format!("imapd_conf = \"{conf}\""),
    );
    let plain = site.parse(&text).unwrap();
    // What stands there as the default is the default.
    let set = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') && key.contains(" = ") => key,
        _ => line,
    });
    let set: Vec<&str> = set.collect();
    let set = site.parse(&set.join("\n")).unwrap();
    assert_eq!(plain.shards, 8);
    assert_eq!((plain.way, plain.held_lines), (set.way, set.held_lines));
    assert_eq!((plain.name, plain.channel), (set.name, set.channel));
}

#[test]
fn mistakes() {
    let site = Site::new();
    for (from, to, says) in [
        ("shards = 3\n", "", "does not say how many"),
        ("shards = 3", "shards = 0", "shards"),
        ("shards = 3", "shards = 300", "shards"),
        ("shards = 3", "shards = 3\ndeal = \"random\"", "way to deal"),
        (
            "shards = 3",
            "shards = 3\nname = \"a b\"",
            "is no channel's name",
        ),
        (
            "shards = 3",
            "shards = 3\nname = \"\"",
            "is no channel's name",
        ),
        (
            "shards = 3",
            "shards = 3\nname = \"Far\"",
            "capital letters",
        ),
        ("sync/far", "sync/none", "is no folder"),
        (
            "sync_directory = \"DIR/sync/far\"",
            "",
            "has no sync_directory",
        ),
        (
            "\"DIR/sync/far\"",
            "\"DIR/sync\"",
            "is not the folder of the channel \"far\"",
        ),
        ("shards = 3", "shards = 3\nheld_lines = 0", "held_lines"),
        (
            "shards = 3",
            "shards = 3\nclient_command = []",
            "client_command is empty",
        ),
        (
            "shards = 3",
            "shards = 3\nclient_command = [\"DIR/none\", \"%c\"]",
            "is no program",
        ),
        (
            "shards = 3",
            "shards = 3\nclient_command = [\"DIR/sync_client\", \"-n\", \"far\", \"-R\"]",
            "names no channel",
        ),
        (
            "shards = 3",
            "shards = 3\nclient_command = [\"DIR/sync_client\", \"-n\", \"%c\"]",
            "give sync_client the option -R",
        ),
        (
            "shards = 3",
            "shards = 3\nclient_command = [\"DIR/sync_client\", \"-C\", \"%c\", \"-R\"]",
            "give sync_client the shard's channel",
        ),
    ] {
        let errors = site.parse(&GOOD.replace(from, to)).unwrap_err().join("\n");
        assert!(errors.contains(says), "{to}: {errors}");
        assert!(errors.contains("shard.toml"), "{errors}");
    }
    let none = site
        .parse("[admin]\nlisten = \"127.0.0.1:1\"\n")
        .unwrap_err();
    assert!(none[0].contains("there is no [shard]"), "{none:?}");
}

/// A channel whose log would be dealt into itself.
#[test]
fn the_channel_is_none_of_its_shards() {
    let site = Site::new();
    std::fs::create_dir(site.0.path().join("sync/far-2")).unwrap();
    let text = GOOD.replace("channel = \"far\"", "channel = \"far-2\"");
    let text = text.replace("sync/far", "sync/far-2");
    assert_eq!(site.parse(&text).unwrap().shard(0), "far-2-0");
    let named = text.replace("shards = 3", "shards = 1\nname = \"far\"");
    let errors = site.parse(&named).unwrap_err().join("\n");
    assert!(errors.contains("one of its own shards"), "{errors}");
}

#[test]
fn nothing_is_dealt_into_logs_that_are_others_or_nobodys() {
    let site = Site::new();
    let conf = format!("configdirectory: {}\n{IMAPD_CONF}", site.0.path().display());
    site.write("imapd.conf", &conf);
    assert!(refusals(&site.parse(GOOD).unwrap()).is_empty());
    // `channel` was forgotten: the shards would be in sync/far/shard-0.
    let forgotten = GOOD.replace("channel = \"far\"", "");
    let refused = refusals(&site.parse(&forgotten).unwrap()).join("\n");
    assert!(
        refused.contains("where no client looks for them"),
        "{refused}"
    );
    assert!(says(
        &site.check(&forgotten),
        Severity::Error,
        "no client looks"
    ));
    let elsewhere = conf.replace("configdirectory: ", "configdirectory: /nowhere");
    site.write("imapd.conf", &elsewhere);
    assert!(
        refusals(&site.parse(GOOD).unwrap()).is_empty(),
        "a container"
    );
    assert!(says(
        &site.check(GOOD),
        Severity::Warning,
        "which is not there"
    ));
    // Channels of Cyrus's own.
    site.write(
        "imapd.conf",
        &conf.replace("\"\" far", "\"\" far far-1 far-7"),
    );
    let config = site.parse(GOOD).unwrap();
    let refused = refusals(&config).join("\n");
    assert!(
        refused.contains("names far-1") && !refused.contains("far-7"),
        "{refused}"
    );
    let other = site.0.path().join("sync/far-7");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("log"), "APPEND user.joe\n").unwrap();
    assert!(!says(&check(&config), Severity::Warning, "far-7"));
    // What --print-config prints was copied as it is.
    let printed = "far-0_sync_password: PASSWORD\n";
    site.write("imapd.conf", &format!("{conf}{printed}"));
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "far-0_sync_password is still the word"
    ));
}

#[test]
fn run_says_that_shard_is_not_for_it() {
    let site = Site::new();
    let text = GOOD.replace("DIR", site.0.path().to_str().unwrap());
    let errors = syncmux::config::Config::parse(Path::new("shard.toml"), &text).unwrap_err();
    let errors: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert!(
        errors.join("\n").contains("is for `syncmux shard`"),
        "{errors:?}"
    );
}

#[test]
fn the_client_gets_its_channel() {
    let site = Site::new();
    let command = "client_command = [\"DIR/sync_client\", \"-n\", \"%c\", \"-R\"]\n[site]";
    let config = site.parse(&GOOD.replace("[site]", command)).unwrap();
    assert_eq!(config.command_of(1)[1..], ["-n", "far-1", "-R"]);
}

#[test]
fn check_looks_at_cyruss_files() {
    let site = Site::new();
    let lines = |own: &str| format!("{IMAPD_CONF}{own}");
    let all = "far-0_sync_host: replica\nfar-1_sync_host: replica\nfar-2_sync_host: replica\n";
    site.write("imapd.conf", &lines(all));
    site.write(
        "cyrus.conf",
        "DAEMON {\n  a cmd=\"sync_client -n far-0 -r\"\n}\n",
    );
    let report = site.check(GOOD);
    assert!(
        says(&report, Severity::Fine, "replicate to one sync_host"),
        "{report}"
    );
    assert!(
        says(&report, Severity::Warning, "clients of far-1 far-2"),
        "{report}"
    );
    // The tests may run as root, whose folders are not Cyrus's.
    let of_cyrus = |what: &str| what.contains(".conf");
    let wrong = report.0.iter().filter(|it| it.severity == Severity::Error);
    assert!(wrong.into_iter().all(|it| !of_cyrus(&it.what)), "{report}");
    // No sync_host of their own: they would go to another replica.
    site.write("imapd.conf", IMAPD_CONF);
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "these shards have none"
    ));
    // Two names of one replica.
    let other = all.replace("far-2_sync_host: replica", "far-2_sync_host: other");
    site.write("imapd.conf", &lines(&other));
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "different sync_host"
    ));
    let caches = "far-0_sync_cache_db_path: /a\nfar-1_sync_cache_db_path: /b\n";
    site.write("imapd.conf", &lines(&format!("{all}{caches}")));
    assert!(says(&site.check(GOOD), Severity::Error, "different caches"));
    // Cyrus must log for the channel, and not for its shards.
    let conf = lines(all);
    site.write("imapd.conf", &conf.replace("\"\" far", "\"\" far far-1"));
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "sync_log_channels names far-1"
    ));
    site.write("imapd.conf", &conf.replace("\"\" far", "\"\""));
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "does not log for channel far"
    ));
    site.write("imapd.conf", &conf.replace("sync_log: yes", "sync_log: no"));
    assert!(says(&site.check(GOOD), Severity::Error, "sync_log is off"));
    site.write("imapd.conf", &conf);
    // The channel's own client.
    site.write(
        "cyrus.conf",
        "DAEMON {\n  a cmd=\"sync_client -n far -r\"\n}\n",
    );
    assert!(says(
        &site.check(GOOD),
        Severity::Error,
        "starts the rolling client of channel far"
    ));
    // Two who start the same, and one that there is not any more.
    let command = "client_command = [\"DIR/sync_client\", \"-n\", \"%c\", \"-R\"]\n[site]";
    let text = GOOD.replace("[site]", command);
    site.write(
        "cyrus.conf",
        "DAEMON {\n  a cmd=\"sync_client -n far-1 -r\"\n  b cmd=\"sync_client -n far-7 -r\"\n}\n",
    );
    let report = site.check(&text);
    assert!(
        says(&report, Severity::Error, "client_command does so too"),
        "{report}"
    );
    assert!(
        says(&report, Severity::Warning, "not any more: far-7"),
        "{report}"
    );
    std::fs::remove_file(site.0.path().join("cyrus.conf")).unwrap();
    // Lines that are left.
    let old = site.0.path().join("sync/far-5");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("log"), "APPEND user.joe\n").unwrap();
    let warned = site.check(GOOD);
    assert!(says(&warned, Severity::Warning, "has never been one"));
    std::fs::write(old.join("syncmux-shard"), "").unwrap();
    assert!(says(
        &site.check(GOOD),
        Severity::Warning,
        "is no shard any more"
    ));
    assert!(says(
        &site.check(&GOOD.replace("= 3", "= 100")),
        Severity::Warning,
        "maxchild"
    ));
}

#[test]
fn what_is_printed() {
    let site = Site::new();
    let config = site.parse(GOOD).unwrap();
    let text = print(&config);
    for line in [
        "far-0_sync_host: replica",
        "far-2_sync_host: replica",
        "far-1_sync_password: PASSWORD",
        "#    systemctl enable --now cyrus-sync-client@far-2",
        "#      syncfar0 cmd=\"sync_client -n far-0 -r\"",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}: {text}");
    }
    assert!(
        !text.contains("secret") && !text.contains("far-3"),
        "{text}"
    );
    // The default channel's options are everybody's.
    let text = GOOD
        .replace("channel = \"far\"", "")
        .replace("sync/far", "sync");
    let text = print(&site.parse(&text).unwrap());
    assert!(text.contains("nothing need be added"), "{text}");
    assert!(
        text.lines()
            .all(|line| line.is_empty() || line.starts_with('#')),
        "{text}"
    );
}
