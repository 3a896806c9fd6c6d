//! The loop of a writer: what is there, then batch by batch, until the store takes it.

use super::{SyncStore, is_delete};
use crate::kvstore::{Class, Error, Write};
use crate::util::backoff::Backoff;
use std::time::Duration;

/// More keys than this that wait are a backlog.
const BACKLOG: usize = 128;

impl SyncStore {
    /// Looks at what is there, then writes, for ever.
    pub async fn run(&self) {
        let mut losses = self.adopt().await;
        let mut backoff = Backoff::write();
        loop {
            if self.backend.expired_leases() != losses {
                tracing::warn!(store = self.name, "leases ran out: looking at what is left");
                losses = self.adopt().await;
            }
            let batch = self.next_batch();
            if batch.is_empty() {
                tokio::select! {
                    () = self.wake.notified() => {}
                    // A loss is noticed even when there is nothing to write.
                    () = tokio::time::sleep(Duration::from_secs(5)) => {}
                }
                continue;
            }
            match self.write(&batch).await {
                Ok(()) => {
                    backoff.reset();
                    self.done(&batch);
                }
                Err(Error::Rejected(error)) if batch.len() == 1 => self.refused(&batch[0], &error),
                Err(Error::Rejected(_)) => self.write_one_by_one(&batch).await,
                Err(Error::Full(error)) if !batch.iter().all(is_delete) => {
                    self.failed(&batch);
                    if !self.full() || backoff.attempts().is_multiple_of(10) {
                        tracing::error!(
                            store = self.name,
                            error,
                            "the store has no room: only what goes is written"
                        );
                    }
                    self.requeue(&batch);
                    // What is deleted makes room; only then is something put again.
                    if self.full() {
                        backoff.wait().await;
                    }
                    self.deletes_first();
                }
                Err(Error::Unavailable(error) | Error::Full(error)) => {
                    self.failed(&batch);
                    if backoff.attempts().is_multiple_of(10) {
                        tracing::warn!(
                            store = self.name,
                            error,
                            keys = batch.len(),
                            "writing failed, trying again"
                        );
                    }
                    self.requeue(&batch);
                    backoff.wait().await;
                }
            }
        }
    }

    /// Where there is much to write, nobody waits for a single key.
    fn class(&self) -> Class {
        match self.state.lock().queue.len() {
            0..BACKLOG => Class::Live,
            _ => Class::Bulk,
        }
    }

    async fn write(&self, batch: &[Write]) -> Result<(), Error> {
        self.backend.write(self.class(), batch).await
    }

    /// After a batch was refused: finds the key at fault, so that it does not hold up the others.
    async fn write_one_by_one(&self, batch: &[Write]) {
        for (at, write) in batch.iter().enumerate() {
            match self.write(std::slice::from_ref(write)).await {
                Ok(()) => self.done(std::slice::from_ref(write)),
                Err(Error::Rejected(error)) => self.refused(write, &error),
                Err(Error::Unavailable(_) | Error::Full(_)) => return self.requeue(&batch[at..]),
            }
        }
    }

    /// Learns what is under the owned prefixes; returns the backend's losses it has thereby covered.
    async fn adopt(&self) -> u64 {
        let mut backoff = Backoff::write();
        'again: loop {
            let losses = self.backend.expired_leases();
            let mut found = vec![];
            for prefix in &self.prefixes {
                match self.backend.list_and_adopt(&prefix.text).await {
                    Ok(kvs) => found.extend(kvs),
                    Err(error) => {
                        if backoff.attempts().is_multiple_of(10) {
                            tracing::warn!(store = self.name, %error, prefix = prefix.text, "listing failed, trying again");
                        }
                        backoff.wait().await;
                        continue 'again;
                    }
                }
            }
            self.adopted(found);
            return losses;
        }
    }
}
