//! Readiness: steps that must finish first, and conditions that must hold afterwards.

use super::wait::until;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// Readiness is reached once no [`Block`] is left, and lasts while no required condition fails. A block that is added
/// later has no effect, so that it cannot take the process out of its Service.
#[derive(Clone, Default)]
pub struct Ready(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    reached: Notify,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, String>,
    next: u64,
    was_ready: bool,
    conditions: Vec<Condition>,
}

/// Whether readiness depends on a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    Required,
    /// The condition is only reported.
    Informative,
}

struct Condition {
    name: String,
    requirement: Requirement,
    /// Returns the reason for the failure while the condition fails.
    trouble: Box<dyn Fn() -> Option<String> + Send>,
}

/// A step that is not finished, or a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub state: PartState,
}

/// The state of a part of readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    Pending,
    Holds,
    /// The condition fails for a reason; readiness may depend on it.
    Fails {
        reason: String,
        requirement: Requirement,
    },
}

/// Blocks readiness while it lives.
pub struct Block {
    ready: Ready,
    id: u64,
}

impl Ready {
    /// Registers a step that must finish, by dropping the block, before the process is ready.
    pub fn block(&self, name: impl Into<String>) -> Block {
        let mut state = self.0.state.lock();
        state.next += 1;
        let id = state.next;
        state.pending.insert(id, name.into());
        Block {
            ready: self.clone(),
            id,
        }
    }

    /// Registers a condition. `trouble` returns the reason while the condition fails.
    pub fn condition(
        &self,
        name: impl Into<String>,
        requirement: Requirement,
        trouble: impl Fn() -> Option<String> + Send + 'static,
    ) {
        self.0.state.lock().conditions.push(Condition {
            name: name.into(),
            requirement,
            trouble: Box::new(trouble),
        });
    }

    /// The names of unfinished steps.
    pub fn pending(&self) -> Vec<String> {
        self.0.state.lock().pending.values().cloned().collect()
    }

    /// Whether all steps have finished and no required condition fails.
    pub fn is_ready(&self) -> bool {
        let state = self.0.state.lock();
        let mut required = state.conditions.iter().filter(|c| c.is_required());
        state.was_ready && required.all(|c| (c.trouble)().is_none())
    }

    /// Waits until all steps have finished for the first time.
    pub async fn reached(&self) {
        until(&self.0.reached, || self.0.state.lock().was_ready).await;
    }

    /// The unfinished steps, then the conditions.
    pub fn parts(&self) -> Vec<Part> {
        let state = self.0.state.lock();
        let pending = state.pending.values().map(|name| Part {
            name: name.clone(),
            state: PartState::Pending,
        });
        let conditions = state.conditions.iter().map(|condition| Part {
            name: condition.name.clone(),
            state: match (condition.trouble)() {
                None => PartState::Holds,
                Some(reason) => PartState::Fails {
                    reason,
                    requirement: condition.requirement,
                },
            },
        });
        pending.chain(conditions).collect()
    }

    /// The state of each step and condition, one per line, in the format of Kubernetes' health checks.
    pub fn report(&self) -> String {
        let line = |Part { name, state }| match state {
            PartState::Pending => format!("[-]{name} is not finished\n"),
            PartState::Holds => format!("[+]{name} ok\n"),
            PartState::Fails { reason, requirement } => match requirement {
                Requirement::Required => format!("[-]{name} failed: {reason}\n"),
                Requirement::Informative => format!("[!]{name} failed, which does not affect readiness: {reason}\n"),
            },
        };
        self.parts().into_iter().map(line).collect()
    }
}

impl Requirement {
    pub fn required_if(is_required: bool) -> Self {
        match is_required {
            true => Self::Required,
            false => Self::Informative,
        }
    }
}

impl Condition {
    fn is_required(&self) -> bool {
        self.requirement == Requirement::Required
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.ready.0.state.lock();
        state.pending.remove(&self.id);
        state.was_ready |= state.pending.is_empty();
        drop(state);
        self.ready.0.reached.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn ready_once_every_block_is_dropped_and_from_then_on() {
        let ready = Ready::default();
        let (a, b) = (ready.block("same"), ready.block("same"));
        drop(a);
        assert_eq!(ready.pending(), ["same"]);
        assert!(!ready.is_ready());
        drop(b);
        assert!(ready.is_ready());
        ready.reached().await;
        let _later = ready.block("later");
        assert!(ready.is_ready());
    }

    #[test]
    fn a_required_condition_takes_readiness_away_and_gives_it_back() {
        let ready = Ready::default();
        let broken = Arc::new(AtomicBool::new(true));
        let look = Arc::clone(&broken);
        ready.condition("store", Requirement::Required, move || {
            look.load(Ordering::Relaxed).then(|| "away".to_owned())
        });
        ready.condition("rumour", Requirement::Informative, || Some("bad".to_owned()));
        drop(ready.block("start"));
        assert!(!ready.is_ready());
        assert_eq!(
            ready.report(),
            "[-]store failed: away\n[!]rumour failed, which does not affect readiness: bad\n"
        );
        broken.store(false, Ordering::Relaxed);
        assert!(ready.is_ready());
    }
}
