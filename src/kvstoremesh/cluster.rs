//! The state machine of one remote cluster, without IO.
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
//! `failed` with `Cause::File` leads back to `WaitingForFile`. `file_removed` leads from every phase to `Leaving`, the
//! last phase.
//!
//! The tasks that do IO (`reconnect`, `connection`, `reflect`) report events by calling the methods below, and act on
//! the results. No phase removes mirrored keys; only [`Cluster::revoke`] asks for their removal.

mod attempts;
mod view;

pub(super) use attempts::{Cause, Loudness, Retry, STEADY, TOO_MUCH_WAIT};

use super::exports::Exports;
use super::position::{Position, ResumePoint};
use super::reflector::{Completeness, Prefixes, Reflector, Taken};
use super::refusal::Refusals;
use super::witness::Witness;
use crate::kvstore::client::{Changes, Event, KeyValue};
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::Scope;
use attempts::{Attempts, LOGGED_ATTEMPTS};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Refused attempts after which a remote cluster is taken for one that does not serve.
const REFUSING: u32 = 5;
/// The scopes that send traffic to a remote cluster: they are revoked when the remote stays away.
pub(super) const REVOCABLE: [Scope; 3] = [Scope::Services, Scope::ServiceExports, Scope::EndpointSlices];

/// The phase of the connection to a remote cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The client file has not been read, or cannot be read.
    WaitingForFile,
    /// The first connection is being made, or a new connection after the remote changed its configuration.
    Connecting,
    /// The store of the remote answers; the cluster configuration has not been read.
    WaitingForConfiguration,
    /// The cluster configuration is known. The mirror of at least one scope has never been complete, is stopped, or is
    /// forbidden to read.
    Listing,
    /// The mirror of every enabled scope is complete, and is kept up to date.
    Following,
    /// The connection to the remote cluster was lost. The mirror stays as it is.
    Away,
    /// The client file is gone. A cluster whose file returns gets a new state machine.
    Leaving,
}

/// Numbers of events since the client file was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections on which the cluster configuration was read.
    pub connects: u64,
    /// Connections that were lost after the cluster configuration was read.
    pub failures: u64,
    /// Attempts that failed before the cluster configuration was read.
    pub attempts_failed: u64,
    /// Reads that found no usable cluster configuration.
    pub configurations_missing: u64,
    pub revocations: u64,
}

/// A time without a connection to the remote cluster.
#[derive(Clone, Copy, Debug)]
struct Absence {
    since: Instant,
    is_revoked: bool,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: ClusterName,
    phase: Phase,
    /// The endpoints in the client file, for display.
    endpoints: String,
    /// The etcd cluster id of the store that answered last.
    store_id: u64,
    /// The last cluster configuration that was read.
    configuration: Option<ClusterConfig>,
    /// The present error, for the status.
    error: Option<String>,
    attempts: Attempts,
    /// `None` while the remote cluster is connected and its configuration is known.
    absence: Option<Absence>,
    last_failure: Option<SystemTime>,
    /// The time since which the heartbeat has not changed although the store answers.
    silent_since: Option<Instant>,
    /// The last heartbeat. A store with another history has no heartbeat of the same time at the same revision.
    heartbeat: Option<Witness>,
    /// Time from the start of the connection until everything was written to the local store.
    first_sync: Option<Duration>,
    counters: Counters,
    refusals: Refusals,
    /// Why the canaries cannot be read.
    canaries_forbidden: Option<String>,
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
            // A mirror of an earlier process may be in the local store.
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
            canaries_forbidden: None,
            reflectors: Scope::ALL.map(|scope| (scope, Reflector::default())).into(),
        }
    }

    // --- transitions of the connection

    /// The client file is new or changed. The phase stays, so a connected cluster counts as connected until the outcome
    /// of the new connection is known.
    pub(super) fn file_changed(&mut self, now: Instant) {
        self.attempts = Attempts::new(now);
    }

    /// The client file is gone. The cluster stays in `Leaving`, whatever its tasks still report.
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

    /// The store answers. A connection that replaces another one because the client file changed leaves the phase as it
    /// is, because the mirror stays complete meanwhile.
    pub(super) fn connected(&mut self, store_id: u64) {
        (self.store_id, self.error) = (store_id, None);
        self.attempts.refused = 0;
        if !self.is_registered() && self.phase != Phase::Leaving {
            self.phase = Phase::WaitingForConfiguration;
        }
    }

    /// Whether nothing has listened at the addresses of the store for several attempts, over more than a second. Two
    /// clusters whose pods start together would wait for each other: a Service leads to no pod that is not ready.
    pub(super) fn is_refusing(&self) -> bool {
        self.attempts.refused >= REFUSING
    }

    /// The cluster configuration is missing or invalid. Returns whether the error is new.
    pub(super) fn configuration_missing(&mut self, error: String) -> bool {
        let is_new = self.error.as_ref() != Some(&error);
        self.error = Some(error);
        self.counters.configurations_missing += 1;
        is_new
    }

    /// The cluster configuration was read and written to the local store.
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

    /// The remote cluster changed its configuration, which requires a new connection. Returns the wait before that
    /// connection: zero, unless the configuration changes again and again.
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
        // A remote cluster whose connections do not last is treated like an unreachable one: the waits grow, and other
        // addresses are tried.
        let was_steady = was_registered && self.attempts.is_steady(now);
        if was_steady {
            self.attempts.backoff.reset();
        }
        let is_news = was_registered
            || self.attempts.backoff.attempts().is_multiple_of(LOGGED_ATTEMPTS)
            || error != self.attempts.last_error;
        self.attempts.last_error.clone_from(&error);
        self.attempts.refused = match cause {
            Cause::Refused => self.attempts.refused + 1,
            _ => 0,
        };
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

    /// The remote cluster deleted its configuration. The mirror continues with the previous configuration.
    pub(super) fn configuration_lost(&mut self, error: String) {
        self.error = Some(error);
    }

    /// The first heartbeat that was read on a connection.
    pub(super) fn heartbeat_read(&mut self, heartbeat: &KeyValue) {
        self.heartbeat = Some(Witness::of(heartbeat));
    }

    /// The remote cluster has written its heartbeat.
    pub(super) fn heartbeat_changed(&mut self, heartbeat: &KeyValue) {
        self.heartbeat_read(heartbeat);
        self.silent_since = None;
    }

    /// The heartbeat has not changed since `since`, although the store answers. Returns whether the silence is new.
    pub(super) fn heartbeat_silent(&mut self, since: Instant) -> bool {
        self.silent_since.replace(since).is_none()
    }

    /// The last heartbeat seen. A store that has a different heartbeat at its revision has a different history.
    pub(super) fn last_heartbeat(&self) -> Option<&Witness> {
        self.heartbeat.as_ref()
    }

    /// The store has a different history than the mirror: every scope is listed.
    pub(super) fn past_differs(&mut self) {
        self.reflectors.values_mut().for_each(Reflector::forget_position);
    }

    // --- the mirror of one scope

    /// The remote does not export the scope, or this mirror does not want it: the scope's mirror is emptied.
    pub(super) fn scope_emptied(&mut self, scope: Scope) {
        self.reflector(scope).forget_position();
    }

    /// The point at which the watch of a scope can resume.
    pub(super) fn resume_point(&self, scope: Scope, store_id: u64, prefix: &str) -> Option<ResumePoint> {
        self.reflectors.get(&scope)?.resume_point(store_id, prefix)
    }

    /// The revision that the mirror of a scope has reached; `None` if the scope must be listed.
    pub(super) fn revision(&self, scope: Scope) -> Option<i64> {
        self.reflectors.get(&scope)?.revision()
    }

    /// Keys were read one by one, because the scope file asked for them.
    pub(super) fn wanted_read(&mut self, scope: Scope, keys: usize) {
        self.reflector(scope).wanted_read(keys);
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

    /// A watch cannot continue: the scope is listed again.
    pub(super) fn relisting(&mut self, scope: Scope) {
        self.reflector(scope).forget_position();
    }

    /// The mirror of a scope is complete. After the last scope, the phase is `Following`. Returns whether reading the
    /// scope was forbidden before.
    pub(super) fn reflector_synced(&mut self, scope: Scope) -> bool {
        let was_forbidden = self.reflector(scope).synced();
        self.settle();
        was_forbidden
    }

    /// The remote holds more of a scope than the limits allow: the mirror of that scope stops, the others continue.
    pub(super) fn reflector_stopped(&mut self, scope: Scope, reason: String) {
        self.reflector(scope).stopped(reason);
        self.settle();
    }

    /// The store forbids reading a scope: the scope is tried again alone, the others continue. Returns whether the reason
    /// is new.
    pub(super) fn reflector_forbidden(&mut self, scope: Scope, reason: String) -> bool {
        let is_new = self.reflector(scope).forbidden(reason);
        self.settle();
        is_new
    }

    /// The store forbids reading the canaries, or (`None`) allows it again. Without canaries no scope is read for the
    /// first time. Returns whether this is new.
    pub(super) fn canaries_forbidden(&mut self, reason: Option<String>) -> bool {
        let is_new = self.canaries_forbidden != reason;
        self.canaries_forbidden = reason;
        is_new
    }

    /// The canary of a scope has been written to the local store.
    pub(super) fn reflector_written(&mut self, scope: Scope, now: Instant) {
        self.reflector(scope).written();
        if self.reflectors.values().all(Reflector::is_written) {
            let begun_at = self.attempts.begun_at;
            self.first_sync.get_or_insert(now.saturating_duration_since(begun_at));
        }
    }

    /// Decides which keys of a list's page are mirrored.
    pub(super) fn take_page(&mut self, scope: Scope, prefixes: &Prefixes, page: Vec<KeyValue>) -> Vec<Taken> {
        let (reflector, refusals) = self.reflector_and_refusals(scope);
        page.into_iter()
            .map(|kv| reflector.take(prefixes, &kv.key, Some(kv.value), refusals))
            .collect()
    }

    /// Decides which changes of a watch are mirrored.
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

    /// The time at which the services are revoked; `None` while the remote is connected, and after a revocation.
    pub(super) fn revocation_due(&self, cache_ttl: Duration) -> Option<Instant> {
        let absence = self.absence.filter(|absence| !absence.is_revoked)?;
        Some(absence.since + cache_ttl)
    }

    /// Returns whether to revoke [`REVOCABLE`] now, because the remote has been away for `cache_ttl`. Revokes once for
    /// each absence.
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

    // --- helpers

    /// Every scope has a reflector from the start.
    fn reflector(&mut self, scope: Scope) -> &mut Reflector {
        self.reflectors.entry(scope).or_default()
    }

    fn reflector_and_refusals(&mut self, scope: Scope) -> (&mut Reflector, &mut Refusals) {
        (self.reflectors.entry(scope).or_default(), &mut self.refusals)
    }

    /// Sets the phase of a registered cluster: `Following` if every enabled mirror is complete, `Listing` otherwise.
    fn settle(&mut self) {
        if self.is_registered() {
            let is_complete =
                |r: &Reflector| matches!(r.completeness(), Completeness::Complete | Completeness::Disabled);
            self.phase = match self.reflectors.values().all(is_complete) {
                true => Phase::Following,
                false => Phase::Listing,
            };
        }
    }
}

#[cfg(test)]
mod tests;
