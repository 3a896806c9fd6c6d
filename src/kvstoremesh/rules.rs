//! Hands the scope file and the namespaces of this cluster to the filters of all remote clusters.

use super::import::Import;
use super::{Mesh, mirrors};
use crate::kvstore::sync_store::SyncStore;
use crate::model::cluster::ClusterName;
use crate::util::pace::Pace;
use std::sync::Arc;

impl Mesh {
    /// Waits until the scope file has been read, if there is one: it decides about the first keys.
    pub(super) async fn wait_for_rules(&self) {
        if let Some(imports) = &self.config.imports {
            imports.file.clone().usable().await;
        }
    }

    /// The filter of a new mirror; `None` without a scope file.
    pub(super) fn new_import(&self, name: &ClusterName, sync: &Arc<SyncStore>) -> Option<Arc<Import>> {
        let imports = self.config.imports.as_ref()?;
        let existing = imports.namespaces.borrow().clone();
        Some(Arc::new(Import::new(name, imports.file.current()?, existing, sync)))
    }

    /// Follows the scope file and the namespaces of this cluster, until the lifecycle stops.
    pub(super) fn follow_rules(self: &Arc<Self>) {
        let Some(mut imports) = self.config.imports.clone() else {
            return;
        };
        let (mesh, stop) = (Arc::clone(self), self.life.stop_token().clone());
        let follow = async move {
            let mut is_followed = true;
            loop {
                tokio::select! {
                    file = imports.file.changed() => mesh.for_each_import(|import| import.set_file(&file)).await,
                    changed = imports.namespaces.changed(), if is_followed => {
                        is_followed = changed.is_ok();
                        let existing = imports.namespaces.borrow_and_update().clone();
                        mesh.for_each_import(|import| import.set_existing(existing.clone())).await;
                    }
                }
            }
        };
        self.life.spawn_vital("rules of the scope file", async move {
            tokio::select! { () = stop.cancelled() => {}, () = follow => {} }
        });
    }

    async fn for_each_import(&self, change: impl Fn(&Import)) {
        let imports: Vec<_> = {
            let members = self.members.lock();
            mirrors(&members)
                .filter_map(|(_, mirror)| mirror.import.clone())
                .collect()
        };
        let mut pace = Pace::default();
        for import in imports {
            pace.step(|| change(&import));
            // A cluster with a million keys takes milliseconds.
            pace.rest().await;
        }
    }
}
