//! Leases of a replica's clients: they live upstream, and count here.

use super::{Answers, Forward, Reply, decode, is_about_our_token};
use crate::pb::etcdserverpb as pb;
use crate::server::admission::{Call, Caller, Operation};
use crate::server::peer::Peer;
use crate::server::refusals::Budget;
use crate::server::{Core, status};
use bytes::Bytes;
use futures::stream::StreamExt;
use prost::Message;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// When a lease of upstream that has `ttl_secs` left ends unless it is renewed elsewhere.
fn lease_end(ttl_secs: i64) -> Instant {
    // Far beyond every lease: etcd takes at most 9,000,000,000 s.
    let secs = u64::try_from(ttl_secs).unwrap_or(0).min(1 << 33);
    Instant::now() + Duration::from_secs(secs)
}

impl Core {
    /// Fails if the user of `peer` has been granted too many leases here.
    pub(super) fn may_grant_upstream(&self, peer: &Peer) -> Result<(), Status> {
        let now = Instant::now();
        match self.shares.may_grant(peer, |_, until| until <= now) {
            true => Ok(()),
            false => {
                self.refusals.note(Budget::Leases, peer);
                Err(status::too_many_leases())
            }
        }
    }

    /// Notes the answer to a renewal.
    pub(super) fn renewed(&self, peer: &Peer, answer: &Bytes) {
        if let Ok(renewed) = pb::LeaseKeepAliveResponse::decode(answer.clone()) {
            self.shares.renewed(peer, renewed.id, lease_end(renewed.ttl));
        }
    }

    /// Counts a lease of the user of `peer`, until it ends unless it is renewed here.
    pub(super) fn granted_upstream(&self, peer: &Peer, granted: &pb::LeaseGrantResponse) {
        self.shares.granted(peer, granted.id, lease_end(granted.ttl));
    }
}

impl Forward {
    /// The answers to a client's stream of keepalives.
    pub(super) fn renewals(self, request: tonic::Request<Streaming<Bytes>>) -> Answers<()> {
        let caller = Caller::of(&request);
        let mut inbound = request.into_inner();
        let stream = async_stream::try_stream! {
            loop {
                let message = tokio::select! {
                    () = self.core.stop.cancelled() => Err(status::stopped()),
                    message = inbound.message() => message,
                };
                let Some(message) = message? else { break };
                let id = decode::<pb::LeaseKeepAliveRequest>(&message)?.id;
                // Every message is admitted, because permissions may have been revoked since the last one.
                let operation = Operation::lease(Call::LeaseKeepAlive, id);
                let who = self.vouch(&caller, &operation).await?;
                let mut renewed = self.core.renew(&self.upstream, who.clone(), id).await;
                if let Err(status) = &renewed
                    && is_about_our_token(status, &who)
                {
                    let who = self.vouch(&caller, &operation).await?;
                    renewed = self.core.renew(&self.upstream, who, id).await;
                }
                let answer = renewed?;
                self.core.renewed(caller.peer(), &answer);
                // The answer is not held: a renewal writes nothing that the client could read.
                yield Reply::Passed(answer);
            }
        };
        stream.boxed()
    }
}
