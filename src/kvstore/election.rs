//! The leader lock: one leader among the instances that write to a store.
//!
//! The lock is etcd's mutex recipe (clientv3/concurrency, `Mutex`), which Cilium uses too, so instances of Cilium and of
//! Isthmus exclude each other. Each candidate has a key `<lock>/<lease id>`, attached to its lease. The candidate whose
//! key was created first holds the lock; each other candidate watches the key created before its own.

use super::client::{self, EtcdClient};
use super::etcd::{EtcdBackend, Fence};
use super::{Backend, Error};
use crate::util::alive::{self, BoundName};
use crate::util::backoff::Backoff;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use std::time::Duration;
use tokio::time::Instant;

/// The TTL of a candidate's lease: a dead leader is replaced after this time (Cilium: pkg/kvstore, lock lease).
const TTL: Duration = Duration::from_secs(25);
/// How often a candidate renews its lease.
const RENEW: Duration = Duration::from_secs(8);
/// How often a candidate checks that the process of the candidate before it is alive, if both run in the same pod.
const ALIVE_CHECK: Duration = Duration::from_secs(1);
/// How long the release of the lock may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The leader lock, held for as long as its lease exists.
pub struct Leadership {
    /// A connection of its own, so that no write delays the renewal of the lease.
    client: Option<EtcdClient>,
    lease: i64,
    /// The key of this candidate.
    fence: Fence,
    renewed: Instant,
    /// Shows other candidates in the same pod that this process is alive.
    _sign: Option<BoundName>,
}

impl EtcdBackend {
    /// Waits, for ever, until this process holds `lock`, a key prefix without the trailing `/`. From then on nothing is written
    /// without the lock.
    pub async fn lead(&self, lock: &str) -> Leadership {
        let mut backoff = Backoff::connect();
        loop {
            match Box::pin(self.campaign(lock)).await {
                Ok(leadership) => {
                    *self.fence.lock() = Some(leadership.fence.clone());
                    return leadership;
                }
                Err(error) => {
                    tracing::warn!(lock, store = self.describe(), %error, "cannot take part in the election, trying again")
                }
            }
            backoff.wait().await;
        }
    }

    async fn campaign(&self, lock: &str) -> Result<Leadership, Error> {
        let client = self.connect().await?;
        let granted_at = Instant::now();
        let grant = client.raw().lease_grant(TTL.as_secs() as i64, None).await;
        let lease = grant.map_err(client::Error::from)?.id();
        let key = format!("{lock}/{lease:x}");
        let sign = alive::bind(&key).inspect_err(
            |error| tracing::debug!(key, %error, "cannot show other candidates that this process is alive"),
        );
        let place = alive::namespace().filter(|_| sign.is_ok()).unwrap_or_default();
        let mut leadership = Leadership {
            client: Some(client.clone()),
            lease,
            fence: Fence {
                key: key.clone(),
                revision: 0,
            },
            renewed: granted_at,
            _sign: sign.ok(),
        };
        let create = Txn::new()
            .when([Compare::create_revision(&*key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(&*key, &*place, Some(PutOptions::new().with_lease(lease)))]);
        let created = client.raw().txn(create).await.map_err(client::Error::from)?;
        leadership.fence.revision = created.header().map_or(0, |header| header.revision());
        loop {
            let Some(before) = predecessor(&client, lock, &key).await? else {
                return Ok(leadership);
            };
            tracing::info!(lock, leader = before.key, "waiting for the leader lock");
            let mut watch = client.watch_key(&before.key, 0).await?;
            // The key may have been deleted before the watch began.
            while predecessor(&client, lock, &key).await?.as_ref() == Some(&before) {
                tokio::select! {
                    changed = watch.next() => drop(changed?),
                    () = before.death(&place) => {
                        tracing::info!(lock, leader = before.key, "the leader process is dead: revoking its lease");
                        // Fails if another candidate was faster; the watch then reports the deletion.
                        if client.raw().lease_revoke(before.lease).await.is_err() {
                            tokio::time::sleep(ALIVE_CHECK).await;
                        }
                    }
                    () = tokio::time::sleep(RENEW) => Box::pin(self.renew(&mut leadership)).await?,
                }
            }
        }
    }

    async fn renew(&self, leadership: &mut Leadership) -> Result<(), Error> {
        let asked = Instant::now();
        let client = match leadership.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let renewal = Box::pin(client.renew(leadership.lease));
        match tokio::time::timeout(RENEW, renewal).await {
            Ok(Ok(true)) => {
                (leadership.renewed, leadership.client) = (asked, Some(client));
                Ok(())
            }
            Ok(Ok(false)) => Err(Error::Rejected("the lease of the lock no longer exists".to_owned())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }

    /// Keeps the lock's lease alive; returns when the lock is lost.
    pub async fn hold(&self, mut leadership: Leadership) {
        loop {
            tokio::time::sleep(RENEW / 2).await;
            // From this moment another candidate can hold the lock, whether or not this process has noticed.
            let until = leadership.renewed + TTL;
            let renewal = tokio::time::timeout_at(until, Box::pin(self.renew(&mut leadership)));
            let renewed = renewal
                .await
                .unwrap_or_else(|_| Err(Error::Unavailable("no answer in time".to_owned())));
            match renewed {
                Ok(()) => {}
                Err(Error::Rejected(_)) => return,
                Err(error) if leadership.renewed.elapsed() >= TTL => {
                    tracing::error!(store = self.describe(), %error, "lost the leader lock: its lease could not be renewed");
                    return;
                }
                Err(error) => {
                    tracing::warn!(store = self.describe(), %error, "cannot renew the lease of the leader lock; trying again")
                }
            }
        }
    }

    /// Revokes the lock's lease, so that the next candidate does not have to wait until it expires.
    pub async fn release(&self, lease: i64) {
        let released = async {
            let client = self.client().await.ok()?;
            client.raw().lease_revoke(lease).await.ok()
        };
        if !matches!(
            tokio::time::timeout(RELEASE_TIMEOUT, Box::pin(released)).await,
            Ok(Some(_))
        ) {
            tracing::warn!(
                store = self.describe(),
                "the leader lock could not be released: it expires with its lease"
            );
        }
    }
}

impl Leadership {
    /// The lease that the lock's key is attached to.
    pub fn lease(&self) -> i64 {
        self.lease
    }
}

/// The candidate whose key was created before this process's key.
#[derive(Debug, PartialEq, Eq)]
struct Predecessor {
    key: String,
    lease: i64,
    /// The boot and network namespace of the candidate's process (see [`alive::namespace`]); empty if unknown.
    place: String,
}

impl Predecessor {
    /// Waits until the candidate's process is dead. Never returns if that process does not run at `place`, the place of
    /// this process.
    async fn death(&self, place: &str) {
        while place.is_empty() || self.place != place || !alive::is_gone(&self.key) {
            tokio::time::sleep(ALIVE_CHECK).await;
        }
    }
}

/// The candidate before the one with `key`; `None` if the candidate with `key` holds the lock.
async fn predecessor(client: &EtcdClient, lock: &str, key: &str) -> Result<Option<Predecessor>, Error> {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let found = client.raw().get(format!("{lock}/"), Some(options)).await;
    let found = found.map_err(client::Error::from)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match found.kvs().iter().position(|kv| kv.key() == key.as_bytes()) {
        None => Err(Error::Unavailable("the lease of the lock has expired".to_owned())),
        Some(0) => Ok(None),
        Some(at) => {
            let kv = &found.kvs()[at - 1];
            Ok(Some(Predecessor {
                key: text(kv.key()),
                lease: kv.lease(),
                place: text(kv.value()),
            }))
        }
    }
}
