//! `[limits]`: bounds and times.

use std::path::PathBuf;

use super::Limits;
use super::build::Build;
use super::error::{Place, words};
use super::file::{self, Key};
use super::units::Size;

impl Build<'_> {
    pub(super) fn limits(&mut self, keys: file::Limits) -> Limits {
        let sane = Limits::default();
        let count = |build: &mut Self, key: Key<u32>, what, absent| {
            let at = key.map(|key| build.at(key));
            build.between(at, what, 1..=1_000_000, absent)
        };
        let size = |build: &mut Self, key: Key<Size>, what: &str, low: u64, absent: u64| {
            let Some(at) = key.map(|key| build.at(key)) else {
                return absent;
            };
            if at.value.0 < low {
                let what = format!("{what} is {} bytes: set it to {low} or more", at.value.0);
                build.fail(&at.place, what);
            }
            at.value.0
        };
        let time = Self::time;
        let limits = Limits {
            sessions: count(self, keys.sessions, "sessions", sane.sessions),
            unconfirmed_users: count(
                self,
                keys.unconfirmed_users,
                "unconfirmed_users",
                sane.unconfirmed_users,
            ),
            queued_bytes: size(
                self,
                keys.queued_bytes,
                "queued_bytes",
                1 << 16,
                sane.queued_bytes,
            ),
            known_state: size(self, keys.known_state, "known_state", 0, sane.known_state),
            reserve_above: size(
                self,
                keys.reserve_above,
                "reserve_above",
                0,
                sane.reserve_above,
            ),
            staged_memory: size(
                self,
                keys.staged_memory,
                "staged_memory",
                1 << 16,
                sane.staged_memory,
            ),
            spill_directory: sane.spill_directory,
            spill_size: size(self, keys.spill_size, "spill_size", 0, sane.spill_size),
            command_size: size(
                self,
                keys.command_size,
                "command_size",
                1 << 16,
                sane.command_size,
            ),
            message_size: size(
                self,
                keys.message_size,
                "message_size",
                1 << 16,
                sane.message_size,
            ),
            login_time: time(self, keys.login_time, "login_time", 600, sane.login_time),
            // Both below the 30 minutes for which the stock client waits for an answer.
            answer_timeout: time(
                self,
                keys.answer_timeout,
                "answer_timeout",
                1_799,
                sane.answer_timeout,
            ),
            // A user waits for it.
            rightnow_answer_timeout: time(
                self,
                keys.rightnow_answer_timeout,
                "rightnow_answer_timeout",
                600,
                sane.rightnow_answer_timeout,
            ),
            replica_absence: time(
                self,
                keys.replica_absence,
                "replica_absence",
                1_799,
                sane.replica_absence,
            ),
            lane_idle: time(self, keys.lane_idle, "lane_idle", 1_799, sane.lane_idle),
            drain_grace: time(
                self,
                keys.drain_grace,
                "drain_grace",
                3_600,
                sane.drain_grace,
            ),
        };
        self.spill(keys.spill_directory, limits)
    }

    fn spill(&mut self, key: Key<PathBuf>, mut limits: Limits) -> Limits {
        let place = key
            .as_ref()
            .map_or(Place::Missing, |key| self.place(&key.span()));
        if let Some(key) = key {
            limits.spill_directory = key.into_inner();
        }
        if limits.spill_size > 0
            && let Err(error) = tempfile::tempfile_in(&limits.spill_directory)
        {
            let path = limits.spill_directory.display();
            let what = format!(
                "no file can be made in {path}: {}; set spill_directory under [limits] to a \
                 folder that syncmux can write in",
                words(&error)
            );
            self.fail(&place, what);
        }
        limits
    }
}
