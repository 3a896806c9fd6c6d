//! Freshness: what a replica has to have before it answers a read.
//!
//! A read at a revision that is here is a fact that cannot change, unless the past is in doubt. Any other linearizable read asks upstream for a
//! revision, after the read came, and waits until that revision is here: so it sees everything that was answered anywhere
//! before. Serializable reads take what is here.

use super::upstream::{Upstream, cut_off};
use super::{Core, status};
use crate::pb::etcdserverpb as pb;
use std::time::Duration;
use tonic::Status;

/// How long a read waits until the revision that it needs is here.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a read has to see. In the order of what that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Freshness {
    /// What is here (serializable).
    Any,
    /// One revision.
    At(i64),
    /// Everything that was answered before the read began (linearizable).
    Latest,
}

impl Freshness {
    pub(super) fn of_range(request: &pb::RangeRequest) -> Self {
        match request {
            request if request.serializable => Self::Any,
            request if request.revision > 0 => Self::At(request.revision),
            _ => Self::Latest,
        }
    }

    /// The freshness of a transaction that only reads. A compare looks at the present state.
    pub(super) fn of_txn(request: &pb::TxnRequest) -> Self {
        use pb::request_op::Request as R;
        let ops = request.success.iter().chain(&request.failure);
        let of_ops = ops.filter_map(|op| op.request.as_ref()).map(|op| match op {
            R::RequestRange(range) => Self::of_range(range),
            // etcd runs a nested transaction through its log, whatever it does.
            R::RequestTxn(_) | R::RequestPut(_) | R::RequestDeleteRange(_) => Self::Latest,
        });
        let all: Vec<_> = of_ops.collect();
        // As in etcd, a transaction is serializable if each of its ranges is, whatever it compares.
        let serializable = all.iter().all(|freshness| *freshness == Self::Any);
        match request.compare.is_empty() {
            false if !serializable => Self::Latest,
            _ => all.into_iter().max().unwrap_or(Self::Any),
        }
    }
}

impl Core {
    /// Waits until a read may be answered here.
    pub(super) async fn fresh(&self, needed: Freshness) -> Result<(), Status> {
        match (&self.upstream, needed) {
            (None, _) | (_, Freshness::Any) => Ok(()),
            // While the past is in doubt, the same revision may be another one elsewhere.
            (Some(upstream), Freshness::At(revision))
                if revision <= self.store.revision() && !upstream.is_doubtful() =>
            {
                Ok(())
            }
            // On the heap, so that a store of its own has small futures.
            (Some(upstream), _) => Box::pin(self.catch_up(&**upstream)).await,
        }
    }

    /// Waits until everything that upstream has now is here.
    async fn catch_up(&self, upstream: &dyn Upstream) -> Result<(), Status> {
        let index = tokio::select! {
            index = upstream.index() => index?,
            () = self.stop.cancelled() => return Err(status::stopped()),
        };
        match self.reached(index, PATIENCE).await {
            true => Ok(()),
            false => Err(cut_off()),
        }
    }

    /// Waits until `revision` is visible here, for `patience` at most; whether it is.
    pub(super) async fn reached(&self, revision: i64, patience: Duration) -> bool {
        if self.store.revision() >= revision {
            return true;
        }
        let seen = async {
            // Subscribed before the look, so that no revision is missed.
            let mut visible = self.visible.subscribe();
            while self.store.revision() < revision && visible.changed().await.is_ok() {}
        };
        tokio::time::timeout(patience, seen).await.is_ok() && self.store.revision() >= revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::request_op::Request as R;

    fn range(revision: i64, serializable: bool) -> pb::RangeRequest {
        pb::RangeRequest {
            key: "a".into(),
            revision,
            serializable,
            ..Default::default()
        }
    }

    fn txn(ops: Vec<R>, compare: Vec<pb::Compare>) -> pb::TxnRequest {
        let success = ops.into_iter().map(|op| pb::RequestOp { request: Some(op) }).collect();
        pb::TxnRequest {
            compare,
            success,
            failure: vec![],
        }
    }

    #[test]
    fn only_what_may_change_needs_an_index() {
        use Freshness::{Any, At, Latest};
        assert_eq!(Freshness::of_range(&range(0, false)), Latest);
        assert_eq!(Freshness::of_range(&range(5, false)), At(5));
        assert_eq!(Freshness::of_range(&range(5, true)), Any);
        let of = |ranges: &[(i64, bool)], compare: Vec<pb::Compare>| {
            let ops = ranges.iter().map(|(revision, s)| R::RequestRange(range(*revision, *s)));
            Freshness::of_txn(&txn(ops.collect(), compare))
        };
        let compare = || vec![pb::Compare::default()];
        assert_eq!(of(&[(5, false), (9, false), (0, true)], vec![]), At(9));
        assert_eq!(of(&[(5, false), (0, false)], vec![]), Latest);
        assert_eq!(of(&[(5, false)], compare()), Latest, "a compare reads the present");
        assert_eq!(of(&[(0, true)], compare()), Any, "all ranges are serializable");
        let nested = txn(vec![R::RequestRange(range(0, true))], vec![]);
        assert_eq!(Freshness::of_txn(&txn(vec![R::RequestTxn(nested)], vec![])), Latest);
    }
}
