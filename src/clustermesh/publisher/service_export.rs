//! ServiceExports of the MCS API: `cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>` → the exported service.
//!
//! An export needs no annotation on its service, only a global namespace.

use super::value::{is_external_name, json};
use super::{Effects, NamespacedName, Note, Options, Resource, State};
use crate::k8s::types::{self as k8s, ObjectKey};
use crate::model::cluster::ClusterInfo;
use crate::model::keys::Scope;
use crate::model::values;
use crate::scope::Verdict;
use bytes::Bytes;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct ServiceExports(HashMap<NamespacedName, k8s::ServiceExport>);

impl ServiceExports {
    pub(super) fn contains(&self, name: &NamespacedName) -> bool {
        self.0.contains_key(name)
    }
}

impl Resource for ServiceExports {
    type Object = k8s::ServiceExport;
    const SCOPES: &'static [Scope] = &[Scope::ServiceExports];

    fn is_wanted(options: &Options) -> bool {
        options.service_exports
    }

    fn apply(state: &mut State, key: &ObjectKey, export: k8s::ServiceExport, out: &mut Effects) {
        let name = NamespacedName::of(key);
        state.service_exports.0.insert(name.clone(), export);
        publish(state, &name, out);
    }

    fn delete(state: &mut State, key: &ObjectKey, out: &mut Effects) {
        let name = NamespacedName::of(key);
        state.service_exports.0.remove(&name);
        publish(state, &name, out);
    }

    // A changed namespace reaches the exports through their services: an export without a service has no key.
}

/// Publishes or withdraws the key of an export.
pub(super) fn publish(state: &State, name: &NamespacedName, out: &mut Effects) {
    let is_global = state.namespaces.is_global(&name.namespace);
    let export = state.service_exports.0.get(name).filter(|_| is_global);
    let exported = export.zip(state.services.get(name));
    let value = exported.and_then(|(export, service)| value(export, service, &state.options.cluster));
    let labels = value.as_ref().and(export).map(|export| &export.metadata.labels);
    let exports = state.exports.as_ref();
    let verdict = exports
        .zip(labels)
        .map(|(exports, labels)| exports.service_export(&name.namespace, labels));
    if exports.is_some() {
        let name = name.clone();
        out.notes.push(Note::ServiceExport { name, verdict });
    }
    match value {
        Some(value) => out.export(Scope::ServiceExports, &name.key(), verdict, value),
        None => out.withdraw(Scope::ServiceExports, &name.key()),
    }
}

/// Publishes or withdraws the key of an export if the scope decides otherwise about it than `before`.
pub(super) fn judge_again(state: &State, name: &NamespacedName, before: Verdict, out: &mut Effects) {
    let labels = state.service_exports.0.get(name).map(|export| &export.metadata.labels);
    let now = (state.exports.as_ref().zip(labels)).map(|(e, labels)| e.service_export(&name.namespace, labels));
    match now {
        Some(now) if now.keeps() != before.keeps() => publish(state, name, out),
        Some(verdict) if verdict != before => {
            let (scope, key) = (Scope::ServiceExports, name.key());
            out.notes.push(Note::Cause {
                scope,
                name: key,
                verdict,
            });
            let (name, verdict) = (name.clone(), Some(verdict));
            out.notes.push(Note::ServiceExport { name, verdict });
        }
        _ => {}
    }
}

/// The value of an exported service; `None` if the service has no addresses of its own.
fn value(export: &k8s::ServiceExport, service: &k8s::Service, cluster: &ClusterInfo) -> Option<Bytes> {
    let spec = &service.spec;
    if is_external_name(service) {
        return None;
    }
    let meta = &export.metadata;
    let port = |p: &k8s::ServicePort| values::ExportPort {
        name: p.name.clone(),
        protocol: p.protocol.clone(),
        app_protocol: p.app_protocol.clone(),
        port: p.port,
    };
    let timeout = spec.session_affinity_config.client_ip.timeout_seconds;
    let created = meta.creation_timestamp.as_ref();
    Some(json(&values::ServiceExport {
        cluster: cluster.name.to_string(),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        annotations: export.spec.exported_annotations.clone(),
        labels: export.spec.exported_labels.clone(),
        old_labels: export.spec.exported_labels.clone(),
        old_annotations: export.spec.exported_annotations.clone(),
        export_creation_timestamp: created.map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ports: spec.ports.iter().map(port).collect(),
        kind: if spec.cluster_ip == "None" {
            "Headless"
        } else {
            "ClusterSetIP"
        },
        session_affinity: spec.session_affinity.clone(),
        session_affinity_config: timeout.map(|timeout_seconds| values::SessionAffinityConfig {
            client_ip: values::ClientIp { timeout_seconds },
        }),
        ip_families: spec.ip_families.clone(),
        internal_traffic_policy: spec.internal_traffic_policy.clone(),
        traffic_distribution: spec.traffic_distribution.clone(),
    }))
}
