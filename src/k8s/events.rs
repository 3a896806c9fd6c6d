//! What happens to objects, whatever the source.

use super::types::{Kind, Object, ObjectKey};
use tokio::time::Instant;

/// An event, and when it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// What happened.
    pub event: Event,
    /// When it was known here.
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

/// One event of a source. After a restart or a lost connection a source says again what is there, and
/// deletes what has gone in between.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object is there, with this content. Its name is kept by many: it is made once.
    Apply(ObjectKey, Box<Object>),
    /// The object is gone.
    Delete(ObjectKey),
    /// Every object of this kind that was there at the start has been said.
    Listed(Kind),
}
