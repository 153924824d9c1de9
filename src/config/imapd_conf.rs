//! Cyrus's `imapd.conf`, as far as syncmux needs it (`config_read_file` in Cyrus's
//! `libconfig.c`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::{Place, Problem, words};

/// The options of an `imapd.conf` and of the files that it includes.
#[derive(Clone, Debug, Default)]
pub struct ImapdConf {
    path: PathBuf,
    options: HashMap<String, (String, Place)>,
}

impl ImapdConf {
    /// Reads the file and what it includes.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let mut conf = ImapdConf {
            path: path.to_owned(),
            options: HashMap::new(),
        };
        conf.read_file(path, &mut Vec::new())?;
        Ok(conf)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An option as `sync_client` sees it: the form for this service goes before the plain one.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.find(name).map(|(value, _)| value.as_str())
    }

    /// An option of a channel: `CHANNEL_name`, else the plain one (`sync_get_config` in Cyrus's
    /// `sync_support.c`).
    #[must_use]
    pub fn channel_option(&self, channel: &str, name: &str) -> Option<(&str, &Place)> {
        self.service_option("sync_client", channel, name)
    }

    /// The same as a service of `cyrus.conf` sees it, such as `imap`: `SERVICE_CHANNEL_name` goes
    /// before `CHANNEL_name` (`config_getoverflowstring` in Cyrus's `libconfig.c`), `SERVICE_name`
    /// before the plain one.
    #[must_use]
    pub fn service_option(
        &self,
        service: &str,
        channel: &str,
        name: &str,
    ) -> Option<(&str, &Place)> {
        let plain = [format!("{service}_{name}"), name.to_owned()];
        let own = [
            format!("{service}_{channel}_{name}"),
            format!("{channel}_{name}"),
        ];
        let own = own.into_iter().filter(|_| !channel.is_empty());
        let found = own
            .chain(plain)
            .find_map(|key| self.options.get(&key.to_ascii_lowercase()));
        found.map(|(value, place)| (value.as_str(), place))
    }

    /// What is set for this channel alone, by the option's plain name, sorted.
    #[must_use]
    pub fn own_options(&self, channel: &str) -> Vec<(&str, &str)> {
        let prefix = format!("{channel}_").to_ascii_lowercase();
        let own = self.options.iter().filter_map(|(name, (value, _))| {
            let plain = name.strip_prefix(&prefix)?;
            plain
                .starts_with("sync_")
                .then_some((plain, value.as_str()))
        });
        let mut own: Vec<_> = own.filter(|_| !channel.is_empty()).collect();
        own.sort_unstable();
        own
    }

    /// A switch, or `absent` where it is not set.
    #[must_use]
    pub fn switch(&self, name: &str, absent: bool) -> bool {
        self.option(name).map_or(absent, is_on)
    }

    fn find(&self, name: &str) -> Option<&(String, Place)> {
        self.options
            .get(&format!("sync_client_{name}"))
            .or_else(|| self.options.get(name))
    }

    fn read_file(&mut self, path: &Path, seen: &mut Vec<PathBuf>) -> Result<(), Problem> {
        if seen.iter().any(|other| other == path) {
            return Err(Problem::file(
                path,
                "is included twice, which Cyrus refuses too",
            ));
        }
        seen.push(path.to_owned());
        let bytes = std::fs::read(path)
            .map_err(|error| Problem::file(path, format!("can't be read: {}", words(&error))))?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let mut line = line.to_owned();
            while line.ends_with('\\') {
                line.pop();
                match lines.next() {
                    Some((_, more)) => line.push_str(more),
                    None => break,
                }
            }
            self.take_line(path, number + 1, line.trim(), seen)?;
        }
        Ok(())
    }

    fn take_line(
        &mut self,
        path: &Path,
        number: usize,
        line: &str,
        seen: &mut Vec<PathBuf>,
    ) -> Result<(), Problem> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let place = Place::Line(path.to_owned(), number);
        let Some((name, value)) = line.split_once(':') else {
            let what = "is no `option: value`; Cyrus refuses this file too".to_owned();
            return Err(Problem { place, what });
        };
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        if name == "@include" {
            return self.read_file(Path::new(value), seen);
        }
        self.options
            .entry(name)
            .or_insert_with(|| (value.to_owned(), place));
        Ok(())
    }
}

/// A switch's value (`config_parse_switch` in Cyrus's `libconfig.c`).
#[must_use]
pub fn is_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    value == "on" || value.starts_with(['1', 'y', 't'])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn options() {
        let dir = tempfile::tempdir().unwrap();
        let more = dir.path().join("more.conf");
        std::fs::write(&more, "far_sync_host: other\n").unwrap();
        let path = dir.path().join("imapd.conf");
        let text = format!(
            "# comment\nSync_Host:  replica  \nunixhierarchysep: no\nadmins: a \\\n  b\n\
             @include: {}\nsync_client_sync_port: 2006\nsync_port: 2005\n\
             near_sync_port: 2007\nsync_client_near_sync_port: 2008\n",
            more.display()
        );
        std::fs::write(&path, text).unwrap();
        let conf = ImapdConf::read(&path).unwrap();
        assert_eq!(conf.option("sync_host"), Some("replica"));
        assert_eq!(conf.channel_option("", "sync_host").unwrap().0, "replica");
        assert_eq!(conf.channel_option("far", "sync_host").unwrap().0, "other");
        assert_eq!(
            conf.channel_option("near", "sync_host").unwrap().0,
            "replica"
        );
        assert_eq!(conf.option("sync_port"), Some("2006"));
        // One channel, two listeners: imapd's and the rolling client's.
        let port = |service| conf.service_option(service, "near", "sync_port").unwrap().0;
        assert_eq!((port("imap"), port("sync_client")), ("2007", "2008"));
        assert_eq!(conf.channel_option("near", "sync_port").unwrap().0, "2008");
        assert_eq!(conf.option("admins"), Some("a   b"));
        assert!(!conf.switch("unixhierarchysep", true));
        assert!(conf.switch("sync_try_imap", true));
    }

    #[test]
    fn errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imapd.conf");
        assert!(
            ImapdConf::read(&path)
                .unwrap_err()
                .to_string()
                .contains("no such file")
        );
        std::fs::write(&path, "a: b\nrubbish\n").unwrap();
        assert!(
            ImapdConf::read(&path)
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        std::fs::write(&path, format!("@include: {}\n", path.display())).unwrap();
        assert!(
            ImapdConf::read(&path)
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
    }
}
