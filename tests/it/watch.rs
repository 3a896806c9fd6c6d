//! Proves that the Watch service behaves as etcd's: order, resumption from a revision, progress, filters, cancellation,
//! compaction, many watchers on one stream, and the end of the server.

use crate::support::store::{message, next};
use crate::support::tls::etcd;
use crate::support::{Process, Signal, Tls};
use etcd_client::*;
use std::time::Duration;

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
