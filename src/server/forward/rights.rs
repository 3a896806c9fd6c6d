//! The forwarded calls as admission sees them. Decodes a request, checks its fields as etcd does, and says which rights the
//! call needs. The message itself goes upstream as it came.

use crate::mvcc::{KeyRange, Op, Put, RangeOptions, Txn};
use crate::pb::etcdserverpb as pb;
use crate::pb::v3electionpb as epb;
use crate::pb::v3lockpb as lpb;
use crate::server::admission::{Call, Operation, Subject};
use crate::server::cluster::check_urls;
use crate::server::concurrency::{candidates, created_at, hex, missing_leader, operation as recipe};
use crate::server::kv::{checked_delete, checked_put};
use crate::server::status;
use bytes::Bytes;
use prost::Message;
use tonic::Status;

/// Decodes a message. The bytes of its fields are shared with `bytes`.
pub(super) fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, Status> {
    // The code with which tonic refuses what it cannot decode.
    M::decode(bytes.clone()).map_err(|error| Status::internal(error.to_string()))
}

/// What a forwarded call does, for admission; fails if the request is malformed.
pub(super) fn operation(path: &str, message: &Bytes) -> Result<Operation, Status> {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    match service {
        "etcdserverpb.KV" => of_kv(method, message),
        "etcdserverpb.Lease" => of_lease(method, message),
        "etcdserverpb.Cluster" => of_cluster(method, message),
        "etcdserverpb.Maintenance" => of_maintenance(method, message),
        "etcdserverpb.Auth" => of_auth(method, message),
        "v3lockpb.Lock" => of_lock(method, message),
        "v3electionpb.Election" => of_election(method, message),
        _ => Err(unknown(method)),
    }
}

/// A method that the table of methods has, and these functions do not.
fn unknown(method: &str) -> Status {
    Status::unimplemented(format!("a replica does not forward {method}"))
}

fn of_kv(method: &str, message: &Bytes) -> Result<Operation, Status> {
    match method {
        "Range" | "RangeStream" => {
            let request: pb::RangeRequest = decode(message)?;
            Ok(Operation::read(
                Call::Range,
                KeyRange::new(request.key, request.range_end),
            ))
        }
        "Put" => Ok(checked_put(decode(message)?)?.2),
        "DeleteRange" => Ok(checked_delete(decode(message)?)?.2),
        "Compact" => decode::<pb::CompactionRequest>(message).map(|_| Operation::new(Call::Compact)),
        // Transactions are checked by the service, which may answer them.
        _ => Err(unknown(method)),
    }
}

fn of_lease(method: &str, message: &Bytes) -> Result<Operation, Status> {
    Ok(match method {
        "LeaseGrant" => {
            decode::<pb::LeaseGrantRequest>(message)?;
            Operation::lease_grant()
        }
        "LeaseRevoke" => Operation::lease(Call::LeaseRevoke, decode::<pb::LeaseRevokeRequest>(message)?.id),
        "LeaseKeepAlive" => Operation::lease(Call::LeaseKeepAlive, decode::<pb::LeaseKeepAliveRequest>(message)?.id),
        "LeaseTimeToLive" => {
            decode::<pb::LeaseTimeToLiveRequest>(message)?;
            Operation::new(Call::LeaseTimeToLive)
        }
        "LeaseLeases" => Operation::new(Call::LeaseLeases),
        _ => return Err(unknown(method)),
    })
}

fn of_cluster(method: &str, message: &Bytes) -> Result<Operation, Status> {
    let about = |call, id| Operation::about(call, Subject::Member(id));
    Ok(match method {
        "MemberList" => Operation::new(Call::MemberList),
        "MemberAdd" => {
            check_urls(&decode::<pb::MemberAddRequest>(message)?.peer_ur_ls)?;
            Operation::new(Call::MemberAdd)
        }
        "MemberRemove" => about(Call::MemberRemove, decode::<pb::MemberRemoveRequest>(message)?.id),
        "MemberPromote" => about(Call::MemberRemove, decode::<pb::MemberPromoteRequest>(message)?.id),
        "MemberUpdate" => about(Call::MemberUpdate, decode::<pb::MemberUpdateRequest>(message)?.id),
        _ => return Err(unknown(method)),
    })
}

fn of_maintenance(method: &str, message: &Bytes) -> Result<Operation, Status> {
    use pb::alarm_request::AlarmAction as Action;
    Ok(match method {
        "Alarm" => match decode::<pb::AlarmRequest>(message)?.action() {
            Action::Get => Operation::new(Call::MaintenanceRead),
            Action::Activate | Action::Deactivate => Operation::new(Call::AlarmChange),
        },
        "Hash" | "HashKV" | "Snapshot" => Operation::new(Call::Maintenance),
        _ => return Err(unknown(method)),
    })
}

fn of_auth(method: &str, message: &Bytes) -> Result<Operation, Status> {
    Ok(match method {
        "AuthStatus" | "Authenticate" => Operation::new(Call::AuthOpen),
        "UserList" | "RoleList" => Operation::new(Call::AuthList),
        "UserGet" => {
            let user = decode::<pb::AuthUserGetRequest>(message)?.name;
            Operation::about(Call::UserGet, Subject::User(user))
        }
        "RoleGet" => {
            let role = decode::<pb::AuthRoleGetRequest>(message)?.role;
            Operation::about(Call::RoleGet, Subject::Role(role))
        }
        _ => Operation::new(Call::AuthChange),
    })
}

fn of_lock(method: &str, message: &Bytes) -> Result<Operation, Status> {
    match method {
        "Lock" => {
            let lpb::LockRequest { name, lease } = decode(message)?;
            Ok(of_candidate(&name, lease, Bytes::new()))
        }
        "Unlock" => {
            let key = decode::<lpb::UnlockRequest>(message)?.key;
            if key.is_empty() {
                return Err(status::empty_key());
            }
            Ok(recipe(&vec![Op::Delete(KeyRange::key(key))].into()))
        }
        _ => Err(unknown(method)),
    }
}

fn of_election(method: &str, message: &Bytes) -> Result<Operation, Status> {
    match method {
        "Campaign" => {
            let epb::CampaignRequest { name, lease, value } = decode(message)?;
            Ok(of_candidate(&name, lease, value))
        }
        "Proclaim" => {
            let epb::ProclaimRequest { leader, value } = decode(message)?;
            let leader = leader.ok_or_else(missing_leader)?;
            let put = Put {
                key: leader.key.clone(),
                value,
                lease: leader.lease,
                ..Put::default()
            };
            of_leader(&leader, Op::Put(put))
        }
        "Resign" => {
            let leader = decode::<epb::ResignRequest>(message)?
                .leader
                .ok_or_else(missing_leader)?;
            let delete = Op::Delete(KeyRange::key(leader.key.clone()));
            of_leader(&leader, delete)
        }
        "Leader" | "Observe" => {
            let name = decode::<epb::LeaderRequest>(message)?.name;
            Ok(Operation::read(Call::Range, candidates(&name)))
        }
        _ => Err(unknown(method)),
    }
}

/// A candidate that joins the queue of a lock or an election, and reads the queue.
fn of_candidate(name: &[u8], lease: i64, value: Bytes) -> Operation {
    let key = Bytes::from([name, b"/", hex(lease).as_bytes()].concat());
    let join = match lease {
        // Upstream grants a lease and names the key by the lease, so the key may be any of the queue.
        0 => Op::Delete(candidates(name)),
        lease => Op::Put(Put {
            key: key.clone(),
            value,
            lease,
            ..Put::default()
        }),
    };
    recipe(&Txn {
        compares: vec![created_at(&key, 0)],
        success: vec![join, Op::Range(RangeOptions::new(candidates(name)))],
        failure: vec![],
    })
}

/// A change by a leader whose key has not been replaced.
fn of_leader(leader: &epb::LeaderKey, change: Op) -> Result<Operation, Status> {
    if leader.key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(recipe(&Txn {
        compares: vec![created_at(&leader.key, leader.rev)],
        success: vec![change],
        failure: vec![],
    }))
}

#[cfg(test)]
mod tests {
    use super::super::methods::{Handling, handling};
    use super::*;
    use crate::server::descriptors::grpc_methods;

    #[test]
    fn the_rights_of_every_forwarded_method_are_known() {
        for method in grpc_methods() {
            let path = format!("/{}/{}", method.service, method.name);
            let forwarded = !matches!(
                handling(&path),
                Some(Handling::Here | Handling::Txn | Handling::Refused)
            );
            let known = operation(&path, &Bytes::new());
            // An empty request may be malformed, which is known as well.
            let is_unknown = known.is_err_and(|status| status.message().contains("does not forward"));
            assert!(!(forwarded && is_unknown), "{path}");
        }
    }

    #[test]
    fn malformed_requests_are_refused_before_they_are_sent() {
        let refused = |path: &str, message: Vec<u8>| operation(path, &message.into()).map(|_| ()).unwrap_err();
        let key = refused("/etcdserverpb.KV/Put", pb::PutRequest::default().encode_to_vec());
        assert_eq!(key.message(), "etcdserver: key is not provided");
        let urls = refused("/etcdserverpb.Cluster/MemberAdd", vec![]);
        assert_eq!(urls.message(), "etcdserver: given member URLs are invalid");
        let torn = refused("/etcdserverpb.KV/DeleteRange", vec![0x0a, 0x05]);
        assert_eq!(torn.code(), tonic::Code::Internal);
    }

    #[test]
    fn a_lock_needs_its_key_and_a_look_at_the_queue() {
        let of = |lease| {
            let name = Bytes::from_static(b"l");
            let request = lpb::LockRequest { name, lease };
            let operation = operation("/v3lockpb.Lock/Lock", &request.encode_to_vec().into());
            format!("{:?}", operation.unwrap())
        };
        assert!(of(7).contains("l/7") && of(7).contains("WriteLease(7)"), "{}", of(7));
        assert!(!of(0).contains("WriteLease"), "{}", of(0));
    }
}
