//! One key of a writer.

use bytes::Bytes;
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// A key's value by its keyed hash, in which nobody can find collisions; values themselves are kept only until they
/// are written.
pub(super) type Digest = NonZeroU64;

/// There may be hundreds of thousands: 72 bytes.
pub(super) struct Entry {
    /// What it should be; none: absent.
    pub(super) desired: Option<Digest>,
    /// What it is.
    pub(super) written: Option<Digest>,
    /// Whether that is known. It is not while a write is on its way, or its outcome is not known: then only another
    /// write makes sure.
    pub(super) is_known: bool,
    pub(super) queued: bool,
    /// Written even if unchanged: a canary.
    pub(super) always: bool,
    /// The list that last named it.
    pub(super) generation: u32,
    /// Bytes of the value it should have.
    size: u32,
    /// The value to write, while it differs.
    pub(super) value: Option<Bytes>,
    /// When the change was known that is not in the store yet; microseconds from the writer's start, and one.
    pub(super) since: Option<NonZeroU64>,
}

/// The number of keys that a prefix should have, and the bytes of their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixSize {
    pub keys: usize,
    pub bytes: usize,
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
            value: None,
            since: None,
        }
    }
}

impl Entry {
    pub(super) fn is_as_desired(&self) -> bool {
        self.is_known && self.written == self.desired
    }

    /// Whether there is nothing to say of it: it is absent, and should be.
    pub(super) fn is_nothing(&self) -> bool {
        self.desired.is_none() && self.is_as_desired() && !self.queued
    }

    pub(super) fn set_written(&mut self, written: Option<Digest>) {
        (self.written, self.is_known) = (written, true);
    }

    /// Changes what it should be; `count` is of the prefix that it is under.
    pub(super) fn set_desired(
        &mut self,
        desired: Option<Digest>,
        value: Option<Bytes>,
        count: Option<&mut PrefixSize>,
    ) {
        let size = value.as_ref().map_or(0, |v| u32::try_from(v.len()).unwrap_or(u32::MAX));
        if let Some(count) = count {
            let (before, after) = (self.desired.is_some(), desired.is_some());
            count.keys = count.keys + usize::from(after) - usize::from(before);
            count.bytes = count.bytes + size as usize - self.size as usize;
        }
        (self.desired, self.value, self.size) = (desired, value, size);
    }

    /// Puts it behind everything that waits, unless it waits already; says whether it did.
    pub(super) fn enqueue(&mut self, key: &Bytes, queue: &mut VecDeque<Bytes>) -> bool {
        let is_new = !std::mem::replace(&mut self.queued, true);
        if is_new {
            queue.push_back(key.clone());
        }
        is_new
    }
}
