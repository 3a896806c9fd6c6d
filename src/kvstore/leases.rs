//! The leases of one writer of an etcd: which key is attached to which lease, and the renewal of all leases.

mod book;

use super::client::{Error, EtcdClient};
use book::Book;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Largest number of keys attached to one lease, as in Cilium, so that one expiry deletes no more keys than this.
pub const KEYS_PER_LEASE: usize = 1000;
/// The wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Limit for a renewal.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Leases {
    /// The time to live of new leases.
    pub(super) ttl: Duration,
    state: Mutex<State>,
    /// How many times leases with keys have expired.
    expired: watch::Sender<u64>,
    /// Notified when a lease has been added.
    changed: Notify,
}

#[derive(Default)]
struct State {
    leases: HashMap<i64, Lease>,
    book: Book,
    /// The lease for new keys, while it has room.
    current: Option<i64>,
}

struct Lease {
    keys: usize,
    ttl: Duration,
    renewed: Instant,
    /// When the next renewal is due.
    due: Instant,
}

impl Lease {
    fn new(ttl: Duration) -> Self {
        let now = Instant::now();
        Self {
            keys: 0,
            ttl,
            renewed: now,
            // An adopted lease may have little time left.
            due: now,
        }
    }
}

impl Leases {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            state: Mutex::default(),
            expired: watch::Sender::new(0),
            changed: Notify::new(),
        }
    }

    /// The number of leases that are kept alive.
    pub(super) fn count(&self) -> usize {
        self.state.lock().leases.len()
    }

    /// Counts how many times leases have expired while keys were attached to them.
    pub(super) fn expired(&self) -> watch::Receiver<u64> {
        self.expired.subscribe()
    }

    /// The lease for a key: its present lease, or one with room.
    pub(super) fn of(&self, key: &[u8]) -> Option<i64> {
        let mut state = self.state.lock();
        if let Some(lease) = state.book.get(key) {
            return Some(lease);
        }
        let room = |lease: &Lease| lease.keys < KEYS_PER_LEASE;
        if let Some(current) = state.current.filter(|id| state.leases.get(id).is_some_and(room)) {
            return Some(current);
        }
        let found = state.leases.iter().find(|(_, lease)| room(lease)).map(|(id, _)| *id);
        state.current = found;
        found
    }

    /// Keeps a lease alive from now on: a new one, or one found on a key.
    pub(super) fn hold(&self, id: i64, ttl: Duration) {
        let fresh = || Lease::new(ttl);
        self.state.lock().leases.entry(id).or_insert_with(fresh);
        self.changed.notify_one();
    }

    pub(super) fn holds(&self, id: i64) -> bool {
        self.state.lock().leases.contains_key(&id)
    }

    /// Notes that a key is attached to a lease.
    pub(super) fn attach(&self, key: &[u8], id: i64) {
        let mut state = self.state.lock();
        match state.book.insert(key, id) {
            Some(before) if before == id => return,
            Some(before) => state.leave(before),
            None => {}
        }
        // The lease may have been forgotten as empty in the meantime.
        let ttl = self.ttl;
        let lease = state.leases.entry(id).or_insert_with(|| Lease::new(ttl));
        lease.keys += 1;
        let is_first = lease.keys == 1;
        drop(state);
        // An adoption attaches hundreds of thousands of keys to a few hundred leases.
        if is_first {
            self.changed.notify_one();
        }
    }

    pub(super) fn detach(&self, key: &[u8]) {
        self.state.lock().detach(key);
    }

    /// Notes that all keys under a prefix, which ends with a slash, have been deleted.
    pub(super) fn detach_prefix(&self, prefix: &[u8]) {
        let mut state = self.state.lock();
        let State { leases, book, .. } = &mut *state;
        book.remove_prefix(prefix, |id| {
            if let Some(lease) = leases.get_mut(&id) {
                lease.keys -= 1;
            }
        });
    }

    /// Forgets all leases, because the store does not know them. Returns whether there were any; if so, that counts as
    /// an expiry.
    pub(super) fn forget_all(&self) -> bool {
        let mut state = self.state.lock();
        let any = !state.leases.is_empty();
        *state = State::default();
        self.expired.send_modify(|expired| *expired += u64::from(any));
        any
    }

    /// Forgets a lease that no longer exists, and its keys. If it had keys, that counts as an expiry.
    pub(super) fn expire(&self, id: i64) {
        let mut state = self.state.lock();
        if state.leases.remove(&id).is_some_and(|lease| lease.keys > 0) {
            state.book.remove_lease(id);
            tracing::warn!(lease = %format_args!("{id:x}"), "a lease has expired, and its keys with it");
            self.expired.send_modify(|expired| *expired += 1);
        }
    }

    /// Renews each lease when it is due, for ever.
    pub(super) async fn keep_alive(&self, client: &tokio::sync::Mutex<Option<EtcdClient>>) {
        loop {
            let next = self.state.lock().leases.values().map(|lease| lease.due).min();
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.changed.notified() => continue,
            }
            let now = Instant::now();
            let due: Vec<i64> = {
                let mut state = self.state.lock();
                // A lease without keys is not renewed: it expires.
                let current = state.current;
                let empty = |id: &i64, lease: &Lease| lease.keys == 0 && lease.due <= now && current != Some(*id);
                state
                    .leases
                    .retain(|id, lease| !empty(id, lease) || lease.renewed.elapsed() < RETRY);
                let due = state.leases.iter().filter(|(_, lease)| lease.due <= now);
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
                Ok(Ok(false)) => return self.expire(id),
                Ok(Err(_)) | Err(_) => false,
            },
        };
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&id) else { return };
        if renewed {
            (lease.renewed, lease.due) = (asked, asked + lease.ttl / 3);
        } else if lease.renewed.elapsed() < lease.ttl {
            lease.due = Instant::now() + RETRY;
        } else {
            drop(state);
            self.expire(id);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl State {
    fn detach(&mut self, key: &[u8]) {
        if let Some(id) = self.book.remove(key) {
            self.leave(id);
        }
    }

    /// A key is not attached to this lease any more.
    fn leave(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys -= 1;
        }
    }
}

impl EtcdClient {
    /// Renews a lease once. Returns whether the store knows the lease.
    pub(super) async fn renew(&self, id: i64) -> Result<bool, Error> {
        // The stream is dropped after one answer, so that many leases do not need a stream each.
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
    async fn an_expired_lease_takes_its_keys_along() {
        let leases = Leases::new(Duration::from_secs(60));
        let key = |n: usize| format!("k{n}").into_bytes();
        assert_eq!(leases.of(&key(0)), None);
        leases.hold(1, leases.ttl);
        for n in 0..KEYS_PER_LEASE {
            assert_eq!(leases.of(&key(n)), Some(1));
            leases.attach(&key(n), 1);
        }
        assert_eq!(leases.of(&key(5000)), None, "the lease is full");
        assert_eq!(leases.of(&key(5)), Some(1), "a key keeps its lease");
        leases.detach(b"k7");
        assert_eq!(leases.of(&key(5000)), Some(1), "the lease has room again");
        leases.hold(2, leases.ttl);
        leases.attach(&key(5), 2);
        leases.attach(b"p/k", 2);
        leases.detach_prefix(b"p/");
        assert_eq!(leases.state.lock().leases[&2].keys, 1);
        leases.expire(1);
        assert_eq!((*leases.expired().borrow(), leases.count()), (1, 1));
        assert_eq!((leases.of(&key(5)), leases.of(&key(6))), (Some(2), Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_cannot_be_renewed_expires_after_its_ttl() {
        let leases = Leases::new(Duration::from_secs(60));
        leases.hold(1, leases.ttl);
        leases.attach(b"k", 1);
        let begun = Instant::now();
        let mut expired = leases.expired();
        let no_client = tokio::sync::Mutex::default();
        tokio::select! { () = leases.keep_alive(&no_client) => {}, changed = expired.changed() => changed.unwrap() }
        let took = begun.elapsed();
        assert!(took >= leases.ttl && took < leases.ttl * 2, "{took:?}");
    }
}
