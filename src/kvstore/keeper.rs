//! Keeps single keys: the cluster configuration, which must not change, and the heartbeat.

use super::metrics::Runs;
use super::{Backend, Class, Metrics, Write};
use crate::model::cluster::ClusterName;
use crate::model::keys;
use crate::model::probe::Probe;
use crate::util::durations::minute;
use crate::util::minima::Minima;
use crate::util::trace::Cause;
use futures::{Stream, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// How often a kept key is read even if no change is reported.
const REFRESH: Duration = Duration::from_secs(300);
/// The wait after a failed read or write.
const RETRY: Duration = Duration::from_secs(2);
/// How often the heartbeat is written. Readers give up on a cluster after two missing heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How often the probe is written unless a flag says otherwise.
pub const PROBE: Duration = Duration::from_secs(1);
/// Limit for a write.
const DEADLINE: Duration = Duration::from_secs(25);

/// Keeps `key` at `value` for ever: writes it again when it is changed or deleted. Counts in `runs`.
pub async fn keep(backend: Arc<dyn Backend>, key: String, value: Vec<u8>, runs: &Runs) {
    keep_latest(backend, key, value, futures::stream::pending(), runs).await;
}

/// As [`keep`], with another value whenever `values` gives one.
pub async fn keep_latest(
    backend: Arc<dyn Backend>,
    key: String,
    mut value: Vec<u8>,
    values: impl Stream<Item = Vec<u8>>,
    runs: &Runs,
) {
    let mut values = std::pin::pin!(values.fuse());
    // The watch begins before the first read, so that no change is missed. It is kept for all reads, because a new
    // watch always reports a possible change first.
    let mut changes = backend.changes(&key);
    loop {
        let ensured = tokio::time::timeout(DEADLINE, ensure(&*backend, &key, &value)).await;
        runs.count(matches!(ensured, Ok(Ok(_))));
        let wait = match ensured {
            Ok(Ok(written)) => {
                if written {
                    tracing::debug!(key, "written");
                }
                REFRESH
            }
            Ok(Err(error)) => {
                tracing::warn!(key, store = backend.describe(), %error, "cannot write the key, trying again");
                RETRY
            }
            Err(_) => RETRY,
        };
        tokio::select! {
            _ = changes.next() => {}
            Some(next) = values.next() => value = next,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Writes `key` unless it has `value` already, and adopts it. Returns whether it was written.
pub async fn ensure(backend: &dyn Backend, key: &str, value: &[u8]) -> Result<bool, super::Error> {
    if backend.get_and_adopt(key).await?.is_some_and(|v| v == value) {
        return Ok(false);
    }
    backend
        .write(
            Class::Control,
            &[Write::Put(key.to_owned().into(), value.to_vec().into())],
            Cause::Untraced,
        )
        .await?;
    Ok(true)
}

/// Writes the heartbeat now and every minute, for ever. In a task of its own, so that no load delays it.
pub async fn beat(backend: Arc<dyn Backend>, metrics: Metrics) {
    let mut tick = tokio::time::interval(HEARTBEAT);
    loop {
        tick.tick().await;
        let write = [Write::Put(keys::HEARTBEAT.into(), keys::timestamp().into())];
        match tokio::time::timeout(DEADLINE, backend.write(Class::Control, &write, Cause::Untraced)).await {
            Ok(Ok(_)) => drop(metrics.heartbeat.set(jiff::Timestamp::now().as_second() as f64)),
            Ok(Err(error)) => tracing::warn!(store = backend.describe(), %error, "the heartbeat was not written"),
            Err(_) => tracing::warn!(store = backend.describe(), "the heartbeat was not written in time"),
        }
    }
}

/// Writes the probe of `cluster` every `interval`, for ever. `keys` counts the keys of the publisher by scope. In a task of
/// its own, so that no load delays the probe for long before it is stamped.
pub async fn probe(
    backend: Arc<dyn Backend>,
    cluster: ClusterName,
    interval: Duration,
    keys: impl Fn() -> BTreeMap<String, u64>,
) {
    let (key, run, begun) = (keys::probe(&cluster), rand::random(), Instant::now());
    let mut writes = Minima::default();
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let keys = keys();
        let stamped = begun.elapsed();
        let probe = Probe {
            run,
            unix_micros: jiff::Timestamp::now().as_microsecond(),
            run_micros: i64::try_from(stamped.as_micros()).unwrap_or(i64::MAX),
            write_micros: writes.smallest(minute(stamped)),
            keys,
        };
        let write = [Write::Put(key.clone().into(), probe.to_json().into())];
        // A store that cannot be written to is reported by whoever writes data.
        let written = tokio::time::timeout(DEADLINE, backend.write(Class::Control, &write, Cause::Untraced)).await;
        if matches!(written, Ok(Ok(_))) {
            let (now, took) = (begun.elapsed(), begun.elapsed() - stamped);
            writes.add(minute(now), u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstore::local::LocalBackend;
    use crate::kvstore::{Error, StoredKey, Written};
    use crate::mvcc::{KeyRange, Store};
    use bytes::Bytes;
    use futures::stream::BoxStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_kept_key_is_written_again() {
        let store = Store::new();
        let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(Arc::clone(&store)));
        let value = || store.get(b"k").map(|kv| kv.value().to_vec());
        let drive = async {
            for other in [None, Some("x")] {
                while value().as_deref() != Some(b"v") {
                    store.wake_watchers();
                    tokio::task::yield_now().await;
                }
                match other {
                    None => drop(store.delete(&KeyRange::key("k"))),
                    Some(v) => drop(store.apply(&[Write::Put("k".into(), v.into())])),
                }
            }
            while value().as_deref() != Some(b"v") {
                store.wake_watchers();
                tokio::task::yield_now().await;
            }
        };
        let runs = Runs::default();
        tokio::select! {
            () = keep(backend, "k".to_owned(), b"v".to_vec(), &runs) => {}
            () = drive => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("not kept"),
        }
    }

    /// A store whose watches begin by reporting a possible change, as those of an etcd do. Counts reads.
    #[derive(Default)]
    struct Eager(AtomicU32);

    #[async_trait::async_trait]
    impl Backend for Eager {
        async fn list(&self, _: &str) -> Result<Vec<StoredKey>, Error> {
            Ok(vec![])
        }
        async fn get(&self, _: &str) -> Result<Option<Bytes>, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Some("v".into()))
        }
        async fn write(&self, _: Class, _: &[Write], _: Cause<'_>) -> Result<Written, Error> {
            Ok(Written::default())
        }
        async fn delete_prefix(&self, _: &str) -> Result<(), Error> {
            Ok(())
        }
        fn changes(&self, _: &str) -> BoxStream<'static, ()> {
            futures::stream::once(async {})
                .chain(futures::stream::pending())
                .boxed()
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unchanged_key_is_read_only_now_and_then() {
        let store = Arc::new(Eager::default());
        let runs = Runs::default();
        let kept = keep(Arc::clone(&store) as _, "k".to_owned(), b"v".to_vec(), &runs);
        let _ = tokio::time::timeout(REFRESH * 10, kept).await;
        assert!(store.0.load(Ordering::Relaxed) <= 12);
        assert_eq!(runs.counts(), (u64::from(store.0.load(Ordering::Relaxed)), 0));
    }
}
