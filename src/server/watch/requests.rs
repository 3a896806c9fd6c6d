//! The requests of a client on a watch stream: create, cancel, progress.

use super::quiet::Told;
use super::ready::WatcherWake;
use super::{Answer, Entry, WatchSession};
use crate::mvcc::{KeyRange, Wake, WatchFilter};
use crate::pb::etcdserverpb as pb;
use crate::pb::{WatchHead, WatchResponse};
use crate::server::admission::{Call, Operation};
use crate::server::commit::Cause;
use crate::server::status;
use bytes::Bytes;
use std::sync::Arc;

/// Why a watcher was not created, and the state on which that decision rests.
struct Rejected {
    reason: String,
    cause: Cause,
}

impl WatchSession {
    /// Queues a message without events.
    pub(super) fn answer(&mut self, revision: i64, head: WatchHead, cause: Cause) {
        let header = Some(self.core.header(revision));
        let response = WatchResponse {
            head: WatchHead { header, ..head },
            events: vec![],
        };
        let durable_at = self.core.durability.point(cause);
        self.answers.push_back(Answer { response, durable_at });
    }

    pub(super) fn create(&mut self, request: pb::WatchCreateRequest) {
        // As in etcd, an empty key means the smallest key.
        let key = if request.key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            request.key
        };
        let range = KeyRange::new(key, request.range_end);
        let id = request.watch_id;
        let reader = match self.check_create(id, request.start_revision, &range) {
            Ok(reader) => reader,
            Err(Rejected { reason, cause }) => return self.refuse(reason, cause),
        };
        let id = if id == 0 { self.free_id() } else { id };
        let wake = WatcherWake::new(id, &self.ready);
        let filter = WatchFilter {
            range,
            prev_kv: request.prev_kv,
            no_put: request.filters.contains(&0),
            no_delete: request.filters.contains(&1),
        };
        let start = request.start_revision;
        let watcher = self.core.store.watch(filter, start, Arc::clone(&wake) as _);
        let place = match self.core.take_place(self.caller.peer(), &watcher) {
            Ok(place) => place,
            Err(refused) => return self.refuse(refused.message().to_owned(), Cause::Published),
        };
        let revision = watcher.created_at();
        // The watcher may have history to read.
        wake.wake();
        self.last_start = self.last_start.max(start);
        let entry = Entry {
            watcher,
            start,
            wake,
            reader,
            _place: place,
            fragment: request.fragment,
            progress: request.progress_notify,
            busy: false,
            told: Told::new(start, revision),
        };
        self.watchers.insert(id, entry);
        self.suspect(id, start, revision);
        let head = WatchHead {
            watch_id: id,
            created: true,
            ..WatchHead::default()
        };
        self.answer(revision, head, Cause::Published);
    }

    /// Answers that a watcher was not created.
    fn refuse(&mut self, reason: String, cause: Cause) {
        let head = WatchHead {
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchHead::default()
        };
        self.answer(self.core.store.revision(), head, cause);
    }

    /// etcd's checks of a create request, in etcd's order (v3rpc/watch.go, recvLoop; mvcc/watcher.go). Returns
    /// the user, if a certificate names the user.
    fn check_create(&self, id: i64, start: i64, range: &KeyRange) -> Result<Option<Arc<str>>, Rejected> {
        let rejected = |reason: &str| Rejected {
            reason: reason.to_owned(),
            cause: Cause::Published,
        };
        if start < 0 {
            return Err(rejected(status::compacted().message()));
        }
        let operation = Operation::read(Call::Watch, range.clone());
        let admitted = self.core.admission.check(&self.caller, &operation);
        let admitted = admitted.map_err(|refusal| Rejected {
            reason: status::rendered(&refusal.status),
            cause: refusal.cause,
        })?;
        if range.is_empty() {
            return Err(rejected("mvcc: watcher range is empty"));
        }
        if id != 0 && self.is_used(id) {
            return Err(rejected("mvcc: duplicate watch ID provided on the WatchStream"));
        }
        Ok(admitted.certificate_user)
    }

    /// Cancels the watchers whose user, named by a certificate, may no longer read their range, before they take
    /// further events. etcd lets such watchers go on until the connection ends. Users of tokens are not checked
    /// again: a watch may outlive its token.
    pub(super) fn end_forbidden(&mut self) {
        let version = self.core.admission.auth_version();
        if std::mem::replace(&mut self.allowed_at, version) == version {
            return;
        }
        let core = &self.core;
        let forbidden = |entry: &mut Entry| {
            let range = &entry.watcher.filter().range;
            let reader = entry.reader.as_ref();
            reader.is_some_and(|reader| !core.admission.may_still_read(reader, range))
        };
        let ended: Vec<i64> = self
            .watchers
            .extract_if(.., |_, entry| forbidden(entry))
            .map(|(id, _)| id)
            .collect();
        for watch_id in ended {
            self.ended(watch_id);
            let head = WatchHead {
                watch_id,
                canceled: true,
                cancel_reason: status::rendered(&crate::auth::Error::PermissionDenied.into()),
                ..WatchHead::default()
            };
            // The header has no revision, because the watcher may not have taken all events up to the store's revision.
            self.answer(0, head, Cause::EveryChange);
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.is_used(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn is_used(&self, id: i64) -> bool {
        self.watchers.contains_key(&id) || self.ended_ids.contains(&id)
    }

    pub(super) fn cancel(&mut self, id: i64) {
        if self.watchers.remove(&id).is_some() || self.ended_ids.remove(&id) {
            let head = WatchHead {
                watch_id: id,
                canceled: true,
                ..WatchHead::default()
            };
            self.answer(self.core.store.revision(), head, Cause::Published);
        }
    }

    /// Notes that the client wants to know the progress of the stream. Several requests may share an answer.
    pub(super) fn ask_progress(&mut self) {
        // As in etcd, a stream without watchers has no progress.
        if !self.watchers.is_empty() {
            self.progress_from = Some(self.core.store.revision());
        }
    }

    /// Answers progress requests, if every watcher has taken all events. To be called when no watcher is ready. Asks
    /// no single watcher, because a stream may have tens of thousands.
    pub(super) fn report_progress(&mut self) -> bool {
        let Some(from) = self.progress_from else {
            return false;
        };
        let revision = self.core.store.woken();
        if revision < from || !self.ready.is_empty() {
            return false;
        }
        self.progress_from = None;
        // As in etcd, there is no answer while a watcher waits for a revision in the future.
        let begun = revision >= self.last_start || self.watchers.values().all(|e| revision >= e.start);
        if self.watchers.is_empty() || !begun {
            return false;
        }
        let head = WatchHead {
            watch_id: -1,
            ..WatchHead::default()
        };
        self.answer(revision, head, Cause::Published);
        true
    }
}
