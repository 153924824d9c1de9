//! `syncmux shard`: one channel's log dealt out to several stock clients, rolling.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::certs::SERVER_NAME;
use crate::support::client::{Client, leftovers};
use crate::support::cyrus::{ADMIN, PASSWORD, REPL};
use crate::support::imap::message;
use crate::support::lab::{Lab, Setup, Way};
use crate::support::mux::Mux;
use crate::support::process::{children, write};
use crate::support::wait_for;

const CHANNEL: &str = "far";
const USERS: usize = 200;

/// Where the clients go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    Nothing,
    StrictSyncmux,
}

struct Sharded {
    lab: Lab,
    shard: Mux,
    /// Where the clients go, where that is not the link.
    between: Option<Mux>,
    client: Client,
    users: Vec<String>,
    random: fastrand::Rng,
    renamed: usize,
}

/// The configuration of so many shards; `clients`: it starts them.
fn configuration(
    lab: &Lab,
    client: &Client,
    admin: &str,
    deal: &str,
    shards: usize,
    clients: bool,
) -> String {
    let command = format!(
        "client_command = [\"{}\", \"-C\", \"{}\", \"-n\", \"%c\", \"-R\"]\n",
        lab.master.version.wrapper("sync_client").display(),
        client.conf.display()
    );
    format!(
        "[shard]\nchannel = \"{CHANNEL}\"\nsync_directory = \"{}\"\nshards = {shards}\ndeal = \"{deal}\"\n\
         mailbox_pairs = {}\n{}[site]\nimapd_conf = \"{}\"\n[admin]\nlisten = \"{admin}\"\n[log]\nformat = \"text\"\n",
        lab.master.sync_directory(CHANNEL).display(),
        lab.old_master(),
        if clients { &command } else { "" },
        lab.master.conf().display(),
    )
}

fn strict_syncmux(lab: &Lab) -> Mux {
    let folder = lab.path("between");
    let mut mux = Mux::custom(&folder, "run", false, |listen, admin| {
        let password = folder.join("password");
        write(&password, format!("{PASSWORD}\n"));
        format!(
            "[[channel]]\nname = \"{CHANNEL}\"\nmode = \"strict\"\nlisten = [\"{listen}\"]\n\
             [channel.replica]\naddress = \"{}\"\nusername = \"{REPL}\"\npassword_file = \"{}\"\n\
             lanes = 8\nca_file = \"{}\"\nserver_name = \"{SERVER_NAME}\"\n\
             [site]\nimapd_conf = \"{}\"\n[admin]\nlisten = \"{admin}\"\n[log]\nformat = \"text\"\n",
            lab.relay.address(),
            password.display(),
            lab.certs.ca.display(),
            lab.master.conf().display(),
        )
    });
    mux.start();
    mux
}

impl Sharded {
    fn start(through: Through, deal: &str, shards: usize, users: usize, clients: bool) -> Self {
        let mut setup = Setup::new(Way::Direct);
        setup.both.channels = vec![CHANNEL.to_owned()];
        let lab = setup.start();
        let between = (through == Through::StrictSyncmux).then(|| strict_syncmux(&lab));
        let target = match &between {
            Some(mux) => mux.listen.clone(),
            None => lab.relay.address(),
        };
        let client = lab.client_to("shards", &target, PASSWORD, "");
        let mut shard = Mux::custom(&lab.path("shard"), "shard", false, |_, admin| {
            configuration(&lab, &client, admin, deal, shards, clients)
        });
        let users: Vec<String> = (0..users).map(|i| format!("u{i:03}")).collect();
        let mut admin = lab.master.admin();
        for user in &users {
            let inbox = format!("user.{user}");
            admin.create(&inbox);
            admin.set_acl(&inbox, ADMIN, "lrswipkxtecdan");
            admin.append(&inbox, "", &message(&format!("{user} first"), 1_000));
            if lab.old_master() {
                // In its log a row of new users may be a row of renames (`mailbox_pairs`), and would go to
                // one shard.
                lab.master.login(user).subscribe("INBOX");
            }
        }
        shard.start();
        let seed = fastrand::u64(..1_000_000);
        println!("seed {seed}");
        Sharded {
            lab,
            shard,
            between,
            client,
            users,
            random: fastrand::Rng::with_seed(seed),
            renamed: 0,
        }
    }

    /// Another number of shards, from the next start on.
    fn configure(&self, deal: &str, shards: usize, clients: bool) {
        let old = std::fs::read_to_string(&self.shard.config).unwrap();
        let (_, admin) = old.split_once("[admin]\nlisten = \"").unwrap();
        let (admin, _) = admin.split_once('"').unwrap();
        let text = configuration(&self.lab, &self.client, admin, deal, shards, clients);
        write(&self.shard.config, text);
    }

    /// Mail, flags and copies for many users, and one of them gets another name.
    fn work(&mut self, what: &str) {
        let mut admin = self.lab.master.admin();
        for user in &self.users {
            let inbox = format!("user.{user}");
            match self.random.u8(..8) {
                0..=3 => admin.append(&inbox, "", &message(&format!("{user} {what}"), 2_000)),
                4 => {
                    admin.select(&inbox);
                    admin.store("1", "+FLAGS (\\Flagged)");
                }
                5 => {
                    // A line over two users.
                    let to = &self.users[self.random.usize(..self.users.len())];
                    admin.select(&inbox);
                    admin.copy("1", &format!("user.{to}"));
                }
                _ => {}
            }
        }
        admin.run("UNSELECT");
        for _ in 0..2 {
            let at = self.random.usize(..self.users.len());
            self.renamed += 1;
            let new = format!("r{:03}", self.renamed);
            let old = std::mem::replace(&mut self.users[at], new.clone());
            let inbox = format!("user.{new}");
            admin.append(
                &format!("user.{old}"),
                "",
                &message(&format!("{old} before"), 1_000),
            );
            admin.rename(&format!("user.{old}"), &inbox);
            admin.append(&inbox, "", &message(&format!("{new} behind"), 1_000));
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        let base = self.lab.master.sync_directory("");
        let shards = (0..8).map(|number| base.join(format!("{CHANNEL}-{number}")));
        shards.filter(|path| path.is_dir()).collect()
    }

    fn left(&self) -> Vec<String> {
        let own = self.lab.master.sync_directory(CHANNEL);
        let mut left = leftovers(&own);
        left.extend(own.join("syncmux-held").exists().then(|| "held".to_owned()));
        // After it, since lines go this way only.
        for folder in self.folders() {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            left.extend(
                leftovers(&folder)
                    .iter()
                    .map(|file| format!("{name}/{file}")),
            );
            left.extend(
                folder
                    .join("syncmux-back")
                    .exists()
                    .then(|| format!("{name}/back")),
            );
        }
        left
    }

    /// Waits until nothing is left to do for a while, and compares both ends.
    fn settle(&mut self) {
        let mut quiet = 0;
        let mut left = Vec::new();
        let start = std::time::Instant::now();
        while quiet < 4 {
            left = self.left();
            quiet = if left.is_empty() { quiet + 1 } else { 0 };
            assert!(
                start.elapsed() < crate::support::PATIENCE * 2,
                "left over: {left:?}\n{}",
                self.shard.log_tail()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(left.is_empty());
        self.lab.assert_same_but(self.lab.subscribed_too_early());
    }

    fn client_of(&self, shard: usize) -> Pid {
        let parent = Pid::from_raw(self.shard.pid()).unwrap();
        wait_for("the shard's client", || {
            children(parent, &format!("{CHANNEL}-{shard}\0"))
                .first()
                .copied()
        })
    }

    /// Waits until lines have come out of the channel's own log.
    fn dealt(&self) {
        let before = self.lab.master.sync_directory(CHANNEL);
        wait_for("the log to be taken over", || {
            (!before.join("log").exists()).then_some(())
        });
    }
}

/// `kill -9` of everything, each in the middle of work.
fn kills(through: Through, deal: &str) {
    let mut it = Sharded::start(through, deal, 8, USERS, true);
    it.lab.step("the first copy");
    it.settle();
    for shard in 0..8 {
        let shard = format!("{CHANNEL}-{shard}");
        let lines = it
            .shard
            .metric("syncmux_shard_lines_total", &[("shard", &shard)]);
        assert!(lines > 0.0, "{shard} has got nothing");
    }
    for shard in 0..8 {
        it.lab
            .step(&format!("the client of shard {shard} is killed"));
        if shard % 4 == 0 {
            it.work(&format!("client {shard}"));
        }
        kill_process(it.client_of(shard), Signal::KILL).unwrap();
    }
    it.settle();
    let killed: f64 = (0..8)
        .map(|shard| {
            let shard = format!("{CHANNEL}-{shard}");
            let labels = [("channel", shard.as_str()), ("code", "signal 9")];
            it.shard.metric("syncmux_client_exits_total", &labels)
        })
        .sum();
    assert_eq!(killed, 8.0);
    for round in 0..3 {
        it.lab.step(&format!("syncmux shard is killed, {round}"));
        it.work(&format!("shard {round}"));
        // With its clients, and alone: then they are told to leave by the system.
        match round {
            1 => it.shard.kill(),
            _ => it.shard.kill_alone(),
        }
        it.work(&format!("while it is away {round}"));
        it.shard.start();
    }
    it.settle();
    it.lab.step("the replica is killed");
    it.work("replica");
    it.lab.replica.kill();
    it.work("while the replica is away");
    it.lab.replica.resume();
    it.lab.replica.ready();
    it.shard.stop();
    it.shard.start();
    it.settle();
    it.lab.step("the master is killed");
    it.work("master");
    it.lab.master.kill();
    it.lab.master.resume();
    it.lab.master.ready();
    it.work("afterwards");
    it.settle();
    if it.between.is_some() {
        it.lab.step("the syncmux in between is killed");
        it.work("between");
        it.between.as_mut().unwrap().kill();
        it.work("while it is away");
        it.between.as_mut().unwrap().start();
        it.settle();
    }
    it.lab.step("everything at once");
    it.work("all");
    it.shard.kill();
    it.lab.replica.kill();
    it.lab.master.kill();
    if let Some(between) = &mut it.between {
        between.kill();
    }
    it.lab.master.resume();
    it.lab.replica.resume();
    it.lab.master.ready();
    it.lab.replica.ready();
    if let Some(between) = &mut it.between {
        between.start();
    }
    it.shard.start();
    it.work("the last");
    it.settle();
    assert_eq!(it.shard.stop(), Some(0));
    // Every shard had its part.
    for folder in it.folders() {
        assert!(!folder.join("log-run").exists(), "{}", folder.display());
    }
    assert_eq!(it.folders().len(), 8);
}

#[test]
fn kills_direct_balanced() {
    kills(Through::Nothing, "balanced");
}

#[test]
fn kills_through_strict_fixed() {
    kills(Through::StrictSyncmux, "fixed");
}

/// Lines are left in shards, and there are fewer, and then more again.
fn another_number(deal: &str) {
    // Nobody starts clients: lines pile up.
    let mut it = Sharded::start(Through::Nothing, deal, 8, 60, false);
    it.work("nobody takes it");
    it.dealt();
    let with_lines = |it: &Sharded| {
        let folders = it.folders();
        let has = |folder: &&PathBuf| !leftovers(folder).is_empty();
        folders.iter().filter(has).count()
    };
    wait_for("lines in all shards", || {
        (with_lines(&it) == 8).then_some(())
    });
    it.work("some are bound already");
    it.dealt();
    assert_eq!(it.shard.stop(), Some(0));
    it.lab
        .step("8 to 3, and a client of a shard that there is not any more");
    let mut client = it.client.clone();
    client.channel = format!("{CHANNEL}-5");
    // It is not to be done before it is stopped.
    it.lab.relay.stall(true);
    let mut rolling = client.rolling();
    rolling.pause(true);
    it.lab.relay.stall(false);
    it.configure(deal, 3, true);
    it.shard.start();
    wait_for("the client to be seen", || {
        let said = it.shard.log_text();
        said.contains("a client may still work there").then_some(())
    });
    it.work("three shards");
    // Longer than nothing need change for a folder to count as nobody's: it is the process that is seen.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let fifth = it.lab.master.sync_directory(&format!("{CHANNEL}-5"));
    assert!(
        !leftovers(&fifth).is_empty(),
        "they were taken from a client"
    );
    rolling.pause(false);
    it.settle();
    let said = it.shard.log_text();
    assert!(
        said.contains("lines that were left there are dealt again"),
        "{said}"
    );
    rolling.stop();
    it.lab.step("3 to 8");
    assert_eq!(it.shard.stop(), Some(0));
    it.configure(deal, 3, false);
    it.shard.start();
    it.work("left in three shards");
    it.dealt();
    it.shard.kill();
    it.work("left in the log");
    it.configure(deal, 8, true);
    it.shard.start();
    it.work("eight shards");
    it.settle();
    it.lab.step("back to one client");
    assert_eq!(it.shard.stop(), Some(0));
    it.configure(deal, 8, false);
    it.shard.start();
    it.work("for one client");
    it.dealt();
    assert_eq!(it.shard.stop(), Some(0));
    assert!(with_lines(&it) > 0);
    let (code, said) = it.shard.tool(&["shard", "--put-back"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("lines were put back into the log"), "{said}");
    assert_eq!(with_lines(&it), 0);
    let mut client = it.client.clone();
    CHANNEL.clone_into(&mut client.channel);
    let mut rolling = client.rolling();
    crate::support::client::wait_until_drained(
        &it.lab.master.sync_directory(CHANNEL),
        &mut rolling,
    );
    it.lab.assert_same_but(it.lab.subscribed_too_early());
}

#[test]
fn another_number_balanced() {
    another_number("balanced");
}

#[test]
fn another_number_fixed() {
    another_number("fixed");
}

/// What `--print-config` prints is enough, and `check` finds it right.
#[test]
fn what_is_printed_is_what_is_needed() {
    let mut setup = Setup::new(Way::Direct);
    setup.both.channels = vec![CHANNEL.to_owned()];
    let mut lab = setup.start();
    let address = lab.relay.address();
    let (host, port) = address.split_once(':').unwrap();
    let own = format!(
        "far_sync_host: {host}\nfar_sync_port: {port}\nfar_sync_authname: {REPL}\n\
         far_sync_password: {PASSWORD}\nfar_sync_try_imap: no\n"
    );
    let conf = lab.master.variant("own", &own);
    let mut shard = Mux::custom(&lab.path("shard"), "shard", false, |_, admin| {
        format!(
            "[shard]\nchannel = \"far\"\nsync_directory = \"{}\"\nshards = 3\n[site]\n\
             imapd_conf = \"{}\"\n[admin]\nlisten = \"{admin}\"\n",
            lab.master.sync_directory(CHANNEL).display(),
            conf.display()
        )
    });
    let (code, said) = shard.tool(&["check"]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("these shards have none"), "{said}");
    let (code, printed) = shard.tool(&["shard", "--print-config"]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(!printed.contains(PASSWORD), "{printed}");
    let lines = printed.lines().filter(|line| !line.starts_with('#'));
    let lines: Vec<String> = lines
        .map(|line| line.replace(": PASSWORD", &format!(": {PASSWORD}")))
        .collect();
    let conf = lab
        .master
        .variant("own", &format!("{own}{}\n", lines.join("\n")));
    let (code, said) = shard.tool(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    shard.start();
    let users = lab.add_users(6);
    lab.mail(&users, "by what was printed", 2_000);
    let mut clients: Vec<_> = (0..3)
        .map(|number| {
            let mut client = lab.direct_client();
            client.conf.clone_from(&conf);
            client.channel = format!("far-{number}");
            client.rolling()
        })
        .collect();
    let own = lab.master.sync_directory(CHANNEL);
    let base = lab.master.sync_directory("");
    let mut quiet = 0;
    wait_for("everything to be replicated", || {
        clients.iter_mut().for_each(|client| client.keep_alive());
        let shards = (0..3).map(|number| base.join(format!("far-{number}")));
        let idle =
            leftovers(&own).is_empty() && shards.into_iter().all(|it| leftovers(&it).is_empty());
        quiet = if idle { quiet + 1 } else { 0 };
        std::thread::sleep(std::time::Duration::from_millis(20));
        (quiet > 5).then_some(())
    });
    lab.assert_same();
    assert_eq!(shard.stop(), Some(0));
    drop(clients);
}
