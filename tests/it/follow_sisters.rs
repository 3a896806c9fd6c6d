//! Proves that a replica takes from another replica what its upstream has compacted, without cancelling a watch, and nothing from a
//! replica that has another past. The upstream is this program.

use crate::follow::{Place, etcd_at, events_until, everything, put, replica, watch_all};
use crate::support::files::free_port;
use crate::support::store::{message, plain_client, revision};
use crate::support::{eventually, http};
use etcd_client::*;
use std::path::PathBuf;

/// A file that names another replica.
fn peers(place: &Place, address: &str) -> PathBuf {
    let file = place.data().with_file_name("peers.yaml");
    std::fs::write(&file, format!("endpoints: [\"http://{address}\"]\n")).unwrap();
    file
}

/// How many times a replica has loaded everything in a way.
async fn loads(address: &str, how: &str) -> u32 {
    let page = http::get(&format!("http://{address}/metrics")).await.unwrap().body;
    let name = format!("isthmus_follow_loads_total{{how=\"{how}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_the_upstream_has_compacted_comes_from_a_sister_and_watches_go_on() {
    let (place, other) = (Place::new(), Place::new());
    let address = format!("127.0.0.1:{}", free_port());
    let data = format!("--data-dir={}", place.data().display());
    let upstream = etcd_at(&address, &[&data]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "before", "1").await;
    let sister = replica(&other.file(&address), &[]);
    let sister_address = sister.address().await;
    let by = format!("--peers={}", peers(&place, &sister_address).display());
    let here = replica(&place.file(&address), &[&by]);
    let here_address = here.address().await;
    let client = &mut plain_client(&here_address).await;
    let seen = put(up, "seen", "1").await;
    let mut stream = client.watch("", watch_all(seen)).await.unwrap();
    events_until(&mut stream, seen).await;
    assert_eq!(loads(&here_address, "sister").await, 1);

    // The upstream comes back for the sister alone, and forgets everything but the present.
    place.file(&format!("127.0.0.1:{}", free_port()));
    assert!(upstream.terminate().await.success());
    here.line("connecting to the upstream again").await;
    let upstream = etcd_at(&address, &[&data]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    let mut last = 0;
    for n in 0..50 {
        last = put(up, &format!("missed/{}", n % 7), &n.to_string()).await;
    }
    up.compact(last, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
    let by = &mut plain_client(&sister_address).await;
    eventually("the sister has everything", async || {
        let found = by
            .get("missed/0", Some(GetOptions::new().with_serializable()))
            .await
            .ok()?;
        (found.header()?.revision() >= last).then_some(())
    })
    .await;
    place.file(&address);
    assert_eq!(events_until(&mut stream, last).await.len(), 50);
    here.line("the missing revisions were taken over in order").await;
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    assert_eq!(loads(&here_address, "sister").await, 2);
    assert_eq!(loads(&here_address, "snapshot").await, 0);
    let last = put(up, "after", "1").await;
    assert_eq!(events_until(&mut stream, last).await.len(), 1);
}

#[tokio::test]
async fn a_watch_from_a_revision_that_was_not_here_yet_survives_a_compaction() {
    let place = Place::new();
    let address = format!("127.0.0.1:{}", free_port());
    let data = format!("--data-dir={}", place.data().display());
    let upstream = etcd_at(&address, &[&data]).start();
    upstream.address().await;
    let seen = put(&mut plain_client(&address).await, "seen", "1").await;
    let here = replica(&place.file(&address), &[]);
    let client = &mut plain_client(&here.address().await).await;
    eventually("the replica has everything", async || {
        (revision(client).await >= seen).then_some(())
    })
    .await;
    place.file(&format!("127.0.0.1:{}", free_port()));
    assert!(upstream.terminate().await.success());
    here.line("connecting to the upstream again").await;
    // Clients that were elsewhere before: one needs revisions that will be missing, the other does not.
    let mut missing = client.watch("", watch_all(seen + 1)).await.unwrap();
    let mut later = client.watch("", watch_all(seen + 51)).await.unwrap();
    assert!(message(&mut missing).await.created());
    assert!(message(&mut later).await.created());
    let upstream = etcd_at(&address, &[&data]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    for n in 0..50 {
        put(up, "missed", &n.to_string()).await;
    }
    up.compact(seen + 50, Some(CompactionOptions::new().with_physical()))
        .await
        .unwrap();
    let last = put(up, "later", "1").await;
    assert_eq!(last, seen + 51);
    place.file(&address);
    assert_eq!(events_until(&mut later, last).await.len(), 1);
    let cancelled = message(&mut missing).await;
    assert!(cancelled.canceled(), "{cancelled:?}");
    assert_eq!(cancelled.compact_revision(), seen + 50);
    here.line("watches that need a missing revision are cancelled as compacted")
        .await;
}

#[tokio::test]
async fn nothing_is_taken_from_a_sister_with_another_past() {
    let (place, clone) = (Place::new(), Place::new());
    let data = |place: &Place| format!("--data-dir={}", place.data().display());
    let first = etcd_at("127.0.0.1:0", &[&data(&place)]).start();
    put(&mut plain_client(&first.address().await).await, "both", "1").await;
    assert!(first.terminate().await.success());
    let mut copy = std::process::Command::new("cp");
    let copied = copy.arg("-r").arg(place.data()).arg(clone.data()).status().unwrap();
    assert!(copied.success());
    // Two stores with the same id, which go different ways.
    let (one, two) = (
        etcd_at("127.0.0.1:0", &[&data(&place)]).start(),
        etcd_at("127.0.0.1:0", &[&data(&clone)]).start(),
    );
    let (address, clone_address) = (one.address().await, two.address().await);
    let up = &mut plain_client(&address).await;
    for (client, value) in [(&mut *up, "ours"), (&mut plain_client(&clone_address).await, "theirs")] {
        for _ in 0..3 {
            put(client, "key", value).await;
        }
    }
    let sister = replica(&clone.file(&clone_address), &[]);
    let by = format!("--peers={}", peers(&place, &sister.address().await).display());
    let here = replica(&place.file(&address), &[&by]);
    let here_address = here.address().await;
    here.line("another replica has another past").await;
    let client = &mut plain_client(&here_address).await;
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
    assert_eq!(loads(&here_address, "sister").await, 0);
    assert_eq!(loads(&here_address, "snapshot").await, 1);
}
