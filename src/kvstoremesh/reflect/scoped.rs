//! What a scope file asks of the task that reads one prefix. Without a scope file, nothing of this waits or reads.

use super::super::filter::Todo;
use super::super::import::Import;
use super::super::reflector::SizeLimit;
use super::{Error, Reflection};
use crate::kvstore::Write;
use crate::kvstore::sync_store::PrefixSize;
use crate::model::keys::Scope;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use tokio::sync::watch;

/// Whether the prefix must be listed, since what is asked for cannot be read otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MustList {
    Yes,
    No,
}

/// Changes of what the scope file asks for.
pub(super) struct ScopeChanges(Option<watch::Receiver<u64>>);

// === impl ScopeChanges ===

impl ScopeChanges {
    /// Waits for the next change; for ever without a scope file.
    pub(super) async fn changed(&mut self) {
        if let Some(changes) = &mut self.0
            && changes.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Reflection<'_> {
    fn import(&self) -> Option<&Import> {
        self.remote.import.as_deref()
    }

    pub(super) fn scope_changes(&self) -> ScopeChanges {
        ScopeChanges(self.import().map(Import::changes))
    }

    fn todo(&self) -> Todo {
        self.import().map_or(Todo::Nothing, |import| import.todo(self.scope))
    }

    /// Waits until `wanted` holds; for ever without a scope file.
    async fn until(&self, wanted: impl Fn(&Import) -> bool) {
        let mut changes = self.scope_changes();
        loop {
            if self.import().is_some_and(&wanted) {
                return;
            }
            changes.changed().await;
        }
    }

    // --- kinds that are left out

    /// Mirrors the scope whenever the scope file does not leave it out.
    pub(super) async fn read(&self) -> Result<Infallible, Error> {
        loop {
            if self.import().is_some_and(|import| import.is_off(self.scope)) {
                self.leave_out();
                self.until(|import| !import.is_off(self.scope)).await;
            }
            // Whatever is interrupted, an emptied mirror begins with a list.
            tokio::select! {
                biased;
                () = self.until(|import| import.is_off(self.scope)) => {
                    tracing::info!(cluster_name = %self.remote.name, prefix = self.prefixes.remote, "the scope file leaves the prefix out; emptying its mirror");
                }
                ended = self.mirror() => return ended,
            }
        }
    }

    /// The mirror of the scope is complete without any key.
    fn leave_out(&self) {
        self.empty();
        if let Some(import) = self.import() {
            import.left_out(self.scope);
        }
        self.complete();
        self.release();
    }

    /// Mirrors nothing, because the remote cluster does not export the scope.
    pub(super) async fn stay_empty(&self) -> Infallible {
        self.empty();
        loop {
            if let Some(import) = self.import() {
                import.emptied(self.scope);
            }
            self.until(|import| !import.look(|filter| filter.is_known(self.scope)))
                .await;
        }
    }

    // --- before a list

    /// The kinds that must be queued before this kind is read.
    pub(super) fn needed(&self) -> BTreeSet<Scope> {
        match (self.import(), self.scope) {
            (Some(import), _) => import.look(|filter| filter.needs(self.scope)).into_iter().collect(),
            (None, Scope::Endpoints) => [Scope::Identities].into(),
            (None, _) => BTreeSet::new(),
        }
    }

    pub(super) fn must_list(&self) -> bool {
        self.todo() == Todo::List
    }

    /// Waits for what decisions about the keys of a list can depend on: other kinds, and the keys that the mirror holds.
    pub(super) async fn wait_until_keys_can_be_judged(&self) {
        if self.import().is_some() {
            self.until(|import| import.look(|filter| filter.may_list(self.scope)))
                .await;
        }
        if self.import().is_some_and(|import| import.is_filtered(self.scope)) {
            self.remote.sync.wait_adopted().await;
        }
    }

    /// A list begins. Returns the limit for what is listed, unless only what is mirrored is limited.
    pub(super) fn begin_list(&self) -> Option<SizeLimit> {
        if let Some(import) = self.import() {
            import.list_begun(self.scope);
            if import.is_filtered(self.scope) {
                return None;
            }
        }
        Some(self.remote.size_limit)
    }

    /// A list has ended.
    pub(super) fn end_list(&self) {
        if let Some(import) = self.import() {
            import.list_ended(self.scope);
        }
    }

    /// Fails if the mirror of the scope exceeds a limit of the scope file.
    pub(super) fn check_scope_limits(&self, mirrored: PrefixSize) -> Result<(), Error> {
        let Some(import) = self.import() else { return Ok(()) };
        let limit = self.remote.size_limit;
        if let Some(what) = import.exceeded(self.scope, mirrored, limit.keys) {
            return Err(self.too_much(what));
        }
        match import.is_filtered(self.scope) {
            true => limit.check(mirrored).map_err(|what| self.too_much(what)),
            false => Ok(()),
        }
    }

    // --- while following

    /// Whether a decision has been made about every key, so that the mirror can be complete.
    pub(super) fn is_decided(&self) -> bool {
        let decided = |import: &Import| import.look(|filter| filter.is_decided(self.scope));
        self.import().is_none_or(decided)
    }

    /// Waits for rules other than the present ones.
    pub(super) async fn other_rules(&self) {
        let present = self.import().map(|import| import.look(|filter| filter.version()));
        let is_other = |import: &Import| Some(import.look(|filter| filter.version())) != present;
        self.until(is_other).await;
    }

    /// Reads the keys that the scope file asks for now and has left out before, as they were at the revision that the
    /// watch has reached: the watch continues from there.
    pub(super) async fn read_wanted(&self) -> Result<MustList, Error> {
        let Some(import) = self.import() else {
            return Ok(MustList::No);
        };
        loop {
            let names = match import.todo(self.scope) {
                Todo::Read(names) => names,
                Todo::List => return Ok(MustList::Yes),
                Todo::Nothing | Todo::Off => return Ok(MustList::No),
            };
            if self.read_keys(import, names).await? == MustList::Yes {
                return Ok(MustList::Yes);
            }
            self.check_scope_limits(self.remote.sync.desired(&self.prefixes.mirror))?;
        }
    }

    async fn read_keys(&self, import: &Import, names: Vec<Vec<u8>>) -> Result<MustList, Error> {
        let (client, state) = (self.connected.client, &self.remote.state);
        let Some(revision) = state.read(|cluster| cluster.revision(self.scope)) else {
            return Ok(MustList::Yes);
        };
        let of = |prefix: &str, name: &[u8]| [prefix.as_bytes(), name].concat();
        let keys: Vec<_> = names.iter().map(|name| of(&self.prefixes.remote, name)).collect();
        let found = match client.get_all_at(&keys, revision).await {
            Ok(found) => found,
            Err(error) if error.is_out_of_range() || error.is_too_large() => {
                tracing::info!(cluster_name = %self.remote.name, prefix = self.prefixes.remote, %error, "cannot read single keys; listing the prefix again");
                return Ok(MustList::Yes);
            }
            Err(error) => return Err(error.into()),
        };
        let taken = state.note(|cluster| {
            cluster.wanted_read(self.scope, names.len());
            cluster.take_page(self.scope, &self.prefixes, found)
        });
        let mut values: BTreeMap<_, _> = self
            .accepted(taken)
            .filter_map(|write| match write {
                Write::Put(key, value) => Some((key, value)),
                Write::Delete(_) => None,
            })
            .collect();
        let read = names.iter().map(|name| {
            let key = of(&self.prefixes.mirror, name);
            let value = values.remove(&key[..]);
            (key.into(), value)
        });
        import.read(self.scope, read.collect());
        Ok(MustList::No)
    }
}
