//! The Maintenance service.

use super::admission::{Call, Caller, Operation};
use super::commit::Cause;
use super::{CLUSTER_VERSION, Core, ETCD_VERSION, SNAPSHOT_VERSION, STORAGE_VERSION, status};
use crate::lease::LeaseInfo;
use crate::mvcc::Versions;
use crate::pb::etcdserverpb as pb;
use crate::snapshot::{Member, Snapshot};
use crate::util::pace::Rests;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Bytes of the file in one message of a snapshot stream.
const SNAPSHOT_BLOB: usize = 32 << 10;
/// The release before [`CLUSTER_VERSION`]: the only target of a downgrade.
const DOWNGRADE: [u32; 2] = [3, 6];

/// Serves `etcdserverpb.Maintenance`.
pub(super) struct MaintenanceService(pub(super) Arc<Core>);

impl MaintenanceService {
    async fn admit<T>(&self, request: &Request<T>, call: Call) -> Result<(), Status> {
        let caller = Caller::of(request);
        self.0.admit(&caller, &Operation::new(call)).await.map(drop)
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for MaintenanceService {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        // The answer describes the process rather than the data, and must be available while the disk hangs:
        // it does not wait for the disk.
        self.admit(&request, Call::MaintenanceRead).await?;
        let stats = self.0.store.stats();
        let identity = self.0.identity();
        // A replica is served by upstream's leader, and has the features of upstream's version.
        let (leader, version) = match &self.0.upstream {
            None => (identity.member_id, ETCD_VERSION.to_owned()),
            Some(upstream) => {
                let upstream = upstream.identity();
                (upstream.leader, upstream.version_text())
            }
        };
        let errors = self.0.alarms.list(pb::AlarmType::None);
        // The texts are those of Go's protobuf messages, which etcd 3.7 prints with one or two blanks between fields.
        let errors = errors.into_iter().map(|a| match a.member_id {
            0 => format!("alarm:{}", a.alarm().as_str_name()),
            id => format!("memberID:{id} alarm:{}", a.alarm().as_str_name()),
        });
        let leaderless = (leader == 0).then(|| "etcdserver: no leader".to_owned());
        let errors = errors.chain(leaderless).collect();
        // The revision stands for the Raft index, because the revision never goes back either.
        let index = stats.revision.unsigned_abs();
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.0.header(stats.revision)),
            version,
            db_size: stats.bytes as i64,
            leader,
            raft_index: index,
            raft_term: identity.raft_term,
            raft_applied_index: index,
            errors,
            db_size_in_use: stats.bytes as i64,
            is_learner: false,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: self.0.config.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction as Action;
        let (action, alarms) = (request.get_ref().action(), &self.0.alarms);
        let call = match action {
            Action::Get => Call::MaintenanceRead,
            Action::Activate | Action::Deactivate => Call::AlarmChange,
        };
        self.admit(&request, call).await?;
        let (kind, member) = (request.get_ref().alarm(), request.get_ref().member_id);
        let alarms = match action {
            Action::Get => alarms.list(kind),
            Action::Activate if kind == pb::AlarmType::None => vec![],
            Action::Activate => vec![alarms.raise(kind, member)],
            Action::Deactivate => alarms.disarm(kind, member).into_iter().collect(),
        };
        let alarms = self.0.durability.commit_metadata(Ok::<_, Status>(alarms)).await?;
        let header = Some(self.0.header(self.0.store.revision()));
        Ok(Response::new(pb::AlarmResponse { header, alarms }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        // The store has no file to shrink. As in etcd, the answer has no header.
        Ok(Response::new(pb::DefragmentResponse::default()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        if self.0.upstream.is_some() {
            // What etcd's followers answer. The leader's own endpoint takes the call.
            return Err(status::not_leader());
        }
        match request.get_ref().target_id == self.0.config.identity.member_id {
            true => Ok(Response::new(pb::MoveLeaderResponse::default())),
            false => Err(status::bad_leader_transferee()),
        }
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        if self.0.upstream.is_some() {
            return Err(status::members_only());
        }
        use pb::downgrade_request::DowngradeAction;
        let version = &request.get_ref().version;
        let numbers: Option<Vec<u32>> = version.split('.').map(|n| n.parse().ok()).collect();
        match (request.get_ref().action(), numbers.as_deref()) {
            // As in etcd, there need not be a downgrade to cancel.
            (DowngradeAction::Cancel, _) => {}
            (action, Some([major, minor] | [major, minor, _])) => match ([*major, *minor] == DOWNGRADE, action) {
                (true, DowngradeAction::Validate) => {}
                (true, _) => return Err(status::no_downgrade()),
                (false, _) => return Err(status::invalid_downgrade_version()),
            },
            _ => return Err(status::wrong_downgrade_format()),
        }
        Ok(Response::new(pb::DowngradeResponse {
            header: Some(self.0.header(self.0.store.revision())),
            version: CLUSTER_VERSION.to_owned(),
        }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        let versions = self.0.committed_versions(0).await?;
        let header = Some(self.0.header(versions.current));
        let hash = hash(versions).await?;
        Ok(Response::new(pb::HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        let versions = self.0.committed_versions(request.get_ref().revision).await?;
        let header = Some(self.0.header(versions.current));
        let (compact_revision, hash_revision) = (versions.compacted, versions.revision);
        let hash = hash(versions).await?;
        Ok(Response::new(pb::HashKvResponse {
            header,
            hash,
            compact_revision,
            hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.admit(&request, Call::Maintenance).await?;
        // Only one snapshot is made at a time, because each takes as much space as the data.
        let permit = Arc::clone(&self.0.snapshots).acquire_owned().await;
        let permit = permit.map_err(|e| Status::internal(e.to_string()))?;
        // A snapshot does not wait for the disk: it is restored as another cluster, so a crash contradicts nothing, and
        // operators must be able to rescue the data from a disk that hangs.
        let (file, len) = self.0.snapshot().await?;
        let file = tokio::fs::File::from_std(file);
        Ok(Response::new(Box::pin(blobs(file, len, permit))))
    }
}

impl Core {
    async fn versions(&self, revision: i64) -> Result<Versions, Status> {
        let store = Arc::clone(&self.store);
        let versions = move || {
            let mut rests = Rests::begin();
            store.versions_by_steps(revision, &mut || rests.rest())
        };
        Ok(blocking(versions).await??)
    }

    /// The versions up to `revision`, with a compact revision that is durable.
    async fn committed_versions(&self, revision: i64) -> Result<Versions, Status> {
        let versions = self.versions(revision).await;
        self.commit(versions, |_| Cause::EveryChange).await
    }

    /// A snapshot in a file without a name, and the length of the file in bytes.
    async fn snapshot(&self) -> Result<(File, u64), Status> {
        let config = &self.config;
        let (auth, alarms) = (self.auth.state(), self.alarms.list(pb::AlarmType::None));
        let leases = || -> BTreeMap<i64, LeaseInfo> {
            let ids = self.lessor.ids().into_iter();
            ids.filter_map(|id| Some((id, self.lessor.info(id)?))).collect()
        };
        // Leases are granted and end while the keys are read, so the snapshot has the leases of before and after.
        // A superfluous lease expires, but a key without its lease would never expire.
        let mut known = leases();
        let versions = self.versions(0).await?;
        known.extend(leases());
        let leases = known.into_iter().collect();
        let snapshot = Snapshot {
            versions,
            leases,
            auth,
            alarms,
            member: Member {
                id: config.identity.member_id,
                name: config.name.clone(),
                peer_urls: self.peer_urls.read().clone(),
                client_urls: config.client_urls.clone(),
                term: self.identity().raft_term,
                index: self.store.revision().unsigned_abs(),
                version: SNAPSHOT_VERSION.to_owned(),
            },
        };
        let written = {
            let fallback = config.scratch.clone();
            blocking(move || snapshot.write(fallback.as_deref())).await?
        };
        written.map_err(|e| Status::internal(format!("cannot write the snapshot: {e}")))
    }
}

/// Runs long work on a thread that may block.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(f).await;
    done.map_err(|e| Status::internal(e.to_string()))
}

async fn hash(versions: Versions) -> Result<u32, Status> {
    let hash = move || {
        let mut rests = Rests::begin();
        versions.hash_by_steps(&mut || rests.rest())
    };
    blocking(hash).await
}

/// The file in blobs, then the SHA-256 of the whole file.
fn blobs(
    mut file: tokio::fs::File,
    len: u64,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<pb::SnapshotResponse, Status>> + Send + use<> {
    let response = |blob: bytes::Bytes, remaining_bytes| pb::SnapshotResponse {
        header: None,
        remaining_bytes,
        blob,
        version: SNAPSHOT_VERSION.to_owned(),
    };
    async_stream::try_stream! {
        let (mut sha, mut sent) = (Sha256::new(), 0);
        while sent < len {
            let mut blob = vec![0; SNAPSHOT_BLOB.min((len - sent) as usize)];
            file.read_exact(&mut blob).await?;
            sha.update(&blob);
            sent += blob.len() as u64;
            yield response(blob.into(), len - sent);
        }
        yield response(sha.finalize().to_vec().into(), 0);
        drop(permit);
    }
}
