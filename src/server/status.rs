//! The only mapping from errors to etcd's codes and messages. Go clients find their typed errors by the exact text,
//! so the text is API (etcd: api/v3rpc/rpctypes/error.go).

use crate::{auth, durable, lease, mvcc};
use tonic::{Code, Status};

macro_rules! statuses {
    ($($name:ident = $code:ident, $text:literal;)*) => {
        $(pub(in crate::server) fn $name() -> Status {
            Status::new(Code::$code, concat!("etcdserver: ", $text))
        })*
    };
}

statuses! {
    empty_key = InvalidArgument, "key is not provided";
    key_not_found = InvalidArgument, "key not found";
    value_provided = InvalidArgument, "value is provided";
    lease_provided = InvalidArgument, "lease is provided";
    too_many_ops = InvalidArgument, "too many operations in txn request";
    duplicate_key = InvalidArgument, "duplicate key given in txn request";
    invalid_sort_option = InvalidArgument, "invalid sort option";
    bad_member_urls = InvalidArgument, "given member URLs are invalid";
    request_too_large = InvalidArgument, "request is too large";
    invalid_downgrade_version = InvalidArgument, "invalid downgrade target version";
    wrong_downgrade_format = InvalidArgument, "wrong downgrade target version format";
    member_not_found = NotFound, "member not found";
    member_not_learner = FailedPrecondition, "can only promote a learner member";
    peer_url_exists = FailedPrecondition, "Peer URLs already exists";
    not_leader = FailedPrecondition, "not leader";
    // etcd has no such error: each of its members takes the call.
    members_only = FailedPrecondition, "a replica does not take this call; send it to a member of the upstream cluster";
    bad_leader_transferee = FailedPrecondition, "bad leader transferee";
    // etcd has no such error: a member of etcd can always be downgraded.
    no_downgrade = FailedPrecondition, "Isthmus cannot be downgraded in place; restore a snapshot with etcdutl";
    no_space = ResourceExhausted, "mvcc: database space exceeded";
    too_many_requests = ResourceExhausted, "too many requests";
    too_many_leases = ResourceExhausted, "too many leases of one user";
    too_many_watchers = ResourceExhausted, "too many watchers of one connection";
    too_long_key = InvalidArgument, "the key and range end of a watch are too long";
    too_many_ranges = ResourceExhausted, "too many different ranges watched by one user";
    corrupt = DataLoss, "corrupt cluster";
    unhealthy = Unavailable, "unhealthy cluster";
    stopped = Unavailable, "server stopped";
    timed_out = Unavailable, "request timed out";
    incomplete_request = DeadlineExceeded, "the request was incomplete for too long";
    future_revision = OutOfRange, "mvcc: required revision is a future revision";
    compacted = OutOfRange, "mvcc: required revision has been compacted";
    // etcd maps this error to the client-side error, which has no code on the wire.
    not_enough_members = Unknown, "re-configuration failed due to not enough started members";
}

/// The refusal of an answer that is too long.
pub(super) fn too_long_answer(bytes: usize, most: usize) -> Status {
    Status::resource_exhausted(format!(
        "etcdserver: the answer would have {bytes} bytes, and may have {most}; read in parts with a limit"
    ))
}

/// The refusal of a transaction that visits too many keys.
pub(super) fn too_much_work(keys: usize, most: usize) -> Status {
    Status::resource_exhausted(format!(
        "etcdserver: the transaction would visit {keys} keys, and may visit {most}; read them before, and compare less"
    ))
}

impl From<mvcc::Error> for Status {
    fn from(error: mvcc::Error) -> Self {
        match error {
            mvcc::Error::Compacted => compacted(),
            mvcc::Error::FutureRevision => future_revision(),
            mvcc::Error::LeaseNotFound => lease::Error::NotFound.into(),
            mvcc::Error::KeyNotFound => key_not_found(),
            mvcc::Error::Stopped => Self::cancelled("etcdserver: the read was stopped"),
        }
    }
}

impl From<durable::Refused> for Status {
    fn from(error: durable::Refused) -> Self {
        match error {
            // etcd has no such error. The text must not sound like etcd's quota, which another remedy helps against.
            durable::Refused::Obstacle(obstacle) => {
                use durable::Obstacle as O;
                let code = match obstacle {
                    O::NoSpace | O::DiskQuota | O::FileSize | O::ProcessFiles | O::SystemFiles | O::Memory => {
                        Code::ResourceExhausted
                    }
                    O::Busy | O::ReadOnly | O::Denied => Code::Unavailable,
                };
                Self::new(code, format!("etcdserver: {obstacle}"))
            }
            durable::Refused::Busy => too_many_requests(),
            durable::Refused::Ended => stopped(),
        }
    }
}

impl From<lease::Error> for Status {
    fn from(error: lease::Error) -> Self {
        let code = match error {
            lease::Error::Exists => Code::FailedPrecondition,
            lease::Error::NotFound => Code::NotFound,
            lease::Error::TtlTooLarge => Code::OutOfRange,
        };
        Self::new(code, format!("etcdserver: {error}"))
    }
}

impl From<auth::Error> for Status {
    fn from(error: auth::Error) -> Self {
        use auth::Error as E;
        let code = match error {
            E::UserEmpty
            | E::RoleEmpty
            | E::AuthFailed
            | E::PermissionNotGiven
            | E::InvalidAuthMgmt
            | E::AuthOldRevision => Code::InvalidArgument,
            E::PermissionDenied => Code::PermissionDenied,
            E::InvalidAuthToken => Code::Unauthenticated,
            // etcd passes these errors on without a code and a prefix.
            E::NoPasswordUser | E::VerifyOnly | E::Internal(_) => return Self::unknown(error.to_string()),
            E::RootUserNotExist
            | E::RootRoleNotExist
            | E::UserAlreadyExist
            | E::UserNotFound
            | E::RoleAlreadyExist
            | E::RoleNotFound
            | E::RoleNotGranted
            | E::PermissionNotGranted
            | E::AuthNotEnabled => Code::FailedPrecondition,
        };
        Self::new(code, format!("etcdserver: {error}"))
    }
}

/// A status as a Go client prints it: the reason of a cancelled watch.
pub(super) fn rendered(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_etcds_codes_and_texts() {
        let cases: [(Status, Code, &str); 6] = [
            (
                mvcc::Error::Compacted.into(),
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                mvcc::Error::LeaseNotFound.into(),
                Code::NotFound,
                "etcdserver: requested lease not found",
            ),
            (
                lease::Error::Exists.into(),
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
            ),
            (
                auth::Error::UserEmpty.into(),
                Code::InvalidArgument,
                "etcdserver: user name is empty",
            ),
            (
                auth::Error::InvalidAuthToken.into(),
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
            ),
            (
                auth::Error::RoleNotFound.into(),
                Code::FailedPrecondition,
                "etcdserver: role name not found",
            ),
        ];
        for (status, code, text) in cases {
            assert_eq!((status.code(), status.message()), (code, text));
        }
        let denied = rendered(&auth::Error::PermissionDenied.into());
        assert_eq!(
            denied,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
    }
}
