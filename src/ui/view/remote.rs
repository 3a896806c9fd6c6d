//! What is shown of remote clusters.

use super::{Certificate, Moment};
use serde::Serialize;
use utoipa::ToSchema;

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

// === impl KeyCounts ===

impl KeyCounts {
    pub fn total(&self) -> usize {
        self.nodes + self.identities + self.addresses + self.services + self.service_exports + self.endpoint_slices
    }
}

// === impl State ===

impl State {
    /// Whether an operator has to do something.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Away | Self::WaitingForFile)
    }
}
