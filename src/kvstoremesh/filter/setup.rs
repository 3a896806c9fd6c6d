//! What the scope file of this cluster says about one remote cluster.

use super::identities::Wanted;
use super::namespaces::{Existing, Judge};
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use crate::scope::file::{ClusterRules, Identities, ScopeFile};
use crate::scope::rules::Rules;
use std::sync::{Arc, LazyLock};

/// The rules for a cluster that no entry of the file governs.
static EVERYTHING: LazyLock<Rules> = LazyLock::new(Rules::default);

/// The treatment of one kind of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Mode {
    /// No key is mirrored, and none is read.
    Off,
    /// Every key is mirrored, and nothing is remembered of it.
    Pass,
    /// Rules decide about each key.
    Filtered,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    file: Arc<ScopeFile>,
    /// The index of the entry that governs the cluster.
    entry: Option<usize>,
    /// The region of the cluster.
    region: Option<String>,
    leaves_regional: bool,
    pub(super) existing: Existing,
    /// In the order of the kinds.
    modes: [Mode; Scope::ALL.len()],
    /// Whether the rules keep every endpoint.
    keeps_endpoints: bool,
    needs_labels: bool,
    needs_backends: bool,
}

impl Setup {
    /// `published` is the region that the remote cluster gives itself.
    pub(super) fn new(
        file: Arc<ScopeFile>,
        cluster: &ClusterName,
        published: Option<&str>,
        existing: Existing,
    ) -> Self {
        let region = file.import.region(cluster.as_str(), published);
        let governing = file.import.rules(cluster.as_str(), region);
        let entry =
            governing.and_then(|rules| file.import.clusters.iter().position(|entry| std::ptr::eq(entry, rules)));
        let leaves_regional = matches!((&file.region, region), (Some(own), Some(other)) if own != other);
        let mut setup = Self {
            entry,
            region: region.map(str::to_owned),
            leaves_regional,
            existing,
            file,
            modes: [Mode::Pass; Scope::ALL.len()],
            keeps_endpoints: false,
            needs_labels: false,
            needs_backends: false,
        };
        setup.set_modes();
        setup
    }

    /// The modes of other kinds follow from that of the endpoints.
    fn set_modes(&mut self) {
        let of_endpoints = self.find_mode(Scope::Endpoints);
        self.modes[Scope::Endpoints as usize] = of_endpoints;
        let rules = self.rules(Scope::Endpoints);
        let is_decided = of_endpoints != Mode::Filtered || rules.keep_all();
        (self.keeps_endpoints, self.needs_labels, self.needs_backends) = (
            rules.keep_all(),
            !is_decided && rules.need_identities(),
            !is_decided && rules.need_backends(),
        );
        self.modes = Scope::ALL.map(|kind| self.find_mode(kind));
    }

    /// The entry of the file that governs the cluster; `None`: everything is imported.
    pub(super) fn entry(&self) -> Option<&ClusterRules> {
        self.file.import.clusters.get(self.entry?)
    }

    /// The region of the cluster.
    pub(super) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Whether endpoints for readers of another region are left out.
    pub(super) fn leaves_regional(&self) -> bool {
        self.leaves_regional
    }

    /// The rules for a kind of keys. Nodes and identities have none.
    pub(super) fn rules(&self, kind: Scope) -> &Rules {
        let rules = self.entry().and_then(|entry| entry.list(kind));
        rules.unwrap_or(&EVERYTHING)
    }

    pub(super) fn judge(&self, kind: Scope) -> Judge<'_> {
        Judge {
            rules: self.rules(kind),
            existing: &self.existing,
        }
    }

    /// Which identities are mirrored, where their mode is not [`Mode::Off`].
    pub(super) fn identities(&self) -> Wanted {
        match self.entry() {
            Some(entry) if !entry.kinds.contains(&Scope::Identities) => Wanted::Labels,
            Some(entry) if entry.identities == Identities::Used => Wanted::Used,
            _ => Wanted::All,
        }
    }

    /// The most keys of a kind that the cluster may have here.
    pub(super) fn limit(&self, kind: Scope) -> Option<usize> {
        let limit = *self.entry()?.limits.get(&kind)?;
        Some(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Whether the rules keep every endpoint.
    pub(super) fn keeps_endpoints(&self) -> bool {
        self.keeps_endpoints
    }

    /// Whether decisions about endpoints can depend on the labels of identities.
    pub(super) fn needs_labels(&self) -> bool {
        self.needs_labels
    }

    /// Whether decisions about endpoints can depend on the backends of services.
    pub(super) fn needs_backends(&self) -> bool {
        self.needs_backends
    }

    pub(super) fn mode(&self, kind: Scope) -> Mode {
        self.modes[kind as usize]
    }

    fn find_mode(&self, kind: Scope) -> Mode {
        let rules = self.rules(kind);
        let is_imported = self.entry().is_none_or(|entry| entry.kinds.contains(&kind));
        let of_used = self.identities() == Wanted::Used;
        let filtered = |is_filtered: bool| if is_filtered { Mode::Filtered } else { Mode::Pass };
        match kind {
            Scope::Identities if self.mode(Scope::Endpoints) == Mode::Off => match is_imported && !of_used {
                true => Mode::Pass,
                false => Mode::Off,
            },
            Scope::Identities if is_imported => filtered(of_used || self.needs_labels),
            Scope::Identities if self.needs_labels => Mode::Filtered,
            _ if !is_imported || rules.leave_out_all() => Mode::Off,
            Scope::Endpoints => filtered(!rules.keep_all() || self.leaves_regional || of_used),
            Scope::Services | Scope::EndpointSlices => filtered(!rules.keep_all() || self.needs_backends),
            Scope::ServiceExports => filtered(!rules.keep_all()),
            Scope::Nodes | Scope::Identities => Mode::Pass,
        }
    }

    /// Whether both say the same about every key.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.leaves_regional == other.leaves_regional
            && self.existing == other.existing
            && self.entry() == other.entry()
    }
}
