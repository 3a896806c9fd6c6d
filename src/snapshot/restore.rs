//! Makes a store from the content of a snapshot: a store of its own, or the state of one that follows the snapshot's.

use super::content::{Content, KeyEntry, Lease};
use crate::auth::AuthState;
use crate::mvcc::{Fields, GrantedLease, Hooks, Kv, Loader, OutOfOrder, Recovery, Store, Version};
use std::sync::Arc;

impl Content {
    /// The store that the snapshot holds.
    pub fn store(&self) -> Result<Arc<Store>, OutOfOrder> {
        let granted = |lease: &Lease| GrantedLease {
            id: lease.id,
            ttl_secs: lease.ttl,
        };
        let leases = self.leases.iter().map(granted);
        let loader = Loader::new(self.revision(), self.compacted(), leases);
        Ok(self.load(loader)?.open(Hooks::default()))
    }

    /// The state of a store that follows the store of the snapshot, and so has no leases of its own.
    pub fn following(&self) -> Result<Recovery, OutOfOrder> {
        self.load(Loader::following(self.revision(), self.compacted()))
    }

    /// The compact revision.
    fn compacted(&self) -> i64 {
        // Parity: an etcd that starts on the snapshot finishes a compaction that was begun.
        self.finished_compaction.max(self.scheduled_compaction).unwrap_or(-1)
    }

    fn load(&self, mut loader: Loader) -> Result<Recovery, OutOfOrder> {
        let mut entries: Vec<&KeyEntry> = self.keys.iter().filter(|e| !e.kv.key.is_empty()).collect();
        entries.sort_by(|a, b| {
            let place = |e: &KeyEntry| (e.revision.main, e.revision.sub);
            (&a.kv.key, place(a)).cmp(&(&b.kv.key, place(b)))
        });
        for entry in entries {
            if !loader.push(version(entry)) {
                return Err(OutOfOrder {
                    found: entry.revision.main,
                    current: self.revision(),
                });
            }
        }
        loader.finish()
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
