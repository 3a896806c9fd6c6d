//! What the page shows, as values. They are also the answers of the API.

mod remote;
mod services;

pub use remote::{
    Configuration, Delivery, KeyCounts, Lag, Method, Minute, Mirror, MirroredKind, Propagation, RefusedKeys, Remote,
    RemoteCounters, RemoteDetail, Scoped, ScopedKind, ScopedRule, State, StateChange,
};
pub use services::{Finding, Findings, Service, ServiceIn, Services};

use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::time::SystemTime;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A moment. RFC 3339 with milliseconds, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub SystemTime);

/// This cluster, its process and its store.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Overview {
    /// When the values were looked up.
    pub at: Moment,
    pub cluster: OwnCluster,
    pub readiness: Readiness,
    pub store: StoreFigures,
    /// The keys of this cluster and those that are mirrored from others, by kind.
    pub keys: Vec<KeysOfKind>,
    pub remotes: Totals,
    pub process: ProcessFigures,
    /// The certificate in use that expires first.
    pub next_certificate: Option<Certificate>,
}

/// This cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OwnCluster {
    pub name: String,
    pub id: u32,
    /// 255 or 511.
    pub max_connected_clusters: u32,
    /// The subcommand that runs.
    pub subcommand: String,
    pub version: String,
    pub started: Moment,
    /// Whether this process holds the leader lock; absent where there is no election.
    pub is_leader: Option<bool>,
}

/// Whether the process is ready, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Readiness {
    pub is_ready: bool,
    pub parts: Vec<Part>,
}

/// One condition or one step of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Part {
    pub name: String,
    pub state: PartState,
    /// Why the condition fails, or what is not finished.
    pub reason: Option<String>,
}

/// The state of a part of readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PartState {
    Ok,
    /// A step that is not finished.
    Pending,
    Failed,
    /// The condition fails, which does not affect readiness.
    Warning,
}

/// The store that the process writes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StoreFigures {
    /// Where the store is.
    pub place: String,
    /// The store's cluster id, hexadecimal; absent before the first answer of an etcd.
    pub cluster_id: Option<String>,
    pub revision: Option<i64>,
    /// The history before this revision is gone.
    pub compacted: Option<i64>,
    pub keys: Option<usize>,
    /// Bytes of the data with its history.
    pub bytes: Option<usize>,
    /// Bytes from which the store takes deletions only; absent without a limit.
    pub quota_bytes: Option<usize>,
    /// Open connections of clients.
    pub connections: Option<usize>,
    pub watchers: Option<usize>,
}

/// Keys of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeysOfKind {
    pub kind: String,
    /// The keys of this cluster; absent in a process without a publisher.
    pub own: Option<usize>,
    pub mirrored: usize,
}

/// Numbers of remote clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    pub all: usize,
    pub in_sync: usize,
    /// Connected or connecting, and not complete yet.
    pub under_way: usize,
    pub away: usize,
    /// In any state, with something that an operator should look at.
    pub with_warnings: usize,
}

/// What the process uses of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ProcessFigures {
    pub resident_bytes: i64,
    /// User and system time since the start.
    pub cpu_seconds: f64,
    pub open_files: i64,
    pub max_open_files: i64,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Certificate {
    /// What the certificate is used for.
    pub role: String,
    /// The remote cluster that it is used for; absent for the process's own.
    pub cluster: Option<String>,
    /// The file; absent for a certificate that a server has shown.
    pub file: Option<String>,
    pub subject: String,
    pub issuer: String,
    pub not_after: Moment,
    /// Negative once it has expired.
    pub days_left: i64,
    /// What is wrong with it.
    pub trouble: Option<String>,
}

/// The connections of one user of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Client {
    /// The user of the certificate, or the address.
    pub user: String,
    pub connections: usize,
    pub watchers: usize,
    /// How long events of the slowest watcher have waited for the client, in milliseconds.
    pub slowest_watcher_ms: u64,
    /// Bytes of answers that the client has not taken yet.
    pub unsent_bytes: usize,
    /// Bytes of answers and events that open connections were sent.
    pub sent_bytes: u64,
    /// Calls and connections that were refused because a budget was used up.
    pub refused: u64,
}

/// The clients of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Clients {
    /// Absent if the store is another process.
    pub clients: Option<Vec<Client>>,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Refusal {
    pub message: String,
}

// === impl Moment ===

impl Moment {
    pub fn now() -> Self {
        Self(SystemTime::now())
    }

    fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::try_from(self.0).unwrap_or_default()
    }

    /// RFC 3339.
    pub fn rfc3339(self) -> String {
        self.timestamp().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
    }

    /// The time of the day, with the date unless that is the date of `now`.
    pub fn shown(self, now: Self) -> String {
        let (then, now) = (self.timestamp(), now.timestamp());
        let day = |time: jiff::Timestamp| time.strftime("%Y-%m-%d").to_string();
        let format = match day(then) == day(now) {
            true => "%H:%M:%S UTC",
            false => "%Y-%m-%d %H:%M:%S UTC",
        };
        then.strftime(format).to_string()
    }

    /// Seconds from this moment until `now`; 0 if it is later.
    pub fn secs_until(self, now: Self) -> u64 {
        now.0.duration_since(self.0).unwrap_or_default().as_secs()
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.rfc3339())
    }
}

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        let schema = ObjectBuilder::new().schema_type(Type::String).format(Some(format));
        schema.description(Some("RFC 3339 with milliseconds, UTC")).into()
    }
}

impl ToSchema for Moment {
    fn name() -> Cow<'static, str> {
        "Moment".into()
    }
}

// === impl Totals ===

impl Totals {
    /// The totals of `remotes`.
    pub fn of(remotes: &[Remote]) -> Self {
        let count = |wanted: fn(&Remote) -> bool| remotes.iter().filter(|remote| wanted(remote)).count();
        let (in_sync, away) = (count(|r| r.state == State::InSync), count(|r| r.state.is_bad()));
        Self {
            all: remotes.len(),
            in_sync,
            under_way: remotes.len() - in_sync - away,
            away,
            with_warnings: count(|r| r.state == State::InSync && !r.troubles.is_empty()),
        }
    }
}
