//! What the scope file said about the objects of one event.

use super::{Name, NamespacedName};
use crate::model::keys::Scope;
use crate::scope::Verdict;

/// A decision that follows from an object, which is noted once the event has been handled.
pub(super) enum Note {
    /// The key of an object; `None` if the object is not exported whatever the rules say.
    Key {
        scope: Scope,
        name: Name,
        decided: Option<(Verdict, u64)>,
    },
    /// Another rule decided the same about a key.
    Cause { scope: Scope, name: Name, verdict: Verdict },
    /// A global service, with the addresses that it exports.
    Service {
        name: NamespacedName,
        decided: Option<(Verdict, Box<[Name]>)>,
    },
    ServiceExport {
        name: NamespacedName,
        verdict: Option<Verdict>,
    },
}
