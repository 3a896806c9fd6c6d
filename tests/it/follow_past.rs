//! Proves that a replica recognizes another past under the ids of the former one also where no revision is left that both have: the
//! upstream is a copy of the followed store that went another way and was compacted beyond the replica.

use crate::follow::{Place, etcd_at, everything, put, replica, watch_all};
use crate::support::files::free_port;
use crate::support::store::{message, plain_client, revision};
use crate::support::{PATIENCE, eventually};
use etcd_client::*;
use std::time::Duration;
use tokio::time::timeout;

/// Lets a copy that was compacted to the given revision after the replica's take the place of its upstream.
async fn replaced_by_a_copy(beyond: i64) {
    let (place, copy) = (Place::new(), Place::new());
    let data = |place: &Place| format!("--data-dir={}", place.data().display());
    let address = format!("127.0.0.1:{}", free_port());
    let first = etcd_at(&address, &[&data(&place)]).start();
    first.address().await;
    put(&mut plain_client(&address).await, "both", "1").await;
    assert!(first.terminate().await.success());
    let mut cp = std::process::Command::new("cp");
    let copied = cp.arg("-r").arg(place.data()).arg(copy.data()).status().unwrap();
    assert!(copied.success());

    let upstream = etcd_at(&address, &[&data(&place)]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "key", "ours").await;
    let last = put(up, "both", "ours").await;
    let here = replica(&place.file(&address), &[]);
    let client = &mut plain_client(&here.address().await).await;
    eventually("the replica has everything", async || {
        (revision(client).await >= last).then_some(())
    })
    .await;
    // One watch has everything, and the other is of a client that saw later revisions elsewhere.
    let mut watches = [
        client.watch("", watch_all(last + 1)).await.unwrap(),
        client.watch("", watch_all(last + 30)).await.unwrap(),
    ];
    for watch in &mut watches {
        assert!(message(watch).await.created());
    }
    place.file(&format!("127.0.0.1:{}", free_port()));
    upstream.kill().await;
    here.line("connecting to the upstream again").await;

    let upstream = etcd_at(&address, &[&data(&copy)]).start();
    upstream.address().await;
    let up = &mut plain_client(&address).await;
    put(up, "key", "theirs").await;
    for n in 0..40 {
        put(up, "both", &n.to_string()).await;
    }
    let compaction = CompactionOptions::new().with_physical();
    up.compact(last + beyond, Some(compaction)).await.unwrap();
    place.file(&address);
    here.line("the keys of the endpoint are of another past").await;
    for watch in &mut watches {
        // The replica looks for another endpoint for half a minute.
        let ended = timeout(PATIENCE + Duration::from_secs(30), watch.message()).await;
        let ended = ended.expect("the watch goes on").unwrap().expect("a last message");
        assert!(
            ended.canceled() && ended.compact_revision() == last + beyond,
            "{ended:?}"
        );
    }
    assert_eq!(everything(client, 0).await, everything(up, 0).await);
}

#[tokio::test]
async fn another_past_that_was_compacted_to_the_next_revision_ends_all_watches() {
    Box::pin(replaced_by_a_copy(1)).await;
}

#[tokio::test]
async fn another_past_that_was_compacted_beyond_the_next_revision_ends_all_watches() {
    Box::pin(replaced_by_a_copy(20)).await;
}
