//! The publisher of this cluster: from Kubernetes objects to the keys that other clusters read.
//!
//! [`publisher`] decides which keys follow from the objects; this file feeds it with events and passes its decisions to
//! a [`SyncStore`], which writes them.

pub mod publisher;
#[cfg(test)]
mod tests;

use crate::k8s::events::Received;
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{Backend, Metrics, keeper};
use crate::model::cluster::{Capabilities, ClusterConfig, ExportMode};
use crate::model::keys::{self, Scope};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Block, Ready};
use publisher::{Action, Options, Publisher, ServiceMode};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Publishes the keys that follow from `events` into `backend` until the lifecycle stops: the cluster configuration and
/// the heartbeat at once, then the resources, and the canary of each scope after its first complete state. Returns the
/// writer, for its statistics.
pub fn start(
    options: Options,
    events: mpsc::Receiver<Received>,
    backend: Arc<dyn Backend>,
    metrics: &Metrics,
    ready: &Ready,
    life: &Lifecycle,
) -> Arc<SyncStore> {
    let cluster = options.cluster.clone();
    let prefixes = Scope::ALL.map(|s| s.state_prefix(&cluster.name)).to_vec();
    let sync = Arc::new(SyncStore::new("publisher", Arc::clone(&backend), prefixes));
    metrics.follow(cluster.name.as_str(), &sync);
    let config = cluster_config(&options).to_json();
    let config_key = keys::cluster_config(&cluster.name);
    let stop = life.stop_token().clone();
    let (kept, runs) = (Arc::clone(&backend), metrics.kept.clone());
    let keep = async move { keeper::keep(kept, config_key, config, &runs).await };
    life.spawn_forever("cluster config", keep);
    life.spawn_forever("heartbeat", keeper::beat(Arc::clone(&backend), metrics.clone()));
    if !options.probe_interval.is_zero() {
        let (counted, name) = (Arc::clone(&sync), cluster.name.clone());
        let keys =
            move || Scope::ALL.map(|s| (s.word().to_owned(), counted.desired(&s.state_prefix(&name)).keys as u64));
        let keys = move || keys().into();
        let probe = keeper::probe(backend, cluster.name.clone(), options.probe_interval, keys);
        life.spawn_forever("probe of the propagation", probe);
    }
    let writer = Arc::clone(&sync);
    life.spawn_forever("publisher's writes", async move { writer.run().await });
    for scope in Scope::ALL {
        let block = ready.block(format!("publishing {}", scope.word()));
        let (sync, canary) = (Arc::clone(&sync), scope.state_canary(&cluster.name));
        let prefix = scope.state_prefix(&cluster.name);
        let stop = stop.clone();
        life.spawn_part(format!("canary of {}", scope.word()), async move {
            let _block: Block = block;
            tokio::select! {
                () = stop.cancelled() => {}
                () = sync.wait_written(&canary) => sync.initial_write_done(&prefix),
            }
        });
    }
    life.spawn_forever("publisher", publish(options, events, Arc::clone(&sync)));
    sync
}

/// The configuration that this cluster publishes of itself.
fn cluster_config(options: &Options) -> ClusterConfig {
    ClusterConfig {
        id: options.cluster.id,
        capabilities: Capabilities {
            synced_canaries: true,
            cached: false,
            max_connected_clusters: options.cluster.max_connected,
            service_exports_enabled: Some(options.service_exports),
            endpoint_slices_export_mode: match options.service_mode {
                ServiceMode::OnlyEndpointSlice => ExportMode::EndpointSlices,
                _ => ExportMode::ServicesAndEndpointSlices,
            },
        },
    }
}

async fn publish(options: Options, mut events: mpsc::Receiver<Received>, sync: Arc<SyncStore>) {
    let cluster = options.cluster.name.clone();
    let mut publisher = Publisher::new(options);
    let list = sync.begin_list();
    while let Some(Received { event, at }) = events.recv().await {
        for action in publisher.handle(event) {
            match action {
                Action::Upsert { scope, name, value } => {
                    sync.set(scope.state_prefix(&cluster) + &name, Some(value), at);
                }
                Action::Delete { scope, name } => sync.set(scope.state_prefix(&cluster) + &name, None, at),
                Action::Complete(scope) => {
                    sync.end_list(&scope.state_prefix(&cluster), list);
                    sync.queue_canary(scope.state_canary(&cluster), keys::timestamp());
                }
                Action::Warn { object, problem } => tracing::warn!("{object}: {problem}"),
            }
        }
    }
}
