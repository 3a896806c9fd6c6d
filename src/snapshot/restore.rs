//! From a snapshot to a store.

use super::content::{Change, Content, Lease};
use crate::auth::State;
use crate::mvcc::{Fields, GrantedLease, Hooks, Kv, Loader, OutOfOrder, Store, Version};
use std::sync::Arc;

impl Content {
    /// The store that the snapshot is of.
    pub fn store(&self) -> Result<Arc<Store>, OutOfOrder> {
        let revision = self.revision();
        // One that was begun is done: Parity with an etcd that starts on the snapshot.
        let compacted = self.finished_compaction.max(self.scheduled_compaction).unwrap_or(-1);
        let granted = |lease: &Lease| GrantedLease {
            id: lease.id,
            ttl_secs: lease.ttl,
        };
        let leases = self.leases.iter().map(granted);
        let mut loader = Loader::new(revision, compacted, leases);
        let mut changes: Vec<&Change> = self.changes.iter().filter(|c| !c.kv.key.is_empty()).collect();
        changes.sort_by(|a, b| {
            let place = |c: &Change| (c.revision.main, c.revision.sub);
            (&a.kv.key, place(a)).cmp(&(&b.kv.key, place(b)))
        });
        for change in changes {
            if !loader.push(version(change)) {
                return Err(OutOfOrder {
                    found: change.revision.main,
                    current: revision,
                });
            }
        }
        Ok(loader.finish()?.open(Hooks::default()))
    }

    /// Its users and roles.
    pub fn auth(&self) -> State {
        let revision = self.auth_revision.max(1);
        State::of(self.auth_enabled, revision, self.users.clone(), self.roles.clone())
    }
}

fn version(change: &Change) -> Version {
    let (kv, at) = (&change.kv, change.revision);
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
