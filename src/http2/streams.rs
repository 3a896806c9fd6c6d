//! The open streams of a connection, in slots that are used again.

use super::inbound::{BodyError, Inbound};
use super::wakers::{SlotWaker, WakeSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Free slots that are kept with their wakers.
const FREE_KEPT: usize = 16;

/// A stream that is open in at least one direction (RFC 9113, section 5.1).
#[derive(Debug)]
pub(super) struct Stream {
    pub id: u32,
    /// Bytes that may be sent; negative after the client has made its windows smaller.
    pub send_window: i64,
    /// Bytes that the client may send.
    pub receive_window: i64,
    /// Received bytes that were not given back to the window of the connection.
    pub held: u32,
    /// Read bytes that were not given back to the window of the stream.
    pub unannounced: u32,
    pub inbound: Option<Arc<Inbound>>,
    /// Bytes of the body that are still to come, if the request says so.
    pub expected: Option<u64>,
    /// Whether the client may still send.
    pub receiving: bool,
    /// Whether the end of the answer was not sent yet.
    pub sending: bool,
    /// Whether the call was polled.
    pub seen: bool,
}

/// All open streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_id: BTreeMap<u32, usize>,
    wakes: Arc<WakeSet>,
}

#[derive(Debug)]
struct Slot {
    stream: Option<Stream>,
    waker: Arc<SlotWaker>,
}

impl Streams {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub fn wakes(&self) -> &Arc<WakeSet> {
        &self.wakes
    }

    /// The slot of the stream with this id.
    pub fn slot(&self, id: u32) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Stream> {
        self.slots.get_mut(slot)?.stream.as_mut()
    }

    pub fn get(&self, slot: usize) -> Option<&Stream> {
        self.slots.get(slot)?.stream.as_ref()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slots.iter_mut().filter_map(|slot| slot.stream.as_mut())
    }

    /// A slot for the next stream.
    pub fn reserve(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            let waker = SlotWaker::new(self.slots.len(), &self.wakes);
            self.slots.push(Slot { stream: None, waker });
            self.slots.len() - 1
        })
    }

    pub fn waker(&self, slot: usize) -> Arc<SlotWaker> {
        Arc::clone(&self.slots[slot].waker)
    }

    /// Puts a stream into a reserved slot.
    pub fn insert(&mut self, slot: usize, stream: Stream) {
        self.by_id.insert(stream.id, slot);
        self.slots[slot].stream = Some(stream);
    }

    pub fn remove(&mut self, slot: usize) -> Option<Stream> {
        let stream = self.slots.get_mut(slot)?.stream.take()?;
        self.by_id.remove(&stream.id);
        self.free.push(slot);
        let many = self.free.len() > FREE_KEPT && self.free.len() > 2 * self.by_id.len();
        if many && self.slots.last().is_some_and(|slot| slot.stream.is_none()) {
            self.trim();
        }
        Some(stream)
    }

    /// The number of slots, used or not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Gives back the memory of free slots at the end.
    fn trim(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.stream.is_none()) {
            self.slots.pop();
        }
        self.slots.shrink_to_fit();
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.stream.is_none());
        // The first ones are used first, so that the last ones become free.
        self.free = free.map(|(slot, _)| slot).rev().collect();
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Bodies may be read elsewhere.
        for inbound in self.iter_mut().filter_map(|stream| stream.inbound.as_ref()) {
            inbound.fail(BodyError::ConnectionEnded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(streams: &mut Streams, id: u32) -> usize {
        let slot = streams.reserve();
        let stream = Stream {
            id,
            send_window: 0,
            receive_window: 0,
            held: 0,
            unannounced: 0,
            inbound: None,
            expected: None,
            receiving: true,
            sending: true,
            seen: false,
        };
        streams.insert(slot, stream);
        slot
    }

    #[test]
    fn slots_are_used_again_and_given_back_after_a_burst() {
        let mut streams = Streams::default();
        let first = open(&mut streams, 1);
        let burst: Vec<_> = (0..1000).map(|n| open(&mut streams, 3 + 2 * n)).collect();
        assert_eq!((streams.len(), streams.slot(3)), (1001, Some(burst[0])));
        for slot in burst {
            assert!(streams.remove(slot).is_some() && streams.remove(slot).is_none());
        }
        assert!(streams.slots() <= 1 + 2 * FREE_KEPT);
        assert_eq!(streams.get(first).unwrap().id, 1);
        let again = open(&mut streams, 5001);
        assert!(again < streams.slots() && streams.slot(5001) == Some(again));
        streams.remove(first);
        streams.remove(again);
        assert!(streams.is_empty());
    }
}
