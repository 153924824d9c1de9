//! `syncmux verify`: asks both ends about users and shared mailboxes, by the master's own `sync_server` and the replica's,
//! and says what differs.
//!
//! What has not been replicated yet differs too: it is no measure of lag. What differs is asked
//! again twice, a second apart, so that what is just under way does not count.

mod compare;
mod ends;
mod who;

use std::collections::VecDeque;
use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use self::ends::{Ends, Servers};
use super::{CONFIG, Failed, printable, say};
use crate::cli::Exit;
use crate::config::{Channel, Config, Flags};
use crate::protocol::Site;

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

    /// Every user and every shared mailbox of the master, as ctl_mboxlist lists them; to be run
    /// there, as root or cyrus
    #[arg(long)]
    pub all: bool,

    /// The users named in this file, one a line, but for lines that begin with #; - is standard
    /// input
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

/// What is compared at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// A mailbox without an owner, by its internal name.
    Mailbox(String),
    /// A user, with all that is his.
    User(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Mailbox(name) => write!(f, "mailbox {name}"),
            Subject::User(name) => f.write_str(name),
        }
    }
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
    let subjects = who::subjects(&args.who, &config, channel).await?;
    compare_all(servers, subjects, args.connections).await
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

/// What differs, or how an end failed.
type Found = Result<(Subject, Vec<String>), Failed>;

async fn compare_all(
    servers: Servers,
    subjects: Vec<Subject>,
    connections: u16,
) -> Result<Verdict, Failed> {
    let count = subjects.len();
    let queue = Arc::new(Mutex::new(VecDeque::from(subjects)));
    let servers = Arc::new(servers);
    let (results, arrived) = mpsc::channel::<Found>(64);
    for _ in 0..usize::from(connections).min(count) {
        let (queue, servers, results) = (Arc::clone(&queue), Arc::clone(&servers), results.clone());
        tokio::spawn(async move {
            let mut ends = None;
            loop {
                let next = queue
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                let Some(subject) = next else { break };
                let found = differences(&servers, &mut ends, &subject).await;
                let failed = found.is_err();
                if results
                    .send(found.map(|found| (subject, found)))
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
    let counted = gather(arrived, count).await?;
    say(&counted.told());
    Ok(counted.verdict())
}

/// How much was compared, and how much of it is not the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    users: usize,
    mailboxes: usize,
    differ: usize,
    /// Whom neither end has.
    nobody: usize,
}

/// Says what comes.
async fn gather(mut arrived: mpsc::Receiver<Found>, count: usize) -> Result<Counted, Failed> {
    let mut progress = Progress::new(count);
    let mut counted = Counted::default();
    while let Some(found) = arrived.recv().await {
        let (subject, found) = found?;
        match subject {
            Subject::User(_) => counted.users += 1,
            Subject::Mailbox(_) => counted.mailboxes += 1,
        }
        if found.iter().eq([compare::NOBODY]) {
            counted.nobody += 1;
        } else if !found.is_empty() {
            counted.differ += 1;
        }
        if !found.is_empty() {
            progress.say(&told(&subject, &found));
        }
        let done = counted.users + counted.mailboxes;
        progress.step(done, counted.differ + counted.nobody);
    }
    progress.finish();
    let done = counted.users + counted.mailboxes;
    if done != count {
        let why = format!(
            "only {done} of {count} users and shared mailboxes were compared, then a part of \
             syncmux broke off: this is a fault of syncmux, please report it with what stands above"
        );
        return Err(Failed(Exit::Internal, why));
    }
    Ok(counted)
}

impl Counted {
    fn verdict(self) -> Verdict {
        match self.differ + self.nobody {
            0 => Verdict::Equal,
            _ => Verdict::Differs,
        }
    }

    /// The last line.
    fn told(self) -> String {
        let all = |count: usize, what: &str, end: &str| match count {
            0 => None,
            1 => Some(format!("1 {what}")),
            count => Some(format!("{count} {what}{end}")),
        };
        let counted = [
            all(self.users, "user", "s"),
            all(self.mailboxes, "shared mailbox", "es"),
        ];
        let counted: Vec<String> = counted.into_iter().flatten().collect();
        let are = |count: usize| match count {
            1 => "1 is".to_owned(),
            count => format!("{count} are"),
        };
        let mut text = format!("{} compared: ", counted.join(" and "));
        if self.differ > 0 {
            text.push_str(&format!(
                "{} not the same at both ends. Who has work on the way may be among them \
                 (`syncmux status`); `syncmux resync USER` (or `--mailbox NAME`) repairs the others.",
                are(self.differ)
            ));
        } else if self.nobody == 0 {
            text.push_str("both ends hold the same");
        }
        if self.nobody > 0 {
            if self.differ > 0 {
                text.push(' ');
            }
            text.push_str(&format!(
                "{} at neither end: look how the name is written.",
                are(self.nobody)
            ));
        }
        text.push('\n');
        text
    }
}

fn told(subject: &Subject, found: &[String]) -> String {
    let mut text = String::new();
    // What differs of a mailbox begins with its name.
    let whose = match subject {
        Subject::User(name) => format!("{}: ", printable(name)),
        Subject::Mailbox(_) => String::new(),
    };
    for difference in found.iter().take(SHOWN) {
        text.push_str(&format!("{whose}{}\n", printable(difference)));
    }
    if found.len() > SHOWN {
        let more = found.len() - SHOWN;
        let whose = printable(&subject.to_string());
        text.push_str(&format!("{whose}: and {more} more differences\n"));
    }
    text
}

/// What differs of one user or shared mailbox.
async fn differences(
    servers: &Servers,
    ends: &mut Option<Ends>,
    subject: &Subject,
) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    for again in 0..=AGAIN {
        if again > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        found = look(servers, ends, subject, again == AGAIN).await?;
        if found.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Where the connection was used before and fails, which says nothing of this one, by another one.
/// If an end lets us in and fails all the same, that is a difference: the others are looked at.
async fn look(
    servers: &Servers,
    ends: &mut Option<Ends>,
    subject: &Subject,
    closely: bool,
) -> Result<Vec<String>, Failed> {
    let site = &servers.site;
    if let Some(used) = ends
        && let Ok(found) = ask(used, subject, closely, site).await
    {
        return Ok(found);
    }
    *ends = None;
    let mut fresh = Ends::connect(servers).await?;
    match ask(&mut fresh, subject, closely, site).await {
        Ok(found) => {
            *ends = Some(fresh);
            Ok(found)
        }
        Err(Failed(_, why)) => Ok(vec![match subject {
            Subject::User(_) => why,
            Subject::Mailbox(_) => format!("{subject}: {why}"),
        }]),
    }
}

async fn ask(
    ends: &mut Ends,
    subject: &Subject,
    closely: bool,
    site: &Site,
) -> Result<Vec<String>, Failed> {
    let [master, replica] = match subject {
        Subject::User(name) => ends.user(name).await?,
        Subject::Mailbox(name) => ends.mailbox(name.as_bytes()).await?,
    };
    let mut found = compare::users(&master, &replica, site);
    if let Subject::Mailbox(name) = subject {
        // It was removed since it was listed.
        found.retain(|what| what != compare::NOBODY);
        // A refusal says nothing of whom it is about.
        for what in &mut found {
            if !what.starts_with("mailbox ") {
                *what = format!("mailbox {name}: {what}");
            }
        }
    }
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
    told: Instant,
}

impl Progress {
    fn new(count: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(count as u64), target);
            let form = "{bar:30} {pos} of {len}, {msg}, {eta} left";
            match ProgressStyle::with_template(form) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Progress {
            bar,
            count,
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

    fn step(&mut self, done: usize, differ: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{differ} not the same"));
            bar.set_position(done as u64);
        } else if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            eprintln!("{done} of {}, {differ} not the same", self.count);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is counted where these come of two users.
    async fn counted(found: &[&[&str]]) -> Result<Counted, Failed> {
        let (results, arrived) = mpsc::channel(9);
        for found in found {
            let found = found.iter().map(|text| (*text).to_owned()).collect();
            let joe = Subject::User("joe".to_owned());
            let sent = results.send(Ok((joe, found))).await;
            assert!(sent.is_ok());
        }
        drop(results);
        gather(arrived, 2).await
    }

    #[tokio::test]
    async fn who_was_not_compared_is_not_the_same() {
        let Err(Failed(exit, why)) = counted(&[&[]]).await else {
            panic!("one is missing");
        };
        assert_eq!(exit, Exit::Internal);
        assert!(
            why.starts_with("only 1 of 2 users and shared mailboxes"),
            "{why}"
        );
        assert!(matches!(counted(&[&[], &[]]).await, Ok(all) if all.verdict() == Verdict::Equal));
    }

    #[tokio::test]
    async fn last_words() {
        let said = async |found: &[&[&str]]| match counted(found).await {
            Ok(counted) => (counted.verdict(), counted.told()),
            Err(failed) => panic!("{failed:?}"),
        };
        let (verdict, text) = said(&[&[], &[]]).await;
        assert_eq!(verdict, Verdict::Equal);
        assert_eq!(text, "2 users compared: both ends hold the same\n");
        let both = Counted {
            users: 2,
            mailboxes: 1,
            ..Counted::default()
        };
        assert_eq!(
            both.told(),
            "2 users and 1 shared mailbox compared: both ends hold the same
"
        );
        let (verdict, text) = said(&[&[compare::NOBODY], &[]]).await;
        assert_eq!(verdict, Verdict::Differs);
        assert!(text.contains("compared: 1 is at neither end"), "{text}");
        assert!(!text.contains("resync"), "{text}");
        let (_, text) = said(&[&[compare::NOBODY], &["x"]]).await;
        assert!(
            text.contains("1 is not the same") && text.contains("1 is at neither"),
            "{text}"
        );
    }
}
