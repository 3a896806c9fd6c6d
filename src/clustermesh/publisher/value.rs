//! Helpers for the values of all kinds of objects.

use crate::k8s::types as k8s;
use crate::model::gojson;
use bytes::Bytes;
use serde::Serialize;

/// Problems of an object, as texts for its author.
pub(super) type Problems = Vec<String>;

/// Values are kept for as long as their objects, so no spare capacity is kept with them.
pub(super) fn json(value: &impl Serialize) -> Bytes {
    let mut json = gojson::to_vec(value);
    json.shrink_to_fit();
    json.into()
}

/// Narrows an integer as Go's conversions do, which keep the low bits; reports a value that does not fit.
pub(super) fn narrow_u8(value: i64, field: &str, problems: &mut Problems) -> u8 {
    check(value, i64::from(u8::MAX), field, problems);
    (value & i64::from(u8::MAX)) as u8
}

/// See [`narrow_u8`].
pub(super) fn narrow_u32(value: i64, field: &str, problems: &mut Problems) -> u32 {
    check(value, i64::from(u32::MAX), field, problems);
    (value & i64::from(u32::MAX)) as u32
}

/// A port number. The Kubernetes API admits only valid port numbers. Of an invalid one in a manifest, the low bits are
/// kept, as in Go.
pub(super) fn port_u16(port: i32) -> u16 {
    (port & i32::from(u16::MAX)) as u16
}

fn check(value: i64, max: i64, field: &str, problems: &mut Problems) {
    if !(0..=max).contains(&value) {
        problems.push(format!(
            "the {field} {value} is not between 0 and {max}: its low bits are published"
        ));
    }
}

/// Whether a service is only an alias of a DNS name. Cilium exports it with an empty address, for which readers reject
/// the whole entry.
pub(super) fn is_external_name(service: &k8s::Service) -> bool {
    service.spec.kind == "ExternalName"
}
