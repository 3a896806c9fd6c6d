//! The life of one remote cluster, without IO.
//!
//! ```text
//! WaitingForFile ─file_read─► Connecting ─connected─► WaitingForConfiguration ─configured─► Listing ─► Following
//!                                 ▲ ▲                          ▲       │                       │           │
//!                          failed ┘ │                connected │       │ failed                │ failed    │
//!                                   │                          │       ▼                       ▼           │
//!                                   │                         Away ◄───┴───────────────────────┴───────────┤
//!                                   └──────────────── configuration_changed ───────────────────────────────┘
//! ```
//!
//! `failed` with `Cause::File` leads back to `WaitingForFile`, and `file_removed` leads from every phase to `Leaving`, the
//! last.
//!
//! The shell (`reconnect`, `connection`, `reflect`) reports what happened, by the methods below, and does what they
//! return. Whatever the phase, the mirror keeps what it has; only [`Cluster::revoke`] asks to remove anything.

mod view;

use super::exports::Exports;
use super::position::{Position, ResumePoint};
use super::reflector::{Completeness, Prefixes, Reflector, Taken};
use super::refusal::Refusals;
use super::witness::Witness;
use crate::kvstore::client::{Changes, Event, KeyValue};
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::Scope;
use crate::util::backoff::Backoff;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// After a connection that lasted this long, the first new attempt is made soon.
pub(super) const STEADY: Duration = Duration::from_secs(30);
/// A remote that has too much is asked again after this long.
pub(super) const TOO_MUCH_WAIT: Duration = Duration::from_secs(300);
/// Of failures that repeat, every so many are logged.
const LOGGED_ATTEMPTS: u32 = 10;

/// The scopes that send traffic to a remote cluster: they are revoked when the remote stays away.
pub(super) const REVOCABLE: [Scope; 3] = [Scope::Services, Scope::ServiceExports, Scope::EndpointSlices];

/// Where a remote cluster is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The client file has not been read, or cannot be.
    WaitingForFile,
    /// No connection yet, or a new one because the configuration of the remote changed.
    Connecting,
    /// The store of the remote answers; the cluster configuration has not been read.
    WaitingForConfiguration,
    /// The cluster configuration is known; the mirror of at least one scope has never been complete, or is stopped.
    Listing,
    /// The mirror of every enabled scope is complete, and is kept up to date.
    Following,
    /// The remote was connected before and is not now. The mirror stays as it is.
    Away,
    /// The client file is gone. A cluster that comes back has a new life.
    Leaving,
}

/// What has happened so often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that got as far as the cluster configuration.
    pub connects: u64,
    /// Of these, connections that were lost.
    pub failures: u64,
    /// Attempts that did not get as far.
    pub attempts_failed: u64,
    pub revocations: u64,
}

/// Why an attempt or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The client file cannot be read, or is none.
    File,
    /// The connection ended without a word from the store.
    ConnectionLost,
    /// The remote has more than can be taken.
    TooMuch,
    Other,
}

/// How loudly a failure is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loudness {
    /// It is new, or has repeated for a while.
    Warning,
    /// It is the same as before.
    Debug,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) wait: Duration,
    pub(super) loudness: Loudness,
    /// The failure in full, for the log.
    pub(super) error: String,
    /// Another address may be better than the one that was used last.
    pub(super) forget_address: bool,
}

/// Since when a remote has not been mirrored.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    is_revoked: bool,
}

/// Attempts to connect, since the client file was read or changed.
#[derive(Clone, Debug)]
struct Attempts {
    backoff: Backoff,
    begun_at: Instant,
    last_error: String,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: ClusterName,
    phase: Phase,
    /// From the client file, for display.
    endpoints: String,
    /// The etcd cluster id of the store connected to last.
    store_id: u64,
    /// The last cluster configuration that was read.
    configuration: Option<ClusterConfig>,
    /// What is wrong now.
    error: Option<String>,
    attempts: Attempts,
    /// `None` while the remote is mirrored.
    absence: Option<Absence>,
    last_failure: Option<SystemTime>,
    /// Since when the heartbeat has not changed, though the store answers.
    silent_since: Option<Instant>,
    /// The last heartbeat: no other past has one with the same time at the same revision.
    heartbeat: Option<Witness>,
    /// From the start of the connection until everything was in the store here.
    first_sync: Option<Duration>,
    counters: Counters,
    refusals: Refusals,
    reflectors: BTreeMap<Scope, Reflector>,
}

impl Cluster {
    /// A remote cluster whose client file was found.
    pub(super) fn new(name: ClusterName, now: Instant) -> Self {
        Self {
            name,
            phase: Phase::WaitingForFile,
            endpoints: String::new(),
            store_id: 0,
            configuration: None,
            error: None,
            attempts: Attempts::new(now),
            // Its mirror may be there from before the start.
            absence: Some(Absence {
                since: now,
                is_revoked: false,
            }),
            last_failure: None,
            silent_since: None,
            heartbeat: None,
            first_sync: None,
            counters: Counters::default(),
            refusals: Refusals::default(),
            reflectors: Scope::ALL.map(|scope| (scope, Reflector::default())).into(),
        }
    }

    // --- transitions of the connection

    /// The client file is new or changed. The phase stays: until it is clear what becomes of the new connection, the
    /// mirror counts as connected if it was.
    pub(super) fn file_changed(&mut self, now: Instant) {
        self.attempts = Attempts::new(now);
    }

    /// The client file is gone: whatever else a task still reports, the cluster is leaving.
    pub(super) fn file_removed(&mut self) {
        self.phase = Phase::Leaving;
    }

    /// An attempt to connect begins.
    pub(super) fn attempt_begun(&mut self, now: Instant) {
        self.attempts.begun_at = now;
    }

    /// The client file was read.
    pub(super) fn file_read(&mut self, endpoints: String) {
        self.endpoints = endpoints;
        if self.phase == Phase::WaitingForFile {
            self.phase = Phase::Connecting;
        }
    }

    /// The store answers. A connection that replaces another because the client file changed leaves the phase as it
    /// is: the mirror stays complete meanwhile.
    pub(super) fn connected(&mut self, store_id: u64) {
        (self.store_id, self.error) = (store_id, None);
        if !self.is_registered() && self.phase != Phase::Leaving {
            self.phase = Phase::WaitingForConfiguration;
        }
    }

    /// The cluster configuration is missing or wrong. Returns whether that is new.
    pub(super) fn configuration_missing(&mut self, error: String) -> bool {
        let is_new = self.error.as_ref() != Some(&error);
        self.error = Some(error);
        is_new
    }

    /// The cluster configuration was read, and is written here.
    pub(super) fn configured(&mut self, configuration: ClusterConfig, exports: &Exports) {
        self.configuration = Some(configuration);
        (self.error, self.absence) = (None, None);
        self.counters.connects += 1;
        for (scope, reflector) in &mut self.reflectors {
            reflector.set_enabled(exports.scopes.contains(scope));
        }
        if self.phase != Phase::Leaving {
            self.phase = Phase::Listing;
        }
        self.settle();
    }

    /// The remote has another cluster configuration, which takes a new connection. That is no failure, and waits only
    /// if it keeps happening. Returns how long.
    pub(super) fn configuration_changed(&mut self, now: Instant) -> Duration {
        self.absence = Some(Absence {
            since: now,
            is_revoked: false,
        });
        if self.phase != Phase::Leaving {
            self.phase = Phase::Connecting;
        }
        match self.attempts.is_steady(now) {
            true => {
                self.attempts.backoff.reset();
                Duration::ZERO
            }
            false => self.attempts.backoff.next_wait(),
        }
    }

    /// An attempt failed, or a connection was lost. `now` and `wall_time` are the same moment.
    pub(super) fn failed(&mut self, cause: Cause, error: String, now: Instant, wall_time: SystemTime) -> Retry {
        let was_registered = self.is_registered();
        let error = match cause {
            Cause::ConnectionLost if !was_registered => {
                error + "; does the remote accept this client certificate, and do both ends use TLS?"
            }
            _ => error,
        };
        self.error = Some(error.clone());
        if was_registered {
            self.counters.failures += 1;
            self.last_failure = Some(wall_time);
            self.absence = Some(Absence {
                since: now,
                is_revoked: false,
            });
        } else {
            self.counters.attempts_failed += 1;
        }
        self.phase = match (self.phase, cause) {
            (Phase::Leaving, _) => Phase::Leaving,
            (_, Cause::File) => Phase::WaitingForFile,
            (Phase::WaitingForFile | Phase::Connecting, _) => Phase::Connecting,
            _ => Phase::Away,
        };
        // A remote that comes and goes is waited for as one that never came, and may be better at another address.
        let was_steady = was_registered && self.attempts.is_steady(now);
        if was_steady {
            self.attempts.backoff.reset();
        }
        let is_news = was_registered
            || self.attempts.backoff.attempts().is_multiple_of(LOGGED_ATTEMPTS)
            || error != self.attempts.last_error;
        self.attempts.last_error.clone_from(&error);
        Retry {
            wait: match cause {
                Cause::TooMuch => TOO_MUCH_WAIT,
                _ => self.attempts.backoff.next_wait(),
            },
            loudness: if is_news { Loudness::Warning } else { Loudness::Debug },
            error,
            forget_address: !was_steady,
        }
    }

    // --- while connected

    /// The cluster configuration is still the same.
    pub(super) fn configuration_confirmed(&mut self) {
        self.error = None;
    }

    /// The remote lost its cluster configuration. The mirror goes on with the one before.
    pub(super) fn configuration_lost(&mut self, error: String) {
        self.error = Some(error);
    }

    /// The heartbeat as it is when a connection begins.
    pub(super) fn heartbeat_read(&mut self, heartbeat: &KeyValue) {
        self.heartbeat = Some(Witness::of(heartbeat));
    }

    /// The heartbeat was written anew.
    pub(super) fn heartbeat_changed(&mut self, heartbeat: &KeyValue) {
        self.heartbeat_read(heartbeat);
        self.silent_since = None;
    }

    /// The heartbeat has not changed since then, though the store answers. Returns whether that is new.
    pub(super) fn heartbeat_silent(&mut self, since: Instant) -> bool {
        self.silent_since.replace(since).is_none()
    }

    /// The last heartbeat seen. A store that has another one at its revision has another past.
    pub(super) fn last_heartbeat(&self) -> Option<&Witness> {
        self.heartbeat.as_ref()
    }

    /// The store has another past than the mirror: everything is listed.
    pub(super) fn past_differs(&mut self) {
        self.reflectors.values_mut().for_each(Reflector::forget_position);
    }

    // --- the mirror of one scope

    /// The scope is not exported, or not wanted here: its mirror is emptied.
    pub(super) fn scope_emptied(&mut self, scope: Scope) {
        self.reflector(scope).forget_position();
    }

    /// Where the watch of a scope can resume.
    pub(super) fn resume_point(&self, scope: Scope, store_id: u64, prefix: &str) -> Option<ResumePoint> {
        self.reflectors.get(&scope)?.resume_point(store_id, prefix)
    }

    pub(super) fn resumed(&mut self, scope: Scope) {
        self.reflector(scope).resumed();
    }

    pub(super) fn list_begun(&mut self, scope: Scope) {
        self.reflector(scope).list_begun();
    }

    pub(super) fn list_ended(&mut self, scope: Scope, position: Position) {
        self.reflector(scope).list_ended(position);
    }

    /// A watch cannot go on: the scope is listed again.
    pub(super) fn relisting(&mut self, scope: Scope) {
        self.reflector(scope).forget_position();
    }

    /// The mirror of a scope is complete. With the last one the cluster is followed.
    pub(super) fn reflector_synced(&mut self, scope: Scope) {
        self.reflector(scope).synced();
        self.settle();
    }

    /// The remote has too much of a scope, which is not mirrored any further. The others are.
    pub(super) fn reflector_stopped(&mut self, scope: Scope, reason: String) {
        self.reflector(scope).stopped(reason);
        self.settle();
    }

    /// The canary of a scope is in the store here.
    pub(super) fn reflector_written(&mut self, scope: Scope, now: Instant) {
        self.reflector(scope).written();
        if self.reflectors.values().all(Reflector::is_written) {
            let begun_at = self.attempts.begun_at;
            self.first_sync.get_or_insert(now.saturating_duration_since(begun_at));
        }
    }

    /// Takes over keys of a page of a list.
    pub(super) fn take_page(&mut self, scope: Scope, prefixes: &Prefixes, page: Vec<KeyValue>) -> Vec<Taken> {
        let (reflector, refusals) = self.reflector_and_refusals(scope);
        page.into_iter()
            .map(|kv| reflector.take(prefixes, &kv.key, Some(kv.value), refusals))
            .collect()
    }

    /// Takes over the changes of a watch.
    pub(super) fn take_changes(&mut self, scope: Scope, prefixes: &Prefixes, events: &[Event]) -> Vec<Taken> {
        let (reflector, refusals) = self.reflector_and_refusals(scope);
        let take = |event: &Event| match event {
            Event::Put(kv) => reflector.take(prefixes, &kv.key, Some(kv.value.clone()), refusals),
            Event::Delete { key, .. } => reflector.take(prefixes, key, None, refusals),
        };
        events.iter().map(take).collect()
    }

    /// The mirror holds these changes.
    pub(super) fn advanced(&mut self, scope: Scope, changes: &Changes) {
        self.reflector(scope).advance(changes);
    }

    // --- revocation

    /// When the remote will have been away for `cache_ttl`; `None` while it is mirrored, and after it was revoked.
    pub(super) fn revocation_due(&self, cache_ttl: Duration) -> Option<Instant> {
        let absence = self.absence.filter(|absence| !absence.is_revoked)?;
        Some(absence.since + cache_ttl)
    }

    /// Returns whether to revoke [`REVOCABLE`] now: the remote has been away for too long. Each absence is revoked
    /// once.
    pub(super) fn revoke(&mut self, cache_ttl: Duration, now: Instant) -> bool {
        if self.revocation_due(cache_ttl).is_none_or(|due| due > now) {
            return false;
        }
        for scope in REVOCABLE {
            self.reflector(scope).forget_position();
        }
        self.counters.revocations += 1;
        if let Some(absence) = &mut self.absence {
            absence.is_revoked = true;
        }
        true
    }

    // --- the parts

    /// Every scope has a reflector from the start.
    fn reflector(&mut self, scope: Scope) -> &mut Reflector {
        self.reflectors.entry(scope).or_default()
    }

    fn reflector_and_refusals(&mut self, scope: Scope) -> (&mut Reflector, &mut Refusals) {
        (self.reflectors.entry(scope).or_default(), &mut self.refusals)
    }

    /// Of a registered cluster: `Following` once every enabled mirror is complete, `Listing` otherwise.
    fn settle(&mut self) {
        if self.is_registered() {
            let incomplete =
                |r: &Reflector| matches!(r.completeness(), Completeness::Incomplete | Completeness::Stopped(_));
            self.phase = match self.reflectors.values().any(incomplete) {
                true => Phase::Listing,
                false => Phase::Following,
            };
        }
    }
}

// === impl Attempts ===

impl Attempts {
    fn new(now: Instant) -> Self {
        Self {
            backoff: Backoff::connect(),
            begun_at: now,
            last_error: String::new(),
        }
    }

    /// Whether the connection of the last attempt has held for [`STEADY`].
    fn is_steady(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun_at) >= STEADY
    }
}

#[cfg(test)]
mod tests;
