//! The master's side: mail comes, and its imapds log it.

use super::World;
use crate::disk::Write;

impl World {
    pub(super) fn change_master(&mut self) {
        let name = match self.random.u8(0..12) {
            0 => "shared.a".to_owned(),
            1 => "shared.b".to_owned(),
            n @ 2..=6 => format!("user.u{}", n - 2),
            n => format!("user.u{}.sub", n - 7),
        };
        let mut lines = vec![format!("APPEND {name}")];
        let mut master = self.master.borrow_mut();
        *master.mailboxes.entry(name).or_default() += 1;
        if self.random.u8(0..4) == 0 {
            let user = format!("u{}", self.random.u8(0..5));
            lines.push(format!("SEEN {user} id.shared.a"));
            let pair = (user, "id.shared.a".into());
            *master.seen.entry(pair).or_default() += 1;
        }
        drop(master);
        if self.random.u8(0..8) == 0 {
            lines.push(format!("UNMAILBOX user.u{}.gone", self.random.u8(0..5)));
        }
        if self.random.u8(0..12) == 0 {
            lines.push(format!("USER u{}", self.random.u8(0..5)));
        }
        if self.random.u8(0..4) == 0 {
            // The client has nothing to do for it, but it is quoted.
            lines.push("QUOTA \"user.u1.sent mail\"".to_owned());
        }
        for line in lines {
            self.log(&line);
        }
    }

    /// An imapd logs a line.
    fn log(&mut self, line: &str) {
        let how = match self.random.u8(0..40) {
            0 if self.faults && self.loses_power => Write::Torn,
            1..=5 if self.faults => Write::Unsynced,
            _ => Write::Whole,
        };
        self.cyrus_loses |= how == Write::Torn;
        let mut disk = self.disk.state();
        assert!(disk.imapd_begins(line, how));
        if !self.faults || self.random.u8(0..4) > 0 {
            disk.imapd_ends();
        }
    }

    pub(super) fn log_everything(&mut self) {
        let master = self.master.borrow();
        let appends = master.mailboxes.keys().map(|name| format!("APPEND {name}"));
        let seens = master
            .seen
            .keys()
            .map(|(user, id)| format!("SEEN {user} {id}"));
        let lines: Vec<String> = appends.chain(seens).collect();
        drop(master);
        for line in lines {
            self.log(&line);
        }
    }
}
