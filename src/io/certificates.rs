//! Certificates, keys and authorities that change while the program runs.
//!
//! What is made of files ([`Reloaded`]) is made anew when their contents change, and only then
//! takes the place of the old: whoever connects next gets the new one, connections that stand keep
//! theirs. Contents are compared, not times: that finds a symlink that was turned (Kubernetes,
//! cert-manager, SPIFFE helpers) as well as a file that was written over, on any file system.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{self, SHA256};
use tokio::signal::unix::Signal;

use super::telemetry::metric;
use super::tls::{self, TlsError};

/// How often the files are read.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Before this much is left of a certificate's time nobody is warned; then once a day.
const SOON: Duration = Duration::from_secs(14 * DAY.as_secs());
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Something made of files, as it is now.
pub struct Reloaded<T> {
    /// For the log: `the certificate of [terminate]`.
    what: String,
    files: Vec<Role>,
    load: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

/// A file and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A certificate chain that this side shows.
    Chain(PathBuf),
    /// A private key.
    Key(PathBuf),
    /// Authorities whom this side trusts.
    Authorities(PathBuf),
}

/// The contents of all files.
type Contents = [u8; 32];

#[derive(Clone, Debug)]
struct Seen {
    /// What `current` was made of.
    used: Contents,
    /// What can't be used, and was told so.
    refused: Option<Contents>,
    /// What could not be used when it was seen first. A certificate and its key are two files,
    /// written one after the other: the second look decides.
    doubtful: Option<Contents>,
    /// What is in use, and when it runs out.
    ends: Vec<(String, i64)>,
    /// When that was last told.
    told: Instant,
}

impl Seen {
    fn new(used: Contents, files: &[Role]) -> Self {
        let ends = show_expiry(files);
        warn(&ends);
        Seen {
            used,
            refused: None,
            doubtful: None,
            ends,
            told: Instant::now(),
        }
    }
}

/// What [`watch`] looks at.
pub trait Look: Send + Sync {
    /// Reads the files, and takes what is new and sound. `asked`: by an administrator, so it is
    /// made anew in any case and a fault is told at once. Blocks.
    fn look(&self, asked: bool);
}

impl Role {
    fn path(&self) -> &Path {
        match self {
            Role::Chain(path) | Role::Key(path) | Role::Authorities(path) => path,
        }
    }
}

impl<T: Send + Sync> Reloaded<T> {
    /// Makes it for the first time. `load` reads `files`.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn new(
        what: impl Into<String>,
        files: Vec<Role>,
        load: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let used = contents(&files);
        let current = RwLock::new(Arc::new(load()?));
        for file in &files {
            if let Role::Chain(path) = file
                && let Err(why) = tls::sound(path, SystemTime::now())
            {
                tracing::warn!("{why}");
            }
        }
        let seen = Mutex::new(Seen::new(used, &files));
        Ok(Arc::new(Reloaded {
            what: what.into(),
            files,
            load: Box::new(load),
            current,
            seen,
        }))
    }

    /// What is to be used for a new connection.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts something in the place of what is used, unless that has been replaced meanwhile.
    pub fn replace(&self, old: &Arc<T>, new: T) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, old) {
            *current = Arc::new(new);
        }
    }

    /// Made anew; also nothing that has run out by itself may replace what may still be good.
    fn load(&self) -> Result<T, TlsError> {
        for file in &self.files {
            if let Role::Chain(path) = file {
                tls::sound(path, SystemTime::now())?;
            }
        }
        (self.load)()
    }
}

impl<T: Send + Sync> Look for Reloaded<T> {
    fn look(&self, asked: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = contents(&self.files);
        if seen.told.elapsed() >= DAY {
            seen.told = Instant::now();
            warn(&seen.ends);
        }
        if !asked && found == seen.used {
            // What was bad has been taken back.
            (seen.refused, seen.doubtful) = (None, None);
            return;
        }
        let known = !asked && seen.refused == Some(found);
        match self.load() {
            // Changed while it was read: the next look sees it whole.
            Ok(_) if contents(&self.files) != found => {}
            Ok(fresh) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                *seen = Seen::new(found, &self.files);
                count("ok");
                tracing::info!("{} was read anew and is used from now on", self.what);
            }
            // It is not told again, but tried again: what was not valid yet may be so by now.
            Err(_) if known => {}
            Err(error) if asked || seen.doubtful == Some(found) => {
                seen.refused = Some(found);
                count("refused");
                let what = &self.what;
                tracing::error!("{what} can't be renewed, the old one stays in use: {error}");
            }
            Err(_) => seen.doubtful = Some(found),
        }
    }
}

/// Looks at all of them every `period`, and whenever `asked` brings a signal (SIGHUP). Never
/// returns.
pub async fn watch(list: Vec<Arc<dyn Look>>, period: Duration, mut asked: Signal) {
    let mut pause = tokio::time::interval(period);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let list = Arc::new(list);
    loop {
        let by_hand = tokio::select! {
            _ = pause.tick() => false,
            _ = asked.recv() => true,
        };
        if by_hand && list.is_empty() {
            tracing::info!("SIGHUP: there are no certificates to read");
        }
        let list = Arc::clone(&list);
        // A file system that hangs holds up this task alone.
        let look = move || list.iter().for_each(|each| each.look(by_hand));
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

fn count(result: &'static str) {
    metrics::counter!(metric::CERTIFICATE_RELOADS, "result" => result).increment(1);
}

/// A digest of what is in the files; a file that can't be read has a digest of its own.
fn contents(files: &[Role]) -> Contents {
    let mut all = digest::Context::new(&SHA256);
    for file in files {
        match tls::read(file.path()) {
            Ok(content) => {
                all.update(&[1]);
                all.update(&(content.len() as u64).to_le_bytes());
                all.update(&content);
            }
            Err(_) => all.update(&[0]),
        }
    }
    let mut contents = Contents::default();
    contents.copy_from_slice(all.finish().as_ref());
    contents
}

/// When each file's certificates run out: the first of a chain; the last of the authorities, of
/// which a bundle has old ones.
fn show_expiry(files: &[Role]) -> Vec<(String, i64)> {
    let mut all = Vec::new();
    for file in files {
        let ends = match file {
            Role::Key(_) => continue,
            Role::Chain(path) => tls::expiries(path).into_iter().min(),
            Role::Authorities(path) => tls::expiries(path).into_iter().max(),
        };
        let Some(ends) = ends else { continue };
        let name = file.path().display().to_string();
        metrics::gauge!(metric::CERTIFICATE_EXPIRY, "file" => name.clone()).set(ends as f64);
        all.push((name, ends));
    }
    all
}

/// Warns of what runs out soon.
fn warn(ends: &[(String, i64)]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs() as i64);
    for (name, ends) in ends {
        let left = ends - now;
        if left < 0 {
            tracing::warn!("{name}, as it is in use, has expired: renew it");
        } else if left < SOON.as_secs() as i64 {
            let days = left / DAY.as_secs() as i64;
            tracing::warn!("{name}, as it is in use, expires in {days} days: renew it");
        }
    }
}

impl<T> std::fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reloaded({})", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> Result<String, TlsError> {
        let text = std::fs::read_to_string(path);
        match text.as_deref().map(str::trim) {
            Ok("bad") | Err(_) => Err(TlsError::Other("bad".to_owned())),
            Ok(text) => Ok(text.to_owned()),
        }
    }

    fn reloaded(path: &Path) -> Arc<Reloaded<String>> {
        let from = path.to_owned();
        let files = vec![Role::Key(path.to_owned())];
        Reloaded::new("the test", files, move || text(&from)).unwrap()
    }

    #[test]
    fn what_is_new_and_sound_is_taken_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let it = reloaded(&path);
        let first = it.current();
        it.look(false);
        assert!(Arc::ptr_eq(&first, &it.current()), "nothing has changed");
        std::fs::write(&path, "two").unwrap();
        it.look(false);
        assert_eq!(*it.current(), "two");
        std::fs::write(&path, "bad").unwrap();
        for _ in 0..3 {
            it.look(false);
            it.look(true);
            assert_eq!(*it.current(), "two");
        }
        std::fs::remove_file(&path).unwrap();
        it.look(false);
        it.look(false);
        assert_eq!(*it.current(), "two");
        std::fs::write(&path, "three").unwrap();
        it.look(false);
        assert_eq!(*it.current(), "three");
        it.look(true);
        assert_eq!(*it.current(), "three");
    }

    #[test]
    fn what_was_not_valid_yet_is_taken_when_it_is() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let early = Arc::new(AtomicBool::new(false));
        let (from, too_early) = (path.clone(), Arc::clone(&early));
        let files = vec![Role::Key(path.clone())];
        let load = move || match too_early.load(Ordering::Relaxed) {
            true => Err(TlsError::Other("is not valid yet".to_owned())),
            false => text(&from),
        };
        let it = Reloaded::new("the test", files, load).unwrap();
        early.store(true, Ordering::Relaxed);
        std::fs::write(&path, "two").unwrap();
        for _ in 0..3 {
            it.look(false);
        }
        assert_eq!(*it.current(), "one");
        early.store(false, Ordering::Relaxed);
        it.look(false);
        assert_eq!(*it.current(), "two");
    }

    #[test]
    fn a_symlink_that_is_turned_is_seen() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // As the kubelet lays out a volume: file -> ..data/file, ..data -> ..2026_1
        for (folder, content) in [("..1", "one"), ("..2", "two")] {
            std::fs::create_dir(at(folder)).unwrap();
            std::fs::write(at(folder).join("file"), content).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/file", at("file")).unwrap();
        let it = reloaded(&at("file"));
        symlink("..2", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        std::fs::remove_dir_all(at("..1")).unwrap();
        it.look(false);
        assert_eq!(*it.current(), "two");
    }
}
