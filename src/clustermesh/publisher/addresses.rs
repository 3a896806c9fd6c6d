//! Addresses of pods: `cilium/state/ip/v1/default/<ip>` → where the pod is and its identity.
//!
//! CiliumEndpoints and CiliumEndpointSlices both give such keys, and several objects can claim one address, so both
//! kinds share this state.

use super::claims::{ClaimedKey, Claims};
use super::namespace::Namespaces;
use super::value::{Problems, json, narrow_u8, narrow_u32};
use super::{Effects, Name};
use crate::k8s::types::{self as k8s, Kind, ObjectKey};
use crate::model::ip::GoIp;
use crate::model::keys::Scope;
use crate::model::values;
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Addresses {
    /// (namespace of the pods, object) → the keys it gives if the namespace is global.
    objects: BTreeMap<(Name, ObjectKey), Box<[ClaimedKey]>>,
    /// The keys that objects of global namespaces give.
    claims: Claims,
}

impl Addresses {
    /// Replaces the keys of `object` by `entries`, once `namespace` exists.
    pub(super) fn set(
        &mut self,
        object: &ObjectKey,
        namespace: &Name,
        entries: Vec<ClaimedKey>,
        namespaces: &Namespaces,
        out: &mut Effects,
    ) {
        match namespaces.known(namespace) {
            Some(true) => claim(&mut self.claims, object, &entries, out),
            Some(false) => claim(&mut self.claims, object, &[], out),
            None => {}
        }
        self.objects.insert((namespace.clone(), object.clone()), entries.into());
    }

    /// `object` is deleted.
    pub(super) fn remove(&mut self, object: &ObjectKey, namespace: &Name, out: &mut Effects) {
        self.forget(object, namespace);
        claim(&mut self.claims, object, &[], out);
    }

    /// `object` no longer belongs to `namespace`. Its keys stay until [`Self::set`] or [`Self::remove`] is called.
    pub(super) fn forget(&mut self, object: &ObjectKey, namespace: &Name) {
        self.objects.remove(&(namespace.clone(), object.clone()));
    }

    /// Publishes or withdraws the keys of all objects of one kind in `namespace`.
    pub(super) fn namespace_changed(
        &mut self,
        kind: Kind,
        namespace: &Name,
        namespaces: &Namespaces,
        out: &mut Effects,
    ) {
        let is_global = namespaces.is_global(namespace);
        let first = ObjectKey {
            kind,
            namespace: Name::default(),
            name: Name::default(),
        };
        let objects = self.objects.range((namespace.clone(), first)..);
        let of_namespace = objects.take_while(|((ns, object), _)| ns == namespace && object.kind == kind);
        for ((_, object), entries) in of_namespace {
            claim(&mut self.claims, object, if is_global { entries } else { &[] }, out);
        }
    }
}

fn claim(claims: &mut Claims, object: &ObjectKey, entries: &[ClaimedKey], out: &mut Effects) {
    for change in claims.set(object, entries) {
        match change.value {
            Some(value) => out.upsert(Scope::Endpoints, &change.name, value),
            None => out.delete(Scope::Endpoints, &change.name),
        }
    }
}

/// A pod, from a CiliumEndpoint or a CiliumEndpointSlice.
pub(super) struct Endpoint<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) identity: i64,
    pub(super) networking: &'a k8s::Networking,
    pub(super) encryption_key: i64,
    pub(super) service_account: &'a str,
    pub(super) named_ports: &'a [k8s::NamedPort],
}

impl Endpoint<'_> {
    /// One key for each valid address of the pod.
    pub(super) fn entries(&self, problems: &mut Problems) -> Vec<ClaimedKey> {
        let addressing = self.networking.addressing.iter();
        let texts = addressing.flat_map(|pair| [&pair.ipv4, &pair.ipv6]);
        let mut entries = vec![];
        for text in texts.filter(|t| !t.is_empty()) {
            let ip = GoIp::parse(text);
            if ip.0.is_none() {
                // Cilium writes the key `<nil>`, which readers reject and where invalid addresses of several pods
                // collide.
                problems.push(format!("address {text:?} of pod {:?} is not an IP address", self.pod));
                continue;
            }
            let value = self.value(ip, problems);
            entries.push(ClaimedKey {
                name: ip.text().into(),
                value: json(&value),
            });
        }
        entries
    }

    fn value(&self, ip: GoIp, problems: &mut Problems) -> values::IpIdentity {
        let mut named_ports = vec![];
        for port in self.named_ports {
            let Ok(number) = u16::try_from(port.port) else {
                problems.push(format!(
                    "port {} of pod {:?} is not between 0 and 65535",
                    port.port, self.pod
                ));
                continue;
            };
            named_ports.push(values::NamedPort {
                name: port.name.clone(),
                port: number,
                protocol: port.protocol.clone(),
            });
        }
        values::IpIdentity {
            ip,
            mask: None,
            host_ip: GoIp::parse(&self.networking.node),
            id: narrow_u32(self.identity, "identity", problems),
            key: narrow_u8(self.encryption_key, "encryption key", problems),
            metadata: "",
            k8s_namespace: self.namespace.to_owned(),
            k8s_pod_name: self.pod.to_owned(),
            k8s_service_account: self.service_account.to_owned(),
            named_ports,
        }
    }
}
