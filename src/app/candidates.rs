//! The publisher and the mirror of replicas that follow the same upstream. Every replica is a candidate for both: each runs
//! in the process that holds its lock, and writes to the upstream itself. The locks are in the upstream, too, so a process
//! that cannot reach the upstream cannot write either.

use super::leader::{self, MESH_LOCK, PUBLISHER_LOCK};
use super::metrics::{DaemonMetrics, Needs};
use super::{ObjectSource, once_ready, start_mesh, start_publisher, start_users, watch_store_certificates};
use crate::clustermesh::publisher::Options;
use crate::kvstore::client::KEEPALIVE;
use crate::kvstore::config::ConfigSource;
use crate::kvstore::etcd::{self, EtcdBackend};
use crate::kvstore::limiter::Limits;
use crate::kvstore::users::EtcdUsers;
use crate::kvstoremesh;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Block, Ready, Requirement};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long written keys outlive their writer: the next leader takes the leases over.
const LEASE_TTL: Duration = Duration::from_secs(900);
/// Keys per second that one writer changes at most in the upstream.
const KEYS_PER_SECOND: u32 = 1000;

/// What this process does once it leads.
pub struct Candidates {
    pub publisher: Options,
    pub objects: ObjectSource,
    /// `None` mirrors nothing.
    pub mirror: Option<kvstoremesh::Config>,
    /// The file of the users of other clusters, which the publisher makes; `None` leaves users alone.
    pub users: Option<PathBuf>,
}

/// The upstream as a store to write to.
fn upstream(file: &Path) -> etcd::Config {
    etcd::Config {
        source: ConfigSource::File(file.to_owned()),
        lease_ttl: LEASE_TTL,
        limits: Limits {
            qps: KEYS_PER_SECOND,
            ..Limits::default()
        },
        keepalive: KEEPALIVE,
    }
}

/// A readiness of its own for work that other processes may do, which begins when this process holds the leader lock. Its
/// unfinished steps are shown, and required of nobody.
fn shown_in(ready: &Ready, name: &str) -> (Ready, Block) {
    let own = Ready::default();
    let waiting = own.block("another replica holds the leader lock");
    let shown = own.clone();
    ready.condition(name, Requirement::Informative, move || {
        let pending = shown.pending();
        (!pending.is_empty()).then(|| pending.join(", "))
    });
    (own, waiting)
}

impl Candidates {
    /// Takes part in the elections for publisher and mirror of the upstream that `file` names. A lock that is lost ends the
    /// process. Readiness does not wait for a lock, nor for the upstream. A process that leaves gives its locks back first, while
    /// its clients are still here.
    pub fn start(self, file: &Path, metrics: &DaemonMetrics, needs: Needs, ready: &Ready, life: &Lifecycle) {
        let Self {
            publisher,
            objects,
            mirror,
            users,
        } = self;
        let (cluster, source) = (publisher.cluster.name.clone(), ConfigSource::File(file.to_owned()));
        let life = &life.until_leaving();
        watch_store_certificates(ConfigSource::File(file.to_owned()), metrics, life);
        let store = EtcdBackend::start(upstream(file), &metrics.kvstore, life);
        let needs = Needs { store: false, ..needs };
        metrics.conditions(&(Arc::clone(&store) as _), needs, ready);
        let (published, waiting) = shown_in(ready, "publisher");
        let (of_publisher, lives, backend) = (metrics.clone(), life.clone(), Arc::clone(&store));
        leader::candidate(&store, PUBLISHER_LOCK, life, move || {
            start_publisher(
                publisher,
                objects,
                Arc::clone(&backend) as _,
                &of_publisher,
                &published,
                &lives,
            );
            if let Some(users) = users {
                let admin = Arc::new(EtcdUsers::new(source));
                start_users(users, admin, &cluster, &of_publisher, &lives);
            }
            once_ready(&published, &lives, move || backend.initial_write_done());
            drop(waiting);
        });
        let Some(mirror) = mirror else { return };
        metrics.set_leader(false);
        metrics.mesh.stand_by();
        let store = EtcdBackend::start(upstream(file), &metrics.mirror, life);
        let (mirrored, waiting) = shown_in(ready, "mirror");
        let (of_mirror, lives, backend) = (metrics.clone(), life.clone(), Arc::clone(&store));
        leader::candidate(&store, MESH_LOCK, life, move || {
            of_mirror.set_leader(true);
            start_mesh(mirror, Arc::clone(&backend) as _, &of_mirror, &mirrored, &lives);
            once_ready(&mirrored, &lives, move || backend.initial_write_done());
            drop(waiting);
        });
    }
}
