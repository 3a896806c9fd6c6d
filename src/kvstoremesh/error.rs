//! Why an attempt to connect to a remote cluster, or a connection to it, ended.

use super::cluster::Cause;
use crate::kvstore;
use crate::kvstore::{client, config};
use crate::model::cluster::ClusterName;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The store answers, and forbids reading these keys.
    #[error(
        "the remote forbids reading {keys}: {source}; grant the role of this client certificate's user read access"
    )]
    Forbidden { keys: String, source: client::Error },
    /// The store answers, and does not know this client.
    #[error(
        "the remote has no user {user:?}, which is the name in this client's certificate: add the user to the users file of \
         the remote (--cluster-users-config-path), or use a certificate of its user \"remote\""
    )]
    NoUser { user: String },
    /// The client file has another name than the cluster.
    #[error("the store at {endpoints} belongs to cluster {owner}, not {name}: rename the client file to {owner}")]
    OtherCluster {
        endpoints: String,
        owner: String,
        name: ClusterName,
    },
    /// The client's own certificate or endpoints are the cause.
    #[error("{0}")]
    OwnMistake(String),
    #[error("cannot write to the local store: {0}")]
    Backend(#[from] kvstore::Error),
    #[error("{key} is missing; is the cluster called {name}?")]
    NoClusterConfig { key: String, name: ClusterName },
    #[error("{key} is not a cluster configuration: {source}")]
    BadClusterConfig { key: String, source: serde_json::Error },
    #[error("{key} has {bytes} bytes, which is too large for a cluster configuration")]
    HugeClusterConfig { key: String, bytes: usize },
    #[error("handling the remote cluster's data panicked; the log shows the panic")]
    Panicked,
    /// Not a failure: a new connection uses the changed configuration.
    #[error("the cluster configuration of the remote changed")]
    ConfigChanged,
    #[error("no heartbeat for {} s, and no answer from the store", .0.as_secs())]
    NoHeartbeat(Duration),
    #[error("the watch of the heartbeat missed a change")]
    StuckWatch,
    #[error("{prefix} holds {what}")]
    TooMuch { prefix: String, what: String },
}

impl Error {
    /// An error of a request for `keys`, which are named if the store forbids reading them.
    pub(super) fn of(keys: &str, source: client::Error) -> Self {
        match source.is_permission_denied() {
            true => Self::Forbidden {
                keys: keys.to_owned(),
                source,
            },
            false => Self::Client(source),
        }
    }

    /// The cause, as the state machine distinguishes causes.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Config(_) => Cause::File,
            Self::Client(error) if error.is_connection_lost() => Cause::ConnectionLost,
            Self::Client(error) if error.is_refused() => Cause::Refused,
            Self::TooMuch { .. } => Cause::TooMuch,
            _ => Cause::Other,
        }
    }
}
