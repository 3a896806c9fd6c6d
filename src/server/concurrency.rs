//! The Lock and Election services: the recipes of clientv3's package `concurrency`, run on the server for
//! clients without these recipes.
//!
//! Each candidate puts a key under `<name>/`, named by its lease; the candidate with the oldest key holds the
//! lock or leads. A waiting candidate waits until the youngest key older than its own is deleted, so that a
//! release wakes one candidate.

use super::admission::{Call, Caller, Operation, PrevKv};
use super::commit::Cause;
use super::{Core, status};
use crate::mvcc::{
    Compare, CompareResult, KeyRange, Kv, Op, OpResult, Put, RangeOptions, RevisionBounds, SortOrder, SortTarget,
    Target, Txn, TxnResult, Wake, WatchFilter, WatchUpdate,
};
use crate::pb::v3electionpb::{self as epb, election_server};
use crate::pb::v3lockpb::{self as lpb, lock_server};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Time to live, in seconds, of a lease that is granted for a caller without a lease. The server does not keep
/// the lease alive.
const LEASE_TTL_SECS: i64 = 60;

/// Serves `v3lockpb.Lock` and `v3electionpb.Election`.
pub(super) struct ConcurrencyService(Arc<Core>);

/// A client inside the process: runs the steps of a recipe with the permissions of the caller, as etcd does.
struct RecipeClient {
    core: Arc<Core>,
    caller: Caller,
}

/// A key in the queue. The key is deleted when the candidate is dropped while it waits.
struct Candidate {
    core: Arc<Core>,
    key: Bytes,
    create_revision: i64,
    waiting: bool,
}

/// A candidate that has just joined the queue, or was there already.
struct Queued {
    candidate: Candidate,
    /// The value of the candidate's key.
    value: Bytes,
    /// The revision at which the key was seen.
    revision: i64,
}

/// The first key-value that a read found, and the revision of the read.
struct Found {
    kv: Option<Kv>,
    revision: i64,
}

struct Notified(Arc<Notify>);

impl Wake for Notified {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl ConcurrencyService {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self(Arc::clone(core))
    }
}

/// An error that Go's clients find by its text: as in etcd, the error has no code and no prefix.
fn raw(text: &str) -> Status {
    Status::unknown(text)
}

pub(super) fn candidates(name: &[u8]) -> KeyRange {
    KeyRange::prefix([name, b"/"].concat())
}

/// The oldest candidate.
fn first_created(name: &[u8]) -> RangeOptions {
    RangeOptions {
        limit: 1,
        order: SortOrder::Ascend,
        target: SortTarget::Create,
        ..RangeOptions::new(candidates(name))
    }
}

/// A lease id as Go prints it in hexadecimal.
pub(super) fn hex(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        range: KeyRange::key(key.clone()),
        target: Target::Create(revision),
        result: CompareResult::Equal,
    }
}

/// The transaction of a recipe as admission sees it. Recipes return no previous values, and put one key at most.
pub(super) fn operation(txn: &Txn) -> Operation {
    let bytes = txn.success.iter().map(|op| match op {
        Op::Put(put) => put.key.len() + put.value.len(),
        _ => 0,
    });
    Operation::txn(txn, std::iter::repeat(PrevKv::NotReturned), bytes.sum())
}

fn range_of(result: Option<OpResult>) -> Option<Kv> {
    match result {
        Some(OpResult::Range(range)) => range.kvs.into_iter().next(),
        _ => None,
    }
}

// === impl Candidate ===

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.waiting {
            let resign = Txn {
                compares: vec![created_at(&self.key, self.create_revision)],
                success: vec![Op::Delete(KeyRange::key(self.key.clone()))],
                failure: vec![],
            };
            // A transaction that names no lease and no old revision cannot fail.
            let _ = self.core.store.txn(&resign);
        }
    }
}

// === impl RecipeClient ===

impl RecipeClient {
    fn of<T>(core: &Arc<Core>, request: &Request<T>) -> Self {
        Self {
            core: Arc::clone(core),
            caller: Caller::of(request),
        }
    }

    async fn admit(&self, txn: &Txn) -> Result<(), Status> {
        if txn.compares.iter().any(|c| c.range.start().is_empty()) {
            return Err(status::empty_key());
        }
        self.core.admit(&self.caller, &operation(txn)).await.map(drop)
    }

    async fn txn(&self, txn: &Txn) -> Result<TxnResult, Status> {
        self.admit(txn).await?;
        let outcome = self.core.store.txn(txn);
        self.core
            .commit(outcome, |result| Cause::Revision(result.revision))
            .await
    }

    async fn range(&self, options: &RangeOptions) -> Result<Found, Status> {
        let operation = Operation::read(Call::Range, options.range.clone());
        self.core.admit(&self.caller, &operation).await?;
        // A queue is sorted by age, for which all of its keys are read.
        let (keys, options) = (self.core.store.work_of_range(options), options.clone());
        let read = move |core: &Core, go_on: &mut dyn FnMut() -> bool| core.store.range_while(&options, go_on);
        let done = self
            .core
            .take_admitted_turn(&self.caller, operation, keys, read)
            .await?;
        let result = self.core.commit(done.take().0, |_| Cause::Published).await?;
        Ok(Found {
            kv: result.kvs.into_iter().next(),
            revision: result.revision,
        })
    }

    /// The caller's lease, or a new lease for 0.
    async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        self.core.admit(&self.caller, &Operation::lease_grant()).await?;
        Ok(self.core.grant(&self.caller, 0, LEASE_TTL_SECS).await?.id)
    }

    /// Joins the queue for `name`, unless the lease has a key in the queue already.
    async fn queue(&self, name: &[u8], lease: i64, value: Bytes) -> Result<Queued, Status> {
        let key = Bytes::from([name, b"/", hex(lease).as_bytes()].concat());
        let put = Put {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..Put::default()
        };
        let txn = Txn {
            compares: vec![created_at(&key, 0)],
            success: vec![Op::Put(put)],
            failure: vec![Op::Range(RangeOptions::new(KeyRange::key(key.clone())))],
        };
        self.admit(&txn).await?;
        let queued = self.core.store.txn(&txn).map(|result| {
            let (mut create_revision, mut value) = (result.revision, value);
            if !result.succeeded
                && let Some(kv) = range_of(result.results.into_iter().next())
            {
                let fields = kv.fields();
                create_revision = fields.create_revision;
                value = Bytes::copy_from_slice(fields.value);
            }
            let candidate = Candidate {
                core: Arc::clone(&self.core),
                key,
                create_revision,
                waiting: true,
            };
            Queued {
                candidate,
                value,
                revision: result.revision,
            }
        });
        // The candidate waits from now on: its key is deleted if the caller disconnects before the commit.
        self.core
            .commit(queued, |queued| Cause::Revision(queued.revision))
            .await
    }

    /// Waits until no candidate for `name` has a create revision below `revision`.
    async fn wait_for_older(&self, name: &[u8], revision: i64) -> Result<(), Status> {
        let youngest_older = RangeOptions {
            limit: 1,
            order: SortOrder::Descend,
            target: SortTarget::Create,
            create_revision: RevisionBounds {
                min: 0,
                max: revision - 1,
            },
            ..RangeOptions::new(candidates(name))
        };
        loop {
            let older = self.range(&youngest_older).await?;
            let Some(kv) = older.kv else { return Ok(()) };
            let filter = WatchFilter {
                no_put: true,
                ..WatchFilter::new(KeyRange::key(kv.key().to_vec()))
            };
            let notify = Arc::new(Notify::new());
            let wake = Arc::new(Notified(Arc::clone(&notify)));
            let mut watcher = self.core.store.watch(filter, older.revision + 1, wake);
            let _place = self.core.take_place(self.caller.peer(), &watcher)?;
            // The watcher sees deletions alone.
            loop {
                match watcher.take(usize::MAX) {
                    WatchUpdate::Nothing => {}
                    WatchUpdate::Later => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    WatchUpdate::Events { .. } | WatchUpdate::Compacted(_) => break,
                }
                tokio::select! {
                    () = notify.notified() => {}
                    () = self.core.stop.cancelled() => return Err(status::stopped()),
                }
            }
        }
    }

    /// Changes the value of a leader whose key is still in the queue; returns the revision.
    async fn proclaim(&self, leader: &epb::LeaderKey, value: Bytes) -> Result<i64, Status> {
        let put = Put {
            key: leader.key.clone(),
            value,
            // Without a lease, the leader would lead for ever.
            lease: self.lease(leader.lease).await?,
            ..Put::default()
        };
        let result = self
            .txn(&Txn {
                compares: vec![created_at(&leader.key, leader.rev)],
                success: vec![Op::Put(put)],
                failure: vec![],
            })
            .await?;
        let done = result.succeeded.then_some(result.revision);
        done.ok_or_else(|| raw("election: not leader"))
    }
}

#[tonic::async_trait]
impl lock_server::Lock for ConcurrencyService {
    async fn lock(&self, request: Request<lpb::LockRequest>) -> Result<Response<lpb::LockResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let lpb::LockRequest { name, lease } = request.into_inner();
        let lease = client.lease(lease).await?;
        let queued = client.queue(&name, lease, Bytes::new()).await?;
        let (mut candidate, mut revision) = (queued.candidate, queued.revision);
        let oldest = client.range(&first_created(&name)).await?.kv;
        if oldest.is_some_and(|kv| kv.fields().create_revision != candidate.create_revision) {
            client.wait_for_older(&name, candidate.create_revision).await?;
            let own = RangeOptions::new(KeyRange::key(candidate.key.clone()));
            let own = client.range(&own).await?;
            // The lease may have ended while the candidate waited.
            own.kv.ok_or_else(|| raw("mutex: session is expired"))?;
            revision = own.revision;
        }
        candidate.waiting = false;
        Ok(Response::new(lpb::LockResponse {
            header: Some(self.0.header(revision)),
            key: candidate.key.clone(),
        }))
    }

    async fn unlock(&self, request: Request<lpb::UnlockRequest>) -> Result<Response<lpb::UnlockResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(status::empty_key());
        }
        let delete = Txn {
            success: vec![Op::Delete(KeyRange::key(key))],
            ..Txn::default()
        };
        let revision = client.txn(&delete).await?.revision;
        Ok(Response::new(lpb::UnlockResponse {
            header: Some(self.0.header(revision)),
        }))
    }
}

pub(super) fn missing_leader() -> Status {
    raw("\"leader\" field must be provided")
}

#[tonic::async_trait]
impl election_server::Election for ConcurrencyService {
    async fn campaign(
        &self,
        request: Request<epb::CampaignRequest>,
    ) -> Result<Response<epb::CampaignResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let epb::CampaignRequest { name, lease, value } = request.into_inner();
        let lease = client.lease(lease).await?;
        let queued = client.queue(&name, lease, value.clone()).await?;
        let mut candidate = queued.candidate;
        let leader = epb::LeaderKey {
            name: name.clone(),
            key: candidate.key.clone(),
            rev: candidate.create_revision,
            lease,
        };
        if queued.value != value {
            client.proclaim(&leader, value).await?;
        }
        client.wait_for_older(&name, candidate.create_revision).await?;
        candidate.waiting = false;
        Ok(Response::new(epb::CampaignResponse {
            header: Some(self.0.header(queued.revision)),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<epb::ProclaimRequest>,
    ) -> Result<Response<epb::ProclaimResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let epb::ProclaimRequest { leader, value } = request.into_inner();
        let revision = client.proclaim(&leader.ok_or_else(missing_leader)?, value).await?;
        let header = Some(self.0.header(revision));
        Ok(Response::new(epb::ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<epb::LeaderRequest>) -> Result<Response<epb::LeaderResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let leader = client.range(&first_created(&request.get_ref().name)).await?;
        let kv = leader.kv.ok_or_else(|| raw("election: no leader"))?;
        Ok(Response::new(epb::LeaderResponse {
            header: Some(self.0.header(leader.revision)),
            kv: Some(kv.into()),
        }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<epb::LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<epb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let name = request.into_inner().name;
        client.range(&first_created(&name)).await?;
        Ok(Response::new(Box::pin(observe(client, name))))
    }

    async fn resign(&self, request: Request<epb::ResignRequest>) -> Result<Response<epb::ResignResponse>, Status> {
        let client = RecipeClient::of(&self.0, &request);
        let leader = request.into_inner().leader.ok_or_else(missing_leader)?;
        let result = client
            .txn(&Txn {
                compares: vec![created_at(&leader.key, leader.rev)],
                success: vec![Op::Delete(KeyRange::key(leader.key.clone()))],
                failure: vec![],
            })
            .await?;
        let header = Some(self.0.header(result.revision));
        Ok(Response::new(epb::ResignResponse { header }))
    }
}

/// The leader and its value, at the beginning and after each change. A value that is replaced at once may be
/// skipped; the last value never is.
fn observe(client: RecipeClient, name: Bytes) -> impl Stream<Item = Result<epb::LeaderResponse, Status>> + Send {
    async_stream::try_stream! {
        let notify = Arc::new(Notify::new());
        let join = || {
            let wake = Arc::new(Notified(Arc::clone(&notify)));
            client.core.store.watch(WatchFilter::new(candidates(&name)), 0, wake)
        };
        let (mut watcher, mut shown) = (join(), 0);
        let mut _place = client.core.take_place(client.caller.peer(), &watcher)?;
        loop {
            let leader = client.range(&first_created(&name)).await?;
            if let Some(kv) = leader.kv {
                let changed = kv.fields().mod_revision;
                if changed != shown {
                    shown = changed;
                    let header = Some(client.core.header(leader.revision));
                    yield epb::LeaderResponse { header, kv: Some(kv.into()) };
                }
            }
            loop {
                match watcher.take(usize::MAX) {
                    WatchUpdate::Events { .. } => break,
                    WatchUpdate::Compacted(_) => {
                        watcher = join();
                        _place = client.core.take_place(client.caller.peer(), &watcher)?;
                        break;
                    }
                    WatchUpdate::Nothing => {}
                    WatchUpdate::Later => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                }
                let stopped = tokio::select! {
                    () = notify.notified() => false,
                    () = client.core.stop.cancelled() => true,
                };
                if stopped {
                    Err(status::stopped())?;
                }
            }
        }
    }
}
