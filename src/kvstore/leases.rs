//! Which key is attached to which lease of an etcd, and keeping those leases alive.

use super::client::{Error, EtcdClient};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Keys attached to one lease at most, as in Cilium: an expiry deletes no more than this at once.
pub const KEYS_PER_LEASE: usize = 1000;
/// A lease that could not be renewed is tried again this much later.
const RETRY: Duration = Duration::from_secs(1);
/// A renewal that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// The leases of one writer.
pub(super) struct Leases {
    /// Of those granted from now on.
    pub(super) ttl: Duration,
    book: Mutex<Book>,
    losses: AtomicU64,
    /// Told when there is a lease more.
    changed: Notify,
}

#[derive(Default)]
struct Book {
    leases: HashMap<i64, Lease>,
    by_key: HashMap<Bytes, i64>,
    /// Where new keys go, while it has room.
    current: Option<i64>,
}

struct Lease {
    keys: usize,
    ttl: Duration,
    renewed: Instant,
    /// When to renew it.
    due: Instant,
}

impl Lease {
    fn new(ttl: Duration) -> Self {
        let now = Instant::now();
        Self {
            keys: 0,
            ttl,
            renewed: now,
            // A found one may have little time left.
            due: now,
        }
    }
}

impl Leases {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            book: Mutex::default(),
            losses: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    /// How many leases are held.
    pub(super) fn count(&self) -> usize {
        self.book.lock().leases.len()
    }

    /// How many leases have been lost with keys attached.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// The lease for a key: the one it has, or one with room.
    pub(super) fn of(&self, key: &Bytes) -> Option<i64> {
        let mut book = self.book.lock();
        if let Some(lease) = book.by_key.get(key) {
            return Some(*lease);
        }
        let room = |lease: &Lease| lease.keys < KEYS_PER_LEASE;
        if let Some(current) = book.current.filter(|id| book.leases.get(id).is_some_and(room)) {
            return Some(current);
        }
        let found = book.leases.iter().find(|(_, lease)| room(lease)).map(|(id, _)| *id);
        book.current = found;
        found
    }

    /// Holds a lease from now on, just granted or found on a key.
    pub(super) fn hold(&self, id: i64, ttl: Duration) {
        let fresh = || Lease::new(ttl);
        self.book.lock().leases.entry(id).or_insert_with(fresh);
        self.changed.notify_one();
    }

    /// Whether a lease is held.
    pub(super) fn holds(&self, id: i64) -> bool {
        self.book.lock().leases.contains_key(&id)
    }

    /// Notes that a key is attached to a lease.
    pub(super) fn attach(&self, key: &Bytes, id: i64) {
        let mut book = self.book.lock();
        if book.by_key.get(key) == Some(&id) {
            return;
        }
        book.detach(key);
        // It may have been given up as empty meanwhile.
        let ttl = self.ttl;
        book.leases.entry(id).or_insert_with(|| Lease::new(ttl)).keys += 1;
        book.by_key.insert(key.clone(), id);
        self.changed.notify_one();
    }

    pub(super) fn detach(&self, key: &[u8]) {
        self.book.lock().detach(key);
    }

    /// Notes that all keys under a prefix are gone.
    pub(super) fn detach_prefix(&self, prefix: &[u8]) {
        let mut book = self.book.lock();
        let Book { leases, by_key, .. } = &mut *book;
        by_key.retain(|key, id| {
            let gone = key.starts_with(prefix);
            if let Some(lease) = leases.get_mut(id).filter(|_| gone) {
                lease.keys -= 1;
            }
            !gone
        });
    }

    /// Forgets all leases, as the store does not know them; says whether there were any. That is a loss.
    pub(super) fn lose_all(&self) -> bool {
        let mut book = self.book.lock();
        let any = !book.leases.is_empty();
        *book = Book::default();
        self.losses.fetch_add(u64::from(any), Ordering::Relaxed);
        any
    }

    /// Forgets a lease that is gone, with its keys; a loss if there were any.
    pub(super) fn lose(&self, id: i64) {
        let mut book = self.book.lock();
        if book.leases.remove(&id).is_some_and(|lease| lease.keys > 0) {
            book.by_key.retain(|_, of| *of != id);
            tracing::warn!(lease = %format_args!("{id:x}"), "a lease is gone, and its keys with it");
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Renews what is due, for ever.
    pub(super) async fn keep_alive(&self, client: &tokio::sync::Mutex<Option<EtcdClient>>) {
        loop {
            let next = self.book.lock().leases.values().map(|lease| lease.due).min();
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.changed.notified() => continue,
            }
            let now = Instant::now();
            let due: Vec<i64> = {
                let mut book = self.book.lock();
                // One that nothing hangs on any more runs out by itself.
                let current = book.current;
                let empty = |id: &i64, lease: &Lease| lease.keys == 0 && lease.due <= now && current != Some(*id);
                book.leases
                    .retain(|id, lease| !empty(id, lease) || lease.renewed.elapsed() < RETRY);
                let due = book.leases.iter().filter(|(_, lease)| lease.due <= now);
                due.map(|(id, _)| *id).collect()
            };
            let client = client.lock().await.clone();
            for id in due {
                self.renew(client.as_ref(), id).await;
            }
        }
    }

    async fn renew(&self, client: Option<&EtcdClient>, id: i64) {
        let asked = Instant::now();
        let renewed = match client {
            None => false,
            Some(client) => match tokio::time::timeout(DEADLINE, Box::pin(client.renew(id))).await {
                Ok(Ok(true)) => true,
                Ok(Ok(false)) => return self.lose(id),
                Ok(Err(_)) | Err(_) => false,
            },
        };
        let mut book = self.book.lock();
        let Some(lease) = book.leases.get_mut(&id) else { return };
        if renewed {
            (lease.renewed, lease.due) = (asked, asked + lease.ttl / 3);
        } else if lease.renewed.elapsed() < lease.ttl {
            lease.due = Instant::now() + RETRY;
        } else {
            drop(book);
            self.lose(id);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Book {
    fn detach(&mut self, key: &[u8]) {
        if let Some(lease) = self.by_key.remove(key).and_then(|id| self.leases.get_mut(&id)) {
            lease.keys -= 1;
        }
    }
}

impl EtcdClient {
    /// Renews a lease once; false: the store does not know it.
    pub(super) async fn renew(&self, id: i64) -> Result<bool, Error> {
        // One answer is waited for, then the stream is dropped: many leases need no stream each.
        match self.raw().lease_keep_alive(id).await {
            Ok(_) => Ok(true),
            Err(etcd_client::Error::LeaseKeepAliveError(text)) if text.contains("not found") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_takes_its_keys_along() {
        let leases = Leases::new(Duration::from_secs(60));
        let key = |n: usize| Bytes::from(format!("k{n}"));
        assert_eq!(leases.of(&key(0)), None);
        leases.hold(1, leases.ttl);
        for n in 0..KEYS_PER_LEASE {
            assert_eq!(leases.of(&key(n)), Some(1));
            leases.attach(&key(n), 1);
        }
        assert_eq!(leases.of(&key(5000)), None, "it is full");
        assert_eq!(leases.of(&key(5)), Some(1), "a key keeps its lease");
        leases.detach(b"k7");
        assert_eq!(leases.of(&key(5000)), Some(1), "there is room again");
        leases.hold(2, leases.ttl);
        leases.attach(&key(5), 2);
        leases.lose(1);
        assert_eq!((leases.losses(), leases.count()), (1, 1));
        assert_eq!((leases.of(&key(5)), leases.of(&key(6))), (Some(2), Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_renewed_is_lost_when_its_time_is_up() {
        let leases = Leases::new(Duration::from_secs(60));
        leases.hold(1, leases.ttl);
        leases.attach(&"k".into(), 1);
        let begun = Instant::now();
        let lost = async {
            while leases.losses() == 0 {
                tokio::time::sleep(RETRY).await;
            }
        };
        let nobody = tokio::sync::Mutex::default();
        tokio::select! { () = leases.keep_alive(&nobody) => {}, () = lost => {} }
        let took = begun.elapsed();
        assert!(took >= leases.ttl && took < leases.ttl * 2, "{took:?}");
    }
}
