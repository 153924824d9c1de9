//! The checks of `transparent`: who may listen at the same address, and can the channels be told
//! apart by their replicas?

use super::build::{At, Build};
use super::error::Place;
use super::{Address, Channel, Listen};

/// An address that somebody listens on.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) at: At<Listen>,
    /// The number of the channel for whose redirected connections it is.
    pub(super) transparent: Option<usize>,
}

impl Taken {
    /// Both can't be bound at once.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        self.at.value.clashes(&other.at.value) && !self.shares(other)
    }

    /// One listener for both: where a connection was to go says which channel is meant.
    fn shares(&self, other: &Self) -> bool {
        let of_two_channels = match (self.transparent, other.transparent) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        of_two_channels && self.at.value == other.at.value
    }
}

/// Whether this channel's redirected connections can come at all. `place` is where `transparent`
/// was set.
pub(super) fn possible(build: &mut Build<'_>, place: &Place, channel: &Channel) {
    if let Address::Unix(path) = &channel.replica.address {
        let what = format!(
            "nothing can be redirected on its way to a UNIX socket, and the replica is on \
             unix:{}: remove transparent",
            path.display()
        );
        build.fail(place, what);
    }
    let is_tcp = |listen: &Listen| matches!(listen, Listen::Tcp(_));
    if !channel.listen.iter().any(is_tcp) {
        let what = if channel.listen.is_empty() {
            "transparent is about listen, which is not set: redirected connections come there, not \
             to strict_listen; set listen, with mode = \"strict\" if all is to be strict"
        } else {
            "nothing can be redirected to a UNIX socket: add an address such as 127.0.0.1:2005 to \
             listen, or remove transparent"
        };
        build.fail(place, what);
    }
}

/// Channels that share a listener must have different replicas. `places` are those of `transparent`.
pub(super) fn told_apart(build: &mut Build<'_>, channels: &[(Channel, Option<Place>)]) {
    for (i, (one, place)) in channels.iter().enumerate() {
        let Some(place) = place else { continue };
        let earlier = channels[..i].iter().filter(|(other, _)| other.transparent);
        let twin = earlier.map(|(other, _)| other).find(|other| {
            let shared = one.transparent_listen().find(|listen| {
                let mut theirs = other.transparent_listen();
                theirs.any(|their| their == *listen)
            });
            shared.is_some() && one.replica.address.is_same_as(&other.replica.address)
        });
        if let Some(twin) = twin {
            let name = |channel: &Channel| match channel.name.as_str() {
                "" => "the default channel".to_owned(),
                name => format!("channel \"{name}\""),
            };
            let what = format!(
                "{} and {} listen at the same address and have the same replica {}, so redirected \
                 connections can't be told apart: give them different listen addresses, or \
                 different replicas",
                name(twin),
                name(one),
                one.replica.address
            );
            build.fail(place, what);
        }
    }
}
