//! The budget of a writer whose values come from a remote cluster: how fast it may change keys that the store already
//! holds, and how much history its changes may leave.
//!
//! Without a budget, a remote that changes large values as fast as it can fills the store with their history. Keys that
//! the store does not hold are free, so that a first list is written at full speed. A writer without budget left waits;
//! meanwhile the desired values change in place, so only the newest value of each key is written.

use crate::kvstore::HistoryMark;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A burst may use what a rate gives in this time.
const BURST: Duration = Duration::from_secs(5);
/// Bytes that a change leaves in the history beside key and value.
const OVERHEAD: u64 = 128;
/// Changes in this time are one entry of the history.
const GRAIN: Duration = Duration::from_secs(1);
/// Shortest wait for a rate: rounding must not make the writer look again and again.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// How often to look whether a compaction has freed history.
const LOOK: Duration = Duration::from_millis(250);

/// The limits of a writer. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeLimits {
    /// Changed keys per second.
    pub keys_per_second: u64,
    /// Bytes of replaced and deleted values per second, with their keys.
    pub bytes_per_second: u64,
    /// Bytes of replaced and deleted values that the store may keep as history.
    pub history_bytes: u64,
}

/// The limit that a writer has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachedLimit {
    Keys,
    Bytes,
    History,
}

/// Refills at a rate, up to a burst. The last charge may exceed what is left.
#[derive(Debug)]
struct Bucket {
    /// Per second; 0 for no limit.
    rate: f64,
    left: f64,
    at: Instant,
}

/// What the changes of one writer may still use.
#[derive(Debug)]
pub(super) struct Budget {
    keys: Bucket,
    bytes: Bucket,
    history_max: u64,
    /// Bytes of history that no compaction has freed yet, by the revision that a compaction must reach.
    history: VecDeque<Left>,
    history_bytes: u64,
}

/// Bytes that the changes of a short time left in the history.
#[derive(Debug)]
struct Left {
    begun: Instant,
    revision: i64,
    bytes: u64,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        let rate = rate as f64;
        Self {
            rate,
            left: rate * BURST.as_secs_f64(),
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let gained = self.rate * now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + gained).min(self.rate * BURST.as_secs_f64());
        self.at = now;
    }

    /// How long to wait until something is left.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.rate == 0.0 {
            return None;
        }
        self.refill(now);
        let wait = || Duration::from_secs_f64(((1.0 - self.left) / self.rate).min(60.0));
        (self.left < 1.0).then(|| wait().max(SHORTEST_WAIT))
    }
}

/// Bytes that a change of a key leaves in the history: the old value, with the key.
pub(super) fn cost(key: &[u8], old_value: u32) -> u64 {
    key.len() as u64 + u64::from(old_value) + OVERHEAD
}

impl Budget {
    pub(super) fn new(limits: ChangeLimits, now: Instant) -> Self {
        Self {
            keys: Bucket::new(limits.keys_per_second, now),
            bytes: Bucket::new(limits.bytes_per_second, now),
            history_max: limits.history_bytes,
            history: VecDeque::new(),
            history_bytes: 0,
        }
    }

    /// The limit that the writer has reached, and when to look again; `None` if it may change keys.
    pub(super) fn reached(&mut self, now: Instant, store: Option<HistoryMark>) -> Option<(ReachedLimit, Duration)> {
        let compacted = store.map_or(i64::MIN, |mark| mark.compacted);
        while let Some(freed) = self.history.front().filter(|left| left.revision <= compacted) {
            self.history_bytes -= freed.bytes;
            self.history.pop_front();
        }
        if self.history_max > 0 && self.history_bytes >= self.history_max {
            return Some((ReachedLimit::History, LOOK));
        }
        let keys = self.keys.wait(now).map(|wait| (ReachedLimit::Keys, wait));
        let bytes = self.bytes.wait(now).map(|wait| (ReachedLimit::Bytes, wait));
        keys.into_iter().chain(bytes).max_by_key(|(_, wait)| *wait)
    }

    /// Charges `keys` changes with `bytes` of history. A store that does not say how far its history reaches is not
    /// charged for history.
    pub(super) fn charge(&mut self, now: Instant, store: Option<HistoryMark>, keys: u64, bytes: u64) {
        self.keys.left -= keys as f64;
        self.bytes.left -= bytes as f64;
        let Some(HistoryMark { revision, .. }) = store else {
            return;
        };
        self.history_bytes += bytes;
        match self.history.back_mut() {
            Some(last) if now.saturating_duration_since(last.begun) < GRAIN => {
                last.revision = revision;
                last.bytes += bytes;
            }
            _ => self.history.push_back(Left {
                begun: now,
                revision,
                bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ChangeLimits = ChangeLimits {
        keys_per_second: 10,
        bytes_per_second: 1000,
        history_bytes: 20_000,
    };

    fn mark(revision: i64, compacted: i64) -> Option<HistoryMark> {
        Some(HistoryMark { revision, compacted })
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let begun = Instant::now();
        let mut budget = Budget::new(LIMITS, begun);
        assert_eq!(budget.reached(begun, None), None);
        budget.charge(begun, None, 50, 100);
        let (limit, wait) = budget.reached(begun, None).unwrap();
        assert_eq!((limit, wait), (ReachedLimit::Keys, Duration::from_millis(100)));
        assert_eq!(budget.reached(begun + wait, None), None);
        // One charge may exceed what is left, and is waited for afterwards.
        budget.charge(begun + wait, None, 1, 10_000);
        let (limit, wait) = budget.reached(begun + wait, None).unwrap();
        assert_eq!(limit, ReachedLimit::Bytes);
        assert!(
            wait > Duration::from_secs(4) && wait < Duration::from_secs(6),
            "{wait:?}"
        );
    }

    #[test]
    fn history_is_charged_until_a_compaction_frees_it() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(100);
        let mut budget = Budget::new(LIMITS, begun);
        budget.charge(begun, mark(5, -1), 1, 15_000);
        budget.charge(later, mark(9, -1), 1, 6000);
        let long = later + Duration::from_secs(1000);
        assert_eq!(budget.reached(long, mark(9, 4)), Some((ReachedLimit::History, LOOK)));
        assert_eq!(budget.reached(long, mark(9, 5)), None);
        assert_eq!(budget.history_bytes, 6000);
        assert_eq!(budget.reached(long, mark(9, 9)), None);
        assert_eq!(budget.history_bytes, 0);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let now = Instant::now();
        let mut budget = Budget::new(ChangeLimits::default(), now);
        budget.charge(now, mark(1, -1), u64::MAX / 4, u64::MAX / 4);
        assert_eq!(budget.reached(now, mark(1, -1)), None);
    }
}
