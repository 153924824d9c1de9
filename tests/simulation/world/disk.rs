//! The sync directory: links, `log` and the owed file, and a disk that fails.

use std::sync::Arc;

use bytes::Bytes;
use syncmux::core::{Action, Event, RunId};
use syncmux::protocol::synclog::{Coverage, Line, LineReader};

use super::World;

fn print(lines: &[Line]) -> Vec<String> {
    let print = |line: &Line| {
        let mut out = Vec::new();
        line.print(&mut out).unwrap();
        String::from_utf8(out).unwrap().trim_end().to_owned()
    };
    lines.iter().map(print).collect()
}

impl World {
    pub(super) fn disk_works(&mut self) {
        let Some(action) = self.disk.pop_front() else {
            return;
        };
        let fails = self.faults && self.random.u8(0..15) == 0;
        let why = || "no space".to_owned();
        let event = match action {
            Action::LinkRun { run } if fails => Event::RunLinkFailed { run, why: why() },
            Action::LinkRun { run } => {
                let now = self.master.borrow().run.clone();
                match now.filter(|(inode, _)| *inode == run.0) {
                    None => Event::RunLinkFailed {
                        run,
                        why: "log-run is another".into(),
                    },
                    Some((inode, lines)) => {
                        let coverage = Arc::new(self.coverage(&lines));
                        self.links.insert(inode, lines);
                        Event::RunLinked { run, coverage }
                    }
                }
            }
            Action::WriteLines { batch, .. } | Action::StoreOwed { batch, .. } if fails => {
                Event::DiskFailed { batch, why: why() }
            }
            Action::WriteLines { batch, lines } => {
                self.counts.lines_written += lines.len() as u64;
                self.master.borrow_mut().log.extend(print(&lines));
                Event::LinesWritten { batch }
            }
            Action::StoreOwed { batch, lines } => {
                self.owed = print(&lines);
                Event::OwedStored { batch }
            }
            Action::DropLink { run } => {
                assert!(self.links.remove(&run.0).is_some(), "dropped {run:?} twice");
                return;
            }
            other => panic!("not for the disk: {other:?}"),
        };
        self.tell(event);
    }

    fn coverage(&self, lines: &[String]) -> Coverage {
        let mut coverage = Coverage::default();
        let mut reader = LineReader::new();
        let mut input = Bytes::from(lines.join("\n") + "\n");
        while let Some(item) = reader.feed(&mut input).unwrap() {
            coverage.add(&item, &self.setup.site);
        }
        coverage
    }

    pub(super) fn look_at_run(&mut self) {
        let now = self.run_now();
        let gone: Vec<u64> = self
            .links
            .keys()
            .filter(|inode| Some(RunId(**inode)) != now)
            .copied()
            .collect();
        for inode in gone {
            self.tell(Event::RunGone { run: RunId(inode) });
        }
    }
}
