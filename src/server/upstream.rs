//! The cluster that a replica follows, as the services see it. The room `follow` implements [`Upstream`] over connections;
//! the server has no client of its own.

use bytes::Bytes;
use futures::stream::BoxStream;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// The metadata by which a replica asks another one for a snapshot of its own store, rather than of upstream's.
pub const SISTER: &str = "isthmus-sister";

/// A token that nobody has. An etcd looks at tokens only while authentication is on.
pub const NOBODY: &str = "isthmus: authentication is off";

/// The cluster that a replica follows: an etcd, or an Isthmus.
#[tonic::async_trait]
pub trait Upstream: Send + Sync {
    /// A revision that upstream had after this call began. Calls share reads of upstream. Fails with [`cut_off`] if upstream
    /// does not answer in time.
    async fn index(&self) -> Result<i64, Status>;

    /// Makes one unary call, without repeating it. `request` and the answer are messages without gRPC's prefix. `metadata`
    /// goes upstream beside the credentials of `who`. Fails with [`not_sent`] only if upstream surely did not get the call,
    /// and with [`lost`] if upstream may have executed it.
    async fn call(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        request: Bytes,
        deadline: Option<Instant>,
    ) -> Result<Bytes, Status>;

    /// Opens a streaming call. Like [`Upstream::call`] otherwise. The call ends with the returned stream.
    async fn stream(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        requests: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status>;

    /// Upstream as the last answer described it.
    fn identity(&self) -> UpstreamIdentity;

    /// Who decides what a user may do.
    fn judge(&self) -> Judge;

    /// Loads users and roles again, and returns once they are in force here. Called after a change of users went through
    /// here, and when upstream takes a token of ours for old.
    async fn reload_users(&self) -> Result<(), Status>;

    /// Whether the history here has the order of upstream, also inside revisions, so that hashes of keys can be compared.
    fn is_exact(&self) -> bool;

    /// Whether it is not known at the moment whether upstream has the same past as this replica.
    fn is_doubtful(&self) -> bool {
        false
    }

    /// Registers figures of the connections to upstream on the server's page.
    fn register(&self, _registry: &mut Registry) {}
}

/// What answers tell about upstream. Changes with leaders, upgrades and restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamIdentity {
    /// The id in the headers of upstream. Another id is another store: streams end.
    pub cluster_id: u64,
    /// The highest term seen.
    pub raft_term: u64,
    /// The member that leads; 0 if there is none or it is not known.
    pub leader: u64,
    /// The lowest version of upstream's endpoints: major, minor, patch.
    pub version: [u16; 3],
}

/// On whose behalf a call goes upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// The replica's own: its rights were checked here.
    Replica,
    /// None, since authentication is off as far as is known here. The call goes with [`NOBODY`], so that upstream refuses it if
    /// authentication has been turned on meanwhile: the replica's own rights must not stand in then.
    Nobody,
    /// The token that the caller sent, which upstream checks.
    Token(Arc<str>),
    /// The user whom the caller's certificate names, for whom the replica signs a token. Only with [`Judge::Upstream`].
    User(Arc<str>),
}

/// Who decides what the users of certificates may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Upstream, because the replica signs tokens for the users of certificates.
    Upstream,
    /// The replica, which forwards their calls with its own credentials.
    Replica,
}

/// Upstream surely did not get the call. Go's client repeats even writes after exactly this text, on another endpoint
/// (etcd: client/v3/retry.go, isSafeRetryMutableRPC).
pub fn not_sent() -> Status {
    Status::unavailable("there is no connection available")
}

/// Upstream may have executed the call. etcd's text for the same case; no client repeats a write after it.
pub fn lost() -> Status {
    Status::unavailable("etcdserver: request timed out, possibly due to connection lost")
}

/// Upstream did not answer a read. etcd's text for the same case; Go's client repeats the read on another endpoint.
pub fn cut_off() -> Status {
    super::status::timed_out()
}

/// Whether upstream refused a token that it does not know. The call was not executed.
pub fn is_unknown_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated && status.message() == "etcdserver: invalid auth token"
}

/// Whether upstream refused a token because users or roles have changed since it was signed.
pub fn is_old_token(status: &Status) -> bool {
    status.code() == Code::InvalidArgument && status.message() == "etcdserver: revision of auth store is old"
}

impl UpstreamIdentity {
    /// The version as `Status` shows it.
    pub fn version_text(&self) -> String {
        let [major, minor, patch] = self.version;
        format!("{major}.{minor}.{patch}")
    }
}
