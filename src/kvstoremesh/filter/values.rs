//! What the filter reads in the values of keys, and nothing more.

use super::addresses::Address;
use super::classes::Facts;
use crate::model::slices;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The value of [`Facts::is_regional`] in the field `SyncScope`.
const REGIONAL: &str = "regional";

#[derive(Deserialize)]
struct Endpoint<'a> {
    #[serde(rename = "ID", default)]
    id: u32,
    #[serde(rename = "K8sNamespace", default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(rename = "SyncScope", default, borrow)]
    sync_scope: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(default)]
    backends: Backends,
}

/// The keys of a map from addresses to ports.
#[derive(Default)]
struct Backends(Vec<Address>);

/// Calls `look` with the facts of an endpoint. The rules see a value that cannot be read as one of no namespace and of an
/// identity that is not known.
pub(super) fn endpoint<T>(value: &[u8], look: impl FnOnce(Facts<'_>) -> T) -> T {
    match serde_json::from_slice::<Endpoint<'_>>(value) {
        Ok(endpoint) => look(Facts {
            namespace: &endpoint.namespace,
            identity: endpoint.id,
            is_regional: endpoint.sync_scope == REGIONAL,
        }),
        Err(_) => look(Facts::default()),
    }
}

/// The addresses of the backends in the value of a service.
pub(super) fn of_service(value: &[u8]) -> Vec<Address> {
    let service = serde_json::from_slice::<Service>(value);
    service.map(|service| service.backends.0).unwrap_or_default()
}

/// The addresses of the backends in the value of an endpoint slice.
pub(super) fn of_slice(value: &[u8]) -> Vec<Address> {
    let Some(slice) = slices::decode(value) else {
        return vec![];
    };
    let texts = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    texts.filter_map(|text| Address::parse(text)).collect()
}

impl<'de> Deserialize<'de> for Backends {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BackendsVisitor)
    }
}

struct BackendsVisitor;

impl<'de> Visitor<'de> for BackendsVisitor {
    type Value = Backends;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("backends by address")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Backends, A::Error> {
        let mut addresses = vec![];
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            addresses.extend(Address::parse(&key));
            map.next_value::<IgnoredAny>()?;
        }
        Ok(Backends(addresses))
    }

    /// Go writes a map that is nil as `null`.
    fn visit_unit<E>(self) -> Result<Backends, E> {
        Ok(Backends::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::values::slice;
    use prost::Message as _;

    fn facts(value: &[u8]) -> (String, u32, bool) {
        endpoint(value, |facts| {
            (facts.namespace.to_owned(), facts.identity, facts.is_regional)
        })
    }

    #[test]
    fn an_endpoint_says_its_namespace_identity_and_readers() {
        let value = br#"{"IP":"10.0.0.1","Mask":null,"HostIP":"172.18.0.2","ID":66000,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"p"}"#;
        assert_eq!(facts(value), ("shop".to_owned(), 66000, false));
        let value = br#"{"ID":1,"K8sNamespace":"a\u003cb","NamedPorts":[{"Name":"x"}],"SyncScope":"regional"}"#;
        assert_eq!(facts(value), ("a<b".to_owned(), 1, true));
        assert_eq!(facts(br#"{"ID":1,"SyncScope":"global"}"#), (String::new(), 1, false));
        for unreadable in [&b""[..], b"{}", b"[]", b"{\"ID\":-1}"] {
            assert_eq!(facts(unreadable), (String::new(), 0, false));
        }
    }

    #[test]
    fn backends_are_the_addresses_of_a_service_or_slice() {
        let address = |text| Address::parse(text).unwrap();
        let value = br#"{"cluster":"hk","namespace":"shop","name":"db","frontends":{"1.2.3.4":{}},"backends":{"10.0.0.1":{"x":{"Protocol":"TCP","Port":1}},"fd00::1":{}},"shared":true}"#;
        assert_eq!(of_service(value), [address("10.0.0.1"), address("fd00::1")]);
        assert_eq!(of_service(br#"{"backends":null}"#), []);
        assert_eq!(of_service(br#"{"name":"db"}"#), []);
        assert_eq!(of_service(b"nothing"), []);
        let slice = slice::ClusterEndpointSlice {
            endpoints: vec![slice::Endpoint {
                addresses: vec!["10.0.0.2".to_owned()],
                ..slice::Endpoint::default()
            }],
            ..slice::ClusterEndpointSlice::default()
        };
        let value = zstd::encode_all(&*slice.encode_to_vec(), 0).unwrap();
        assert_eq!(of_slice(&value), [address("10.0.0.2")]);
        assert_eq!(of_slice(b"nothing"), []);
    }
}
