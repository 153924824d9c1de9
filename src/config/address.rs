//! Where to listen and where to connect.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// An address to listen on: `127.0.0.1:2005`, `[::1]:2005`, `*:2005` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A UNIX socket.
    Unix(PathBuf),
}

/// An address to connect to: `host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP; the name is looked up at every connect.
    Tcp {
        /// Name or IP address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A UNIX socket.
    Unix(PathBuf),
}

impl Listen {
    /// Reads an address; names are not looked up, so that the same file means the same
    /// everywhere.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Listen::Unix);
        }
        let port = |port: &str| port.parse::<u16>().ok();
        let address = match text.rsplit_once(':') {
            Some(("localhost", end)) => {
                port(end).map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
            }
            Some(("*", end)) => {
                port(end).map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
            }
            _ => text.parse().ok(),
        };
        address.map(Listen::Tcp).ok_or_else(|| {
            format!(
                "`{text}` is no address to listen on: write IP:PORT, such as 127.0.0.1:2005 or \
                 [::1]:2005, or unix:/PATH"
            )
        })
    }

    /// What is sent here does not leave the machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Listen::Unix(_) => true,
        }
    }

    /// Both can't be bound at once.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Listen::Unix(a), Listen::Unix(b)) => a == b,
            (Listen::Tcp(a), Listen::Tcp(b)) => {
                // An IPv6 wildcard takes IPv4 too on Linux.
                let all = |one: &SocketAddr, two: &SocketAddr| {
                    one.ip().is_unspecified() && (one.is_ipv6() || two.is_ipv4())
                };
                a.port() == b.port()
                    && a.port() != 0
                    && (a.ip() == b.ip() || all(a, b) || all(b, a))
            }
            _ => false,
        }
    }
}

impl Address {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, None)
    }

    /// Reads an address; with a default port it need not have one.
    pub fn parse_with(text: &str, port: Option<u16>) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Address::Unix);
        }
        let bare = !text.contains(':') || text.ends_with(']');
        if let Some(port) = port
            && bare
        {
            return Self::parse_with(&format!("{text}:{port}"), None);
        }
        let wrong = || {
            format!(
                "`{text}` is no address of a replica: write HOST:PORT, such as \
                 replica.example.com:2005 or [2001:db8::1]:2005, or unix:/PATH"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(Some(host)) if host.parse::<std::net::Ipv6Addr>().is_ok() => host,
            None if !host.is_empty() && !host.contains([':', '/', ' ', '[', ']']) => host,
            _ => return Err(wrong()),
        };
        Ok(Address::Tcp {
            host: host.to_owned(),
            port,
        })
    }

    /// The same place, as far as that can be told without asking for names.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Address::Unix(a), Address::Unix(b)) => a == b,
            (Address::Tcp { host: a, port }, Address::Tcp { host: b, port: c }) => {
                port == c && is_same_host(a, b)
            }
            _ => false,
        }
    }

    /// What is sent there does not leave the machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp { host, .. } => {
                host == "localhost"
                    || host
                        .parse::<IpAddr>()
                        .is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
            Address::Unix(_) => true,
        }
    }
}

/// The same IP address, or the same name.
#[must_use]
pub fn is_same_host(a: &str, b: &str) -> bool {
    match (a.parse::<IpAddr>(), b.parse::<IpAddr>()) {
        (Ok(a), Ok(b)) => a.to_canonical() == b.to_canonical(),
        (Err(_), Err(_)) => {
            let bare = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
            bare(a) == bare(b)
        }
        _ => false,
    }
}

fn socket_path(path: &str) -> Result<PathBuf, String> {
    // sockaddr_un holds 108 bytes, the closing NUL included.
    match path {
        _ if !Path::new(path).is_absolute() => Err(format!(
            "`unix:{path}` is no address: the path must start with /"
        )),
        _ if path.len() > 107 => Err(format!(
            "`unix:{path}` is too long: the system takes 107 bytes, choose a shorter path"
        )),
        _ => Ok(PathBuf::from(path)),
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners() {
        for (text, local) in [
            ("127.0.0.1:2005", true),
            ("[::1]:2005", true),
            ("[::ffff:127.0.0.1]:2005", true),
            ("unix:/run/x", true),
            ("*:2005", false),
            ("10.0.0.1:2005", false),
        ] {
            assert_eq!(
                Listen::parse(text).map(|it| it.is_local()),
                Ok(local),
                "{text}"
            );
        }
        for text in [
            "",
            "2005",
            "localhost",
            "host:2005",
            "unix:run/x",
            "127.0.0.1:66000",
        ] {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn clashes() {
        let clash = |a, b| match (Listen::parse(a), Listen::parse(b)) {
            (Ok(a), Ok(b)) => a.clashes(&b),
            other => panic!("{other:?}"),
        };
        assert!(clash("127.0.0.1:2005", "127.0.0.1:2005"));
        assert!(clash("*:2005", "127.0.0.1:2005"));
        assert!(clash("127.0.0.1:2005", "[::]:2005"));
        assert!(clash("unix:/a", "unix:/a"));
        assert!(!clash("127.0.0.1:2005", "127.0.0.1:2006"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!clash("127.0.0.1:2005", "unix:/a"));
    }

    #[test]
    fn same_places() {
        let same = |a, b| match (Address::parse(a), Address::parse(b)) {
            (Ok(a), Ok(b)) => a.is_same_as(&b),
            other => panic!("{other:?}"),
        };
        assert!(same(
            "replica.example.com:2005",
            "Replica.Example.COM.:2005"
        ));
        assert!(same("10.0.0.1:2005", "[::ffff:10.0.0.1]:2005"));
        assert!(same("unix:/a", "unix:/a"));
        assert!(!same("10.0.0.1:2005", "10.0.0.1:2006"));
        assert!(!same("10.0.0.1:2005", "10.0.0.2:2005"));
        assert!(!same("a:2005", "10.0.0.2:2005"));
        assert!(!same("a:2005", "unix:/a"));
    }

    #[test]
    fn replicas() {
        for text in [
            "replica.example.com:2005",
            "[2001:db8::1]:2005",
            "unix:/run/x",
            "10.0.0.1:1",
        ] {
            assert_eq!(
                Address::parse(text).map(|it| it.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "replica",
            "replica:0",
            "replica:x",
            "2001:db8::1:2005",
            ":2005",
            "[x]:1",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
