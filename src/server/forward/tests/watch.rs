//! Watches of a replica never leave it.

use super::*;
use crate::pb::WatchHead;
use pb::watch_request::RequestUnion as W;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A stream of watch requests and its answers, without events.
struct Stream {
    requests: mpsc::Sender<Bytes>,
    answers: BoxStream<'static, Result<Bytes, Status>>,
}

impl Stream {
    async fn open(bench: &Bench) -> Self {
        let (requests, received) = mpsc::channel(8);
        let answers = bench::stream(
            &bench.router,
            WATCH,
            None,
            MetadataMap::new(),
            ReceiverStream::new(received).boxed(),
        );
        Self {
            requests,
            answers: answers.await.unwrap(),
        }
    }

    fn send(&self, request: W) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.try_send(request.encode_to_vec().into()).unwrap();
    }

    fn create(&self, start_revision: i64) {
        self.send(W::CreateRequest(pb::WatchCreateRequest {
            key: "a".into(),
            start_revision,
            ..Default::default()
        }));
    }

    async fn next(&mut self) -> WatchHead {
        let answer = self.answers.next().await.unwrap().unwrap();
        WatchHead::decode(answer).unwrap()
    }
}

fn write(bench: &Bench, value: &'static str) {
    let write = crate::mvcc::Write::Put("a".into(), value.into());
    bench.upstream.store.apply(&[write]);
}

#[tokio::test(start_paused = true)]
async fn headers_and_progress_of_watches_are_those_of_the_followed_cluster() {
    let bench = Bench::new();
    ["1", "2", "3"].iter().for_each(|value| write(&bench, value));
    bench.follow_to(3);
    let mut stream = Stream::open(&bench).await;
    stream.create(0);
    let created = stream.next().await;
    let header = created.header.unwrap();
    assert!(created.created && !created.canceled);
    assert_eq!((header.cluster_id, header.raft_term), (CLUSTER, TERM));
    assert_eq!(header.revision, 3, "what is here, not what the upstream has");
    stream.send(W::ProgressRequest(pb::WatchProgressRequest {}));
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, revision(&progress.header)), (-1, 3));
    bench.follow_to(4);
    let event = stream.next().await;
    assert_eq!((event.watch_id, revision(&event.header)), (0, 4));
    assert!(bench.upstream.take_sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_below_the_floor_ends_as_compacted_and_one_from_the_future_waits() {
    let bench = Bench::new();
    ["1", "2", "3"].iter().for_each(|value| write(&bench, value));
    bench.follow_to(4);
    bench.store.compact(3).unwrap();
    let mut stream = Stream::open(&bench).await;
    stream.create(2);
    assert!(stream.next().await.created);
    let ended = stream.next().await;
    assert!(ended.canceled);
    assert_eq!(
        ended.compact_revision, 3,
        "the floor here, although the upstream has more"
    );
    stream.create(6);
    assert!(stream.next().await.created);
    write(&bench, "4");
    bench.follow_to(5);
    let quiet = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    assert!(quiet.is_err(), "revision 5 was not asked for");
    write(&bench, "5");
    bench.follow_to(6);
    assert_eq!(revision(&stream.next().await.header), 6);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_after_everything_that_the_upstream_has_is_cancelled_where_that_is_wanted() {
    let bench = Bench::configured(|config| config.cancel_impossible_watches = true);
    ["1", "2", "3", "4"].iter().for_each(|value| write(&bench, value));
    bench.follow_to(3);
    let mut stream = Stream::open(&bench).await;
    // The upstream is at revision 5: whoever saw that resumes at 6, here, too.
    stream.create(6);
    let possible = stream.next().await;
    assert!(possible.created);
    *bench.upstream.mood.lock() = Mood::Away;
    stream.create(7);
    let impossible = stream.next().await;
    assert!(impossible.created, "nothing is known while the upstream is away");
    let quiet = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    assert!(quiet.is_err());
    *bench.upstream.mood.lock() = Mood::Works;
    let ended = stream.next().await;
    assert_eq!((ended.watch_id, ended.canceled), (impossible.watch_id, true));
    assert!(ended.compact_revision > 0, "its client lists");
    write(&bench, "5");
    bench.follow_to(6);
    let event = stream.next().await;
    assert_eq!((event.watch_id, revision(&event.header)), (possible.watch_id, 6));
}
