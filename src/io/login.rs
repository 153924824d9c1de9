//! From the connection to the login: greeting, STARTTLS, passwords, probes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::conversation::{Conversation, Ended};
use super::credentials::{Credentials, Verdict};
use super::registry::{Peer, SessionContext};
use super::stream;
use crate::core::event::Identity;
use crate::protocol::command::Secret;
use crate::protocol::{Body, Dialect, Greeting, Kind};

/// The client gives up after 10 seconds (`client_timeout`): every answer comes before that.
const CLIENT_PATIENCE: Duration = Duration::from_secs(9);

/// As much of a user name that failed is shown.
const SHOWN: usize = 128;

/// What stock says to a word that it does not know.
pub(super) const UNKNOWN: &str = "BAD IMAP_PROTOCOL_ERROR Unrecognized command";

/// The login of one client.
pub(super) struct Login<'a> {
    pub(super) context: &'a SessionContext,
    pub(super) peer: &'a Peer,
    /// Greeted by then in any case.
    pub(super) greeted_by: Option<Instant>,
    pub(super) encrypted: bool,
    pub(super) failures: usize,
}

impl Login<'_> {
    /// Greets, and lets the client in or not.
    pub(super) async fn run(mut self, client: &mut Conversation) -> Result<Identity, Ended> {
        let greeting = self.greeting().await?;
        if let Peer::Unix { .. } = self.peer {
            // As in Cyrus the peer counts as logged in; unlike there it is told of capabilities,
            // or SIEVE-MAILBOX could not be used on a socket.
            let banner = greeting.render::<&str>(&[], false);
            client.answer(&banner.into()).await?;
            return Ok(Identity::Configured);
        }
        loop {
            // In IMAP nobody is greeted again behind STARTTLS.
            if client.dialect() == Dialect::Csync || !self.encrypted {
                client.answer(&self.banner(client, &greeting)).await?;
            }
            if let Some(identity) = self.commands(client).await? {
                return Ok(identity);
            }
        }
    }

    /// The replica's greeting: at once where it is known.
    async fn greeting(&self) -> Result<Arc<Greeting>, Ended> {
        let mut known = self.context.greeting.clone();
        let wait = async { known.wait_for(Option::is_some).await.ok()?.clone() };
        let longest = self.context.limits.away_wait;
        let longest = self.greeted_by.map_or(longest, |by| {
            by.saturating_duration_since(Instant::now()).min(longest)
        });
        let found = timeout(longest, wait).await;
        if let Ok(Some(greeting)) = found {
            return Ok(greeting);
        }
        if self.greeted_by.is_some() {
            let text = "syncmux, for a replica that was never there".into();
            return Ok(Arc::new(Greeting {
                text,
                ..Greeting::default()
            }));
        }
        Err(Ended::Here("the replica is away"))
    }

    fn banner(&self, client: &Conversation, greeting: &Greeting) -> Body {
        match client.dialect() {
            Dialect::Csync => greeting
                .render(self.mechanisms(), self.may_starttls())
                .into(),
            Dialect::Imap => {
                let capabilities = self.capabilities();
                format!("* OK [CAPABILITY {capabilities}] {SERVER_READY}\r\n").into()
            }
        }
    }

    fn mechanisms(&self) -> &[&str] {
        if self.may_login() { &["PLAIN"] } else { &[] }
    }

    /// In IMAP.
    fn capabilities(&self) -> String {
        Greeting::imap_before_login(self.mechanisms(), self.may_starttls())
    }

    fn may_starttls(&self) -> bool {
        !self.encrypted && self.context.client.starttls.is_some()
    }

    fn may_login(&self) -> bool {
        self.encrypted || !self.context.client.require_starttls
    }

    /// Commands until the login, or until STARTTLS asks for a new banner (`None`).
    async fn commands(&mut self, client: &mut Conversation) -> Result<Option<Identity>, Ended> {
        loop {
            let command = client.next().await?;
            match command.kind {
                Kind::Authenticate { mechanism, initial } => {
                    if let Some(identity) = self.authenticate(client, &mechanism, initial).await? {
                        return Ok(Some(identity));
                    }
                }
                Kind::Starttls => {
                    if self.starttls(client).await? {
                        return Ok(None);
                    }
                }
                Kind::Capability => {
                    let capabilities = self.capabilities();
                    tell_capabilities(client, &capabilities).await?;
                }
                Kind::Id => identify(client).await?,
                Kind::Exit => {
                    client.last_words("OK Finished").await?;
                    return Err(Ended::Told("it said EXIT"));
                }
                other => client.say(&stranger_answer(&other)).await?,
            }
        }
    }

    async fn starttls(&mut self, client: &mut Conversation) -> Result<bool, Ended> {
        let config = match &self.context.client.starttls {
            None => {
                client.say(UNKNOWN).await?;
                return Ok(false);
            }
            Some(_) if self.encrypted => {
                client.say("BAD Already did a successful Starttls").await?;
                return Ok(false);
            }
            Some(config) => config.current(),
        };
        client.say("OK Begin TLS negotiation now").await?;
        client
            .start_tls(&TlsAcceptor::from(config), &self.context.limits.reader)
            .await?;
        self.encrypted = true;
        Ok(true)
    }

    async fn authenticate(
        &mut self,
        client: &mut Conversation,
        mechanism: &str,
        initial: Option<Secret>,
    ) -> Result<Option<Identity>, Ended> {
        let began = Instant::now();
        if mechanism != "PLAIN" || !self.may_login() {
            let answer = "NO SASL(-4): no mechanism available";
            self.fail(client, began, answer, mechanism).await?;
            return Ok(None);
        }
        let response = match initial {
            Some(initial) => initial,
            None => {
                client.ask_on().await?;
                client.line().await?
            }
        };
        if response.0 == b"*" {
            client.say("BAD Client canceled authentication").await?;
            return Ok(None);
        }
        let message = STANDARD.decode(&response.0).map(Zeroizing::new);
        let given = message
            .ok()
            .and_then(|message| Credentials::from_plain(&message));
        let Some(given) = given else {
            let answer = "NO bad protocol / cancel";
            self.fail(client, began, answer, "a malformed response")
                .await?;
            return Ok(None);
        };
        let check = self.context.verifier.verify(&given);
        match timeout(self.context.limits.away_wait, check).await {
            Ok(Verdict::Good) => self.succeed(client, &given).await.map(Some),
            Ok(Verdict::Wrong) => {
                let answer = "NO authentication failure";
                self.fail(client, began, answer, &given.username).await?;
                Ok(None)
            }
            away => {
                if let Ok(Verdict::Away(error)) = away {
                    tracing::warn!(peer = %self.peer, %error, "a password cannot be checked");
                }
                client
                    .say("NO the replica is away, try again later")
                    .await?;
                Err(Ended::Told(
                    "the replica is away: its password could not be checked",
                ))
            }
        }
    }

    async fn succeed(
        &self,
        client: &mut Conversation,
        given: &Credentials,
    ) -> Result<Identity, Ended> {
        let protection = if self.encrypted { "tls" } else { "no" };
        let capabilities = match client.dialect() {
            Dialect::Csync => String::new(),
            Dialect::Imap => format!("[CAPABILITY {}] ", offers(self.context)),
        };
        client
            .say(&format!(
                "OK {capabilities}Success ({protection} protection)"
            ))
            .await?;
        if !self.context.client.lanes_as_client {
            return Ok(Identity::Configured);
        }
        self.context.credentials.remember(given);
        Ok(Identity::Client(Bytes::copy_from_slice(
            given.username.as_bytes(),
        )))
    }

    /// Answers a failed login, after a pause that makes guessing slow.
    async fn fail(
        &mut self,
        client: &mut Conversation,
        began: Instant,
        answer: &str,
        who: &str,
    ) -> Result<(), Ended> {
        // As long as the client likes: the log needs the beginning.
        let who: String = who.chars().take(SHOWN).collect();
        tracing::warn!(peer = %self.peer, ?who, "a login failed");
        stream::count_failure(&self.context.channel, "client", "login");
        let patience = CLIENT_PATIENCE.saturating_sub(began.elapsed());
        tokio::time::sleep(self.context.limits.failed_pause.min(patience)).await;
        self.failures += 1;
        client.say(answer).await?;
        if self.failures < self.context.limits.failed_logins {
            return Ok(());
        }
        Err(Ended::Here("too many failed logins"))
    }
}

/// The greeting in IMAP; the stock client looks for the last two words (`ask_capability` in
/// `backend.c`).
const SERVER_READY: &str = "syncmux, for replication only, server ready";

/// The capabilities in IMAP of a session.
pub(super) fn offers(context: &SessionContext) -> String {
    let known = context.greeting.borrow().clone();
    known.unwrap_or_default().imap_after_login()
}

/// CAPABILITY, in IMAP.
pub(super) async fn tell_capabilities(
    client: &mut Conversation,
    capabilities: &str,
) -> Result<(), Ended> {
    let line = format!("* CAPABILITY {capabilities}\r\n");
    client.answer(&line.into()).await?;
    client.say("OK Completed").await
}

/// ID, in IMAP.
pub(super) async fn identify(client: &mut Conversation) -> Result<(), Ended> {
    client
        .answer(&"* ID (\"name\" \"syncmux\")\r\n".into())
        .await?;
    client.say("OK Completed").await
}

/// The answer to somebody who has not logged in, to all but AUTHENTICATE, STARTTLS and EXIT.
pub(super) fn stranger_answer(kind: &Kind) -> String {
    match kind {
        Kind::Get(_) | Kind::Apply(_) | Kind::Restore { .. } => {
            "NO Please authenticate first".to_owned()
        }
        Kind::Restart => "OK Restarting".to_owned(),
        other => connection_answer(other),
    }
}

/// The answer to what concerns the connection alone and changes nothing. (GET, APPLY, RESTART and
/// EXIT do not come here.)
pub(super) fn connection_answer(kind: &Kind) -> String {
    match kind {
        Kind::Noop => "OK Noop completed".to_owned(),
        // The client goes on uncompressed.
        Kind::Compress { .. } => "NO compression is not offered here".to_owned(),
        // A tagged answer ends the probe at once. The client then says LOGOUT, for which any line
        // will do, and connects again to speak csync.
        Kind::ImapProbe { tag } => {
            format!(
                "{} BAD this is csync, not IMAP",
                String::from_utf8_lossy(tag)
            )
        }
        Kind::Bad { answer } => answer.clone(),
        _ => UNKNOWN.to_owned(),
    }
}
