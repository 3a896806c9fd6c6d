//! Flags that etcd 3.7 removed, with what etcd 3.6 and 3.7 have instead.

/// Experimental flags of 3.6 that became feature gates. All others kept their names without the prefix.
const GATES: &[(&str, &str)] = &[
    ("compact-hash-check-enabled", "CompactHashCheck"),
    ("enable-lease-checkpoint", "LeaseCheckpoint"),
    ("enable-lease-checkpoint-persist", "LeaseCheckpointPersist"),
    ("initial-corrupt-check", "InitialCorruptCheck"),
    ("stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"),
    ("txn-mode-write-with-shared-buffer", "TxnModeWriteWithSharedBuffer"),
];

/// Experimental flags of 3.6 that lost the prefix.
const PLAIN: &[&str] = &[
    "bootstrap-defrag-threshold-megabytes",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "distributed-tracing-address",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "distributed-tracing-service-name",
    "downgrade-check-time",
    "enable-distributed-tracing",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];

/// The remedy for a flag that etcd 3.7 removed; `None` for all others.
pub fn remedy(flag: &str) -> Option<String> {
    let instead = match (flag, flag.strip_prefix("experimental-")) {
        ("discovery" | "discovery-proxy", _) => "--discovery-endpoints and --discovery-token".to_owned(),
        (_, Some(name)) => match GATES.iter().find(|(flag, _)| *flag == name) {
            Some((_, gate)) => format!("--feature-gates={gate}=true"),
            None => format!("--{}", PLAIN.iter().find(|flag| **flag == name)?),
        },
        (_, None) => return None,
    };
    Some(format!("etcd 3.7 removed --{flag}; use {instead}"))
}

#[cfg(test)]
mod tests {
    use super::super::IGNORED;
    use super::super::without_effect::FEATURE_GATES;
    use super::*;

    #[test]
    fn a_removed_flag_has_a_successor_that_is_accepted() {
        let text = |flag| remedy(flag).unwrap();
        assert_eq!(
            text("experimental-corrupt-check-time"),
            "etcd 3.7 removed --experimental-corrupt-check-time; use --corrupt-check-time"
        );
        assert!(text("experimental-initial-corrupt-check").ends_with("use --feature-gates=InitialCorruptCheck=true"));
        assert!(text("discovery").contains("--discovery-endpoints"));
        assert_eq!((remedy("name"), remedy("experimental-nonsense")), (None, None));
        assert!(GATES.iter().all(|(_, gate)| FEATURE_GATES.contains(gate)));
        let with_effect = |flag: &&str| !IGNORED.names().any(|name| name == *flag);
        let with_effect: Vec<_> = PLAIN.iter().copied().filter(with_effect).collect();
        assert_eq!(with_effect, ["watch-progress-notify-interval"]);
    }
}
