//! Damage: stored bytes that differ from the bytes that were written.

use crate::mvcc::OutOfOrder;
use std::path::{Path, PathBuf};

/// A file, or a part of the store, that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", path.as_ref().map(|p| format!("{}: ", p.display())).unwrap_or_default())]
pub struct Damage {
    path: Option<PathBuf>,
    why: String,
}

impl Damage {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self {
            path: None,
            why: why.into(),
        }
    }

    pub(super) fn of(path: &Path, why: &str) -> Self {
        Self::new(why).at(path)
    }

    /// Names the damaged file, unless a file is named already.
    pub(super) fn at(self, path: &Path) -> Self {
        Self {
            path: self.path.or_else(|| Some(path.to_owned())),
            ..self
        }
    }
}

impl From<OutOfOrder> for Damage {
    fn from(error: OutOfOrder) -> Self {
        Self::new(error.to_string())
    }
}
