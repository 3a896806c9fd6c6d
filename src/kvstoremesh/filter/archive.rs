//! The values of a remote cluster's identities, which are needed as soon as a mirrored endpoint has one of them. They say
//! nearly the same as each other, so that a block of them takes a tenth of their bytes when it is compressed.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bytes of values that are compressed together. A value that is taken out costs the decompression of its block, some 60 µs.
const BLOCK: usize = 64 << 10;
/// Changes before the values are compressed anew.
const CHANGES_MIN: usize = 64;
/// The fastest level.
const LEVEL: i32 = 1;

/// Values by the numbers of identities. A number that was removed may still be found: the caller knows which there are.
#[derive(Debug, Default)]
pub(super) struct Archive {
    /// Newer than what the blocks have.
    loose: HashMap<u32, Box<[u8]>>,
    /// In the order of their numbers.
    blocks: Vec<Block>,
    /// The number of values in blocks.
    packed: usize,
    /// Bytes of the values before their compression: a remote cluster can choose values that become large only when they are
    /// read. Those in blocks count until the values are compressed anew.
    bytes: usize,
    /// Changes since the values were compressed.
    changes: usize,
}

#[derive(Debug)]
struct Block {
    /// The lowest number.
    first: u32,
    /// Bytes before the compression.
    size: usize,
    /// Compressed, unless that takes as many bytes.
    bytes: Box<[u8]>,
}

// === impl Block ===

impl Block {
    fn new(first: u32, plain: &[u8]) -> Self {
        let compressed = zstd::bulk::compress(plain, LEVEL).ok();
        let bytes = compressed.filter(|bytes| bytes.len() < plain.len());
        Self {
            first,
            size: plain.len(),
            bytes: bytes.unwrap_or_else(|| plain.to_vec()).into(),
        }
    }

    /// The values with their numbers.
    fn values(&self) -> Vec<(u32, Bytes)> {
        let plain = match self.bytes.len() == self.size {
            true => Bytes::copy_from_slice(&self.bytes),
            false => Bytes::from(zstd::bulk::decompress(&self.bytes, self.size).unwrap_or_default()),
        };
        let (mut rest, mut values) = (&plain[..], vec![]);
        while let Some((head, tail)) = rest.split_at_checked(8) {
            let part = |at: usize| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
            let Some((value, tail)) = tail.split_at_checked(part(4) as usize) else {
                break;
            };
            values.push((part(0), plain.slice_ref(value)));
            rest = tail;
        }
        values
    }
}

// === impl Archive ===

impl Archive {
    pub(super) fn put(&mut self, number: u32, value: &[u8]) {
        if let Some(former) = self.loose.insert(number, value.into()) {
            self.bytes -= former.len();
        }
        self.bytes += value.len();
        self.changes += 1;
    }

    /// The value may be forgotten.
    pub(super) fn remove(&mut self, number: u32) {
        if let Some(value) = self.loose.remove(&number) {
            self.bytes -= value.len();
        }
        self.changes += 1;
    }

    /// Whether enough has changed for [`Self::pack`] to be worthwhile.
    pub(super) fn is_loose(&self) -> bool {
        self.changes > CHANGES_MIN.max(self.packed / 2)
    }

    /// Bytes of the values before their compression, or somewhat more.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Compresses all values, but not those that are not there any more.
    pub(super) fn pack(&mut self, is_there: impl Fn(u32) -> bool) {
        if self.changes == 0 {
            return;
        }
        self.changes = 0;
        let packed = self.blocks.iter().flat_map(Block::values);
        let mut values: BTreeMap<u32, Bytes> = packed.filter(|(number, _)| is_there(*number)).collect();
        values.extend(self.loose.drain().map(|(number, value)| (number, Bytes::from(value))));
        self.loose.shrink_to_fit();
        self.packed = values.len();
        self.bytes = values.values().map(Bytes::len).sum();
        self.blocks.clear();
        let (mut first, mut plain) = (0, Vec::with_capacity(BLOCK));
        for (number, value) in values {
            if plain.len() + value.len() > BLOCK && !plain.is_empty() {
                self.blocks.push(Block::new(first, &plain));
                plain.clear();
            }
            if plain.is_empty() {
                first = number;
            }
            plain.extend(number.to_le_bytes());
            plain.extend((value.len() as u32).to_le_bytes());
            plain.extend(&value);
        }
        if !plain.is_empty() {
            self.blocks.push(Block::new(first, &plain));
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<Bytes> {
        self.get_all(&[number].into()).pop().map(|(_, value)| value)
    }

    /// The values with these numbers.
    pub(super) fn get_all(&self, numbers: &BTreeSet<u32>) -> Vec<(u32, Bytes)> {
        let loose = |number: &u32| Some((*number, Bytes::copy_from_slice(self.loose.get(number)?)));
        let mut found: Vec<_> = numbers.iter().filter_map(loose).collect();
        let ends = self.blocks.iter().skip(1).map(|block| block.first).chain([u32::MAX]);
        let is_packed = |number: &u32| !self.loose.contains_key(number);
        for (block, end) in self.blocks.iter().zip(ends) {
            // A block begins with its lowest number. Its end is that of the next block, or that of all numbers.
            if numbers.range(block.first..=end).any(is_packed) {
                let values = block.values().into_iter();
                found.extend(values.filter(|(number, _)| numbers.contains(number) && is_packed(number)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_that_say_nearly_the_same_take_little() {
        let mut archive = Archive::default();
        let value = |n: u32| {
            format!(
                "k8s:app=app-{n};k8s:io.cilium.k8s.policy.cluster=hk;k8s:io.kubernetes.pod.namespace=ns-{};",
                n % 9
            )
        };
        let mut bytes = 0;
        for n in 0..500 {
            archive.put(n, value(n).as_bytes());
            bytes += value(n).len();
        }
        archive.pack(|_| true);
        let compressed: usize = archive.blocks.iter().map(|block| block.bytes.len()).sum();
        assert!(compressed * 5 < bytes, "{compressed} of {bytes}");
        assert!(archive.loose.is_empty());
        assert_eq!(archive.get(77).unwrap(), value(77));
        assert_eq!(archive.get(500), None);
    }

    proptest! {
        // Values of some kilobytes, so that there are several blocks.
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn an_archive_is_a_map(steps in proptest::collection::vec((0_u8..8, 0_u32..40, 0_usize..30_000), 1..50)) {
            let (mut archive, mut model) = (Archive::default(), HashMap::new());
            for (what, number, length) in steps {
                match what {
                    0 => archive.pack(|number| model.contains_key(&number)),
                    1 => {
                        archive.remove(number);
                        model.remove(&number);
                    }
                    _ => {
                        let value = vec![number as u8; length];
                        archive.put(number, &value);
                        model.insert(number, value);
                    }
                }
                if let Some(value) = model.get(&number) {
                    let found = archive.get(number);
                    prop_assert_eq!(found.as_deref(), Some(&value[..]));
                }
                let bytes: usize = model.values().map(Vec::len).sum();
                prop_assert!(archive.bytes() >= bytes, "{} of {bytes}", archive.bytes());
                let all = archive.get_all(&model.keys().copied().collect());
                prop_assert_eq!(all.len(), model.len());
                prop_assert!(all.iter().all(|(number, value)| model[number] == *value));
            }
            archive.pack(|number| model.contains_key(&number));
            prop_assert_eq!(archive.bytes(), model.values().map(Vec::len).sum::<usize>());
        }
    }
}
