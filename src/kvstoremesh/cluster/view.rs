//! The queries about a remote cluster, for the status, the metrics and tasks that wait.

use super::{Cluster, Counters, Phase};
use crate::kvstoremesh::reflector::{Completeness, ReadCounters, Reflector};
use crate::kvstoremesh::refusal::Refusals;
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys::Scope;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

impl Cluster {
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The endpoints in the client file.
    pub fn endpoints(&self) -> &str {
        &self.endpoints
    }

    /// The etcd cluster id of the store that answered last.
    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    pub fn configuration(&self) -> Option<&ClusterConfig> {
        self.configuration.as_ref()
    }

    pub(in crate::kvstoremesh) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether the store of the remote answers.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::WaitingForConfiguration || self.is_registered()
    }

    /// Whether the remote is connected and its configuration is known.
    pub fn is_registered(&self) -> bool {
        matches!(self.phase, Phase::Listing | Phase::Following)
    }

    /// Whether the initial mirror is finished: every scope was written once, is stopped, or is forbidden to read.
    pub fn is_mirrored(&self) -> bool {
        self.reflectors.values().all(Reflector::is_settled)
    }

    pub fn completeness(&self, scope: Scope) -> &Completeness {
        self.reflectors
            .get(&scope)
            .map_or(&Completeness::Disabled, Reflector::completeness)
    }

    /// The reasons why the store's keys, or keys of scopes, cannot be read.
    pub fn forbidden(&self) -> impl Iterator<Item = &str> {
        let scopes = self.reflectors.values().filter_map(|r| match r.completeness() {
            Completeness::Forbidden(reason) => Some(&**reason),
            _ => None,
        });
        self.canaries_forbidden.as_deref().into_iter().chain(scopes)
    }

    /// Whether the store forbids reading a scope.
    pub fn is_forbidden(&self, scope: Scope) -> bool {
        matches!(self.completeness(scope), Completeness::Forbidden(_))
    }

    /// The reasons why mirrors of scopes are stopped.
    pub fn stopped(&self) -> impl Iterator<Item = &str> {
        self.reflectors.values().filter_map(|r| match r.completeness() {
            Completeness::Stopped(reason) => Some(&**reason),
            _ => None,
        })
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The counters of all scopes together.
    pub fn read_counters(&self) -> ReadCounters {
        let mut sum = ReadCounters::default();
        for counters in self.reflectors.values().map(Reflector::counters) {
            sum.lists += counters.lists;
            sum.resumes += counters.resumes;
            sum.keys += counters.keys;
            sum.bytes += counters.bytes;
            sum.wanted += counters.wanted;
        }
        sum
    }

    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The time at which the last connection was lost.
    pub fn last_failure(&self) -> Option<SystemTime> {
        self.last_failure
    }

    /// The time since which the heartbeat has not changed although the store answers.
    pub fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// The duration of the first complete mirror.
    pub fn first_sync(&self) -> Option<Duration> {
        self.first_sync
    }
}
