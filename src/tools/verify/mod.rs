//! `syncmux verify`: asks both ends about users, by the master's own `sync_server` and the replica's,
//! and says what differs.
//!
//! What has not been replicated yet differs too: it is no measure of lag. What differs is asked
//! again twice, a second apart, so that what is just under way does not count.

mod compare;
mod ends;
mod who;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use self::ends::{Ends, Servers};
use super::{CONFIG, Failed, printable, say};
use crate::config::{Channel, Config, Flags};

/// How often what differs is asked again, and how long after.
const AGAIN: usize = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// So many differences of one user are shown.
const SHOWN: usize = 40;

/// Where there is no terminal a line of progress comes this often.
const PROGRESS: Duration = Duration::from_secs(5);

/// Who, and where.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "who", required = true, multiple = false)]
pub struct Who {
    /// The users, as Cyrus writes their names: joe, joe@example.com
    #[arg(value_name = "USER")]
    pub users: Vec<String>,

    /// Every user of the master, as ctl_mboxlist lists them; to be run there, as root or cyrus
    #[arg(long)]
    pub all: bool,

    /// The users named in this file, one a line; - is standard input
    #[arg(long, value_name = "FILE")]
    pub users_from: Option<PathBuf>,
}

/// What can be asked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Who.
    #[command(flatten)]
    pub who: Who,

    /// The channel of the configuration; without it the only one there is
    #[arg(long, value_name = "NAME")]
    pub channel: Option<String>,

    /// The configuration, with the master's sync_server under [channel.master] [default:
    /// /etc/syncmux/syncmux.toml]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How many users are compared at once: as many connections to each end
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: u16,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both ends hold the same.
    Equal,
    /// They don't.
    Differs,
}

/// Compares.
///
/// # Errors
/// Wrong settings, or an end that can't be reached.
pub async fn run(args: &Args) -> Result<Verdict, Failed> {
    let path = args.config.as_deref().unwrap_or(Path::new(CONFIG));
    let flags = Flags {
        config: Some(path.to_owned()),
        ..Flags::default()
    };
    let config = Config::load(&flags).map_err(|errors| {
        let problems = errors.0.iter().map(ToString::to_string);
        Failed::usage(problems.collect::<Vec<_>>().join("\nsyncmux: "))
    })?;
    let channel = pick(&config, args.channel.as_deref())?;
    let servers = Servers::new(&config, channel)?;
    let users = who::users(&args.who, &config, channel).await?;
    compare_all(servers, users, args.connections).await
}

fn pick<'a>(config: &'a Config, wanted: Option<&str>) -> Result<&'a Channel, Failed> {
    match (wanted, &config.channels[..]) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Failed::usage(
            "there are several channels: say which with --channel",
        )),
        (Some(wanted), all) => {
            let found = all.iter().find(|channel| channel.name == wanted);
            found.ok_or_else(|| {
                Failed::usage(format!("the configuration has no channel \"{wanted}\""))
            })
        }
    }
}

/// One user's differences, or how an end failed.
type Found = Result<(String, Vec<String>), Failed>;

async fn compare_all(
    servers: Servers,
    users: Vec<String>,
    connections: u16,
) -> Result<Verdict, Failed> {
    let count = users.len();
    let queue = Arc::new(Mutex::new(VecDeque::from(users)));
    let servers = Arc::new(servers);
    let (results, mut arrived) = mpsc::channel::<Found>(64);
    for _ in 0..usize::from(connections).min(count) {
        let (queue, servers, results) = (Arc::clone(&queue), Arc::clone(&servers), results.clone());
        tokio::spawn(async move {
            let mut ends = None;
            loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(user) = next else { break };
                let found = differences(&servers, &mut ends, &user).await;
                let failed = found.is_err();
                if results
                    .send(found.map(|found| (user, found)))
                    .await
                    .is_err()
                    || failed
                {
                    break;
                }
            }
            if let Some(ends) = ends {
                Ends::leave(ends).await;
            }
        });
    }
    drop(results);
    let mut progress = Progress::new(count);
    let mut differ = 0;
    while let Some(found) = arrived.recv().await {
        let (user, found) = found?;
        if !found.is_empty() {
            differ += 1;
            progress.say(&told(&user, &found));
        }
        progress.step(differ);
    }
    progress.finish();
    let users = |count: usize| {
        let end = if count == 1 { "" } else { "s" };
        format!("{count} user{end}")
    };
    if differ == 0 {
        say(&format!(
            "{} compared: both ends hold the same\n",
            users(count)
        ));
        return Ok(Verdict::Equal);
    }
    say(&format!(
        "{} compared: {} not the same at both ends. Who has work on the way may be among them \
         (`syncmux status`); `syncmux resync USER` repairs the others.\n",
        users(count),
        if differ == 1 {
            "1 is".to_owned()
        } else {
            format!("{differ} are")
        },
    ));
    Ok(Verdict::Differs)
}

fn told(user: &str, found: &[String]) -> String {
    let mut text = String::new();
    let user = printable(user);
    for difference in found.iter().take(SHOWN) {
        text.push_str(&format!("{user}: {}\n", printable(difference)));
    }
    if found.len() > SHOWN {
        text.push_str(&format!(
            "{user}: and {} more differences\n",
            found.len() - SHOWN
        ));
    }
    text
}

/// What differs of one user. A connection that broke is made anew once.
async fn differences(
    servers: &Servers,
    ends: &mut Option<Ends>,
    user: &str,
) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    for again in 0..=AGAIN {
        if again > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let last = again == AGAIN;
        let had = ends.is_some();
        let one = match look(servers, ends, user, last).await {
            Err(_) if had => {
                *ends = None;
                look(servers, ends, user, last).await
            }
            one => one,
        };
        found = one?;
        if found.is_empty() {
            break;
        }
    }
    Ok(found)
}

async fn look(
    servers: &Servers,
    ends: &mut Option<Ends>,
    user: &str,
    closely: bool,
) -> Result<Vec<String>, Failed> {
    let ends = match ends {
        Some(ends) => ends,
        none => none.insert(Ends::connect(servers).await?),
    };
    let [master, replica] = ends.user(user).await?;
    let site = &servers.site;
    let mut found = compare::users(&master, &replica, site);
    if closely {
        for name in compare::unlike_mailboxes(&master, &replica) {
            let [ours, theirs] = ends.full_mailbox(&name).await?;
            found.extend(compare::messages(&name, &ours, &theirs));
        }
    }
    Ok(found)
}

/// A bar on a terminal, a line now and then elsewhere; both on standard error.
struct Progress {
    bar: Option<ProgressBar>,
    count: usize,
    done: usize,
    told: Instant,
}

impl Progress {
    fn new(count: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(count as u64), target);
            let form = "{bar:30} {pos} of {len} users, {msg}, {eta} left";
            match ProgressStyle::with_template(form) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Progress {
            bar,
            count,
            done: 0,
            told: Instant::now(),
        }
    }

    fn say(&self, text: &str) {
        // The bar makes room for it. Nobody need read it: the exit code says it too.
        let _ = match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        };
    }

    fn step(&mut self, differ: usize) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{differ} not the same"));
            bar.set_position(self.done as u64);
        } else if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            eprintln!(
                "{} of {} users, {differ} not the same",
                self.done, self.count
            );
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
