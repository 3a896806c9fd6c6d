//! The key space that a mesh agrees on (Cilium: pkg/kvstore/kvstore.go and its users).
//!
//! | prefix | content |
//! |---|---|
//! | `cilium/cluster-config/<cluster>` | a cluster's configuration |
//! | `cilium/.heartbeat` | a time, rewritten every minute |
//! | `cilium/state/…` | a cluster's own resources |
//! | `cilium/cache/…/<cluster>/…` | mirrored resources of another cluster |
//! | `cilium/synced/<cluster>/<prefix>` | canary: the prefix holds the complete first state |

use super::cluster::ClusterName;

/// Rewritten every minute; readers give up on a cluster whose heartbeat stops for two.
pub const HEARTBEAT: &str = "cilium/.heartbeat";

/// Before each cluster's configuration.
pub const CLUSTER_CONFIGS: &str = "cilium/cluster-config/";

/// Before all canaries.
pub const SYNCED: &str = "cilium/synced/";

/// The resources that clusters share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Security identities.
    Identities,
    /// IP addresses of endpoints, with their identities.
    Endpoints,
    /// Nodes.
    Nodes,
    /// Global services.
    Services,
    /// MCS-API exports.
    ServiceExports,
    /// Endpoints of global services, slice by slice.
    EndpointSlices,
}

impl Scope {
    /// All of them; identities before the addresses that name them.
    pub const ALL: [Self; 6] = [
        Self::Identities,
        Self::Endpoints,
        Self::Nodes,
        Self::Services,
        Self::ServiceExports,
        Self::EndpointSlices,
    ];

    /// The word for it in keys.
    pub fn word(self) -> &'static str {
        match self {
            Self::Identities => "identities",
            Self::Endpoints => "ip",
            Self::Nodes => "nodes",
            Self::Services => "services",
            Self::ServiceExports => "serviceexports",
            Self::EndpointSlices => "endpointslices",
        }
    }

    /// Where a cluster keeps its own: `cilium/state/…/`. Identities and addresses are not named after
    /// the cluster there.
    pub fn state_prefix(self, cluster: &ClusterName) -> String {
        match self {
            Self::Identities => "cilium/state/identities/v1/id/".to_owned(),
            Self::Endpoints => "cilium/state/ip/v1/default/".to_owned(),
            _ => format!("cilium/state/{}/v1/{cluster}/", self.word()),
        }
    }

    /// Where a mirror keeps those of `cluster`: `cilium/cache/…/`.
    pub fn cache_prefix(self, cluster: &ClusterName) -> String {
        match self {
            Self::Identities => format!("cilium/cache/identities/v1/{cluster}/id/"),
            _ => format!("cilium/cache/{}/v1/{cluster}/", self.word()),
        }
    }

    /// The canary of a cluster's own.
    pub fn state_canary(self, cluster: &ClusterName) -> String {
        format!("cilium/synced/{cluster}/cilium/state/{}/v1", self.word())
    }

    /// The canary of a mirror of `cluster`.
    pub fn cache_canary(self, cluster: &ClusterName) -> String {
        format!("cilium/synced/{cluster}/cilium/cache/{}/v1", self.word())
    }
}

/// The key of a cluster's configuration.
pub fn cluster_config(cluster: &ClusterName) -> String {
    format!("{CLUSTER_CONFIGS}{cluster}")
}

/// All canaries of a cluster.
pub fn synced_prefix(cluster: &ClusterName) -> String {
    format!("{SYNCED}{cluster}/")
}

/// Whether `name`, what follows a prefix in a key, is safe to put under another prefix: not empty, and
/// without empty, `.` or `..` segments, through which a hostile peer could name keys of others.
pub fn is_safe_name(name: &[u8]) -> bool {
    name.split(|&b| b == b'/')
        .all(|segment| !matches!(segment, b"" | b"." | b".."))
}

/// Time as heartbeats and canaries carry it: RFC 3339, seconds, UTC.
pub fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_readers_look_for_them() {
        let c = ClusterName::new("foo").unwrap();
        let rows = Scope::ALL.map(|s| (s.state_prefix(&c), s.cache_prefix(&c), s.cache_canary(&c)));
        assert_eq!(rows[0].0, "cilium/state/identities/v1/id/");
        assert_eq!(rows[0].1, "cilium/cache/identities/v1/foo/id/");
        assert_eq!(rows[0].2, "cilium/synced/foo/cilium/cache/identities/v1");
        assert_eq!(rows[1].0, "cilium/state/ip/v1/default/");
        assert_eq!(rows[1].1, "cilium/cache/ip/v1/foo/");
        assert_eq!(rows[3].0, "cilium/state/services/v1/foo/");
        assert_eq!(Scope::Nodes.state_canary(&c), "cilium/synced/foo/cilium/state/nodes/v1");
    }

    #[test]
    fn names_that_could_leave_their_prefix_are_not_safe() {
        for good in ["n1", "ns/svc", "10.0.0.0/24", "fd00::1", "...", ".a"] {
            assert!(is_safe_name(good.as_bytes()), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", ".", "..", "../other/x", "a/../../b", "a/."] {
            assert!(!is_safe_name(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_timestamp_has_whole_seconds() {
        let t = timestamp();
        assert_eq!((t.len(), t.ends_with('Z'), t.contains('.')), (20, true, false));
    }
}
