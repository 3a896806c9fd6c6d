//! The Cluster service of a cluster of one.

use super::{Core, status};
use crate::pb::etcdserverpb as pb;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `etcdserverpb.Cluster`.
pub(super) struct ClusterService(pub(super) Arc<Core>);

impl ClusterService {
    /// Parity: answers of this service carry no revision.
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

    fn check_member(&self, id: u64) -> Result<(), Status> {
        (id == self.0.config.identity.member_id)
            .then_some(())
            .ok_or_else(status::member_not_found)
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.0.check_authenticated(&request)?;
        Ok(Response::new(pb::MemberListResponse {
            header: self.header(),
            members: self.members(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.0.check_root(&request)?;
        let urls = &request.get_ref().peer_ur_ls;
        if urls.is_empty() || !urls.iter().all(|url| is_url(url)) {
            return Err(status::bad_member_urls());
        }
        if urls.iter().any(|url| self.0.peer_urls.read().contains(url)) {
            return Err(status::peer_url_exists());
        }
        // There is no Raft here to join; this is what etcd says when it cannot take a member.
        Err(status::unhealthy())
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.0.check_root(&request)?;
        self.check_member(request.get_ref().id)?;
        Err(status::not_enough_members())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.0.check_root(&request)?;
        self.check_member(request.get_ref().id)?;
        // Nothing listens there; they are kept to be listed.
        self.0.check_disk()?;
        let urls = request.into_inner().peer_ur_ls;
        {
            let _order = self.0.changing.lock();
            self.0.peer_urls.write().clone_from(&urls);
            if let Some(durable) = &self.0.durable {
                durable.peer_urls_changed(urls);
            }
        }
        self.0.flushed().await?;
        Ok(Response::new(pb::MemberUpdateResponse {
            header: self.header(),
            members: self.members(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.0.check_root(&request)?;
        self.check_member(request.get_ref().id)?;
        Err(status::member_not_learner())
    }
}

/// Whether etcd takes `url` for a peer's: a scheme it knows, a host and a port.
fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.and_then(|r| r.rsplit_once(':'))
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
