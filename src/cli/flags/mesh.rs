//! Flags of the mirror.

use super::{boolean, duration};
use crate::clustermesh::publisher::ServiceMode;
use crate::kvstore::sync_store::ChangeLimits;
use crate::kvstoremesh;
use crate::model::cluster::ClusterInfo;
use clap::{ArgAction, Args};
use std::time::Duration;

/// The remote clusters, and how they are mirrored.
#[derive(Args, Debug)]
#[command(next_help_heading = "Mirror of remote clusters")]
pub struct MeshArgs {
    /// Directory of etcd client configurations, one file for each remote cluster and named after that cluster.
    /// Changes of its files are followed. Empty: no cluster is mirrored.
    #[arg(long, env = "CILIUM_CLUSTERMESH_CONFIG", default_value = "", value_name = "DIR")]
    pub clustermesh_config: String,
    /// Time without a connection to a remote cluster after which its mirrored services are removed; 0 keeps them.
    #[arg(long, env = "CILIUM_CLUSTERMESH_CACHE_TTL", default_value = "0s", value_parser = duration,
          value_name = "DURATION")]
    clustermesh_cache_ttl: Duration,
    /// Longest time that readiness waits for the connection to one remote cluster.
    #[arg(long, env = "CILIUM_PER_CLUSTER_READY_TIMEOUT", default_value = "15s", value_parser = duration,
          value_name = "DURATION")]
    per_cluster_ready_timeout: Duration,
    /// Longest time that readiness waits for the mirror of one connected remote cluster to be complete.
    #[arg(long, env = "CILIUM_GLOBAL_READY_TIMEOUT", default_value = "10m", value_parser = duration,
          value_name = "DURATION")]
    global_ready_timeout: Duration,
    /// Keep the mirrored keys of remote clusters whose configuration is removed.
    #[arg(long, env = "CILIUM_DISABLE_DRAIN_ON_DISCONNECTION", num_args = 0..=1, require_equals = true, hide = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    disable_drain_on_disconnection: bool,
    /// Largest number of keys mirrored of one kind of object of one remote cluster. A kind with more keys is no
    /// longer followed.
    #[arg(
        long,
        env = "CILIUM_CLUSTERMESH_MAX_KEYS",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    clustermesh_max_keys: usize,
    /// Changes per second of keys of one remote cluster that the store holds already; 0 for no limit. When the limit is
    /// reached, changes wait and only the newest value of each key is written. Keys that are new are not limited.
    #[arg(
        long,
        env = "CILIUM_CLUSTERMESH_MAX_CHANGES",
        default_value_t = 10_000,
        value_name = "N"
    )]
    clustermesh_max_changes: u64,
    /// Bytes per second of values, with their keys, that changes of one remote cluster replace or delete; 0 for no
    /// limit.
    #[arg(
        long,
        env = "CILIUM_CLUSTERMESH_MAX_CHANGE_BYTES",
        default_value_t = 20 << 20,
        value_name = "BYTES"
    )]
    clustermesh_max_change_bytes: u64,
    /// Bytes of history that changes of one remote cluster may leave in the store of this process until a compaction; 0
    /// for no limit. An etcd has no such limit, since an etcd does not say when it compacts.
    #[arg(
        long,
        env = "CILIUM_CLUSTERMESH_MAX_HISTORY_BYTES",
        default_value_t = 128 << 20,
        value_name = "BYTES"
    )]
    clustermesh_max_history_bytes: u64,
    /// Listen address of the status API, which kvstoremesh-dbg reads. Empty: no status API.
    #[arg(
        long,
        env = "CILIUM_API_SERVE_ADDR",
        default_value = "localhost:9889",
        value_name = "HOST:PORT"
    )]
    pub api_serve_addr: String,
}

impl MeshArgs {
    /// Configures the mirror; `None` without a directory.
    pub fn config(&self, cluster: ClusterInfo, mode: ServiceMode) -> Option<kvstoremesh::Config> {
        (!self.clustermesh_config.is_empty()).then(|| kvstoremesh::Config {
            cluster,
            directory: (&*self.clustermesh_config).into(),
            cache_ttl: self.clustermesh_cache_ttl,
            per_cluster_ready_timeout: self.per_cluster_ready_timeout,
            global_ready_timeout: self.global_ready_timeout,
            drain_grace: Duration::from_secs(180),
            // The lease TTL of Cilium's mirror: its keys outlive it by as much.
            former_grace: Duration::from_secs(900),
            drain: !self.disable_drain_on_disconnection,
            keys_max: self.clustermesh_max_keys,
            changes: ChangeLimits {
                keys_per_second: self.clustermesh_max_changes,
                bytes_per_second: self.clustermesh_max_change_bytes,
                history_bytes: self.clustermesh_max_history_bytes,
            },
            remotes: Default::default(),
            imports: None,
            legacy_services: mode != ServiceMode::OnlyEndpointSlice,
        })
    }
}
