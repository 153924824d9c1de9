//! The scheduler: a state machine without sockets, clock or disk. Events in, actions out.

pub mod event;
