//! The scopes that a remote cluster exports, according to its configuration.

use crate::model::cluster::{ClusterConfig, ClusterName, ExportMode};
use crate::model::keys::Scope;
use std::collections::BTreeSet;

/// The scopes to mirror, and their prefixes in the remote's store.
#[derive(Debug)]
pub(super) struct Exports {
    /// The remote is itself a mirror (KVStoreMesh): its data is under the prefixes of a cache.
    is_cached: bool,
    /// The remote writes canaries: a prefix is listed after its canary was seen.
    pub(super) has_canaries: bool,
    /// The scopes that are mirrored.
    pub(super) scopes: BTreeSet<Scope>,
}

impl Exports {
    pub(super) fn of(config: &ClusterConfig, legacy_services: bool) -> Self {
        let capabilities = &config.capabilities;
        let mode = &capabilities.endpoint_slices_export_mode;
        let scopes = Scope::ALL.into_iter().filter(|scope| match scope {
            Scope::Services => legacy_services && *mode != ExportMode::EndpointSlices,
            Scope::EndpointSlices => *mode != ExportMode::Services,
            Scope::ServiceExports => capabilities.service_exports_enabled.is_some(),
            Scope::Identities | Scope::Endpoints | Scope::Nodes => true,
        });
        Self {
            is_cached: capabilities.cached,
            has_canaries: capabilities.synced_canaries,
            scopes: scopes.collect(),
        }
    }

    /// The prefix of a scope in the remote's store.
    pub(super) fn prefix(&self, scope: Scope, cluster: &ClusterName) -> String {
        match self.is_cached {
            true => scope.cache_prefix(cluster),
            false => scope.state_prefix(cluster),
        }
    }

    /// The remote's canary of a scope.
    pub(super) fn canary(&self, scope: Scope, cluster: &ClusterName) -> String {
        match self.is_cached {
            true => scope.cache_canary(cluster),
            false => scope.state_canary(cluster),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::Capabilities;

    fn scopes(mode: ExportMode, service_exports: Option<bool>, legacy: bool) -> Vec<Scope> {
        let capabilities = Capabilities {
            endpoint_slices_export_mode: mode,
            service_exports_enabled: service_exports,
            ..Capabilities::default()
        };
        let config = ClusterConfig {
            id: 1,
            capabilities,
            region: None,
        };
        let exports = Exports::of(&config, legacy);
        let optional = exports.scopes.into_iter();
        optional
            .filter(|s| matches!(s, Scope::Services | Scope::ServiceExports | Scope::EndpointSlices))
            .collect()
    }

    #[test]
    fn the_export_mode_says_which_form_of_services_is_mirrored() {
        use Scope::{EndpointSlices, ServiceExports, Services};
        assert_eq!(scopes(ExportMode::Services, None, true), [Services]);
        assert_eq!(scopes(ExportMode::EndpointSlices, None, true), [EndpointSlices]);
        assert_eq!(scopes(ExportMode::Services, None, false), []);
        // A remote with an unknown mode may export both forms.
        let unknown = ExportMode::Unknown("new".to_owned());
        assert_eq!(
            scopes(unknown, Some(false), true),
            [Services, ServiceExports, EndpointSlices]
        );
    }

    #[test]
    fn a_remote_that_is_a_mirror_is_read_from_its_cache() {
        let name = ClusterName::new("hk").unwrap();
        let mut config = ClusterConfig::default();
        let prefix = |config: &ClusterConfig| Exports::of(config, true).prefix(Scope::Nodes, &name);
        assert_eq!(prefix(&config), "cilium/state/nodes/v1/hk/");
        config.capabilities.cached = true;
        assert_eq!(prefix(&config), "cilium/cache/nodes/v1/hk/");
        let canary = Exports::of(&config, true).canary(Scope::Nodes, &name);
        assert_eq!(canary, "cilium/synced/hk/cilium/cache/nodes/v1");
    }
}
