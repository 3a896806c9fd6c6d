//! The Cluster service of a cluster of one.

use super::admission::{Call, Caller, Operation, Subject};
use super::{Core, status};
use crate::pb::etcdserverpb as pb;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `etcdserverpb.Cluster`.
pub(super) struct ClusterService(pub(super) Arc<Core>);

impl ClusterService {
    /// As in etcd, answers of this service carry no revision.
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.0.header(0))
    }

    fn members(&self) -> Vec<pb::Member> {
        let config = &self.0.config;
        vec![pb::Member {
            id: config.identity.member_id,
            name: config.name.clone(),
            peer_ur_ls: self.0.peer_urls.read().clone(),
            client_ur_ls: config.client_urls.clone(),
            is_learner: false,
        }]
    }

    async fn admit<T>(&self, request: &Request<T>, call: Call) -> Result<(), Status> {
        let caller = Caller::of(request);
        self.0.admit(&caller, &Operation::new(call)).await.map(drop)
    }

    /// Admits a call about the member `id`.
    async fn admit_for<T>(&self, request: &Request<T>, call: Call, id: u64) -> Result<(), Status> {
        let caller = Caller::of(request);
        let operation = Operation::about(call, Subject::Member(id));
        self.0.admit(&caller, &operation).await.map(drop)
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.admit(&request, Call::MemberList).await?;
        let members = Ok::<_, Status>(self.members());
        Ok(Response::new(pb::MemberListResponse {
            header: self.header(),
            members: self.0.durability.commit_metadata(members).await?,
        }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let urls = &request.get_ref().peer_ur_ls;
        // As in etcd (v3rpc/member.go), the URLs are checked before the permission.
        check_urls(urls)?;
        self.admit(&request, Call::MemberAdd).await?;
        let refused = match urls.iter().any(|url| self.0.peer_urls.read().contains(url)) {
            true => status::peer_url_exists(),
            // etcd's answer when it cannot add a member. A second member needs Raft, which Isthmus does not have.
            false => status::unhealthy(),
        };
        self.0.durability.commit_metadata(Err(refused)).await
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let id = request.get_ref().id;
        self.admit_for(&request, Call::MemberRemove, id).await?;
        Err(status::not_enough_members())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let id = request.get_ref().id;
        self.admit_for(&request, Call::MemberUpdate, id).await?;
        // No socket listens at peer URLs: they are kept only to be listed.
        let urls = request.into_inner().peer_ur_ls;
        {
            let mut peer_urls = self.0.peer_urls.write();
            peer_urls.clone_from(&urls);
            // Recorded under the lock, so that the records are in the order of the changes.
            if let Some(disk) = self.0.durability.disk() {
                disk.peer_urls_changed(urls);
            }
        }
        let members = Ok::<_, Status>(self.members());
        Ok(Response::new(pb::MemberUpdateResponse {
            header: self.header(),
            members: self.0.durability.commit_metadata(members).await?,
        }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let id = request.get_ref().id;
        self.admit_for(&request, Call::MemberRemove, id).await?;
        Err(status::member_not_learner())
    }
}

/// etcd's check of the peer URLs of a new member.
pub(super) fn check_urls(urls: &[String]) -> Result<(), Status> {
    match !urls.is_empty() && urls.iter().all(|url| is_url(url)) {
        true => Ok(()),
        false => Err(status::bad_member_urls()),
    }
}

/// Whether etcd accepts `url` as a peer URL: a known scheme, a host and a port.
fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.and_then(|r| r.rsplit_once(':'))
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
