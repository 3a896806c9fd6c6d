//! What reports show of the values of keys.

use crate::model::keys::Scope;
use crate::model::slices;
use crate::util::words::{shortened, visible};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Longest text of a remote cluster that is shown.
const SHOWN_MAX: usize = 80;

/// The pod in the value of an address.
#[derive(Default, Deserialize)]
pub(super) struct Pod<'a> {
    #[serde(rename = "ID", default)]
    pub(super) identity: u32,
    #[serde(rename = "K8sNamespace", default, borrow)]
    pub(super) namespace: Cow<'a, str>,
    #[serde(rename = "K8sPodName", default, borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(rename = "SyncScope", default, borrow)]
    sync_scope: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(default)]
    backends: Option<BTreeMap<String, IgnoredAny>>,
}

impl<'a> Pod<'a> {
    /// The pod of an address; a value that cannot be read has an empty one.
    pub(super) fn of(value: &'a [u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_default()
    }

    /// Whether the address is for clusters of the same region.
    pub(super) fn is_regional(&self) -> bool {
        self.sync_scope == "regional"
    }
}

/// The addresses behind a service or an endpoint slice.
pub(super) fn backends(kind: Scope, value: &[u8]) -> Vec<String> {
    match kind {
        Scope::Services => {
            let service = serde_json::from_slice::<Service>(value).ok();
            let backends = service.and_then(|service| service.backends);
            backends.unwrap_or_default().into_keys().collect()
        }
        Scope::EndpointSlices => {
            let endpoints = slices::decode(value).map(|slice| slice.endpoints).unwrap_or_default();
            endpoints.into_iter().flat_map(|endpoint| endpoint.addresses).collect()
        }
        _ => vec![],
    }
}

/// A key as an example: an address with its pod, an identity with its labels.
pub(super) fn example(kind: Scope, name: &str, value: &[u8]) -> String {
    let more = match kind {
        Scope::Endpoints => {
            let pod = Pod::of(value);
            match pod.name.is_empty() {
                true => pod.namespace.into_owned(),
                false => format!("{}/{}", pod.namespace, pod.name),
            }
        }
        Scope::Identities => String::from_utf8_lossy(value).into_owned(),
        _ => String::new(),
    };
    match more.is_empty() {
        true => shown(name),
        false => format!("{} ({})", shown(name), shown(&more)),
    }
}

/// Text of a remote cluster for a terminal: shortened, in one line, and without hidden characters.
pub(super) fn shown(text: &str) -> String {
    let line = shortened(text, SHOWN_MAX).replace('\n', "\\n").replace('\t', "\\t");
    visible(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_name_pods_and_labels() {
        let value = br#"{"ID":7,"K8sNamespace":"shop","K8sPodName":"db-0","SyncScope":"regional"}"#;
        assert_eq!(example(Scope::Endpoints, "10.0.0.1", value), "10.0.0.1 (shop/db-0)");
        assert!(Pod::of(value).is_regional() && Pod::of(value).identity == 7);
        assert_eq!(example(Scope::Endpoints, "10.0.0.1", b"nothing"), "10.0.0.1");
        assert_eq!(example(Scope::Identities, "7", b"k8s:app=db;"), "7 (k8s:app=db;)");
        assert_eq!(example(Scope::Nodes, "n1", b"{}"), "n1");
    }

    #[test]
    fn text_of_others_is_short_and_has_no_control_characters() {
        assert_eq!(shown("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
        assert_eq!(shown(&"x".repeat(100)).chars().count(), SHOWN_MAX + 1);
    }

    #[test]
    fn backends_are_read_in_services_and_slices() {
        let value = br#"{"backends":{"10.0.0.1":{"x":{}},"fd00::1":{}}}"#;
        assert_eq!(backends(Scope::Services, value), ["10.0.0.1", "fd00::1"]);
        assert!(backends(Scope::Services, br#"{"backends":null}"#).is_empty());
        assert!(backends(Scope::EndpointSlices, b"nothing").is_empty() && backends(Scope::Nodes, value).is_empty());
    }
}
