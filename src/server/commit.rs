//! Commit: delays an answer or an error until the state on which it rests survives a crash.
//!
//! Reads see published revisions only, and published revisions are durable. Everything else is visible to
//! calls before it is on the disk: new revisions inside a write, users, leases, alarms, the compact revision,
//! peer URLs. An answer or an error that rests on such state leaves through [`Durability::commit`].

use super::status;
use crate::durable::{Durable, Point};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long an answer waits for the disk (etcd: server/config, `ReqTimeout`: 5 s and two election timeouts).
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(7);

/// The state on which an answer or an error rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// State that survives a crash: the request itself, the configuration, published revisions.
    Published,
    /// The store's revisions up to this one.
    Revision(i64),
    /// The changes of users, roles, alarms and members so far. Such changes are rare, so an answer seldom waits.
    Metadata,
    /// Every change made so far, also of keys, leases and the compact revision.
    EveryChange,
}

/// The data directory, which makes changes durable, or nothing for a store in memory.
#[derive(Clone)]
pub(super) struct Durability(Option<Arc<Durable>>);

impl Durability {
    pub(super) fn new(durable: Option<Arc<Durable>>) -> Self {
        Self(durable)
    }

    /// The data directory; `None` for a store in memory.
    pub(super) fn disk(&self) -> Option<&Durable> {
        self.0.as_deref()
    }

    /// Returns `outcome` once it cannot be contradicted by a crash: an answer once its `cause` is durable, an
    /// error once every change made so far is durable.
    pub(super) async fn commit<T, E: Into<Status>>(
        &self,
        outcome: Result<T, E>,
        cause: impl FnOnce(&T) -> Cause,
    ) -> Result<T, Status> {
        let outcome: Result<T, Status> = outcome.map_err(Into::into);
        self.wait(outcome.as_ref().map_or(Cause::EveryChange, cause)).await?;
        outcome
    }

    /// Like [`Durability::commit`], for outcomes that rest on users, roles, alarms or members alone.
    pub(super) async fn commit_metadata<T, E: Into<Status>>(&self, outcome: Result<T, E>) -> Result<T, Status> {
        self.wait(Cause::Metadata).await?;
        outcome.map_err(Into::into)
    }

    /// Waits until `cause` is durable. Fails at once while the data directory takes no writes, and if the disk takes
    /// longer than [`REQUEST_TIMEOUT`]; as in etcd, the change may still become durable later.
    pub(super) async fn wait(&self, cause: Cause) -> Result<(), Status> {
        let (Some(durable), Some(point)) = (&self.0, self.point(cause)) else {
            return Ok(());
        };
        let waited = tokio::time::timeout(REQUEST_TIMEOUT, durable.reached_or_refused(point));
        waited
            .await
            .map_or_else(|_| Err(status::timed_out()), |reached| Ok(reached?))
    }

    /// The point at which the present state of `cause` is durable; `None` if it is durable already.
    pub(super) fn point(&self, cause: Cause) -> Option<Point> {
        let durable = self.disk()?;
        match cause {
            Cause::Published => None,
            Cause::Revision(revision) => Some(Point::Revision(revision)),
            Cause::Metadata => Some(durable.last_metadata()),
            Cause::EveryChange => Some(durable.last_change()),
        }
    }

    /// Waits until everything up to `point` is durable, for however long that takes.
    pub(super) async fn reached(&self, point: Option<Point>) -> Result<(), Status> {
        match (&self.0, point) {
            (Some(durable), Some(point)) => Ok(durable.reached(point).await?),
            _ => Ok(()),
        }
    }
}
