//! Readiness: what must finish first, and what must be well afterwards.

use super::notify::until;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// Ready once no guard is left, for as long as no condition that counts fails. A guard that comes later
/// changes nothing: it must not take the process out of its Service.
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

struct Condition {
    name: String,
    /// Whether readiness depends on it.
    counts: bool,
    /// What is wrong, if anything is.
    trouble: Box<dyn Fn() -> Option<String> + Send>,
}

/// Blocks readiness while it lives.
pub struct Block {
    ready: Ready,
    id: u64,
}

impl Ready {
    /// Registers something that must finish before the process is ready.
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

    /// Registers something to look at: `trouble` says what is wrong with it. If it `counts`, the process is not
    /// ready while something is.
    pub fn condition(
        &self,
        name: impl Into<String>,
        counts: bool,
        trouble: impl Fn() -> Option<String> + Send + 'static,
    ) {
        self.0.state.lock().conditions.push(Condition {
            name: name.into(),
            counts,
            trouble: Box::new(trouble),
        });
    }

    /// What is still unfinished, by name.
    pub fn pending(&self) -> Vec<String> {
        self.0.state.lock().pending.values().cloned().collect()
    }

    /// Whether everything has finished, or had, and is well.
    pub fn is_ready(&self) -> bool {
        let state = self.0.state.lock();
        let mut counting = state.conditions.iter().filter(|c| c.counts);
        state.was_ready && counting.all(|c| (c.trouble)().is_none())
    }

    /// Waits until everything has finished for the first time.
    pub async fn reached(&self) {
        until(&self.0.reached, || self.0.state.lock().was_ready).await;
    }

    /// How it is with each part, a line each, in the manner of Kubernetes' own health checks.
    pub fn report(&self) -> String {
        let state = self.0.state.lock();
        let mut report = String::new();
        for name in state.pending.values() {
            report += &format!("[-]{name} is not finished\n");
        }
        for condition in &state.conditions {
            let name = &condition.name;
            report += &match (condition.trouble)() {
                None => format!("[+]{name} ok\n"),
                Some(why) if condition.counts => format!("[-]{name} failed: {why}\n"),
                Some(why) => format!("[!]{name} failed, which does not count: {why}\n"),
            };
        }
        report
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
    async fn ready_means_that_every_guard_is_gone_and_stays() {
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
    fn a_condition_that_counts_takes_readiness_away_and_gives_it_back() {
        let ready = Ready::default();
        let broken = Arc::new(AtomicBool::new(true));
        let look = Arc::clone(&broken);
        ready.condition("store", true, move || {
            look.load(Ordering::Relaxed).then(|| "away".to_owned())
        });
        ready.condition("rumour", false, || Some("bad".to_owned()));
        drop(ready.block("start"));
        assert!(!ready.is_ready());
        assert_eq!(
            ready.report(),
            "[-]store failed: away\n[!]rumour failed, which does not count: bad\n"
        );
        broken.store(false, Ordering::Relaxed);
        assert!(ready.is_ready());
    }
}
