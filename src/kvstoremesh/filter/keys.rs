//! One key after the other: what a value, or the deletion of a key, does to the mirror.

use super::addresses::Name;
use super::identities::Wanted;
use super::{Filter, Mode, Stored, endpoints_judge, identities, identities_judge, object_at, values};
use crate::kvstore::Write;
use crate::model::keys::Scope;
use bytes::Bytes;

impl Filter {
    /// The remote cluster has this key; `key` is its name in the mirror.
    pub(in super::super) fn put(
        &mut self,
        kind: Scope,
        key: Bytes,
        value: Bytes,
        stored: Stored<'_>,
        out: &mut Vec<Write>,
    ) {
        if self.mode(kind) != Mode::Filtered {
            out.push(Write::Put(key, value));
            return;
        }
        match (kind, object_at(kind)) {
            (_, Some(at)) => self.put_object(kind, at, key, value, stored, out),
            (Scope::Identities, _) => self.put_identity(key, value, stored, out),
            _ => self.put_endpoint(key, value, stored, out),
        }
    }

    fn put_endpoint(&mut self, key: Bytes, value: Bytes, stored: Stored<'_>, out: &mut Vec<Write>) {
        let name = Name::new(self.name(Scope::Endpoints, &key));
        let judge = endpoints_judge(
            &self.setup,
            &self.progress,
            &self.objects,
            (&self.identities, &self.backends),
        );
        let endpoints = &mut self.endpoints;
        let change = values::endpoint(&value, |facts| {
            endpoints.put(judge, &name, facts, value.len(), || stored(&key))
        });
        if let Some(identity) = change.begins {
            self.begin_use(identity, out);
        }
        match (change.is_kept, change.ends) {
            (true, _) => out.push(Write::Put(key, value)),
            (false, Some(_)) => out.push(Write::Delete(key)),
            (false, None) => {}
        }
        change
            .ends
            .into_iter()
            .for_each(|identity| self.identities.end_use(identity));
    }

    fn begin_use(&mut self, identity: u32, out: &mut Vec<Write>) {
        let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
        if let Some(change) = self.identities.begin_use(judge, identity) {
            out.push(self.write_of(change));
        }
    }

    fn put_identity(&mut self, key: Bytes, value: Bytes, stored: Stored<'_>, out: &mut Vec<Write>) {
        let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
        match identities::number(self.name(Scope::Identities, &key)) {
            Some(number) => {
                let change = self.identities.put(judge, number, &value, || stored(&key));
                out.extend(change.map(|(_, value)| match value {
                    Some(value) => Write::Put(key, value),
                    None => Write::Delete(key),
                }));
            }
            // A name that is no number: no endpoint can use it.
            None if judge.wanted == Wanted::All => out.push(Write::Put(key, value)),
            None => {}
        }
    }

    fn put_object(
        &mut self,
        kind: Scope,
        at: usize,
        key: Bytes,
        value: Bytes,
        stored: Stored<'_>,
        out: &mut Vec<Write>,
    ) {
        let needs_backends = self.setup.needs_backends();
        let read = || match kind {
            Scope::Services if needs_backends => values::of_service(&value),
            Scope::EndpointSlices if needs_backends => values::of_slice(&value),
            _ => vec![],
        };
        let name = &key[self.prefixes[kind as usize].len()..];
        let judge = self.setup.judge(kind);
        let backends = (&mut self.backends, read);
        let kept = self.objects[at].put(judge, name, value.len(), || stored(&key), backends);
        match kept {
            (true, _) => out.push(Write::Put(key, value)),
            (false, true) => out.push(Write::Delete(key)),
            (false, false) => {}
        }
    }

    /// The remote cluster does not have this key any more.
    pub(in super::super) fn delete(&mut self, kind: Scope, key: Bytes, out: &mut Vec<Write>) {
        if self.mode(kind) == Mode::Filtered {
            let name = &key[self.prefixes[kind as usize].len()..];
            match (kind, object_at(kind)) {
                (_, Some(at)) => self.objects[at].remove(name, &mut self.backends),
                (Scope::Identities, _) => {
                    if let Some(number) = identities::number(name) {
                        self.identities.remove(number);
                    }
                }
                _ => {
                    let unused = self.endpoints.remove(&Name::new(name));
                    unused
                        .into_iter()
                        .for_each(|identity| self.identities.end_use(identity));
                }
            }
        }
        out.push(Write::Delete(key));
    }

    /// A key that the filter [wanted](super::Todo::Read) was read: its value, or nothing.
    pub(in super::super) fn read(&mut self, kind: Scope, key: Bytes, value: Option<Bytes>, out: &mut Vec<Write>) {
        match value {
            Some(value) => self.put(kind, key, value, &|_| false, out),
            None => self.delete(kind, key, out),
        }
    }

    fn name<'a>(&self, kind: Scope, key: &'a [u8]) -> &'a [u8] {
        &key[self.prefixes[kind as usize].len()..]
    }
}
