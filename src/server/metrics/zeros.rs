//! etcd's metrics that have no meaning here: Raft, bbolt, the gRPC proxy. They are registered with the value 0, so
//! that an alert on one of them stays silent instead of missing its series.

/// Counters, by their names without `_total`.
pub(super) const ZERO_COUNTERS: &[&str] = &[
    "etcd_server_leader_changes_seen",
    "etcd_server_proposals_failed",
    "etcd_server_slow_apply",
    "etcd_server_slow_read_indexes",
    "etcd_server_read_indexes_failed",
    "etcd_server_heartbeat_send_failures",
    "etcd_disk_wal_write_bytes",
    "etcd_debugging_store_expires",
    "etcd_debugging_store_watch_requests",
    "etcd_debugging_store_reads",
    "etcd_debugging_store_writes",
    "etcd_debugging_mvcc_db_compaction_keys",
    "etcd_grpc_proxy_cache_hits",
    "etcd_grpc_proxy_cache_misses",
    "etcd_grpc_proxy_events_coalescing",
    "etcd_grpc_proxy_watchers_coalescing",
];

/// Gauges, and counters of etcd whose names do not end in `_total`.
pub(super) const ZERO_GAUGES: &[&str] = &[
    "etcd_server_is_learner",
    "etcd_server_learner_promote_successes",
    "etcd_server_proposals_pending",
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_store_watchers",
    "etcd_debugging_mvcc_db_compaction_last",
    "etcd_grpc_proxy_cache_keys_total",
    "etcd_disk_defrag_inflight",
    "etcd_mvcc_db_open_read_transactions",
    "etcd_network_known_peers",
];

/// A histogram without observations, whose buckets double.
pub(super) struct ZeroHistogram {
    pub(super) name: &'static str,
    pub(super) first_bucket: f64,
    pub(super) buckets: u16,
}

const fn histogram(name: &'static str, first_bucket: f64, buckets: u16) -> ZeroHistogram {
    ZeroHistogram {
        name,
        first_bucket,
        buckets,
    }
}

pub(super) const ZERO_HISTOGRAMS: &[ZeroHistogram] = &[
    histogram("etcd_disk_wal_fsync_duration_seconds", 0.001, 14),
    histogram("etcd_disk_wal_write_duration_seconds", 0.001, 14),
    histogram("etcd_disk_backend_commit_duration_seconds", 0.001, 14),
    histogram("etcd_disk_backend_defrag_duration_seconds", 0.1, 13),
    histogram("etcd_disk_backend_snapshot_duration_seconds", 0.01, 17),
    histogram("etcd_mvcc_hash_duration_seconds", 0.01, 15),
    histogram("etcd_mvcc_hash_rev_duration_seconds", 0.01, 15),
    histogram("etcd_snap_db_fsync_duration_seconds", 0.001, 14),
    histogram("etcd_snap_db_save_total_duration_seconds", 0.1, 10),
    histogram("etcd_snap_fsync_duration_seconds", 0.001, 14),
    histogram(
        "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
        0.001,
        14,
    ),
    histogram("etcd_debugging_disk_backend_commit_spill_duration_seconds", 0.001, 14),
    histogram("etcd_debugging_disk_backend_commit_write_duration_seconds", 0.001, 14),
    histogram("etcd_debugging_lease_ttl_total", 1.0, 24),
    histogram("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", 1.0, 13),
    histogram(
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        100.0,
        14,
    ),
    histogram(
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        0.5,
        14,
    ),
    histogram("etcd_debugging_snap_save_marshalling_duration_seconds", 0.001, 14),
    histogram("etcd_debugging_snap_save_total_duration_seconds", 0.001, 14),
    // A watch stream here has no loop that sends: the transport takes the events when there is room.
    histogram(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
        0.001,
        14,
    ),
    histogram(
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
        0.001,
        14,
    ),
    histogram(
        "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
        0.001,
        14,
    ),
    histogram(
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
        0.001,
        14,
    ),
];
