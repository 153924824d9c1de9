//! User names and passwords: how they are kept, checked, and handed to lanes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{constant_time, digest, rand};
use bytes::Bytes;
use hashbrown::HashMap;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::lane_connect::ConnectError;

/// How long a password that the replica has accepted is believed without asking again.
const BELIEVED: Duration = Duration::from_secs(300);

/// Passwords that are tried at the replica at once: a flood of logins here is none there.
const CHECKS: usize = 4;

/// How many users are remembered, in the cache and for lanes in their name.
const REMEMBERED: usize = 1024;

/// A user name and its password. Does not print the password and wipes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The authentication id.
    pub username: String,
    /// Its password.
    pub password: Zeroizing<String>,
}

/// How the passwords of clients are checked.
pub enum Passwords {
    /// One user of the configuration.
    Configured(Credentials),
    /// By logging in to the replica.
    ByReplica(LoginCheck),
}

/// Logs in to the replica with the given credentials and out again.
pub type LoginCheck = Arc<
    dyn Fn(Credentials) -> Pin<Box<dyn Future<Output = Result<(), ConnectError>> + Send>>
        + Send
        + Sync,
>;

/// What became of a check.
#[derive(Debug)]
pub enum Verdict {
    /// The password is right.
    Good,
    /// It is wrong, or the user may not log in.
    Wrong,
    /// Nobody could say.
    Away(ConnectError),
}

/// Checks passwords, remembers good ones for a while.
pub struct Verifier {
    passwords: Passwords,
    believed: Mutex<HashMap<String, Believed>>,
    checks: Semaphore,
}

struct Believed {
    salt: [u8; 16],
    hash: digest::Digest,
    until: Instant,
}

/// The passwords of clients that have logged in, for lanes in their own name.
#[derive(Debug, Default)]
pub struct CredentialStore {
    known: Mutex<HashMap<Bytes, Credentials>>,
}

impl Credentials {
    /// Takes both over.
    #[must_use]
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: Zeroizing::new(password.into()),
        }
    }

    /// Reads the (decoded) message of SASL PLAIN: `[authzid] NUL authcid NUL password`. Acting for
    /// somebody else is refused, as there is nobody else here.
    #[must_use]
    pub fn from_plain(message: &[u8]) -> Option<Self> {
        let mut fields = message.split(|byte| *byte == 0);
        let (authorize, username, password) = (fields.next()?, fields.next()?, fields.next()?);
        let acts_for_itself = authorize.is_empty() || authorize == username;
        if fields.next().is_some() || !acts_for_itself || username.is_empty() {
            return None;
        }
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        Some(Self::new(text(username)?, text(password)?))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.username)
    }
}

impl Verifier {
    /// Checks in the given way.
    #[must_use]
    pub fn new(passwords: Passwords) -> Self {
        Self {
            passwords,
            believed: Mutex::default(),
            checks: Semaphore::new(CHECKS),
        }
    }

    /// Whether these credentials are right.
    pub async fn verify(&self, given: &Credentials) -> Verdict {
        let check = match &self.passwords {
            Passwords::Configured(wanted) => {
                // Both comparisons are always made: the time taken tells nothing about either.
                let user = equal(wanted.username.as_bytes(), given.username.as_bytes());
                let password = equal(wanted.password.as_bytes(), given.password.as_bytes());
                return if user & password {
                    Verdict::Good
                } else {
                    Verdict::Wrong
                };
            }
            Passwords::ByReplica(check) => check,
        };
        if self.is_believed(given) {
            return Verdict::Good;
        }
        // It is never closed.
        let _turn = self.checks.acquire().await;
        match check(given.clone()).await {
            Ok(()) => {
                self.believe(given);
                Verdict::Good
            }
            Err(ConnectError::Login { .. }) => Verdict::Wrong,
            Err(error) => Verdict::Away(error),
        }
    }

    fn is_believed(&self, given: &Credentials) -> bool {
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = believed.get(&given.username) else {
            return false;
        };
        let hash = salted(&entry.salt, given);
        Instant::now() < entry.until && equal(hash.as_ref(), entry.hash.as_ref())
    }

    fn believe(&self, given: &Credentials) {
        let mut salt = [0; 16];
        if rand::fill(&mut salt).is_err() {
            return;
        }
        let now = Instant::now();
        let entry = Believed {
            hash: salted(&salt, given),
            salt,
            until: now + BELIEVED,
        };
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.len() >= REMEMBERED {
            believed.retain(|_, entry| now < entry.until);
        }
        if believed.len() < REMEMBERED {
            believed.insert(given.username.clone(), entry);
        }
    }
}

impl CredentialStore {
    /// Keeps the password of a client that has just logged in.
    pub fn remember(&self, credentials: &Credentials) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let user = Bytes::copy_from_slice(credentials.username.as_bytes());
        if known.len() < REMEMBERED || known.contains_key(&user) {
            known.insert(user, credentials.clone());
        }
    }

    /// The password that this client logged in with last.
    #[must_use]
    pub fn find(&self, username: &[u8]) -> Option<Credentials> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(username).cloned()
    }
}

/// Compares in a time that depends on the lengths only.
fn equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

fn salted(salt: &[u8], given: &Credentials) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt);
    context.update(given.username.as_bytes());
    context.update(&[0]);
    context.update(given.password.as_bytes());
    context.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn plain_messages() {
        let read = |message: &[u8]| Credentials::from_plain(message);
        assert_eq!(read(b"\0repl\0pw"), Some(Credentials::new("repl", "pw")));
        assert_eq!(
            read(b"repl\0repl\0pw"),
            Some(Credentials::new("repl", "pw"))
        );
        for wrong in [
            b"other\0repl\0pw".as_slice(),
            b"\0repl",
            b"\0\0pw",
            b"",
            b"\0repl\0pw\0",
            b"\0re\xffpl\0pw",
        ] {
            assert_eq!(read(wrong), None);
        }
    }

    #[test]
    fn a_password_does_not_print() {
        assert_eq!(
            format!("{:?}", Credentials::new("repl", "secret")),
            "Credentials(repl)"
        );
    }

    #[tokio::test]
    async fn good_passwords_are_believed_and_wrong_ones_are_not() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let verifier = Verifier::new(Passwords::ByReplica(Arc::new(move |given| {
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                match given.password.as_str() {
                    "right" => Ok(()),
                    "away" => Err(ConnectError::unreachable("it is away")),
                    _ => Err(ConnectError::login("NO authentication failure")),
                }
            })
        })));
        let verify = async |password| verifier.verify(&Credentials::new("repl", password)).await;
        assert!(matches!(verify("right").await, Verdict::Good));
        assert!(matches!(verify("right").await, Verdict::Good));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(matches!(verify("wrong").await, Verdict::Wrong));
        assert!(matches!(verify("wrong").await, Verdict::Wrong));
        assert!(matches!(verify("away").await, Verdict::Away(_)));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn few_passwords_are_tried_at_once() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running, highest) = (Arc::clone(&now), Arc::clone(&most));
        let verifier = Arc::new(Verifier::new(Passwords::ByReplica(Arc::new(move |_| {
            let (running, highest) = (Arc::clone(&running), Arc::clone(&highest));
            Box::pin(async move {
                let count = running.fetch_add(1, Ordering::Relaxed) + 1;
                highest.fetch_max(count, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
                running.fetch_sub(1, Ordering::Relaxed);
                Err(ConnectError::login("NO authentication failure"))
            })
        }))));
        let mut flood = tokio::task::JoinSet::new();
        for n in 0..40 {
            let verifier = Arc::clone(&verifier);
            let given = Credentials::new(format!("user{n}"), "pw");
            flood.spawn(async move { verifier.verify(&given).await });
        }
        while let Some(verdict) = flood.join_next().await {
            assert!(matches!(verdict, Ok(Verdict::Wrong)));
        }
        assert_eq!(most.load(Ordering::Relaxed), CHECKS);
    }

    #[tokio::test]
    async fn configured_credentials() {
        let wanted = Credentials::new("repl", "pw");
        let verifier = Verifier::new(Passwords::Configured(wanted.clone()));
        assert!(matches!(verifier.verify(&wanted).await, Verdict::Good));
        for wrong in [Credentials::new("repl", "p"), Credentials::new("x", "pw")] {
            assert!(matches!(verifier.verify(&wrong).await, Verdict::Wrong));
        }
    }
}
