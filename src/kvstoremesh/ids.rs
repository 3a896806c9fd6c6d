//! Conflicts of cluster ids: each id must be in range, and unique in the mesh.

use crate::model::cluster::{ClusterInfo, ClusterName};
use std::collections::BTreeMap;

/// The clusters with an unusable id, and the reasons. Readers refuse such a cluster.
pub(super) fn conflicts(own: &ClusterInfo, ids: &BTreeMap<ClusterName, u32>) -> BTreeMap<ClusterName, String> {
    let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    names.insert(own.id, vec![format!("this cluster ({})", own.name)]);
    for (name, id) in ids {
        names.entry(*id).or_default().push(name.to_string());
    }
    let conflict = |name: &ClusterName, id: u32| {
        let max = own.max_connected;
        if !(1..=max).contains(&id) {
            return Some(format!("cluster id {id} is none of 1 to {max}"));
        }
        let same = names.get(&id).into_iter().flatten();
        let others: Vec<_> = same.filter(|other| **other != name.as_str()).cloned().collect();
        (!others.is_empty()).then(|| format!("cluster id {id} is also that of {}", others.join(", ")))
    };
    ids.iter()
        .filter_map(|(name, id)| Some((name.clone(), conflict(name, *id)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_out_of_range_or_of_another_cluster_is_a_conflict() {
        let own = ClusterInfo::new("own", 9, 255).unwrap();
        let name = |n: &str| ClusterName::new(n).unwrap();
        let ids = [("a", 1), ("b", 1), ("c", 9), ("d", 0), ("e", 256), ("f", 2)];
        let found = conflicts(&own, &ids.map(|(n, id)| (name(n), id)).into());
        let text = |n: &str| found.get(&name(n)).map(String::as_str);
        assert_eq!(text("a"), Some("cluster id 1 is also that of b"));
        assert_eq!(text("b"), Some("cluster id 1 is also that of a"));
        assert_eq!(text("c"), Some("cluster id 9 is also that of this cluster (own)"));
        assert_eq!(text("d"), Some("cluster id 0 is none of 1 to 255"));
        assert_eq!(text("e"), Some("cluster id 256 is none of 1 to 255"));
        assert_eq!(text("f"), None);
    }
}
