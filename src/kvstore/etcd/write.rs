//! Writes: transactions of limited size, in which every put has a lease.

use super::EtcdBackend;
use crate::kvstore::client::{self, EtcdClient};
use crate::kvstore::labels::{RequestOutcome, scope_of};
use crate::kvstore::limiter::Class;
use crate::kvstore::{Error, Write, Written};
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes in one transaction: below etcd's default limit of 1.5 MiB.
const TXN_BYTES: usize = 1 << 20;
/// A write that takes longer is retried. Longer than etcd's own timeout, because retrying a write that succeeded would
/// send every watcher a redundant event.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// The key of a lock, which writes compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub key: String,
    /// The revision in which the key was changed last.
    pub revision: i64,
}

impl Fence {
    fn is_unchanged(&self) -> Compare {
        Compare::mod_revision(&*self.key, CompareOp::Equal, self.revision)
    }
}

fn lost() -> Error {
    Error::Unavailable("this process does not hold its leader lock any more, and writes nothing".to_owned())
}

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

    /// Executes operations as one transaction, which does nothing unless this process holds its lock: a transaction that the
    /// network has delayed must not undo what the next leader wrote, nor what this process wrote later. The outer error is
    /// that of the request.
    pub(super) async fn commit(
        &self,
        client: &EtcdClient,
        ops: Vec<TxnOp>,
    ) -> Result<Result<Written, Error>, client::Error> {
        loop {
            let fence = self.fence.lock().clone();
            let held: Vec<_> = fence.iter().map(Fence::is_unchanged).collect();
            let done = client.raw().txn(Txn::new().when(held).and_then(ops.clone())).await?;
            client.seen(done.header())?;
            if done.succeeded() {
                return Ok(Ok(written(done.header())));
            }
            // Another write may have moved the fence meanwhile.
            if *self.fence.lock() == fence {
                return Ok(Err(lost()));
            }
        }
    }

    /// Moves the fence if writes may still be on their way whose outcome nobody waits for: they do nothing from now on.
    async fn end_late_writes(&self, client: &EtcdClient) -> Result<(), Error> {
        let Some(fence) = self.fence.lock().clone() else {
            return Ok(());
        };
        if !self.late_writes.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let unchanged = PutOptions::new().with_ignore_value().with_ignore_lease();
        let touch = Txn::new()
            .when([Compare::create_revision(&*fence.key, CompareOp::Greater, 0)])
            .and_then([TxnOp::put(&*fence.key, "", Some(unchanged))]);
        let moved = async {
            let done = client.raw().txn(touch).await?;
            client.seen(done.header())?;
            Ok::<_, client::Error>(done)
        };
        let done = moved
            .await
            .inspect_err(|_| self.late_writes.store(true, Ordering::Relaxed))?;
        if !done.succeeded() {
            self.late_writes.store(true, Ordering::Relaxed);
            return Err(lost());
        }
        let revision = done.header().map_or(0, |header| header.revision());
        if let Some(fence) = &mut *self.fence.lock() {
            // Of two that move it, the later one counts.
            fence.revision = fence.revision.max(revision);
        }
        Ok(())
    }

    /// The keys of `writes` that have their value already: an earlier attempt was executed, and its answer was lost. To write them
    /// again would send every watcher a redundant event.
    async fn executed(&self, client: &EtcdClient, writes: &[Write]) -> Result<HashSet<Bytes>, Error> {
        let puts: Vec<_> = {
            let doubtful = self.doubtful.lock();
            let puts = writes.iter().filter_map(|write| match write {
                Write::Put(key, value) if doubtful.contains(key) => Some((key, value)),
                Write::Put(..) | Write::Delete(_) => None,
            });
            // Another write of the same key in this batch has to be executed.
            puts.filter(|(key, _)| writes.iter().filter(|write| key_of(write) == *key).count() == 1)
                .collect()
        };
        if puts.is_empty() {
            return Ok(HashSet::new());
        }
        let gets: Vec<_> = puts.iter().map(|(key, _)| TxnOp::get(&key[..], None)).collect();
        let found = client.raw().txn(Txn::new().and_then(gets)).await;
        let found = found.map_err(client::Error::from)?;
        client.seen(found.header())?;
        let has = |(put, found): (&(&Bytes, &Bytes), TxnOpResponse)| {
            let (key, value) = *put;
            let TxnOpResponse::Get(found) = found else { return None };
            let kv = found.kvs().first()?;
            (kv.value() == &value[..] && self.leases.of(key) == Some(kv.lease())).then(|| key.clone())
        };
        Ok(puts.iter().zip(found.op_responses()).filter_map(has).collect())
    }

    /// Notes whether it is known which of `writes` were executed.
    fn note_doubt(&self, writes: &[Write], done: &Result<Written, Error>) {
        let mut doubtful = self.doubtful.lock();
        match done {
            Err(Error::Unavailable(_)) => {
                doubtful.extend(writes.iter().map(|write| key_of(write).clone()));
                self.late_writes.store(true, Ordering::Relaxed);
            }
            // Usually nothing is in doubt.
            _ if doubtful.is_empty() => {}
            _ => doubtful.retain(|key| !writes.iter().any(|write| key_of(write) == key)),
        }
    }

    async fn write_txn(&self, client: &EtcdClient, writes: &[Write]) -> Result<Written, Error> {
        self.end_late_writes(client).await?;
        let executed = self.executed(client, writes).await?;
        let mut ops = Vec::with_capacity(writes.len());
        let mut attached = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Put(key, _) if executed.contains(key) => {}
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
        if ops.is_empty() {
            return Ok(Written::default());
        }
        let done = self.commit(client, ops).await;
        if let Err(client::Error::Etcd(etcd_client::Error::GRpcStatus(status))) = &done
            && status.message().contains("requested lease not found")
        {
            attached.sort_unstable();
            attached.dedup();
            attached.iter().for_each(|lease| self.leases.expire(*lease));
        }
        let written = done??;
        for write in writes {
            if let Write::Delete(key) = write {
                self.leases.detach(key);
            }
        }
        Ok(written)
    }

    async fn write_part(&self, class: Class, part: &[Write]) -> Result<Written, Error> {
        let permit = self.limiter.acquire(class, part.len()).await;
        let begun = Instant::now();
        let write = async |client: EtcdClient| self.write_txn(&client, part).await;
        let done = self.within(WRITE_DEADLINE, write).await;
        permit.done(RequestOutcome::of(&done));
        self.note_doubt(part, &done);
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

fn key_of(write: &Write) -> &Bytes {
    match write {
        Write::Put(key, _) | Write::Delete(key) => key,
    }
}

/// Where a transaction was executed.
fn written(header: Option<&ResponseHeader>) -> Written {
    header.map_or_else(Written::default, |header| Written {
        store_id: header.cluster_id(),
        revision: header.revision(),
    })
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
