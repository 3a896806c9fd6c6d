//! One key of a writer: the desired value, the written value, and the change that is not written yet.

use bytes::Bytes;
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// A hash of a value with a random key, so that a remote cluster cannot construct collisions. Entries compare hashes,
/// because values are kept only until they are written.
pub(super) type Digest = NonZeroU64;

/// The state of one key. The writers of a process can have millions of entries; each takes 40 bytes.
pub(super) struct Entry {
    /// The value that the key should have; `None`: the key should be absent.
    pub(super) desired: Option<Digest>,
    /// The value that the key has in the store.
    pub(super) written: Option<Digest>,
    /// Whether `written` is certain. While a write is in flight, and after a write whose outcome is unknown, `written`
    /// is uncertain, and the key is written again.
    pub(super) is_known: bool,
    pub(super) queued: bool,
    /// The next write takes place even if the value is unchanged: a canary.
    pub(super) always: bool,
    /// The last list that contained the key.
    pub(super) generation: u32,
    /// Bytes of the desired value.
    pub(super) size: u32,
    /// Bytes of the value that the key has in the store.
    pub(super) written_size: u32,
    /// Few keys have something here, unless [`WrittenValues::Keep`].
    pending: Option<Box<Pending>>,
}

/// What an entry has only sometimes.
#[derive(Default)]
struct Pending {
    /// The value to write. Dropped after the write, unless [`WrittenValues::Keep`].
    value: Value,
    /// When the change that is not written yet was received: microseconds since the writer's start, plus one.
    since: Option<NonZeroU64>,
}

/// A value that may have to be written.
#[derive(Default)]
enum Value {
    #[default]
    None,
    /// As it was received.
    Fresh(Bytes),
    /// Written, and kept in as little memory as possible: a `Bytes` that was ever cloned takes 48 bytes more.
    Kept(Box<[u8]>),
}

impl Value {
    fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    fn get(&self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::Fresh(value) => Some(value.clone()),
            Self::Kept(value) => Some(Bytes::copy_from_slice(value)),
        }
    }
}

impl From<Option<Bytes>> for Value {
    fn from(value: Option<Bytes>) -> Self {
        value.map_or(Self::None, Self::Fresh)
    }
}

/// The size of a value in an entry.
pub(super) fn size_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}

/// The treatment of values after they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WrittenValues {
    /// They are kept, because keys can expire and must then be written again.
    Keep,
    Drop,
}

/// The next step for an entry at the front of the queue.
pub(super) enum Next {
    Put(Bytes),
    Delete,
    /// The key has the desired value already.
    Nothing,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            desired: None,
            written: None,
            is_known: true,
            queued: false,
            always: false,
            generation: 0,
            size: 0,
            written_size: 0,
            pending: None,
        }
    }
}

impl Entry {
    /// The value to write.
    fn value(&self) -> Option<Bytes> {
        self.pending.as_ref()?.value.get()
    }

    /// Whether there is a value that could be written.
    pub(super) fn has_value(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.value.is_some())
    }

    /// When the change that is not written yet was received.
    pub(super) fn since(&self) -> Option<NonZeroU64> {
        self.pending.as_ref()?.since
    }

    /// Notes when a change was received, unless an earlier one is not written yet.
    pub(super) fn waits_since(&mut self, at: NonZeroU64) {
        self.pending.get_or_insert_default().since.get_or_insert(at);
    }

    /// Nothing waits to be written. Returns since when a change had been waiting.
    pub(super) fn waits_no_more(&mut self) -> Option<NonZeroU64> {
        let pending = self.pending.as_mut()?;
        let since = pending.since.take();
        if !pending.value.is_some() {
            self.pending = None;
        }
        since
    }

    fn set_value(&mut self, value: Option<Bytes>) {
        match (value, &mut self.pending) {
            (None, None) => {}
            (None, Some(pending)) if pending.since.is_none() => self.pending = None,
            (value, pending) => pending.get_or_insert_default().value = value.into(),
        }
    }

    /// The digest of the value that was taken off the queue last; `None` if the key was queued again since. Every change of
    /// the desired value after that queues the key, as long as the write is in flight.
    pub(super) fn dequeued(&self) -> Option<Digest> {
        self.desired.filter(|_| !self.queued && !self.is_known)
    }

    pub(super) fn is_as_desired(&self) -> bool {
        self.is_known && self.written == self.desired
    }

    /// Whether the entry can be forgotten: the key is absent and should be.
    pub(super) fn is_idle(&self) -> bool {
        self.desired.is_none() && self.is_as_desired() && !self.queued
    }

    /// The value that the key has in the store, and its size in bytes.
    pub(super) fn set_written(&mut self, written: Option<(Digest, u32)>) {
        (self.written, self.is_known) = (written.map(|(digest, _)| digest), true);
        self.written_size = written.map_or(0, |(_, size)| size);
    }

    /// The value that the key should have, its size, and the value itself if it may have to be written.
    pub(super) fn set_desired(&mut self, desired: Option<(Digest, u32)>, value: Option<Bytes>) {
        self.desired = desired.map(|(digest, _)| digest);
        self.size = desired.map_or(0, |(_, size)| size);
        self.set_value(value);
    }

    /// The key has the desired value: nothing is left to write. Returns since when the change had been waiting.
    pub(super) fn settle(&mut self, values: WrittenValues) -> Option<NonZeroU64> {
        match (values, &mut self.pending) {
            (WrittenValues::Drop, _) => self.set_value(None),
            (WrittenValues::Keep, Some(pending)) => {
                if let Value::Fresh(value) = &pending.value {
                    pending.value = Value::Kept(value[..].into());
                }
            }
            (WrittenValues::Keep, None) => {}
        }
        self.waits_no_more()
    }

    /// Appends the key to the queue, unless it is queued already. Returns whether it was appended.
    pub(super) fn enqueue(&mut self, key: impl Into<Bytes>, queue: &mut VecDeque<Bytes>) -> bool {
        let is_new = !std::mem::replace(&mut self.queued, true);
        if is_new {
            queue.push_back(key.into());
        }
        is_new
    }

    /// The key has been taken off the queue: returns the write that it needs now, if any.
    pub(super) fn dequeue(&mut self, values: WrittenValues) -> Next {
        self.queued = false;
        if self.is_as_desired() && !self.always {
            self.settle(values);
            return Next::Nothing;
        }
        match (self.value(), self.desired) {
            (Some(value), Some(_)) => {
                self.is_known = false;
                Next::Put(value)
            }
            (_, None) => {
                self.is_known = false;
                Next::Delete
            }
            (None, Some(_)) => Next::Nothing,
        }
    }
}
