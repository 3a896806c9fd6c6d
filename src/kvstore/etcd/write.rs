//! Writes: transactions of limited size, in which every put has a lease.

use super::EtcdBackend;
use crate::kvstore::client::{self, EtcdClient};
use crate::kvstore::labels::{RequestOutcome, scope_of};
use crate::kvstore::limiter::Class;
use crate::kvstore::{Error, Write, Written};
use bytes::Bytes;
use etcd_client::{PutOptions, Txn, TxnOp};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes in one transaction: below etcd's default limit of 1.5 MiB.
const TXN_BYTES: usize = 1 << 20;
/// A write that takes longer is retried. Longer than etcd's own timeout, because retrying a write that succeeded would
/// send every watcher a redundant event.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

impl EtcdBackend {
    /// Applies `writes` in order, in one or more transactions.
    pub(super) async fn write_batch(&self, class: Class, writes: &[Write]) -> Result<Written, Error> {
        let mut written = Written::default();
        for part in parts(writes, self.limiter.batch_max()) {
            written = self.write_part(class, part).await?;
        }
        Ok(written)
    }

    /// The lease for a key: its present lease, a lease with room, or a new lease.
    async fn lease_for(&self, client: &EtcdClient, key: &Bytes) -> Result<i64, Error> {
        if let Some(lease) = self.leases.of(key) {
            return Ok(lease);
        }
        let begun = Instant::now();
        let ttl = i64::try_from(self.leases.ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = client.raw().lease_grant(ttl, None).await;
        self.metrics
            .operations("lease", "AcquireLease", begun.elapsed(), RequestOutcome::of(&grant), 1);
        let lease = grant.map_err(client::Error::from)?.id();
        self.leases.hold(lease, self.leases.ttl);
        Ok(lease)
    }

    async fn write_txn(&self, client: &EtcdClient, writes: &[Write]) -> Result<Written, Error> {
        let mut ops = Vec::with_capacity(writes.len());
        let mut attached = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let lease = self.lease_for(client, key).await?;
                    // Attached before the write, so that the keys of one batch do not overfill a lease.
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
            attached.iter().for_each(|lease| self.leases.expire(*lease));
        }
        let done = done.map_err(client::Error::from)?;
        client.seen(done.header())?;
        for write in writes {
            if let Write::Delete(key) = write {
                self.leases.detach(key);
            }
        }
        Ok(done.header().map_or_else(Written::default, |header| Written {
            store_id: header.cluster_id(),
            revision: header.revision(),
        }))
    }

    async fn write_part(&self, class: Class, part: &[Write]) -> Result<Written, Error> {
        let permit = self.limiter.acquire(class, part.len()).await;
        let begun = Instant::now();
        let write = async |client: EtcdClient| self.write_txn(&client, part).await;
        let done = self.within(WRITE_DEADLINE, write).await;
        permit.done(RequestOutcome::of(&done));
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
                .operations(&scope, action, begun.elapsed(), RequestOutcome::of(&done), count);
        }
        done
    }
}

/// Cuts a batch into parts that fit into one transaction: at most `ops` operations and [`TXN_BYTES`].
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
