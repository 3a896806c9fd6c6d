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
use crate::scope::{ScopeFile, Watcher};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Block, Ready};
use publisher::{Action, Name, Options, Publisher, ServiceMode};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The wait after a failed list of the former keys.
const RETRY: Duration = Duration::from_secs(2);

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
    let stop = life.stop_token().clone();
    life.spawn_forever("cluster config", keep_config(options.clone(), Arc::clone(&backend)));
    life.spawn_forever("heartbeat", keeper::beat(Arc::clone(&backend), metrics.clone()));
    let listed = Arc::clone(&backend);
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
    life.spawn_forever("publisher", publish(options, events, listed, Arc::clone(&sync)));
    sync
}

/// Keeps the cluster configuration, with the region that the scope file gives. Nothing is written before the file can be
/// used.
async fn keep_config(options: Options, backend: Arc<dyn Backend>) {
    let key = keys::cluster_config(&options.cluster.name);
    let file = options.scope.clone();
    let config = move |region: Option<String>| cluster_config(&options, region).to_json();
    let Some(mut file) = file else {
        return keeper::keep(backend, key, config(None)).await;
    };
    let first = config(file.usable().await.region.clone());
    let later = futures::stream::unfold((file, config), |(mut file, config)| async move {
        let value = config(file.changed().await.region.clone());
        Some((value, (file, config)))
    });
    keeper::keep_latest(backend, key, first, later).await;
}

/// The configuration that this cluster publishes of itself.
fn cluster_config(options: &Options, region: Option<String>) -> ClusterConfig {
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
        region,
    }
}

/// Publishes what follows from `events`. With a scope file, events wait until the file can be used.
async fn publish(
    options: Options,
    mut events: mpsc::Receiver<Received>,
    backend: Arc<dyn Backend>,
    sync: Arc<SyncStore>,
) {
    let (cluster, mut file) = (options.cluster.name.clone(), options.scope.clone());
    let has_annotations = !options.endpoint_slices;
    let mut publisher = Publisher::new(options);
    let list = sync.begin_list();
    if let Some(file) = &mut file {
        let scope = file.usable().await;
        if scope.region.is_some() && !has_annotations {
            tracing::warn!(
                "the scope file gives a region, but with --enable-cilium-endpoint-slice no address is for one region: \
                 the annotations clustermesh.cilium.io/sync and sync-scope are on CiliumEndpoints only"
            );
        }
        // Only a rule with an identity can leave it open whether an address is exported.
        let former = match scope.export.endpoints.need_identities() {
            true => former(&*backend, &Scope::Endpoints.state_prefix(&cluster)).await,
            false => HashSet::new(),
        };
        publisher = publisher.with_scope(Arc::new(scope.export.clone()), former);
    }
    loop {
        let (actions, at) = tokio::select! {
            event = events.recv() => match event {
                Some(Received { event, at }) => (publisher.handle(event), at),
                None => return,
            },
            scope = changed(&mut file) => {
                (publisher.set_scope(Arc::new(scope.export.clone())), Instant::now())
            }
        };
        for action in actions {
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
        if let (Some(file), Some(counted)) = (&file, publisher.counted()) {
            file.state().exported(counted);
        }
    }
}

/// The names of the keys that an earlier run left under `prefix`.
async fn former(backend: &dyn Backend, prefix: &str) -> HashSet<Name> {
    loop {
        match backend.list(prefix).await {
            Ok(keys) => {
                let names = keys.iter().filter_map(|kv| kv.key.strip_prefix(prefix.as_bytes()));
                return names
                    .filter_map(|name| std::str::from_utf8(name).ok())
                    .map(Name::from)
                    .collect();
            }
            Err(error) => {
                tracing::warn!(prefix, %error, "cannot list the keys of the last run, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Waits for a scope that differs; for ever without a scope file.
async fn changed(file: &mut Option<Watcher>) -> Arc<ScopeFile> {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}
