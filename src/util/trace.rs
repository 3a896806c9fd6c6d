//! Follows a write from its cause to the readers that receive it, through all processes and clusters that it passes.
//!
//! A *trace* is one revision of one store. Its id follows from the cluster id of the store and the revision, which the writer,
//! the store and every mirror know. So they all tell of the same trace, and agree on which revisions are sampled, although
//! nothing about traces is in keys, values or messages.
//!
//! Rooms say what happened, as a [`Span`] that has ended; whoever [`start`]s tracing decides where spans go. While nobody
//! has, [`is_on`] is one load, and nothing else is done.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    sink: Box<dyn Sink>,
    /// A trace is sampled if the second half of its id is at most this.
    most: u64,
}

/// Takes the spans of this process. Must not wait.
pub trait Sink: Send + Sync {
    fn take(&self, span: Span);
}

/// One revision of one store; see the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trace {
    high: u64,
    low: u64,
}

/// Something that took time.
#[derive(Debug)]
pub struct Span {
    pub trace: Trace,
    pub name: &'static str,
    pub place: Place,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    /// Traces that go on what happened here.
    pub links: Vec<Trace>,
}

/// Where a span is in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The whole way of the write into its store. A trace has one such span, told by the writer.
    Root,
    /// A part of it, or what followed from it.
    Child,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

/// What a write follows from.
#[derive(Clone, Copy, Debug, Default)]
pub enum Cause<'a> {
    /// Nothing that is followed.
    #[default]
    Untraced,
    /// A change outside of all stores: a trace begins with the revision of the write.
    Source,
    /// Revisions of other stores, whose traces go on.
    Revisions(&'a [Trace]),
}

/// Begins tracing: `sink` gets the spans of this share of all traces. The first call counts.
pub fn start(sink: Box<dyn Sink>, share: f64) {
    let most = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
    let _ = TRACER.set(Tracer { sink, most });
}

/// Whether spans are wanted.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// The trace of a revision; `None` if it is not sampled.
pub fn of(store_id: u64, revision: i64) -> Option<Trace> {
    let tracer = TRACER.get()?;
    let trace = Trace::of(store_id, revision);
    (store_id != 0 && trace.low <= tracer.most).then_some(trace)
}

/// Hands a span over.
pub fn record(span: Span) {
    if let Some(tracer) = TRACER.get() {
        tracer.sink.take(span);
    }
}

/// The time of day of `instant`.
pub fn time_of(instant: Instant) -> SystemTime {
    ago(instant.elapsed())
}

/// The time of day `duration` ago.
pub fn ago(duration: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(duration).unwrap_or(now)
}

/// Bytes of a key that an attribute has. A key may have a megabyte, and thousands of spans may wait for a collector.
const KEY_SHOWN: usize = 1024;

/// The text of a key, for an attribute; the beginning of a long one.
pub fn key(key: &[u8]) -> Value {
    let text = |key| String::from_utf8_lossy(key).into_owned();
    Value::Text(match key.len() > KEY_SHOWN {
        true => text(&key[..KEY_SHOWN]) + "…",
        false => text(key),
    })
}

/// Mixes the bits of a number (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

// === impl Trace ===

impl Trace {
    fn of(store_id: u64, revision: i64) -> Self {
        let high = mix(store_id.wrapping_add(mix(revision.cast_unsigned())));
        let low = mix(high ^ revision.cast_unsigned().rotate_left(32));
        // An id of zeros is invalid.
        Self { high: high | 1, low }
    }

    /// The id of the trace.
    pub fn id(self) -> u128 {
        (u128::from(self.high) << 64) | u128::from(self.low)
    }

    /// The id of the span [`Place::Root`].
    pub fn root(self) -> u64 {
        mix(self.high ^ self.low.rotate_left(17)) | 1
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.id())
    }
}

// === impl Value ===

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_does_not_make_a_long_span() {
        let text = |length: usize| key(&vec![b'k'; length]);
        assert_eq!(text(KEY_SHOWN), Value::Text("k".repeat(KEY_SHOWN)));
        assert_eq!(text(KEY_SHOWN + 1), Value::Text("k".repeat(KEY_SHOWN) + "…"));
    }
    use std::collections::HashSet;

    #[test]
    fn ids_are_those_of_every_other_version() {
        // Another version in another cluster tells of the same trace.
        assert_eq!(format!("{:?}", Trace::of(1, 1)), "d9bf17d113f38957a1f2ee7ed504c30b");
        let trace = Trace::of(0x9176_88c0_84b7_9861, 123_456_789);
        assert_eq!(format!("{trace:?}"), "e216301948ce779115131f8baa01906a");
        assert_eq!(format!("{:016x}", trace.root()), "4560a8d4fb9a6c7f");
    }

    #[test]
    fn ids_differ_and_a_share_of_them_is_sampled() {
        let mut ids = HashSet::new();
        let mut sampled = 0;
        for store in 1..=10 {
            for revision in 1..=1000 {
                let trace = Trace::of(store, revision);
                assert_ne!(trace.root(), 0);
                assert!(ids.insert(trace.id()));
                sampled += u32::from(trace.low <= u64::MAX / 100);
            }
        }
        assert!((50..200).contains(&sampled), "{sampled} of 10,000");
    }

    #[test]
    fn nothing_is_traced_unless_somebody_began() {
        assert!(!is_on());
        assert_eq!(of(1, 1), None);
    }
}
