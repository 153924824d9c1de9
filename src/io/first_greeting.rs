//! Clients can be greeted once the replica has been heard: it is asked until it answers.

use std::time::{Duration, Instant};

use super::credentials::Credentials;
use super::lane_connect::Replica;
use super::stream;

/// Pauses between two tries to learn the greeting.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Replica {
    /// Tries until the greeting is known, with growing pauses; clients can be greeted from then on.
    /// An imapd tells what there is to be known only after a login with `credentials`.
    pub async fn learn_greeting(&self, credentials: Option<Credentials>) {
        let mut pause = FIRST_PAUSE;
        while self.greeting.borrow().is_none() {
            let Err(error) = self.probe_greeting(credentials.as_ref()).await else {
                return;
            };
            stream::count_failure(&self.settings.channel, "replica", error.kind());
            self.unknown_since.get_or_init(Instant::now);
            tracing::warn!(%error, pause = ?pause, "the replica cannot be asked for its greeting");
            tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// For how long it has been away, where it has been since the start: no lane is wanted then,
    /// since clients can't be greeted.
    #[must_use]
    pub fn never_seen(&self) -> Option<Duration> {
        let is_known = self.greeting.borrow().is_some();
        let since = self.unknown_since.get().filter(|_| !is_known)?;
        Some(since.elapsed())
    }
}
