//! Renewals of leases, over a few streams that all clients of an identity share.
//!
//! etcd handles the renewals of one stream one after the other, and a member that does not lead asks the leader for each.
//! So a stream for each client would cost upstream memory, and one stream for all of them time. The streams of an identity
//! divide the leases among them, so that the renewals of a lease stay in order.

use crate::pb::etcdserverpb as pb;
use crate::server::commit::REQUEST_TIMEOUT;
use crate::server::upstream::{Credentials, Upstream, is_old_token, lost};
use crate::server::{Core, status};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};
use parking_lot::Mutex;
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

const PATH: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Streams of one identity.
const STREAMS: i64 = 8;
/// Streams of all identities. They share a connection with all calls, and Isthmus takes a thousand calls of a connection.
pub(super) const STREAMS_MAX: usize = 512;
/// Renewals that one stream has in flight, and as many that wait.
const QUEUE: usize = 64;
/// A stream without renewals ends after this time.
const IDLE: Duration = Duration::from_secs(60);
/// How long a stream is used. etcd looks at the token of a stream for each renewal, so the stream ends before its token.
const AGE: Duration = Duration::from_secs(120);

/// Who renews, and which of the identity's streams the lease belongs to.
type Slot = (Credentials, i64);

/// The queues of the streams that are in use.
#[derive(Default)]
pub(super) struct KeepAlives(Mutex<HashMap<Slot, Queue>>);

/// The queue of a stream.
#[derive(Clone)]
struct Queue {
    renewals: mpsc::Sender<Renewal>,
    /// Shared by everybody who waits for a renewal of this stream.
    in_use: Arc<()>,
}

impl Queue {
    /// Whether nobody waits for a renewal. The caller holds the lock under which queues are handed out.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.in_use) == 1
    }
}

/// A renewal that waits for its answer.
struct Renewal {
    lease: i64,
    message: Bytes,
    since: Instant,
    answer: oneshot::Sender<Result<Bytes, Status>>,
    /// Whether the renewal was sent again because of a token of ours.
    again: bool,
}

/// The renewals of one slot, and the stream that takes them upstream.
struct Renewals {
    upstream: Arc<dyn Upstream>,
    who: Credentials,
    queue: mpsc::Receiver<Renewal>,
    /// What was sent, in order. At most [`QUEUE`].
    waiting: VecDeque<Renewal>,
}

impl Core {
    /// Renews a lease upstream.
    pub(super) async fn renew(
        &self,
        upstream: &Arc<dyn Upstream>,
        who: Credentials,
        lease: i64,
    ) -> Result<Bytes, Status> {
        // Not the message of the client: one that upstream cannot read would end a stream which others use, too.
        let message = pb::LeaseKeepAliveRequest { id: lease }.encode_to_vec().into();
        let (answer, answered) = oneshot::channel();
        let mut renewal = Renewal {
            lease,
            message,
            since: Instant::now(),
            answer,
            again: false,
        };
        let slot = (who, lease.rem_euclid(STREAMS));
        let renewed = async {
            let _in_use = loop {
                let Queue { renewals, in_use } = self.renewals(upstream, &slot)?;
                match renewals.send(renewal).await {
                    Ok(()) => break in_use,
                    // The stream has just ended.
                    Err(mpsc::error::SendError(back)) => renewal = back,
                }
            };
            answered.await.unwrap_or_else(|_| Err(lost()))
        };
        let renewed = tokio::time::timeout(REQUEST_TIMEOUT, renewed).await;
        renewed.unwrap_or_else(|_| Err(lost()))
    }

    /// The queue of a slot. Starts its task if there is none.
    fn renewals(&self, upstream: &Arc<dyn Upstream>, slot: &Slot) -> Result<Queue, Status> {
        let mut queues = self.forwarding.keep_alives.0.lock();
        if let Some(queue) = queues.get(slot).filter(|queue| !queue.renewals.is_closed()) {
            return Ok(queue.clone());
        }
        if queues.len() >= STREAMS_MAX {
            // Anybody can come with any number of tokens, and must not keep others out.
            queues.retain(|_, queue| !queue.renewals.is_closed() && !queue.is_idle());
            if queues.len() >= STREAMS_MAX {
                return Err(status::too_many_requests());
            }
        }
        let (renewals, queue) = mpsc::channel(QUEUE);
        let shared = Queue {
            renewals,
            in_use: Arc::default(),
        };
        queues.insert(slot.clone(), shared.clone());
        let renewals = Renewals {
            upstream: Arc::clone(upstream),
            who: slot.0.clone(),
            queue,
            waiting: VecDeque::new(),
        };
        let stop = self.stop.clone();
        self.life.spawn_part("renewals of leases", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = renewals.run() => {}
            }
        });
        Ok(shared)
    }
}

impl Renewals {
    /// Renews until nobody has asked for a while.
    async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match tokio::time::timeout(IDLE, self.queue.recv()).await {
                    Ok(Some(renewal)) => self.waiting.push_back(renewal),
                    Ok(None) => return,
                    // Whoever comes from now on gets another task. What came before is still taken.
                    Err(_) => {
                        self.queue.close();
                        continue;
                    }
                }
            }
            self.over_one_stream().await;
        }
    }

    /// Renews over one stream, until it ends or is too old.
    async fn over_one_stream(&mut self) {
        let (requests, received) = mpsc::channel(QUEUE);
        for renewal in &self.waiting {
            // There is room for everything that may be in flight.
            let _ = requests.try_send(renewal.message.clone());
        }
        let mut answers = self.open(received);
        let (opened, mut open) = (Instant::now(), true);
        loop {
            let taking = open && self.waiting.len() < QUEUE && opened.elapsed() < AGE;
            let due = match self.waiting.front() {
                Some(front) => front.since + REQUEST_TIMEOUT,
                None if taking => opened + AGE,
                None => return,
            };
            tokio::select! {
                renewal = self.queue.recv(), if taking => match renewal {
                    Some(renewal) => {
                        let _ = requests.try_send(renewal.message.clone());
                        self.waiting.push_back(renewal);
                    }
                    None => open = false,
                },
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => {
                        if !self.answered(answer) {
                            return;
                        }
                    }
                    Some(Err(status)) => return self.failed(status).await,
                    None => return self.fail_all(&lost()),
                },
                () = tokio::time::sleep_until(due) => match self.waiting.is_empty() {
                    true => return,
                    false => return self.fail_all(&lost()),
                },
            }
        }
    }

    fn open(&self, requests: mpsc::Receiver<Bytes>) -> BoxStream<'static, Result<Bytes, Status>> {
        let (upstream, who) = (Arc::clone(&self.upstream), self.who.clone());
        let requests = ReceiverStream::new(requests).boxed();
        // etcd answers a stream at all only with its first renewal.
        let opening = async move { upstream.stream(PATH, &who, &MetadataMap::new(), requests).await };
        opening.try_flatten_stream().boxed()
    }

    /// Passes an answer to whoever has waited longest; whether it was the answer to that renewal.
    fn answered(&mut self, answer: Bytes) -> bool {
        let lease = pb::LeaseKeepAliveResponse::decode(answer.clone()).map(|response| response.id);
        match self.waiting.pop_front() {
            Some(renewal) if lease.as_ref() == Ok(&renewal.lease) => {
                // The client may have gone.
                let _ = renewal.answer.send(Ok(answer));
                true
            }
            _ => {
                tracing::error!("upstream answered keepalives out of order: their stream ends");
                self.fail_all(&lost());
                false
            }
        }
    }

    /// Upstream ended the stream with an error, which is about the oldest renewal or about all of them.
    async fn failed(&mut self, status: Status) {
        let about_all = matches!(
            status.code(),
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::DeadlineExceeded
        );
        if about_all {
            return self.fail_all(&status);
        }
        let Some(mut oldest) = self.waiting.pop_front() else {
            return;
        };
        let own = !matches!(self.who, Credentials::Token(_));
        let stale = is_old_token(&status) || status.code() == Code::Unauthenticated;
        if own && stale && !oldest.again && self.upstream.reload_users().await.is_ok() {
            oldest.again = true;
            self.waiting.push_front(oldest);
            return;
        }
        let _ = oldest.answer.send(Err(status));
    }

    fn fail_all(&mut self, status: &Status) {
        for renewal in self.waiting.drain(..) {
            let _ = renewal.answer.send(Err(status.clone()));
        }
    }
}
