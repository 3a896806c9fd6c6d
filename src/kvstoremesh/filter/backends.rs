//! The addresses behind the services of a remote cluster that are mirrored here.

use super::addresses::Address;
use crate::model::keys::Scope;
use std::collections::{BTreeSet, HashMap};

/// The backends, each with the number of services and slices that name it.
#[derive(Debug, Default)]
pub(super) struct Backends {
    services: HashMap<Address, u32>,
    /// Addresses that have become backends, or are none any more.
    changed: BTreeSet<Address>,
    /// The kinds whose lists have begun and not ended.
    lists: BTreeSet<Scope>,
    /// What services have lost since a list began: another service of the list may have it.
    held: Vec<Address>,
}

impl Backends {
    pub(super) fn contains(&self, address: Option<Address>) -> bool {
        address.is_some_and(|address| self.services.contains_key(&address))
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        self.services.len() * size_of::<(Address, u32)>() + self.held.len() * size_of::<Address>()
    }

    /// A service has other backends than before.
    pub(super) fn replace(&mut self, old: &[Address], new: &[Address]) {
        for address in new {
            let services = self.services.entry(*address).or_default();
            *services += 1;
            if *services == 1 {
                toggle(&mut self.changed, *address);
            }
        }
        match self.lists.is_empty() {
            true => self.lose(old),
            false => self.held.extend(old),
        }
    }

    /// A list of services begins.
    pub(super) fn list_begun(&mut self, kind: Scope) {
        self.lists.insert(kind);
    }

    /// A list of services has ended.
    pub(super) fn list_ended(&mut self, kind: Scope) {
        self.lists.remove(&kind);
        if self.lists.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.lose(&held);
        }
    }

    fn lose(&mut self, addresses: &[Address]) {
        for address in addresses {
            if let Some(services) = self.services.get_mut(address) {
                *services -= 1;
                if *services == 0 {
                    self.services.remove(address);
                    toggle(&mut self.changed, *address);
                }
            }
        }
    }

    pub(super) fn take_changed(&mut self) -> BTreeSet<Address> {
        std::mem::take(&mut self.changed)
    }
}

/// An address that changed twice is what it was.
fn toggle(changed: &mut BTreeSet<Address>, address: Address) {
    if !changed.insert(address) {
        changed.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_backend_while_any_service_names_it() {
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|text| Address::parse(text).unwrap());
        let mut backends = Backends::default();
        backends.replace(&[], &[a, b]);
        backends.replace(&[], &[a]);
        assert_eq!(backends.take_changed(), [a, b].into());
        backends.replace(&[a, b], &[a]);
        assert_eq!(backends.take_changed(), [b].into());
        assert!(backends.contains(Some(a)) && !backends.contains(Some(b)) && !backends.contains(None));
        // What changes back before anybody looks has not changed.
        backends.replace(&[], &[b]);
        backends.replace(&[b], &[]);
        assert_eq!(backends.take_changed(), [].into());
    }

    #[test]
    fn during_a_list_an_address_may_pass_from_a_service_to_another() {
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|text| Address::parse(text).unwrap());
        let mut backends = Backends::default();
        backends.replace(&[], &[a, b]);
        backends.take_changed();
        backends.list_begun(Scope::Services);
        backends.list_begun(Scope::EndpointSlices);
        backends.replace(&[a, b], &[]);
        backends.list_ended(Scope::Services);
        assert!(backends.contains(Some(a)) && backends.take_changed().is_empty());
        backends.replace(&[], &[a]);
        backends.list_ended(Scope::EndpointSlices);
        assert_eq!(backends.take_changed(), [b].into());
    }
}
