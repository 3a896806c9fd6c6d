//! Addresses of pods: `cilium/state/ip/v1/default/<ip>` → where the pod is and its identity.
//!
//! CiliumEndpoints and CiliumEndpointSlices both give such keys, and several objects can claim one address, so both
//! kinds share this state.

use super::claims::{ClaimedKey, Claims, Judge, OwnedKey};
use super::exports::Exports;
use super::namespace::Namespaces;
use super::value::{Problems, json, narrow_u8, narrow_u32};
use super::{Effects, Name};
use crate::k8s::types::{self as k8s, Kind, ObjectKey};
use crate::model::ip::GoIp;
use crate::model::keys::Scope;
use crate::model::values;
use crate::scope::Verdict;
use std::collections::BTreeMap;

/// The annotation of a CiliumEndpoint that decides about its export.
const SYNC: &str = "clustermesh.cilium.io/sync";
/// The annotation of a CiliumEndpoint that says which clusters it is for.
const SYNC_SCOPE: &str = "clustermesh.cilium.io/sync-scope";
/// The value for clusters of the same region, in the annotation and in the key's value.
const REGIONAL: &str = "regional";

#[derive(Default)]
pub(super) struct Addresses {
    /// (namespace of the pods, object) → the keys it gives if the namespace is global.
    objects: BTreeMap<(Name, ObjectKey), Box<[ClaimedKey]>>,
    /// The keys that objects of global namespaces give.
    claims: Claims,
}

/// What decides, beside the objects themselves, whether addresses are published.
pub(super) type Surroundings<'a> = (&'a Namespaces, Option<&'a mut Exports>);

impl Addresses {
    /// Replaces the keys of `object` by `entries`, once `namespace` exists.
    pub(super) fn set(
        &mut self,
        object: &ObjectKey,
        namespace: &Name,
        entries: Vec<ClaimedKey>,
        (namespaces, exports): Surroundings<'_>,
        out: &mut Effects,
    ) {
        let judge = exports.map(|e| (e, namespace));
        match namespaces.known(namespace) {
            Some(true) => claim(&mut self.claims, object, &entries, judge, out),
            Some(false) => claim(&mut self.claims, object, &[], judge, out),
            None => {}
        }
        self.objects.insert((namespace.clone(), object.clone()), entries.into());
    }

    /// `object` is deleted.
    pub(super) fn remove(
        &mut self,
        object: &ObjectKey,
        namespace: &Name,
        exports: Option<&mut Exports>,
        out: &mut Effects,
    ) {
        self.forget(object, namespace);
        claim(&mut self.claims, object, &[], exports.map(|e| (e, namespace)), out);
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
        (namespaces, mut exports): Surroundings<'_>,
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
            let judge = exports.as_deref_mut().map(|e| (e, namespace));
            let entries = if is_global { entries } else { &[][..] };
            claim(&mut self.claims, object, entries, judge, out);
        }
    }

    /// The addresses that pods of `namespace` claim; of all namespaces with `None`.
    pub(super) fn names(&self, namespace: Option<&Name>) -> impl Iterator<Item = &Name> {
        self.claims.names(namespace)
    }

    /// What the scope says about an address; `None` without a scope, or if no object of a global namespace has the address.
    pub(super) fn verdict(&self, name: &Name) -> Option<Verdict> {
        self.claims.verdict(name)
    }

    /// Publishes or withdraws an address about which the scope decides otherwise than before.
    pub(super) fn judge_again(&mut self, name: &Name, exports: &mut Exports, out: &mut Effects) {
        let changes = self.claims.judge_again(name, exports).into_iter();
        changes.for_each(|change| write(change, out));
    }
}

fn claim(claims: &mut Claims, object: &ObjectKey, entries: &[ClaimedKey], judge: Judge<'_>, out: &mut Effects) {
    let changes = claims.set(object, entries, judge).into_iter();
    changes.for_each(|change| write(change, out));
}

fn write(change: OwnedKey, out: &mut Effects) {
    match change.value {
        Some(value) => out.upsert(Scope::Endpoints, &change.name, value),
        None => out.delete(Scope::Endpoints, &change.name),
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
    pub(super) annotations: Annotations,
}

/// What the annotations of a CiliumEndpoint say about its export. They count only with a scope file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    /// Whether the endpoint is exported, whatever the rules say.
    pub(super) sync: Option<bool>,
    /// The endpoint is for clusters of the same region.
    pub(super) is_regional: bool,
}

impl Annotations {
    pub(super) fn parse(annotations: &k8s::Strings, problems: &mut Problems) -> Self {
        let mut parsed = Self::default();
        let mut wrong = |name: &str, value: &str, values: &str| {
            problems.push(format!(
                "annotation {name}: {value:?} is ignored, because it is neither {values}"
            ));
        };
        match annotations.get(SYNC).map(|v| &**v) {
            Some(value) if value.eq_ignore_ascii_case("true") => parsed.sync = Some(true),
            Some(value) if value.eq_ignore_ascii_case("false") => parsed.sync = Some(false),
            Some(value) => wrong(SYNC, value, "true nor false"),
            None => {}
        }
        match annotations.get(SYNC_SCOPE).map(|v| &**v) {
            Some(value) if value.eq_ignore_ascii_case(REGIONAL) => parsed.is_regional = true,
            Some(value) if value.eq_ignore_ascii_case("global") => {}
            Some(value) => wrong(SYNC_SCOPE, value, "regional nor global"),
            None => {}
        }
        parsed
    }
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
                identity: value.id,
                sync: self.annotations.sync,
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
            sync_scope: self.annotations.is_regional.then_some(REGIONAL),
        }
    }
}
