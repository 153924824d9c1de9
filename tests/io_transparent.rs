//! Transparent listeners, and loops, as far as they need no redirect rules: those are in
//! `e2e/transparent.rs`.

#![allow(clippy::unwrap_used, reason = "helpers outside of #[test] functions")]

mod io_fake;

use io_fake::site::{BANNER, Setup, Site};
use io_fake::{settings, spill};
use syncmux::io::address::Address;
use syncmux::io::lane_connect::Replica;
use syncmux::io::transparent::Target;

async fn site(targets: &[&str]) -> Site {
    let targets = targets.iter().map(|host| Target::new(host, 2005)).collect();
    let setup = Setup {
        targets,
        ..Setup::default()
    };
    setup.start().await
}

/// Who connects straight to the address where one channel listens means that channel.
#[tokio::test]
async fn one_channel_serves_what_was_not_redirected() {
    let site = site(&["192.0.2.1"]).await;
    site.connect().await.expect(BANNER).await;
}

#[tokio::test]
async fn of_several_channels_nobody_knows_which_is_meant() {
    let mut site = site(&["192.0.2.1", "192.0.2.2"]).await;
    let answer = site.connect().await.rest().await;
    assert_eq!(
        String::from_utf8(answer).unwrap(),
        "BYE several channels listen here, and this connection was not redirected\r\n"
    );
    assert!(site.events.try_recv().is_err());
}

/// The replica's address is the listener's own: no connection to it makes another one.
#[tokio::test]
async fn a_loop_is_cut() {
    for targets in [&[][..], &["192.0.2.1"], &["192.0.2.1", "192.0.2.2"]] {
        let site = site(targets).await;
        let Address::Tcp { host, port } = &site.address else {
            panic!("{}", site.address);
        };
        let address = format!("{host}:{port}").parse().unwrap();
        let replica = Replica::new(settings(&address), spill(1)).unwrap();
        for _ in 0..20 {
            let error = replica.probe_greeting(None).await.unwrap_err().to_string();
            assert!(error.contains("BYE a loop"), "{error}");
        }
        // Others are not taken for it.
        if targets.len() < 2 {
            site.connect().await.expect(BANNER).await;
        }
    }
}
