//! How a run ends: no more faults, everything heals by itself, and both ends are compared.

use std::time::Duration;

use bytes::Bytes;
use syncmux::core::Mode;

use super::World;

impl World {
    pub(super) fn end(&mut self) {
        // No more faults: everything heals by itself.
        self.faults = false;
        self.master.borrow_mut().rests = true;
        self.disk.state().cyrus.between = None;
        self.replica.chances = (0, 0, 0);
        self.replica.bad = None;
        self.replica.unreadable = None;
        // Locks that are held end in their time. The visitor goes on meanwhile, and may fail somebody once more.
        for _ in 0..12 {
            self.rest();
            let snapshot = self.core.as_ref().unwrap().snapshot();
            if snapshot.probation_subjects == 0 {
                break;
            }
            // Where it could not be seen which run holds a line the next run but one tells.
            self.now += Duration::from_secs(1);
            self.change_master();
        }
        let snapshot = self.core.as_ref().unwrap().snapshot();
        assert_eq!(snapshot.probation_subjects, 0, "probation without end");
        let cyrus_lost = self.cyrus_loses || self.disk.state().cyrus.lost;
        // Also where the client was told what was known, and sent nothing.
        // In strict mode the client gets the replica's own refusals, and forgets one of a shared
        // mailbox where a user's group comes behind it, as it does without syncmux.
        let strict = self.endpoints.iter().all(|one| one.mode == Mode::Strict);
        let forgets = |name: &&Bytes| strict && !name.starts_with(b"user.");
        let healed = self.must_heal.iter().filter(|name| !forgets(name));
        let healed: Vec<Bytes> = healed.cloned().collect();
        self.counts.must_heal += healed.len() as u64;
        for name in healed.iter().filter(|_| !cyrus_lost) {
            let there = self.replica.mailboxes.get(name);
            let master = self.master.borrow();
            let here = master.mailboxes.get(std::str::from_utf8(name).unwrap());
            assert_eq!(there, here, "{name:?} was looked at and is not repaired");
        }
        // What nobody looked at is found at the next look.
        self.log_everything();
        self.rest();
        if cyrus_lost {
            // What Cyrus lost of its own, the next change of the same mailbox brings.
            self.log_everything();
            self.rest();
        }
        let master = self.master.borrow();
        for (name, version) in &master.mailboxes {
            let there = self.replica.mailboxes.get(name.as_bytes());
            assert_eq!(there, Some(version), "{name} differs");
        }
        for ((user, id), uid) in &master.seen {
            let name = (Bytes::from(user.clone()), Bytes::from(id.clone()));
            assert_eq!(
                self.replica.seen.get(&name),
                Some(uid),
                "seen of {name:?} differs"
            );
        }
    }

    fn rest(&mut self) {
        for _ in 0..60_000 {
            if self.quiet() {
                return;
            }
            self.step();
        }
        self.show();
        panic!("it does not come to rest");
    }

    /// For whoever looks into a failed seed.
    fn show(&self) {
        println!("{:#?} orders {:?}", self.disk.state(), self.orders);
        for endpoint in &self.endpoints {
            let wire = endpoint.wire.borrow();
            println!(
                "{:?} {wire:?} {:?} {:?}",
                endpoint.mode, endpoint.session, endpoint.outstanding
            );
        }
        println!("{:#?}", self.core);
    }

    fn quiet(&self) -> bool {
        let disk = self.disk.state();
        let Some(core) = &self.core else { return false };
        let snapshot = core.snapshot();
        !self.draining
            && self.linked.is_empty()
            // What a disk that fails did not let go of goes at the next start.
            && ["log", "log-run", "syncmux-owed"].iter().all(|name| disk.read(name).is_none())
            && (self.counts.disk_faults > 0 || disk.names("").next().is_none())
            && self.orders.is_empty()
            && self.told.is_empty()
            && snapshot.unconfirmed_users == 0
            && snapshot.known_doubts == 0
            && snapshot.owed_lines
                == snapshot
                    .probation
                    .iter()
                    .map(|one| one.lines)
                    .sum::<usize>()
    }
}
