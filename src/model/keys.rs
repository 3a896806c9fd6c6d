//! The keys of a mesh (Cilium: pkg/kvstore/kvstore.go and the files named below).
//!
//! | key | value | Cilium |
//! |---|---|---|
//! | `cilium/cluster-config/<cluster>` | [`ClusterConfig`](super::cluster::ClusterConfig) | pkg/clustermesh/clustercfg |
//! | `cilium/.heartbeat` | [`timestamp`], rewritten every minute | pkg/kvstore/heartbeat |
//! | `cilium/state/identities/v1/id/<id>` | labels of an identity | pkg/identity/cache/allocator.go |
//! | `cilium/state/ip/v1/default/<ip>` | [`IpIdentity`](super::values::IpIdentity) | pkg/ipcache/kvstore.go |
//! | `cilium/state/nodes/v1/<cluster>/<node>` | [`Node`](super::values::Node) | pkg/node/store/store.go |
//! | `cilium/state/services/v1/<cluster>/<namespace>/<name>` | [`Service`](super::values::Service) | pkg/clustermesh/store/store.go |
//! | `cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>` | [`ServiceExport`](super::values::ServiceExport) | pkg/clustermesh/mcsapi/types/mcsapiservicespec.go |
//! | `cilium/state/endpointslices/v1/<cluster>/<namespace>/<slice>` | [`ClusterEndpointSlice`](super::values::slice::ClusterEndpointSlice), zstd | Cilium 1.20, "service v2" |
//! | `cilium/state/probe/v1/<cluster>` | [`Probe`](super::probe::Probe), rewritten every second | – |
//! | `cilium/cache/<scope>/v1/<cluster>/…` | the same values, mirrored from another cluster | pkg/clustermesh/kvstoremesh/reflector |
//! | `cilium/synced/<cluster>/cilium/{state,cache}/<scope>/v1` | canary: [`timestamp`] of the first complete state | pkg/kvstore/store/syncstore.go |

use super::cluster::ClusterName;

/// Rewritten every minute. Readers give up on a cluster without a new heartbeat for two minutes.
pub const HEARTBEAT: &str = "cilium/.heartbeat";

/// The prefix of the cluster configurations.
pub const CLUSTER_CONFIGS: &str = "cilium/cluster-config/";

/// The prefix of all canaries.
pub const SYNCED: &str = "cilium/synced/";

/// The prefixes that the role `local` may read, in their order: mirrored keys, configurations, canaries and the heartbeat.
pub const LOCAL_READS: [&str; 4] = [HEARTBEAT, "cilium/cache/", CLUSTER_CONFIGS, SYNCED];

/// A kind of keys that clusters share. Each scope has a prefix and a canary of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Security identities.
    Identities,
    /// IP addresses of pods, with their identities.
    Endpoints,
    /// Nodes.
    Nodes,
    /// Global services, with the addresses of their backends.
    Services,
    /// ServiceExports of the MCS API.
    ServiceExports,
    /// EndpointSlices of global services.
    EndpointSlices,
}

impl Scope {
    /// All scopes; identities come before the addresses that refer to them.
    pub const ALL: [Self; 6] = [
        Self::Identities,
        Self::Endpoints,
        Self::Nodes,
        Self::Services,
        Self::ServiceExports,
        Self::EndpointSlices,
    ];

    /// The scope's name in keys.
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

    /// The prefix of a cluster's own keys: `cilium/state/<scope>/v1/<cluster>/`. The prefixes of identities and addresses
    /// do not contain the cluster: `cilium/state/identities/v1/id/` and `cilium/state/ip/v1/default/`.
    pub fn state_prefix(self, cluster: &ClusterName) -> String {
        match self {
            Self::Identities => "cilium/state/identities/v1/id/".to_owned(),
            Self::Endpoints => "cilium/state/ip/v1/default/".to_owned(),
            _ => format!("cilium/state/{}/v1/{cluster}/", self.word()),
        }
    }

    /// The prefix of the keys mirrored from `cluster`: `cilium/cache/<scope>/v1/<cluster>/`, for identities with `id/` at
    /// the end.
    pub fn cache_prefix(self, cluster: &ClusterName) -> String {
        match self {
            Self::Identities => format!("cilium/cache/identities/v1/{cluster}/id/"),
            _ => format!("cilium/cache/{}/v1/{cluster}/", self.word()),
        }
    }

    /// The canary of a cluster's own keys. Its prefix is named without cluster, `id` or `default`.
    pub fn state_canary(self, cluster: &ClusterName) -> String {
        format!("cilium/synced/{cluster}/cilium/state/{}/v1", self.word())
    }

    /// The canary of the keys mirrored from `cluster`.
    pub fn cache_canary(self, cluster: &ClusterName) -> String {
        format!("cilium/synced/{cluster}/cilium/cache/{}/v1", self.word())
    }
}

/// `cilium/cluster-config/<cluster>`.
pub fn cluster_config(cluster: &ClusterName) -> String {
    format!("{CLUSTER_CONFIGS}{cluster}")
}

/// `cilium/state/probe/v1/<cluster>`. The role `remote` may read it, also where Cilium made the role, and no reader watches
/// more of the state than the prefixes of [`Scope`]. Everything that begins with [`HEARTBEAT`] is watched by all agents.
pub fn probe(cluster: &ClusterName) -> String {
    format!("cilium/state/probe/v1/{cluster}")
}

/// The cluster that a key was mirrored from; `None` for a key that is no copy.
pub fn mirrored_from(key: &[u8]) -> Option<&str> {
    let mut parts = std::str::from_utf8(key)
        .ok()?
        .strip_prefix("cilium/cache/")?
        .splitn(4, '/');
    parts.nth(2).filter(|name| !name.is_empty())
}

/// The only cluster whose configuration is among `keys`, such as those that a role may read.
pub fn only_cluster(keys: &[String]) -> Option<&str> {
    let mut names = keys.iter().filter_map(|key| key.strip_prefix(CLUSTER_CONFIGS));
    let name = names.next().filter(|name| !name.is_empty())?;
    names.all(|other| other == name).then_some(name)
}

/// The prefix of all canaries of a cluster: `cilium/synced/<cluster>/`.
pub fn synced_prefix(cluster: &ClusterName) -> String {
    format!("{SYNCED}{cluster}/")
}

/// Whether `name`, the part of a key after its prefix, can be appended to another prefix: it is not empty and has no
/// empty, `.` or `..` segments. With such segments a hostile peer could name keys of other clusters.
pub fn is_safe_name(name: &[u8]) -> bool {
    name.split(|&b| b == b'/')
        .all(|segment| !matches!(segment, b"" | b"." | b".."))
}

/// The current time as the value of heartbeats and canaries: RFC 3339, whole seconds, UTC.
pub fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_canaries_are_ciliums() {
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
    fn a_mirrored_key_names_its_cluster() {
        let c = ClusterName::new("foo").unwrap();
        for scope in Scope::ALL {
            assert_eq!(mirrored_from((scope.cache_prefix(&c) + "a/b").as_bytes()), Some("foo"));
            assert_eq!(mirrored_from((scope.state_prefix(&c) + "a/b").as_bytes()), None);
        }
        assert_eq!(mirrored_from(b"cilium/cache/nodes/v1"), None);
        assert_eq!(mirrored_from(b"cilium/cache/nodes/v1/\xff/n"), None);
    }

    #[test]
    fn names_with_empty_or_dot_segments_are_not_safe() {
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
