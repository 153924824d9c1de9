//! `syncmux drain`: as SIGTERM, from wherever the admin endpoint can be reached on this machine.

use std::time::Duration;

use super::{Endpoint, Failed, http, printable, say};

/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(200);

/// Who does not answer so often in a row has ended.
const SILENT: u32 = 3;

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
    let mut before = running(&at).await;
    let (code, said) = http::ask(&at, "POST", "/drain").await?;
    if code != 202 {
        let said = printable(said.trim());
        return Err(Failed::unreachable(format!(
            "{at} does not drain (it answers {code}): {said}"
        )));
    }
    for line in said.lines() {
        say(&format!("{}\n", printable(line)));
    }
    if !args.wait {
        return Ok(());
    }
    // A busy syncmux may fail to answer once, or answer late.
    let mut silent = 0;
    loop {
        match running(&at).await {
            // Something started the next one at once, which has run for less time.
            Some(now) if before.is_some_and(|before| now < before) => break,
            Some(now) => (before, silent) = (Some(now), 0),
            None => {
                silent += 1;
                if silent == SILENT || http::nobody_listens(&at).await {
                    break;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    say("it has ended\n");
    Ok(())
}

/// For how many seconds it has run; `None` where nobody answers, or in another way.
async fn running(at: &crate::config::Listen) -> Option<u64> {
    let (_, text) = http::ask(at, "GET", "/status").await.ok()?;
    let status: serde_json::Value = serde_json::from_str(&text).ok()?;
    status.get("running_seconds")?.as_u64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_answer_that_fails_is_no_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint {
            admin: Some(listener.local_addr().unwrap().to_string()),
            ..Endpoint::default()
        };
        let answers = tokio::spawn(async move {
            let running = |seconds| (200, format!("{{\"running_seconds\": {seconds}}}"));
            let script = [
                running(5),
                (202, "draining".to_owned()),
                running(5),
                (500, String::new()),
                (500, String::new()),
                running(6),
                (500, String::new()),
                running(7),
            ];
            for (code, text) in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1000]).await;
                let len = text.len();
                let answer = format!("HTTP/1.1 {code} x\r\nContent-Length: {len}\r\n\r\n{text}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // Whether somebody listens is looked at by a connection that says nothing.
                if code == 500 {
                    let _ = listener.accept().await;
                }
            }
        });
        let wait = true;
        run(&Args { endpoint, wait }).await.unwrap();
        // It did not end before all was said.
        tokio::time::timeout(Duration::from_secs(1), answers)
            .await
            .unwrap()
            .unwrap();
    }
}
