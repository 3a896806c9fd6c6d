//! Reads one prefix of one remote cluster: list, then watch. After a broken connection the watch resumes at the
//! mirror's position, if the store has the same history. A scope file can leave the whole prefix out, or ask for keys
//! that were left out before.

mod scoped;

use super::cluster::{STEADY, TOO_MUCH_WAIT};
use super::error::Error;
use super::exports::Exports;
use super::observed::Observed;
use super::position::Position;
use super::reflector::{List, Prefixes, Taken};
use super::remote::Remote;
use super::witness::Witness;
use crate::kvstore::Write;
use crate::kvstore::client::{Error as ClientError, EtcdClient, Event, KeyValue, Pages};
use crate::kvstore::labels::scope_of;
use crate::kvstore::metrics::EventAction;
use crate::kvstore::sync_store::PrefixSize;
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use crate::util::trace;
use scoped::MustList;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The first and the longest wait before a prefix that the store forbids to read is tried again.
const FORBIDDEN_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Limit for one list.
const LIST_MAX: Duration = Duration::from_secs(600);

/// Keys processed under one lock, so that metrics and status need not wait for a large page.
const TAKEN_AT_ONCE: usize = 256;

/// The state that the scopes of one connection share.
pub(super) struct Connected<'a> {
    pub(super) remote: &'a Remote,
    pub(super) client: &'a EtcdClient,
    pub(super) exports: &'a Exports,
    /// Canaries of the remote that have been seen.
    pub(super) canaries: watch::Receiver<BTreeSet<String>>,
    /// The kinds whose keys are queued for the local store: what other kinds refer to is written and known before them.
    pub(super) queued: watch::Sender<BTreeSet<Scope>>,
}

/// One scope on one connection.
struct Reflection<'a> {
    remote: &'a Remote,
    connected: &'a Connected<'a>,
    scope: Scope,
    prefixes: Prefixes,
    /// The canary in the local store, written once the mirror is complete.
    canary: String,
}

/// Mirrors one scope. Returns only with an error, which ends the connection.
pub(super) async fn reflect(connected: &Connected<'_>, scope: Scope) -> Result<Infallible, Error> {
    let (remote, exports) = (connected.remote, connected.exports);
    let reflection = Reflection {
        remote,
        connected,
        scope,
        prefixes: Prefixes {
            remote: exports.prefix(scope, &remote.name),
            mirror: scope.cache_prefix(&remote.name),
        },
        canary: scope.cache_canary(&remote.name),
    };
    let read = async {
        match exports.scopes.contains(&scope) {
            true => reflection.read().await,
            false => Ok(reflection.stay_empty().await),
        }
    };
    tokio::select! { ended = read => ended, never = reflection.written() => match never {} }
}

impl Reflection<'_> {
    /// Empties the mirror of a scope that is not mirrored, and writes its canary, since readers wait for the canary.
    fn empty(&self) {
        self.remote.state.note(|cluster| cluster.scope_emptied(self.scope));
        let list = self.remote.sync.begin_list();
        self.remote.sync.end_list(&self.prefixes.mirror, list);
        self.write_canary();
    }

    /// Waits until the scope may be read, then lists and watches. Lists again if a watch cannot continue, or if the scope
    /// file requires it.
    async fn mirror(&self) -> Result<Infallible, Error> {
        self.wait_until_readable().await;
        let mut backoff = Backoff::connect();
        let mut permission = forbidden_backoff();
        loop {
            let began = Instant::now();
            let Err(error) = self.mirror_once().await else {
                self.remote.state.note(|cluster| cluster.relisting(self.scope));
                continue;
            };
            match &error {
                Error::Client(source) if source.is_permission_denied() => {
                    if began.elapsed() >= STEADY {
                        permission.reset();
                    }
                    self.forbidden(error);
                    permission.wait().await;
                    continue;
                }
                Error::TooMuch { .. } => {
                    self.stop(&error);
                    tokio::select! {
                        () = tokio::time::sleep(TOO_MUCH_WAIT) => {}
                        () = self.other_rules() => {}
                    }
                    continue;
                }
                // The missed changes are compacted, or come in a message that is too large.
                Error::Client(ClientError::Compacted(_)) => {}
                Error::Client(error) if error.is_too_large() => {}
                _ => return Err(error),
            }
            self.remote.state.note(|cluster| cluster.relisting(self.scope));
            tracing::info!(cluster_name = %self.remote.name, prefix = self.prefixes.remote, %error, "the watch cannot continue; listing the prefix again");
            if began.elapsed() >= STEADY {
                backoff.reset();
            }
            backoff.wait().await;
        }
    }

    /// Waits for the remote's canary of the scope and, before addresses are read, for what the addresses refer to.
    async fn wait_until_readable(&self) {
        let Connected { exports, canaries, .. } = self.connected;
        if exports.has_canaries {
            let canary = exports.canary(self.scope, &self.remote.name);
            // The senders live longer than this call, so the wait cannot fail.
            let _ = canaries.clone().wait_for(|seen| seen.contains(&canary)).await;
        }
        let needed = self.needed();
        let mut queued = self.connected.queued.subscribe();
        let _ = queued.wait_for(|queued| needed.is_subset(queued)).await;
    }

    /// Stops the mirror of a scope that exceeds the limits. Mirrored keys stay, and readiness waits for no more keys.
    fn stop(&self, error: &Error) {
        tracing::error!(cluster_name = %self.remote.name, %error, "the remote cluster exceeds a limit of the mirror; keeping the mirrored keys of the prefix without further updates");
        let state = &self.remote.state;
        state.transition(|cluster| cluster.reflector_stopped(self.scope, error.to_string()));
        self.unreadable();
    }

    /// The store forbids reading the prefix. Mirrored keys stay, the other scopes continue, and readiness waits for no
    /// more keys of this scope.
    fn forbidden(&self, error: Error) {
        let error = match error {
            Error::Client(source) => Error::of(&self.prefixes.remote, source),
            other => other,
        };
        let (state, prefix) = (&self.remote.state, &self.prefixes.remote);
        if state.transition(|cluster| cluster.reflector_forbidden(self.scope, error.to_string())) {
            tracing::warn!(cluster_name = %self.remote.name, prefix, %error, "the remote cluster forbids reading a prefix; trying that prefix again, the others are mirrored");
        }
        self.unreadable();
    }

    fn unreadable(&self) {
        self.remote.sync.initial_read_pending(&self.prefixes.mirror);
        if let Some(import) = &self.remote.import {
            import.unreadable(self.scope);
        }
        self.release();
    }

    /// Lets the kinds begin that need this one.
    fn release(&self) {
        self.connected
            .queued
            .send_if_modified(|queued| queued.insert(self.scope));
    }

    /// Lists or resumes, and follows the changes. Returns if the prefix must be listed again.
    async fn mirror_once(&self) -> Result<(), Error> {
        let from = match self.resume().await? {
            Some(revision) => revision,
            None => self.list().await?,
        };
        let is_complete = self.is_decided();
        if is_complete {
            self.complete();
        }
        self.release();
        self.follow(from + 1, is_complete).await
    }

    /// The mirror is complete: queues the canary after all keys.
    fn complete(&self) {
        self.write_canary();
        let state = &self.remote.state;
        if state.transition(|cluster| cluster.reflector_synced(self.scope)) {
            tracing::info!(cluster_name = %self.remote.name, prefix = self.prefixes.remote, "the remote cluster allows reading the prefix again");
        }
        self.remote.sync.initial_read_done(&self.prefixes.mirror);
    }

    /// The revision to resume at, if the mirror is an earlier state of this very store.
    async fn resume(&self) -> Result<Option<i64>, Error> {
        if self.must_list() {
            return Ok(None);
        }
        let (client, state) = (self.connected.client, &self.remote.state);
        let point = state.read(|c| c.resume_point(self.scope, client.cluster_id(), &self.prefixes.remote));
        let Some(point) = point else { return Ok(None) };
        if !is_there(&point.witness, client, point.revision).await? {
            return Ok(None);
        }
        state.note(|cluster| cluster.resumed(self.scope));
        Ok(Some(point.revision))
    }

    /// Queues the canary, unless the local store holds it.
    fn write_canary(&self) {
        if !self.remote.sync.is_written(&self.canary) {
            self.remote.sync.queue_canary(self.canary.clone(), keys::timestamp());
        }
    }

    /// Lists the prefix. Returns the revision of the list.
    async fn list(&self) -> Result<i64, Error> {
        self.wait_until_keys_can_be_judged().await;
        // The time limit begins when the list has got its slot.
        let reading = async { tokio::time::timeout(LIST_MAX, Box::pin(self.read_pages())).await };
        let read = self.remote.limits.lists.run(reading).await;
        let position = read.unwrap_or_else(|_| Err(ClientError::Timeout(LIST_MAX).into()))?;
        let (revision, ended) = (position.revision, Instant::now());
        self.remote.state.note(|c| c.list_ended(self.scope, position));
        let scope = scope_of(self.prefixes.remote.as_bytes());
        let metrics = &self.remote.metrics;
        metrics.events(&scope, EventAction::ListDone, ended.elapsed(), 1);
        Ok(revision)
    }

    async fn read_pages(&self) -> Result<Position, Error> {
        let (client, sync) = (self.connected.client, &self.remote.sync);
        self.remote.state.note(|cluster| cluster.list_begun(self.scope));
        let (mut pages, mut read) = (client.pages(&self.prefixes.remote), List::default());
        let generation = sync.begin_list();
        let limit = self.begin_list();
        while let Some(page) = self.next_page(&mut pages).await? {
            let fits = read.page(&page, pages.count, limit);
            fits.map_err(|what| self.too_much(what))?;
            let mut page = page.into_iter();
            loop {
                let keys: Vec<_> = page.by_ref().take(TAKEN_AT_ONCE).collect();
                if keys.is_empty() {
                    break;
                }
                let state = &self.remote.state;
                read.mirrored += self.write(state.note(|c| c.take_page(self.scope, &self.prefixes, keys)));
                // Small values can name a great many backends, so that a whole page would be too much.
                self.check_scope_limits(read.mirrored)?;
            }
        }
        self.end_list();
        // Deletes the keys that the list did not contain.
        sync.end_list(&self.prefixes.mirror, generation);
        Ok(Position {
            store_id: client.cluster_id(),
            prefix: self.prefixes.remote.clone(),
            revision: pages.revision,
            witness: read.newest(),
        })
    }

    async fn next_page(&self, pages: &mut Pages) -> Result<Option<Vec<KeyValue>>, Error> {
        match pages.next().await {
            Err(error) if error.is_too_large() => Err(self.too_much(format!("an answer that is too large: {error}"))),
            page => Ok(page?),
        }
    }

    fn too_much(&self, what: String) -> Error {
        Error::TooMuch {
            prefix: self.prefixes.remote.clone(),
            what,
        }
    }

    /// Follows the changes, and what the scope file asks for. Returns if the prefix must be listed again.
    async fn follow(&self, from: i64, mut is_complete: bool) -> Result<(), Error> {
        let (state, sync) = (&self.remote.state, &self.remote.sync);
        let mut watch = self.connected.client.watch(&self.prefixes.remote, from).await?;
        let mut scope = self.scope_changes();
        loop {
            if self.read_wanted().await? == MustList::Yes {
                return Ok(());
            }
            if !is_complete && self.is_decided() {
                self.complete();
                is_complete = true;
            }
            let changes = tokio::select! {
                changes = watch.next() => changes?,
                () = scope.changed() => continue,
            };
            if !changes.events.is_empty() {
                state.observe(Observed::saw_event);
            }
            let arrived = Instant::now();
            for events in changes.events.chunks(TAKEN_AT_ONCE) {
                self.trace(events);
                self.write(state.note(|c| c.take_changes(self.scope, &self.prefixes, events)));
                self.count(events, arrived.elapsed());
                self.check_scope_limits(sync.desired(&self.prefixes.mirror))?;
            }
            // After the changes are queued, because a position must not be ahead of the mirror.
            state.note(|c| c.advanced(self.scope, &changes));
            let mirrored = sync.desired(&self.prefixes.mirror);
            let fits = self.remote.size_limit.check(mirrored);
            fits.map_err(|what| self.too_much(what))?;
        }
    }

    /// Counts events that waited for `waited` until they were taken.
    fn count(&self, events: &[Event], waited: Duration) {
        let mut actions = BTreeMap::<EventAction, usize>::new();
        for event in events {
            let action = match event {
                Event::Put(kv) if kv.create_revision == kv.mod_revision => EventAction::Create,
                Event::Put(_) => EventAction::Modify,
                Event::Delete { .. } => EventAction::Delete,
            };
            *actions.entry(action).or_default() += 1;
        }
        let scope = scope_of(self.prefixes.remote.as_bytes());
        for (action, count) in actions {
            self.remote.metrics.events(&scope, action, waited, count);
        }
    }

    /// Lets the traces of the events' revisions go on with the writes that follow from them.
    fn trace(&self, events: &[Event]) {
        if !trace::is_on() {
            return;
        }
        let store_id = self.connected.client.cluster_id();
        for event in events {
            let (key, revision) = match event {
                Event::Put(kv) => (&kv.key, kv.mod_revision),
                Event::Delete { key, mod_revision } => (key, *mod_revision),
            };
            let name = key.strip_prefix(self.prefixes.remote.as_bytes());
            if let (Some(origin), Some(name)) = (trace::of(store_id, revision), name) {
                let key = [self.prefixes.mirror.as_bytes(), name].concat();
                self.remote.sync.follows_from(key.into(), origin);
            }
        }
    }

    /// Queues the accepted keys, and logs the refused keys. Returns the size of what the scope file has kept.
    fn write(&self, taken: Vec<Taken>) -> PrefixSize {
        let accepted = self.accepted(taken);
        if let Some(import) = &self.remote.import {
            return import.take(self.scope, accepted.collect());
        }
        for write in accepted {
            match write {
                Write::Put(key, value) => self.remote.sync.upsert(key, value),
                Write::Delete(key) => self.remote.sync.delete(key),
            }
        }
        PrefixSize::default()
    }

    /// The writes of accepted keys; logs the refused keys.
    fn accepted(&self, taken: Vec<Taken>) -> impl Iterator<Item = Write> {
        taken.into_iter().filter_map(|taken| match taken {
            Taken::Mirrored(write) => Some(write),
            Taken::Refused(refused) => {
                if refused.is_logged {
                    tracing::warn!(
                        cluster_name = %self.remote.name, key = refused.key, why = %refused.why,
                        "a key of the remote cluster is not mirrored"
                    );
                }
                refused.removal
            }
        })
    }

    /// Notes the moment at which the canary, and so everything before it, is in the local store.
    async fn written(&self) -> Infallible {
        let sync = &self.remote.sync;
        sync.wait_written(&self.canary).await;
        sync.initial_write_done(&self.prefixes.mirror);
        let state = &self.remote.state;
        state.transition(|cluster| cluster.reflector_written(self.scope, Instant::now()));
        std::future::pending().await
    }
}

/// Waits between attempts to read what the store forbids.
pub(super) fn forbidden_backoff() -> Backoff {
    Backoff::new(FORBIDDEN_WAITS.0, FORBIDDEN_WAITS.1)
}

/// Whether the store has the same key-value at `revision`.
pub(super) async fn is_there(witness: &Witness, client: &EtcdClient, revision: i64) -> Result<bool, Error> {
    match client.get_at(witness.key(), revision).await {
        Ok(found) => Ok(witness.is(found.as_ref())),
        Err(error) if error.is_out_of_range() => Ok(false),
        Err(error) => Err(error.into()),
    }
}
