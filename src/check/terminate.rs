//! `check` of `[terminate]`: the certificate, and the `sync_server` behind.

use std::time::SystemTime;

use super::{Report, Severity};
use crate::config::{Address, Terminate};
use crate::io::terminate::Server;
use crate::io::tls;
use crate::settings;

/// Looks at everything; nobody is let in meanwhile.
pub async fn check(config: &Terminate) -> Report {
    let mut report = Report::default();
    report.fine("the configuration is complete".to_owned());
    for warning in &config.warnings {
        report.warning(warning.to_string());
    }
    let chain = &config.identity.cert_file;
    match tls::sound(chain, SystemTime::now()) {
        Ok(()) => report.fine(format!("certificate {}: {}", chain.display(), names(chain))),
        Err(error) => report.error(format!("certificate {error}")),
    }
    let address = &config.server;
    let server = Server::new(settings::address(address));
    match server.greeting().await {
        Ok(greeting) => {
            let capabilities = greeting.capabilities.iter();
            let has: Vec<_> = capabilities
                .map(|it| it.escape_ascii().to_string())
                .collect();
            let has = if has.is_empty() {
                "no capabilities".to_owned()
            } else {
                has.join(", ")
            };
            let text = greeting.text.escape_ascii();
            report.fine(format!(
                "sync_server {address}: \"{text}\" answers and has {has}"
            ));
            if matches!(address, Address::Tcp { .. }) && greeting.mechanisms.is_empty() {
                report.error(format!(
                    "sync_server {address} takes no password without TLS of its own, which nobody \
                     could give it behind terminate: set allowplaintext: yes for it, on loopback, or \
                     let it listen on a UNIX socket"
                ));
            }
        }
        Err(error) => {
            let what =
                format!("{error}; see that cyrus.conf has a csync service that listens there");
            report.add(Severity::Unreachable, what);
        }
    }
    report
}

/// For whom a certificate is.
fn names(chain: &std::path::Path) -> String {
    let names = tls::names_of(chain);
    match names.is_empty() {
        true => "it carries no name, so nobody will take it".to_owned(),
        false => format!("it is for {}", names.join(", ")),
    }
}
