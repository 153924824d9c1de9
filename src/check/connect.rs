//! Connecting and logging in to a replica, as a lane does.

use std::time::Duration;

use super::NotConnected;
use crate::config::{Address, Channel, Limits, Tls};
use crate::io::lane_connect::{ConnectError, Replica};
use crate::io::spill::Spill;
use crate::settings;

/// Connects to the channel's replica, logs in where there is a login, and goes away again.
pub async fn connect(channel: Channel, limits: Limits) -> Result<String, NotConnected> {
    let refused = |error: &dyn std::fmt::Display| NotConnected::Refused(error.to_string());
    let spill =
        Spill::new(&limits.spill_directory, limits.spill_size).map_err(|error| refused(&error))?;
    let mut settings = settings::replica(&channel, &limits);
    // Somebody sits and waits.
    settings.connect_timeout = Duration::from_secs(5);
    settings.login_timeout = Duration::from_secs(10);
    let replica = Replica::new(settings, spill).map_err(|error| refused(&error))?;
    let login = channel.replica.login.as_ref();
    let is_unix = matches!(channel.replica.address, Address::Unix(_));
    let is_plain = channel.replica.tls == Tls::Off && !is_unix;
    let failed = |error: ConnectError| match error {
        ConnectError::Mechanism { why } if is_plain => NotConnected::Refused(format!(
            "{why}; where the replica takes passwords only with TLS it offers nothing before: set \
             tls = \"starttls\""
        )),
        ConnectError::Unreachable { why } => NotConnected::Unreachable(why),
        other => refused(&other),
    };
    let credentials = login.and_then(settings::credentials);
    let greeting = replica.probe_greeting(credentials.as_ref()).await;
    let greeting = greeting.map_err(failed)?;
    let name = greeting.text.escape_ascii();
    if login.is_none() && channel.replica.identity.is_none() && !is_unix {
        return Ok(format!("\"{name}\" answers"));
    }
    replica
        .check_login(credentials.as_ref())
        .await
        .map_err(failed)?;
    Ok(match login {
        Some(login) => format!("\"{name}\" lets {} in", login.username),
        None => format!("\"{name}\" lets us in"),
    })
}
