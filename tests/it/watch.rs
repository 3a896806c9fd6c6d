//! Proves that the Watch service behaves as etcd's: order, resumption from a revision, progress, filters, cancellation,
//! compaction, many watchers on one stream, and the end of the server.

use crate::support::store::{message, next, plain_client, plain_etcd};
use crate::support::tls::etcd;
use crate::support::{PATIENCE, Process, Signal, Tls};
use etcd_client::*;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A store and a client of it.
struct Store {
    _tls: Tls,
    server: Process,
    client: Client,
}

async fn start() -> Store {
    let tls = Tls::new();
    let server = etcd(&tls).start();
    let client = tls.client(&server.address().await, "any").await;
    Store {
        _tls: tls,
        server,
        client,
    }
}

#[tokio::test]
async fn a_watch_from_a_past_revision_continues_into_the_present_without_a_gap() {
    let Store { client, .. } = &mut start().await;
    for i in 0..50 {
        client.put(format!("p/{i}"), "past", None).await.unwrap();
    }
    let options = WatchOptions::new().with_prefix().with_start_revision(2).with_prev_key();
    let mut stream = client.watch("p/", Some(options)).await.unwrap();
    let created = message(&mut stream).await;
    assert!(created.created() && created.events().is_empty());
    for i in 0..50 {
        client.put(format!("p/{i}"), "present", None).await.unwrap();
        client.put("other", "unseen", None).await.unwrap();
    }
    client.delete("p/0", None).await.unwrap();
    let mut revisions = vec![];
    let last = loop {
        let message = next(&mut stream).await;
        for event in message.events() {
            let kv = event.kv().unwrap();
            let is_new = kv.create_revision() == kv.mod_revision() && event.event_type() == EventType::Put;
            assert_eq!(event.prev_kv().is_none(), is_new);
            revisions.push(kv.mod_revision());
        }
        let header = message.header().unwrap().revision();
        assert!(header >= *revisions.last().unwrap());
        if message.events().iter().any(|e| e.event_type() == EventType::Delete) {
            break header;
        }
    };
    assert_eq!(revisions.len(), 101);
    assert!(revisions.is_sorted());
    assert_eq!(last, *revisions.last().unwrap());
}

#[tokio::test]
async fn all_events_of_a_transaction_arrive_in_one_response() {
    let Store { client, .. } = &mut start().await;
    let mut stream = client
        .watch("t/", Some(WatchOptions::new().with_prefix()))
        .await
        .unwrap();
    stream.message().await.unwrap();
    let ops: Vec<_> = (0..128)
        .map(|i| TxnOp::put(format!("t/{i}"), vec![0; 4000], None))
        .collect();
    client.txn(Txn::new().and_then(ops)).await.unwrap();
    assert_eq!(next(&mut stream).await.events().len(), 128);
}

#[tokio::test]
async fn filters_chosen_ids_cancellation_and_progress_work_on_one_stream() {
    let Store { client, .. } = &mut start().await;
    let options = WatchOptions::new()
        .with_filters([WatchFilterType::NoPut])
        .with_watch_id(7);
    let mut stream = client.watch("k", Some(options)).await.unwrap();
    assert_eq!(message(&mut stream).await.watch_id(), 7);
    stream
        .watch("k", Some(WatchOptions::new().with_watch_id(7)))
        .await
        .unwrap();
    let twice = next(&mut stream).await;
    assert_eq!((twice.watch_id(), twice.created(), twice.canceled()), (-1, true, true));
    assert_eq!(
        twice.cancel_reason(),
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    stream
        .watch("b", Some(WatchOptions::new().with_range("a")))
        .await
        .unwrap();
    assert_eq!(next(&mut stream).await.cancel_reason(), "mvcc: watcher range is empty");
    client.put("k", "", None).await.unwrap();
    client.delete("k", None).await.unwrap();
    let only = next(&mut stream).await;
    assert_eq!((only.watch_id(), only.events().len()), (7, 1));
    stream.request_progress().await.unwrap();
    let progress = next(&mut stream).await;
    assert_eq!((progress.watch_id(), progress.events().len()), (-1, 0));
    assert_eq!(progress.header().unwrap().revision(), 3);
    stream.cancel(7).await.unwrap();
    let cancelled = next(&mut stream).await;
    assert!(cancelled.canceled() && cancelled.cancel_reason().is_empty());
}

#[tokio::test]
async fn a_watch_of_compacted_history_is_created_and_then_cancelled() {
    let Store { client, .. } = &mut start().await;
    for _ in 0..5 {
        client.put("k", "", None).await.unwrap();
    }
    client.compact(4, None).await.unwrap();
    let mut stream = client
        .watch("k", Some(WatchOptions::new().with_start_revision(3)))
        .await
        .unwrap();
    assert!(message(&mut stream).await.created());
    let cancelled = next(&mut stream).await;
    assert_eq!((cancelled.canceled(), cancelled.compact_revision()), (true, 4));
    assert_eq!(cancelled.header().unwrap().revision(), 0);
    stream
        .watch("k", Some(WatchOptions::new().with_start_revision(4)))
        .await
        .unwrap();
    assert_eq!(next(&mut stream).await.events().len(), 3);
}

/// Writes a key that nobody watches, until the store has compacted revision 2. Returns the last revision that the watch
/// was told, and fails if it was told anything else.
async fn write_until_compacted(client: &mut Client, stream: &mut WatchStream) -> i64 {
    let mut told = 0;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "revision 2 was not compacted");
        let written = client
            .put("other", "", None)
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
        if let Ok(message) = timeout(Duration::from_millis(50), stream.message()).await {
            let message = message.unwrap().unwrap();
            let revision = message.header().unwrap().revision();
            assert_eq!((message.watch_id(), message.events().len()), (0, 0));
            assert!(!message.canceled() && !message.created());
            assert!(revision > told && revision <= written, "{told} {revision} {written}");
            told = revision;
        }
        let past = GetOptions::new().with_revision(2);
        if client.get("other", Some(past)).await.is_err() {
            return told;
        }
    }
}

#[tokio::test]
async fn a_quiet_watch_resumes_although_its_first_revision_is_compacted() {
    let flags = ["--progress-to-quiet-watches", "--auto-compaction-retention=3s"];
    let server = plain_etcd().args(flags).start();
    let address = server.address().await;
    let mut client = plain_client(&address).await;
    client.put("other", "", None).await.unwrap();
    let mut stream = client.watch("quiet", None).await.unwrap();
    assert!(message(&mut stream).await.created());
    let told = write_until_compacted(&mut client, &mut stream).await;
    // A client that was told nothing would ask for revision 3, and list everything again.
    let late = WatchOptions::new().with_start_revision(3);
    let mut late = client.watch("quiet", Some(late)).await.unwrap();
    assert!(next(&mut late).await.canceled());
    let mut moved = plain_client(&address).await;
    let resume = WatchOptions::new().with_start_revision(told + 1);
    let mut resumed = moved.watch("quiet", Some(resume)).await.unwrap();
    assert!(message(&mut resumed).await.created());
    client.put("quiet", "now", None).await.unwrap();
    for stream in [&mut stream, &mut resumed] {
        let mut seen = next(stream).await;
        while seen.events().is_empty() {
            assert!(!seen.canceled());
            seen = next(stream).await;
        }
        assert_eq!(seen.events().len(), 1);
        assert_eq!(seen.events()[0].kv().unwrap().value(), b"now");
    }
}

#[tokio::test]
async fn etcd_tells_quiet_watches_nothing_unless_it_is_asked_to() {
    let server = plain_etcd().arg("--auto-compaction-retention=3s").start();
    let mut client = plain_client(&server.address().await).await;
    client.put("other", "", None).await.unwrap();
    let mut stream = client.watch("quiet", None).await.unwrap();
    assert!(message(&mut stream).await.created());
    assert_eq!(write_until_compacted(&mut client, &mut stream).await, 0);
    client.put("quiet", "", None).await.unwrap();
    assert_eq!(
        next(&mut stream).await.events().len(),
        1,
        "the first message of the watch"
    );
}

#[tokio::test]
async fn of_ten_thousand_watchers_on_one_stream_only_the_watcher_of_the_key_gets_the_event() {
    let Store { client, .. } = &mut start().await;
    let mut stream = client.watch("w/0", None).await.unwrap();
    stream.message().await.unwrap();
    for i in 1..10_000 {
        stream.watch(format!("w/{i}"), None).await.unwrap();
        if i % 50 == 0 {
            // Without reading, the flow control of the stream would block both sides.
            for _ in 0..50 {
                stream.message().await.unwrap();
            }
        }
    }
    client.put("w/7777", "", None).await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), 7777);
}

#[tokio::test]
async fn a_watch_ends_with_unavailable_when_the_server_stops() {
    let Store { server, client, .. } = &mut start().await;
    let mut stream = client.watch("k", None).await.unwrap();
    stream.message().await.unwrap();
    server.signal(Signal::SIGTERM);
    let error = stream.message().await.unwrap_err();
    let Error::GRpcStatus(status) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::Unavailable, "etcdserver: server stopped")
    );
    let status = server.ended_within(Duration::from_secs(5)).await;
    assert!(status.success(), "{status}");
}
