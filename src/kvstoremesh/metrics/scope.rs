//! Metrics of what the scope file leaves of the keys of remote clusters.

use super::{MeshMetrics, label};
use crate::scope::file::kind_name;
use crate::util::metrics::Page;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

/// Shows the scope of the clusters of a mesh; nothing without a scope file.
#[derive(Clone, Debug)]
pub struct ImportMetrics(pub MeshMetrics);

impl Collector for ImportMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let (mut keys, mut bytes, mut remembered, mut reads) = (vec![], vec![], vec![], vec![]);
        for snapshot in self.0.clusters().into_iter().flatten() {
            let Some(report) = snapshot.scope() else { continue };
            reads.push((label(&snapshot), snapshot.cluster.read_counters().wanted));
            for kind in report.kinds {
                let mut labels = label(&snapshot);
                labels.push(("kind", kind_name(kind.kind).to_owned()));
                bytes.push((labels.clone(), kind.bytes_left_out as f64));
                remembered.push((labels.clone(), kind.remembered as f64));
                for ((decision, rule), number) in kind.rules {
                    let more = [("decision", decision.word().to_owned()), ("rule", rule)];
                    keys.push(([&labels[..], &more].concat(), number as f64));
                }
            }
        }
        page.gauges(
            "isthmus_scope_imported_keys",
            "Number of keys of a remote cluster by kind, by what the scope file decided (kept, left-out or pending), and by the \
             rule",
            keys,
        )?;
        page.gauges(
            "isthmus_scope_left_out_bytes",
            "Estimated bytes of the values of a remote cluster that are not mirrored because of the scope file",
            bytes,
        )?;
        page.gauges(
            "isthmus_scope_remembered_bytes",
            "Estimated bytes of memory that the scope file takes for the keys of a remote cluster; the kind stops beyond 256 bytes \
             for each key of --clustermesh-max-keys",
            remembered,
        )?;
        page.counters(
            "isthmus_scope_keys_read_singly",
            "Number of keys of a remote cluster that were read one by one, because a changed scope asked for them",
            reads,
        )
    }
}
