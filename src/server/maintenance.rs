//! The Maintenance service. Hashes and snapshots are not there yet and say so.

use super::{Core, ETCD_VERSION, STORAGE_VERSION, status};
use crate::pb::etcdserverpb as pb;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Serves `etcdserverpb.Maintenance`.
pub(super) struct MaintenanceService(pub(super) Arc<Core>);

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for MaintenanceService {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.0.check_authenticated(&request)?;
        let stats = self.0.store.stats();
        let identity = &self.0.config.identity;
        // Writes are applied as they are taken, so both indexes are the number of writes.
        let index = stats.commits.max(1);
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.0.header(stats.revision)),
            version: ETCD_VERSION.to_owned(),
            db_size: stats.bytes as i64,
            leader: identity.member_id,
            raft_index: index,
            raft_term: identity.raft_term,
            raft_applied_index: index,
            errors: vec![],
            db_size_in_use: stats.bytes as i64,
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: self.0.config.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let action = request.get_ref().action();
        match action {
            pb::alarm_request::AlarmAction::Get => self.0.check_authenticated(&request)?,
            _ => self.0.check_root(&request)?,
        }
        if action == pb::alarm_request::AlarmAction::Activate && request.get_ref().alarm != 0 {
            return Err(Status::unimplemented("alarms cannot be activated by hand yet"));
        }
        let header = Some(self.0.header(self.0.store.revision()));
        Ok(Response::new(pb::AlarmResponse { header, alarms: vec![] }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.0.check_root(&request)?;
        // Memory holds no file to shrink. Parity: no header.
        Ok(Response::new(pb::DefragmentResponse::default()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.0.check_root(&request)?;
        match request.get_ref().target_id == self.0.config.identity.member_id {
            true => Ok(Response::new(pb::MoveLeaderResponse::default())),
            false => Err(status::bad_leader_transferee()),
        }
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.0.check_root(&request)?;
        use pb::downgrade_request::DowngradeAction;
        let version = &request.get_ref().version;
        let numbers: Option<Vec<u32>> = version.split('.').map(|n| n.parse().ok()).collect();
        Err(match (request.get_ref().action(), numbers.as_deref()) {
            (DowngradeAction::Cancel, _) => status::no_inflight_downgrade(),
            (_, Some([_, _] | [_, _, _])) => status::invalid_downgrade_version(),
            _ => status::wrong_downgrade_format(),
        })
    }

    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(Status::unimplemented("Hash is not implemented yet"))
    }

    async fn hash_kv(&self, _: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Err(Status::unimplemented("HashKV is not implemented yet"))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("Snapshot is not implemented yet"))
    }
}
