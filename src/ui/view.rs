//! What the page shows, as values. They are also the answers of the API.

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

/// The state of the connection to a remote cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The connection was lost, or was never made. What was mirrored stays.
    Away,
    /// The client file cannot be read.
    WaitingForFile,
    Connecting,
    WaitingForConfiguration,
    /// Connected; the mirror of at least one kind is not complete.
    Listing,
    InSync,
}

/// A remote cluster.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Remote {
    pub name: String,
    /// The cluster id; absent before the configuration was read.
    pub id: Option<u32>,
    pub state: State,
    /// Since when it is in this state.
    pub since: Option<Moment>,
    /// What is wrong, one sentence each.
    pub troubles: Vec<String>,
    /// Mirrored keys.
    pub keys: KeyCounts,
    /// How late changes arrive, over the last minute.
    pub lag: Option<Lag>,
    /// When a change was received last.
    pub last_event: Option<Moment>,
}

/// Numbers of keys by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyCounts {
    pub nodes: usize,
    pub identities: usize,
    pub addresses: usize,
    pub services: usize,
    pub service_exports: usize,
    pub endpoint_slices: usize,
}

/// How long commits of a remote cluster take to arrive here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Lag {
    pub method: Method,
    /// Half of the commits arrived within this time, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 commits arrived within this time, in milliseconds.
    pub p99_ms: f64,
    /// The longest time, in milliseconds.
    pub max_ms: f64,
    /// The last difference between the clock here at the arrival and the clock of the remote cluster at the write, in
    /// milliseconds. The difference of the clocks is in it, so that it may be negative.
    pub raw_ms: f64,
    /// Commits that were measured.
    pub samples: u64,
}

/// How long mirrored changes took from their commit in the store of this process to the send to the last watcher, over the last
/// hour. One commit in a second is measured at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Delivery {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Commits that were measured.
    pub samples: u64,
}

/// How a lag was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// By the probe key, which the remote publisher writes every second. The constant difference of the clocks is taken
    /// out.
    Probe,
    /// By the heartbeat: an upper bound, in whole seconds of the remote cluster's clock, and only as good as the clocks
    /// agree.
    Heartbeat,
}

/// One remote cluster in full.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RemoteDetail {
    /// When the values were looked up.
    pub at: Moment,
    #[serde(flatten)]
    pub remote: Remote,
    /// The endpoints in the client file.
    pub endpoints: Vec<String>,
    /// The address that answered last.
    pub endpoint_in_use: Option<String>,
    /// The cluster id of the store that answered last, hexadecimal.
    pub store_cluster_id: Option<String>,
    pub configuration: Option<Configuration>,
    pub kinds: Vec<MirroredKind>,
    pub counters: RemoteCounters,
    /// How long the first complete mirror took, in milliseconds.
    pub first_sync_ms: Option<f64>,
    pub refused: Vec<RefusedKeys>,
    /// The last changes of the state, newest first.
    pub changes: Vec<StateChange>,
    pub certificates: Vec<Certificate>,
    pub propagation: Option<Propagation>,
    /// What the scope file leaves of the cluster's keys; absent if every key is mirrored.
    pub scope: Option<Scoped>,
    /// Absent if the store is another process, or nothing was measured.
    pub delivery: Option<Delivery>,
}

/// What the scope file leaves of the keys of a remote cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Scoped {
    /// The entry of the scope file that governs the cluster.
    pub entry: Option<String>,
    /// The region of the cluster.
    pub region: Option<String>,
    /// Without the kinds of which every key is mirrored.
    pub kinds: Vec<ScopedKind>,
}

/// What the scope file leaves of one kind of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ScopedKind {
    pub kind: String,
    /// Whether no key of the kind is mirrored, so that no key is read or counted.
    pub off: bool,
    /// Mirrored keys.
    pub kept: usize,
    pub left_out: usize,
    /// Keys that are not mirrored as long as something is not known, or until they are read.
    pub pending: usize,
    /// An estimate of the bytes of the values that are left out.
    pub bytes_left_out: u64,
    pub rules: Vec<ScopedRule>,
}

/// The keys about which one rule of the scope file decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ScopedRule {
    /// The name of the rule, or a word in parentheses for what decides where no rule does.
    pub rule: String,
    /// `kept`, `left-out` or `pending`.
    pub decision: String,
    pub keys: usize,
}

/// The configuration that a remote cluster publishes of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Configuration {
    pub cluster_id: u32,
    pub max_connected_clusters: u32,
    pub sync_canaries: bool,
    /// Whether the keys are mirrored ones.
    pub cached: bool,
    /// `enabled`, `disabled` or `unsupported`.
    pub service_exports: String,
    /// `services-only`, `services-and-endpointslices`, `endpointslices-only`, or a mode of a newer version.
    pub endpoint_slices: String,
}

/// The mirror of one kind of keys of a remote cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MirroredKind {
    pub kind: String,
    pub mirror: Mirror,
    /// Why the mirror is stopped or forbidden.
    pub reason: Option<String>,
    pub mirrored: usize,
    /// The number of keys that the remote cluster says it has; absent if it does not say.
    pub announced: Option<u64>,
}

/// How complete a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mirror {
    /// The kind is not exported, or not wanted.
    Off,
    Incomplete,
    Complete,
    /// The remote cluster has more keys than the limits allow.
    Stopped,
    /// The remote cluster forbids reading the keys.
    Forbidden,
}

/// Counts since the client file was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct RemoteCounters {
    pub connections: u64,
    pub connections_lost: u64,
    pub attempts_failed: u64,
    pub lists: u64,
    /// Watches that resumed without a list.
    pub resumes: u64,
    pub keys_read: u64,
    pub bytes_read: u64,
    /// Times that the services were removed because the remote cluster was away for too long.
    pub revocations: u64,
}

/// Keys that are not mirrored for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefusedKeys {
    pub reason: String,
    pub count: u64,
    /// The last of these keys, shortened.
    pub example: String,
}

/// A change of the state of a remote cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StateChange {
    pub at: Moment,
    pub state: State,
    pub cause: Option<String>,
}

/// How long commits of a remote cluster took to arrive here, over the last hour.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Propagation {
    pub last_hour: Lag,
    /// By minute, oldest first.
    pub minutes: Vec<Minute>,
    /// The shortest round trip of a read, in milliseconds.
    pub round_trip_ms: Option<f64>,
}

/// One minute of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Minute {
    /// How many minutes ago.
    pub ago: u32,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// A global service, in all clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// Where the service exists, by cluster.
    pub clusters: Vec<ServiceIn>,
    /// Differences between clusters that make traffic fail.
    pub conflicts: Vec<String>,
}

/// A global service in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ServiceIn {
    pub cluster: String,
    /// Addresses that get traffic.
    pub ready: usize,
    /// Addresses of its endpoint slices that get none.
    pub not_ready: usize,
    /// Name, number and protocol of each port.
    pub ports: Vec<String>,
    /// Cluster addresses.
    pub addresses: Vec<String>,
    /// Whether other clusters send traffic to its backends; absent without the service itself.
    pub shared: Option<bool>,
    /// Whether a ServiceExport exports it.
    pub exported: bool,
    /// The session affinity that its export names.
    pub session_affinity: Option<String>,
}

/// A part of the services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Services {
    /// Services that match the search.
    pub total: usize,
    /// The first of them in `services`.
    pub offset: usize,
    pub services: Vec<Service>,
    /// Why the list is not complete, if so.
    pub incomplete: Option<String>,
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

/// The answer to a look-up.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Findings {
    /// What the question was taken for.
    pub looked_for: String,
    pub findings: Vec<Finding>,
    /// Why there may be more, if so.
    pub incomplete: Option<String>,
}

/// A key that was found.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Finding {
    pub key: String,
    /// The kind of the key, such as `nodes`.
    pub kind: String,
    /// The cluster that the key comes from; absent if the key does not say.
    pub cluster: Option<String>,
    /// Whether the key was mirrored from another cluster.
    pub is_mirrored: bool,
    /// The revision of this store since which the key exists.
    pub since_revision: i64,
    /// The revision of this store in which the key changed last.
    pub changed_revision: i64,
    /// How often the key was written since it exists.
    pub version: i64,
    /// The size of the value.
    pub bytes: usize,
    /// How the value is encoded in the store: `json`, `zstd protobuf`, `text` or `binary`.
    pub encoding: String,
    /// Whether only the beginning of the value is there, as text or base64: the value is large, or the answer is.
    pub is_cut: bool,
    /// The decoded value; binary values as base64.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
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

// === impl KeyCounts ===

impl KeyCounts {
    pub fn total(&self) -> usize {
        self.nodes + self.identities + self.addresses + self.services + self.service_exports + self.endpoint_slices
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

// === impl State ===

impl State {
    /// Whether an operator has to do something.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Away | Self::WaitingForFile)
    }
}
