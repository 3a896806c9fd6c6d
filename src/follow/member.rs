//! A connection to one member of the upstream: calls, watches, and what the member says of itself.

use super::error::Error;
use super::people::{Asked, People};
use super::wire::{Raw, WatchResponse};
use crate::kvstore::config::ClientConfig;
use crate::kvstore::dial::{self, Dialer, Transport, Window};
use crate::pb::etcdserverpb as pb;
use crate::server::upstream::{Credentials, Judge, NOBODY, is_old_token, is_unknown_token};
use crate::util::net::Keepalive;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// etcd takes pings at most every five seconds. A member that is cut off is noticed within ten.
const KEEPALIVE: Keepalive = Keepalive {
    interval: Duration::from_secs(6),
    timeout: Duration::from_secs(4),
};
/// Window of the connection of the feed and of a load, in bytes: a member of etcd that waits for its reader counts the
/// watcher among those that have to catch up.
const WIDE: u32 = 64 << 20;
/// Window of a call that a client reads at its own pace, in bytes.
const NARROW: u32 = 1 << 20;
/// The largest window of HTTP/2.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Limit for connecting, and for the first answers of a member.
const GREETING: Duration = Duration::from_secs(3);
/// Limit for a member's hash of all keys.
pub(super) const HASH: Duration = Duration::from_secs(60);
/// The limit of calls that wait for as long as their clients do.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Requests of a watch stream that wait for the transport.
const REQUESTS: usize = 8;
/// The lowest versions whose watches lose nothing.
const VERSIONS: [[u16; 3]; 2] = [[3, 5, 13], [3, 6, 0]];

/// The paths of the calls that the replica makes for itself.
pub(super) mod path {
    pub(in crate::follow) const RANGE: &str = "/etcdserverpb.KV/Range";
    pub(in crate::follow) const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
    pub(in crate::follow) const WATCH: &str = "/etcdserverpb.Watch/Watch";
    pub(in crate::follow) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
    pub(in crate::follow) const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
    pub(in crate::follow) const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
    pub(in crate::follow) const LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
    pub(in crate::follow) const LOCK: &str = "/v3lockpb.Lock/Lock";
    pub(in crate::follow) const CAMPAIGN: &str = "/v3electionpb.Election/Campaign";
    pub(in crate::follow) const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
}

/// The use of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Short calls.
    Calls,
    /// Calls that last as long as their clients want, whose answers are small.
    Waits,
    /// One stream that a client reads at its own pace.
    Stream,
    /// The feed and loads, whose messages must not wait for a reader.
    Feed,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
    pub(super) version: String,
    /// The id of the leader; 0 without a leader.
    pub(super) leader: u64,
    pub(super) term: u64,
    /// Bytes of the database file, and of what it holds.
    pub(super) db_size: i64,
    pub(super) db_size_in_use: i64,
    pub(super) is_learner: bool,
}

/// A connection to one member.
pub(super) struct Member {
    pub(super) endpoint: String,
    pub(super) facts: Facts,
    channel: Channel,
    people: Arc<People>,
    token: Option<MetadataValue<Ascii>>,
    made: Instant,
    /// Why the connection is of no use any more.
    broken: Mutex<Option<String>>,
}

/// Why a call failed.
pub(super) enum Failed {
    /// The time is up. The member may have executed the call, and may do so later.
    Late,
    /// An error of the member, or of the connection.
    Status(Status),
}

/// A watch stream of one member.
pub(super) struct WatchStream {
    endpoint: String,
    answers: Streaming<Bytes>,
    requests: mpsc::Sender<Bytes>,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Facts {
    fn of(status: pb::StatusResponse) -> Self {
        let header = status.header.unwrap_or_default();
        Self {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            version: status.version,
            leader: status.leader,
            term: status.raft_term,
            db_size: status.db_size,
            db_size_in_use: status.db_size_in_use,
            is_learner: status.is_learner,
        }
    }

    /// Whether the file of the database is mostly free pages, which a snapshot has to carry.
    pub(super) fn is_fragmented(&self) -> bool {
        self.db_size_in_use > 0 && self.db_size > 3 * self.db_size_in_use
    }

    /// The version as numbers.
    pub(super) fn version(&self) -> [u16; 3] {
        let mut numbers = self.version.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
        std::array::from_fn(|_| numbers.next().unwrap_or(0))
    }

    /// Fails if the member cannot be followed. `expected` is the followed cluster, or 0.
    pub(super) fn admit(&self, endpoint: &str, expected: u64) -> Result<(), Error> {
        let endpoint = endpoint.to_owned();
        if self.cluster_id == 0 {
            return Err(Error::Proxy(endpoint));
        }
        if !is_sound(self.version()) {
            let version = self.version.clone();
            return Err(Error::TooOld { endpoint, version });
        }
        if self.is_learner {
            return Err(Error::Learner(endpoint));
        }
        if expected != 0 && expected != self.cluster_id {
            let found = self.cluster_id;
            return Err(Error::OtherCluster {
                endpoint,
                found,
                expected,
            });
        }
        Ok(())
    }
}

/// Whether watches of this version of etcd lose nothing.
fn is_sound(found: [u16; 3]) -> bool {
    let [patched, newer] = VERSIONS;
    found >= newer || (found[..2] == patched[..2] && found >= patched)
}

impl Member {
    /// Connects to an endpoint, authenticates if the configuration has a password, and asks for the status.
    pub(super) async fn connect(
        config: &ClientConfig,
        people: Arc<People>,
        endpoint: &str,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let of_endpoint = ClientConfig {
            endpoints: vec![endpoint.to_owned()],
            ..config.clone()
        };
        let transport = Transport {
            keepalive: KEEPALIVE,
            window: match purpose {
                Purpose::Calls => None,
                Purpose::Waits => Some(Window {
                    call: NARROW,
                    // Clients that do not read must not stop the others.
                    connection: WINDOW_MAX,
                }),
                Purpose::Stream => Some(Window::both(NARROW)),
                Purpose::Feed => Some(Window::both(WIDE)),
            },
        };
        let channel = dial::channel(&of_endpoint, &Dialer::default(), transport).map_err(|source| Error::Client {
            endpoint: endpoint.to_owned(),
            source,
        })?;
        let mut member = Self {
            endpoint: endpoint.to_owned(),
            facts: Facts::default(),
            channel,
            people,
            token: None,
            made: Instant::now(),
            broken: Mutex::default(),
        };
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            member.token = member.authenticate(user, password).await?;
        }
        member.facts = member.ask_facts().await?;
        Ok(member)
    }

    /// What the member says of itself now.
    pub(super) async fn ask_facts(&self) -> Result<Facts, Error> {
        let status: pb::StatusResponse = self.ask(path::STATUS, &pb::StatusRequest {}, GREETING).await?;
        Ok(Facts::of(status))
    }

    async fn authenticate(&self, user: &str, password: &str) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let request = pb::AuthenticateRequest {
            name: user.to_owned(),
            password: password.to_owned(),
        };
        let answer = self.ask::<pb::AuthenticateResponse>(path::AUTHENTICATE, &request, GREETING);
        match answer.await {
            // As in Go's client, a store without authentication is sent no token.
            Err(error) if error.is_without_auth() => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => {
                let token = MetadataValue::try_from(answer.token);
                token
                    .map(Some)
                    .map_err(|_| self.invalid("a token that is no ASCII text"))
            }
        }
    }

    /// The time since the connection was made.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// Whether calls have a token of a password.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Notes that the connection is of no use any more; true the first time.
    pub(super) fn is_broken_by(&self, why: &str) -> bool {
        let mut broken = self.broken.lock();
        let is_first = broken.is_none();
        broken.get_or_insert_with(|| why.to_owned());
        is_first
    }

    /// An answer that no etcd would give.
    pub(super) fn invalid(&self, why: impl Into<String>) -> Error {
        Error::Invalid {
            endpoint: self.endpoint.clone(),
            why: why.into(),
        }
    }

    /// An error of a call.
    pub(super) fn failed(&self, status: Status) -> Error {
        Error::Call {
            endpoint: self.endpoint.clone(),
            status,
        }
    }

    fn grpc(&self) -> Grpc<Channel> {
        // The limits of messages are the upstream's.
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    /// The metadata of this replica's own calls.
    pub(super) fn metadata(&self) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        let signed = self.people.token(&Credentials::Replica).ok().flatten();
        let signed = signed.and_then(|token| MetadataValue::try_from(&*token).ok());
        if let Some(token) = signed.or_else(|| self.token.clone()) {
            metadata.insert("token", token);
        }
        metadata
    }

    /// The metadata of calls on behalf of this replica or of nobody.
    fn metadata_of(&self, who: &Credentials) -> MetadataMap {
        let mut metadata = self.metadata();
        if *who == Credentials::Nobody {
            metadata.insert("token", MetadataValue::from_static(NOBODY));
        }
        metadata
    }

    /// Makes a call, once; with a limit, for so long at most.
    pub(super) async fn unary(
        &self,
        path: &str,
        metadata: MetadataMap,
        request: Bytes,
        limit: Option<Duration>,
    ) -> Result<Bytes, Failed> {
        let mut grpc = self.grpc();
        let path = path_of(path)?;
        let mut request = Request::from_parts(metadata, http::Extensions::new(), request);
        if let Some(limit) = limit {
            request.set_timeout(limit);
        }
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
            grpc.unary(request, path, Raw).await
        };
        let limit = limit.unwrap_or(FOREVER);
        match timeout(limit, Box::pin(call)).await {
            Ok(answered) => Ok(answered?.into_inner()),
            Err(_) => Err(Failed::Late),
        }
    }

    /// Makes a call of this replica. See [`Member::ask_as`].
    pub(super) async fn ask<A: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, Error> {
        self.ask_as(&Credentials::Replica, path, request, limit).await
    }

    /// Makes a call of this replica. Where the upstream refuses a token that was made here, users and roles have changed: they
    /// are loaded, and the call is made again.
    pub(super) async fn ask_as<A: Message + Default>(
        &self,
        who: &Credentials,
        path: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, Error> {
        let request = Bytes::from(request.encode_to_vec());
        let mut answer = self
            .unary(path, self.metadata_of(who), request.clone(), Some(limit))
            .await;
        let refused = |status: &Status| match who {
            Credentials::Nobody => is_unknown_token(status),
            _ => is_old_token(status) && self.people.judge() == Judge::Upstream,
        };
        let refused = matches!(&answer, Err(Failed::Status(status)) if refused(status));
        if refused && self.people.reload(self).await.is_ok() {
            answer = self.unary(path, self.metadata(), request, Some(limit)).await;
        }
        let answer = answer.map_err(|failed| match failed {
            Failed::Late => Error::Timeout {
                endpoint: self.endpoint.clone(),
                limit,
            },
            Failed::Status(status) => self.failed(status),
        })?;
        A::decode(answer).map_err(|e| self.invalid(e.to_string()))
    }

    /// Begins a call whose answers, and maybe requests, are streams.
    pub(super) async fn stream(
        &self,
        path: &str,
        metadata: MetadataMap,
        requests: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = self.grpc();
        let path = path_of(path)?;
        let request = Request::from_parts(metadata, http::Extensions::new(), requests);
        grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
        Ok(Box::pin(grpc.streaming(request, path, Raw)).await?.into_inner())
    }

    /// Begins a call of this replica whose answers are a stream.
    pub(super) async fn ask_for_stream(
        &self,
        path: &str,
        metadata: MetadataMap,
        request: &impl Message,
    ) -> Result<Streaming<Bytes>, Error> {
        let request = Bytes::from(request.encode_to_vec());
        let requests = futures::stream::once(async move { request });
        let stream = self.stream(path, metadata, requests).await;
        stream.map_err(|status| self.failed(status))
    }

    /// Watches every key from revision `start` on; 0 begins with the next revision.
    pub(super) async fn watch(&self, start: i64) -> Result<WatchStream, Error> {
        let mut metadata = self.metadata();
        // A member without a leader ends the stream, so that another member is tried.
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        let (requests, queue) = mpsc::channel(REQUESTS);
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: Bytes::from_static(&[0]),
                range_end: Bytes::from_static(&[0]),
                start_revision: start,
                fragment: true,
                ..pb::WatchCreateRequest::default()
            })),
        };
        let queued = requests.try_send(create.encode_to_vec().into());
        debug_assert!(queued.is_ok(), "a new queue has room");
        let begun = self.stream(path::WATCH, metadata, ReceiverStream::new(queue));
        // The first answer confirms the creation, whatever the start.
        let begun = timeout(GREETING, begun).await.map_err(|_| Error::Timeout {
            endpoint: self.endpoint.clone(),
            limit: GREETING,
        })?;
        Ok(WatchStream {
            endpoint: self.endpoint.clone(),
            answers: begun.map_err(|status| self.failed(status))?,
            requests,
        })
    }
}

#[tonic::async_trait]
impl Asked for Member {
    async fn answer(&self, path: &str, who: &Credentials, request: Bytes) -> Result<Bytes, Status> {
        let answer = self.unary(path, self.metadata_of(who), request, Some(GREETING)).await;
        answer.map_err(|failed| match failed {
            Failed::Late => Status::deadline_exceeded(format!("no answer in {} s", GREETING.as_secs())),
            Failed::Status(status) => status,
        })
    }
}

/// The path of a call.
fn path_of(path: &str) -> Result<PathAndQuery, Status> {
    path.parse()
        .map_err(|_| Status::internal(format!("{path:?} is no path of a call")))
}

impl WatchStream {
    /// The next message. Cancellation safe.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Error> {
        let failed = |status| Error::Call {
            endpoint: self.endpoint.clone(),
            status,
        };
        match self.answers.next().await {
            Some(Ok(bytes)) => WatchResponse::decode(bytes).map_err(|e| Error::Invalid {
                endpoint: self.endpoint.clone(),
                why: e.to_string(),
            }),
            Some(Err(status)) => Err(failed(status)),
            None => Err(failed(Status::unavailable("the watch stream ended"))),
        }
    }

    /// Asks up to which revision everything was sent. A request too many is left out: the answers say the same.
    pub(super) fn ask_progress(&self) {
        let request = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::ProgressRequest(
                pb::WatchProgressRequest {},
            )),
        };
        let _ = self.requests.try_send(request.encode_to_vec().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_whose_watches_lose_events_are_refused() {
        let is_sound = |version: &str| {
            let version = version.to_owned();
            let facts = Facts {
                version,
                ..Facts::default()
            };
            is_sound(facts.version())
        };
        for sound in ["3.5.13", "3.5.21", "3.6.0", "3.6.16", "3.7.3", "4.0.0", "3.7.0-rc.1"] {
            assert!(is_sound(sound), "{sound}");
        }
        for unsound in ["3.5.12", "3.4.30", "3.5", "", "not a version", "2.3.8"] {
            assert!(!is_sound(unsound), "{unsound}");
        }
    }

    #[test]
    fn a_proxy_a_learner_and_another_cluster_are_refused_by_name() {
        let sound = Facts {
            cluster_id: 7,
            version: "3.7.3".to_owned(),
            ..Facts::default()
        };
        assert!(sound.admit("http://a:1", 0).is_ok() && sound.admit("http://a:1", 7).is_ok());
        let proxy = Facts {
            cluster_id: 0,
            ..sound.clone()
        };
        let learner = Facts {
            is_learner: true,
            ..sound.clone()
        };
        let old = Facts {
            version: "3.5.0".to_owned(),
            ..sound.clone()
        };
        for (facts, expected, part) in [
            (&proxy, 7, "is a grpc-proxy"),
            (&learner, 7, "is a learner"),
            (&old, 7, "upgrade it to 3.5.13"),
            (&sound, 8, "belongs to cluster 7, and this replica follows cluster 8"),
        ] {
            let error = facts.admit("http://a:1", expected).unwrap_err().to_string();
            assert!(error.starts_with("http://a:1") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_of_free_pages_is_noticed() {
        let facts = |db_size, db_size_in_use| Facts {
            db_size,
            db_size_in_use,
            ..Facts::default()
        };
        assert!(facts(400, 100).is_fragmented());
        assert!(!facts(300, 100).is_fragmented() && !facts(400, 0).is_fragmented());
    }
}
