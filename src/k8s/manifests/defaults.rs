//! The defaults that an API server fills in, because readers rely on them.

use crate::k8s::types::Kind;
use serde_json::Value;

/// Sets missing fields of an object. `modified` is the time of the object's file, as Kubernetes writes times.
pub(super) fn set_defaults(kind: Kind, value: &mut Value, modified: &str) {
    let namespaced = [Kind::Endpoint, Kind::Service, Kind::EndpointSlice, Kind::ServiceExport].contains(&kind);
    if namespaced {
        set_default(&mut value["metadata"], "namespace", "default");
    }
    match kind {
        Kind::Service => {
            if let Some(spec) = value.get_mut("spec").filter(|spec| spec.is_object()) {
                set_service_defaults(spec);
            }
        }
        Kind::ServiceExport => set_default(&mut value["metadata"], "creationTimestamp", modified),
        _ => {}
    }
}

fn set_service_defaults(spec: &mut Value) {
    set_default(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" && spec["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
        // Manifests have no address allocator, so a service without an address is headless.
        set_default(spec, "clusterIP", "None");
    }
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        set_default(port, "protocol", "TCP");
    }
}

/// Sets a field that is missing, null or empty.
fn set_default(object: &mut Value, field: &str, default: &str) {
    if let Some(map) = object.as_object_mut() {
        let is_empty = map.get(field).is_none_or(|value| value.is_null() || value == "");
        if is_empty {
            map.insert(field.to_owned(), default.into());
        }
    }
}
