//! The leader locks of those who write to the same store.

use super::Starting;
use super::metrics::DaemonMetrics;
use crate::kvstore::election::Leadership;
use crate::kvstore::etcd::EtcdBackend;
use crate::util::lifecycle::Lifecycle;
use std::sync::Arc;
use std::time::Duration;

/// Key of the leader lock that all mirrors of one store share.
pub(super) const MESH_LOCK: &str = "cilium/kvstoremesh-lock";
/// Key of the leader lock that the publishers of the replicas of one store share.
pub(super) const PUBLISHER_LOCK: &str = "cilium/clustermesh-lock";
/// Time to wait for the leader lock before this process becomes a standby, which is ready.
const STANDBY: Duration = Duration::from_secs(10);

/// Waits for the leader lock; losing the lock later ends the process. Returns `starting`, unless the wait was so
/// long that readiness had to be released.
pub async fn lead(
    store: &Arc<EtcdBackend>,
    metrics: &DaemonMetrics,
    starting: Starting,
    life: &Lifecycle,
) -> Option<Starting> {
    let mut starting = Some(starting);
    let leads = store.lead(MESH_LOCK);
    tokio::pin!(leads);
    let leadership = match tokio::time::timeout(STANDBY, &mut leads).await {
        Ok(leadership) => leadership,
        Err(_) => {
            tracing::info!(lock = MESH_LOCK, "another instance holds the leader lock; standing by");
            starting.take().into_iter().for_each(Starting::complete);
            leads.await
        }
    };
    tracing::info!(
        lock = MESH_LOCK,
        "leading: this instance holds the leader lock and mirrors"
    );
    metrics.set_leader(true);
    let metrics = metrics.clone();
    keep(store, leadership, life, move || metrics.set_leader(false));
    starting
}

/// Keeps a lock until the process stops, and then gives it back. Losing the lock ends the process.
fn keep(store: &Arc<EtcdBackend>, leadership: Leadership, life: &Lifecycle, lost: impl FnOnce() + Send + 'static) {
    let (store, stop) = (Arc::clone(store), life.stop_token().clone());
    life.spawn("leadership", async move {
        let lease = leadership.lease();
        tokio::select! {
            () = stop.cancelled() => {
                store.release(lease).await;
                Ok(())
            }
            () = store.hold(leadership) => {
                lost();
                Err("Leader election lost")
            }
        }
    });
}

/// Takes part in the election for `lock`, beside everything else, and calls `won` once this process holds the lock.
pub(super) fn candidate(
    store: &Arc<EtcdBackend>,
    lock: &'static str,
    life: &Lifecycle,
    won: impl FnOnce() + Send + 'static,
) {
    let (store, lives, stop) = (Arc::clone(store), life.clone(), life.stop_token().clone());
    life.spawn_vital(format!("candidate for {lock}"), async move {
        let leadership = tokio::select! {
            () = stop.cancelled() => return,
            leadership = store.lead(lock) => leadership,
        };
        tracing::info!(lock, "leading: this replica holds the leader lock");
        keep(&store, leadership, &lives, || {});
        won();
    });
}
