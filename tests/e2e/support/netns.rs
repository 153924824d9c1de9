//! Network namespaces of a test's own. They have no name and leave nothing behind: each lives as
//! long as a process in it, and that process ends with the test, whatever happens to the test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Ends when its end of the pipe is closed: also when the test is killed.
const SCRIPT: &str = "trap '' INT TERM HUP; ip link set lo up && echo up; cat >/dev/null";

/// A namespace with nothing but loopback in it.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    handle: File,
}

/// This thread, and what it starts, is in another namespace until this is dropped.
#[derive(Debug)]
pub struct Inside {
    back: File,
    /// It is about this thread.
    _here: PhantomData<*const ()>,
}

impl Namespace {
    pub fn new() -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", SCRIPT]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.process_group(0).spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(holder.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(
            line, "up\n",
            "a network namespace needs root, and ip of the package iproute2 (tests/run.sh installs it)"
        );
        let handle = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Self { holder, handle }
    }

    pub fn enter(&self) -> Inside {
        let back = File::open("/proc/thread-self/ns/net").unwrap();
        enter(&self.handle);
        Inside {
            back,
            _here: PhantomData,
        }
    }

    /// A wire to another one, with these addresses (`10.1.2.3/24`) at both ends.
    pub fn connect(&self, other: &Self, ours: &[&str], theirs: &[&str]) {
        let pid = other.holder.id();
        self.run(&format!(
            "ip link add wire type veth peer name wire netns {pid}"
        ));
        for (end, addresses) in [(self, ours), (other, theirs)] {
            for address in addresses {
                // An IPv6 address is looked for in the network first, for a second or two.
                let nodad = if address.contains(':') { "nodad" } else { "" };
                end.run(&format!("ip addr add {address} dev wire {nodad}"));
            }
            end.run("ip link set wire up");
        }
    }

    /// Loads nftables rules.
    pub fn load(&self, rules: &str) {
        let _inside = self.enter();
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft of the package nftables (tests/run.sh installs it)");
        let mut stdin = nft.stdin.take().unwrap();
        stdin.write_all(rules.as_bytes()).unwrap();
        drop(stdin);
        assert!(nft.wait().unwrap().success(), "nft refused:\n{rules}");
    }

    /// Runs a command to its good end: what it said.
    pub fn run(&self, line: &str) -> String {
        let _inside = self.enter();
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output();
        let output = output.unwrap_or_else(|e| panic!("{line}: {e}: tests/run.sh installs it"));
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn enter(namespace: &File) {
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).unwrap();
}

impl Drop for Inside {
    fn drop(&mut self) {
        enter(&self.back);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
