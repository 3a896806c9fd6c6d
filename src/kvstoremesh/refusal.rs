//! Keys of a remote cluster that are not mirrored, and why.
//!
//! A remote cluster is not trusted: its keys must not leave their prefix in the local store, and a single key must not
//! be larger than readers and stores accept.

use crate::model::keys;
use std::collections::BTreeMap;
use std::fmt;

/// Largest mirrored value, in bytes: agents use no value near this size, and etcd accepts requests up to 1.5 MiB.
pub const VALUE_MAX: usize = 1 << 20;
/// Longest mirrored key, in bytes.
pub const KEY_MAX: usize = 4096;

/// Why a key is not mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    OutsidePrefix,
    KeyTooLong,
    UnsafeKey,
    ValueTooLarge,
}

/// How many keys were refused for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub count: u64,
    /// The last of these keys, shortened.
    pub last_key: String,
}

/// The refusals of one remote cluster.
#[derive(Clone, Debug, Default)]
pub struct Refusals(BTreeMap<Refusal, Refused>);

/// The name of `key` after `prefix`, or the reason why the key is not mirrored.
pub(super) fn check<'a>(key: &'a [u8], prefix: &str, value: &[u8]) -> Result<&'a [u8], Refusal> {
    let name = key.strip_prefix(prefix.as_bytes()).ok_or(Refusal::OutsidePrefix)?;
    if !keys::is_safe_name(name) {
        return Err(Refusal::UnsafeKey);
    }
    match (key.len() > KEY_MAX, value.len() > VALUE_MAX) {
        (true, _) => Err(Refusal::KeyTooLong),
        (_, true) => Err(Refusal::ValueTooLarge),
        _ => Ok(name),
    }
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsidePrefix => "key outside of what was asked for",
            Self::KeyTooLong => "key too long",
            Self::UnsafeKey => "unsafe key",
            Self::ValueTooLarge => "value too large",
        })
    }
}

// === impl Refusals ===

impl Refusals {
    /// Counts a refused key. Returns whether to log the key: the 1st, 2nd, 4th, 8th … refusal for one reason is logged.
    pub(super) fn count(&mut self, why: Refusal, key: &str) -> bool {
        let refused = self.0.entry(why).or_default();
        refused.count += 1;
        key.clone_into(&mut refused.last_key);
        refused.count.is_power_of_two()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Refusal, &Refused)> {
        self.0.iter().map(|(why, refused)| (*why, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_their_prefix_or_are_too_large_are_refused() {
        let prefix = "cilium/state/nodes/v1/hk/";
        let of = |name: &str| check(format!("{prefix}{name}").as_bytes(), prefix, b"v").map(<[u8]>::to_vec);
        assert_eq!(of("n1"), Ok(b"n1".to_vec()));
        for bad in ["", "..", "a//b", "../../x", "a/"] {
            assert_eq!(of(bad), Err(Refusal::UnsafeKey), "{bad}");
        }
        assert_eq!(of(&"n".repeat(KEY_MAX)), Err(Refusal::KeyTooLong));
        let outside = check(b"cilium/state/nodes/v1/hkg/n1", prefix, b"v");
        assert_eq!(outside, Err(Refusal::OutsidePrefix));
        let large = vec![0; VALUE_MAX + 1];
        assert_eq!(
            check(format!("{prefix}n").as_bytes(), prefix, &large),
            Err(Refusal::ValueTooLarge)
        );
    }

    #[test]
    fn refusals_are_counted_and_logged_less_and_less_often() {
        let mut refusals = Refusals::default();
        let logged: Vec<_> = (1..=9)
            .filter(|n| refusals.count(Refusal::UnsafeKey, &format!("k{n}")))
            .collect();
        assert_eq!(logged, [1, 2, 4, 8]);
        assert!(refusals.count(Refusal::KeyTooLong, "long"));
        let all: Vec<_> = refusals
            .iter()
            .map(|(why, r)| (why.to_string(), r.count, &*r.last_key))
            .collect();
        assert_eq!(
            all,
            [
                ("key too long".to_owned(), 1, "long"),
                ("unsafe key".to_owned(), 9, "k9")
            ]
        );
    }
}
