//! Wall clocks that jump.

use crate::support::environment::Faults;
use crate::support::eventually;
use crate::support::store::plain_client;
use etcd_client::{Client, ConnectOptions, PutOptions};

const HOUR: i64 = 3600;

#[tokio::test]
async fn a_clock_that_jumps_an_hour_changes_the_log_and_no_lease_or_token() {
    let faults = Faults::new();
    let server = faults.etcd(&[]);
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let password = ConnectOptions::new().with_user("root", "secret");
    let mut root = Client::connect([&*address], Some(password)).await.unwrap();
    let long = root.lease_grant(100, None).await.unwrap().id();
    for jump in [HOUR, -HOUR] {
        let short = root.lease_grant(1, None).await.unwrap().id();
        let leased = PutOptions::new().with_lease(short);
        root.put("short", "1", Some(leased)).await.unwrap();
        faults.set("clock", jump);
        // The token of the connection is valid, and the short lease ends.
        eventually("the lease of a second ends", async || {
            (root.get("short", None).await.unwrap().count() == 0).then_some(())
        })
        .await;
        let left = root.lease_time_to_live(long, None).await.unwrap().ttl();
        assert!((30..=100).contains(&left), "{left}");
    }
    let before = jiff::Timestamp::now();
    server.signal(crate::support::Signal::SIGTERM);
    let line = server.line("signal received: stopping").await;
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    let logged: jiff::Timestamp = record["ts"].as_str().unwrap().parse().unwrap();
    let behind = before.as_second() - logged.as_second();
    assert!((HOUR - 60..=HOUR).contains(&behind), "{line}");
    assert!(server.ended().await.success());
}
