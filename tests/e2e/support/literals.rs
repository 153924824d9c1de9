//! An older replica's literals for a newer client, so that the client of the comparison can read them:
//! `{n+}` becomes `{n}`. It shares nothing with syncmux, and knows no more than lines: what it carries
//! from the replica are answers to questions, not messages.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::process::give;

/// Listens on `socket` for clients of the replica's csync at `replica`, until the process ends.
pub fn translated(socket: PathBuf, replica: &Path) -> PathBuf {
    if socket.exists() {
        return socket;
    }
    let listener = UnixListener::bind(&socket).unwrap();
    give(&socket);
    let replica = replica.to_path_buf();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = UnixStream::connect(&replica) else {
                continue;
            };
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || down(server, client));
        }
    });
    socket
}

fn down(server: UnixStream, mut client: UnixStream) {
    let mut server = BufReader::new(server);
    let mut line = Vec::new();
    while server.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if line.ends_with(b"+}\r\n") {
            line.truncate(line.len() - 4);
            line.extend(b"}\r\n");
        }
        if client.write_all(&line).is_err() {
            break;
        }
        line.clear();
    }
    let _ = client.shutdown(Shutdown::Both);
}
