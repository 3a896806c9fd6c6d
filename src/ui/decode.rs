//! The values of keys, decoded for reading.

use crate::model::slices;
use crate::model::values::slice::ClusterEndpointSlice;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The most bytes of a value without structure that are shown.
const SHOWN_MAX: usize = 64 << 10;

/// A decoded value, and how it was encoded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) value: Value,
    pub(super) encoding: &'static str,
}

/// Decodes whatever a store may hold.
pub(super) fn decoded(value: &[u8]) -> Decoded {
    let of = |value, encoding| Decoded { value, encoding };
    if let Some(slice) = slices::decode(value) {
        return of(slice_json(&slice), "zstd protobuf");
    }
    if let Ok(value @ (Value::Object(_) | Value::Array(_))) = serde_json::from_slice(value) {
        return of(value, "json");
    }
    let shown = &value[..value.len().min(SHOWN_MAX)];
    match std::str::from_utf8(shown) {
        Ok(text) => of(text.into(), "text"),
        Err(_) => of(STANDARD.encode(shown).into(), "binary"),
    }
}

/// The fields under the names of Kubernetes.
fn slice_json(slice: &ClusterEndpointSlice) -> Value {
    let endpoints = slice.endpoints.iter().map(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        json!({
            "addresses": endpoint.addresses,
            "conditions": conditions.map(|c| json!({
                "ready": c.ready, "serving": c.serving, "terminating": c.terminating,
            })),
            "hostname": endpoint.hostname,
            "nodeName": endpoint.node_name,
            "zone": endpoint.zone,
        })
    });
    let ports = slice.ports.iter().map(|port| {
        json!({"name": port.name, "port": port.port, "protocol": port.protocol, "appProtocol": port.app_protocol})
    });
    let mut value = json!({
        "cluster": slice.cluster,
        "clusterID": slice.cluster_id,
        "namespace": slice.namespace,
        "name": slice.name,
        "labels": slice.labels,
        "annotations": slice.annotations,
        "addressType": slice.address_type,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
    });
    without_nulls(&mut value);
    value
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slices::{DECOMPRESSED_MAX, ZSTD};
    use crate::model::values::slice::{Endpoint, EndpointConditions};
    use prost::Message as _;

    #[test]
    fn each_encoding_is_recognised_by_its_bytes() {
        let read = |value: &[u8]| {
            let Decoded { value, encoding } = decoded(value);
            (value, encoding)
        };
        assert_eq!(read(br#"{"a":1}"#), (json!({"a": 1}), "json"));
        assert_eq!(read(b"2026-11-28T00:00:00Z"), ("2026-11-28T00:00:00Z".into(), "text"));
        assert_eq!(read(&[0xff, 0]), ("/wA=".into(), "binary"));
        assert_eq!(read(b""), ("".into(), "text"));
        let broken = [&ZSTD[..], b"nothing"].concat();
        assert_eq!(read(&broken).1, "binary");
    }

    #[test]
    fn an_endpoint_slice_is_shown_with_its_fields_and_a_bomb_is_not() {
        let slice = ClusterEndpointSlice {
            name: Some("catalog-v4".to_owned()),
            endpoints: vec![Endpoint {
                addresses: vec!["10.0.0.1".to_owned()],
                conditions: Some(EndpointConditions {
                    ready: Some(false),
                    ..EndpointConditions::default()
                }),
                ..Endpoint::default()
            }],
            ..ClusterEndpointSlice::default()
        };
        let value = zstd::encode_all(&*slice.encode_to_vec(), 0).unwrap();
        let shown = decoded(&value);
        assert_eq!(shown.encoding, "zstd protobuf");
        assert_eq!(shown.value["endpoints"][0]["conditions"], json!({"ready": false}));
        let bomb = zstd::encode_all(&*vec![0; DECOMPRESSED_MAX as usize + 1], 0).unwrap();
        assert_eq!(decoded(&bomb).encoding, "binary");
    }
}
