//! The Lease service.

use super::Core;
use super::alarm::LEASE_COST;
use super::peer::Peer;
use crate::mvcc::{GrantedLease, KeyRange};
use crate::pb::etcdserverpb as pb;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// Serves `etcdserverpb.Lease`.
pub(super) struct LeaseService(pub(super) Arc<Core>);

impl LeaseService {
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
        // Parity: here who asks comes before the alarms.
        self.0.check_authenticated(&request)?;
        self.0.check_alarms(&request, true)?;
        self.0.check_space(LEASE_COST)?;
        let request = request.into_inner();
        self.0.check_disk()?;
        let granted = self.0.lessor.grant(request.id, request.ttl);
        self.0.flushed().await?;
        let GrantedLease { id, ttl_secs: ttl } = granted?;
        let header = self.header();
        Ok(Response::new(pb::LeaseGrantResponse {
            header,
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let id = request.get_ref().id;
        self.0.check_alarms(&request, false)?;
        self.0.guard(&request)?.lease(&self.0, id)?;
        self.0.check_disk()?;
        let revoked = self.0.lessor.revoke(id);
        self.0.flushed().await?;
        let revision = revoked?.revision;
        let header = Some(self.0.header(revision));
        Ok(Response::new(pb::LeaseRevokeResponse { header }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let core = Arc::clone(&self.0);
        let (metadata, peer) = (request.metadata().clone(), Peer::of(&request));
        let mut inbound = request.into_inner();
        let stream = async_stream::try_stream! {
            loop {
                let message = tokio::select! {
                    () = core.stop.cancelled() => Err(super::status::stopped()),
                    message = inbound.message() => message,
                };
                let Some(request) = message? else { break };
                // Each time: rights may have gone since.
                core.guard_for(&metadata, &peer)?.lease(&core, request.id)?;
                let header = Some(core.header(core.store.revision()));
                // A lease that is gone answers 0 seconds, which is not an error.
                let ttl = core.lessor.keep_alive(request.id).unwrap_or(0);
                if ttl == 0 {
                    core.flushed().await?;
                }
                yield pb::LeaseKeepAliveResponse { header, id: request.id, ttl };
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.0.check_authenticated(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys } = *request.get_ref();
        let info = self.0.lessor.info(id, keys);
        // What was found may not be safe yet.
        self.0.flushed().await?;
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
        if keys {
            let guard = self.0.guard(&request)?;
            for key in &info.keys {
                guard.read(&KeyRange::key(key.clone()))?;
            }
        }
        let (ttl, granted_ttl) = (info.left_secs, info.granted_secs);
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl,
            keys: info.keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let guard = self.0.guard(&request)?;
        let ids = self.0.lessor.ids();
        self.0.flushed().await?;
        for key in ids.iter().filter_map(|id| self.0.store.lease_keys(*id)).flatten() {
            guard.read(&KeyRange::key(key))?;
        }
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: self.header(),
            leases,
        }))
    }
}
