//! Any etcd as a store to write to: leases, batches in transactions, a new connection when one fails.

use super::client::{self, EtcdClient};
use super::config::ClientConfig;
use super::{Backend, Error, Write};
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use bytes::Bytes;
use etcd_client::{DeleteOptions, PutOptions, Txn, TxnOp};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Keys attached to one lease at most, as in Cilium: an expiry deletes no more than this at once.
const KEYS_PER_LEASE: usize = 1000;
/// Operations in one transaction: etcd's default limit.
const TXN_OPS: usize = 128;
/// Bytes in one transaction: below etcd's default limit of 1.5 MiB.
const TXN_BYTES: usize = 1 << 20;

/// How to reach the store.
#[derive(Clone, Debug)]
pub enum Source {
    /// A client YAML file, read again for each connection.
    File(PathBuf),
    /// An address, without TLS.
    Address(String),
}

/// An etcd to write to. Every key is attached to a lease, so that a dead writer's keys go.
pub struct EtcdBackend {
    source: Source,
    lease_ttl_secs: i64,
    life: Lifecycle,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    client: tokio::sync::Mutex<Option<EtcdClient>>,
    leases: Mutex<Leases>,
    losses: AtomicU64,
}

#[derive(Default)]
struct Leases {
    /// Lease → keys attached by us.
    used: HashMap<i64, usize>,
    by_key: HashMap<Bytes, i64>,
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match &error {
            client::Error::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                // Only the size of a request is a key's own fault: etcd's words, Go's and tonic's.
                let too_large = ["request is too large", "larger than max", "message length too large"];
                match too_large.iter().any(|text| status.message().contains(text)) {
                    true => Self::Rejected(error.to_string()),
                    false => Self::Unavailable(error.to_string()),
                }
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

// === impl Leases ===

impl Leases {
    /// Forgets a lease that is gone, with its keys.
    fn lose(&mut self, lease: i64) -> bool {
        self.by_key.retain(|_, l| *l != lease);
        self.used.remove(&lease).is_some()
    }

    fn attach(&mut self, key: &Bytes, lease: i64) {
        self.detach(key);
        self.by_key.insert(key.clone(), lease);
        *self.used.entry(lease).or_default() += 1;
    }

    fn detach(&mut self, key: &Bytes) {
        if let Some(used) = self.by_key.remove(key).and_then(|lease| self.used.get_mut(&lease)) {
            *used -= 1;
        }
    }
}

// === impl EtcdBackend ===

impl EtcdBackend {
    /// A store at `source`; nothing is connected yet. `lease_ttl_secs` is how long keys outlive us.
    pub fn new(source: Source, lease_ttl_secs: i64, life: Lifecycle) -> Self {
        Self {
            source,
            lease_ttl_secs,
            life,
            shared: Arc::default(),
        }
    }

    /// Waits until the store answers, for ever.
    pub async fn connected(&self) {
        let mut backoff = Backoff::connect();
        loop {
            match self.get(crate::model::keys::HEARTBEAT).await {
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, store = self.describe(), "cannot reach the store, trying again"),
            }
            backoff.wait().await;
        }
    }

    async fn client(&self) -> Result<EtcdClient, Error> {
        let mut slot = self.shared.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let unavailable = |e: super::config::Error| Error::Unavailable(e.to_string());
        let config = match &self.source {
            Source::File(path) => ClientConfig::read(path).map_err(unavailable)?,
            Source::Address(address) => ClientConfig::address(address),
        };
        let client = EtcdClient::connect(&config).await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Runs `f` on the connection, which is given up if that fails: the next call makes a new one, with
    /// the TLS files as they are then.
    async fn with<T, F>(&self, f: impl FnOnce(EtcdClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        // The client's futures are large.
        let done = Box::pin(f(self.client().await?)).await;
        if matches!(done, Err(Error::Unavailable(_))) {
            *self.shared.client.lock().await = None;
        }
        done
    }

    /// The lease for a key: the one it has, or one with room.
    async fn lease_for(&self, client: &EtcdClient, key: &Bytes) -> Result<i64, Error> {
        {
            let leases = self.shared.leases.lock();
            if let Some(lease) = leases.by_key.get(key) {
                return Ok(*lease);
            }
            if let Some((lease, _)) = leases.used.iter().find(|(_, used)| **used < KEYS_PER_LEASE) {
                return Ok(*lease);
            }
        }
        let grant = client.raw().lease_grant(self.lease_ttl_secs, None).await;
        let lease = grant.map_err(client::Error::from)?.id();
        self.hold(lease);
        Ok(lease)
    }

    /// Keeps a lease alive until it is lost.
    fn hold(&self, lease: i64) {
        self.shared.leases.lock().used.entry(lease).or_default();
        let (shared, ttl) = (Arc::clone(&self.shared), self.lease_ttl_secs);
        let stop = self.life.stop_token().clone();
        self.life.spawn_part(format!("lease {lease:x}"), async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep_alive(&shared, lease, ttl) => {
                    if shared.leases.lock().lose(lease) {
                        shared.losses.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }

    async fn write_txn(&self, client: &EtcdClient, writes: &[Write]) -> Result<(), Error> {
        let mut ops = Vec::with_capacity(writes.len());
        let mut attached = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let lease = self.lease_for(client, key).await?;
                    // Counted now, so that one batch does not overfill a lease.
                    self.shared.leases.lock().attach(key, lease);
                    attached.push((key, lease));
                    let options = PutOptions::new().with_lease(lease);
                    ops.push(TxnOp::put(&key[..], &value[..], Some(options)));
                }
                Write::Delete(key) => ops.push(TxnOp::delete(&key[..], None)),
            }
        }
        let done = client.raw().txn(Txn::new().and_then(ops)).await;
        if let Err(etcd_client::Error::GRpcStatus(status)) = &done
            && status.message().contains("requested lease not found")
        {
            let mut leases = self.shared.leases.lock();
            let lost = attached.iter().filter(|(_, lease)| leases.lose(*lease)).count();
            if lost > 0 {
                self.shared.losses.fetch_add(1, Ordering::Relaxed);
            }
        }
        done.map_err(client::Error::from)?;
        let mut leases = self.shared.leases.lock();
        for write in writes {
            if let Write::Delete(key) = write {
                leases.detach(key);
            }
        }
        Ok(())
    }
}

/// Renews a lease; returns when it is gone.
async fn keep_alive(shared: &Shared, lease: i64, ttl_secs: i64) {
    let mut ttl = Duration::from_secs(ttl_secs.unsigned_abs());
    let mut renewed = tokio::time::Instant::now();
    while renewed.elapsed() < ttl {
        let client = shared.client.lock().await.clone();
        match Box::pin(renew(client, lease, &mut ttl, &mut renewed)).await {
            Renewal::Gone => return,
            Renewal::Interrupted => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

enum Renewal {
    /// The store does not know the lease.
    Gone,
    /// The connection failed: another may do.
    Interrupted,
}

/// Renews a lease over one connection, a third of its own TTL apart: an adopted one may be shorter than
/// ours.
async fn renew(
    client: Option<EtcdClient>,
    lease: i64,
    ttl: &mut Duration,
    renewed: &mut tokio::time::Instant,
) -> Renewal {
    let Some(client) = client else {
        return Renewal::Interrupted;
    };
    let (mut keeper, mut answers) = match client.raw().lease_keep_alive(lease).await {
        Ok(stream) => stream,
        Err(etcd_client::Error::LeaseKeepAliveError(text)) if text.contains("not found") => return Renewal::Gone,
        Err(_) => return Renewal::Interrupted,
    };
    loop {
        if keeper.keep_alive().await.is_err() {
            return Renewal::Interrupted;
        }
        match tokio::time::timeout(Duration::from_secs(10), answers.message()).await {
            Ok(Ok(Some(answer))) if answer.ttl() > 0 => *ttl = Duration::from_secs(answer.ttl().unsigned_abs()),
            Ok(Ok(Some(_))) => return Renewal::Gone,
            _ => return Renewal::Interrupted,
        }
        *renewed = tokio::time::Instant::now();
        tokio::select! {
            () = tokio::time::sleep(*ttl / 3) => {}
            // Nothing was asked, so this is the end of the stream.
            _ = answers.message() => return Renewal::Interrupted,
        }
    }
}

/// Cuts a batch so that each part fits one transaction.
fn parts(writes: &[Write]) -> Vec<&[Write]> {
    let (mut parts, mut from, mut bytes) = (vec![], 0, 0);
    for (at, write) in writes.iter().enumerate() {
        let size = match write {
            Write::Put(key, value) => key.len() + value.len() + 64,
            Write::Delete(key) => key.len() + 64,
        };
        if at > from && (at - from == TXN_OPS || bytes + size > TXN_BYTES) {
            parts.push(&writes[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += size;
    }
    parts.push(&writes[from..]);
    parts
}

#[async_trait::async_trait]
impl Backend for EtcdBackend {
    async fn list(&self, prefix: &str) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let kvs = self.with(async |client| Ok(client.list(prefix).await?.kvs)).await?;
        let mut found = Vec::with_capacity(kvs.len());
        for kv in kvs {
            let key = Bytes::copy_from_slice(kv.key());
            let lease = kv.lease();
            // Leases of a former life are taken over, so that unchanged keys need not be written.
            if lease != 0 {
                if !self.shared.leases.lock().used.contains_key(&lease) {
                    self.hold(lease);
                }
                self.shared.leases.lock().attach(&key, lease);
            }
            found.push((key, Bytes::copy_from_slice(kv.value())));
        }
        Ok(found)
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let kv = self.with(async |client| Ok(client.get(key).await?)).await?;
        Ok(kv.map(|kv| Bytes::copy_from_slice(kv.value())))
    }

    async fn write(&self, writes: &[Write]) -> Result<(), Error> {
        for part in parts(writes) {
            self.with(async |client| self.write_txn(&client, part).await).await?;
        }
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let options = DeleteOptions::new().with_prefix();
        self.with(async |client| {
            let done = client.raw().delete(prefix, Some(options)).await;
            done.map(drop).map_err(|e| client::Error::from(e).into())
        })
        .await
    }

    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        let stream = async_stream::stream! {
            loop {
                let client = shared.client.lock().await.clone();
                if let Some(client) = client
                    && let Ok(mut watch) = client.watch_key(&key, 0).await
                {
                    // It may have changed while nobody was looking.
                    yield ();
                    while watch.next().await.is_ok() {
                        yield ();
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        stream.boxed()
    }

    fn can_lose(&self) -> bool {
        true
    }

    fn losses(&self) -> u64 {
        self.shared.losses.load(Ordering::Relaxed)
    }

    fn describe(&self) -> String {
        match &self.source {
            Source::File(path) => format!("etcd of {}", path.display()),
            Source::Address(address) => format!("etcd at {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_cut_by_operations_and_by_bytes() {
        let put = |n: usize| Write::Put(format!("k{n}").into(), Bytes::from(vec![0; 10]));
        let many: Vec<_> = (0..300).map(put).collect();
        assert_eq!(parts(&many).iter().map(|p| p.len()).collect::<Vec<_>>(), [128, 128, 44]);
        let big: Vec<_> = (0..3)
            .map(|n| Write::Put(format!("k{n}").into(), vec![0; 600 << 10].into()))
            .collect();
        assert_eq!(parts(&big).iter().map(|p| p.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn a_lost_lease_takes_its_keys_along() {
        let mut leases = Leases::default();
        leases.attach(&"a".into(), 1);
        leases.attach(&"b".into(), 1);
        leases.attach(&"b".into(), 2);
        assert_eq!((leases.used[&1], leases.used[&2]), (1, 1));
        assert!(leases.lose(1) && !leases.lose(1));
        assert_eq!(leases.by_key.keys().collect::<Vec<_>>(), ["b"]);
    }
}
