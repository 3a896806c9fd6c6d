//! One leader among the writers of a store: etcd's mutex recipe, so that Cilium's own takes part.
//!
//! Each candidate has a key below the lock's name, called after its lease and attached to it. The one whose
//! key was created first leads; the others watch the key before theirs (clientv3/concurrency, Mutex).

use super::client::{self, EtcdClient};
use super::etcd::EtcdBackend;
use super::{Backend, Error};
use crate::util::backoff::Backoff;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};
use std::time::Duration;
use tokio::time::Instant;

/// A dead leader is followed after this long (pkg/kvstore, lock lease).
const TTL: Duration = Duration::from_secs(25);
/// The lease is renewed this often.
const RENEW: Duration = Duration::from_secs(8);
/// Giving the lock back takes no longer than this.
const RELEASE: Duration = Duration::from_secs(2);

/// The lock is held, for as long as its lease lives.
pub struct Leadership {
    /// Its own connection: what others write must not hold up its lease.
    client: Option<EtcdClient>,
    lease: i64,
    renewed: Instant,
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
        let mut leadership = Leadership {
            client: Some(client.clone()),
            lease,
            renewed: granted_at,
        };
        let key = format!("{lock}/{lease:x}");
        let create = Txn::new()
            .when([Compare::create_revision(&*key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(&*key, "", Some(PutOptions::new().with_lease(lease)))]);
        client.raw().txn(create).await.map_err(client::Error::from)?;
        loop {
            let Some(before) = predecessor(&client, lock, &key).await? else {
                return Ok(leadership);
            };
            tracing::info!(lock, leader = before, "waiting to lead");
            let mut watch = client.watch_key(&before, 0).await?;
            // It may have gone before the watch began.
            while predecessor(&client, lock, &key).await?.as_ref() == Some(&before) {
                tokio::select! {
                    changed = watch.next() => drop(changed?),
                    () = tokio::time::sleep(RENEW) => self.renew(&mut leadership).await?,
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
            match Box::pin(self.renew(&mut leadership)).await {
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

/// The key that leads before ours; none: ours leads.
async fn predecessor(client: &EtcdClient, lock: &str, key: &str) -> Result<Option<String>, Error> {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Ascend);
    let found = client.raw().get(format!("{lock}/"), Some(options)).await;
    let found = found.map_err(client::Error::from)?;
    let keys: Vec<_> = found.kvs().iter().map(|kv| String::from_utf8_lossy(kv.key())).collect();
    match keys.iter().position(|k| k == key) {
        None => Err(Error::Unavailable("the lease of the lock ran out".to_owned())),
        Some(0) => Ok(None),
        Some(at) => Ok(Some(keys[at - 1].clone().into_owned())),
    }
}
