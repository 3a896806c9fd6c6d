//! The Lease service.

use super::admission::{Call, Caller, Operation};
use super::commit::Cause;
use super::refusals::Budget;
use super::turns::Done;
use super::{Core, status};
use crate::mvcc::GrantedLease;
use crate::pb::etcdserverpb as pb;
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The keys of a lease, and the leases of a store, count as work on so many keys. There is no limit.
const MANY: usize = 1_000_000;

/// Serves `etcdserverpb.Lease`.
pub(super) struct LeaseService(pub(super) Arc<Core>);

impl LeaseService {
    /// Reads something of which there may be a million, and whose parts the caller must be allowed to see.
    async fn show<T: Send + 'static>(
        &self,
        caller: &Caller,
        read: impl FnOnce(&Core) -> (Operation, T) + Send + 'static,
    ) -> Result<(T, Done<()>), Status> {
        let asking = caller.clone();
        let checked = move |core: &Core, _: &mut dyn FnMut() -> bool| {
            let (operation, shown) = read(core);
            (core.admission.check(&asking, &operation), shown)
        };
        let ((checked, shown), done) = self.0.take_turn(caller.peer(), MANY, checked).await?.take();
        let shown = self.0.commit(Ok::<_, Status>(shown), |_| Cause::EveryChange).await?;
        self.0.admission.settle(checked).await?;
        Ok((shown, done))
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.0.header(self.0.store.revision()))
    }
}

#[tonic::async_trait]
impl pb::lease_server::Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let caller = Caller::of(&request);
        self.0.admit(&caller, &Operation::lease_grant()).await?;
        let request = request.into_inner();
        let granted = self.0.grant(&caller, request.id, request.ttl).await?;
        let header = self.header();
        Ok(Response::new(pb::LeaseGrantResponse {
            header,
            id: granted.id,
            ttl: granted.ttl_secs,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let id = request.get_ref().id;
        let caller = Caller::of(&request);
        self.0.admit(&caller, &Operation::lease(Call::LeaseRevoke, id)).await?;
        let revoked = self.0.lessor.revoke(id);
        self.0.shares.revoked(caller.peer(), id);
        let revoked = self.0.commit(revoked, |_| Cause::EveryChange).await?;
        let header = Some(self.0.header(revoked.revision));
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let core = Arc::clone(&self.0);
        let caller = Caller::of(&request);
        let mut inbound = request.into_inner();
        let stream = async_stream::try_stream! {
            loop {
                let message = tokio::select! {
                    () = core.stop.cancelled() => Err(status::stopped()),
                    message = inbound.message() => message,
                };
                let Some(request) = message? else { break };
                // Every message is admitted, because permissions may have been revoked since the last one.
                core.admit(&caller, &Operation::lease(Call::LeaseKeepAlive, request.id)).await?;
                let header = Some(core.header(core.store.revision()));
                // As in etcd, a lease that is gone has 0 seconds left, which is no error.
                let ttl = core.lessor.keep_alive(request.id).unwrap_or(0);
                // A renewal changes no durable state, so its answer does not wait for the disk. The answer about
                // an ended lease does wait.
                let cause = if ttl == 0 { Cause::EveryChange } else { Cause::Published };
                let ttl = core.commit(Ok::<_, Status>(ttl), |_| cause).await?;
                yield pb::LeaseKeepAliveResponse { header, id: request.id, ttl };
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = Caller::of(&request);
        self.0.admit(&caller, &Operation::new(Call::LeaseTimeToLive)).await?;
        let pb::LeaseTimeToLiveRequest { id, keys } = *request.get_ref();
        let info = self.0.lessor.info(id);
        let info = self.0.commit(Ok::<_, Status>(info), |_| Cause::EveryChange).await?;
        let header = self.header();
        let Some(info) = info else {
            let unknown = pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..Default::default()
            };
            return Ok(Response::new(unknown));
        };
        let mut answer = pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl: info.left_secs,
            granted_ttl: info.granted_secs,
            keys: vec![],
        };
        if !keys {
            return Ok(Response::new(answer));
        }
        let show = move |core: &Core| {
            let keys = core.store.lease_keys(id).unwrap_or_default();
            (Operation::show(keys.clone()), keys)
        };
        let (keys, done) = self.show(&caller, show).await?;
        answer.keys = keys;
        let bytes = answer.encoded_len();
        self.0.answer(caller.peer(), done, bytes, answer).await
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let caller = Caller::of(&request);
        self.0.admit(&caller, &Operation::new(Call::LeaseLeases)).await?;
        let show = |core: &Core| {
            let ids = core.lessor.ids();
            (Operation::show_leases(&ids), ids)
        };
        let (ids, done) = self.show(&caller, show).await?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        let header = self.header();
        let answer = pb::LeaseLeasesResponse { header, leases };
        let bytes = answer.encoded_len();
        self.0.answer(caller.peer(), done, bytes, answer).await
    }
}

impl Core {
    /// Grants a lease, within the budget of the caller's user. The call has been admitted.
    pub(super) async fn grant(&self, caller: &Caller, id: i64, ttl_secs: i64) -> Result<GrantedLease, Status> {
        if !self
            .shares
            .may_grant(caller.peer(), |id, _| self.lessor.info(id).is_none())
        {
            self.refusals.note(Budget::Leases, caller.peer());
            return Err(status::too_many_leases());
        }
        let granted = self.lessor.grant(id, ttl_secs);
        if let Ok(granted) = &granted {
            // The lessor knows its end.
            self.shares.granted(caller.peer(), granted.id, Instant::now());
        }
        self.commit(granted, |_| Cause::EveryChange).await
    }
}
