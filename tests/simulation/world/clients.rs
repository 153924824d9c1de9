//! The clients: they come, speak, wait and vanish.

use std::task::{Context, Waker};

use syncmux::core::{Event, Identity, SessionId};
use syncmux::protocol::Body;

use super::World;
use crate::replica::parse;

impl World {
    pub(super) fn poll_clients(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for endpoint in &mut self.endpoints {
            let _ = endpoint.future.as_mut().poll(&mut context);
            // A client that has ended its connection.
            let gone = !endpoint.wire.borrow().connected;
            if let Some(session) = endpoint.session.take_if(|_| gone) {
                endpoint.outstanding = None;
                if let Some(core) = &mut self.core {
                    core.handle(self.now, Event::SessionClosed { session });
                }
            }
        }
        self.act();
    }

    /// A client dies in the middle of whatever it is doing.
    pub(super) fn vanish(&mut self) {
        let index = self.random.usize(0..self.endpoints.len());
        let endpoint = &mut self.endpoints[index];
        let Some(session) = endpoint.session.take() else {
            return;
        };
        self.counts.vanished += 1;
        let mut wire = endpoint.wire.borrow_mut();
        wire.answers.push_back(None);
        wire.connected = false;
        wire.command = None;
        let number = endpoint.number;
        let left = endpoint.outstanding.take();
        self.orphans.extend(left.map(|text| (text, number)));
        drop(wire);
        self.tell(Event::SessionClosed { session });
    }

    pub(super) fn client_speaks(&mut self) {
        let run = self.run_now();
        let index = self.random.usize(0..self.endpoints.len());
        let endpoint = &mut self.endpoints[index];
        let Some(core) = &mut self.core else { return };
        let mut wire = endpoint.wire.borrow_mut();
        if !self.draining && std::mem::take(&mut wire.connect) {
            wire.connected = true;
            self.next_session += 1;
            let session = SessionId(self.next_session);
            endpoint.session = Some(session);
            let (mode, rolling) = (endpoint.mode, endpoint.rolling);
            let identity = Identity::Configured;
            core.handle(
                self.now,
                Event::SessionOpened {
                    session,
                    mode,
                    rolling,
                    identity,
                },
            );
        } else if let (Some(session), Some(text)) = (endpoint.session, wire.command.take()) {
            self.counts.commands += 1;
            let command = parse(&Body::from(text.clone()));
            endpoint.outstanding = Some(text);
            endpoint.number = self.counts.commands;
            let run = run.filter(|_| endpoint.rolling);
            if self.traced {
                eprintln!("{session:?} says {:?}", endpoint.outstanding);
            }
            core.handle(
                self.now,
                Event::Command {
                    session,
                    command,
                    run,
                },
            );
        }
        drop(wire);
        self.act();
    }

    pub(super) fn wake_clients(&mut self) {
        for endpoint in &self.endpoints {
            endpoint.wire.borrow_mut().idle = false;
        }
    }
}
