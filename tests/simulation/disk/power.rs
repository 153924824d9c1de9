//! What a power loss leaves: of names any part that a file system could have written by itself, of
//! each file's new content any beginning, torn or with zeros in it.

use super::{Change, Node, State};

/// Picks one of so many.
pub(crate) type Choose<'a> = &'a mut dyn FnMut(usize) -> usize;

/// Goes through all combinations of choices, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Odometer {
    /// What was chosen, of how many.
    wheels: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    /// The choice to be made now.
    pub(crate) fn choose(&mut self, of: usize) -> usize {
        if self.at == self.wheels.len() {
            self.wheels.push((0, of));
        }
        let (chosen, before) = self.wheels[self.at];
        assert_eq!(before, of, "the same choices come in the same order");
        self.at += 1;
        chosen
    }

    /// The next combination; false when all were there.
    pub(crate) fn turn(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, of)) = self.wheels.pop() {
            if chosen + 1 < of {
                self.wheels.push((chosen + 1, of));
                return true;
            }
        }
        false
    }
}

/// The content after these changes; what is rotten is zeros.
pub(super) fn replay(durable: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut text = durable.to_vec();
    for change in changes {
        match change {
            Change::Append { text: more, rotten } if *rotten => {
                text.resize(text.len() + more.len(), 0);
            }
            Change::Append { text: more, .. } => text.extend_from_slice(more),
            Change::Cut(len) => text.truncate(*len),
            Change::Blank(at, len) => text[*at..at + len].fill(b'\n'),
        }
    }
    text
}

/// A beginning of what happened, its last write whole, torn, or long enough but not written.
fn content(node: &Node, choose: Choose<'_>) -> Vec<u8> {
    if node.pending.is_empty() {
        return node.durable.clone();
    }
    // Everything comes first, nothing last: so a bounded search sees both early on.
    let done = node.pending.len() - choose(node.pending.len() + 1);
    let mut changes = node.pending[..done].to_vec();
    let many = changes.len() > 1;
    if let Some(Change::Blank(_, len)) = changes.last_mut() {
        *len /= 1 + choose(2);
    }
    if let Some(Change::Append { text, .. }) = changes.last_mut() {
        let (half, len) = (text.len() / 2, text.len());
        match choose(5) {
            0 => {}
            1 => text.truncate(len - 1),
            2 => text.truncate(half),
            3 => text.fill(0),
            _ => text[half..].fill(0),
        }
    }
    if many
        && let Some(Change::Append { rotten, .. }) = changes.first_mut()
        && choose(2) == 1
    {
        *rotten = true;
    }
    replay(&node.durable, &changes)
}

impl State {
    /// The power goes, and comes back: every process is gone, and of the disk's content is left
    /// what was fsynced and what is chosen.
    pub(crate) fn lose_power(&mut self, choose: Choose<'_>) {
        let mut names = self.durable_names.clone();
        let mut lost: Vec<usize> = Vec::new();
        for (number, change) in self.pending.iter().enumerate() {
            // Changes of one name keep their order; others come in any.
            let needs = |lost: &usize| {
                let mut names = self.pending[*lost].names();
                names.any(|name| change.names().any(|other| other == name))
            };
            if lost.iter().any(needs) || choose(2) == 1 {
                lost.push(number);
            } else {
                change.apply(&mut names);
            }
        }
        // An inode is not given away on disk before the name that had it is gone there.
        let inode = |file: &usize| self.files[file].inode;
        let all = names.clone();
        names.retain(|_, file| {
            let mut others = all.values();
            !others.any(|other| other < file && inode(other) == inode(file))
        });
        let old = std::mem::take(&mut self.files);
        for file in names.values() {
            let text = content(&old[file], choose);
            self.files.entry(*file).or_insert_with(|| Node {
                inode: old[file].inode,
                modified: old[file].modified,
                now: text.clone(),
                durable: text,
                pending: Vec::new(),
                handles: 0,
            });
        }
        self.durable_names = names.clone();
        self.names = names;
        self.pending.clear();
        self.cyrus.die();
        self.kill();
    }
}
