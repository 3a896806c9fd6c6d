//! What is remembered of each endpoint of a remote cluster, also of those that are left out: its class, and whether it is
//! mirrored. An address takes six bytes, so that a few million endpoints that are left out cost little.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The number of low bits of an address that an entry of a block has; the other bits name the block.
const LOW_BITS: u32 = 12;
const LOW: u16 = (1 << LOW_BITS) - 1;
const KEPT: u16 = 1 << LOW_BITS;
const SEEN: u16 = 1 << (LOW_BITS + 1);
const BACKEND: u16 = 1 << (LOW_BITS + 2);

/// An IP address in the spelling that keys and backends have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Address(u128);

/// The name of an endpoint's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    Address(Address),
    /// Not an address, or an unusual spelling of an address.
    Other(Box<[u8]>),
}

/// What is remembered of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// An index of [`Classes`](super::classes::Classes).
    pub(super) class: u32,
    /// Whether the key is in the mirror.
    pub(super) is_kept: bool,
    /// Whether the present list of the remote has contained the key.
    pub(super) is_seen: bool,
    /// Whether the endpoint is counted among the backends.
    pub(super) is_backend: bool,
}

/// The endpoints of a remote cluster.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// By the high bits of the addresses; in the order of the low bits.
    blocks: HashMap<u128, Vec<Entry>>,
    others: HashMap<Box<[u8]>, Slot>,
    /// The number of entries in all blocks.
    in_blocks: usize,
    /// Bytes of the names that are no addresses.
    names: usize,
}

/// Low bits and flags, then the class in two halves, so that an entry needs no padding.
#[derive(Clone, Copy, Debug)]
struct Entry([u16; 3]);

// === impl Address ===

impl Address {
    /// Returns `None` unless `text` is the usual spelling of an address: another spelling names another key.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(v4) = text.parse::<Ipv4Addr>() {
            return Some(Self(v4.to_ipv6_mapped().to_bits()));
        }
        let v6 = text.parse::<Ipv6Addr>().ok()?;
        (v6.to_ipv4_mapped().is_none() && v6.to_string() == text).then(|| Self(v6.to_bits()))
    }

    fn text(self) -> String {
        let v6 = Ipv6Addr::from_bits(self.0);
        v6.to_ipv4_mapped().map_or_else(|| v6.to_string(), |v4| v4.to_string())
    }

    /// The block, and the place in the block.
    fn split(self) -> (u128, u16) {
        (self.0 >> LOW_BITS, self.0 as u16 & LOW)
    }
}

// === impl Name ===

impl Name {
    pub(super) fn new(name: &[u8]) -> Self {
        let text = std::str::from_utf8(name).ok();
        match text.and_then(Address::parse) {
            Some(address) => Self::Address(address),
            None => Self::Other(name.into()),
        }
    }

    pub(super) fn address(&self) -> Option<Address> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Other(_) => None,
        }
    }

    /// The last part of the key.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Address(address) => address.text().into_bytes(),
            Self::Other(name) => name.to_vec(),
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new(low: u16, slot: Slot) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(slot.is_kept, KEPT) | flag(slot.is_seen, SEEN) | flag(slot.is_backend, BACKEND);
        Self([low | flags, (slot.class >> 16) as u16, slot.class as u16])
    }

    fn low(self) -> u16 {
        self.0[0] & LOW
    }

    fn slot(self) -> Slot {
        let [flags, high, low] = self.0;
        Slot {
            class: u32::from(high) << 16 | u32::from(low),
            is_kept: flags & KEPT != 0,
            is_seen: flags & SEEN != 0,
            is_backend: flags & BACKEND != 0,
        }
    }
}

// === impl Addresses ===

impl Addresses {
    pub(super) fn len(&self) -> usize {
        self.in_blocks + self.others.len()
    }

    pub(super) fn get(&self, name: &Name) -> Option<Slot> {
        match name {
            Name::Other(name) => self.others.get(name).copied(),
            Name::Address(address) => {
                let (block, low) = address.split();
                let entries = self.blocks.get(&block)?;
                let at = entries.binary_search_by_key(&low, |entry| entry.low()).ok()?;
                Some(entries[at].slot())
            }
        }
    }

    pub(super) fn set(&mut self, name: &Name, slot: Slot) {
        match name {
            Name::Other(name) => {
                if self.others.insert(name.clone(), slot).is_none() {
                    self.names += name.len();
                }
            }
            Name::Address(address) => {
                let (block, low) = address.split();
                let entries = self.blocks.entry(block).or_default();
                match entries.binary_search_by_key(&low, |entry| entry.low()) {
                    Ok(at) => entries[at] = Entry::new(low, slot),
                    Err(at) => {
                        entries.insert(at, Entry::new(low, slot));
                        self.in_blocks += 1;
                    }
                }
            }
        }
    }

    pub(super) fn remove(&mut self, name: &Name) -> Option<Slot> {
        let address = match name {
            Name::Other(name) => {
                let slot = self.others.remove(name)?;
                self.names -= name.len();
                return Some(slot);
            }
            Name::Address(address) => address,
        };
        let (block, low) = address.split();
        let entries = self.blocks.get_mut(&block)?;
        let at = entries.binary_search_by_key(&low, |entry| entry.low()).ok()?;
        let slot = entries.remove(at).slot();
        self.in_blocks -= 1;
        if entries.is_empty() {
            self.blocks.remove(&block);
        }
        Some(slot)
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        self.in_blocks * size_of::<Entry>()
            + self.blocks.len() * size_of::<(u128, Vec<Entry>)>()
            + self.others.len() * size_of::<(Box<[u8]>, Slot)>()
            + self.names
    }

    /// Calls `look` with every slot.
    pub(super) fn for_each(&self, mut look: impl FnMut(Name, Slot)) {
        for (block, entries) in &self.blocks {
            for entry in entries {
                let bits = block << LOW_BITS | u128::from(entry.low());
                look(Name::Address(Address(bits)), entry.slot());
            }
        }
        for (name, slot) in &self.others {
            look(Name::Other(name.clone()), *slot);
        }
    }

    /// A list begins: no key has been seen.
    pub(super) fn forget_seen(&mut self) {
        for entry in self.blocks.values_mut().flatten() {
            entry.0[0] &= !SEEN;
        }
        for slot in self.others.values_mut() {
            slot.is_seen = false;
        }
    }

    /// A list has ended: gives back the memory that is not needed.
    pub(super) fn shrink(&mut self) {
        self.blocks.values_mut().for_each(Vec::shrink_to_fit);
        self.blocks.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(class: u32, (is_kept, is_seen, is_backend): (bool, bool, bool)) -> Slot {
        Slot {
            class,
            is_kept,
            is_seen,
            is_backend,
        }
    }

    #[test]
    fn an_address_has_the_spelling_of_its_key() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "2001:db8:0:1::a"] {
            let name = Name::new(text.as_bytes());
            assert!(name.address().is_some(), "{text}");
            assert_eq!(name.to_bytes(), text.as_bytes());
        }
        for text in [
            "",
            "10.0.0.01",
            "10.0.0.0/24",
            "fd00:0::1",
            "FD00::1",
            "::ffff:10.0.0.1",
            "n1",
        ] {
            assert_eq!(
                Name::new(text.as_bytes()),
                Name::Other(text.as_bytes().into()),
                "{text}"
            );
        }
    }

    #[test]
    fn an_entry_takes_six_bytes() {
        assert_eq!(size_of::<Entry>(), 6);
    }

    proptest! {
        #[test]
        fn addresses_are_a_map(steps in proptest::collection::vec((0_u8..4, "[0-3]{1,2}", any::<u32>(), any::<(bool, bool, bool)>()), 1..60)) {
            let (mut addresses, mut model) = (Addresses::default(), HashMap::new());
            for (what, part, class, flags) in steps {
                // Some names share a block, some do not, and some are no addresses.
                let text = match class % 3 {
                    0 => format!("10.{part}.0.1"),
                    1 => format!("10.0.0.{part}"),
                    _ => format!("fd00::{part}/64"),
                };
                let name = Name::new(text.as_bytes());
                match what {
                    0 => prop_assert_eq!(addresses.remove(&name), model.remove(&name)),
                    1 => {
                        addresses.forget_seen();
                        model.values_mut().for_each(|slot: &mut Slot| slot.is_seen = false);
                    }
                    _ => {
                        addresses.set(&name, slot(class, flags));
                        model.insert(name.clone(), slot(class, flags));
                    }
                }
                prop_assert_eq!(addresses.get(&name), model.get(&name).copied());
                prop_assert_eq!(addresses.len(), model.len());
            }
            let others = model.keys().filter(|name| name.address().is_none());
            prop_assert_eq!(addresses.names, others.map(|name| name.to_bytes().len()).sum::<usize>());
            addresses.shrink();
            let mut all = HashMap::new();
            addresses.for_each(|name, slot| { all.insert(name, slot); });
            prop_assert_eq!(all, model);
        }
    }
}
