//! Where a connection was to go before the kernel redirected it, and whose replica that is.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rustix::net::sockopt;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dial::{self, plain};
use super::registry::{ListenerSettings, SessionContext};
use super::stream::count_failure;
use super::telemetry::metric;

/// How long a connection waits for the addresses of a name: the client waits for 10 seconds, and for
/// the greeting too.
const LOOKUP: Duration = Duration::from_secs(2);

/// A name is not looked up again within this.
const FRESH: Duration = Duration::from_secs(1);

/// Between two lines of the log about the same thing: whoever is refused comes again at once.
const SILENCE: Duration = Duration::from_secs(60);

/// Where a channel's replica is, to be compared with where a client wanted to go.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    /// The addresses of the name, as last seen.
    known: Mutex<Vec<IpAddr>>,
    /// When that was. One question at a time.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

/// The way into one channel by one listener.
pub struct Door {
    pub(super) context: Arc<SessionContext>,
    pub(super) settings: Arc<ListenerSettings>,
    target: Option<Arc<Target>>,
}

/// All channels behind one listener.
pub(super) struct Doors {
    all: Vec<Door>,
    /// Redirected connections are recognised.
    transparent: bool,
    complaints: Mutex<HashMap<&'static str, Instant>>,
}

/// The way of an accepted connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) peer: SocketAddr,
    local: SocketAddr,
    /// Where it was to go, if it was redirected.
    redirected: Option<SocketAddr>,
}

/// Why a connection is not let in.
#[derive(Debug)]
pub(super) struct Refusal {
    kind: &'static str,
    /// For the client.
    pub(super) answer: &'static str,
    /// For the log.
    why: String,
}

impl Way {
    /// Asks the kernel.
    pub(super) fn of(stream: &TcpStream, peer: SocketAddr) -> std::io::Result<Self> {
        let local = plain(stream.local_addr()?);
        let original = if local.is_ipv4() {
            sockopt::ip_original_dst(stream).map(SocketAddr::V4)
        } else {
            sockopt::ipv6_original_dst(stream).map(SocketAddr::V6)
        };
        // An error means that the kernel's connection tracking does not know it, or is not there:
        // then nothing was redirected.
        let redirected = original
            .ok()
            .map(plain)
            .filter(|original| *original != local);
        Ok(Way {
            peer: plain(peer),
            local,
            redirected,
        })
    }

    fn was_to_go_to(&self) -> SocketAddr {
        self.redirected.unwrap_or(self.local)
    }
}

impl Target {
    /// Looks nothing up.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Target {
            host: host.to_owned(),
            port,
            known: Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        }
    }

    /// The address, where it is no name.
    fn literal(&self) -> Option<IpAddr> {
        let ip: Option<IpAddr> = self.host.parse().ok();
        ip.map(|ip| ip.to_canonical())
    }

    /// The addresses of the name: those of a moment ago, else those that it has now, else, where it
    /// can't be looked up in time, those that it had. An answer that comes too late for this
    /// connection is there for the next one.
    async fn addresses(self: Arc<Self>) -> Vec<IpAddr> {
        let this = Arc::clone(&self);
        let look_up = tokio::spawn(async move { this.look_up().await });
        if timeout(LOOKUP, look_up).await.is_err() {
            tracing::debug!(
                host = self.host,
                "the replica's name can't be looked up in time"
            );
        }
        self.known()
    }

    async fn look_up(&self) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        match lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => {
                let found = found.map(|address| address.ip().to_canonical()).collect();
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => {
                tracing::warn!(host = self.host, %error, "the replica's name can't be looked up");
            }
        }
        // A name that can't be looked up is not asked for by each connection either.
        *asked = Some(Instant::now());
    }

    /// As last looked up.
    fn known(&self) -> Vec<IpAddr> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }
}

impl Door {
    /// Into the channel of this context, whose replica is there.
    #[must_use]
    pub fn new(
        context: Arc<SessionContext>,
        settings: ListenerSettings,
        target: Option<Target>,
    ) -> Self {
        Door {
            context,
            settings: Arc::new(settings),
            target: target.map(Arc::new),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &super::address::Address {
        &self.settings.address
    }
}

impl Doors {
    pub(super) fn new(all: Vec<Door>, transparent: bool) -> Self {
        Doors {
            all,
            transparent,
            complaints: Mutex::default(),
        }
    }

    /// Any of them, for what all channels share.
    pub(super) fn any(&self) -> Option<&Door> {
        self.all.first()
    }

    /// Learns the addresses of names before the first client comes.
    pub(super) fn look_names_up(&self) {
        let targets = self.all.iter().filter_map(|door| door.target.as_ref());
        for target in targets.filter(|target| target.literal().is_none()) {
            let target = Arc::clone(target);
            tokio::spawn(async move { target.addresses().await });
        }
    }

    /// The door for a connection.
    pub(super) async fn choose(&self, way: &Way) -> Result<&Door, Refusal> {
        if dial::is_own(way.peer, way.was_to_go_to()) {
            return Err(the_loop(way));
        }
        let Some(destination) = way.redirected.filter(|_| self.transparent) else {
            return match &self.all[..] {
                [door] => Ok(door),
                doors => Err(not_redirected(way, doors)),
            };
        };
        let targets: Vec<_> = self.all.iter().map(|door| door.target.clone()).collect();
        let found = leading_to(&targets, destination).await;
        if let [number] = found[..]
            && let Some(door) = self.all.get(number)
        {
            let channel = &door.context.channel;
            tracing::info!(channel, peer = %way.peer, %destination, "a redirected connection");
            return Ok(door);
        }
        Err(no_channel(destination, &self.all, found.len()))
    }

    /// Writes a refusal into the log, unless it says what was said a moment ago, and counts it.
    pub(super) fn complain(&self, refusal: &Refusal) {
        let channel = self.any().map_or("", |door| &door.context.channel);
        count_failure(channel, "client", refusal.kind);
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let last = complaints.get(refusal.kind);
        if last.is_some_and(|last| now.saturating_duration_since(*last) < SILENCE) {
            metrics::counter!(metric::SUPPRESSED_LINES, "kind" => refusal.kind).increment(1);
            return;
        }
        complaints.insert(refusal.kind, now);
        drop(complaints);
        tracing::error!("{}", refusal.why);
    }
}

/// Which of these have this address: one, if all is well.
async fn leading_to(targets: &[Option<Arc<Target>>], destination: SocketAddr) -> Vec<usize> {
    let fitting = || {
        let numbered = targets.iter().enumerate();
        let numbered = numbered.filter_map(|(number, target)| Some((number, target.as_ref()?)));
        numbered.filter(|(_, target)| target.port == destination.port())
    };
    // Not to be kept waiting by the names of other channels. But where one of these has the same
    // address nobody knows which channel's log the client works through.
    let literal = fitting().find(|(_, target)| target.literal() == Some(destination.ip()));
    if let Some((number, _)) = literal {
        let same = fitting().filter(|(_, target)| target.known().contains(&destination.ip()));
        return std::iter::once(number)
            .chain(same.map(|(number, _)| number))
            .collect();
    }
    let mut lookups = JoinSet::new();
    for (number, target) in fitting().filter(|(_, target)| target.literal().is_none()) {
        let target = Arc::clone(target);
        lookups.spawn(async move { (number, target.addresses().await) });
    }
    let looked_up = lookups.join_all().await;
    let has = |(_, addresses): &&(usize, Vec<IpAddr>)| addresses.contains(&destination.ip());
    if !looked_up.iter().any(|one| has(&one)) {
        return Vec::new();
    }
    // A name of which nothing is known may have this address, too.
    let may = |one: &&(usize, Vec<IpAddr>)| has(one) || one.1.is_empty();
    let found = looked_up.iter().filter(may);
    found.map(|(number, _)| *number).collect()
}

fn the_loop(way: &Way) -> Refusal {
    let why = match way.redirected {
        Some(destination) => format!(
            "a loop: syncmux's own connection to the replica {destination} was redirected to \
             syncmux, and was refused. The redirect rules lack the guard `meta priority \
             0:{} return`: load those of deploy/transparent/syncmux.nft. Until then nothing \
             reaches the replica",
            dial::PRIORITY
        ),
        None => format!(
            "a loop: syncmux's own connection to the replica came back to syncmux, and was \
             refused. {} is where syncmux listens: set address under [channel.replica] to the \
             replica's",
            way.local
        ),
    };
    Refusal {
        kind: "loop",
        answer: "BYE a loop: this connection comes from syncmux itself, see its log\r\n",
        why,
    }
}

fn not_redirected(way: &Way, doors: &[Door]) -> Refusal {
    Refusal {
        kind: "not_redirected",
        answer: "BYE several channels listen here, and this connection was not redirected\r\n",
        why: format!(
            "{} connected to {} directly, where several channels listen ({}), so nobody knows which \
             is meant: refused. Set sync_host and sync_port to the replica's, and load the \
             redirect rules; or give each channel a listen address of its own",
            way.peer,
            way.local,
            names(doors)
        ),
    }
}

fn no_channel(destination: SocketAddr, doors: &[Door], found: usize) -> Refusal {
    let (kind, why) = if found == 0 {
        let why = format!(
            "a connection to {destination} was redirected here, and no channel that listens here \
             has this replica ({}): refused. Set address under [channel.replica], or take this \
             destination out of the redirect rules",
            names(doors)
        );
        ("no_channel", why)
    } else {
        let why = format!(
            "a connection to {destination} was redirected here, and the names of {found} channels' \
             replicas have this address ({}): refused, since nobody knows which is meant. Write \
             different IP addresses or ports into address under [channel.replica]",
            names(doors)
        );
        ("several_channels", why)
    };
    let answer = "BYE no channel of syncmux has this replica, see its log\r\n";
    Refusal { kind, answer, why }
}

/// The channels and their replicas.
fn names(doors: &[Door]) -> String {
    let name = |door: &Door| {
        let channel = match door.context.channel.as_str() {
            "" => "the default channel".to_owned(),
            name => format!("channel \"{name}\""),
        };
        match &door.target {
            Some(target) if target.host.contains(':') => {
                format!("{channel}: [{}]:{}", target.host, target.port)
            }
            Some(target) => format!("{channel}: {}:{}", target.host, target.port),
            None => channel,
        }
    };
    doors.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(list: &[(&str, u16)]) -> Vec<Option<Arc<Target>>> {
        let target = |(host, port): &(&str, u16)| Some(Arc::new(Target::new(host, *port)));
        list.iter().map(target).collect()
    }

    async fn found(list: &[(&str, u16)], destination: &str) -> Vec<usize> {
        let destination = destination.parse().expect("an address");
        leading_to(&targets(list), destination).await
    }

    #[tokio::test]
    async fn by_address() {
        let list = [
            ("192.0.2.1", 2005),
            ("192.0.2.2", 2005),
            ("192.0.2.1", 2006),
            ("2001:db8::1", 2005),
        ];
        assert_eq!(found(&list, "192.0.2.1:2005").await, [0]);
        assert_eq!(found(&list, "192.0.2.2:2005").await, [1]);
        assert_eq!(found(&list, "192.0.2.1:2006").await, [2]);
        assert_eq!(found(&list, "[2001:db8::1]:2005").await, [3]);
        assert_eq!(found(&list, "192.0.2.3:2005").await, [0_usize; 0]);
        assert_eq!(found(&list, "192.0.2.2:2006").await, [0_usize; 0]);
    }

    #[tokio::test]
    async fn by_name() {
        let list = [
            ("localhost", 2005),
            ("127.0.0.1", 2006),
            ("localhost", 2007),
        ];
        assert_eq!(found(&list, "127.0.0.1:2005").await, [0]);
        assert_eq!(found(&list, "127.0.0.1:2007").await, [2]);
        assert_eq!(found(&list, "192.0.2.1:2005").await, [0_usize; 0]);
        // An address that is written out waits for no name; but a name that is known to have it
        // makes it unclear which channel is meant.
        let list = targets(&[("localhost", 2005), ("127.0.0.1", 2005)]);
        let destination = "127.0.0.1:2005".parse().expect("an address");
        assert_eq!(leading_to(&list, destination).await, [1]);
        list[0].as_ref().expect("a target").look_up().await;
        assert_eq!(leading_to(&list, destination).await, [1, 0]);
        // Nor is it clear where a name can't be looked up.
        let list = [("localhost", 2005), ("nowhere.invalid", 2005)];
        assert_eq!(found(&list, "127.0.0.1:2005").await.len(), 2);
        // Nobody knows which.
        let list = [("localhost", 2005), ("LOCALHOST", 2005)];
        assert_eq!(found(&list, "127.0.0.1:2005").await.len(), 2);
    }

    /// A name that can't be looked up has the addresses that it had.
    #[tokio::test]
    async fn without_an_answer() {
        let list = targets(&[("nowhere.invalid", 2005)]);
        let destination = "192.0.2.1:2005".parse().expect("an address");
        let began = Instant::now();
        assert_eq!(leading_to(&list, destination).await, [0_usize; 0]);
        assert!(began.elapsed() < LOOKUP + Duration::from_secs(5));
        if let Some(target) = &list[0] {
            *target.known.lock().expect("no panic") = vec![destination.ip()];
        }
        assert_eq!(leading_to(&list, destination).await, [0]);
    }

    /// Somebody else's question that hangs keeps nobody longer than the limit.
    #[tokio::test]
    async fn behind_a_question_that_hangs() {
        let list = targets(&[("localhost", 2005)]);
        let target = list[0].clone().expect("a target");
        *target.known.lock().expect("no panic") = vec!["192.0.2.1".parse().expect("an address")];
        let _hangs = target.asked.lock().await;
        let destination = "192.0.2.1:2005".parse().expect("an address");
        let began = Instant::now();
        assert_eq!(leading_to(&list, destination).await, [0]);
        assert!(began.elapsed() < LOOKUP + Duration::from_secs(5));
    }
}
