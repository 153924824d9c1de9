//! Our side of a SASL exchange with the replica, without the wire.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::mechanisms::{external::EXTERNAL, plain::PLAIN, scram::SCRAM_SHA256};
use rsasl::prelude::{Mechname, Registry, SASLClient, SASLConfig, Session, SessionError, State};
use rsasl::property::{AuthId, Password};
use zeroize::Zeroizing;

use super::credentials::Credentials;

/// What can be spoken, the best first. EXTERNAL is left to the configuration where there are
/// credentials: a client certificate may be there for the transport alone.
const KNOWN: [&str; 3] = ["SCRAM-SHA-256", "PLAIN", "EXTERNAL"];

/// More rounds of PBKDF2 are not counted for a replica that asks for them: they are a matter of
/// tenths of a second, and Cyrus SASL asks for 4,096.
const MOST_ROUNDS: u64 = 1_000_000;

static MECHANISMS: &[rsasl::prelude::Mechanism] = &[SCRAM_SHA256, PLAIN, EXTERNAL];

/// An exchange under way.
pub(super) struct Exchange {
    mechanism: &'static str,
    session: Session,
    finished: bool,
}

/// Why an exchange cannot begin or go on, in words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct SaslError(String);

struct Answers(Option<Credentials>);

/// Chooses a mechanism of those that the replica offers.
pub(super) fn choose(
    offered: &[String],
    configured: Option<&str>,
    credentials: bool,
) -> Result<&'static str, SaslError> {
    let offers = |name: &str| offered.iter().any(|offer| offer.eq_ignore_ascii_case(name));
    let offer = || match offered {
        [] => "none".to_owned(),
        some => some.join(" "),
    };
    if let Some(wanted) = configured {
        let known = KNOWN
            .into_iter()
            .find(|name| name.eq_ignore_ascii_case(wanted));
        return match known {
            None => Err(SaslError(format!(
                "mechanism {wanted:?} is not known here; there is {}",
                KNOWN.join(", ")
            ))),
            Some("PLAIN" | "SCRAM-SHA-256") if !credentials => Err(SaslError(format!(
                "mechanism {wanted} needs username and password_file"
            ))),
            Some(name) if offers(name) => Ok(name),
            Some(name) => Err(SaslError(format!(
                "the replica does not offer the configured mechanism {name}; it offers {}",
                offer()
            ))),
        };
    }
    let usable = |name: &&str| (*name != "EXTERNAL") == credentials && offers(name);
    KNOWN.into_iter().find(usable).ok_or_else(|| {
        SaslError(if credentials {
            format!(
                "the replica offers no mechanism that syncmux can log in with (PLAIN or \
                 SCRAM-SHA-256); it offers {}",
                offer()
            )
        } else {
            format!(
                "there is no username to log in with, and the replica offers no EXTERNAL; it \
                 offers {}",
                offer()
            )
        })
    })
}

impl Exchange {
    /// Begins with `mechanism`, as [`choose`] gave it.
    pub(super) fn start(
        mechanism: &'static str,
        credentials: Option<Credentials>,
    ) -> Result<Self, SaslError> {
        let config = SASLConfig::builder()
            .with_registry(Registry::with_mechanisms(MECHANISMS))
            .with_callback(Answers(credentials))
            .map_err(failed)?;
        let name = Mechname::parse(mechanism.as_bytes()).map_err(failed)?;
        let session = SASLClient::new(Arc::clone(&config))
            .start_suggested(&[name])
            .map_err(failed)?;
        Ok(Self {
            mechanism,
            session,
            finished: false,
        })
    }

    /// The whole `AUTHENTICATE` line with the initial response, line end included.
    pub(super) fn command(&mut self) -> Result<Zeroizing<String>, SaslError> {
        let first = self.step(None)?;
        // An empty initial response is written as one (RFC 4959); none would ask for a challenge.
        let first = if first.is_empty() { "=" } else { &first };
        Ok(Zeroizing::new(format!(
            "AUTHENTICATE {} {first}\r\n",
            self.mechanism
        )))
    }

    /// The line that answers a challenge (`+ ` taken off), line end included.
    pub(super) fn answer(&mut self, challenge: &[u8]) -> Result<Zeroizing<String>, SaslError> {
        let decoded = STANDARD
            .decode(challenge)
            .map_err(|_| SaslError("the replica's SASL challenge is not base64".to_owned()))?;
        if rounds(&decoded) > MOST_ROUNDS {
            return Err(SaslError(format!(
                "the replica asks for more than {MOST_ROUNDS} rounds of {}",
                self.mechanism
            )));
        }
        // A server that has not taken the initial response asks for it with an empty challenge;
        // a mechanism that has nothing more to say answers with an empty line.
        let mut line = if self.finished {
            Zeroizing::new(String::new())
        } else {
            self.step(Some(&decoded))?
        };
        line.push_str("\r\n");
        Ok(line)
    }

    /// To be called when the replica says OK: with SCRAM it must have shown by then that it knows
    /// the password too.
    pub(super) fn succeed(&self) -> Result<(), SaslError> {
        if self.finished {
            Ok(())
        } else {
            Err(SaslError(format!(
                "the replica said OK before the {} exchange was complete: it has not shown who it \
                 is",
                self.mechanism
            )))
        }
    }

    fn step(&mut self, input: Option<&[u8]>) -> Result<Zeroizing<String>, SaslError> {
        let mut output = Zeroizing::new(Vec::new());
        let state = self
            .session
            .step(input, &mut *output)
            .map_err(|error| failed(&error))?;
        self.finished = matches!(state, State::Finished(_));
        Ok(Zeroizing::new(STANDARD.encode(output.as_slice())))
    }
}

impl SessionCallback for Answers {
    fn callback(
        &self,
        _session: &SessionData,
        _context: &Context<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), SessionError> {
        if let Some(credentials) = &self.0 {
            request
                .satisfy::<AuthId>(&credentials.username)?
                .satisfy::<Password>(credentials.password.as_bytes())?;
        }
        Ok(())
    }
}

/// `i=` of a SCRAM challenge (RFC 5802): a number too large to be read counts as the largest.
fn rounds(challenge: &[u8]) -> u64 {
    let mut attributes = challenge.split(|byte| *byte == b',');
    let number = attributes.find_map(|attribute| attribute.strip_prefix(b"i="));
    let digits = number.and_then(|digits| std::str::from_utf8(digits).ok());
    digits.map_or(0, |digits| digits.parse().unwrap_or(u64::MAX))
}

fn failed(error: impl fmt::Display) -> SaslError {
    SaslError(format!("SASL: {error}"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{hmac, pbkdf2};

    use super::*;

    fn offered(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_best_offered_mechanism_is_chosen() {
        let all = offered("GSSAPI PLAIN EXTERNAL SCRAM-SHA-256");
        assert_eq!(choose(&all, None, true), Ok("SCRAM-SHA-256"));
        assert_eq!(choose(&all, None, false), Ok("EXTERNAL"));
        assert_eq!(choose(&all, Some("plain"), true), Ok("PLAIN"));
        assert_eq!(choose(&all, Some("EXTERNAL"), true), Ok("EXTERNAL"));
        assert_eq!(choose(&offered("plain"), None, true), Ok("PLAIN"));
        for (offer, wanted, credentials) in [
            ("GSSAPI", None, true),
            ("", None, true),
            ("PLAIN", None, false),
            ("PLAIN", Some("SCRAM-SHA-256"), true),
            ("PLAIN", Some("PLAIN"), false),
            ("CRAM-MD5", Some("CRAM-MD5"), true),
        ] {
            assert!(choose(&offered(offer), wanted, credentials).is_err());
        }
    }

    #[test]
    fn plain_is_one_message() {
        let mut exchange = Exchange::start("PLAIN", Some(Credentials::new("repl", "replpw")));
        let exchange = exchange.as_mut().expect("PLAIN starts");
        let line = exchange.command().expect("a command");
        // As captured from the stock client.
        assert_eq!(line.as_str(), "AUTHENTICATE PLAIN AHJlcGwAcmVwbHB3\r\n");
        assert!(exchange.succeed().is_ok());
    }

    #[test]
    fn external_has_an_empty_initial_response() {
        let mut exchange = Exchange::start("EXTERNAL", None).expect("EXTERNAL starts");
        assert_eq!(
            exchange.command().unwrap().as_str(),
            "AUTHENTICATE EXTERNAL =\r\n"
        );
        assert!(exchange.succeed().is_ok());
    }

    /// The server's side of SCRAM-SHA-256 (RFC 5802, 7677): the two challenges.
    struct Server {
        auth: String,
        salted: [u8; 32],
    }

    impl Server {
        fn first(command: &str, password: &str) -> (Self, String) {
            let encoded = command.trim().rsplit(' ').next().unwrap_or_default();
            let first = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
            let bare = first.strip_prefix("n,,").unwrap();
            // No comma is in a nonce; "r=" may be.
            let nonce = bare.rsplit_once(",r=").unwrap().1;
            let challenge = format!("r={nonce}server,s={},i=4096", STANDARD.encode("salt"));
            let mut salted = [0; 32];
            pbkdf2::derive(
                pbkdf2::PBKDF2_HMAC_SHA256,
                std::num::NonZeroU32::new(4096).unwrap(),
                b"salt",
                password.as_bytes(),
                &mut salted,
            );
            let auth = format!("{bare},{challenge}");
            (Self { auth, salted }, STANDARD.encode(challenge))
        }

        /// Checks the proof as far as its form goes; the signature that answers it.
        fn last(mut self, answer: &str) -> String {
            let last = String::from_utf8(STANDARD.decode(answer.trim()).unwrap()).unwrap();
            self.auth += ",";
            self.auth += last.rsplit_once(",p=").unwrap().0;
            let hmac =
                |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
            let key = hmac(&self.salted, b"Server Key");
            let signature = hmac(key.as_ref(), self.auth.as_bytes());
            STANDARD.encode(format!("v={}", STANDARD.encode(signature)))
        }
    }

    fn scram(server_password: &str) -> Result<(), SaslError> {
        let credentials = Some(Credentials::new("repl", "replpw"));
        let mut exchange = Exchange::start("SCRAM-SHA-256", credentials)?;
        let command = exchange.command()?;
        assert!(command.starts_with("AUTHENTICATE SCRAM-SHA-256 "));
        let (server, challenge) = Server::first(&command, server_password);
        let answer = exchange.answer(challenge.as_bytes())?;
        // OK before the server has shown that it knows the password counts for nothing.
        assert!(exchange.succeed().is_err());
        let last = server.last(&answer);
        assert_eq!(exchange.answer(last.as_bytes())?.as_str(), "\r\n");
        exchange.succeed()
    }

    #[test]
    fn scram_shows_both_ends_that_the_other_knows_the_password() {
        assert_eq!(scram("replpw"), Ok(()));
        assert!(scram("another").is_err());
    }

    #[test]
    fn a_replica_cannot_make_us_count_for_hours() {
        let credentials = Some(Credentials::new("repl", "replpw"));
        let mut exchange = Exchange::start("SCRAM-SHA-256", credentials).expect("SCRAM starts");
        let command = exchange.command().expect("a command");
        let (server, _) = Server::first(&command, "replpw");
        let challenge = server.auth.split_once(",r=").unwrap().1;
        let challenge = format!("r={challenge}").replace("i=4096", "i=4294967295");
        let error = exchange.answer(STANDARD.encode(challenge).as_bytes());
        assert!(error.unwrap_err().to_string().contains("rounds"));
    }

    #[test]
    fn a_challenge_must_be_base64() {
        let credentials = Some(Credentials::new("repl", "replpw"));
        let mut exchange = Exchange::start("SCRAM-SHA-256", credentials).expect("SCRAM starts");
        assert!(exchange.command().is_ok());
        assert!(exchange.answer(b"not base64!").is_err());
    }
}
