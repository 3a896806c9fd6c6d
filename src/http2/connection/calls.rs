//! The calls of a connection: which are polled next, and what each of them does.

use crate::http2::core::{Core, Event, Sent};
use crate::http2::inbound::RequestStream;
use crate::http2::wakers::SlotWaker;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes that one call sends before others may.
const SHARE: usize = 16 << 10;

/// All calls, by the slots of their streams.
pub(super) struct Calls<F, B> {
    slots: Vec<Option<Box<Call<F, B>>>>,
    /// Calls to be polled.
    ready: VecDeque<usize>,
    /// Calls that wait for the window of the connection: those that could send nothing when they were polled, and those
    /// that go after them because they have used the window up.
    starved: Vec<usize>,
    served: Vec<usize>,
    /// Calls that wait for room in the output.
    crowded: Vec<usize>,
    woken: Vec<u32>,
}

struct Call<F, B> {
    stage: Stage<F, B>,
    slot: Arc<SlotWaker>,
    waker: Waker,
    /// Whether the call is among those that are ready.
    queued: bool,
    /// Whether the call waits for the window of its stream.
    blocked: bool,
}

enum Stage<F, B> {
    /// The answer has not begun.
    Running(Pin<Box<F>>),
    Answering(Answer<B>),
    /// The answer was sent, and the request is still being read.
    Reading,
}

struct Answer<B> {
    body: B,
    /// What was taken from the body and not sent.
    data: Bytes,
    /// Whether `data` ends the body.
    last: bool,
}

/// What to do with a call after it was polled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The call waits to be woken.
    Wait,
    /// Others go first.
    Requeue,
    Over,
}

impl<F, B> Default for Calls<F, B> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            ready: VecDeque::new(),
            starved: Vec::new(),
            served: Vec::new(),
            crowded: Vec::new(),
            woken: Vec::new(),
        }
    }
}

impl<F, B> Calls<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    /// Does what an event says.
    pub fn take(&mut self, event: Event, core: &mut Core, service: &impl Fn(Request<RequestStream>) -> F) {
        match event {
            Event::Nothing => {}
            Event::Request(slot, request) => {
                let call = Call::new(Box::pin(service(*request)), core.waker(slot));
                if self.slots.len() <= slot {
                    self.slots.resize_with(slot + 1, || None);
                }
                self.slots[slot] = Some(Box::new(call));
                self.queue(slot);
            }
            Event::Closed(slot) => self.remove(slot, core),
            Event::Writable(slot) => self.unblock(slot),
            Event::ConnectionWritable => {
                let (starved, served) = (std::mem::take(&mut self.starved), std::mem::take(&mut self.served));
                for slot in starved.into_iter().chain(served) {
                    self.queue(slot);
                }
            }
            Event::AllWritable => (0..self.slots.len()).for_each(|slot| self.unblock(slot)),
        }
    }

    fn call(&mut self, slot: usize) -> Option<&mut Call<F, B>> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    fn queue(&mut self, slot: usize) {
        if let Some(call) = self.call(slot)
            && !std::mem::replace(&mut call.queued, true)
        {
            self.ready.push_back(slot);
        }
    }

    /// Polls every call once more.
    pub fn queue_all(&mut self) {
        (0..self.slots.len()).for_each(|slot| self.queue(slot));
    }

    fn unblock(&mut self, slot: usize) {
        if self.call(slot).is_some_and(|call| std::mem::take(&mut call.blocked)) {
            self.queue(slot);
        }
    }

    fn remove(&mut self, slot: usize, core: &Core) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = None;
        }
        if self.slots.len() > core.slots() {
            self.slots.truncate(core.slots());
            self.slots.shrink_to_fit();
        }
    }

    /// Drops all calls.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether calls wait to be polled.
    pub fn are_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Lets calls go on that waited for room in the output.
    pub fn output_changed(&mut self, core: &mut Core) {
        if !self.crowded.is_empty() && core.has_room() {
            for slot in std::mem::take(&mut self.crowded) {
                self.queue(slot);
            }
        }
    }

    /// Polls calls that are ready, each of `polls` times at most.
    pub fn run(&mut self, core: &mut Core, polls: &mut usize) {
        loop {
            let mut woken = std::mem::take(&mut self.woken);
            core.wakes().take(&mut woken);
            for slot in woken.drain(..) {
                self.queue(slot as usize);
            }
            self.woken = woken;
            if self.ready.is_empty() {
                break;
            }
            while *polls > 0 && core.may_receive() {
                let Some(slot) = self.ready.pop_front() else { break };
                *polls -= 1;
                self.poll(slot, core);
            }
            if *polls == 0 || !core.may_receive() {
                break;
            }
        }
        if self.woken.capacity() > 64 {
            self.woken = Vec::new();
        }
        if self.ready.is_empty() && self.ready.capacity() > 64 {
            self.ready = VecDeque::new();
        }
    }

    fn poll(&mut self, slot: usize, core: &mut Core) {
        // The call is out of its place while it runs.
        let Some(mut call) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        call.queued = false;
        call.slot.clear();
        let before = core.output.len();
        let (next, sent) = call.poll(slot, core);
        let list = match core.output.len() > before {
            true => &mut self.served,
            false => &mut self.starved,
        };
        match sent {
            Some(Sent::OutputFull) => self.crowded.push(slot),
            Some(Sent::ConnectionWindowUsed) => push_slot(list, slot, self.slots.len()),
            Some(Sent::StreamWindowUsed) => call.blocked = true,
            _ => {}
        }
        if next == Next::Over {
            drop(call);
            return self.remove(slot, core);
        }
        core.credit_read(slot);
        self.slots[slot] = Some(call);
        if next == Next::Requeue {
            self.queue(slot);
        }
    }
}

/// Adds a slot to a list, in which a slot may come again after its stream was reset. The list stays short.
fn push_slot(list: &mut Vec<usize>, slot: usize, slots: usize) {
    list.push(slot);
    if list.len() > 2 * slots + 16 {
        let mut seen = vec![false; slots];
        list.retain(|slot| seen.get_mut(*slot).is_some_and(|seen| !std::mem::replace(seen, true)));
    }
}

impl<F, B> Call<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin,
{
    fn new(future: Pin<Box<F>>, slot: Arc<SlotWaker>) -> Self {
        // The former call may have been woken and not polled.
        slot.clear();
        Self {
            stage: Stage::Running(future),
            waker: Arc::clone(&slot).into(),
            slot,
            queued: false,
            blocked: false,
        }
    }

    /// Runs the call as far as it can. Returns what it waits for, if that is not its waker.
    fn poll(&mut self, slot: usize, core: &mut Core) -> (Next, Option<Sent>) {
        let mut cx = Context::from_waker(&self.waker);
        if let Stage::Running(future) = &mut self.stage {
            core.seen(slot);
            let Poll::Ready(answer) = future.as_mut().poll(&mut cx) else {
                return (Next::Wait, None);
            };
            let (head, body) = answer.into_parts();
            let end = body.is_end_stream();
            core.send_head(slot, head.status, &head.headers, end);
            let answer = Answer {
                body,
                data: Bytes::new(),
                last: false,
            };
            self.stage = Stage::Answering(answer);
            if end {
                return (self.finish(slot, core), None);
            }
        }
        if let Stage::Answering(answer) = &mut self.stage {
            match answer.poll(slot, core, &mut cx) {
                Step::Finished => {}
                Step::Waits(sent) => return (Next::Wait, sent),
                Step::Paused => return (Next::Requeue, None),
                Step::Over => return (Next::Over, None),
            }
        }
        (self.finish(slot, core), None)
    }

    /// The end of the answer was sent.
    fn finish(&mut self, slot: usize, core: &mut Core) -> Next {
        // The body may hold what others wait for.
        self.stage = Stage::Reading;
        match core.finish(slot) {
            true => Next::Over,
            false => Next::Wait,
        }
    }
}

/// How far an answer has come.
enum Step {
    Finished,
    /// The answer waits for its body, or for what a sent frame has used up.
    Waits(Option<Sent>),
    Paused,
    Over,
}

impl<B: Body<Data = Bytes> + Unpin> Answer<B> {
    fn poll(&mut self, slot: usize, core: &mut Core, cx: &mut Context<'_>) -> Step {
        let before = core.output.len();
        loop {
            if self.data.is_empty() && !self.last {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => return Step::Waits(None),
                    Poll::Ready(None) => self.last = true,
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            self.data = data;
                            self.last = self.body.is_end_stream();
                        }
                        Err(frame) => {
                            if let Ok(trailers) = frame.into_trailers() {
                                core.send_trailers(slot, &trailers);
                                return Step::Finished;
                            }
                        }
                    },
                    Poll::Ready(Some(Err(_))) => {
                        core.abort(slot);
                        return Step::Over;
                    }
                }
                if self.data.is_empty() && !self.last {
                    continue;
                }
            }
            match core.send_data(slot, &mut self.data, self.last) {
                Sent::All if self.last => return Step::Finished,
                Sent::All | Sent::Some => {}
                Sent::Closed => return Step::Over,
                used => return Step::Waits(Some(used)),
            }
            if core.output.len() >= before + SHARE {
                return Step::Paused;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_slots_stays_short_however_often_streams_are_reset() {
        let mut list = vec![];
        for n in 0..10_000 {
            push_slot(&mut list, n % 7, 7);
            assert!(list.len() <= 2 * 7 + 16);
        }
        (0..7).for_each(|slot| assert!(list.contains(&slot)));
    }
}
