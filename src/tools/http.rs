//! One question to the admin endpoint.

use std::io::ErrorKind::{ConnectionRefused, NotFound};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

use super::Failed;
use crate::config::{Listen, words};
use crate::io::stream::BoxStream;

/// An endpoint that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// No answer is longer.
const MOST: usize = 16 << 20;

/// Whether there is certainly nobody: no listener, or no socket.
pub(super) async fn nobody_listens(at: &Listen) -> bool {
    let tried = tokio::time::timeout(PATIENCE, connect(at)).await;
    matches!(tried, Ok(Err(error)) if matches!(error.kind(), ConnectionRefused | NotFound))
}

/// The answer's code and text.
pub(super) async fn ask(at: &Listen, method: &str, path: &str) -> Result<(u16, String), Failed> {
    let asked = async {
        let stream = connect(at).await.map_err(|error| words(&error))?;
        exchange(stream, method, path).await
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    let answer = answer.unwrap_or_else(|_| Err("it does not answer".to_owned()));
    answer.map_err(|why| {
        Failed::unreachable(format!(
            "no syncmux answers at the admin endpoint {at}: {why}; see whether it runs, and \
             whether its configuration says listen = \"{at}\" under [admin]"
        ))
    })
}

async fn connect(at: &Listen) -> std::io::Result<BoxStream> {
    Ok(match at {
        Listen::Tcp(address) => Box::new(TcpStream::connect(of_this_machine(*address)).await?),
        Listen::Unix(socket) => Box::new(UnixStream::connect(socket).await?),
    })
}

async fn exchange(stream: BoxStream, method: &str, path: &str) -> Result<(u16, String), String> {
    let said = |error: &dyn std::fmt::Display| format!("it speaks no HTTP ({error})");
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| said(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost")
        .body(Full::new(Bytes::new()))
        .map_err(|error| said(&error))?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| said(&error))?;
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), MOST).collect().await;
    let body = body.map_err(|error| format!("its answer can't be read to its end ({error})"))?;
    let body = body.to_bytes();
    connection.abort();
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// Who listens everywhere is asked here.
fn of_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = Listen::Tcp(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
            stream.write_all(head).await.unwrap();
            for _ in 0..20 {
                let _ = stream.write_all(&vec![b'x'; 1 << 20]).await;
            }
        });
        let Err(Failed(_, why)) = ask(&at, "GET", "/status").await else {
            panic!("all of it was taken");
        };
        assert!(why.contains("its answer can't be read to its end"), "{why}");
    }
}
