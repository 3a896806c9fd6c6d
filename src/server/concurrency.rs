//! The Lock and Election services: the recipes of clientv3's `concurrency`, run on the server for clients
//! that have none of their own.
//!
//! Candidates put a key under `<name>/`, named by their lease; the oldest key holds. A waiter waits for
//! the youngest key older than its own to go, so that a release wakes one waiter, not all.

use super::alarm::{LEASE_COST, put_cost};
use super::peer::Peer;
use super::{Core, status};
use crate::mvcc::{
    Compare, CompareResult, KeyRange, Kv, Op, OpResult, Put, RangeOptions, RevisionBounds, SortOrder, SortTarget,
    Target, Txn, TxnResult, Wake, WatchFilter, WatchUpdate,
};
use crate::pb::v3electionpb::{self as epb, election_server, election_server::ElectionServer};
use crate::pb::v3lockpb::{self as lpb, lock_server, lock_server::LockServer};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// Time to live of a lease that a caller leaves to us, in seconds. Nobody here keeps it alive.
const LEASE_TTL_SECS: i64 = 60;

/// Serves `v3lockpb.Lock` and `v3electionpb.Election`.
pub(super) struct ConcurrencyService(Arc<Core>);

/// A caller and what it may do.
struct Session {
    core: Arc<Core>,
    metadata: MetadataMap,
    peer: Peer,
}

/// A key in the queue; taken out again if its owner stops waiting.
struct Candidate {
    core: Arc<Core>,
    key: Bytes,
    /// Its create revision.
    revision: i64,
    waiting: bool,
}

struct Notified(Arc<Notify>);

impl Wake for Notified {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Both services.
pub(super) fn services(core: &Arc<Core>) -> (LockServer<ConcurrencyService>, ElectionServer<ConcurrencyService>) {
    let service = || ConcurrencyService(Arc::clone(core));
    (LockServer::new(service()), ElectionServer::new(service()))
}

/// Go's clients know these by their text, which comes without a code.
fn raw(text: &str) -> Status {
    Status::unknown(text)
}

fn candidates(name: &[u8]) -> KeyRange {
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

/// As Go prints a lease id in hexadecimal.
fn hex(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        range: KeyRange::key(key.clone()),
        target: Target::Create(revision),
        result: CompareResult::Equal,
    }
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
                compares: vec![created_at(&self.key, self.revision)],
                success: vec![Op::Delete(KeyRange::key(self.key.clone()))],
                failure: vec![],
            };
            // A transaction without ranges at old revisions or leases cannot fail.
            let _ = self.core.store.txn(&resign);
        }
    }
}

// === impl Session ===

impl Session {
    fn of<T>(core: &Arc<Core>, request: &Request<T>) -> Self {
        Self {
            core: Arc::clone(core),
            metadata: request.metadata().clone(),
            peer: Peer::of(request),
        }
    }

    /// Runs a transaction with the caller's rights.
    async fn txn(&self, txn: &Txn) -> Result<TxnResult, Status> {
        let result = self.apply(txn)?;
        self.core.committed(result.revision).await?;
        Ok(result)
    }

    /// As [`Session::txn`], and the caller waits until it is safe.
    fn apply(&self, txn: &Txn) -> Result<TxnResult, Status> {
        if txn.compares.iter().any(|c| c.range.start().is_empty()) {
            return Err(status::empty_key());
        }
        if let Some(Op::Put(put)) = txn.success.first()
            && put.key.len() + put.value.len() > self.core.config.max_request_bytes
        {
            return Err(status::request_too_large());
        }
        self.core.check_intact()?;
        let guard = self.core.guard_for(&self.metadata, &self.peer)?;
        guard.txn(&self.core, txn, &mut std::iter::repeat(false))?;
        if let Some(Op::Put(put)) = txn.success.first() {
            self.core.check_alarm()?;
            self.core.check_space(put_cost(&put.key, &put.value))?;
        }
        if !txn.is_read_only() {
            self.core.check_disk()?;
        }
        Ok(self.core.store.txn(txn)?)
    }

    fn range(&self, options: &RangeOptions) -> Result<(Option<Kv>, i64), Status> {
        let guard = self.core.guard_for(&self.metadata, &self.peer)?;
        guard.read(&options.range)?;
        let result = self.core.store.range(options)?;
        Ok((result.kvs.into_iter().next(), result.revision))
    }

    /// The lease to use: the caller's, or a new one.
    async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        if self.core.auth.state().enabled && self.core.identity(&self.metadata, &self.peer)?.is_none() {
            return Err(crate::auth::Error::UserEmpty.into());
        }
        self.core.check_intact()?;
        self.core.check_alarm()?;
        self.core.check_space(LEASE_COST)?;
        self.core.check_disk()?;
        let id = self.core.lessor.grant(0, LEASE_TTL_SECS)?.id;
        self.core.flushed().await?;
        Ok(id)
    }

    /// Queues for `name`, unless this lease is queued already. Returns the candidate, the value it has,
    /// and the revision at which it was seen.
    async fn queue(&self, name: &[u8], lease: i64, value: Bytes) -> Result<(Candidate, Bytes, i64), Status> {
        let key = Bytes::from([name, b"/", hex(lease).as_bytes()].concat());
        let put = Put {
            key: key.clone(),
            value: value.clone(),
            lease,
            ..Put::default()
        };
        let result = self.apply(&Txn {
            compares: vec![created_at(&key, 0)],
            success: vec![Op::Put(put)],
            failure: vec![Op::Range(RangeOptions::new(KeyRange::key(key.clone())))],
        })?;
        let (mut revision, mut now) = (result.revision, value);
        if !result.succeeded
            && let Some(kv) = range_of(result.results.into_iter().next())
        {
            let fields = kv.fields();
            (revision, now) = (fields.create_revision, Bytes::copy_from_slice(fields.value));
        }
        let candidate = Candidate {
            core: Arc::clone(&self.core),
            key,
            revision,
            waiting: true,
        };
        // It is taken back if nobody waits any more.
        self.core.committed(result.revision).await?;
        Ok((candidate, now, result.revision))
    }

    /// Waits until no candidate is older than the one of `revision`.
    async fn wait_turn(&self, name: &[u8], revision: i64) -> Result<(), Status> {
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
            let (Some(kv), seen) = self.range(&youngest_older)? else {
                return Ok(());
            };
            let filter = WatchFilter {
                no_put: true,
                ..WatchFilter::new(KeyRange::key(kv.key().to_vec()))
            };
            let notify = Arc::new(Notify::new());
            let wake = Arc::new(Notified(Arc::clone(&notify)));
            let mut watcher = self.core.store.watch(filter, seen + 1, wake);
            // Whatever it takes is a deletion.
            while matches!(watcher.take(usize::MAX), WatchUpdate::Nothing) {
                tokio::select! {
                    () = notify.notified() => {}
                    () = self.core.stop.cancelled() => return Err(status::stopped()),
                }
            }
        }
    }

    /// Changes the value of a candidate that is still there; returns the revision.
    async fn proclaim(&self, leader: &epb::LeaderKey, value: Bytes) -> Result<i64, Status> {
        let put = Put {
            key: leader.key.clone(),
            value,
            // A leader without a lease would lead for ever.
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
        let session = Session::of(&self.0, &request);
        let lpb::LockRequest { name, lease } = request.into_inner();
        let lease = session.lease(lease).await?;
        let (mut candidate, _, mut now) = session.queue(&name, lease, Bytes::new()).await?;
        let (oldest, _) = session.range(&first_created(&name))?;
        if oldest.is_some_and(|kv| kv.fields().create_revision != candidate.revision) {
            session.wait_turn(&name, candidate.revision).await?;
            let own = RangeOptions::new(KeyRange::key(candidate.key.clone()));
            let (own, seen) = session.range(&own)?;
            // Its lease may have ended while it waited.
            own.ok_or_else(|| raw("mutex: session is expired"))?;
            now = seen;
        }
        candidate.waiting = false;
        Ok(Response::new(lpb::LockResponse {
            header: Some(self.0.header(now)),
            key: candidate.key.clone(),
        }))
    }

    async fn unlock(&self, request: Request<lpb::UnlockRequest>) -> Result<Response<lpb::UnlockResponse>, Status> {
        let session = Session::of(&self.0, &request);
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(status::empty_key());
        }
        let delete = Txn {
            success: vec![Op::Delete(KeyRange::key(key))],
            ..Txn::default()
        };
        let revision = session.txn(&delete).await?.revision;
        Ok(Response::new(lpb::UnlockResponse {
            header: Some(self.0.header(revision)),
        }))
    }
}

fn missing_leader() -> Status {
    raw("\"leader\" field must be provided")
}

#[tonic::async_trait]
impl election_server::Election for ConcurrencyService {
    async fn campaign(
        &self,
        request: Request<epb::CampaignRequest>,
    ) -> Result<Response<epb::CampaignResponse>, Status> {
        let session = Session::of(&self.0, &request);
        let epb::CampaignRequest { name, lease, value } = request.into_inner();
        let lease = session.lease(lease).await?;
        let (mut candidate, has, now) = session.queue(&name, lease, value.clone()).await?;
        let leader = epb::LeaderKey {
            name: name.clone(),
            key: candidate.key.clone(),
            rev: candidate.revision,
            lease,
        };
        if has != value {
            session.proclaim(&leader, value).await?;
        }
        session.wait_turn(&name, candidate.revision).await?;
        candidate.waiting = false;
        Ok(Response::new(epb::CampaignResponse {
            header: Some(self.0.header(now)),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<epb::ProclaimRequest>,
    ) -> Result<Response<epb::ProclaimResponse>, Status> {
        let session = Session::of(&self.0, &request);
        let epb::ProclaimRequest { leader, value } = request.into_inner();
        let revision = session.proclaim(&leader.ok_or_else(missing_leader)?, value).await?;
        let header = Some(self.0.header(revision));
        Ok(Response::new(epb::ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<epb::LeaderRequest>) -> Result<Response<epb::LeaderResponse>, Status> {
        let session = Session::of(&self.0, &request);
        let (leader, revision) = session.range(&first_created(&request.get_ref().name))?;
        let kv = leader.ok_or_else(|| raw("election: no leader"))?;
        Ok(Response::new(epb::LeaderResponse {
            header: Some(self.0.header(revision)),
            kv: Some(kv.into()),
        }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<epb::LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<epb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let session = Session::of(&self.0, &request);
        let name = request.into_inner().name;
        session.range(&first_created(&name))?;
        Ok(Response::new(Box::pin(observe(session, name))))
    }

    async fn resign(&self, request: Request<epb::ResignRequest>) -> Result<Response<epb::ResignResponse>, Status> {
        let session = Session::of(&self.0, &request);
        let leader = request.into_inner().leader.ok_or_else(missing_leader)?;
        let result = session
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

/// The leader and its value, at first and whenever they change. Values that a leader replaces at once
/// may be skipped, the last one never.
fn observe(session: Session, name: Bytes) -> impl Stream<Item = Result<epb::LeaderResponse, Status>> + Send {
    async_stream::try_stream! {
        let notify = Arc::new(Notify::new());
        let join = || {
            let wake = Arc::new(Notified(Arc::clone(&notify)));
            session.core.store.watch(WatchFilter::new(candidates(&name)), 0, wake)
        };
        let (mut watcher, mut shown) = (join(), 0);
        loop {
            let (leader, revision) = session.range(&first_created(&name))?;
            if let Some(kv) = leader {
                let changed = kv.fields().mod_revision;
                if changed != shown {
                    shown = changed;
                    let header = Some(session.core.header(revision));
                    yield epb::LeaderResponse { header, kv: Some(kv.into()) };
                }
            }
            loop {
                match watcher.take(usize::MAX) {
                    WatchUpdate::Events { .. } => break,
                    WatchUpdate::Compacted(_) => {
                        watcher = join();
                        break;
                    }
                    WatchUpdate::Nothing => {}
                }
                let stopped = tokio::select! {
                    () = notify.notified() => false,
                    () = session.core.stop.cancelled() => true,
                };
                if stopped {
                    Err(status::stopped())?;
                }
            }
        }
    }
}
