//! Readiness as a set of guards: whoever must finish first holds one, and dropping it is finishing.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Ready when no guard is left.
#[derive(Clone, Default)]
pub struct Ready(Arc<Mutex<BTreeSet<String>>>);

/// Blocks readiness while it lives.
pub struct Block {
    ready: Ready,
    name: String,
}

impl Ready {
    /// Registers something that must finish before the process is ready.
    pub fn block(&self, name: impl Into<String>) -> Block {
        let name = name.into();
        self.0.lock().insert(name.clone());
        Block {
            ready: self.clone(),
            name,
        }
    }

    /// What is still unfinished, by name.
    pub fn pending(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }

    /// Whether everything has finished.
    pub fn is_ready(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.ready.0.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_guard_is_gone() {
        let ready = Ready::default();
        let (a, b) = (ready.block("a"), ready.block("b"));
        drop(a);
        assert_eq!(ready.pending(), ["b"]);
        assert!(!ready.is_ready());
        drop(b);
        assert!(ready.is_ready());
    }
}
