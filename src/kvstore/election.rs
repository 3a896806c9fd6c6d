//! One leader among the writers of a store: etcd's mutex recipe, so that Cilium's own takes part.
//!
//! Each candidate has a key below the lock's name, called after its lease and attached to it. The one whose
//! key was created first leads; the others watch the key before theirs (clientv3/concurrency, Mutex).

use super::client::{self, EtcdClient};
use super::etcd::EtcdBackend;
use super::{Backend, Error};
use crate::util::alive::{self, Sign};
use crate::util::backoff::Backoff;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use std::time::Duration;
use tokio::time::Instant;

/// A dead leader is followed after this long (pkg/kvstore, lock lease).
const TTL: Duration = Duration::from_secs(25);
/// The lease is renewed this often.
const RENEW: Duration = Duration::from_secs(8);
/// Whether the one before is alive is looked at this often, where it can be seen.
const LOOK: Duration = Duration::from_secs(1);
/// Giving the lock back takes no longer than this.
const RELEASE: Duration = Duration::from_secs(2);

/// The lock is held, for as long as its lease lives.
pub struct Leadership {
    /// Its own connection: what others write must not hold up its lease.
    client: Option<EtcdClient>,
    lease: i64,
    renewed: Instant,
    /// Shows other candidates here that this one lives.
    _sign: Option<Sign>,
}

impl EtcdBackend {
    /// Waits, for ever, until this process leads under `lock`, a key prefix without its `/`.
    pub async fn lead(&self, lock: &str) -> Leadership {
        let mut backoff = Backoff::connect();
        loop {
            match Box::pin(self.campaign(lock)).await {
                Ok(leadership) => return leadership,
                Err(error) => tracing::warn!(lock, %error, "cannot take part in the election, trying again"),
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
        let sign = alive::show(&key).inspect_err(|error| tracing::debug!(key, %error, "no sign of life"));
        let place = alive::place().filter(|_| sign.is_ok()).unwrap_or_default();
        let mut leadership = Leadership {
            client: Some(client.clone()),
            lease,
            renewed: granted_at,
            _sign: sign.ok(),
        };
        let create = Txn::new()
            .when([Compare::create_revision(&*key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(&*key, &*place, Some(PutOptions::new().with_lease(lease)))]);
        client.raw().txn(create).await.map_err(client::Error::from)?;
        loop {
            let Some(before) = predecessor(&client, lock, &key).await? else {
                return Ok(leadership);
            };
            tracing::info!(lock, leader = before.key, "waiting to lead");
            let mut watch = client.watch_key(&before.key, 0).await?;
            // It may have gone before the watch began.
            while predecessor(&client, lock, &key).await?.as_ref() == Some(&before) {
                tokio::select! {
                    changed = watch.next() => drop(changed?),
                    () = before.death(&place) => {
                        tracing::info!(lock, leader = before.key, "it died here: its lease is revoked");
                        // Somebody else may have been faster.
                        if client.raw().lease_revoke(before.lease).await.is_err() {
                            tokio::time::sleep(LOOK).await;
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
            Ok(Ok(false)) => Err(Error::Rejected("the lease of the lock is gone".to_owned())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable("no answer in time".to_owned())),
        }
    }

    /// Holds the lock; returns when it is lost.
    pub async fn hold(&self, mut leadership: Leadership) {
        loop {
            tokio::time::sleep(RENEW / 2).await;
            // Whoever waits may lead when the lease has run out, whether that is known here or not.
            let until = leadership.renewed + TTL;
            let renewal = tokio::time::timeout_at(until, Box::pin(self.renew(&mut leadership)));
            let renewed = renewal
                .await
                .unwrap_or_else(|_| Err(Error::Unavailable("no answer in time".to_owned())));
            match renewed {
                Ok(()) => {}
                Err(Error::Rejected(_)) => return,
                Err(error) if leadership.renewed.elapsed() >= TTL => {
                    tracing::error!(%error, "the lease of the lock could not be renewed");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the lease of the lock was not renewed, trying again"),
            }
        }
    }

    /// Gives the lock back, so that another need not wait for the lease to run out.
    pub async fn release(&self, lease: i64) {
        let released = async {
            let client = self.client().await.ok()?;
            client.raw().lease_revoke(lease).await.ok()
        };
        if !matches!(tokio::time::timeout(RELEASE, Box::pin(released)).await, Ok(Some(_))) {
            tracing::warn!(
                store = self.describe(),
                "the lock could not be given back: it runs out by itself"
            );
        }
    }
}

impl Leadership {
    /// The lease that the lock hangs on.
    pub fn lease(&self) -> i64 {
        self.lease
    }
}

/// The candidate before another.
#[derive(Debug, PartialEq, Eq)]
struct Before {
    key: String,
    lease: i64,
    /// Where it runs, if it says so.
    place: String,
}

impl Before {
    /// Waits until it has died at this place, where that can be seen.
    async fn death(&self, place: &str) {
        while place.is_empty() || self.place != place || !alive::is_gone(&self.key) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The candidate before ours; none: ours leads.
async fn predecessor(client: &EtcdClient, lock: &str, key: &str) -> Result<Option<Before>, Error> {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let found = client.raw().get(format!("{lock}/"), Some(options)).await;
    let found = found.map_err(client::Error::from)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match found.kvs().iter().position(|kv| kv.key() == key.as_bytes()) {
        None => Err(Error::Unavailable("the lease of the lock ran out".to_owned())),
        Some(0) => Ok(None),
        Some(at) => {
            let kv = &found.kvs()[at - 1];
            Ok(Some(Before {
                key: text(kv.key()),
                lease: kv.lease(),
                place: text(kv.value()),
            }))
        }
    }
}
