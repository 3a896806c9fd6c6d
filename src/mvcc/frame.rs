//! Frames: the events of one revision as the watchers of a group see them, encoded once and kept while a member of the
//! group may need them.
//!
//! Groups that see the same events of a revision share the encoded bytes. All frames of a store together have one
//! budget. When the budget is exceeded, the oldest frames go first: watchers that keep up have taken these already, and
//! the others read the revision log instead.

use super::encoded::{Kv, put_varint, varint_len};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of frames that one group keeps.
pub(super) const FRAMES_MAX: usize = 4 << 20;
/// Most bytes of frames that all groups of a store keep together: 64 MiB, as much as sixteen groups may keep that have a
/// slow member and share nothing.
const BUDGET: usize = 64 << 20;
/// Memory that a frame takes in a group, shared bytes not counted.
const FRAME_COST: usize = 32;
/// Memory that shared bytes take beside themselves.
const BODY_COST: usize = 96;

/// The events of one revision that a group sees.
pub(super) struct Frame {
    pub(super) revision: i64,
    body: Arc<Body>,
}

/// Encoded `WatchResponse.events` fields. Frames of several groups may share them.
pub(super) struct Body {
    bytes: Bytes,
    memory: Arc<Memory>,
}

/// The bytes of all frames of a store.
struct Memory {
    held: AtomicUsize,
    /// Above this nothing is joined.
    limit: AtomicUsize,
}

/// What the frames of a store may take and do take.
pub(super) struct Budget {
    limit: usize,
    memory: Arc<Memory>,
    /// What was made last, oldest first: about half the limit.
    recent: VecDeque<Made>,
    recent_bytes: usize,
    /// The last revision that is older than `recent`.
    old: i64,
    /// Bytes and frames made for the revision that is being published.
    making: usize,
    /// The number of frames that were dropped, or never made, because of the budget or because of their length.
    pub(super) dropped: u64,
}

/// The frames made for some successive revisions.
struct Made {
    last: i64,
    bytes: usize,
}

/// How watchers of a group see an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub(super) prev_kv: bool,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
}

/// An event to be encoded.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    /// The new key-value, or a tombstone.
    pub(super) kv: &'a Kv,
    /// The key-value before the revision, for views that show it.
    pub(super) prev: Option<&'a Kv>,
}

// === impl Frame ===

impl Frame {
    /// The encoded events.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.body.bytes
    }

    /// The events of all `frames`, in one frame with the last revision; `None` without frames, or if the budget for frames
    /// has no room.
    pub(super) fn join<'a>(frames: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        let len = frames.clone().map(|frame| frame.bytes().len()).sum();
        let last = frames.clone().last()?;
        let memory = Arc::clone(&last.body.memory);
        if memory.held.load(Ordering::Relaxed) + len > memory.limit.load(Ordering::Relaxed) {
            return None;
        }
        let mut bytes = Vec::with_capacity(len);
        frames.for_each(|frame| bytes.extend_from_slice(frame.bytes()));
        memory.add(FRAME_COST);
        Some(Self {
            revision: last.revision,
            body: Body::new(bytes.into(), memory),
        })
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.body.memory.sub(FRAME_COST);
    }
}

impl Body {
    fn new(bytes: Bytes, memory: Arc<Memory>) -> Arc<Self> {
        memory.add(BODY_COST + bytes.len());
        Arc::new(Self { bytes, memory })
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.memory.sub(BODY_COST + self.bytes.len());
    }
}

impl Memory {
    fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Budget ===

impl Default for Budget {
    fn default() -> Self {
        Self {
            limit: BUDGET,
            memory: Arc::new(Memory {
                held: AtomicUsize::new(0),
                limit: AtomicUsize::new(BUDGET),
            }),
            recent: VecDeque::new(),
            recent_bytes: 0,
            old: 0,
            making: 0,
            dropped: 0,
        }
    }
}

impl Budget {
    /// The bytes of all frames.
    pub(super) fn held(&self) -> usize {
        self.memory.held.load(Ordering::Relaxed)
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.held() > self.limit
    }

    /// Whether the frames of the revision that is being published may share `bytes` more.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.making + bytes <= self.limit / 4
    }

    /// Bytes for the frames of the revision that is being published.
    pub(super) fn body(&mut self, bytes: Bytes) -> Arc<Body> {
        self.making += BODY_COST + bytes.len();
        Body::new(bytes, Arc::clone(&self.memory))
    }

    pub(super) fn frame(&mut self, revision: i64, body: &Arc<Body>) -> Frame {
        self.making += FRAME_COST;
        self.memory.add(FRAME_COST);
        let body = Arc::clone(body);
        Frame { revision, body }
    }

    /// Notes that all frames of `revision` were made.
    pub(super) fn made(&mut self, last: i64) {
        let bytes = std::mem::take(&mut self.making);
        if bytes == 0 {
            return;
        }
        self.recent_bytes += bytes;
        match self.recent.back_mut().filter(|made| made.bytes < self.limit / 128) {
            Some(made) => {
                made.last = last;
                made.bytes += bytes;
            }
            None => self.recent.push_back(Made { last, bytes }),
        }
        while let Some(made) = self.recent.front()
            && self.recent_bytes - made.bytes >= self.limit / 2
        {
            self.recent_bytes -= made.bytes;
            self.old = made.last;
            self.recent.pop_front();
        }
    }

    /// Forgets what was made, when the revisions begin anew.
    pub(super) fn begin_anew(&mut self) {
        self.recent.clear();
        (self.recent_bytes, self.old, self.making) = (0, 0, 0);
    }

    /// The revision up to which frames go when the budget is exceeded. The frames after it take about half the budget.
    pub(super) fn old(&self) -> i64 {
        self.old
    }

    #[cfg(test)]
    pub(super) fn limit(&mut self, bytes: usize) {
        self.limit = bytes;
        self.memory.limit.store(bytes, Ordering::Relaxed);
    }
}

// === impl View ===

impl View {
    pub(super) fn shows(self, kv: &Kv) -> bool {
        match kv.is_tombstone() {
            false => !self.no_put,
            true => !self.no_delete,
        }
    }

    /// Length of the encoded `events`, in bytes; 0 if the view shows none of them.
    pub(super) fn len<'a>(self, events: impl Iterator<Item = Seen<'a>>) -> usize {
        let shown = events.filter(|event| self.shows(event.kv));
        shown.map(|event| field(event.len())).sum()
    }

    /// Encodes the events that the view shows, each as one `WatchResponse.events` field (11); `None` if there are none.
    pub(super) fn encode<'a, I: Iterator<Item = Seen<'a>>>(self, events: impl Fn() -> I) -> Option<Bytes> {
        let len = self.len(events());
        let mut body = Vec::with_capacity(len);
        for event in events().filter(|event| self.shows(event.kv)) {
            event.encode(&mut body);
        }
        debug_assert_eq!(body.len(), len);
        (len > 0).then(|| body.into())
    }
}

// === impl Seen ===

impl Seen<'_> {
    fn len(self) -> usize {
        let kind = if self.kv.is_tombstone() { 2 } else { 0 };
        let prev = self.prev.map_or(0, |prev| field(prev.as_bytes().len()));
        kind + field(self.kv.as_bytes().len()) + prev
    }

    fn encode(self, body: &mut Vec<u8>) {
        body.push(11 << 3 | 2);
        put_varint(body, self.len() as u64);
        if self.kv.is_tombstone() {
            body.extend_from_slice(&[1 << 3, 1]);
        }
        for (tag, kv) in [(2 << 3 | 2, Some(self.kv)), (3 << 3 | 2, self.prev)] {
            if let Some(kv) = kv {
                body.push(tag);
                put_varint(body, kv.as_bytes().len() as u64);
                body.extend_from_slice(kv.as_bytes());
            }
        }
    }
}

fn field(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}
