//! What agents and writers count and measure, while they run.

use super::histogram::{Histogram, Measure};
use super::verify::Findings;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The most different errors that are told apart.
const ERRORS_MAX: usize = 32;
/// The most bytes of an error that are kept.
const ERROR_BYTES: usize = 200;
/// The answers of a lane that are remembered. An event that comes later than so many writes has no time since its commit.
const ANSWERS: usize = 256;
/// Histograms are divided by agents, so that threads do not wait for each other.
const SHARDS: usize = 8;

/// Nanoseconds since 1970.
pub fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that everybody adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// All counters and histograms of a run.
pub struct Tally {
    /// Agents whose watches all live.
    pub live: AtomicI64,
    pub connects: Counter,
    /// Connections that were made and ended before the test did, without storms.
    pub disconnects: Counter,
    /// Connections that storms of the test have closed.
    pub storm_closed: Counter,
    /// Attempts to connect that failed.
    pub failed_connects: Counter,
    /// Connections whose lists and watches are complete, storms included.
    pub synced: Counter,
    pub listed: Counter,
    /// Events of this run that agents have received.
    pub delivered: Counter,
    /// Events of others that agents have received.
    pub foreign: Counter,
    pub heartbeats: Counter,
    pub messages: Counter,
    pub received_bytes: Counter,
    pub written: Counter,
    /// Changes that were made at the moments of the schedule, and moments that passed without a connection.
    pub changes: Counter,
    pub skipped: Counter,
    /// Events that came before the answer to their write.
    pub early: Counter,
    /// Writes that were repeated because their answer was lost.
    pub rewritten: Counter,
    pub pings: Counter,
    /// Relists because a revision was compacted or the store has another cluster id.
    pub relists: Counter,
    /// Agents whose state at the end is the state that was written.
    pub verified: Counter,
    /// Agents that had not received everything at the end, or were not connected.
    pub behind: Counter,
    /// Prefixes whose last write the store has not answered.
    pub unanswered: Counter,
    /// Agents that stopped reading, and those of them that the store has disconnected.
    pub stalled: Counter,
    pub stalled_closed: Counter,
    findings: Mutex<Findings>,
    errors: Mutex<BTreeMap<String, u64>>,
    /// The first error that a repetition does not help against.
    refusal: Mutex<Option<String>>,
    shards: Vec<Mutex<BTreeMap<Measure, Histogram>>>,
    /// When the first agent saw each of the last heartbeats.
    beats: Mutex<HashMap<i64, Instant>>,
    answers: Vec<[AtomicU64; ANSWERS]>,
}

impl Tally {
    /// Counters for `lanes` lanes of all prefixes.
    pub fn new(lanes: usize) -> Self {
        Self {
            live: AtomicI64::new(0),
            connects: Counter::default(),
            disconnects: Counter::default(),
            storm_closed: Counter::default(),
            failed_connects: Counter::default(),
            synced: Counter::default(),
            listed: Counter::default(),
            delivered: Counter::default(),
            foreign: Counter::default(),
            heartbeats: Counter::default(),
            messages: Counter::default(),
            received_bytes: Counter::default(),
            written: Counter::default(),
            changes: Counter::default(),
            skipped: Counter::default(),
            early: Counter::default(),
            rewritten: Counter::default(),
            pings: Counter::default(),
            relists: Counter::default(),
            verified: Counter::default(),
            behind: Counter::default(),
            unanswered: Counter::default(),
            stalled: Counter::default(),
            stalled_closed: Counter::default(),
            findings: Mutex::default(),
            errors: Mutex::default(),
            refusal: Mutex::default(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            beats: Mutex::default(),
            answers: (0..lanes).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        }
    }

    /// Notes a duration that agent or writer number `who` has measured.
    pub fn record(&self, who: usize, measure: Measure, took: Duration) {
        self.record_all(who, measure, std::iter::once(took.as_nanos() as u64));
    }

    /// Notes durations in nanoseconds.
    pub fn record_all(&self, who: usize, measure: Measure, nanos: impl IntoIterator<Item = u64>) {
        let mut shard = self.shards[who % SHARDS].lock();
        let histogram = shard.entry(measure).or_default();
        for nanos in nanos {
            histogram.record_nanos(nanos);
        }
    }

    /// Takes what has been measured since the last call.
    pub fn drain(&self) -> BTreeMap<Measure, Histogram> {
        let mut all: BTreeMap<Measure, Histogram> = BTreeMap::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for (measure, histogram) in shard.iter_mut().filter(|(_, histogram)| histogram.count() > 0) {
                all.entry(*measure).or_default().add(histogram);
                histogram.clear();
            }
        }
        all
    }

    pub fn error(&self, error: &impl std::fmt::Display) {
        let mut text = error.to_string();
        text.truncate(text.floor_char_boundary(ERROR_BYTES));
        let mut errors = self.errors.lock();
        if errors.len() >= ERRORS_MAX && !errors.contains_key(&text) {
            text = "other errors".to_owned();
        }
        *errors.entry(text).or_default() += 1;
    }

    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().clone()
    }

    /// Notes an error that a repetition does not help against.
    pub fn refuse(&self, error: &impl std::fmt::Display) {
        self.refusal.lock().get_or_insert_with(|| error.to_string());
    }

    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    pub fn find(&self, findings: Findings) {
        if !findings.is_empty() {
            *self.findings.lock() += findings;
        }
    }

    pub fn findings(&self) -> Findings {
        *self.findings.lock()
    }

    /// How long after the first agent this one sees the heartbeat of `revision`.
    pub fn beat(&self, revision: i64) -> Duration {
        let now = Instant::now();
        let mut beats = self.beats.lock();
        if beats.len() > 16 {
            let oldest = beats.keys().copied().min().unwrap_or_default();
            beats.remove(&oldest);
        }
        now.duration_since(*beats.entry(revision).or_insert(now))
    }

    /// Notes that the write with this sequence number was answered now.
    pub fn answered(&self, lane: usize, sequence: u64) {
        if let Some(answers) = self.answers.get(lane) {
            answers[sequence as usize % ANSWERS].store(pack(sequence, now_nanos()), Relaxed);
        }
    }

    /// The time from the answer to the write with this sequence number to `now`.
    pub fn since_answer(&self, lane: usize, sequence: u64, now: u64) -> SinceAnswer {
        let Some(answers) = self.answers.get(lane) else {
            return SinceAnswer::Forgotten;
        };
        let packed = answers[sequence as usize % ANSWERS].load(Relaxed);
        let (noted, at) = (packed >> TIME_BITS, packed & TIME_MASK);
        let expected = sequence & (u64::MAX >> TIME_BITS);
        match () {
            () if noted == expected => match now.wrapping_sub(at) & TIME_MASK {
                // The answer came after the event.
                since if since > TIME_MASK / 2 => SinceAnswer::NotAnswered,
                since => SinceAnswer::Nanos(since),
            },
            // The slot still has the answer of an earlier round.
            () if expected.wrapping_sub(noted) & (u64::MAX >> TIME_BITS) <= ANSWERS as u64 || packed == 0 => {
                SinceAnswer::NotAnswered
            }
            () => SinceAnswer::Forgotten,
        }
    }
}

/// How long before an event its write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinceAnswer {
    Nanos(u64),
    /// The event came first.
    NotAnswered,
    /// Too long ago.
    Forgotten,
}

/// A sequence number's last bits and a time's last bits fit into one atomic number.
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

fn pack(sequence: u64, nanos: u64) -> u64 {
    sequence << TIME_BITS | nanos & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_an_answer_is_that_of_the_same_write() {
        let tally = Tally::new(1);
        let before = now_nanos() - 1_000_000_000;
        assert_eq!(tally.since_answer(0, 1, now_nanos()), SinceAnswer::NotAnswered);
        tally.answered(0, 1);
        assert_eq!(
            tally.since_answer(0, 1, before),
            SinceAnswer::NotAnswered,
            "the event came first"
        );
        let later = now_nanos() + 5_000_000;
        let SinceAnswer::Nanos(since) = tally.since_answer(0, 1, later) else {
            panic!("the answer is known");
        };
        assert!((5_000_000..5_100_000_000).contains(&since), "{since}");
        // The answer to a later write in the same slot is not known yet.
        let next = 1 + ANSWERS as u64;
        assert_eq!(tally.since_answer(0, next, later), SinceAnswer::NotAnswered);
        tally.answered(0, next);
        assert_eq!(tally.since_answer(0, 1, later), SinceAnswer::Forgotten);
        assert_eq!(tally.since_answer(9, 1, later), SinceAnswer::Forgotten);
    }

    #[test]
    fn many_different_errors_are_counted_together() {
        let tally = Tally::new(0);
        for n in 0..100 {
            tally.error(&format!("error {n}"));
            tally.error(&"error 1");
        }
        let errors = tally.errors();
        assert_eq!(errors.len(), ERRORS_MAX + 1);
        assert_eq!(errors.values().sum::<u64>(), 200);
        assert_eq!(errors["error 1"], 101);
    }

    #[test]
    fn drained_histograms_begin_anew() {
        let tally = Tally::new(0);
        for who in 0..20 {
            tally.record(who, Measure::Put, Duration::from_millis(1));
        }
        assert_eq!(tally.drain()[&Measure::Put].count(), 20);
        assert!(tally.drain().is_empty());
    }
}
