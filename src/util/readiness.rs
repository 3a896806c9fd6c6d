//! Readiness as a set of guards: whoever must finish first holds one, and dropping it is finishing.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ready when no guard is left; once ready, for ever, as the original's: what comes later must not take the
/// process out of its Service.
#[derive(Clone, Default)]
pub struct Ready(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, String>,
    next: u64,
    was_ready: bool,
}

/// Blocks readiness while it lives.
pub struct Block {
    ready: Ready,
    id: u64,
}

impl Ready {
    /// Registers something that must finish before the process is ready.
    pub fn block(&self, name: impl Into<String>) -> Block {
        let mut state = self.0.lock();
        state.next += 1;
        let id = state.next;
        state.pending.insert(id, name.into());
        Block {
            ready: self.clone(),
            id,
        }
    }

    /// What is still unfinished, by name.
    pub fn pending(&self) -> Vec<String> {
        self.0.lock().pending.values().cloned().collect()
    }

    /// Whether everything has finished, or had.
    pub fn is_ready(&self) -> bool {
        self.0.lock().was_ready
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.ready.0.lock();
        state.pending.remove(&self.id);
        state.was_ready |= state.pending.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_guard_is_gone_and_stays() {
        let ready = Ready::default();
        let (a, b) = (ready.block("same"), ready.block("same"));
        drop(a);
        assert_eq!(ready.pending(), ["same"]);
        assert!(!ready.is_ready());
        drop(b);
        assert!(ready.is_ready());
        let _later = ready.block("later");
        assert!(ready.is_ready());
    }
}
