//! What a replica answers itself, what it passes on, and what its clients see.

mod bench;
mod users;
mod watch;

use super::*;
use crate::server::upstream::not_sent;
use bench::{Bench, CLUSTER, Client, LEADER, Mood, Sent, TERM};
use bytes::{BufMut, BytesMut};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Something that may not happen at once, but soon.
const SOON: Duration = Duration::from_secs(5);

/// `etcdserverpb.RangeResponse` as a client reads it.
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<ListedKv>,
    #[prost(int64, tag = "4")]
    count: i64,
}

/// The fields of a key-value that these tests look at.
#[derive(Clone, PartialEq, Message)]
struct ListedKv {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn range(key: &str, revision: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        revision,
        ..Default::default()
    }
}

fn txn(ops: Vec<pb::request_op::Request>) -> pb::TxnRequest {
    let success = ops.into_iter().map(|op| pb::RequestOp { request: Some(op) });
    pb::TxnRequest {
        success: success.collect(),
        ..Default::default()
    }
}

fn anybody() -> Client {
    Client::default()
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}

#[tokio::test(start_paused = true)]
async fn a_client_reads_its_own_writes_and_sees_the_cluster_of_the_upstream() {
    let bench = Bench::following();
    for n in 0..5 {
        let value = n.to_string();
        let done: pb::PutResponse = bench.call(&anybody(), PUT, &put("a", &value)).await.unwrap();
        assert_eq!(bench.store.revision(), revision(&done.header), "the answer was held");
        let mut serializable = range("a", 0);
        serializable.serializable = true;
        let read: Listed = bench.call(&anybody(), RANGE, &serializable).await.unwrap();
        assert_eq!(read.kvs[0].value, value);
        let header = read.header.unwrap();
        assert_eq!((header.cluster_id, header.raft_term), (CLUSTER, TERM));
        assert_eq!(header.member_id, bench.core.config.identity.member_id);
    }
    assert_eq!(bench.upstream.take_sent(), ["Put"; 5], "reads stay here");
    assert_eq!(bench.core.forwarding.unheld.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_sent_after_two_seconds_although_its_revision_is_not_here() {
    let bench = Bench::new();
    let begun = Instant::now();
    let done: pb::PutResponse = bench.call(&anybody(), PUT, &put("a", "1")).await.unwrap();
    assert_eq!((revision(&done.header), bench.store.revision()), (2, 1));
    assert_eq!(begun.elapsed().as_secs(), HOLD.as_secs());
    assert_eq!(bench.core.forwarding.unheld.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_linearizable_read_waits_for_the_upstream_and_a_fact_waits_for_nothing() {
    let bench = Bench::new();
    for value in ["1", "2", "3"] {
        bench
            .upstream
            .store
            .apply(&[crate::mvcc::Write::Put("a".into(), value.into())]);
    }
    bench.follow_to(3);
    let (one, client) = (range("a", 0), anybody());
    let mut latest = Box::pin(bench.call::<Listed>(&client, RANGE, &one));
    assert!(futures::poll!(&mut latest).is_pending());
    // A revision that is here, whatever the upstream has, and a serializable read.
    let second: Listed = bench.call(&client, RANGE, &range("a", 2)).await.unwrap();
    assert_eq!((&second.kvs[0].value[..], revision(&second.header)), (&b"1"[..], 3));
    let serializable = pb::RangeRequest {
        serializable: true,
        ..range("a", 0)
    };
    let stale: Listed = bench.call(&client, RANGE, &serializable).await.unwrap();
    assert_eq!(stale.kvs[0].value, "2");
    // A revision that is not here yet.
    let four = range("a", 4);
    let mut fourth = Box::pin(bench.call::<Listed>(&client, RANGE, &four));
    assert!(futures::poll!(&mut fourth).is_pending());
    bench.follow_to(4);
    assert_eq!(latest.await.unwrap().kvs[0].value, "3");
    assert_eq!(fourth.await.unwrap().kvs[0].mod_revision, 4);
    let future = bench.call::<Listed>(&client, RANGE, &range("a", 5)).await.unwrap_err();
    assert_eq!(future.message(), status::future_revision().message());
    let nested = txn(vec![pb::request_op::Request::RequestRange(range("a", 0))]);
    let _: pb::TxnResponse = bench.call(&client, TXN, &nested).await.unwrap();
    assert!(bench.upstream.take_sent().is_empty(), "nothing was passed on");
}

#[tokio::test(start_paused = true)]
async fn reads_fail_as_in_etcd_while_the_upstream_is_away() {
    let bench = Bench::new();
    *bench.upstream.mood.lock() = Mood::Away;
    let refused = bench
        .call::<Listed>(&anybody(), RANGE, &range("a", 0))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, "etcdserver: request timed out")
    );
    // The upstream answers, and its revision does not come.
    *bench.upstream.mood.lock() = Mood::Works;
    bench
        .upstream
        .store
        .apply(&[crate::mvcc::Write::Put("a".into(), "1".into())]);
    let begun = Instant::now();
    let refused = bench
        .call::<Listed>(&anybody(), RANGE, &range("a", 0))
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "etcdserver: request timed out");
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_surely_was_not_sent_and_what_may_have_been_executed_are_told_apart() {
    let bench = Bench::new();
    *bench.upstream.mood.lock() = Mood::Away;
    let refused = bench
        .call::<pb::PutResponse>(&anybody(), PUT, &put("a", "1"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unavailable, not_sent().message())
    );
    *bench.upstream.mood.lock() = Mood::Silent;
    let begun = Instant::now();
    let lost = bench
        .call::<pb::PutResponse>(&anybody(), PUT, &put("a", "1"))
        .await
        .unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 7);
    let text = "etcdserver: request timed out, possibly due to connection lost";
    assert_eq!((lost.code(), lost.message()), (Code::Unavailable, text));
    assert_eq!(bench.upstream.store.revision(), 2, "it was executed, once");
    assert_eq!(bench.upstream.take_sent(), ["Put"]);
    let hurried = Client {
        metadata: vec![("grpc-timeout", "2S")],
        ..anybody()
    };
    let begun = Instant::now();
    let late = bench
        .call::<pb::PutResponse>(&hurried, PUT, &put("a", "2"))
        .await
        .unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 2, "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_upstream_as_it_came() {
    let bench = Bench::following();
    let mut message = BytesMut::from(&put("a", "1").encode_to_vec()[..]);
    // Field 99 with the text `new`, which nobody knows yet.
    message.put_slice(&[0x9a, 0x06, 0x03, b'n', b'e', b'w']);
    let message = message.freeze();
    let client = Client {
        metadata: vec![("hasleader", "true"), ("cookie", "no"), ("client-api-version", "3.7")],
        ..anybody()
    };
    bench::unary(&bench.router, PUT, None, client.metadata(), message.clone())
        .await
        .unwrap();
    let Sent {
        message: sent,
        metadata,
        who,
        ..
    } = bench.upstream.sent.lock()[0].clone();
    assert_eq!((sent, who), (message, Credentials::Nobody));
    assert_eq!(metadata.len(), 2);
    assert_eq!(metadata.get("hasleader").unwrap(), "true");
}

#[tokio::test(start_paused = true)]
async fn history_from_before_the_floor_comes_from_the_upstream() {
    let bench = Bench::following();
    for value in ["1", "2", "3"] {
        let _: pb::PutResponse = bench.call(&anybody(), PUT, &put("a", value)).await.unwrap();
    }
    bench.store.compact(4).unwrap();
    bench.upstream.take_sent();
    let read: Listed = bench.call(&anybody(), RANGE, &range("a", 2)).await.unwrap();
    assert_eq!((&read.kvs[0].value[..], read.kvs[0].mod_revision), (&b"1"[..], 2));
    let old = txn(vec![pb::request_op::Request::RequestRange(range("a", 3))]);
    let _: pb::TxnResponse = bench.call(&anybody(), TXN, &old).await.unwrap();
    let path = "/etcdserverpb.KV/RangeStream";
    let _: pb::RangeStreamResponse = bench.call(&anybody(), path, &range("a", 3)).await.unwrap();
    assert_eq!(bench.upstream.take_sent(), ["Range", "Txn", "RangeStream"]);
    let _: Listed = bench.call(&anybody(), RANGE, &range("a", 4)).await.unwrap();
    assert!(bench.upstream.take_sent().is_empty(), "the floor is here");
    bench.upstream.store.compact(3).unwrap();
    let gone = bench
        .call::<Listed>(&anybody(), RANGE, &range("a", 2))
        .await
        .unwrap_err();
    assert_eq!(gone.message(), status::compacted().message());
}

#[tokio::test(start_paused = true)]
async fn no_revision_is_read_while_the_past_is_in_doubt() {
    let bench = Bench::following();
    let _: pb::PutResponse = bench.call(&anybody(), PUT, &put("a", "1")).await.unwrap();
    let at = async |revision| bench.call::<Listed>(&anybody(), RANGE, &range("a", revision)).await;
    assert_eq!(at(2).await.unwrap().kvs.len(), 1);
    *bench.upstream.doubtful.lock() = true;
    let refused = at(2).await.unwrap_err();
    assert_eq!(refused.message(), status::timed_out().message());
    let serializable = pb::RangeRequest {
        serializable: true,
        ..range("a", 2)
    };
    let _: Listed = bench.call(&anybody(), RANGE, &serializable).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_compaction_compacts_here_too_and_nothing_else_does() {
    let bench = Bench::following();
    for value in ["1", "2", "3"] {
        let _: pb::PutResponse = bench.call(&anybody(), PUT, &put("a", value)).await.unwrap();
    }
    let compact = |revision| pb::CompactionRequest {
        revision,
        physical: true,
    };
    let _: pb::CompactionResponse = bench.call(&anybody(), COMPACT, &compact(3)).await.unwrap();
    assert_eq!((bench.upstream.store.compacted(), bench.store.compacted()), (3, 3));
    let again = bench
        .call::<pb::CompactionResponse>(&anybody(), COMPACT, &compact(3))
        .await;
    assert_eq!(again.unwrap_err().message(), status::compacted().message());
    let ahead = bench
        .call::<pb::CompactionResponse>(&anybody(), COMPACT, &compact(99))
        .await;
    assert_eq!(ahead.unwrap_err().message(), status::future_revision().message());
}

#[tokio::test(start_paused = true)]
async fn leases_live_upstream_and_their_keys_go_when_it_says_so() {
    let bench = Bench::following();
    let grant = |id| pb::LeaseGrantRequest { id, ttl: 10 };
    for id in [7, 8] {
        let _: pb::LeaseGrantResponse = bench.call(&anybody(), GRANT, &grant(id)).await.unwrap();
    }
    let twice = bench.call::<pb::LeaseGrantResponse>(&anybody(), GRANT, &grant(7)).await;
    assert_eq!(twice.unwrap_err().message(), "etcdserver: lease already exists");
    for (key, lease) in [("a", 7), ("b", 8)] {
        let put = pb::PutRequest { lease, ..put(key, "") };
        let _: pb::PutResponse = bench.call(&anybody(), PUT, &put).await.unwrap();
    }
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let renewal = pb::LeaseKeepAliveRequest { id: 7 };
        let renewed: pb::LeaseKeepAliveResponse = bench.call(&anybody(), KEEP_ALIVE, &renewal).await.unwrap();
        assert_eq!((renewed.id, renewed.ttl), (7, 10));
    }
    let ended: pb::LeaseKeepAliveResponse = bench
        .call(&anybody(), KEEP_ALIVE, &pb::LeaseKeepAliveRequest { id: 8 })
        .await
        .unwrap();
    assert_eq!(ended.ttl, 0);
    assert!(bench.store.get(b"a").is_some() && bench.store.get(b"b").is_none());
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let asked = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    let left: pb::LeaseTimeToLiveResponse = bench.call(&anybody(), path, &asked).await.unwrap();
    assert_eq!((left.granted_ttl, left.keys), (10, vec![Bytes::from("a")]));
    let path = "/etcdserverpb.Lease/LeaseRevoke";
    let _: pb::LeaseRevokeResponse = bench
        .call(&anybody(), path, &pb::LeaseRevokeRequest { id: 7 })
        .await
        .unwrap();
    assert!(bench.store.get(b"a").is_none(), "the answer was held");
}

#[tokio::test(start_paused = true)]
async fn clients_share_the_streams_of_renewals() {
    let bench = Bench::following();
    for id in 1..=100 {
        bench.upstream_grant(id);
    }
    let renewals = (1..=100).flat_map(|id| [id, id]).map(|id| {
        let (bench, client) = (&bench, anybody());
        async move {
            let renewal = pb::LeaseKeepAliveRequest { id };
            let answer = bench
                .call::<pb::LeaseKeepAliveResponse>(&client, KEEP_ALIVE, &renewal)
                .await;
            (id, answer.unwrap())
        }
    });
    for (id, renewed) in futures::future::join_all(renewals).await {
        assert_eq!((renewed.id, renewed.ttl), (id, 600));
    }
    assert_eq!(
        bench.upstream.take_sent(),
        ["LeaseKeepAlive"; 8],
        "one stream for each slot"
    );
    // Idle and old streams end, and renewals go on.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let renewal = pb::LeaseKeepAliveRequest { id: 5 };
    let _: pb::LeaseKeepAliveResponse = bench.call(&anybody(), KEEP_ALIVE, &renewal).await.unwrap();
    assert_eq!(bench.upstream.take_sent(), ["LeaseKeepAlive"]);
}

#[tokio::test(start_paused = true)]
async fn renewals_with_ever_new_tokens_keep_nobody_out() {
    let bench = Bench::following();
    bench.upstream_grant(8);
    // Field 99, which nobody knows: it must not reach a stream that others use, too.
    let odd = Bytes::from(
        [
            &pb::LeaseKeepAliveRequest { id: 8 }.encode_to_vec()[..],
            &[0x9a, 0x06, 0x00],
        ]
        .concat(),
    );
    for n in 0..=keepalive::STREAMS_MAX {
        let stranger = Client::with_token(&format!("x.{n}"));
        let renewed = bench::unary(&bench.router, KEEP_ALIVE, None, stranger.metadata(), odd.clone()).await;
        renewed.unwrap_or_else(|status| panic!("renewal {n}: {status}"));
    }
    let renewal = pb::LeaseKeepAliveRequest { id: 8 };
    let _: pb::LeaseKeepAliveResponse = bench.call(&anybody(), KEEP_ALIVE, &renewal).await.unwrap();
    let streamed = bench.upstream.streamed.lock();
    assert!(streamed.iter().all(|message| *message == renewal.encode_to_vec()));
    assert_eq!(streamed.len(), keepalive::STREAMS_MAX + 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_with_an_old_token_of_ours_is_sent_again_and_an_outage_ends_all() {
    let bench = Bench::following();
    bench.upstream_grant(8);
    *bench.upstream.old.lock() = 1;
    let renewal = pb::LeaseKeepAliveRequest { id: 8 };
    let renewed: pb::LeaseKeepAliveResponse = bench.call(&anybody(), KEEP_ALIVE, &renewal).await.unwrap();
    assert_eq!(renewed.ttl, 600);
    tokio::time::sleep(Duration::from_secs(300)).await;
    *bench.upstream.mood.lock() = Mood::Away;
    let refused = bench
        .call::<pb::LeaseKeepAliveResponse>(&anybody(), KEEP_ALIVE, &renewal)
        .await;
    assert_eq!(refused.unwrap_err().message(), not_sent().message());
}

#[tokio::test(start_paused = true)]
async fn locks_wait_upstream_for_as_long_as_their_client() {
    let bench = Bench::following();
    for id in [7, 8, 9] {
        bench.upstream_grant(id);
    }
    let path = "/v3lockpb.Lock/Lock";
    let lock = |lease| crate::pb::v3lockpb::LockRequest {
        name: "l".into(),
        lease,
    };
    let client = anybody();
    let held: crate::pb::v3lockpb::LockResponse = bench.call(&client, path, &lock(7)).await.unwrap();
    let second = lock(8);
    let mut waiting = Box::pin(bench.call::<crate::pb::v3lockpb::LockResponse>(&client, path, &second));
    let waited = tokio::time::timeout(Duration::from_secs(60), &mut waiting).await;
    assert!(waited.is_err(), "longer than any other request");
    let unlock = crate::pb::v3lockpb::UnlockRequest { key: held.key };
    let _: crate::pb::v3lockpb::UnlockResponse = bench.call(&client, "/v3lockpb.Lock/Unlock", &unlock).await.unwrap();
    let key = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().key;
    assert!(bench.store.get(&key).is_some());
    // However long its client wants to wait, the end of the process does not.
    let client = Client {
        metadata: vec![("grpc-timeout", "9H")],
        ..anybody()
    };
    let third = lock(9);
    let mut waiting = Box::pin(bench.call::<crate::pb::v3lockpb::LockResponse>(&client, path, &third));
    assert!(tokio::time::timeout(SOON, &mut waiting).await.is_err());
    bench.life.stop();
    let ended = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn members_and_status_are_the_upstreams_with_the_urls_of_the_replica() {
    let bench = Bench::following();
    let list = "/etcdserverpb.Cluster/MemberList";
    let members: pb::MemberListResponse = bench
        .call(&anybody(), list, &pb::MemberListRequest::default())
        .await
        .unwrap();
    assert_eq!(members.members[0].client_ur_ls, ["https://replica:2379"]);
    assert_ne!(members.members[0].id, bench.core.config.identity.member_id);
    assert_eq!(bench.upstream.take_sent(), ["MemberList"]);
    let maintenance = |method: &str| format!("/etcdserverpb.Maintenance/{method}");
    let shown: pb::StatusResponse = bench
        .call(&anybody(), &maintenance("Status"), &pb::StatusRequest {})
        .await
        .unwrap();
    assert_eq!(
        (shown.leader, shown.raft_term, &*shown.version),
        (LEADER, TERM, "3.6.16")
    );
    let _: pb::DefragmentResponse = bench
        .call(&anybody(), &maintenance("Defragment"), &pb::DefragmentRequest {})
        .await
        .unwrap();
    let hash_kv = pb::HashKvRequest { revision: 0 };
    let _: pb::HashKvResponse = bench.call(&anybody(), &maintenance("HashKV"), &hash_kv).await.unwrap();
    assert!(bench.upstream.take_sent().is_empty());
    *bench.upstream.exact.lock() = false;
    let _: pb::HashKvResponse = bench.call(&anybody(), &maintenance("HashKV"), &hash_kv).await.unwrap();
    let _: pb::AlarmResponse = bench
        .call(&anybody(), &maintenance("Alarm"), &pb::AlarmRequest::default())
        .await
        .unwrap();
    assert_eq!(bench.upstream.take_sent(), ["HashKV", "Alarm"]);
    let moved = bench
        .call::<pb::MoveLeaderResponse>(
            &anybody(),
            &maintenance("MoveLeader"),
            &pb::MoveLeaderRequest::default(),
        )
        .await;
    assert_eq!(moved.unwrap_err().message(), "etcdserver: not leader");
    let down = bench
        .call::<pb::DowngradeResponse>(&anybody(), &maintenance("Downgrade"), &pb::DowngradeRequest::default())
        .await;
    assert!(down.unwrap_err().message().contains("member of the upstream cluster"));
}

#[tokio::test]
async fn a_snapshot_is_the_upstreams_and_for_another_replica_ours() {
    let bench = Bench::new();
    let blobs = async |client: &Client| {
        let request = futures::stream::once(async { Bytes::new() }).boxed();
        let path = "/etcdserverpb.Maintenance/Snapshot";
        let answers = bench::stream(&bench.router, path, None, client.metadata(), request)
            .await
            .unwrap();
        let sizes = answers.map(|answer| pb::SnapshotResponse::decode(answer.unwrap()).unwrap().blob.len());
        sizes.fold(0, |sum, size| async move { sum + size }).await
    };
    assert!(blobs(&anybody()).await > 0);
    assert_eq!(bench.upstream.take_sent(), ["Snapshot"]);
    let sister = Client {
        metadata: vec![(SISTER, "1")],
        ..anybody()
    };
    assert!(blobs(&sister).await > 0);
    assert!(bench.upstream.take_sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_may_have_no_snapshot_does_not_wait_for_those_who_may() {
    let bench = Bench::following();
    bench.enable_auth().await;
    let _taken = bench.core.snapshots.acquire().await.unwrap();
    let path = "/etcdserverpb.Maintenance/Snapshot";
    let kim = Client::named("kim");
    let asked = bench.call::<pb::SnapshotResponse>(&kim, path, &pb::SnapshotRequest {});
    let refused = tokio::time::timeout(SOON, asked).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let root = Client::named("root");
    let asked = bench.call::<pb::SnapshotResponse>(&root, path, &pb::SnapshotRequest {});
    assert!(tokio::time::timeout(SOON, asked).await.is_err(), "one at a time");
}

#[tokio::test(start_paused = true)]
async fn the_json_gateway_of_a_replica_forwards_and_reads_here() {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let bench = Bench::following();
    let post = async |path: &str, body: &'static str| {
        let request = axum::http::Request::post(path).body(Body::from(body)).unwrap();
        let Ok(response) = bench.router.clone().oneshot(request).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let done = post("/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
    assert!(done.contains(r#""revision":"2""#), "{done}");
    assert_eq!(bench.upstream.take_sent(), ["Put"]);
    let read = post("/v3/kv/range", r#"{"key":"YQ=="}"#).await;
    assert!(
        read.contains(r#""value":"MQ==""#) && read.contains(r#""cluster_id":"77""#),
        "{read}"
    );
    assert!(bench.upstream.take_sent().is_empty());
}
