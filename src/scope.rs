//! The scope file: which keys a cluster exports to the mesh, and which keys of remote clusters it imports.
//!
//! `docs/scope.md` is the reference of the file. [`mod@file`] has its content, [`rules`] decides about keys, and [`follow`]
//! follows the file. Everything but the follower is pure.

pub mod counts;
pub mod exported;
pub mod file;
pub mod follow;
pub mod glob;
pub mod metrics;
mod parse;
pub mod rules;
pub mod schema;
pub mod selector;
#[cfg(test)]
mod tests;

pub use counts::Counts;
pub use exported::Exported;
pub use file::{ClusterRules, Export, Identities, Import, ScopeFile};
pub use follow::{FileState, Watcher};
pub use glob::Glob;
pub use parse::Mistake;
pub use rules::{Bits, Cause, Decision, NamespaceFacts, Rules, Verdict};
pub use selector::{IdentityLabels, Selector};
