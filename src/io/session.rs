//! A session: one client, command by command.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::conversation::{Conversation, Ended};
use super::login::{Login, UNKNOWN, connection_answer, identify, offers, tell_capabilities};
use super::registry::{ListenerSettings, Peer, Place, SessionContext, SessionOutput};
use super::stream::{self, BoxStream};
use crate::core::event::{Event, Identity, Mode, SessionId};
use crate::protocol::{Command, Kind};

/// Before a command that found no room is answered.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Serves a client until it is gone.
pub(super) async fn serve(
    stream: BoxStream,
    peer: Peer,
    context: Arc<SessionContext>,
    listener: Arc<ListenerSettings>,
) {
    let mut client = Conversation::new(
        stream,
        listener.dialect,
        &context.limits,
        context.spill.writer(),
        Arc::clone(&context.memory),
        context.meter.clone(),
    );
    let (identity, _permit) = match let_in(&mut client, &peer, &context, &listener).await {
        Ok(admitted) => admitted,
        Err(Ended::Crowded) => return tracing::debug!(%peer, "made way before its login"),
        Err(ended) => {
            let hint = match client.is_foreign() {
                true => "; it said nothing in IMAP: is its sync_try_imap off?",
                false => "",
            };
            tracing::info!(%peer, why = format!("{ended}{hint}"), "a connection ended before login");
            return farewell(client, &ended).await;
        }
    };
    let place = context.registry.enter();
    let id = place.session;
    tracing::info!(session = id.0, %peer, ?identity, mode = ?listener.mode, "a client logged in");
    let opened = Event::SessionOpened {
        session: id,
        mode: listener.mode,
        rolling: listener.rolling,
        identity,
    };
    // Nobody listens any more only when the program is ending.
    let _ = context.events.send(opened);
    let mut session = Session {
        client,
        place,
        context: &context,
        listener: &listener,
        last: "its login",
        told: false,
    };
    let ended = session.run().await;
    let Session {
        client,
        place,
        last,
        told,
        ..
    } = session;
    // Nothing that the core still says reaches anybody.
    drop(place);
    if !told {
        let _ = context.events.send(Event::SessionClosed { session: id });
    }
    match &ended {
        Ended::Fatal(fatal) => {
            tracing::warn!(session = id.0, %peer, why = %fatal, "a client cannot be followed");
            stream::count_failure(&context.channel, "client", "malformed");
        }
        _ => tracing::info!(session = id.0, %peer, why = %ended, after = last, "a session ended"),
    }
    farewell(client, &ended).await;
}

/// From the connection to a session: a login, and a permit. A TCP client is a stranger until it has
/// logged in and must not use up what is there for sessions.
async fn let_in(
    client: &mut Conversation,
    peer: &Peer,
    context: &SessionContext,
    listener: &ListenerSettings,
) -> Result<(Identity, OwnedSemaphorePermit), Ended> {
    let permit = || {
        let permit = Arc::clone(&context.permits).try_acquire_owned();
        permit.map_err(|_| {
            tracing::warn!(%peer, "refused: too many sessions");
            stream::count_failure(&context.channel, "client", "too many sessions");
            Ended::Here("too many sessions")
        })
    };
    let login = Login {
        context,
        peer,
        greeted_by: listener.greeted_by,
        encrypted: false,
        failures: 0,
    };
    let login = timeout(context.limits.login_time, login.run(client));
    let late = || Err(Ended::Here("the login took too long"));
    if let Peer::Unix { .. } = peer {
        let permit = permit()?;
        let identity = login.await.unwrap_or_else(|_| late())?;
        client.logged_in();
        return Ok((identity, permit));
    }
    let seat = context.lobby.enter();
    let identity = tokio::select! {
        login = login => login.unwrap_or_else(|_| late())?,
        () = seat.needed() => {
            stream::count_failure(&context.channel, "client", "crowded out before login");
            return Err(Ended::Crowded);
        }
    };
    client.logged_in();
    Ok((identity, permit()?))
}

/// Says the last word where there is one, and closes.
async fn farewell(mut client: Conversation, ended: &Ended) {
    match ended {
        // Not even a word for those who make way: there may be very many of them.
        Ended::Broken(_) | Ended::Closed(_) | Ended::Crowded => return,
        Ended::Fatal(fatal) => {
            let _ = client.give_up(fatal).await;
        }
        Ended::Told(_) => {}
        Ended::Here(why) => {
            let _ = client.last_words(&format!("BYE {why}")).await;
        }
    }
    client.close().await;
}

struct Session<'a> {
    client: Conversation,
    place: Place,
    context: &'a SessionContext,
    listener: &'a ListenerSettings,
    /// The last command, for the log.
    last: &'static str,
    /// The core ended the session itself and need not be told.
    told: bool,
}

impl Session<'_> {
    async fn run(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.step().await {
                return ended;
            }
        }
    }

    /// One command and its answer.
    async fn step(&mut self) -> Result<(), Ended> {
        let command = tokio::select! {
            biased;
            output = self.place.outputs.recv() => return self.put(output).await,
            command = self.client.next() => command?,
        };
        self.last = word(&command.kind);
        match command.kind {
            Kind::Authenticate { .. } => self.client.say("BAD Already authenticated").await,
            Kind::Starttls if self.context.client.starttls.is_some() => {
                let answer = "BAD Can't Starttls after authentication";
                self.client.say(answer).await
            }
            Kind::Starttls => self.client.say(UNKNOWN).await,
            // There was no room for it (what is malformed gets BAD). The stock client comes again at
            // once, with all of the message, a hundred times a second.
            Kind::Bad { answer } if answer.starts_with("NO ") => {
                stream::count_failure(&self.context.channel, "disk", "no_room");
                if self.listener.mode == Mode::RightNow {
                    // Its line is to be written. It does not come again.
                    let kind = Kind::Bad { answer };
                    return self
                        .ask(Command {
                            kind,
                            raw: command.raw,
                        })
                        .await;
                }
                sleep(NO_ROOM_PAUSE).await;
                self.client.say(&answer).await
            }
            Kind::Capability => {
                let offers = offers(self.context);
                tell_capabilities(&mut self.client, &offers).await
            }
            Kind::Id => identify(&mut self.client).await,
            Kind::Noop | Kind::Compress { .. } | Kind::ImapProbe { .. } | Kind::Bad { .. } => {
                self.client.say(&connection_answer(&command.kind)).await
            }
            Kind::Get(_) | Kind::Apply(_) | Kind::Restore { .. } | Kind::Restart | Kind::Exit => {
                self.ask(command).await
            }
        }
    }

    /// Hands a command to the core and writes its answer. The client is watched meanwhile, since
    /// its going away sets things free.
    async fn ask(&mut self, command: Command) -> Result<(), Ended> {
        let event = Event::Command {
            session: self.id(),
            command,
            run: self.listener.run.as_ref().and_then(|lookup| lookup()),
        };
        if self.context.events.send(event).is_err() {
            return Err(Ended::Here("the program is ending"));
        }
        let output = tokio::select! {
            output = self.place.outputs.recv() => output,
            ended = self.client.gone() => return Err(ended),
        };
        self.put(output).await
    }

    async fn put(&mut self, output: Option<SessionOutput>) -> Result<(), Ended> {
        match output {
            Some(SessionOutput::Answer(body)) => self.client.pass_on(body).await,
            Some(SessionOutput::End(body)) => {
                self.told = true;
                // It is a line, and short.
                let words = body.to_vec().unwrap_or_default();
                let words = String::from_utf8_lossy(&words);
                self.client.last_words(words.trim_ascii_end()).await?;
                Err(Ended::Told("told to by the scheduler"))
            }
            None => Err(Ended::Here("the program is ending")),
        }
    }

    fn id(&self) -> SessionId {
        self.place.session
    }
}

fn word(kind: &Kind) -> &'static str {
    match kind {
        Kind::Get(_) => "GET",
        Kind::Apply(_) => "APPLY",
        Kind::Restore { .. } => "RESTORE",
        Kind::Restart => "RESTART",
        Kind::Exit => "EXIT",
        Kind::Noop => "NOOP",
        Kind::Authenticate { .. } => "AUTHENTICATE",
        Kind::Starttls => "STARTTLS",
        Kind::Compress { .. } => "COMPRESS",
        Kind::ImapProbe { .. } => "an IMAP probe",
        Kind::Capability => "CAPABILITY",
        Kind::Id => "ID",
        Kind::Bad { .. } => "a malformed command",
    }
}
