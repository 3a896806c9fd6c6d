//! What happens to objects, whatever the source.

use super::types::{Kind, Object, ObjectKey};

/// One event of a source. After a restart or a lost connection a source says again what is there, and
/// deletes what has gone in between.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object is there, with this content.
    Apply(Box<Object>),
    /// The object is gone.
    Delete(ObjectKey),
    /// Every object of this kind that was there at the start has been said.
    Listed(Kind),
}
