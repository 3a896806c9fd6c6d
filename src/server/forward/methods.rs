//! What a replica does with each method of the etcd API.

/// Who answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handling {
    /// The service here, from the store here.
    Here,
    /// The service here, unless the read needs history that only upstream has.
    Read(Read),
    /// The service here for a transaction that only reads, and upstream for any other.
    Txn,
    /// Upstream, with one message in each direction.
    Unary(Unary),
    /// Upstream, with a stream of answers.
    Stream,
    /// Upstream, over streams that all clients share.
    KeepAlive,
    /// The service here, if the history here is exact, and otherwise upstream.
    Hash,
    /// Upstream's snapshot, and for a replica the snapshot of the store here.
    Snapshot,
    /// The service here refuses what only the asked member can do.
    Refused,
}

/// A read of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Range,
    RangeStream,
}

/// A unary call that upstream answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unary {
    pub(super) patience: Patience,
    pub(super) then: Then,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as a request may take in etcd.
    Request,
    /// As long as the client waits: for a lock, or to be elected.
    Client,
}

/// What follows a call before its answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// The history here is compacted, too.
    Compact,
    /// The lease counts as one of its user.
    CountLease,
    /// The lease counts no more.
    ForgetLease,
    /// The token is remembered.
    RememberToken,
    /// Users and roles are loaded again.
    ReloadUsers,
    /// The client URLs in the answer become those of this replica, or a client that asks for endpoints would leave it.
    OwnUrls,
    /// The caller must be allowed to read the keys in the answer.
    ShowKeys,
    /// The caller must be allowed to read the keys of the leases in the answer.
    ShowLeases,
}

/// A call without anything special.
pub(super) const PLAIN: Unary = Unary {
    patience: Patience::Request,
    then: Then::Nothing,
};

const fn unary(then: Then) -> Handling {
    Handling::Unary(Unary {
        patience: Patience::Request,
        then,
    })
}

/// The handling of the method with this path, such as `/etcdserverpb.KV/Put`; `None` for a method that the etcd API does
/// not have.
pub(super) fn handling(path: &str) -> Option<Handling> {
    let waits = Handling::Unary(Unary {
        patience: Patience::Client,
        then: Then::Nothing,
    });
    let plain = Handling::Unary(PLAIN);
    Some(match path.strip_prefix('/')?.split_once('/')? {
        ("etcdserverpb.KV", method) => match method {
            "Range" => Handling::Read(Read::Range),
            "RangeStream" => Handling::Read(Read::RangeStream),
            "Txn" => Handling::Txn,
            "Put" | "DeleteRange" => plain,
            "Compact" => unary(Then::Compact),
            _ => return None,
        },
        ("etcdserverpb.Watch", "Watch") => Handling::Here,
        ("etcdserverpb.Lease", method) => match method {
            "LeaseGrant" => unary(Then::CountLease),
            "LeaseRevoke" => unary(Then::ForgetLease),
            "LeaseKeepAlive" => Handling::KeepAlive,
            "LeaseTimeToLive" => unary(Then::ShowKeys),
            "LeaseLeases" => unary(Then::ShowLeases),
            _ => return None,
        },
        ("v3lockpb.Lock", "Lock") | ("v3electionpb.Election", "Campaign") => waits,
        ("v3lockpb.Lock", "Unlock") => plain,
        ("v3electionpb.Election", "Proclaim" | "Leader" | "Resign") => plain,
        ("v3electionpb.Election", "Observe") => Handling::Stream,
        ("etcdserverpb.Cluster", method) => match method {
            "MemberList" => unary(Then::OwnUrls),
            "MemberAdd" | "MemberRemove" | "MemberUpdate" | "MemberPromote" => plain,
            _ => return None,
        },
        ("etcdserverpb.Maintenance", method) => match method {
            "Status" | "Defragment" => Handling::Here,
            "Alarm" => plain,
            "Hash" | "HashKV" => Handling::Hash,
            "Snapshot" => Handling::Snapshot,
            "MoveLeader" | "Downgrade" => Handling::Refused,
            _ => return None,
        },
        ("etcdserverpb.Auth", method) => match method {
            "Authenticate" => unary(Then::RememberToken),
            "AuthStatus" | "UserGet" | "UserList" | "RoleGet" | "RoleList" => plain,
            "AuthEnable" | "AuthDisable" => unary(Then::ReloadUsers),
            "UserAdd" | "UserDelete" | "UserChangePassword" => unary(Then::ReloadUsers),
            "UserGrantRole" | "UserRevokeRole" => unary(Then::ReloadUsers),
            "RoleAdd" | "RoleDelete" => unary(Then::ReloadUsers),
            "RoleGrantPermission" | "RoleRevokePermission" => unary(Then::ReloadUsers),
            _ => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::descriptors::grpc_methods;
    use std::collections::BTreeMap;

    fn word(handling: Handling) -> &'static str {
        match handling {
            Handling::Here | Handling::Read(_) | Handling::Txn | Handling::Hash => "here",
            Handling::Unary(_) | Handling::Stream | Handling::KeepAlive | Handling::Snapshot => "upstream",
            Handling::Refused => "refused",
        }
    }

    #[test]
    fn every_method_is_answered_here_or_forwarded_or_refused() {
        let mut by_word: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for method in grpc_methods() {
            let path = format!("/{}/{}", method.service, method.name);
            let handling = handling(&path);
            let handling = handling.unwrap_or_else(|| panic!("a replica does not know what to do with {path}"));
            // What has a stream of requests cannot be forwarded as one message.
            let streams = matches!(handling, Handling::Here | Handling::KeepAlive);
            assert!(
                method.kind != "bidi_stream" || streams,
                "{path} has a stream of requests"
            );
            let unary = matches!(handling, Handling::Unary(_) | Handling::Txn | Handling::Hash);
            assert!(!unary || method.kind == "unary", "{path} is no unary call");
            by_word.entry(word(handling)).or_default().push(method.name);
        }
        let here = [
            "Defragment",
            "Hash",
            "HashKV",
            "Range",
            "RangeStream",
            "Status",
            "Txn",
            "Watch",
        ];
        let mut found = by_word["here"].clone();
        found.sort();
        assert_eq!(found, here);
        assert_eq!(by_word["refused"], ["MoveLeader", "Downgrade"]);
        assert_eq!(handling("/etcdserverpb.KV/Get"), None);
        assert_eq!(handling("KV"), None);
    }

    #[test]
    fn every_change_of_users_is_in_force_before_its_answer() {
        let changes = |name: &str| {
            let reads = [
                "AuthStatus",
                "Authenticate",
                "UserGet",
                "UserList",
                "RoleGet",
                "RoleList",
            ];
            !reads.contains(&name)
        };
        for method in grpc_methods().into_iter().filter(|m| m.service == "etcdserverpb.Auth") {
            let handling = handling(&format!("/{}/{}", method.service, method.name));
            let reloads = handling == Some(unary(Then::ReloadUsers));
            assert_eq!(reloads, changes(&method.name), "{}", method.name);
        }
    }
}
