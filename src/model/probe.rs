//! The value of the probe key, which a publisher writes every second so that mirrors can tell how long a commit takes to
//! arrive. Cilium has no such key, and its agents do not watch it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest value that is read, in bytes.
pub const PROBE_MAX: usize = 4096;

/// `cilium/state/probe/v1/<cluster>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Tells the runs of the publisher apart: each has a monotonic clock of its own.
    pub run: u64,
    /// The publisher's clock at the write: microseconds since 1970.
    pub unix_micros: i64,
    /// Microseconds since the start of the run, by a clock that is never set.
    pub run_micros: i64,
    /// Microseconds that the quickest write of a probe took in the last minutes, from the time in the probe until the store had
    /// committed it. Absent until a write was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_micros: Option<u64>,
    /// The number of keys that the publisher has, by scope.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, u64>,
}

impl Probe {
    /// Reads a value; `None` if it is no probe.
    pub fn parse(value: &[u8]) -> Option<Self> {
        (value.len() <= PROBE_MAX)
            .then(|| serde_json::from_slice(value).ok())
            .flatten()
    }

    pub fn to_json(&self) -> Vec<u8> {
        // A map of numbers and numbers cannot fail to serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_it_was_written_and_anything_else_is_none() {
        let probe = Probe {
            run: 7,
            unix_micros: 1,
            run_micros: 2,
            write_micros: Some(5),
            keys: [("nodes".to_owned(), 3)].into(),
        };
        let text = r#"{"run":7,"unixMicros":1,"runMicros":2,"writeMicros":5,"keys":{"nodes":3}}"#;
        assert_eq!(String::from_utf8(probe.to_json()).unwrap(), text);
        assert_eq!(Probe::parse(text.as_bytes()), Some(probe));
        assert_eq!(Probe::parse(b"now"), None);
        assert_eq!(Probe::parse(&vec![b' '; PROBE_MAX + 1]), None);
    }
}
