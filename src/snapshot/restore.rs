//! Makes a store from the content of a snapshot.

use super::content::{Content, KeyEntry, Lease};
use crate::auth::AuthState;
use crate::mvcc::{Fields, GrantedLease, Hooks, Kv, Loader, OutOfOrder, Store, Version};
use std::sync::Arc;

impl Content {
    /// The store that the snapshot holds.
    pub fn store(&self) -> Result<Arc<Store>, OutOfOrder> {
        let revision = self.revision();
        // Parity: an etcd that starts on the snapshot finishes a compaction that was begun.
        let compacted = self.finished_compaction.max(self.scheduled_compaction).unwrap_or(-1);
        let granted = |lease: &Lease| GrantedLease {
            id: lease.id,
            ttl_secs: lease.ttl,
        };
        let leases = self.leases.iter().map(granted);
        let mut loader = Loader::new(revision, compacted, leases);
        let mut entries: Vec<&KeyEntry> = self.keys.iter().filter(|e| !e.kv.key.is_empty()).collect();
        entries.sort_by(|a, b| {
            let place = |e: &KeyEntry| (e.revision.main, e.revision.sub);
            (&a.kv.key, place(a)).cmp(&(&b.kv.key, place(b)))
        });
        for entry in entries {
            if !loader.push(version(entry)) {
                return Err(OutOfOrder {
                    found: entry.revision.main,
                    current: revision,
                });
            }
        }
        Ok(loader.finish()?.open(Hooks::default()))
    }

    /// Users and roles of the snapshot.
    pub fn auth(&self) -> AuthState {
        let revision = self.auth_revision.max(1);
        AuthState::of(self.auth_enabled, revision, self.users.clone(), self.roles.clone())
    }
}

fn version(entry: &KeyEntry) -> Version {
    let (kv, at) = (&entry.kv, entry.revision);
    let kv = match at.tombstone {
        true => Kv::tombstone(&kv.key, at.main),
        false => Kv::new(&Fields {
            key: &kv.key,
            create_revision: kv.create_revision,
            mod_revision: at.main,
            version: kv.version,
            value: &kv.value,
            lease: kv.lease,
        }),
    };
    Version {
        main: at.main,
        sub: u32::try_from(at.sub).unwrap_or(u32::MAX),
        tombstone: at.tombstone,
        kv,
    }
}
