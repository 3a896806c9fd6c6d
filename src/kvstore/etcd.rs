//! Any etcd as a store to write to: leases, batches in transactions, a new connection when one fails.

use super::availability::Availability;
use super::client::{self, EtcdClient, Options};
use super::config::{self, ClientConfig, Source};
use super::dial::Dialer;
use super::leases::Leases;
use super::limiter::{Class, Limiter, Limits};
use super::metrics::{Metrics, scope_of};
use super::{Backend, Error, StoredKey, Write};
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use crate::util::net::Keepalive;
use crate::util::outage::Outage;
use bytes::Bytes;
use etcd_client::{DeleteOptions, PutOptions, Txn, TxnOp};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes in one transaction: below etcd's default limit of 1.5 MiB.
const TXN_BYTES: usize = 1 << 20;
/// A write that takes longer has failed. An etcd answers or refuses sooner; what is written again although it was
/// written is an event for everybody.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// A request that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the store is looked at when nothing else is asked of it.
const PROBE: Duration = Duration::from_secs(5);

/// How to use the store.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub source: Source,
    /// How long keys outlive us.
    pub lease_ttl: Duration,
    /// How fast and how widely it is used.
    pub limits: Limits,
    pub keepalive: Keepalive,
}

/// An etcd to write to. Every key is attached to a lease, so that a dead writer's keys go.
pub struct EtcdBackend {
    config: Config,
    client: Arc<tokio::sync::Mutex<Option<EtcdClient>>>,
    leases: Arc<Leases>,
    limiter: Arc<Limiter>,
    metrics: Metrics,
    availability: Mutex<Availability>,
    dialer: Dialer,
    /// The store that answered last; 0: none yet.
    cluster_id: AtomicU64,
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match &error {
            client::Error::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                // Only the size of a request is a key's own fault: etcd's words, Go's and tonic's.
                let too_large = ["request is too large", "larger than max", "message length too large"];
                let says = |text: &&str| status.message().contains(*text);
                if too_large.iter().any(says) {
                    Self::Rejected(error.to_string())
                } else if says(&"database space exceeded") {
                    Self::Full(error.to_string())
                } else {
                    Self::Unavailable(error.to_string())
                }
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl EtcdBackend {
    /// A store; nothing is connected yet. Its leases are kept alive until the lifecycle stops.
    pub fn start(config: Config, metrics: &Metrics, life: &Lifecycle) -> Arc<Self> {
        let limiter = Arc::new(Limiter::new(config.limits));
        let leases = Arc::new(Leases::new(config.lease_ttl));
        let counted = Arc::clone(&leases);
        metrics.client(&limiter, move || counted.count());
        let this = Arc::new(Self {
            config,
            client: Arc::default(),
            leases,
            limiter,
            metrics: metrics.clone(),
            availability: Mutex::default(),
            dialer: Dialer::default(),
            cluster_id: AtomicU64::new(0),
        });
        let keeper = Arc::clone(&this);
        life.spawn_forever("leases", async move { keeper.leases.keep_alive(&keeper.client).await });
        let probe = Arc::clone(&this);
        life.spawn_forever("look at the store", async move { probe.probe().await });
        this
    }

    /// Waits until the store answers, for ever. Files that are not there yet are waited for; a file that makes
    /// no sense is an error.
    pub async fn connected(&self) -> Result<(), config::Error> {
        let mut backoff = Backoff::connect();
        loop {
            if let Source::File(path) = &self.config.source
                && let Err(error @ config::Error::Parse { .. }) = ClientConfig::read(path)
            {
                return Err(error);
            }
            match self.get(crate::model::keys::HEARTBEAT).await {
                Ok(_) => return Ok(()),
                Err(error) => tracing::warn!(%error, store = self.describe(), "cannot reach the store, trying again"),
            }
            backoff.wait().await;
        }
    }

    /// Everything has been written once: the limits of the start are over.
    pub fn steady(&self) {
        self.limiter.steady();
    }

    /// The connection, made now if there is none.
    pub async fn client(&self) -> Result<EtcdClient, Error> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<EtcdClient, Error> {
        let unavailable = |e: config::Error| Error::Unavailable(e.to_string());
        let config = self.config.source.read().map_err(unavailable)?;
        let options = Options {
            page: self.config.limits.page,
            keepalive: self.config.keepalive,
            dialer: self.dialer.clone(),
        };
        let connected = EtcdClient::connect_with(&config, &options).await;
        Ok(connected.inspect_err(|_| self.dialer.forget())?)
    }

    /// Runs `f` on the connection, which is given up if that fails: the next call makes a new one, with
    /// the TLS files as they are then.
    async fn with<T, F>(&self, f: impl FnOnce(EtcdClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => {
                self.availability.lock().failed(&error);
                return Err(error);
            }
        };
        // The client's futures are large.
        let done = Box::pin(f(client.clone())).await;
        self.same_store(&client).await;
        match &done {
            Err(error @ Error::Unavailable(_)) => {
                self.availability.lock().failed(error);
                *self.client.lock().await = None;
                // What accepts connections and serves nothing should not be the first next time.
                self.dialer.forget();
            }
            Err(error @ Error::Full(_)) => self.availability.lock().failed(error),
            Ok(_) | Err(Error::Rejected(_)) => self.availability.lock().answered(),
        }
        done
    }

    /// Another store than before has none of our leases, whatever ids it has.
    async fn same_store(&self, client: &EtcdClient) {
        let (now, before) = (client.cluster_id(), &self.cluster_id);
        if now == 0 || now == before.load(Ordering::Relaxed) {
            return;
        }
        // What an earlier connection says late is of the past.
        let slot = self.client.lock().await;
        let is_current = slot.as_ref().is_some_and(|current| current.is(client));
        if is_current && before.swap(now, Ordering::Relaxed) != now && self.leases.lose_all() {
            tracing::warn!(
                store = self.describe(),
                "another store than before: everything is written anew"
            );
        }
    }

    /// Runs `f` on the connection, for no longer than `deadline`.
    async fn within<T, F>(&self, deadline: Duration, f: impl FnOnce(EtcdClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let late = || Error::Unavailable(format!("no answer in {} s", deadline.as_secs()));
        self.with(async |client| {
            let done = tokio::time::timeout(deadline, f(client)).await;
            done.unwrap_or_else(|_| Err(late()))
        })
        .await
    }

    /// Asks for one thing, with its time and its outcome counted.
    async fn timed<T, F>(
        &self,
        (key, action, deadline): (&[u8], &'static str, Duration),
        f: impl FnOnce(EtcdClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        let done = self.within(deadline, f).await;
        self.metrics
            .operations(&scope_of(key), action, begun.elapsed(), done.is_ok(), 1);
        done
    }

    /// Looks at the store while nobody else does, so that its loss is known.
    async fn probe(&self) {
        loop {
            tokio::time::sleep(PROBE).await;
            if self.availability.lock().answered_within(PROBE) {
                continue;
            }
            if self.get(crate::model::keys::HEARTBEAT).await.is_err() {
                self.metrics.unreachable();
            }
        }
    }

    /// The lease for a key: the one it has, one with room, or a new one.
    async fn lease_for(&self, client: &EtcdClient, key: &Bytes) -> Result<i64, Error> {
        if let Some(lease) = self.leases.of(key) {
            return Ok(lease);
        }
        let begun = Instant::now();
        let ttl = i64::try_from(self.leases.ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = client.raw().lease_grant(ttl, None).await;
        self.metrics
            .operations("lease", "AcquireLease", begun.elapsed(), grant.is_ok(), 1);
        let lease = grant.map_err(client::Error::from)?.id();
        self.leases.hold(lease, self.leases.ttl);
        Ok(lease)
    }

    async fn write_txn(&self, client: &EtcdClient, writes: &[Write]) -> Result<(), Error> {
        let mut ops = Vec::with_capacity(writes.len());
        let mut attached = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let lease = self.lease_for(client, key).await?;
                    // Counted now, so that one batch does not overfill a lease.
                    self.leases.attach(key, lease);
                    attached.push(lease);
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
            attached.sort_unstable();
            attached.dedup();
            attached.iter().for_each(|lease| self.leases.lose(*lease));
        }
        let done = done.map_err(client::Error::from)?;
        client.seen(done.header())?;
        for write in writes {
            if let Write::Delete(key) = write {
                self.leases.detach(key);
            }
        }
        Ok(())
    }

    async fn write_part(&self, class: Class, part: &[Write]) -> Result<(), Error> {
        let permit = self.limiter.acquire(class, part.len()).await;
        let begun = Instant::now();
        let write = async |client: EtcdClient| self.write_txn(&client, part).await;
        let done = self.within(WRITE_DEADLINE, write).await;
        permit.done(done.is_ok());
        let mut counts: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
        for write in part {
            let (key, action) = match write {
                Write::Put(key, _) => (key, "Update"),
                Write::Delete(key) => (key, "Delete"),
            };
            *counts.entry((scope_of(key), action)).or_default() += 1;
        }
        for ((scope, action), count) in counts {
            self.metrics
                .operations(&scope, action, begun.elapsed(), done.is_ok(), count);
        }
        done
    }

    async fn read(&self, prefix: &str, ownership: Ownership) -> Result<Vec<StoredKey>, Error> {
        // Each page has a deadline of its own.
        let deadline = Duration::from_secs(600);
        // A list of everything at the start or after a loss must not use up what is for changes.
        let permit = self.limiter.acquire(Class::Live, 0).await;
        let listed = self
            .timed((prefix.as_bytes(), "ListPrefix", deadline), async |client| {
                let kvs = client.list(prefix).await?.kvs;
                let mut found = Vec::with_capacity(kvs.len());
                for kv in kvs {
                    let key = Bytes::from(kv.key);
                    let is_there = match ownership {
                        Ownership::Foreign => true,
                        Ownership::Adopt => self.adopt(&client, &key, kv.lease).await?,
                    };
                    if is_there {
                        let value = Bytes::from(kv.value);
                        found.push(StoredKey { key, value });
                    }
                }
                Ok(found)
            })
            .await;
        permit.done(listed.is_ok());
        listed
    }

    /// Takes over the lease of a key of a former life, so that an unchanged key need not be written; false: the
    /// lease is gone since, and the key with it.
    async fn adopt(&self, client: &EtcdClient, key: &Bytes, lease: i64) -> Result<bool, Error> {
        if lease == 0 {
            return Ok(true);
        }
        if !self.leases.holds(lease) {
            let found = client.raw().lease_time_to_live(lease, None).await;
            let found = found.map_err(client::Error::from)?;
            let Some(ttl) = u64::try_from(found.granted_ttl())
                .ok()
                .filter(|ttl| *ttl > 0 && found.ttl() > 0)
            else {
                return Ok(false);
            };
            self.leases.hold(lease, Duration::from_secs(ttl));
        }
        self.leases.attach(key, lease);
        Ok(true)
    }
}

/// What a list does with the leases of the keys it finds.
#[derive(Clone, Copy)]
enum Ownership {
    /// The leases stay with their writers.
    Foreign,
    /// The leases are renewed by this process from now on.
    Adopt,
}

/// Cuts a batch so that each part fits one transaction of at most `ops` operations.
fn parts(writes: &[Write], ops: usize) -> Vec<&[Write]> {
    let (mut parts, mut from, mut bytes) = (vec![], 0, 0);
    for (at, write) in writes.iter().enumerate() {
        let size = match write {
            Write::Put(key, value) => key.len() + value.len() + 64,
            Write::Delete(key) => key.len() + 64,
        };
        if at > from && (at - from >= ops || bytes + size > TXN_BYTES) {
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
    async fn list(&self, prefix: &str) -> Result<Vec<StoredKey>, Error> {
        self.read(prefix, Ownership::Foreign).await
    }

    async fn list_and_adopt(&self, prefix: &str) -> Result<Vec<StoredKey>, Error> {
        self.read(prefix, Ownership::Adopt).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let kv = self
            .timed((key.as_bytes(), "Get", DEADLINE), async |client| {
                Ok(client.get(key).await?)
            })
            .await?;
        Ok(kv.map(|kv| Bytes::from(kv.value)))
    }

    async fn get_and_adopt(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.timed((key.as_bytes(), "Get", DEADLINE), async |client| {
            let Some(kv) = client.get(key).await? else {
                return Ok(None);
            };
            let there = self.adopt(&client, &key.to_owned().into(), kv.lease).await?;
            Ok(there.then(|| Bytes::from(kv.value)))
        })
        .await
    }

    fn batch_max(&self) -> usize {
        self.limiter.batch_max()
    }

    async fn write(&self, class: Class, writes: &[Write]) -> Result<(), Error> {
        for part in parts(writes, self.limiter.batch_max()) {
            self.write_part(class, part).await?;
        }
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let options = DeleteOptions::new().with_prefix();
        let what = (prefix.as_bytes(), "DeletePrefix", DEADLINE);
        self.timed(what, async |client| {
            let done = client.raw().delete(prefix, Some(options)).await;
            done.map(drop).map_err(|e| client::Error::from(e).into())
        })
        .await?;
        self.leases.detach_prefix(prefix.as_bytes());
        Ok(())
    }

    fn changes(&self, key: &str) -> BoxStream<'static, ()> {
        let (client, key) = (Arc::clone(&self.client), key.to_owned());
        let stream = async_stream::stream! {
            loop {
                let client = client.lock().await.clone();
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

    fn keys_can_expire(&self) -> bool {
        true
    }

    fn expired_leases(&self) -> u64 {
        self.leases.losses()
    }

    fn outage(&self) -> Option<Outage> {
        self.availability.lock().outage()
    }

    fn describe(&self) -> String {
        match &self.config.source {
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
        let lengths = |ops| parts(&many, ops).iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(lengths(128), [128, 128, 44]);
        assert_eq!(lengths(20).len(), 15);
        let big: Vec<_> = (0..3)
            .map(|n| Write::Put(format!("k{n}").into(), vec![0; 600 << 10].into()))
            .collect();
        assert_eq!(parts(&big, 128).iter().map(|p| p.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
