//! The state of a process as the page shows it.

use super::remotes::{SCOPES, days_left, detail, remote, shown_certificate};
use super::{Shown, ShownStore};
use crate::kvstore::Backend as _;
use crate::kvstoremesh::Snapshot;
use crate::ui::Source;
use crate::ui::view::{
    Certificate, Client, KeysOfKind, Moment, Overview, OwnCluster, Part, PartState, ProcessFigures, Readiness, Remote,
    RemoteDetail, StoreFigures, Totals,
};
use crate::util::expiry::Seen;
use crate::util::metrics;
use crate::util::readiness::{self, Requirement};
use std::time::SystemTime;

/// Looks at the parts of a process.
pub(super) struct Process {
    shown: Shown,
    started: Moment,
}

impl Process {
    pub(super) fn new(shown: Shown) -> Self {
        Self {
            shown,
            started: Moment::now(),
        }
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let mesh = self.shown.metrics.mesh.mesh();
        mesh.map(|mesh| mesh.clusters()).unwrap_or_default()
    }

    fn keys(&self, snapshots: &[Snapshot]) -> Vec<KeysOfKind> {
        let of = |(scope, kind): &(_, &str)| {
            let prefix = |name| crate::model::keys::Scope::state_prefix(*scope, name);
            let publisher = self.shown.publisher.as_ref();
            KeysOfKind {
                kind: (*kind).to_owned(),
                own: publisher.map(|sync| sync.desired(&prefix(&self.shown.cluster.name)).keys),
                mirrored: snapshots.iter().map(|snapshot| snapshot.keys(*scope)).sum(),
            }
        };
        SCOPES.iter().map(of).collect()
    }

    fn readiness(&self) -> Readiness {
        let part = |readiness::Part { name, state }| {
            let (state, reason) = match state {
                readiness::PartState::Pending => (PartState::Pending, None),
                readiness::PartState::Holds => (PartState::Ok, None),
                readiness::PartState::Fails { reason, requirement } => match requirement {
                    Requirement::Required => (PartState::Failed, Some(reason)),
                    Requirement::Informative => (PartState::Warning, Some(reason)),
                },
            };
            Part { name, state, reason }
        };
        Readiness {
            is_ready: self.shown.ready.is_ready(),
            parts: self.shown.ready.parts().into_iter().map(part).collect(),
        }
    }

    fn store(&self) -> StoreFigures {
        match &self.shown.store {
            ShownStore::Own {
                store,
                core,
                quota_bytes,
            } => {
                let stats = store.stats();
                StoreFigures {
                    place: "this process".to_owned(),
                    cluster_id: Some(format!("{:x}", core.cluster_id())),
                    revision: Some(stats.revision),
                    compacted: Some(stats.compacted),
                    keys: Some(stats.keys),
                    bytes: Some(stats.bytes),
                    quota_bytes: *quota_bytes,
                    connections: Some(core.open_connections()),
                    watchers: Some(stats.watchers),
                }
            }
            ShownStore::Etcd(backend) => StoreFigures {
                place: backend.describe(),
                cluster_id: backend.cluster_id().map(|id| format!("{id:x}")),
                ..StoreFigures::default()
            },
        }
    }

    /// All certificates in use, with those that remote stores have shown.
    fn certificates(&self, snapshots: &[Snapshot]) -> Vec<Certificate> {
        let now = SystemTime::now();
        let files = self
            .shown
            .metrics
            .expiry
            .all()
            .into_iter()
            .map(|seen| certificate(&seen, now));
        files
            .chain(snapshots.iter().filter_map(|snapshot| shown_certificate(snapshot, now)))
            .collect()
    }
}

impl Source for Process {
    fn cluster(&self) -> String {
        self.shown.cluster.name.to_string()
    }

    fn overview(&self) -> Overview {
        let snapshots = self.snapshots();
        let remotes: Vec<_> = snapshots.iter().map(remote).collect();
        let process = metrics::Process::now();
        let certificates = self.certificates(&snapshots);
        let cluster = &self.shown.cluster;
        Overview {
            at: Moment::now(),
            cluster: OwnCluster {
                name: cluster.name.to_string(),
                id: cluster.id,
                max_connected_clusters: cluster.max_connected,
                subcommand: self.shown.subcommand.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: self.started,
                is_leader: self.shown.metrics.is_leader(),
            },
            readiness: self.readiness(),
            store: self.store(),
            keys: self.keys(&snapshots),
            remotes: Totals::of(&remotes),
            process: ProcessFigures {
                resident_bytes: process.resident_bytes,
                cpu_seconds: process.cpu_seconds,
                open_files: process.open_fds,
                max_open_files: process.max_fds,
            },
            next_certificate: certificates.into_iter().min_by_key(|certificate| certificate.not_after),
        }
    }

    fn remotes(&self) -> Vec<Remote> {
        self.snapshots().iter().map(remote).collect()
    }

    fn has_remote(&self, name: &str) -> bool {
        let is_this = |snapshot: &Snapshot| snapshot.cluster.name().as_str() == name;
        self.snapshots().iter().any(is_this)
    }

    fn remote(&self, name: &str) -> Option<RemoteDetail> {
        let snapshots = self.snapshots();
        let snapshot = snapshots
            .iter()
            .find(|snapshot| snapshot.cluster.name().as_str() == name)?;
        let now = SystemTime::now();
        let seen = self.shown.metrics.expiry.all();
        let files = seen.iter().filter(|seen| seen.file.cluster.as_deref() == Some(name));
        let files = files.map(|seen| certificate(seen, now));
        let certificates = files.chain(shown_certificate(snapshot, now)).collect();
        Some(detail(snapshot, certificates))
    }

    fn clients(&self) -> Option<Vec<Client>> {
        let ShownStore::Own { core, .. } = &self.shown.store else {
            return None;
        };
        let client = |(owner, figures): (String, crate::server::ClientFigures)| Client {
            user: owner.strip_prefix("user ").map(str::to_owned).unwrap_or(owner),
            connections: figures.connections,
            watchers: figures.watchers,
            slowest_watcher_ms: u64::try_from(figures.slowest_watcher.as_millis()).unwrap_or(u64::MAX),
            unsent_bytes: figures.unsent_bytes,
            sent_bytes: figures.sent_bytes,
            refused: figures.refused,
        };
        Some(core.clients().into_iter().map(client).collect())
    }
}

fn certificate(seen: &Seen, now: SystemTime) -> Certificate {
    Certificate {
        role: seen.file.role.noun().to_owned(),
        cluster: seen.file.cluster.clone(),
        file: Some(seen.file.path.display().to_string()),
        subject: seen.subject.clone(),
        issuer: seen.issuer.clone(),
        not_after: Moment(seen.validity.not_after),
        days_left: days_left(seen.validity.not_after, now),
        trouble: seen.trouble(now),
    }
}
