//! The keys in a snapshot of a store: those of the cluster itself, as other clusters see them, and the mirrored ones.

use super::Examined;
use super::import::{Examination, Surroundings};
use super::judged::Visitor;
use crate::kvstoremesh::trial::ORDER;
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::{self, Scope};
use crate::snapshot::{Error, Live, Reader};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the cluster of a store that does not say it.
const NAMELESS: &str = "snapshot";
const STATE: &str = "cilium/state/";
const CACHE: &str = "cilium/cache/";

/// Shows every key of every cluster in the snapshot to a visitor for each cluster. All clusters are read in the same two
/// passes, because the keys of a snapshot are in the order of their changes.
pub(super) fn examine<V: Visitor>(
    path: &Path,
    surroundings: &Surroundings<'_>,
    visitor: &impl Fn() -> V,
) -> Result<Vec<Examined<V>>, Error> {
    let reader = Reader::open(path)?;
    let wanted = [STATE, CACHE, keys::CLUSTER_CONFIGS];
    let live = Live::read(&reader, |key| {
        wanted.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    })?;
    let configs = configs(&live)?;
    let own = own(&live, &configs);
    let mut clusters: BTreeMap<ClusterName, Examination<V>> = BTreeMap::new();
    for is_last in [false, true] {
        live.each(|key, value| {
            let Some((cluster, kind, name)) = parse(key, &own) else {
                return;
            };
            let examination = clusters.entry(cluster).or_insert_with_key(|cluster| {
                let region = configs.get(cluster).and_then(|config| config.region.as_deref());
                Examination::new(cluster, region, surroundings, visitor())
            });
            if (kind == Scope::Endpoints) == is_last {
                examination.put(kind, name, value);
            }
        })?;
        for examination in clusters.values_mut() {
            let kinds = ORDER.into_iter().filter(|kind| (*kind == Scope::Endpoints) == is_last);
            kinds.for_each(|kind| examination.end(kind));
        }
    }
    let examined = clusters.into_iter().map(|(cluster, examination)| Examined {
        cluster,
        outcome: Ok(examination.finish()),
    });
    Ok(examined.collect())
}

/// The configurations of the clusters that can be read.
fn configs(live: &Live<'_>) -> Result<BTreeMap<ClusterName, ClusterConfig>, Error> {
    let mut configs = BTreeMap::new();
    live.each(|key, value| {
        let name = key
            .strip_prefix(keys::CLUSTER_CONFIGS.as_bytes())
            .and_then(cluster_name);
        if let (Some(name), Ok(config)) = (name, serde_json::from_slice(&value)) {
            configs.insert(name, config);
        }
    })?;
    Ok(configs)
}

/// The cluster whose store it was: the only one that is not mirrored, or else the one whose nodes are there.
fn own(live: &Live<'_>, configs: &BTreeMap<ClusterName, ClusterConfig>) -> ClusterName {
    let mut own = configs.iter().filter(|(_, config)| !config.capabilities.cached);
    if let (Some((name, _)), None) = (own.next(), own.next()) {
        return name.clone();
    }
    let nodes = live
        .keys()
        .filter_map(|key| key.strip_prefix(b"cilium/state/nodes/v1/"));
    let names = nodes.filter_map(|rest| cluster_name(rest.split(|byte| *byte == b'/').next()?));
    names
        .min()
        .unwrap_or_else(|| ClusterName::new(NAMELESS).expect("the name is valid"))
}

fn cluster_name(name: &[u8]) -> Option<ClusterName> {
    ClusterName::new(std::str::from_utf8(name).ok()?).ok()
}

/// The cluster, the kind and the name in a key.
fn parse<'a>(key: &'a [u8], own: &ClusterName) -> Option<(ClusterName, Scope, &'a [u8])> {
    let find = |cluster: &ClusterName, prefix: fn(Scope, &ClusterName) -> String| {
        Scope::ALL.into_iter().find_map(|kind| {
            let name = key.strip_prefix(prefix(kind, cluster).as_bytes())?;
            Some((cluster.clone(), kind, name))
        })
    };
    if key.starts_with(STATE.as_bytes()) {
        return find(own, Scope::state_prefix);
    }
    // cilium/cache/<kind>/v1/<cluster>/…
    let cluster = cluster_name(key.strip_prefix(CACHE.as_bytes())?.split(|byte| *byte == b'/').nth(2)?)?;
    find(&cluster, Scope::cache_prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_cluster_and_kind() {
        let own = ClusterName::new("hk").unwrap();
        let told = |key: &str| {
            let (cluster, kind, name) = parse(key.as_bytes(), &own)?;
            Some((cluster.to_string(), kind, String::from_utf8(name.to_vec()).unwrap()))
        };
        let is = |cluster: &str, kind, name: &str| Some((cluster.to_owned(), kind, name.to_owned()));
        assert_eq!(
            told("cilium/state/ip/v1/default/10.0.0.1"),
            is("hk", Scope::Endpoints, "10.0.0.1")
        );
        assert_eq!(
            told("cilium/state/services/v1/hk/shop/db"),
            is("hk", Scope::Services, "shop/db")
        );
        assert_eq!(
            told("cilium/cache/identities/v1/tokyo/id/7"),
            is("tokyo", Scope::Identities, "7")
        );
        assert_eq!(
            told("cilium/cache/ip/v1/tokyo/10.0.0.1"),
            is("tokyo", Scope::Endpoints, "10.0.0.1")
        );
        for other in [
            "cilium/state/probe/v1/hk",
            "cilium/cache/ip/v1/UPPER/x",
            "cilium/.heartbeat",
            "cilium/cache/x",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
