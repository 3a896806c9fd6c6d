//! The loop of a writer: lists the owned prefixes, then writes batch by batch, and retries what fails.

use super::{SyncStore, is_delete};
use crate::kvstore::{Class, Error, Write, Written};
use crate::util::backoff::Backoff;
use crate::util::trace::Cause;
use tokio::sync::watch;

/// With more queued keys than this, writes yield to the changes of other writers.
const BACKLOG: usize = 128;

/// A failure that repeats is logged once in this many attempts.
const LOG_EVERY: u32 = 10;

/// The number of expired leases, and how many of them the last list accounts for.
struct Expiry {
    /// `None`: keys never expire.
    expired: Option<watch::Receiver<u64>>,
    accounted: u64,
}

impl Expiry {
    fn count(&self) -> u64 {
        self.expired.as_ref().map_or(0, |expired| *expired.borrow())
    }

    /// Waits until more leases have expired than are accounted for.
    async fn wait(&mut self) {
        let accounted = self.accounted;
        if let Some(expired) = &mut self.expired
            && expired.wait_for(|count| *count != accounted).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl SyncStore {
    /// Writes for ever.
    pub async fn run(&self) {
        let mut expiry = Expiry {
            expired: self.backend.expired_leases(),
            accounted: 0,
        };
        self.adopt(&mut expiry).await;
        let mut backoff = Backoff::write();
        loop {
            if expiry.count() != expiry.accounted {
                tracing::warn!(
                    store = self.name,
                    "leases with attached keys expired; listing the remaining keys"
                );
                self.adopt(&mut expiry).await;
            }
            let batch = self.next_batch();
            if batch.is_empty()
                && let Some(wait) = self.wait_for_budget()
            {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = expiry.wait() => {}
                }
                continue;
            }
            if batch.is_empty() {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = expiry.wait() => {}
                }
                continue;
            }
            self.write_batch(&batch, &mut backoff).await;
        }
    }

    async fn write_batch(&self, batch: &[Write], backoff: &mut Backoff) {
        let traced = self.traced(batch);
        match self.write(batch, traced.cause()).await {
            Ok(written) => {
                backoff.reset();
                traced.tell(written);
                self.done(batch);
            }
            Err(Error::Rejected(error)) if batch.len() == 1 => self.refused(&batch[0], &error),
            Err(Error::Rejected(_)) => self.write_one_by_one(batch).await,
            Err(Error::Full(error)) if !batch.iter().all(is_delete) => {
                self.failed(batch);
                if !self.is_full() || backoff.attempts().is_multiple_of(LOG_EVERY) {
                    tracing::error!(
                        store = self.name,
                        error,
                        "the store has reached its quota; writing deletions only"
                    );
                }
                self.requeue(batch);
                // After the first failure, the deletions follow at once. A later failure means that they did not help.
                if self.is_full() {
                    backoff.wait().await;
                }
                self.deletes_first();
            }
            Err(Error::Unavailable(error) | Error::Full(error)) => {
                self.failed(batch);
                if backoff.attempts().is_multiple_of(LOG_EVERY) {
                    tracing::warn!(
                        store = self.name,
                        error,
                        keys = batch.len(),
                        "cannot write keys to the store; trying again"
                    );
                }
                self.requeue(batch);
                backoff.wait().await;
            }
        }
    }

    /// A long queue yields to other writers; a few changes do not.
    fn class(&self) -> Class {
        match self.state.lock().queue.len() {
            0..BACKLOG => Class::Live,
            _ => Class::Bulk,
        }
    }

    async fn write(&self, batch: &[Write], cause: Cause<'_>) -> Result<Written, Error> {
        self.backend.write(self.class(), batch, cause).await
    }

    /// The store refused `batch`: finds the keys that it refuses, so that they do not hold up the others.
    async fn write_one_by_one(&self, batch: &[Write]) {
        for (at, write) in batch.iter().enumerate() {
            match self.write(std::slice::from_ref(write), Cause::Untraced).await {
                Ok(_) => self.done(std::slice::from_ref(write)),
                Err(Error::Rejected(error)) => self.refused(write, &error),
                Err(Error::Unavailable(_) | Error::Full(_)) => return self.requeue(&batch[at..]),
            }
        }
    }

    /// Lists and adopts the keys under the owned prefixes, which accounts for the leases that expired before.
    async fn adopt(&self, expiry: &mut Expiry) {
        let mut backoff = Backoff::write();
        'again: loop {
            expiry.accounted = expiry.count();
            let mut found = vec![];
            for prefix in &self.prefixes {
                match self.backend.list_and_adopt(&prefix.text).await {
                    Ok(keys) => found.extend(keys),
                    Err(error) => {
                        if backoff.attempts().is_multiple_of(LOG_EVERY) {
                            tracing::warn!(store = self.name, %error, prefix = prefix.text, "cannot list the keys of the store; trying again");
                        }
                        backoff.wait().await;
                        continue 'again;
                    }
                }
            }
            self.adopted(found);
            return;
        }
    }
}
