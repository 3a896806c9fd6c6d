//! Forwarding: what a replica passes on to its upstream.
//!
//! A message goes upstream byte by byte, so that fields that are not known here survive, and the answer comes back in the
//! same way. What is decoded is decoded for the checks here alone. No call is repeated, since nobody knows whether a call
//! without an answer was executed; [`upstream::not_sent`](super::upstream::not_sent) tells the client when a repetition is
//! safe. An answer is held until its revision is here, so that the client reads its own writes here.

mod codec;
mod keepalive;
mod leases;
mod methods;
mod rights;
#[cfg(test)]
mod tests;

use super::admission::{Call, Caller, Operation};
use super::commit::REQUEST_TIMEOUT;
use super::compaction::Haste;
use super::fresh::Freshness;
use super::kv::KvService;
use super::observe;
use super::turns::Done;
use super::upstream::{Credentials, SISTER, Upstream, is_old_token, is_unknown_token, lost, not_sent};
use super::{Core, status};
use crate::pb::etcdserverpb as pb;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use codec::{Raw, Reply};
use futures::stream::{BoxStream, StreamExt};
use keepalive::KeepAlives;
use methods::{Handling, PLAIN, Patience, Read, Then, Unary, handling};
use pb::kv_server::Kv;
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use rights::decode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};
use tower::service_fn;

/// How long an answer is held until its revision is here.
const HOLD: Duration = Duration::from_secs(2);
const ALARMS: &str = "/etcdserverpb.Maintenance/Alarm";
/// Time between two looks at the alarms of upstream, and the limit for one.
const ALARMS_EVERY: Duration = Duration::from_secs(1);
/// The metadata that means something to an etcd, beside credentials.
const METADATA: [&str; 4] = ["hasleader", "client-api-version", "traceparent", "tracestate"];

/// Reads of history that is not here, at a time.
const OLD_READS: usize = 2;

type Answers<T> = BoxStream<'static, Result<Reply<T>, Status>>;

/// The state of forwarding.
#[derive(Default)]
pub(super) struct Forwarding {
    keep_alives: KeepAlives,
    /// Permits for reads of history that is not here. Their answers are collected before anything of them is sent.
    old_reads: OldReads,
    /// The alarms of upstream, for callers that are denied here.
    alarms: tokio::sync::Mutex<Option<KnownAlarms>>,
    /// Answers that were sent before their revision was here.
    pub(super) unheld: Counter,
}

struct OldReads(Semaphore);

impl Default for OldReads {
    fn default() -> Self {
        Self(Semaphore::new(OLD_READS))
    }
}

struct KnownAlarms {
    at: Instant,
    active: Vec<pb::AlarmMember>,
}

/// The handler of one call.
#[derive(Clone)]
struct Forward {
    core: Arc<Core>,
    upstream: Arc<dyn Upstream>,
    /// Its path names the method.
    uri: Uri,
}

/// A call on its way upstream. Its checks here have passed.
struct Outgoing {
    caller: Caller,
    operation: Operation,
    who: Credentials,
    metadata: MetadataMap,
    message: Bytes,
    patience: Patience,
    deadline: Option<Instant>,
}

impl Core {
    /// The middleware of a replica in front of the gRPC services.
    pub(super) async fn forward(self: Arc<Self>, request: Request, next: Next) -> Response {
        let handling = handling(request.uri().path());
        let (Some(upstream), Some(handling)) = (self.upstream.clone(), handling) else {
            return next.run(request).await;
        };
        let forward = Forward {
            core: self,
            upstream,
            uri: request.uri().clone(),
        };
        match handling {
            Handling::Here | Handling::Refused => next.run(request).await,
            Handling::Read(Read::Range) => forward.range(request).await,
            Handling::Read(Read::RangeStream) => forward.range_stream(request).await,
            Handling::Txn => forward.txn(request).await,
            Handling::Unary(unary) => forward.unary(request, unary).await,
            Handling::Stream => forward.stream(request).await,
            Handling::KeepAlive => forward.keep_alive(request).await,
            Handling::Hash if forward.upstream.is_exact() => next.run(request).await,
            Handling::Hash => forward.unary(request, PLAIN).await,
            // A state from lists has no order inside of revisions, so that no snapshot can be made of it.
            Handling::Snapshot if request.headers().contains_key(SISTER) && forward.upstream.is_exact() => {
                next.run(request).await
            }
            Handling::Snapshot => forward.snapshot(request).await,
        }
    }

    /// Whether a read at `revision` needs history that is not here, and may be upstream.
    fn is_below_floor(&self, revision: i64) -> bool {
        revision > 0 && revision < self.store.compacted()
    }

    /// Holds an answer until its revision is here. A call that was executed has an answer also if that takes too long.
    async fn hold(&self, answer: &Bytes) {
        let revision = revision_of(answer);
        if revision > 0 && !self.reached(revision, HOLD).await {
            self.forwarding.unheld.inc();
            tracing::debug!(revision, "an answer was sent before its revision was here");
        }
    }
}

/// The revision in the header of an answer; 0 if there is none. The header is the first field of every answer.
fn revision_of(answer: &Bytes) -> i64 {
    #[derive(Clone, PartialEq, Message)]
    struct Headed {
        #[prost(message, optional, tag = "1")]
        header: Option<pb::ResponseHeader>,
    }
    let headed = Headed::decode(answer.clone()).unwrap_or_default();
    headed.header.map_or(0, |header| header.revision)
}

/// Whether upstream refused a token that was made here. Another one may be taken.
fn is_about_our_token(status: &Status, who: &Credentials) -> bool {
    match who {
        Credentials::Token(_) => false,
        Credentials::Nobody => is_unknown_token(status),
        Credentials::User(_) | Credentials::Replica => is_old_token(status),
    }
}

fn metadata_of(request: &MetadataMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for key in METADATA {
        if let Some(value) = request.get(key) {
            metadata.insert(key, value.clone());
        }
    }
    metadata
}

fn grpc<T: Message + Send + 'static>(core: &Core) -> tonic::server::Grpc<Raw<T>> {
    tonic::server::Grpc::new(Raw::default()).max_decoding_message_size(core.message_limit())
}

fn passed<T>(response: tonic::Response<Bytes>) -> tonic::Response<Reply<T>> {
    response.map(Reply::Passed)
}

// === The shapes of calls ===

impl Forward {
    async fn range(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Bytes>| {
            let this = self.clone();
            async move {
                let message: pb::RangeRequest = decode(request.get_ref())?;
                if this.core.is_below_floor(message.revision) {
                    let operation = rights::operation(this.uri.path(), request.get_ref())?;
                    return this.pass_old_read(request, operation).await.map(passed);
                }
                let service = KvService(Arc::clone(&this.core));
                let response = service.range(request.map(|_| message)).await?;
                Ok(response.map(Reply::Made))
            }
        };
        let mut grpc = grpc::<pb::RangeResponse>(&self.core);
        grpc.unary(service_fn(handler), request).await.map(Body::new)
    }

    async fn range_stream(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Bytes>| {
            let this = self.clone();
            async move {
                let message: pb::RangeRequest = decode(request.get_ref())?;
                if this.core.is_below_floor(message.revision) {
                    // Each takes a connection of its own: a few at a time, as here.
                    let few = Arc::clone(&Caller::of(&request).peer().connection.documents);
                    return this.pass_stream(request, Some(few)).await;
                }
                let service = KvService(Arc::clone(&this.core));
                let response = service.range_stream(request.map(|_| message)).await?;
                Ok(response.map(|answers| answers.map(|answer| answer.map(Reply::Made)).boxed()))
            }
        };
        let mut grpc = grpc::<pb::RangeStreamResponse>(&self.core);
        grpc.server_streaming(service_fn(handler), request).await.map(Body::new)
    }

    async fn txn(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Bytes>| {
            let this = self.clone();
            async move {
                let message: pb::TxnRequest = decode(request.get_ref())?;
                let service = KvService(Arc::clone(&this.core));
                let checked = service.check(&Caller::of(&request), &message).await?;
                if !checked.read_only {
                    return this.pass(request, checked.operation, PLAIN).await.map(passed);
                }
                if checked
                    .oldest
                    .is_some_and(|revision| this.core.is_below_floor(revision))
                {
                    return this.pass_old_read(request, checked.operation).await.map(passed);
                }
                Ok(service.txn(request.map(|_| message)).await?.map(Reply::Made))
            }
        };
        let mut grpc = grpc::<pb::TxnResponse>(&self.core);
        grpc.unary(service_fn(handler), request).await.map(Body::new)
    }

    async fn unary(self, request: Request, how: Unary) -> Response {
        let handler = |request: tonic::Request<Bytes>| {
            let this = self.clone();
            async move {
                let operation = rights::operation(this.uri.path(), request.get_ref())?;
                this.pass(request, operation, how).await.map(passed)
            }
        };
        let mut grpc = grpc::<()>(&self.core);
        grpc.unary(service_fn(handler), request).await.map(Body::new)
    }

    async fn stream(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Bytes>| self.clone().pass_stream(request, None);
        let mut grpc = grpc::<()>(&self.core);
        grpc.server_streaming(service_fn(handler), request).await.map(Body::new)
    }

    async fn snapshot(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Bytes>| {
            // Each snapshot takes time of upstream, so one at a time, as here.
            let one = Arc::clone(&self.core.snapshots);
            self.clone().pass_stream(request, Some(one))
        };
        let mut grpc = grpc::<()>(&self.core);
        grpc.server_streaming(service_fn(handler), request).await.map(Body::new)
    }

    async fn keep_alive(self, request: Request) -> Response {
        let handler = |request: tonic::Request<Streaming<Bytes>>| {
            let this = self.clone();
            async move { Ok(tonic::Response::new(this.renewals(request))) }
        };
        let mut grpc = grpc::<()>(&self.core);
        grpc.streaming(service_fn(handler), request).await.map(Body::new)
    }
}

// === The way upstream ===

impl Forward {
    /// Checks what is checked here, and says on whose behalf the call goes on.
    async fn vouch(&self, caller: &Caller, operation: &Operation) -> Result<Credentials, Status> {
        let who = caller.credentials(&self.core.auth, self.upstream.judge());
        match who {
            Credentials::Replica | Credentials::Nobody => {
                if self.core.admission.rests_on_lease(caller, operation) {
                    // A key that was put on the lease elsewhere, a moment ago, may be one that the caller must not touch.
                    self.core.fresh(Freshness::Latest).await.map_err(|_| not_sent())?;
                }
                if let Err(refused) = self.core.admit(caller, operation).await {
                    return Err(self.alarm_before(caller, operation).await.unwrap_or(refused));
                }
            }
            Credentials::Token(_) | Credentials::User(_) => {
                self.core.admission.admit_for_upstream(caller, operation).await?;
            }
        }
        Ok(who)
    }

    /// The alarm that etcd tells a caller of before it denies the call. Upstream is asked once a second at most, because each
    /// answer is an entry in the log of an etcd.
    async fn alarm_before(&self, caller: &Caller, operation: &Operation) -> Option<Status> {
        let before = self.core.admission.alarms_before_refusal(caller, operation);
        if before.is_empty() {
            return None;
        }
        let mut known = self.core.forwarding.alarms.lock().await;
        if known.as_ref().is_none_or(|known| known.at.elapsed() >= ALARMS_EVERY) {
            let call = Outgoing {
                caller: Caller::default(),
                operation: Operation::new(Call::MaintenanceRead),
                who: Credentials::Replica,
                metadata: MetadataMap::new(),
                // The action GET, and all alarms.
                message: Bytes::new(),
                patience: Patience::Request,
                deadline: Some(Instant::now() + ALARMS_EVERY),
            };
            let answer = self.send_to(ALARMS, &call).await.ok();
            let answer = answer.and_then(|answer| decode::<pb::AlarmResponse>(&answer).ok());
            *known = Some(KnownAlarms {
                at: Instant::now(),
                active: answer.map(|answer| answer.alarms).unwrap_or_default(),
            });
        }
        let active = |kind| {
            known
                .iter()
                .flat_map(|known| &known.active)
                .any(|alarm| alarm.alarm() == kind)
        };
        before
            .into_iter()
            .find(|(kind, _)| active(*kind))
            .map(|(_, status)| status)
    }

    async fn outgoing(
        &self,
        request: tonic::Request<Bytes>,
        operation: Operation,
        patience: Patience,
    ) -> Result<Outgoing, Status> {
        let caller = Caller::of(&request);
        let who = self.vouch(&caller, &operation).await?;
        let of_client = observe::deadline(request.metadata().as_ref());
        let time = match patience {
            Patience::Request => Some(of_client.map_or(REQUEST_TIMEOUT, |time| time.min(REQUEST_TIMEOUT))),
            Patience::Client => of_client,
        };
        Ok(Outgoing {
            caller,
            operation,
            who,
            metadata: metadata_of(request.metadata()),
            message: request.into_inner(),
            patience,
            deadline: time.map(|time| Instant::now() + time),
        })
    }

    /// Passes a unary call on.
    async fn pass(
        &self,
        request: tonic::Request<Bytes>,
        operation: Operation,
        how: Unary,
    ) -> Result<tonic::Response<Bytes>, Status> {
        let mut call = self.outgoing(request, operation, how.patience).await?;
        if how.then == Then::CountLease {
            self.core.may_grant_upstream(call.caller.peer())?;
        }
        let answer = match how.then {
            Then::RememberToken => self.log_in(&mut call).await?,
            _ => self.send(&mut call).await?,
        };
        self.core.hold(&answer).await;
        let answer = self.follow_up(&call, answer, how.then).await?;
        let bytes = answer.len();
        self.core
            .answer(call.caller.peer(), Done::default(), bytes, answer)
            .await
    }

    /// Passes a read of history on that is not here.
    async fn pass_old_read(
        &self,
        request: tonic::Request<Bytes>,
        operation: Operation,
    ) -> Result<tonic::Response<Bytes>, Status> {
        // Whoever may not read must not wait for others.
        self.vouch(&Caller::of(&request), &operation).await?;
        let _permit = self.core.forwarding.old_reads.0.acquire().await;
        self.pass(request, operation, PLAIN).await
    }

    /// Sends a call and waits for its answer. A call that upstream refused because of a token of ours is checked and sent again
    /// with a new one: a refused call was not executed.
    async fn send(&self, call: &mut Outgoing) -> Result<Bytes, Status> {
        let mut answer = self.send_once(call).await;
        if let Err(status) = &answer
            && is_about_our_token(status, &call.who)
        {
            self.vouch_anew(call).await?;
            answer = self.send_once(call).await;
        }
        answer.inspect_err(|status| {
            if status.code() == Code::PermissionDenied {
                self.core.admission.refused_by_upstream(&call.caller);
            }
        })
    }

    /// Checks a call with the present users of upstream.
    async fn vouch_anew(&self, call: &mut Outgoing) -> Result<(), Status> {
        self.upstream.reload_users().await?;
        call.who = self.vouch(&call.caller, &call.operation).await?;
        Ok(())
    }

    async fn send_once(&self, call: &Outgoing) -> Result<Bytes, Status> {
        self.send_to(self.uri.path(), call).await
    }

    async fn send_to(&self, path: &str, call: &Outgoing) -> Result<Bytes, Status> {
        let Outgoing {
            who,
            metadata,
            message,
            patience,
            deadline,
            ..
        } = call;
        let sent = self.upstream.call(path, who, metadata, message.clone(), *deadline);
        let sent = async {
            match deadline {
                Some(deadline) => tokio::time::timeout_at(*deadline, sent)
                    .await
                    .unwrap_or_else(|_| Err(lost())),
                None => sent.await,
            }
        };
        match patience {
            Patience::Request => sent.await,
            // The call may wait for hours, and the process must not.
            Patience::Client => tokio::select! {
                answer = sent => answer,
                () = self.core.stop.cancelled() => Err(status::stopped()),
            },
        }
    }

    /// Passes a login on, which takes the time of a password check upstream.
    async fn log_in(&self, call: &mut Outgoing) -> Result<Bytes, Status> {
        let turn = self.core.login_turn(call.caller.peer()).await?;
        let answer = self.send(call).await;
        let wrong = Status::from(crate::auth::Error::AuthFailed);
        turn.end(answer.as_ref().is_err_and(|status| status.message() == wrong.message()));
        answer
    }

    /// Does what follows a call, and returns its answer as the client sees it.
    async fn follow_up(&self, call: &Outgoing, answer: Bytes, then: Then) -> Result<Bytes, Status> {
        match then {
            Then::Nothing => {}
            Then::Compact => self.compact(decode(&call.message)?).await,
            Then::CountLease => {
                let granted: pb::LeaseGrantResponse = decode(&answer)?;
                self.core.granted_upstream(call.caller.peer(), &granted);
            }
            Then::ForgetLease => {
                let revoked: pb::LeaseRevokeRequest = decode(&call.message)?;
                self.core.shares.revoked(call.caller.peer(), revoked.id);
            }
            Then::RememberToken => {
                let request: pb::AuthenticateRequest = decode(&call.message)?;
                let response: pb::AuthenticateResponse = decode(&answer)?;
                self.core.auth.remember(&response.token, &request.name);
            }
            Then::ReloadUsers => {
                if let Err(status) = self.upstream.reload_users().await {
                    tracing::warn!(
                        error = status.message(),
                        "users were changed, and cannot be loaded: the change is in force here a little later"
                    );
                }
            }
            Then::OwnUrls => {
                let mut list: pb::MemberListResponse = decode(&answer)?;
                for member in &mut list.members {
                    member.client_ur_ls.clone_from(&self.core.config.client_urls);
                }
                return Ok(list.encode_to_vec().into());
            }
            Then::ShowKeys if call.who == Credentials::Replica => {
                let shown: pb::LeaseTimeToLiveResponse = decode(&answer)?;
                let operation = Operation::show(shown.keys);
                self.core.admit(&call.caller, &operation).await?;
            }
            Then::ShowLeases if call.who == Credentials::Replica => {
                let shown: pb::LeaseLeasesResponse = decode(&answer)?;
                let ids: Vec<_> = shown.leases.into_iter().map(|lease| lease.id).collect();
                self.core.admit(&call.caller, &Operation::show_leases(&ids)).await?;
            }
            Then::ShowKeys | Then::ShowLeases => {}
        }
        Ok(answer)
    }

    /// Compacts here what was compacted upstream: a client that compacts does not want the history.
    async fn compact(&self, request: pb::CompactionRequest) {
        // A revision that is not here yet is compacted the next time.
        if self.core.store.compact(request.revision).is_ok() {
            self.core.compacted.notify_one();
            if request.physical {
                self.core.purge(request.revision, Haste::None).await;
            }
        }
    }

    /// Passes a call with a stream of answers on.
    async fn pass_stream<T: Send + 'static>(
        self,
        request: tonic::Request<Bytes>,
        permits: Option<Arc<Semaphore>>,
    ) -> Result<tonic::Response<Answers<T>>, Status> {
        let operation = rights::operation(self.uri.path(), request.get_ref())?;
        let mut call = self.outgoing(request, operation, Patience::Client).await?;
        // Only now: whoever may not make the call must not wait for others.
        let held = match permits {
            Some(permits) => Some(permits.acquire_owned().await.map_err(|_| status::stopped())?),
            None => None,
        };
        let stop = self.core.stop.clone();
        // The headers of an answer may come with its first message only.
        let mut answers = tokio::select! {
            opened = self.open(&mut call) => opened?,
            () = stop.cancelled() => return Err(status::stopped()),
        };
        let stream = async_stream::try_stream! {
            let _held = held;
            loop {
                let answer = tokio::select! {
                    answer = answers.next() => answer,
                    () = stop.cancelled() => Some(Err(status::stopped())),
                };
                let Some(answer) = answer else { break };
                yield Reply::Passed(answer?);
            }
        };
        Ok(tonic::Response::new(stream.boxed()))
    }

    /// Opens the stream of answers to a call.
    async fn open(&self, call: &mut Outgoing) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        let once = |call: &Outgoing| {
            let message = call.message.clone();
            let requests = futures::stream::once(async move { message }).boxed();
            let (upstream, path) = (Arc::clone(&self.upstream), self.uri.path().to_owned());
            let (who, metadata) = (call.who.clone(), call.metadata.clone());
            async move { upstream.stream(&path, &who, &metadata, requests).await }
        };
        match once(call).await {
            Err(status) if is_about_our_token(&status, &call.who) => {
                self.vouch_anew(call).await?;
                once(call).await
            }
            opened => opened,
        }
    }
}
