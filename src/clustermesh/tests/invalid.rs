//! Updates that cannot be converted: they are no deletions.
//!
//! Cases from the field: E1 (a CiliumIdentity whose update has no labels), and the same for other kinds.

use super::*;

const IDENTITY_NAMESPACE: &str = "k8s:io.kubernetes.pod.namespace";

fn identity(labels: &Value) -> Value {
    json!({"kind": "CiliumIdentity", "metadata": {"name": "9"}, "security-labels": labels})
}

fn endpoint_slice(namespace: &Value, ip: &str) -> Value {
    json!({
        "kind": "CiliumEndpointSlice", "metadata": {"name": "ces-1"}, "namespace": namespace,
        "endpoints": [{"name": "p", "id": 7, "networking": {"addressing": [{"ipv4": ip}], "node": "1.1.1.1"}}],
    })
}

fn bench(endpoint_slices: bool) -> Bench {
    let mut bench = Bench::new(Options {
        endpoint_slices,
        ..options()
    });
    bench.apply(namespace("foo", None));
    bench
}

/// E1: the last valid key stays, with a warning.
#[test]
fn an_identity_that_loses_its_labels_keeps_its_key_until_it_is_deleted() {
    let valid = json!({IDENTITY_NAMESPACE: "foo", "k8s:app": "a"});
    let invalid = [
        json!({}),
        Value::Null,
        json!({"k8s:app": "b"}),
        json!({IDENTITY_NAMESPACE: ""}),
    ];
    for labels in invalid {
        let mut bench = bench(false);
        bench.apply(identity(&valid));
        let before = bench.keys.clone();
        assert_eq!(bench.names(Scope::Identities), ["9"]);
        bench.apply(identity(&labels));
        assert_eq!(bench.keys, before, "{labels}");
        assert_eq!(bench.problems.len(), 1, "{:?}", bench.problems);
        // The namespace still decides about the key that stayed.
        bench.apply(namespace("foo", Some("false")));
        assert!(bench.keys.is_empty(), "{labels}");
        bench.apply(namespace("foo", None));
        assert_eq!(bench.keys, before, "{labels}");
        bench.apply(identity(&json!({IDENTITY_NAMESPACE: "foo", "k8s:app": "c"})));
        assert_ne!(bench.keys, before, "a valid update counts again");
        bench.apply(identity(&labels));
        bench.delete(Kind::Identity, "", "9");
        assert!(bench.keys.is_empty(), "{labels}");
    }
    let mut bench = bench(false);
    bench.apply(identity(&json!({})));
    bench.apply(namespace("foo", Some("true")));
    assert!(bench.keys.is_empty(), "an identity that was never valid has no key");
}

/// E1, another kind.
#[test]
fn an_endpoint_slice_that_loses_its_namespace_keeps_its_keys_until_it_is_deleted() {
    for nowhere in [json!(""), Value::Null] {
        let mut bench = bench(true);
        bench.apply(endpoint_slice(&json!("foo"), "10.0.0.1"));
        bench.apply(endpoint_slice(&nowhere, "10.0.0.2"));
        assert_eq!(bench.names(Scope::Endpoints), ["10.0.0.1"]);
        assert_eq!(bench.problems.len(), 1, "{:?}", bench.problems);
        bench.apply(namespace("foo", Some("false")));
        assert!(bench.keys.is_empty());
        bench.apply(namespace("foo", None));
        bench.apply(endpoint_slice(&nowhere, "10.0.0.2"));
        bench.delete(Kind::CiliumEndpointSlice, "", "ces-1");
        assert!(bench.keys.is_empty());
    }
}

/// E1, another cause: Cilium cannot tell whether a namespace that does not exist is global, and tries again.
#[test]
fn an_object_that_moves_to_a_namespace_that_does_not_exist_keeps_its_keys() {
    let mut identities = bench(false);
    identities.apply(identity(&json!({IDENTITY_NAMESPACE: "foo"})));
    let before = identities.keys.clone();
    identities.apply(identity(&json!({IDENTITY_NAMESPACE: "later"})));
    assert_eq!(identities.keys, before);
    identities.apply(namespace("later", None));
    assert_eq!(identities.names(Scope::Identities), ["9"]);
    assert_ne!(identities.keys, before);
    identities.delete(Kind::Namespace, "", "later");
    assert!(identities.keys.is_empty());

    let mut slices = bench(true);
    slices.apply(endpoint_slice(&json!("foo"), "10.0.0.1"));
    slices.apply(endpoint_slice(&json!("later"), "10.0.0.2"));
    assert_eq!(slices.names(Scope::Endpoints), ["10.0.0.1"]);
    slices.apply(namespace("later", None));
    assert_eq!(slices.names(Scope::Endpoints), ["10.0.0.2"]);
    slices.apply(endpoint_slice(&json!("never"), "10.0.0.3"));
    slices.delete(Kind::CiliumEndpointSlice, "", "ces-1");
    assert!(slices.keys.is_empty());
}
