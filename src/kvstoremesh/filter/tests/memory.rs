//! Whatever a remote cluster can make large is counted, so that it can be limited, and is forgotten with its key.

use super::*;

impl Mirror {
    /// What a kind takes more than before.
    fn grows(&mut self, kind: Scope, act: impl FnOnce(&mut Self)) -> usize {
        let before = self.filter.remembered(kind);
        act(self);
        self.filter.remembered(kind) - before
    }
}

/// A filter that remembers values of identities, and backends.
fn mirror() -> Mirror {
    let mut mirror = Mirror::new(json!({
        "identities": "used",
        "services": {"default": "exclude", "rules": [
            {"name": "shop", "action": "include", "namespaces": {"names": ["shop"]}}]},
        "endpoints": {"default": "exclude", "rules": [
            {"name": "backends", "action": "include", "backendsOfServices": true}]},
    }));
    for kind in Scope::ALL {
        mirror.list(kind, &[]);
    }
    mirror
}

const LARGE: usize = 100_000;

#[test]
fn a_value_of_an_identity_counts_with_all_its_bytes() {
    let mut mirror = mirror();
    // This compresses to almost nothing, and must be decompressed to be read.
    let value = format!("k8s:app={};", "a".repeat(LARGE));
    let grown = mirror.grows(Scope::Identities, |mirror| {
        for number in 0..100 {
            mirror.put(Scope::Identities, &number.to_string(), &value);
        }
    });
    assert!(grown >= 100 * LARGE, "{grown}");
    // Old values that are still in a block count no longer than until the next list.
    mirror.list(Scope::Identities, &[("1", "k8s:app=b;")]);
    let left = mirror.filter.remembered(Scope::Identities);
    assert!(left < 1000, "{left}");
}

#[test]
fn values_that_are_replaced_again_and_again_do_not_pile_up() {
    let mut mirror = mirror();
    for n in 0..1000 {
        let value = format!("k8s:app={n}{};", "a".repeat(1000));
        mirror.put(Scope::Identities, "300", &value);
        mirror.put(Scope::Identities, "301", &value);
        mirror.delete(Scope::Identities, "301");
    }
    let bytes = mirror.filter.remembered(Scope::Identities);
    assert!(bytes < 10_000, "{bytes}");
}

#[test]
fn names_that_are_no_addresses_count() {
    let mut mirror = mirror();
    let name = "n".repeat(4000);
    for kind in [Scope::Endpoints, Scope::Services] {
        let value = endpoint("batch", 300);
        let grown = mirror.grows(kind, |mirror| mirror.put(kind, &name, &value));
        assert!((4000..5000).contains(&grown), "{kind:?}: {grown}");
        mirror.put(kind, &name, &value);
        mirror.delete(kind, &name);
        let left = mirror.filter.remembered(kind);
        assert!(left < 500, "{kind:?}: {left}");
    }
}

#[test]
fn a_namespace_longer_than_those_of_kubernetes_is_none() {
    let mut mirror = mirror();
    let grown = mirror.grows(Scope::Endpoints, |mirror| {
        for n in 0..100 {
            let namespace = format!("{n}{}", "n".repeat(LARGE));
            mirror.endpoint(&format!("10.0.0.{n}"), &namespace, 300);
        }
    });
    assert!(grown < LARGE, "{grown}");
}

#[test]
fn each_class_of_endpoints_and_each_lonely_address_counts() {
    let mut mirror = mirror();
    let grown = mirror.grows(Scope::Endpoints, |mirror| {
        for n in 0..1000 {
            mirror.endpoint(&format!("fd00:{n:x}::1"), "batch", n);
        }
    });
    assert!(grown > 1000 * 100, "{grown}");
}

#[test]
fn backends_count_while_a_service_names_them() {
    let mut mirror = mirror();
    let addresses: Vec<_> = (0..1000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let backends: Vec<_> = addresses.iter().map(|address| &**address).collect();
    for kind in [Scope::Services, Scope::EndpointSlices] {
        let grown = mirror.grows(kind, |mirror| {
            mirror.put(Scope::Services, "shop/x", &service(&backends));
        });
        assert!(grown >= 1000 * 16, "{grown}");
        mirror.put(Scope::Services, "shop/x", &service(&[]));
        let left = mirror.filter.remembered(kind);
        assert!(left < 1000, "{kind:?}: {left}");
    }
    // While a list goes on, they may belong to a service that comes later; they count as long as they are held.
    mirror.filter.list_begun(Scope::Services);
    for _ in 0..10 {
        mirror.put(Scope::Services, "shop/x", &service(&backends));
        mirror.put(Scope::Services, "shop/x", &service(&[]));
    }
    let held = mirror.filter.remembered(Scope::EndpointSlices);
    assert!(held >= 10 * 1000 * 16, "{held}");
    mirror.act(|filter, _, out| filter.list_ended(Scope::Services, out));
    let left = mirror.filter.remembered(Scope::Services);
    assert!(left < 1000, "{left}");
}
