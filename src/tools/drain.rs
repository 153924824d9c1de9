//! `syncmux drain`: as SIGTERM, from wherever the admin endpoint can be reached on this machine.

use std::time::Duration;

use super::{Endpoint, Failed, http, say};

/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(200);

/// What can be said to it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Which syncmux.
    #[command(flatten)]
    pub endpoint: Endpoint,

    /// Wait until it has ended
    #[arg(long)]
    pub wait: bool,
}

/// Asks for a drain.
///
/// # Errors
/// It can't be reached, or refuses.
pub async fn run(args: &Args) -> Result<(), Failed> {
    let at = args.endpoint.address()?;
    let before = running(&at).await;
    let (code, said) = http::ask(&at, "POST", "/drain").await?;
    if code != 202 {
        let said = said.trim();
        return Err(Failed::unreachable(format!(
            "{at} does not drain (it answers {code}): {said}"
        )));
    }
    say(&said);
    if args.wait {
        // Something may start the next one at once, which has run for less time.
        while let Some(now) = running(&at).await
            && before.is_some_and(|before| now >= before)
        {
            tokio::time::sleep(LOOK).await;
        }
        say("it has ended\n");
    }
    Ok(())
}

/// For how many seconds it has run; `None` where nobody answers.
async fn running(at: &crate::config::Listen) -> Option<u64> {
    let (_, text) = http::ask(at, "GET", "/status").await.ok()?;
    let status: serde_json::Value = serde_json::from_str(&text).ok()?;
    status.get("running_seconds")?.as_u64()
}
