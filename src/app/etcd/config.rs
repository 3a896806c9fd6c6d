//! What a store and its etcd server are made of.

use crate::model::cluster::ClusterName;
use crate::server::listen::Address;
use crate::server::tls::TlsFiles;
use crate::{auth, durable, follow, server};
use std::time::Duration;

/// For how long clients that compact themselves are expected to keep revisions; Kubernetes compacts every five minutes.
const KEPT_BY_CLIENTS: Duration = Duration::from_secs(300);
/// A socket for etcd clients.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// The address of the socket.
    pub address: Address,
    /// TLS files; `None` serves without TLS.
    pub tls: Option<TlsFiles>,
    /// Whether a client certificate's common name is the etcd user.
    pub cert_auth: bool,
}

/// Configuration of a store and of its etcd server.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    pub server: server::Config,
    /// Password hashing and tokens.
    pub auth: auth::Config,
    /// Shortest lease, in seconds.
    pub min_lease_ttl_secs: i64,
    /// Sockets for etcd clients.
    pub listen: Vec<ListenConfig>,
    /// Sockets for HTTP. If there are any, `listen` serves gRPC only.
    pub listen_http: Vec<ListenConfig>,
    /// Additional sockets for health and metrics only.
    pub listen_metrics: Vec<ListenConfig>,
    /// Which revisions are compacted without a client's request.
    pub auto_compaction: AutoCompaction,
    /// Bytes of history from which it is compacted, whatever `auto_compaction` says; `None` for no limit.
    pub history_max: Option<usize>,
    /// The data directory; `None` keeps data in memory only.
    pub data: Option<durable::Config>,
    /// Creates the users and roles of this cluster and enables authentication.
    pub users_of: Option<ClusterName>,
    /// The upstream whose keys, users and revisions the store takes over; `None` for a store of its own.
    pub follow: Option<follow::Config>,
}

/// Compaction by the server itself (etcd's `--auto-compaction-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keeps all revisions.
    Off,
    /// Keeps revisions that are not older than this.
    Periodic(Duration),
    /// Keeps this many of the latest revisions.
    Revision(i64),
}

impl AutoCompaction {
    /// How long a watch may be without a message if its client shall be able to resume: a third of the time for which
    /// revisions are kept. Where that is not known, clients that compact themselves keep at least some minutes.
    pub fn quiet_watch_time(self) -> Duration {
        let kept = match self {
            Self::Periodic(kept) => kept,
            Self::Off | Self::Revision(_) => KEPT_BY_CLIENTS,
        };
        (kept / 3).max(Duration::from_millis(100))
    }
}

impl EtcdConfig {
    /// etcd's defaults, for clients at `listen`.
    pub fn new(server: server::Config, listen: Vec<ListenConfig>) -> Self {
        Self {
            server,
            auth: auth::Config::default(),
            min_lease_ttl_secs: crate::lease::MIN_TTL_SECS,
            listen,
            listen_http: vec![],
            listen_metrics: vec![],
            auto_compaction: AutoCompaction::Off,
            history_max: None,
            data: None,
            users_of: None,
            follow: None,
        }
    }
}
