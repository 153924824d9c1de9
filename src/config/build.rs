//! From keys and flags to a [`Config`]: every check, and a sentence for each thing that is wrong.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::error::{Place, words};
use super::file::{self, File, Key, Uid, Virtdomains};
use super::units::Span;
use super::{Client, Config, Errors, Flags, ImapdConf, Login, Password, Passwords, Problem};
use super::{channel, pem};
use crate::protocol::Site;

/// Where Cyrus looks too.
const IMAPD_CONF: &str = "/etc/imapd.conf";

/// Reads and checks everything; all problems are reported at once.
pub(super) fn build(source: Option<(&Path, &str)>, flags: &Flags) -> Result<Config, Errors> {
    let (mut build, file) = Build::read(source)?;
    let File {
        channel,
        client,
        site,
        limits,
        admin,
        log,
        terminate,
        shard,
    } = file;
    let imapd_conf = build.imapd_conf(site.imapd_conf.as_ref(), flags);
    let site = build.site(site, imapd_conf.as_ref());
    let limits = build.limits(limits);
    let log = build.log(log, flags);
    let admin = build.admin(admin, flags);
    let client = build.client(client);
    let others = [
        ("terminate", terminate.map(|table| build.at(table).place)),
        ("shard", shard.map(|table| build.at(table).place)),
    ];
    let is_ours = !channel.is_empty() || flags.replica.is_some();
    for (name, place) in others {
        if let Some(place) = place.filter(|_| !is_ours) {
            let what = format!("[{name}] is for `syncmux {name}`, which alone reads it");
            build.fail(&place, what);
        }
    }
    let channels = channel::channels(&mut build, channel, flags, &client, admin.as_ref());
    let warnings = build.end()?;
    Ok(Config {
        channels,
        client,
        site,
        imapd_conf,
        limits,
        admin: admin.map(|at| at.value),
        log,
        warnings,
    })
}

/// A value, and where it was set.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Collects what is wrong on the way.
pub(super) struct Build<'a> {
    source: Option<(&'a Path, &'a str)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Build<'a> {
    /// The file as written, or an empty one where there is none.
    pub(super) fn read(source: Option<(&'a Path, &'a str)>) -> Result<(Self, File), Errors> {
        let build = Build {
            source,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let file = match source {
            Some((_, text)) => {
                toml::from_str::<File>(text).map_err(|error| build.syntax(&error))?
            }
            None => File::default(),
        };
        Ok((build, file))
    }

    /// The warnings, where nothing is wrong.
    pub(super) fn end(mut self) -> Result<Vec<Problem>, Errors> {
        // As they stand in the file.
        self.problems.sort_by_key(|problem| match &problem.place {
            Place::Line(_, line) => *line,
            _ => 0,
        });
        match self.problems.is_empty() {
            true => Ok(self.warnings),
            false => Err(Errors(self.problems)),
        }
    }

    /// The flag if given, else the key of the file.
    pub(super) fn pick<T: Clone>(
        &self,
        key: Key<T>,
        flag: Option<&T>,
        name: &'static str,
    ) -> Option<At<T>> {
        match flag {
            Some(value) => Some(At {
                value: value.clone(),
                place: Place::Flag(name),
            }),
            None => key.map(|key| self.at(key)),
        }
    }

    /// A key of the file.
    pub(super) fn at<T>(&self, key: Spanned<T>) -> At<T> {
        let place = self.place(&key.span());
        At {
            value: key.into_inner(),
            place,
        }
    }

    pub(super) fn fail(&mut self, place: &Place, what: impl Into<String>) {
        self.problems.push(Problem {
            place: place.clone(),
            what: what.into(),
        });
    }

    pub(super) fn warn(&mut self, place: &Place, what: impl Into<String>) {
        self.warnings.push(Problem {
            place: place.clone(),
            what: what.into(),
        });
    }

    /// The value, or its problem reported.
    pub(super) fn checked<T>(&mut self, result: Result<T, String>, place: &Place) -> Option<T> {
        result.map_err(|what| self.fail(place, what)).ok()
    }

    /// A word out of a few.
    pub(super) fn word<T: Copy>(
        &mut self,
        at: &At<String>,
        what: &str,
        known: &[(&str, T)],
    ) -> Option<T> {
        let found = known
            .iter()
            .find(|(word, _)| at.value.eq_ignore_ascii_case(word));
        if found.is_none() {
            let words: Vec<String> = known
                .iter()
                .map(|(word, _)| format!("\"{word}\""))
                .collect();
            self.fail(
                &at.place,
                format!("`{}` is no {what}: write {}", at.value, words.join(" or ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// A number between two others.
    pub(super) fn between(
        &mut self,
        at: Option<At<u32>>,
        what: &str,
        range: std::ops::RangeInclusive<u32>,
        absent: usize,
    ) -> usize {
        match at {
            Some(at) if !range.contains(&at.value) => {
                let (low, high) = (range.start(), range.end());
                self.fail(
                    &at.place,
                    format!("{what} = {}: set it to {low} to {high}", at.value),
                );
                absent
            }
            Some(at) => at.value as usize,
            None => absent,
        }
    }

    /// A name and the file of its password, which is read.
    pub(super) fn login(
        &mut self,
        username: At<String>,
        password_file: Option<At<PathBuf>>,
    ) -> Login {
        if username.value.is_empty() || username.value.contains(['\0', '\r', '\n']) {
            self.fail(
                &username.place,
                "username is empty or holds a line break: write a name",
            );
        }
        let password = password_file.and_then(|at| self.password(&at));
        Login {
            username: username.value,
            password,
        }
    }

    fn password(&mut self, at: &At<PathBuf>) -> Option<Password> {
        use std::os::unix::fs::PermissionsExt;
        let path = at.value.display();
        let text = std::fs::read_to_string(&at.value)
            .map_err(|error| format!("password_file {path} can't be read: {}", words(&error)));
        let text = zeroize::Zeroizing::new(self.checked(text, &at.place)?);
        if std::fs::metadata(&at.value).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0) {
            let what = format!("password_file {path} is open to everybody: chmod 640 it");
            self.warn(&at.place, what);
        }
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() || password.contains(['\0', '\r', '\n']) {
            let what = format!("password_file {path} must hold the password as its only line");
            self.fail(&at.place, what);
            return None;
        }
        Some(Password::new(password.to_owned()))
    }

    /// A certificate and its key: both or none.
    pub(super) fn identity(
        &mut self,
        cert_file: Option<At<PathBuf>>,
        key_file: Option<At<PathBuf>>,
    ) -> Option<pem::Identity> {
        match (cert_file, key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                self.checked(pem::Identity::read(&cert.value, &key.value), &cert.place)
            }
            (Some(one), None) => {
                self.fail(
                    &one.place,
                    "cert_file needs its key: set key_file beside it",
                );
                None
            }
            (None, Some(one)) => {
                self.fail(
                    &one.place,
                    "key_file needs its certificate: set cert_file beside it",
                );
                None
            }
        }
    }

    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        match self.source {
            Some((path, text)) => {
                let before = text.as_bytes().get(..span.start).unwrap_or_default();
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                Place::Line(path.to_owned(), line)
            }
            None => Place::Missing,
        }
    }

    fn syntax(&self, error: &toml::de::Error) -> Errors {
        let place = match (error.span(), self.source) {
            (Some(span), _) => self.place(&span),
            (None, Some((path, _))) => Place::File(path.to_owned()),
            (None, None) => Place::Missing,
        };
        // The expected keys come as a second sentence; one line is enough for both.
        let message = error.message().replace('\n', ", ");
        let what = if message == "invalid type: map, expected a sequence" {
            "there can be several of these, so it is written in double brackets: [[channel]]".into()
        } else {
            in_plain_words(&message)
        };
        Problem { place, what }.into()
    }

    pub(super) fn imapd_conf(
        &mut self,
        key: Option<&Spanned<PathBuf>>,
        flags: &Flags,
    ) -> Option<ImapdConf> {
        let asked = self.pick(key.cloned(), flags.imapd_conf.as_ref(), "--imapd-conf");
        let (path, asked) = match &asked {
            Some(at) => (at.value.as_path(), Some(&at.place)),
            None => (Path::new(IMAPD_CONF), None),
        };
        match (ImapdConf::read(path), asked) {
            (Ok(conf), _) => Some(conf),
            (Err(problem), Some(place)) => {
                self.fail(place, format!("imapd_conf {problem}"));
                None
            }
            (Err(_), None) => None,
        }
    }

    pub(super) fn site(&mut self, site: file::Site, conf: Option<&ImapdConf>) -> Site {
        let cyrus = Site::default();
        let all_set = site.unixhierarchysep.is_some() && site.virtdomains.is_some();
        if conf.is_none() && !all_set {
            self.warn(
                &Place::Missing,
                format!(
                    "there is no {IMAPD_CONF}, so Cyrus's defaults are taken for unixhierarchysep \
                     (yes), virtdomains (off) and the others: set imapd_conf, or these values, \
                     under [site]"
                ),
            );
        }
        let option = |name| conf.and_then(|conf| conf.option(name)).map(str::to_owned);
        let virtdomains = match site.virtdomains {
            Some(key) => {
                let at = self.at(key);
                let name = match at.value {
                    Virtdomains::Switch(on) => if on { "on" } else { "off" }.to_owned(),
                    Virtdomains::Name(name) => name,
                };
                let known = [
                    ("off", false),
                    ("no", false),
                    ("userid", true),
                    ("on", true),
                ];
                let known = [known.as_slice(), &[("yes", true)]].concat();
                self.word(
                    &At {
                        value: name,
                        place: at.place,
                    },
                    "virtdomains",
                    &known,
                )
                .unwrap_or(false)
            }
            None => {
                option("virtdomains").is_some_and(|value| value == "userid" || super::is_on(&value))
            }
        };
        let unixhierarchysep = match site.unixhierarchysep {
            Some(key) => key.into_inner(),
            None => conf.is_none_or(|conf| conf.switch("unixhierarchysep", true)),
        };
        let defaultdomain = site.defaultdomain.map(Spanned::into_inner);
        let deletedprefix = site.deletedprefix.map(Spanned::into_inner);
        Site {
            unixhierarchysep,
            virtdomains,
            defaultdomain: defaultdomain
                .or_else(|| option("defaultdomain"))
                .or(cyrus.defaultdomain),
            deletedprefix: deletedprefix
                .or_else(|| option("deletedprefix"))
                .unwrap_or(cyrus.deletedprefix),
        }
    }

    fn client(&mut self, keys: file::Client) -> Client {
        let allowed_uids = match keys.allowed_uids {
            Some(list) => {
                let list = list.into_inner();
                list.into_iter().filter_map(|uid| self.uid(uid)).collect()
            }
            None => {
                let mut uids = vec![rustix::process::geteuid().as_raw(), 0];
                uids.extend(uid_of("cyrus"));
                uids.sort_unstable();
                uids.dedup();
                uids
            }
        };
        let username = keys.username.map(|key| self.at(key));
        let password_file = keys.password_file.map(|key| self.at(key));
        let by_replica = keys.passwords.map(|key| self.at(key));
        if let Some(at) = &by_replica {
            self.word(at, "way to check passwords", &[("by replica", ())]);
        }
        let passwords = match (username, password_file, by_replica) {
            (None, None, _) => Passwords::ByReplica,
            (Some(_), _, Some(at)) | (_, Some(_), Some(at)) => {
                let what = "passwords = \"by replica\" and username with password_file exclude \
                            each other: remove one";
                self.fail(&at.place, what);
                Passwords::ByReplica
            }
            (Some(username), Some(file), None) => {
                Passwords::Configured(self.login(username, Some(file)))
            }
            (Some(at), None, None) => {
                self.fail(
                    &at.place,
                    "username needs its password: set password_file beside it",
                );
                Passwords::ByReplica
            }
            (None, Some(at), None) => {
                self.fail(
                    &at.place,
                    "password_file needs a name: set username beside it",
                );
                Passwords::ByReplica
            }
        };
        let cert_file = keys.cert_file.map(|key| self.at(key));
        let key_file = keys.key_file.map(|key| self.at(key));
        Client {
            allowed_uids,
            passwords,
            identity: self.identity(cert_file, key_file),
            passwords_without_tls: keys.passwords_without_tls.is_some_and(Spanned::into_inner),
        }
    }

    fn uid(&mut self, key: Spanned<Uid>) -> Option<u32> {
        let at = self.at(key);
        match at.value {
            Uid::Number(uid) => Some(uid),
            Uid::Name(name) => {
                let what = format!("there is no user `{name}` in /etc/passwd: write the number");
                self.checked(uid_of(&name).ok_or(what), &at.place)
            }
        }
    }

    /// A time of at most so many seconds.
    pub(super) fn time(
        &mut self,
        key: Key<Span>,
        what: &str,
        high: u64,
        absent: Duration,
    ) -> Duration {
        let Some(at) = key.map(|key| self.at(key)) else {
            return absent;
        };
        let seconds = at.value.0.as_secs_f64();
        if seconds <= 0.0 || seconds > high as f64 {
            let what = format!("{what} is {seconds} seconds: set it to 1 to {high}");
            self.fail(&at.place, what);
        }
        at.value.0
    }
}

/// What serde says of a wrong type, without Rust's names for types.
fn in_plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        (
            "expected a sequence",
            "expected a list in square brackets, such as [\"127.0.0.1:2005\"]",
        ),
        ("expected u32", "expected a whole number without quotes"),
        (
            "expected a boolean",
            "expected true or false without quotes",
        ),
        ("expected a string", "expected text in quotes"),
        ("expected path string", "expected a path in quotes"),
    ];
    let replace = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
    WORDS.iter().fold(message.to_owned(), replace)
}

/// Whether `/etc/passwd` has a user of this number.
pub(crate) fn is_user(uid: u32) -> bool {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = |line: &str| line.split(':').nth(2)?.parse::<u32>().ok();
    passwd.lines().any(|line| number(line) == Some(uid))
}

/// A user's number by `/etc/passwd`. Other name services are not asked.
pub(crate) fn uid_of(name: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}
