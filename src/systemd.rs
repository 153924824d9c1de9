//! Tells systemd how things stand (`Type=notify`) and that every channel still turns
//! (`WatchdogSec=`). Without systemd, which names itself in the environment, it does nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::io::shell::Shown;

/// How often the status is brought up to date where no watchdog asks for more.
const LOOK: Duration = Duration::from_secs(5);

/// A channel's own look at itself is up to a quarter of a second old. A watchdog of less than two
/// seconds would bite where nothing is wrong.
const SHORTEST: Duration = Duration::from_secs(1);

/// A channel that is watched: its name, and its last look at itself.
pub type Channel = (String, Arc<Mutex<Shown>>);

/// Tells that the listeners are bound, and from then on how things stand and that every channel
/// turns, as long as it does. Without channels (`terminate`) the runtime alone is watched.
pub fn ready(channels: Vec<Channel>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    tell(&[NotifyState::Ready]);
    tokio::spawn(watch(channels, sd_notify::watchdog_enabled(), tell));
}

/// The same for `shard`: `look` says when its thread last went round, and how things stand.
pub fn ready_with(look: impl Fn() -> (Instant, String) + Send + 'static) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    tell(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    tokio::spawn(async move {
        let pause = watchdog.map_or(LOOK, |limit| (limit / 4).clamp(SHORTEST / 4, LOOK));
        let patience = watchdog.map(|limit| (limit / 2).max(SHORTEST));
        let mut ticks = tokio::time::interval(pause);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            ticks.tick().await;
            let (last, now) = look();
            if now != told {
                tell(&[NotifyState::Status(&now)]);
                told = now;
            }
            if patience.is_some_and(|patience| turns(last, patience)) {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
}

/// Tells that a drain begins, and how long it may take at most, should `TimeoutStopSec=` be less.
pub fn stopping(longest: Duration) {
    let longest = u32::try_from(longest.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: what was acknowledged is finished first"),
        NotifyState::ExtendTimeoutUsec(longest),
    ]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Does nothing and succeeds where there is no NOTIFY_SOCKET.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told how things stand");
    }
}

/// Never returns.
async fn watch(
    channels: Vec<Channel>,
    watchdog: Option<Duration>,
    tell: impl Fn(&[NotifyState<'_>]),
) {
    let pause = watchdog.map_or(LOOK, |limit| (limit / 4).clamp(SHORTEST / 4, LOOK));
    let patience = watchdog.map(|limit| (limit / 2).max(SHORTEST));
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = String::new();
    let mut was_stuck = false;
    loop {
        ticks.tick().await;
        let looks: Vec<_> = channels
            .iter()
            .map(|(name, shown)| {
                let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                (name, shown.clone())
            })
            .collect();
        let now = status(looks.iter().map(|(_, shown)| shown));
        if now != told && !channels.is_empty() {
            tell(&[NotifyState::Status(&now)]);
            told = now;
        }
        let Some(patience) = patience else {
            continue;
        };
        let stuck = looks.iter().find(|(_, shown)| !turns(shown.at, patience));
        match stuck {
            None => tell(&[NotifyState::Watchdog]),
            Some((name, shown)) if !was_stuck && !shown.snapshot.draining => tracing::error!(
                channel = name.as_str(),
                seconds = shown.at.elapsed().as_secs(),
                "the channel does not go on: systemd hears no more from us and starts syncmux \
                 again"
            ),
            Some(_) => {}
        }
        was_stuck = stuck.is_some();
    }
}

/// Whether a channel whose last look was at that time goes on.
fn turns(last: Instant, patience: Duration) -> bool {
    last.elapsed() < patience
}

/// What `systemctl status` shows, of all channels together.
fn status<'a>(looks: impl Iterator<Item = &'a Shown>) -> String {
    let (mut clients, mut lanes, mut unconfirmed, mut owed) = (0, 0, 0, 0);
    let (mut away, mut draining) = (false, false);
    for Shown { snapshot, .. } in looks {
        clients += snapshot.sessions;
        lanes += snapshot.lanes_idle + snapshot.lanes_busy;
        unconfirmed += snapshot.unconfirmed_users;
        owed += snapshot.owed_lines;
        away |= snapshot.replica_away_seconds.is_some();
        draining |= snapshot.draining;
    }
    let mut text = format!(
        "clients {clients}, lanes {lanes}, unconfirmed users {unconfirmed}, owed lines {owed}"
    );
    if away {
        text.push_str(", a replica is away");
    }
    if draining {
        text.push_str(", stopping");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Snapshot;

    fn channel(name: &str, snapshot: Snapshot) -> Channel {
        let at = Instant::now();
        (
            name.to_owned(),
            Arc::new(Mutex::new(Shown::new(at, snapshot))),
        )
    }

    fn pings(told: &Mutex<Vec<String>>) -> usize {
        let mut told = told.lock().unwrap();
        let count = told.iter().filter(|text| *text == "WATCHDOG=1").count();
        told.clear();
        count
    }

    /// One channel of two stops looking at itself: no ping for either until it goes on.
    #[tokio::test]
    async fn a_channel_that_hangs_is_not_pinged_for() {
        let (a, b) = (
            channel("a", Snapshot::default()),
            channel("b", Snapshot::default()),
        );
        let told = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&told);
        let watching = tokio::spawn(watch(
            vec![a.clone(), b.clone()],
            Some(Duration::from_secs(2)),
            move |states| {
                note.lock()
                    .unwrap()
                    .extend(states.iter().map(ToString::to_string))
            },
        ));
        let look = |channel: &Channel| channel.1.lock().unwrap().at = Instant::now();
        let turn = async |channels: &[&Channel], seconds: f64| {
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            while Instant::now() < end {
                channels.iter().for_each(|channel| look(channel));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        turn(&[&a, &b], 1.2).await;
        assert!(pings(&told) >= 2);
        // The last ping may still come while b's last look is less than a second old.
        turn(&[&a], 1.5).await;
        pings(&told);
        turn(&[&a], 1.5).await;
        assert_eq!(pings(&told), 0);
        turn(&[&a, &b], 1.2).await;
        assert!(pings(&told) >= 1);
        watching.abort();
    }

    #[test]
    fn the_status_adds_up_the_channels() {
        let one = Snapshot {
            sessions: 1,
            lanes_idle: 2,
            lanes_busy: 6,
            unconfirmed_users: 30,
            ..Snapshot::default()
        };
        let two = Snapshot {
            sessions: 2,
            owed_lines: 4,
            replica_away_seconds: Some(3),
            draining: true,
            ..Snapshot::default()
        };
        let looks = [one, two].map(|snapshot| Shown::new(Instant::now(), snapshot));
        assert_eq!(
            status(looks.iter()),
            "clients 3, lanes 8, unconfirmed users 30, owed lines 4, a replica is away, stopping"
        );
    }
}
