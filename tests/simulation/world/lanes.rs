//! The lanes: the replica works at what is on them, takes locks, and they break.

use std::time::Duration;

use syncmux::core::{Event, LaneId};

use super::World;
use super::checks::{Ack, AckState};
use crate::replica::{Done, LOCKED, Process};

impl World {
    pub(super) fn replica_works(&mut self) {
        let lanes: Vec<LaneId> = self.replica.processes.keys().copied().collect();
        if lanes.is_empty() {
            return;
        }
        let lane = lanes[self.random.usize(0..lanes.len())];
        let process = self.replica.processes.get_mut(&lane).unwrap();
        if !process.open {
            process.open = true;
            if self.faults && self.random.u8(0..20) == 0 {
                self.replica.processes.remove(&lane);
                self.tell(Event::LaneRefused {
                    lane,
                    why: "refused".into(),
                });
            } else {
                let enabled = Some(process.capabilities.clone());
                self.tell(Event::LaneOpened { lane, enabled });
            }
            return;
        }
        let text = process.requests.front().map(|body| body.to_vec().unwrap());
        match self.replica.step(lane, self.now, &mut self.random) {
            None => {}
            Some(Done::Died) => self.lose(lane),
            Some(Done::Reply(reply)) => {
                let ok = reply.status.kind == syncmux::protocol::StatusKind::Ok;
                let locked = reply.status.token() == Some(LOCKED);
                self.counts.locked += u64::from(locked);
                let text = String::from_utf8(text.unwrap()).unwrap();
                let on_lane = |ack: &&mut Ack| ack.state == AckState::OnLane(lane);
                let mut acks = self.acks.iter_mut().filter(on_lane);
                if let Some(ack) = acks.find(|ack| ack.text == text) {
                    ack.state = AckState::Done;
                    if locked {
                        // It goes out again before anything else of its subject, or counts as
                        // refused, which is said.
                        ack.state = AckState::Queued;
                    } else if !ok {
                        let subject = ack.subject.clone();
                        ack.state = AckState::Failed;
                        self.counts.refused += 1;
                        self.fail(&subject);
                    }
                }
                self.tell(Event::LaneReply { lane, reply });
            }
        }
    }

    pub(super) fn lose(&mut self, lane: LaneId) {
        self.counts.lanes_lost += 1;
        self.replica.processes.remove(&lane);
        let lost = |ack: &&mut Ack| ack.state == AckState::OnLane(lane);
        let mut subjects = Vec::new();
        for ack in self.acks.iter_mut().filter(lost) {
            ack.state = AckState::Failed;
            subjects.push(ack.subject.clone());
        }
        for subject in subjects {
            self.fail(&subject);
        }
        self.tell(Event::LaneLost {
            lane,
            why: "end of file".into(),
            orderly: false,
        });
    }

    pub(super) fn lane_breaks(&mut self) {
        let open = |(_, process): &(&LaneId, &Process)| process.open;
        let lanes: Vec<LaneId> = self
            .replica
            .processes
            .iter()
            .filter(open)
            .map(|(lane, _)| *lane)
            .collect();
        if lanes.is_empty() {
            return;
        }
        let lane = lanes[self.random.usize(0..lanes.len())];
        // What was under way may still be carried out.
        for _ in 0..self.random.usize(0..3) {
            let done = self.replica.step(lane, self.now, &mut self.random);
            if matches!(done, Some(Done::Died)) {
                break;
            }
        }
        self.lose(lane);
    }

    /// Somebody else on the replica works on a mailbox or with all of a user, for a moment or for
    /// longer than anybody waits.
    pub(super) fn take_lock(&mut self) {
        let name = match self.random.u8(0..12) {
            0 => "shared.a".to_owned(),
            1 => "shared.b".to_owned(),
            n @ 2..=6 => format!("user.u{}", n - 2),
            n => format!("user.u{}.sub", n - 7),
        };
        let lasts = match self.random.u8(0..4) {
            0 => self.random.u64(1_000..200_000),
            _ => self.random.u64(1..600),
        };
        let until = self.now + Duration::from_millis(lasts);
        self.replica.locks.insert(name, until);
    }
}
