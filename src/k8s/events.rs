//! The events of a source of objects.

use super::types::{Kind, Object, ObjectKey};
use tokio::time::Instant;

/// An event and the time at which it was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub event: Event,
    pub at: Instant,
}

impl From<Event> for Received {
    fn from(event: Event) -> Self {
        Self {
            event,
            at: Instant::now(),
        }
    }
}

/// One event of a source. After a restart or a lost connection, a source applies all present objects again and deletes
/// the objects that have gone in between.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object exists with this content. The key is shared, because many parts keep it.
    Apply(ObjectKey, Box<Object>),
    Delete(ObjectKey),
    /// Every object of this kind that existed at the start has been applied.
    Listed(Kind),
}
