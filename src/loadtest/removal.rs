//! Removes what a run has written.

use super::dial::{Dialer, Who};
use super::error::Error;
use super::link::{Call, Link, NEVER_PAUSED};
use super::session::prefix_end;
use crate::pb::etcdserverpb::{DeleteRangeRequest, LeaseRevokeRequest};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A store that answers nothing for so long after the operator has stopped the run is not waited for.
const SILENCE: Duration = Duration::from_secs(1);

/// What is to be removed.
pub struct Removal<'a> {
    pub dialer: &'a Dialer,
    /// Prefixes, which end with a slash, and keys.
    pub written: &'a [String],
    pub leases: Vec<i64>,
}

impl Removal<'_> {
    /// Removes everything. Gives up once `stop` is cancelled and the store does not answer.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), Error> {
        let answers = AtomicU64::new(0);
        tokio::select! {
            removed = self.remove(&answers) => removed,
            () = silence(&answers, stop) => Err(Error::Timeout("clean up")),
        }
    }

    async fn remove(&self, answers: &AtomicU64) -> Result<(), Error> {
        let (link, mut connection) = self.dialer.connect(0, Who::Writer).await?;
        connection.drive(&NEVER_PAUSED, self.calls(&link, answers)).await
    }

    async fn calls(&self, link: &Link, answers: &AtomicU64) -> Result<(), Error> {
        for prefix in self.written {
            let request = DeleteRangeRequest {
                key: prefix.clone().into(),
                range_end: match prefix.ends_with('/') {
                    true => prefix_end(prefix.as_bytes()).into(),
                    false => bytes::Bytes::new(),
                },
                ..DeleteRangeRequest::default()
            };
            link.call(Call::DeleteRange, &request, |_, _| Ok(())).await?;
            answers.fetch_add(1, Relaxed);
        }
        for id in &self.leases {
            let request = LeaseRevokeRequest { id: *id };
            match link.call(Call::LeaseRevoke, &request, |_, _| Ok(())).await {
                // Leases of a store that has begun anew since.
                Err(error) if !error.is_lease_lost() => return Err(error),
                _ => {}
            }
            answers.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

/// Waits until the operator has stopped the run and the store is silent.
async fn silence(answers: &AtomicU64, stop: &CancellationToken) {
    stop.cancelled().await;
    loop {
        let before = answers.load(Relaxed);
        sleep(SILENCE).await;
        if answers.load(Relaxed) == before {
            return;
        }
    }
}
