//! Any etcd as a [`Backend`]: keys on leases, batches as transactions (`write`), a new connection when one fails.

mod write;

pub(super) use write::Fence;

use super::availability::Availability;
use super::client::{self, EtcdClient, KeyValue, Options};
use super::config::{self, ClientConfig, ConfigSource};
use super::dial::Dialer;
use super::labels::{RequestOutcome, scope_of};
use super::leases::Leases;
use super::limiter::{Class, Limiter, Limits};
use super::metrics::Metrics;
use super::{Backend, Error, StoredKey, Write, Written};
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use crate::util::net::Keepalive;
use crate::util::outage::Outage;
use crate::util::trace::Cause;
use bytes::Bytes;
use etcd_client::{DeleteOptions, TxnOp};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Limit for a request other than a write.
const DEADLINE: Duration = Duration::from_secs(10);
/// Limit for a list of all keys under a prefix. Each page also has a limit of its own.
const LIST_DEADLINE: Duration = Duration::from_secs(600);
/// How often the store is probed while it gets no other requests.
const PROBE: Duration = Duration::from_secs(5);
/// The wait before a watch of a single key is opened again.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// How to use the store.
#[derive(Clone, Debug)]
pub struct Config {
    /// The etcd's addresses and certificates.
    pub source: ConfigSource,
    /// How long keys outlive this process.
    pub lease_ttl: Duration,
    pub limits: Limits,
    pub keepalive: Keepalive,
}

/// An etcd to write to. Every key is attached to a lease, so that the keys of a dead writer are deleted.
pub struct EtcdBackend {
    config: Config,
    client: Arc<tokio::sync::Mutex<Option<EtcdClient>>>,
    leases: Arc<Leases>,
    limiter: Arc<Limiter>,
    metrics: Metrics,
    availability: Mutex<Availability>,
    dialer: Dialer,
    /// The cluster id of the etcd that answered last; 0 before the first answer.
    cluster_id: AtomicU64,
    /// The lock that this process must hold to write; `None` if it needs none.
    pub(super) fence: Mutex<Option<Fence>>,
    /// Whether a write may still be on its way whose outcome nobody waits for.
    pub(super) late_writes: AtomicBool,
    /// Keys whose last write may have been executed or not.
    pub(super) doubtful: Mutex<HashSet<Bytes>>,
    /// Held while a lease of an earlier run is looked up: lists that are read at the same time have keys of the same
    /// leases, and ask for each lease once.
    adopting: tokio::sync::Mutex<()>,
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match &error {
            client::Error::Etcd(etcd_client::Error::GRpcStatus(status)) => {
                // Only a request that is too large is the fault of its keys. Texts of etcd, Go's gRPC and tonic.
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
    /// Makes the backend without connecting. Its leases are kept alive until the lifecycle stops.
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
            fence: Mutex::default(),
            late_writes: AtomicBool::new(false),
            doubtful: Mutex::default(),
            adopting: tokio::sync::Mutex::default(),
        });
        let keeper = Arc::clone(&this);
        life.spawn_forever("leases", async move { keeper.leases.keep_alive(&keeper.client).await });
        let probe = Arc::clone(&this);
        life.spawn_forever("probe of the store", async move { probe.probe().await });
        this
    }

    /// Waits until the store answers, for ever. Missing files are waited for; a file that cannot be parsed is an error.
    pub async fn connected(&self) -> Result<(), config::Error> {
        let mut backoff = Backoff::connect();
        loop {
            if let ConfigSource::File(path) = &self.config.source
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

    /// Everything has been written once: the rate limit of the start ends.
    pub fn initial_write_done(&self) {
        self.limiter.initial_write_done();
    }

    /// The cluster id of the etcd that answered last.
    pub fn cluster_id(&self) -> Option<u64> {
        let id = self.cluster_id.load(Ordering::Relaxed);
        (id != 0).then_some(id)
    }

    /// Reads up to `limit` keys of a prefix, from the first key after `after` on, and whether there are more.
    ///
    /// A read for an operator, who may ask for what this user may not read: its failure says nothing about the store, and
    /// writers keep their connection.
    pub async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: i64) -> Result<(Vec<KeyValue>, bool), Error> {
        let page = async { Ok(self.client().await?.page(prefix, after, limit).await?) };
        let late = || Error::Unavailable(format!("no answer in {} s", DEADLINE.as_secs()));
        tokio::time::timeout(DEADLINE, page)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// The shared connection; connects if there is none.
    pub async fn client(&self) -> Result<EtcdClient, Error> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = self.connect().await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// A new connection.
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

    /// Runs `f` on the shared connection. If it fails, the connection is dropped: the next call reads the TLS files and
    /// connects again.
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
        self.check_cluster_id(&client).await;
        match &done {
            Err(error @ Error::Unavailable(_)) => {
                self.availability.lock().failed(error);
                *self.client.lock().await = None;
                // The address accepted a connection, but does not answer: the next attempt tries other addresses first.
                self.dialer.forget();
            }
            Err(error @ Error::Full(_)) => self.availability.lock().failed(error),
            Ok(_) | Err(Error::Rejected(_)) => self.availability.lock().answered(),
        }
        done
    }

    /// Forgets all leases if another etcd has taken over the address, even if that etcd has leases with the same ids.
    async fn check_cluster_id(&self, client: &EtcdClient) {
        let (now, before) = (client.cluster_id(), &self.cluster_id);
        if now == 0 || now == before.load(Ordering::Relaxed) {
            return;
        }
        // A late answer on an earlier connection does not count.
        let slot = self.client.lock().await;
        let is_current = slot.as_ref().is_some_and(|current| current.is(client));
        if is_current && before.swap(now, Ordering::Relaxed) != now && self.leases.forget_all() {
            tracing::warn!(
                store = self.describe(),
                "another store answers at this address; writing all keys again"
            );
        }
    }

    /// Runs `f` on the shared connection, for no longer than `deadline`.
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

    /// Runs `f` as one request and records its duration and outcome.
    async fn timed<T, F>(&self, request: Request<'_>, f: impl FnOnce(EtcdClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        let done = self.within(request.deadline, f).await;
        let (scope, outcome) = (scope_of(request.key), RequestOutcome::of(&done));
        self.metrics
            .operations(&scope, request.action, begun.elapsed(), outcome, 1);
        done
    }

    /// Sends a request when there has been none for a while, so that an outage is noticed.
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

    async fn read(&self, prefix: &str, ownership: Ownership) -> Result<Vec<StoredKey>, Error> {
        // Counts as no operations: a list at the start or after a loss must not use up the rate of the writes.
        let permit = self.limiter.acquire(Class::Live, 0).await;
        let listed = self
            .timed(Request::new(prefix, "ListPrefix", LIST_DEADLINE), async |client| {
                let kvs = client.list(prefix).await?.kvs;
                let mut found = Vec::with_capacity(kvs.len());
                for kv in kvs {
                    let key = Bytes::from(kv.key);
                    let is_there = match ownership {
                        Ownership::Foreign => true,
                        Ownership::Adopt => self.adopt(&client, &key, kv.lease).await? == Adopted::Key,
                    };
                    if is_there {
                        let value = Bytes::from(kv.value);
                        found.push(StoredKey { key, value });
                    }
                }
                Ok(found)
            })
            .await;
        permit.done(RequestOutcome::of(&listed));
        listed
    }

    /// Renews the lease of a key of an earlier run from now on, so that an unchanged key need not be written.
    async fn adopt(&self, client: &EtcdClient, key: &[u8], lease: i64) -> Result<Adopted, Error> {
        if lease == 0 {
            return Ok(Adopted::Key);
        }
        if !self.leases.holds(lease) && !self.adopt_lease(client, lease).await? {
            return Ok(Adopted::Expired);
        }
        self.leases.attach(key, lease);
        Ok(Adopted::Key)
    }

    /// Renews a lease of an earlier run from now on. Returns whether the lease exists.
    async fn adopt_lease(&self, client: &EtcdClient, lease: i64) -> Result<bool, Error> {
        let _one_after_the_other = self.adopting.lock().await;
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
        Ok(true)
    }
}

/// One request to the store.
struct Request<'a> {
    /// The key, or the prefix of the keys, for metrics.
    key: &'a [u8],
    /// Cilium's name of the operation, for metrics.
    action: &'static str,
    deadline: Duration,
}

impl<'a> Request<'a> {
    fn new(key: &'a str, action: &'static str, deadline: Duration) -> Self {
        let key = key.as_bytes();
        Self { key, action, deadline }
    }
}

/// The outcome of adopting a key.
#[derive(PartialEq, Eq)]
enum Adopted {
    /// The key exists, and its lease is renewed from now on.
    Key,
    /// The lease has expired since the key was read, so the key no longer exists.
    Expired,
}

/// The treatment of the leases of keys that a list finds.
#[derive(Clone, Copy)]
enum Ownership {
    /// The leases stay with their writers.
    Foreign,
    /// The leases are renewed by this process from now on.
    Adopt,
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
            .timed(Request::new(key, "Get", DEADLINE), async |client| {
                Ok(client.get(key).await?)
            })
            .await?;
        Ok(kv.map(|kv| Bytes::from(kv.value)))
    }

    async fn get_and_adopt(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.timed(Request::new(key, "Get", DEADLINE), async |client| {
            let Some(kv) = client.get(key).await? else {
                return Ok(None);
            };
            let adopted = self.adopt(&client, key.as_bytes(), kv.lease).await?;
            Ok((adopted == Adopted::Key).then(|| Bytes::from(kv.value)))
        })
        .await
    }

    fn batch_max(&self) -> usize {
        self.limiter.batch_max()
    }

    async fn write(&self, class: Class, writes: &[Write], _: Cause<'_>) -> Result<Written, Error> {
        // The store tells of the same trace, since it has the same revision.
        self.write_batch(class, writes).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let options = DeleteOptions::new().with_prefix();
        let request = Request::new(prefix, "DeletePrefix", DEADLINE);
        self.timed(request, async |client| {
            let delete = vec![TxnOp::delete(prefix, Some(options))];
            self.commit(&client, delete).await?.map(drop)
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
                    // The key may have changed before the watch began.
                    yield ();
                    while watch.next().await.is_ok() {
                        yield ();
                    }
                }
                tokio::time::sleep(WATCH_RETRY).await;
            }
        };
        stream.boxed()
    }

    fn expired_leases(&self) -> Option<watch::Receiver<u64>> {
        Some(self.leases.expired())
    }

    fn outage(&self) -> Option<Outage> {
        self.availability.lock().outage()
    }

    fn describe(&self) -> String {
        match &self.config.source {
            ConfigSource::File(path) => format!("etcd of {}", path.display()),
            ConfigSource::Address(address) => format!("etcd at {address}"),
        }
    }
}
