//! The leader lock of the mirrors that share a store.

use super::Starting;
use super::metrics::DaemonMetrics;
use crate::kvstore::etcd::EtcdBackend;
use crate::util::lifecycle::Lifecycle;
use std::sync::Arc;
use std::time::Duration;

/// Key of the leader lock that all mirrors of one store share.
const MESH_LOCK: &str = "cilium/kvstoremesh-lock";
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
    let (store, metrics, stop) = (Arc::clone(store), metrics.clone(), life.stop_token().clone());
    life.spawn("leadership", async move {
        let lease = leadership.lease();
        tokio::select! {
            () = stop.cancelled() => {
                store.release(lease).await;
                Ok(())
            }
            () = store.hold(leadership) => {
                metrics.set_leader(false);
                Err("Leader election lost")
            }
        }
    });
    starting
}
