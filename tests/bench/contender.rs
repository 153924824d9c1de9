//! Who replicates, and what.

use clap::ValueEnum;

/// Who replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Stock clients without syncmux; more than one share the users by a hash, as sites do today.
    Stock {
        clients: usize,
    },
    /// So many stock clients behind `syncmux shard`, each on its own connection to the link or, with
    /// `strict`, all on a strict listener with 8 lanes.
    Shard {
        clients: usize,
        strict: bool,
    },
    Strict {
        lanes: usize,
        known: bool,
    },
    /// `known` tells that the same syncmux has replicated these mailboxes once before; else it has
    /// just been started.
    FanOut {
        lanes: usize,
        known: bool,
    },
}

impl Contender {
    /// The stock client alone is what all others are compared with.
    pub const ALONE: Self = Self::Stock { clients: 1 };

    pub fn known(self) -> bool {
        match self {
            Self::Stock { .. } | Self::Shard { .. } => false,
            Self::Strict { known, .. } | Self::FanOut { known, .. } => known,
        }
    }

    pub fn lanes(self) -> Option<usize> {
        match self {
            Self::Stock { .. } | Self::Shard { .. } => None,
            Self::Strict { lanes, .. } | Self::FanOut { lanes, .. } => Some(lanes),
        }
    }
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = if self.known() { ", state known" } else { "" };
        let lanes = |lanes: &usize| match lanes {
            1 => "1 lane".to_owned(),
            lanes => format!("{lanes} lanes"),
        };
        let text = match self {
            Self::Stock { clients: 1 } => "stock client alone".to_owned(),
            Self::Stock { clients } => format!("{clients} stock clients, sharded by hand"),
            Self::Shard { clients, strict } => {
                let way = if *strict { ", through strict" } else { "" };
                format!("syncmux shard, {clients} clients{way}")
            }
            Self::Strict { lanes: n, .. } => format!("syncmux strict, {}{known}", lanes(n)),
            Self::FanOut { lanes: n, .. } => format!("syncmux fan-out, {}{known}", lanes(n)),
        };
        f.pad(&text)
    }
}

/// What is replicated in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// One new message for each user, by the rolling client.
    Append,
    /// 20 changes of flags for each user, by the rolling client.
    Flags,
    /// Users of whom the replica has nothing, 40 messages each, as USER lines of the rolling client.
    Copy,
    /// The same by `sync_client -A`.
    CopyAll,
}

impl Load {
    /// How many users there are where nothing else is said.
    pub fn users(self) -> usize {
        match self {
            Self::Append | Self::Flags => 200,
            Self::Copy | Self::CopyAll => 50,
        }
    }

    /// Messages that each user has from the beginning.
    pub fn messages(self) -> usize {
        match self {
            Self::Append => 1,
            Self::Flags => 20,
            Self::Copy | Self::CopyAll => 40,
        }
    }

    /// The replica begins with nothing, each time.
    pub fn is_first(self) -> bool {
        matches!(self, Self::Copy | Self::CopyAll)
    }

    /// Whether this contender does it: `-A` is one client on a strict listener.
    pub fn is_for(self, contender: Contender) -> bool {
        match (self, contender) {
            (Self::CopyAll, Contender::Stock { clients }) => clients == 1,
            (Self::CopyAll, Contender::FanOut { .. } | Contender::Shard { .. }) => false,
            (Self::Copy | Self::CopyAll, contender) => !contender.known(),
            _ => true,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Flags => "flags",
            Self::Copy => "copy",
            Self::CopyAll => "copy-all",
        }
    }

    pub fn describe(self, users: usize) -> String {
        match self {
            Self::Append => format!("one new message of 4 KB for each of {users} users"),
            Self::Flags => format!("20 changes of flags for each of {users} users"),
            Self::Copy => format!("first copy of {users} users with 40 messages, USER lines"),
            Self::CopyAll => format!("first copy of {users} users with 40 messages, -A"),
        }
    }
}
