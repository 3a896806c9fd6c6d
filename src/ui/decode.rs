//! The values of keys, decoded for reading.

use crate::model::slices;
use crate::model::values::slice::ClusterEndpointSlice;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What an item of a slice costs at least of a [`Budget`].
const ITEM_COST: usize = 64;
/// The deepest JSON that is shown with its structure: each line of it is indented.
const DEPTH_MAX: usize = 16;
/// The most bytes of one value that are shown.
const SHOWN_MAX: usize = 64 << 10;
/// What is shown of a value when the budget is used up.
const LEAST: usize = 128;

/// Bytes of values that one answer may still show: decoded, they take a hundred times as much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget(pub(super) usize);

/// A decoded value, and how it was encoded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) value: Value,
    pub(super) encoding: &'static str,
    /// Only the beginning is shown, as text.
    pub(super) is_cut: bool,
}

impl Budget {
    /// Takes `cost` if there is as much.
    fn take(&mut self, cost: usize) -> Option<()> {
        self.0 = self.0.checked_sub(cost)?;
        Some(())
    }
}

/// Decodes whatever a store may hold.
pub(super) fn decoded(value: &[u8], budget: &mut Budget) -> Decoded {
    let whole = |value, encoding| Decoded {
        value,
        encoding,
        is_cut: false,
    };
    if let Some(slice) = slices::decode_within(value, |bytes, items| budget.take(bytes.max(ITEM_COST * items))) {
        return whole(slice_json(&slice), "zstd protobuf");
    }
    if value.len() <= SHOWN_MAX
        && matches!(value.trim_ascii_start().first(), Some(b'{' | b'['))
        && budget.take(value.len()).is_some()
        && let Ok(value @ (Value::Object(_) | Value::Array(_))) = serde_json::from_slice(value)
        && depth(&value) <= DEPTH_MAX
    {
        return whole(value, "json");
    }
    let shown = value.len().min(SHOWN_MAX).min(budget.0.max(LEAST));
    let is_cut = shown < value.len();
    budget.0 = budget.0.saturating_sub(shown);
    let (value, encoding) = match std::str::from_utf8(&value[..shown]) {
        Ok(text) => (text.into(), "text"),
        // A character that is cut in two.
        Err(error) if is_cut && error.error_len().is_none() => {
            (String::from_utf8_lossy(&value[..error.valid_up_to()]).into(), "text")
        }
        Err(_) => (STANDARD.encode(&value[..shown]).into(), "binary"),
    };
    Decoded {
        value,
        encoding,
        is_cut,
    }
}

fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
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
    use crate::model::values::slice::{Endpoint, EndpointConditions};
    use prost::Message as _;

    #[test]
    fn each_encoding_is_recognised_by_its_bytes() {
        let read = |value: &[u8]| {
            let Decoded { value, encoding, .. } = decoded(value, &mut Budget(1 << 20));
            (value, encoding)
        };
        assert_eq!(read(br#"{"a":1}"#), (json!({"a": 1}), "json"));
        assert_eq!(read(b"2026-11-28T00:00:00Z"), ("2026-11-28T00:00:00Z".into(), "text"));
        assert_eq!(read(&[0xff, 0]), ("/wA=".into(), "binary"));
        assert_eq!(read(b""), ("".into(), "text"));
        let broken = [&slices::ZSTD[..], b"nothing"].concat();
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
        let read = |value: &[u8]| decoded(value, &mut Budget(1 << 20));
        let shown = read(&value);
        assert_eq!(shown.encoding, "zstd protobuf");
        assert_eq!(shown.value["endpoints"][0]["conditions"], json!({"ready": false}));
        let bomb = zstd::encode_all(&*vec![0; slices::DECOMPRESSED_MAX + 1], 0).unwrap();
        assert_eq!(read(&bomb).encoding, "binary");
        // Empty endpoints, and empty addresses of one endpoint: two bytes of each become two hundred.
        let addresses = Endpoint {
            addresses: vec![String::new(); slices::ITEMS_MAX],
            ..Endpoint::default()
        };
        for endpoints in [vec![Endpoint::default(); slices::ITEMS_MAX + 1], vec![addresses]] {
            let slice = ClusterEndpointSlice {
                endpoints,
                ..ClusterEndpointSlice::default()
            };
            let many = zstd::encode_all(&*slice.encode_to_vec(), 0).unwrap();
            assert!(many.len() < 1000 && slices::decode(&many).is_none());
            assert_eq!(read(&many).encoding, "binary");
        }
    }

    #[test]
    fn an_answer_shows_so_many_bytes_with_their_structure_and_no_more() {
        let mut budget = Budget(1000);
        let value = format!("[{}1]", "{\"\":0},".repeat(100));
        let shown: Vec<_> = (0..3).map(|_| decoded(value.as_bytes(), &mut budget)).collect();
        assert!(shown[0].value.is_array() && !shown[0].is_cut);
        for cut in &shown[1..] {
            assert!(cut.value.is_string() && cut.is_cut, "{cut:?}");
        }
        let whole = |value: &[u8]| !decoded(value, &mut Budget(1 << 20)).is_cut;
        assert!(whole(&[b'a'; SHOWN_MAX]) && !whole(&[b'a'; SHOWN_MAX + 1]));
        let umlauts = "ä".repeat(LEAST);
        let cut = decoded(&umlauts.as_bytes()[1..], &mut Budget(0));
        assert_eq!(cut.encoding, "binary");
        let cut = decoded(format!("a{umlauts}").as_bytes(), &mut Budget(0));
        assert_eq!((cut.encoding, cut.value.as_str().unwrap().len()), ("text", LEAST - 1));
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX + 1), "]".repeat(DEPTH_MAX + 1));
        assert!(decoded(deep.as_bytes(), &mut Budget(1 << 20)).value.is_string());
    }
}
