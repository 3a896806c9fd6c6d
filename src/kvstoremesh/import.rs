//! The filter of one remote cluster, and what it has to do with the tasks around it. Changes of the filter and the writes
//! that follow from them happen under one lock, so that writes about a key are queued in the order of their decisions.

use super::filter::{Existing, Filter, Mode, Report, Todo};
use crate::kvstore::Write;
use crate::kvstore::sync_store::{PrefixSize, SyncStore};
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use crate::scope::file::ScopeFile;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// The keys that a remote cluster may have for each key that the mirror may have: also what is left out is remembered.
const KNOWN_MAX: usize = 16;

/// Bytes that the filter may remember of the keys of one kind, for each key that the mirror may have: about sixteen for each key
/// that the remote cluster may have, and the values of its identities.
const REMEMBERED_PER_KEY: usize = 256;
/// Bytes that the filter may always remember of the keys of one kind.
const REMEMBERED_MIN: usize = 1 << 20;

/// What decides about the keys of all remote clusters.
#[derive(Clone, Debug)]
pub struct Imports {
    /// The scope file.
    pub file: crate::scope::Watcher,
    /// The names of the namespaces of this cluster; `None` while they are not known.
    pub namespaces: watch::Receiver<Option<Arc<BTreeSet<String>>>>,
}

/// See the module's documentation.
pub(super) struct Import {
    filter: Mutex<Filter>,
    sync: Arc<SyncStore>,
    /// Counts what the tasks that read keys have to look at.
    changed: watch::Sender<u64>,
}

impl Import {
    pub(super) fn new(name: &ClusterName, file: Arc<ScopeFile>, existing: Existing, sync: &Arc<SyncStore>) -> Self {
        Self {
            filter: Mutex::new(Filter::new(name, file, existing)),
            sync: Arc::clone(sync),
            changed: watch::Sender::new(0),
        }
    }

    /// Notifies of changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Filter) -> T) -> T {
        look(&self.filter.lock())
    }

    pub(super) fn todo(&self, kind: Scope) -> Todo {
        self.look(|filter| filter.todo(kind))
    }

    /// Changes the filter, and queues the writes that follow.
    fn change(&self, change: impl FnOnce(&mut Filter, &mut Vec<Write>)) {
        let mut filter = self.filter.lock();
        let mut writes = vec![];
        change(&mut filter, &mut writes);
        filter.settle(&mut writes);
        for write in writes {
            match write {
                Write::Put(key, value) => self.sync.upsert(key, value),
                Write::Delete(key) => self.sync.delete(key),
            }
        }
        if filter.wants_any() {
            self.wake();
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    // --- what decides

    pub(super) fn set_file(&self, file: &Arc<ScopeFile>) {
        self.change(|filter, writes| filter.set_file(file, writes));
        self.wake();
    }

    pub(super) fn set_existing(&self, existing: Existing) {
        self.change(|filter, writes| filter.set_existing(existing, writes));
        self.wake();
    }

    pub(super) fn set_region(&self, region: Option<&str>) {
        self.change(|filter, writes| filter.set_region(region, writes));
        self.wake();
    }

    // --- keys

    /// The remote cluster has changed these keys, or a list contains them. Returns the size of what is mirrored of them.
    pub(super) fn take(&self, kind: Scope, keys: Vec<Write>) -> PrefixSize {
        let mut kept = PrefixSize::default();
        self.change(|filter, writes| {
            let stored = |key: &[u8]| self.sync.holds(key);
            for key in keys {
                let before = writes.len();
                match key {
                    Write::Put(key, value) => filter.put(kind, key, value, &stored, writes),
                    Write::Delete(key) => filter.delete(kind, key, writes),
                }
                // What a key needs is written before the key itself.
                if let Some(Write::Put(_, value)) = writes[before..].last() {
                    kept += PrefixSize {
                        keys: 1,
                        bytes: value.len(),
                    };
                }
            }
        });
        kept
    }

    /// Keys that the filter wanted were read.
    pub(super) fn read(&self, kind: Scope, keys: Vec<(Bytes, Option<Bytes>)>) {
        self.change(|filter, writes| {
            for (key, value) in keys {
                filter.read(kind, key, value, writes);
            }
        });
    }

    pub(super) fn list_begun(&self, kind: Scope) {
        self.filter.lock().list_begun(kind);
    }

    pub(super) fn list_ended(&self, kind: Scope) {
        self.change(|filter, writes| filter.list_ended(kind, writes));
        self.wake();
    }

    pub(super) fn emptied(&self, kind: Scope) {
        self.change(|filter, writes| filter.emptied(kind, writes));
        self.wake();
    }

    pub(super) fn left_out(&self, kind: Scope) {
        self.change(|filter, writes| filter.left_out(kind, writes));
        self.wake();
    }

    pub(super) fn unreadable(&self, kind: Scope) {
        self.filter.lock().unreadable(kind);
        self.wake();
    }

    // --- limits

    /// Says what is too much, if the mirror of a kind has more keys than the scope file allows, or the remote cluster has more
    /// than may be remembered.
    pub(super) fn exceeded(&self, kind: Scope, mirrored: PrefixSize, keys_max: usize) -> Option<String> {
        let filter = self.filter.lock();
        let remembered = filter.remembered(kind);
        let bytes_max = keys_max.saturating_mul(REMEMBERED_PER_KEY).max(REMEMBERED_MIN);
        if remembered > bytes_max {
            return Some(format!(
                "names, backends or values that take {remembered} bytes of memory for the scope file, more than the limit of \
                 {bytes_max} ({REMEMBERED_PER_KEY} for each key of --clustermesh-max-keys); find what writes them there, or \
                 leave the kind out for this cluster with kinds in the scope file"
            ));
        }
        let entry = filter.entry().unwrap_or_default().to_owned();
        let limits = [
            (
                mirrored.keys,
                filter.limit(kind),
                format!("limits of {entry:?} in the scope file"),
            ),
            (
                filter.known(kind),
                Some(keys_max.saturating_mul(KNOWN_MAX)),
                format!("{KNOWN_MAX} times --clustermesh-max-keys, with those that the scope file leaves out"),
            ),
        ];
        let exceeded = |(keys, limit, by): (usize, Option<usize>, String)| {
            let limit = limit.filter(|limit| keys > *limit)?;
            Some(format!("{keys} keys, more than the limit of {limit} ({by})"))
        };
        limits.into_iter().find_map(exceeded)
    }

    /// Whether no key of a kind is mirrored.
    pub(super) fn is_off(&self, kind: Scope) -> bool {
        self.look(|filter| filter.mode(kind) == Mode::Off)
    }

    /// Whether a list of a kind is limited by the keys that are mirrored, not by those that are listed.
    pub(super) fn is_filtered(&self, kind: Scope) -> bool {
        self.look(|filter| filter.mode(kind) == Mode::Filtered)
    }

    pub(super) fn report(&self) -> Option<Report> {
        self.look(Filter::report)
    }
}
