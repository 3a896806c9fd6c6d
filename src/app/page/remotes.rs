//! The remote clusters of a mirror as the page shows them.

use crate::kvstoremesh::Snapshot;
use crate::kvstoremesh::cluster::{Cluster, Phase};
use crate::kvstoremesh::filter::Report;
use crate::kvstoremesh::observed::Observed;
use crate::kvstoremesh::propagation::{self, Figures};
use crate::kvstoremesh::reflector::Completeness;
use crate::model::cluster::ClusterConfig;
use crate::model::keys::Scope;
use crate::ui::view::{
    Certificate, Configuration, Delivery, KeyCounts, Lag, Method, Minute, Mirror, MirroredKind, Moment, Propagation,
    RefusedKeys, Remote, RemoteCounters, RemoteDetail, Scoped, ScopedKind, ScopedRule, State, StateChange,
};
use std::time::SystemTime;

const DAY: i64 = 86_400;

/// The kinds of keys, by the words of the page.
pub(super) const SCOPES: [(Scope, &str); 6] = [
    (Scope::Nodes, "nodes"),
    (Scope::Identities, "identities"),
    (Scope::Endpoints, "addresses"),
    (Scope::Services, "services"),
    (Scope::ServiceExports, "service exports"),
    (Scope::EndpointSlices, "endpoint slices"),
];

/// A remote cluster in short.
pub(super) fn remote(snapshot: &Snapshot) -> Remote {
    let cluster = &snapshot.cluster;
    let (since, last_event, figures) = snapshot.look(|observed| {
        let since = observed.changes().next().map(|change| Moment(change.at));
        (since, observed.last_event().map(Moment), observed.figures(1))
    });
    Remote {
        name: cluster.name().to_string(),
        id: cluster.configuration().map(|config| config.id),
        state: state(cluster.phase()),
        since,
        troubles: snapshot.troubles(),
        keys: KeyCounts {
            nodes: snapshot.keys(Scope::Nodes),
            identities: snapshot.keys(Scope::Identities),
            addresses: snapshot.keys(Scope::Endpoints),
            services: snapshot.keys(Scope::Services),
            service_exports: snapshot.keys(Scope::ServiceExports),
            endpoint_slices: snapshot.keys(Scope::EndpointSlices),
        },
        lag: figures.filter(|_| cluster.is_connected()).map(lag),
        last_event,
    }
}

/// A remote cluster in full.
pub(super) fn detail(snapshot: &Snapshot, certificates: Vec<Certificate>) -> RemoteDetail {
    let (cluster, observed) = (&snapshot.cluster, snapshot.observed());
    let refused = cluster.refusals().iter().map(|(why, refused)| RefusedKeys {
        reason: why.to_string(),
        count: refused.count,
        example: refused.last_key.clone(),
    });
    let changes = observed.changes().map(|change| StateChange {
        at: Moment(change.at),
        state: state(change.phase),
        cause: change.cause.clone(),
    });
    let endpoints = cluster.endpoints().split(',').filter(|endpoint| !endpoint.is_empty());
    RemoteDetail {
        at: Moment::now(),
        remote: remote(snapshot),
        endpoints: endpoints.map(str::to_owned).collect(),
        endpoint_in_use: snapshot
            .address()
            .filter(|_| cluster.is_connected())
            .map(|at| at.to_string()),
        store_cluster_id: (cluster.store_id() != 0).then(|| format!("{:x}", cluster.store_id())),
        configuration: cluster.configuration().map(configuration),
        kinds: SCOPES
            .iter()
            .map(|(scope, kind)| mirrored(snapshot, &observed, *scope, kind))
            .collect(),
        counters: counters(cluster),
        first_sync_ms: cluster.first_sync().map(|took| took.as_secs_f64() * 1000.0),
        refused: refused.collect(),
        changes: changes.collect(),
        certificates,
        propagation: observed.figures(60).map(|figures| Propagation {
            last_hour: lag(figures),
            minutes: minutes(&observed),
            round_trip_ms: observed
                .shortest_round_trip()
                .map(|took| rounded(took.as_secs_f64() * 1000.0)),
        }),
        scope: snapshot.scope().map(scoped),
        delivery: snapshot.delivery(60).map(|figures| Delivery {
            p50_ms: rounded(figures.p50),
            p99_ms: rounded(figures.p99),
            max_ms: rounded(figures.max),
            samples: figures.samples,
        }),
    }
}

fn scoped(report: Report) -> Scoped {
    let word = |kind: Scope| {
        let words = SCOPES.iter().find(|(scope, _)| *scope == kind);
        words.map_or(kind.word(), |(_, word)| word).to_owned()
    };
    let kinds = report.kinds.into_iter().map(|kind| {
        let rules = kind.rules.into_iter().map(|((decision, rule), keys)| ScopedRule {
            rule,
            decision: decision.word().to_owned(),
            keys,
        });
        ScopedKind {
            kind: word(kind.kind),
            off: kind.is_off,
            kept: kind.kept,
            left_out: kind.left_out,
            pending: kind.pending,
            bytes_left_out: kind.bytes_left_out,
            rules: rules.collect(),
        }
    });
    Scoped {
        entry: report.entry,
        region: report.region,
        kinds: kinds.collect(),
    }
}

/// The certificate that the store of a remote cluster has shown.
pub(super) fn shown_certificate(snapshot: &Snapshot, now: SystemTime) -> Option<Certificate> {
    let facts = snapshot.certificate()?;
    Some(Certificate {
        role: "certificate of its server".to_owned(),
        cluster: Some(snapshot.cluster.name().to_string()),
        file: None,
        subject: facts.subject,
        issuer: facts.issuer,
        not_after: Moment(facts.validity.not_after),
        days_left: days_left(facts.validity.not_after, now),
        trouble: facts.validity.trouble(now),
    })
}

fn state(phase: Phase) -> State {
    match phase {
        Phase::WaitingForFile => State::WaitingForFile,
        Phase::Connecting => State::Connecting,
        Phase::WaitingForConfiguration => State::WaitingForConfiguration,
        Phase::Listing => State::Listing,
        Phase::Following => State::InSync,
        Phase::Away | Phase::Leaving => State::Away,
    }
}

fn rounded(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

fn lag(figures: Figures) -> Lag {
    Lag {
        method: match figures.method {
            propagation::Method::Probe => Method::Probe,
            propagation::Method::Heartbeat => Method::Heartbeat,
        },
        p50_ms: rounded(figures.p50),
        p99_ms: rounded(figures.p99),
        max_ms: rounded(figures.max),
        raw_ms: rounded(figures.raw),
        samples: figures.samples,
    }
}

fn minutes(observed: &Observed) -> Vec<Minute> {
    let of = |(ago, p50, p99): (u32, f64, f64)| Minute {
        ago,
        p50_ms: rounded(p50),
        p99_ms: rounded(p99),
    };
    observed.by_minute().into_iter().map(of).collect()
}

fn configuration(config: &ClusterConfig) -> Configuration {
    let capabilities = &config.capabilities;
    Configuration {
        cluster_id: config.id,
        max_connected_clusters: match capabilities.max_connected_clusters {
            0 => 255,
            most => most,
        },
        sync_canaries: capabilities.synced_canaries,
        cached: capabilities.cached,
        service_exports: match capabilities.service_exports_enabled {
            None => "unsupported",
            Some(true) => "enabled",
            Some(false) => "disabled",
        }
        .to_owned(),
        endpoint_slices: match String::from(capabilities.endpoint_slices_export_mode.clone()) {
            mode if mode.is_empty() => "services-only".to_owned(),
            mode => mode,
        },
    }
}

fn mirrored(snapshot: &Snapshot, observed: &Observed, scope: Scope, kind: &str) -> MirroredKind {
    let (mirror, reason) = match snapshot.cluster.completeness(scope) {
        Completeness::Disabled => (Mirror::Off, None),
        Completeness::Incomplete => (Mirror::Incomplete, None),
        Completeness::Complete => (Mirror::Complete, None),
        Completeness::Stopped(reason) => (Mirror::Stopped, Some(reason.clone())),
        Completeness::Forbidden(reason) => (Mirror::Forbidden, Some(reason.clone())),
    };
    MirroredKind {
        kind: kind.to_owned(),
        mirror,
        reason,
        mirrored: snapshot.keys(scope),
        announced: observed.propagation().announced(scope.word()),
    }
}

fn counters(cluster: &Cluster) -> RemoteCounters {
    let (counters, reads) = (cluster.counters(), cluster.read_counters());
    RemoteCounters {
        connections: counters.connects,
        connections_lost: counters.failures,
        attempts_failed: counters.attempts_failed,
        lists: reads.lists,
        resumes: reads.resumes,
        keys_read: reads.keys,
        bytes_read: reads.bytes,
        revocations: counters.revocations,
    }
}

/// Whole days until `end`; negative after it.
pub(super) fn days_left(end: SystemTime, now: SystemTime) -> i64 {
    let secs = match end.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(past) => -1 - i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX - 1),
    };
    secs.div_euclid(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_certificate_that_has_expired_has_less_than_no_days_left() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
        let hours = |n: u64| Duration::from_secs(3600 * n);
        assert_eq!(days_left(now + hours(47), now), 1);
        assert_eq!(days_left(now + hours(1), now), 0);
        assert_eq!(days_left(now - hours(1), now), -1);
        assert_eq!(days_left(now - hours(25), now), -2);
    }
}
