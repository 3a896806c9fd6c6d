//! Watch messages split into fragments, for clients that limit the size of a message.

use crate::mvcc::take_varint;
use crate::pb::{WatchHead, WatchResponse};
use bytes::Bytes;

/// Splits events over messages of about `max` bytes at most. All messages but the last are marked as fragments.
pub(super) fn fragments(head: WatchHead, frames: Vec<Bytes>, max: usize) -> Vec<WatchResponse> {
    if frames.iter().map(Bytes::len).sum::<usize>() < max {
        return vec![WatchResponse { head, events: frames }];
    }
    let mut out: Vec<Vec<Bytes>> = vec![vec![]];
    let mut size = 0;
    for event in frames.iter().flat_map(split) {
        if size > 0 && size + event.len() > max {
            out.push(vec![]);
            size = 0;
        }
        size += event.len();
        out.last_mut().expect("never empty").push(event);
    }
    let last = out.len() - 1;
    let response = |(i, events)| {
        let head = WatchHead {
            fragment: i < last,
            ..head.clone()
        };
        WatchResponse { head, events }
    };
    out.into_iter().enumerate().map(response).collect()
}

/// The single `events` fields of an encoded frame.
fn split(frame: &Bytes) -> Vec<Bytes> {
    let (mut at, mut out) = (0, vec![]);
    while at < frame.len() {
        let from = at;
        at += 1;
        let len = take_varint(frame, &mut at) as usize;
        at += len;
        out.push(frame.slice(from..at));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_split_between_events_and_only_the_last_ends_the_message() {
        let event = |n: u8| Bytes::from(vec![0x5a, 3, n, n, n]);
        let frame = Bytes::from([event(1), event(2), event(3)].concat());
        let parts = fragments(WatchHead::default(), vec![frame.clone(), event(4)], 10);
        let sizes: Vec<_> = parts.iter().map(|p| (p.events.len(), p.head.fragment)).collect();
        assert_eq!(sizes, [(2, true), (2, false)]);
        assert_eq!(fragments(WatchHead::default(), vec![frame], 100).len(), 1);
    }
}
