//! Why the upstream cannot be followed.

use crate::kvstore::{client, config};
use crate::mvcc::OutOfOrder;
use crate::snapshot;
use crate::util::causes::{causes, causes_after};
use std::io;
use std::time::Duration;
use tonic::{Code, Status};

/// etcd's error of a member that has lost its leader.
const NO_LEADER: &str = "no leader";
/// etcd's error while authentication is off.
const NO_AUTH: &str = "authentication is not enabled";
/// etcd's error about a call without a token.
const NOBODY: &str = "user name is empty";
/// etcd's errors about a token that has ended, or that is older than the last change of users.
const STALE_TOKEN: [&str; 2] = ["invalid auth token", "revision of auth store is old"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client file cannot be read.
    #[error(transparent)]
    File(#[from] config::Error),
    /// A TLS file or the URL of an endpoint cannot be used.
    #[error("{endpoint}: {source}")]
    Client { endpoint: String, source: client::Error },
    /// An error of the upstream, or of the connection to it.
    #[error("{endpoint}: {}", describe(status))]
    Call { endpoint: String, status: Status },
    #[error(
        "{endpoint}: users and roles cannot be read: {}; give the user of this replica the role root",
        describe(status)
    )]
    Users { endpoint: String, status: Status },
    #[error("{endpoint}: no answer in {} s", limit.as_secs_f32())]
    Timeout { endpoint: String, limit: Duration },
    #[error(
        "{0} is a grpc-proxy, whose answers have the cluster id 0: name the etcd members instead, because a proxy passes on neither progress nor revisions of its members"
    )]
    Proxy(String),
    #[error("{endpoint} runs etcd {version}, whose watches can lose events: upgrade it to 3.5.13, 3.6.0 or later")]
    TooOld { endpoint: String, version: String },
    #[error("{0} is a learner, which serves no watches: promote it, or name another endpoint")]
    Learner(String),
    #[error("{endpoint} belongs to cluster {found:x}, and this replica follows cluster {expected:x}")]
    OtherCluster {
        endpoint: String,
        found: u64,
        expected: u64,
    },
    #[error("{0} has another past than this replica")]
    OtherPast(String),
    /// Another replica has another past.
    #[error("{endpoint} has other keys at revision {revision} than {upstream}")]
    OtherKeys {
        endpoint: String,
        upstream: String,
        revision: i64,
    },
    /// An answer that no etcd would give, or that this cluster cannot give.
    #[error("{endpoint}: invalid answer: {why}")]
    Invalid { endpoint: String, why: String },
    /// No endpoint can be followed.
    #[error("no endpoint can be followed: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Nobody(Vec<Error>),
    #[error("the data of the upstream are contradictory: {0}")]
    OutOfOrder(#[from] OutOfOrder),
    #[error("the snapshot of the upstream cannot be read: {0}")]
    Snapshot(#[from] snapshot::Error),
    #[error("cannot keep the snapshot in a temporary file: {0}; set TMPDIR to a directory with space")]
    Temporary(io::Error),
    /// The revision that was being read is compacted.
    #[error("{0}: the revision that was being read is compacted")]
    Compacted(String),
}

impl Error {
    /// The status, if the upstream or the connection gave one.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Call { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether the user of this replica lacks a permission.
    pub(super) fn is_denied(&self) -> bool {
        self.status().is_some_and(|s| s.code() == Code::PermissionDenied)
    }

    /// Whether the upstream does not know the method.
    pub(super) fn is_unimplemented(&self) -> bool {
        self.status().is_some_and(|s| s.code() == Code::Unimplemented)
    }

    /// Whether the revision that was asked for is compacted.
    pub(super) fn is_compacted(&self) -> bool {
        let by_status = |s: &Status| s.code() == Code::OutOfRange && s.message().contains("compacted");
        matches!(self, Self::Compacted(_)) || self.status().is_some_and(by_status)
    }

    /// Whether the revision that was asked for is one that the member does not have yet.
    pub(super) fn is_future(&self) -> bool {
        let by_status = |s: &Status| s.code() == Code::OutOfRange && s.message().contains("future revision");
        self.status().is_some_and(by_status)
    }

    /// Whether the member has no leader at the moment.
    pub(super) fn is_without_leader(&self) -> bool {
        self.status().is_some_and(|s| s.message().contains(NO_LEADER))
    }

    /// Whether the upstream says that it has no users.
    pub(super) fn is_without_auth(&self) -> bool {
        self.status().is_some_and(|s| s.message().contains(NO_AUTH))
    }
}

/// Whether the upstream refused a call because it had no credentials.
pub(super) fn is_of_nobody(status: &Status) -> bool {
    status.message().contains(NOBODY)
}

/// Whether the token of a refused call has ended. The call was not executed.
pub(super) fn is_stale_token(status: &Status) -> bool {
    STALE_TOKEN.iter().any(|text| status.message().contains(text))
}

/// Whether the request that failed surely never left this process.
pub(super) fn is_unsent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        // Hyper's word for a request that waited for a connection which ended before.
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled)
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether the status comes from the connection rather than from the upstream.
pub(super) fn is_of_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// A status with its causes.
pub(super) fn describe(status: &Status) -> String {
    let text = match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => causes_after(status.message(), None),
    };
    match text.is_empty() {
        true => format!("{:?}", status.code()),
        false => text,
    }
}
