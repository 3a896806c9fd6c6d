//! What the server tells of traced writes of its clients, see [`trace`].

use super::Core;
use super::admission::Caller;
use crate::pb::etcdserverpb as pb;
use crate::util::deliveries::Change;
use crate::util::trace::{self, Cause, Place, Span};
use bytes::Bytes;
use std::time::SystemTime;

/// A write of a client; empty while nothing is traced.
pub(super) struct Traced(Option<ClientWrite>);

struct ClientWrite {
    method: &'static str,
    begun: SystemTime,
    key: Bytes,
    user: Option<String>,
}

impl Traced {
    /// A call that has been admitted. `key` finds a key that it writes, if it writes.
    pub(super) fn begin(method: &'static str, caller: &Caller, key: impl FnOnce() -> Option<Bytes>) -> Self {
        if !trace::is_on() {
            return Self(None);
        }
        let Some(key) = key() else { return Self(None) };
        Self(Some(ClientWrite {
            method,
            begun: SystemTime::now(),
            key,
            user: caller.peer().common_name.as_deref().map(str::to_owned),
        }))
    }

    /// Runs `write`, and lets its sends be told of.
    pub(super) fn run<T, E>(
        &self,
        core: &Core,
        revision_of: impl Fn(&T) -> i64,
        write: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(traced) = &self.0 else { return write() };
        let change = Change {
            key: &traced.key,
            cluster: None,
            store_id: core.identity().cluster_id,
            cause: Cause::Source,
        };
        let revision = |outcome: &Result<T, E>| outcome.as_ref().ok().map(&revision_of);
        core.config.deliveries.commit(change, revision, write)
    }

    /// Tells that the write is durable.
    pub(super) fn tell(self, core: &Core, revision: i64) {
        let Some(ClientWrite {
            method,
            begun,
            key,
            user,
        }) = self.0
        else {
            return;
        };
        let Some(trace) = trace::of(core.identity().cluster_id, revision) else {
            return;
        };
        let mut attributes = vec![
            ("rpc.method", method.into()),
            ("isthmus.key", trace::key(&key)),
            ("isthmus.revision", revision.into()),
        ];
        attributes.extend(user.map(|user| ("isthmus.user", user.into())));
        trace::record(Span {
            trace,
            name: "commit",
            place: Place::Child,
            start: begun,
            end: SystemTime::now(),
            attributes,
            links: vec![],
        });
    }
}

/// A key that a transaction may write.
pub(super) fn written_key(request: &pb::TxnRequest) -> Option<Bytes> {
    use pb::request_op::Request as R;
    let mut ops = request.success.iter().chain(&request.failure);
    ops.find_map(|op| match op.request.as_ref()? {
        R::RequestPut(put) => Some(put.key.clone()),
        R::RequestDeleteRange(delete) => Some(delete.key.clone()),
        R::RequestTxn(nested) => written_key(nested),
        R::RequestRange(_) => None,
    })
}
