//! Decides which keys of one remote cluster are mirrored, without IO.
//!
//! The filter sees every key of the kinds that the scope file has rules for, and remembers a little of each, also of those
//! that are left out: of an endpoint its namespace and identity ([`addresses`], [`classes`]), of an identity what the
//! rules say about its labels ([`identities`]), of a service its name and its backends ([`objects`], [`backends`]). So
//! whatever changes (the rules, the namespaces of this cluster, labels, backends), the filter knows which keys enter the
//! mirror and which leave it. Keys that leave are deleted without a read; of keys that enter, the values are read one by
//! one ([`Todo::Read`]), at the revision that the watch has reached. The whole prefix is listed anew only where nothing
//! is remembered.
//!
//! A decision may rest on what is not known yet: the labels of an identity, the backends of services, the namespaces of
//! this cluster. Until it is known, a key that is mirrored stays and follows its value, and a key that is not mirrored is
//! kept back.

mod addresses;
mod archive;
mod backends;
mod classes;
mod endpoints;
mod identities;
mod judgement;
mod keys;
mod namespaces;
mod objects;
mod report;
mod setup;
#[cfg(test)]
mod tests;
mod values;

use crate::kvstore::Write;
use crate::model::cluster::ClusterName;
use crate::model::keys::Scope;
use crate::scope::file::ScopeFile;
use addresses::Name;
use backends::Backends;
use endpoints::{Again, Endpoints};
use identities::{Identities, Wanted};
use objects::Objects;
use setup::Setup;
use std::mem;
use std::sync::Arc;

pub(super) use namespaces::Existing;
pub use report::{KindReport, Report};
pub(super) use setup::Mode;

/// Keys that are read one by one although they are more than half of all keys of their kind.
const READS_MIN: usize = 1000;
/// Keys that are read at once: etcd's transactions have 128 operations at most.
const READ_AT_ONCE: usize = 100;

/// What the task that reads one kind of keys has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing but to follow the changes.
    Nothing,
    /// To empty the mirror: no key of the kind is mirrored any more.
    Off,
    /// To list the prefix.
    List,
    /// To read the keys with these names.
    Read(Vec<Vec<u8>>),
}

/// How far one kind of keys is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    must_list: bool,
    /// Whether a list has begun and not ended.
    is_listing: bool,
    /// Whether every key is known: a list has ended, or there are no keys.
    is_known: bool,
    /// The keys cannot be read at present.
    is_unreadable: bool,
}

/// Whether the mirror's store holds a key.
pub(super) type Stored<'a> = &'a dyn Fn(&[u8]) -> bool;

/// See the module's documentation.
pub(super) struct Filter {
    cluster: ClusterName,
    /// The prefixes of the mirror, in the order of the kinds.
    prefixes: [String; Scope::ALL.len()],
    /// The region that the remote cluster gives itself.
    region: Option<String>,
    file: Arc<ScopeFile>,
    setup: Setup,
    progress: [Progress; Scope::ALL.len()],
    identities: Identities,
    endpoints: Endpoints,
    /// Services, endpoint slices and service exports.
    objects: [Objects; 3],
    backends: Backends,
    /// Whether the backends of all services were known when decisions were made last.
    knew_backends: bool,
    again: Option<Again>,
    version: u64,
}

/// The place of services, slices and exports among the objects.
fn object_at(kind: Scope) -> Option<usize> {
    match kind {
        Scope::Services => Some(0),
        Scope::EndpointSlices => Some(1),
        Scope::ServiceExports => Some(2),
        Scope::Identities | Scope::Endpoints | Scope::Nodes => None,
    }
}

/// The kinds whose keys name backends.
const SERVICES: [Scope; 2] = [Scope::Services, Scope::EndpointSlices];

impl Filter {
    pub(super) fn new(cluster: &ClusterName, file: Arc<ScopeFile>, existing: Existing) -> Self {
        Self {
            prefixes: Scope::ALL.map(|kind| kind.cache_prefix(cluster)),
            region: None,
            setup: Setup::new(Arc::clone(&file), cluster, None, existing),
            file,
            cluster: cluster.clone(),
            progress: Default::default(),
            identities: Identities::default(),
            endpoints: Endpoints::default(),
            objects: Default::default(),
            backends: Backends::default(),
            knew_backends: false,
            again: None,
            version: 0,
        }
    }

    // --- questions

    pub(super) fn mode(&self, kind: Scope) -> Mode {
        self.setup.mode(kind)
    }

    /// What the task that reads this kind has to do.
    pub(super) fn todo(&self, kind: Scope) -> Todo {
        match self.mode(kind) {
            Mode::Off => return Todo::Off,
            _ if self.progress[kind as usize].must_list => {
                return if self.may_list(kind) { Todo::List } else { Todo::Nothing };
            }
            Mode::Pass => return Todo::Nothing,
            Mode::Filtered => {}
        }
        let (wanted, names): (_, Vec<_>) = match object_at(kind) {
            Some(at) => {
                let wanted = self.objects[at].wanted();
                let names = wanted.iter().take(READ_AT_ONCE).map(|name| name.to_vec());
                (wanted.len(), names.collect())
            }
            None if kind == Scope::Endpoints => {
                let wanted = self.endpoints.wanted();
                (
                    wanted.len(),
                    wanted.iter().take(READ_AT_ONCE).map(Name::to_bytes).collect(),
                )
            }
            None => (0, vec![]),
        };
        match wanted {
            0 => Todo::Nothing,
            n if n > READS_MIN.max(self.known(kind) / 2) => Todo::List,
            _ => Todo::Read(names),
        }
    }

    /// Whether the task of any kind must read keys.
    pub(super) fn wants_any(&self) -> bool {
        let wants_objects = self.objects.iter().any(|objects| !objects.wanted().is_empty());
        let must_list = self.progress.iter().any(|progress| progress.must_list);
        must_list || wants_objects || !self.endpoints.wanted().is_empty()
    }

    /// Whether every key of a kind is known.
    pub(super) fn is_known(&self, kind: Scope) -> bool {
        self.progress[kind as usize].is_known
    }

    /// Grows whenever the rules change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the list of a kind that has ended decides about all its keys. If not, the mirror is not complete yet.
    pub(super) fn is_decided(&self, kind: Scope) -> bool {
        let judge = self.setup.judge(kind);
        match kind {
            _ if self.mode(kind) != Mode::Filtered => true,
            Scope::Identities => self.setup.identities() != Wanted::Used || self.is_settled(Scope::Endpoints),
            Scope::Endpoints if self.setup.keeps_endpoints() => true,
            Scope::Endpoints => {
                !judge.is_waiting()
                    && (!self.setup.needs_backends() || SERVICES.into_iter().all(|kind| self.is_settled(kind)))
            }
            _ => !judge.is_waiting(),
        }
    }

    /// Whether the kinds that must be read before this kind have been read.
    pub(super) fn may_list(&self, kind: Scope) -> bool {
        self.needs(kind).into_iter().all(|kind| self.is_settled(kind))
    }

    /// Whether nothing more is to be expected of a kind at present.
    fn is_settled(&self, kind: Scope) -> bool {
        let progress = self.progress[kind as usize];
        let is_known = progress.is_known || self.mode(kind) != Mode::Filtered;
        is_known && !progress.must_list || progress.is_unreadable
    }

    /// The kinds that must be read before this kind.
    pub(super) fn needs(&self, kind: Scope) -> Vec<Scope> {
        match kind {
            Scope::Endpoints if self.setup.needs_backends() => [&[Scope::Identities][..], &SERVICES].concat(),
            Scope::Endpoints => vec![Scope::Identities],
            _ => vec![],
        }
    }

    /// The number of keys of a kind that the remote cluster is known to have.
    pub(super) fn known(&self, kind: Scope) -> usize {
        match (kind, object_at(kind)) {
            (_, Some(at)) => self.objects[at].len(),
            (Scope::Identities, _) => self.identities.tally().keys,
            (Scope::Endpoints, _) => self.endpoints.len(),
            _ => 0,
        }
    }

    /// The name of the entry of the scope file that governs the cluster.
    pub(super) fn entry(&self) -> Option<&str> {
        self.setup.entry().map(|entry| &*entry.name)
    }

    /// The most keys of a kind that the cluster may have here.
    pub(super) fn limit(&self, kind: Scope) -> Option<usize> {
        self.setup.limit(kind)
    }

    // --- changes of what decides

    /// The scope file has changed.
    pub(super) fn set_file(&mut self, file: &Arc<ScopeFile>, out: &mut Vec<Write>) {
        self.file = Arc::clone(file);
        let existing = self.setup.existing.clone();
        self.set_up(existing, out);
    }

    /// The remote cluster has this region.
    pub(super) fn set_region(&mut self, region: Option<&str>, out: &mut Vec<Write>) {
        self.region = region.map(str::to_owned);
        let existing = self.setup.existing.clone();
        self.set_up(existing, out);
    }

    /// This cluster has these namespaces.
    pub(super) fn set_existing(&mut self, existing: Existing, out: &mut Vec<Write>) {
        self.set_up(existing, out);
    }

    fn set_up(&mut self, existing: Existing, out: &mut Vec<Write>) {
        let new = Setup::new(Arc::clone(&self.file), &self.cluster, self.region.as_deref(), existing);
        let old = mem::replace(&mut self.setup, new);
        if old.is_same(&self.setup) {
            return;
        }
        self.version += 1;
        let stays = |kind: Scope, setup: &Setup| old.mode(kind) == Mode::Filtered && setup.mode(kind) == Mode::Filtered;
        if stays(Scope::Identities, &self.setup) {
            self.identities_set_up(&old);
        }
        let judge = self.setup.judge(Scope::Endpoints);
        self.endpoints.judge_namespaces_again(judge);
        for kind in Scope::ALL {
            let (before, after) = (old.mode(kind), self.setup.mode(kind));
            if before != after {
                self.mode_changed(kind, before, after, out);
            } else if let Some(at) = object_at(kind).filter(|_| after == Mode::Filtered) {
                let gone = self.objects[at].judge_again(self.setup.judge(kind), &mut self.backends);
                out.extend(gone.iter().map(|name| self.delete_of(kind, name)));
            }
        }
        for kind in SERVICES {
            if !stays(kind, &self.setup) {
                continue;
            }
            match (old.needs_backends(), self.setup.needs_backends()) {
                (false, true) => self.progress[kind as usize] = Progress::unknown(),
                (true, false) => self.objects_of(kind, Objects::forget_backends),
                _ => {}
            }
        }
        self.again = Some(Again::All);
        self.settle(out);
        self.judge_identities(out);
    }

    fn identities_set_up(&mut self, old: &Setup) {
        let (former, rules) = (old.rules(Scope::Endpoints), self.setup.rules(Scope::Endpoints));
        let is_blind = self.identities.rules_changed(former, rules);
        // The values of identities are known only where their users decide.
        let is_valueless = old.identities() != self.setup.identities() && old.identities() != Wanted::Used;
        if is_blind || is_valueless {
            self.progress[Scope::Identities as usize].must_list = true;
        }
    }

    fn mode_changed(&mut self, kind: Scope, before: Mode, after: Mode, out: &mut Vec<Write>) {
        if kind == Scope::Identities && after == Mode::Pass {
            // The values of those that were left out as unused are known.
            let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
            let changes = self.identities.judge_all(judge);
            out.extend(changes.into_iter().map(|change| self.write_of(change)));
        }
        let any_left_out = match (kind, object_at(kind)) {
            (_, Some(at)) => self.objects[at].any_left_out(),
            (Scope::Identities, _) => {
                let tally = self.identities.tally();
                tally.kept < tally.keys
            }
            (Scope::Endpoints, _) => self.endpoints.any_left_out(),
            _ => false,
        };
        self.forget(kind);
        self.progress[kind as usize] = Progress {
            must_list: match (before, after) {
                (_, Mode::Off) => false,
                (Mode::Filtered, _) => any_left_out,
                // The task may not have noticed that nothing was mirrored for a moment.
                (Mode::Pass | Mode::Off, _) => true,
            },
            is_known: after == Mode::Off,
            ..Progress::default()
        };
        self.backends.list_ended(kind);
    }

    /// Forgets the keys of a kind, which are not mirrored, or are not filtered any more.
    fn forget(&mut self, kind: Scope) {
        match kind {
            Scope::Identities => self.identities.forget_keys(),
            Scope::Endpoints => {
                self.endpoints = Endpoints::default();
                self.identities.forget_users();
            }
            Scope::Nodes => {}
            Scope::Services | Scope::EndpointSlices | Scope::ServiceExports => self.objects_of(kind, Objects::clear),
        }
    }

    fn objects_of(&mut self, kind: Scope, change: fn(&mut Objects, &mut Backends)) {
        if let Some(at) = object_at(kind) {
            change(&mut self.objects[at], &mut self.backends);
        }
    }

    // --- lists

    /// A list begins.
    pub(super) fn list_begun(&mut self, kind: Scope) {
        let progress = &mut self.progress[kind as usize];
        (progress.must_list, progress.is_listing, progress.is_unreadable) = (false, true, false);
        match (kind, object_at(kind)) {
            (_, Some(at)) => {
                self.objects[at].list_begun();
                if SERVICES.contains(&kind) {
                    self.backends.list_begun(kind);
                }
            }
            (Scope::Identities, _) => self.identities.list_begun(),
            (Scope::Endpoints, _) => self.endpoints.list_begun(),
            _ => {}
        }
    }

    /// The list has ended: what it did not contain is gone.
    pub(super) fn list_ended(&mut self, kind: Scope, out: &mut Vec<Write>) {
        if self.mode(kind) == Mode::Filtered {
            match (kind, object_at(kind)) {
                (_, Some(at)) => {
                    let gone = self.objects[at].list_ended(&mut self.backends);
                    out.extend(gone.iter().map(|name| self.delete_of(kind, name)));
                }
                (Scope::Identities, _) => {
                    let gone = self.identities.list_ended();
                    out.extend(gone.into_iter().map(|number| self.write_of((number, None))));
                }
                _ => {
                    for (name, unused) in self.endpoints.list_ended() {
                        out.push(self.delete_of(kind, &name.to_bytes()));
                        unused
                            .into_iter()
                            .for_each(|identity| self.identities.end_use(identity));
                    }
                }
            }
        }
        self.become_known(kind, out);
    }

    /// The mirror of a kind has been emptied, because the remote cluster does not export the kind.
    pub(super) fn emptied(&mut self, kind: Scope, out: &mut Vec<Write>) {
        self.forget(kind);
        self.progress[kind as usize] = Progress::default();
        self.become_known(kind, out);
    }

    /// The mirror of a kind has been emptied, because the rules said so. They may say something else by now.
    pub(super) fn left_out(&mut self, kind: Scope, out: &mut Vec<Write>) {
        if self.mode(kind) == Mode::Off {
            self.emptied(kind, out);
        }
    }

    fn become_known(&mut self, kind: Scope, out: &mut Vec<Write>) {
        let progress = &mut self.progress[kind as usize];
        // Rules that changed during the list may have asked for more than its first keys told.
        progress.is_known = !progress.must_list;
        progress.is_listing = false;
        self.backends.list_ended(kind);
        self.settle(out);
        if kind == Scope::Endpoints {
            self.judge_identities(out);
        }
    }

    /// The keys of a kind cannot be read: there are too many, or the store forbids it.
    pub(super) fn unreadable(&mut self, kind: Scope) {
        self.progress[kind as usize].is_unreadable = true;
    }

    // --- what follows from changes

    /// Decides again about the keys that a change concerns. Must follow the changes of a batch.
    pub(super) fn settle(&mut self, out: &mut Vec<Write>) {
        let labels = self.identities.take_changed();
        if self.setup.needs_labels() && !labels.is_empty() {
            match &mut self.again {
                Some(Again::All) => {}
                Some(Again::OfIdentities(identities)) => identities.extend(labels),
                None => self.again = Some(Again::OfIdentities(labels)),
            }
        }
        let knows_backends = knows_backends(&self.setup, &self.progress, &self.objects);
        let knew_backends = mem::replace(&mut self.knew_backends, knows_backends);
        if knows_backends && !knew_backends {
            self.again = Some(Again::All);
        }
        let backends = self.backends.take_changed();
        let judge = endpoints_judge(
            &self.setup,
            &self.progress,
            &self.objects,
            (&self.identities, &self.backends),
        );
        let mut changes = self.endpoints.backends_changed(judge, &backends);
        if let Some(again) = self.again.take() {
            changes.extend(self.endpoints.judge_again(judge, &again));
        }
        for (name, change) in changes {
            out.push(self.delete_of(Scope::Endpoints, &name.to_bytes()));
            change
                .ends
                .into_iter()
                .for_each(|identity| self.identities.end_use(identity));
        }
        self.settle_identities(out);
    }

    fn settle_identities(&mut self, out: &mut Vec<Write>) {
        let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
        if !judge.knows_users {
            return;
        }
        let idle = self.identities.settle(judge);
        out.extend(idle.into_iter().map(|change| self.write_of(change)));
    }

    /// Decides about all identities again.
    fn judge_identities(&mut self, out: &mut Vec<Write>) {
        if self.mode(Scope::Identities) == Mode::Filtered {
            let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
            let changes = self.identities.judge_all(judge);
            out.extend(changes.into_iter().map(|change| self.write_of(change)));
            self.settle_identities(out);
        }
    }

    // --- helpers

    fn delete_of(&self, kind: Scope, name: &[u8]) -> Write {
        Write::Delete([self.prefixes[kind as usize].as_bytes(), name].concat().into())
    }

    fn write_of(&self, (number, value): identities::Change) -> Write {
        let key = format!("{}{number}", self.prefixes[Scope::Identities as usize]);
        match value {
            Some(value) => Write::Put(key.into(), value),
            None => Write::Delete(key.into()),
        }
    }
}

/// Whether the backends of all mirrored services are known, or no rule asks for them.
fn knows_backends(setup: &Setup, progress: &[Progress], objects: &[Objects]) -> bool {
    let is_known = |kind: &Scope| {
        let is_read = object_at(*kind).is_none_or(|at| objects[at].wanted().is_empty());
        progress[*kind as usize].is_known && is_read
    };
    !setup.needs_backends() || SERVICES.iter().all(is_known)
}

fn endpoints_judge<'a>(
    setup: &'a Setup,
    progress: &[Progress],
    objects: &[Objects],
    (identities, backends): (&'a Identities, &'a Backends),
) -> endpoints::Judge<'a> {
    endpoints::Judge {
        names: setup.judge(Scope::Endpoints),
        leaves_regional: setup.leaves_regional(),
        keeps_all: setup.keeps_endpoints(),
        knows_backends: knows_backends(setup, progress, objects),
        identities,
        backends,
    }
}

fn identities_judge<'a>(
    setup: &'a Setup,
    progress: &[Progress],
    (objects, endpoints): (&[Objects], &Endpoints),
) -> identities::Judge<'a> {
    let are_read = |kind: Scope| {
        let progress = progress[kind as usize];
        progress.is_known && !progress.is_listing && !progress.must_list
    };
    identities::Judge {
        wanted: setup.identities(),
        rules: setup.rules(Scope::Endpoints),
        // An endpoint that is still to be read, or to be decided about, may have an identity that another one has had.
        knows_users: are_read(Scope::Endpoints)
            && are_read(Scope::Identities)
            && endpoints.wanted().is_empty()
            && !setup.judge(Scope::Endpoints).is_waiting()
            && knows_backends(setup, progress, objects),
    }
}

impl Progress {
    /// The keys must be read again.
    fn unknown() -> Self {
        Self {
            must_list: true,
            ..Self::default()
        }
    }
}
