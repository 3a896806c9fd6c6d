//! What a writer tells of traced writes, see [`trace`].

use super::{SyncStore, key_of};
use crate::kvstore::{Write, Written};
use crate::model::keys;
use crate::util::trace::{self, Cause, Place, Span, Trace, Value};
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

/// A batch that is being written. While nothing is traced, it is empty.
#[derive(Default)]
pub(super) struct Traced(Option<Batch>);

struct Batch {
    /// When the first of the changes was received, and when the write began.
    received: SystemTime,
    begun: SystemTime,
    /// The revisions of other stores that changes of the batch follow from.
    origins: Vec<Trace>,
    /// Whether the changes come from another store.
    is_mirror: bool,
    /// Whether the store is another process.
    is_remote: bool,
    attributes: Vec<(&'static str, Value)>,
}

impl SyncStore {
    /// Looks at a batch before it is written.
    pub(super) fn traced(&self, batch: &[Write]) -> Traced {
        if !trace::is_on() {
            return Traced::default();
        }
        let Some(key) = batch.first().map(key_of) else {
            return Traced::default();
        };
        let mut state = self.state.lock();
        let mut origins = HashSet::new();
        let mut waited = Duration::ZERO;
        for write in batch {
            // A write that fails loses its traces.
            origins.extend(state.origins.remove(key_of(write)));
            if let Some(since) = state.table.get(key_of(write)).and_then(|entry| entry.since()) {
                waited = waited.max(self.elapsed(since));
            }
        }
        drop(state);
        let cluster = batch.iter().find_map(|write| keys::mirrored_from(key_of(write)));
        let mut attributes = vec![
            ("isthmus.writer", self.name.as_str().into()),
            ("isthmus.key", trace::key(key)),
            ("isthmus.keys", batch.len().into()),
        ];
        attributes.extend(cluster.map(|name| ("isthmus.remote_cluster", name.into())));
        Traced(Some(Batch {
            received: trace::ago(waited),
            begun: SystemTime::now(),
            origins: origins.into_iter().collect(),
            is_mirror: cluster.is_some(),
            is_remote: self.backend.deliveries().is_none(),
            attributes,
        }))
    }
}

impl Traced {
    /// What the write follows from.
    pub(super) fn cause(&self) -> Cause<'_> {
        match &self.0 {
            None => Cause::Untraced,
            Some(batch) if batch.is_mirror => Cause::Revisions(&batch.origins),
            Some(_) => Cause::Source,
        }
    }

    /// Tells that the batch was written.
    pub(super) fn tell(self, written: Written) {
        let Some(Batch {
            received,
            begun,
            origins,
            is_mirror,
            is_remote,
            mut attributes,
        }) = self.0
        else {
            return;
        };
        let end = SystemTime::now();
        attributes.push(("isthmus.revision", written.revision.into()));
        // A store in another process does not know the origins, and tells of its own revision.
        let next = trace::of(written.store_id, written.revision).filter(|_| is_mirror && is_remote);
        let span = |trace, name, place, start| Span {
            trace,
            name,
            place,
            start,
            end,
            attributes: attributes.clone(),
            links: next.into_iter().collect(),
        };
        if is_mirror {
            for origin in origins {
                trace::record(span(origin, "mirror", Place::Child, received));
            }
        } else if let Some(trace) = trace::of(written.store_id, written.revision) {
            trace::record(span(trace, "publish", Place::Root, received));
            trace::record(span(trace, "write", Place::Child, begun));
        }
    }
}
