//! What `io/journal.rs` does, on the simulated disk: the sync directory's own code, which is
//! killed, loses power or is refused something at any of its system calls.

use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;
use syncmux::core::{Action, Core, Event, RunId};
use syncmux::io::sync_directory::SyncDirectory;
use syncmux::protocol::synclog::LineReader;

use super::World;
use crate::disk::{Fault, lines_put_back};

impl World {
    pub(super) fn disk_works(&mut self) {
        let Some(action) = self.orders.pop_front() else {
            return;
        };
        self.plan_trouble(25, 10);
        let event = self.carry_out(action);
        let dead = self.settle_trouble();
        if dead {
            let power = self.loses_power && self.random.bool();
            self.kill(power);
        } else {
            self.told.extend(event);
        }
    }

    /// Once in so many times syncmux dies at one of the next calls, or one of them fails.
    fn plan_trouble(&mut self, dies: u8, fails: u8) {
        let mut disk = self.disk.state();
        if !self.faults {
            return;
        }
        let calls = disk.calls + 1;
        if self.random.u8(..dies) == 0 {
            disk.crash_at = Some(calls + self.random.u64(..16));
        }
        if self.random.u8(..fails) == 0 {
            let errnos = [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::PERM];
            disk.fault = Some(Fault {
                at: calls + self.random.u64(..12),
                and_on: self.random.bool(),
                errno: errnos[self.random.usize(..errnos.len())],
            });
        }
    }

    fn settle_trouble(&mut self) -> bool {
        let mut disk = self.disk.state();
        self.counts.disk_faults += std::mem::take(&mut disk.faults);
        (disk.crash_at, disk.fault) = (None, None);
        disk.dead
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        let directory = self.directory.as_ref().expect("a syncmux that runs");
        let event = match action {
            Action::LinkRun { run } => match directory.link(run, &self.setup.site) {
                Ok(coverage) => {
                    self.linked.insert(run);
                    let coverage = Arc::new(coverage);
                    Event::RunLinked { run, coverage }
                }
                Err(error) => Event::RunLinkFailed {
                    run,
                    why: error.to_string(),
                },
            },
            Action::DropLink { run } => {
                self.linked.remove(&run);
                let link = format!("syncmux-run-{}", run.0);
                let there = self.disk.state().read(&link).is_some();
                assert!(there, "dropped {run:?} twice");
                let _ = directory.drop_link(run);
                return None;
            }
            Action::WriteLines { batch, lines } => match directory.append_lines(&lines) {
                Ok(left_out) => {
                    assert!(left_out.is_empty());
                    self.counts.lines_written += lines.len() as u64;
                    Event::LinesWritten { batch }
                }
                Err(error) => Event::DiskFailed {
                    batch,
                    why: error.to_string(),
                },
            },
            Action::StoreOwed { batch, lines } => match directory.store_owed(&lines) {
                Ok(left_out) => {
                    assert!(left_out.is_empty());
                    Event::OwedStored { batch }
                }
                Err(error) => Event::DiskFailed {
                    batch,
                    why: error.to_string(),
                },
            },
            other => panic!("not for the disk: {other:?}"),
        };
        Some(event)
    }

    pub(super) fn look_at_run(&mut self) {
        let now = self.run_now();
        let is_gone = |run: &RunId| Some(*run) != now;
        let gone: Vec<RunId> = self.linked.iter().copied().filter(is_gone).collect();
        for run in gone {
            self.linked.remove(&run);
            self.told.push_back(Event::RunGone { run });
        }
        if let (Some(looked), Some(directory)) = (&mut self.looked, &self.directory) {
            let named = directory.look_ahead(looked, self.linked.is_empty());
            self.counts.read_ahead += (named.mailboxes.len() + named.users.len()) as u64;
            self.tell(Event::LogNames { named });
        }
    }

    /// Notes which mailboxes the client is about to look at, that were changed behind everybody's
    /// back.
    pub(super) fn see_run(&mut self) {
        let now = self.run_now();
        if now == std::mem::replace(&mut self.last_run, now) || now.is_none() {
            return;
        }
        let disk = self.disk.state();
        let mut text = Bytes::copy_from_slice(disk.read("log-run").unwrap_or_default());
        drop(disk);
        let mut reader = LineReader::new();
        while let Ok(Some(item)) = reader.feed(&mut text) {
            for name in item.mailboxes() {
                if self.tampered.remove(name) {
                    self.must_heal.insert(name.clone());
                }
            }
        }
    }

    /// syncmux starts: everything left over goes back into the log, however often it dies in the
    /// middle of that. Then it lets clients in.
    pub(super) fn start(&mut self) {
        self.orders.clear();
        self.linked.clear();
        for _ in 0..6 {
            self.plan_trouble(3, 4);
            if self.recovers() {
                break;
            }
            self.check();
        }
        let _ = self.settle_trouble();
        if self.directory.is_none() {
            assert!(self.recovers(), "nothing is wrong, and it does not start");
        }
        self.setup.seed += 1;
        self.core = Some(Core::new(self.setup.clone()));
    }

    fn recovers(&mut self) -> bool {
        self.disk.state().appended.clear();
        let directory = SyncDirectory::on(self.disk.syncmux());
        let result = directory.recover();
        let mut once = std::collections::HashSet::new();
        for item in lines_put_back(&self.disk.state().appended) {
            assert!(once.insert(format!("{item:?}")), "{item:?} put back twice");
        }
        let failed = self.disk.state().faults;
        let dead = self.settle_trouble();
        if let (Ok(_), false) = (&result, dead) {
            let disk = self.disk.state();
            // A file that was being made is worth nothing, and may stay where its removal failed.
            let counts = |name: &&str| !name.starts_with("syncmux-tmp-") || failed == 0;
            let left: Vec<_> = disk.names("syncmux-").filter(counts).collect();
            assert!(left.is_empty(), "a start that leaves {left:?}");
            drop(disk);
            self.directory = Some(directory);
            return true;
        }
        self.counts.starts_cut += 1;
        drop(directory);
        if dead && self.loses_power && self.random.bool() {
            self.lose_power();
        } else {
            self.disk.state().kill();
        }
        false
    }

    /// The master's machine goes down, with all of Cyrus.
    pub(super) fn lose_power(&mut self) {
        self.counts.power_losses += 1;
        self.cyrus_loses = true;
        let random = &mut self.random;
        self.disk.state().lose_power(&mut |of| random.usize(..of));
    }
}
