//! Watches of a replica that begin after everything that upstream has.
//!
//! A client resumes a watch behind a revision that it was told. If the upstream was restored from a backup meanwhile, that revision
//! may be beyond everything there is, and the watch would wait in silence while other changes get the numbers up to it
//! (etcd#14303). What upstream has is asked for after the watch came, so nobody can have been told more: such a watch is cancelled
//! as compacted, and its client lists.

use super::{WatchHead, WatchSession};
use crate::server::commit::Cause;
use futures::future::BoxFuture;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Status;

/// Time between questions while upstream is away.
const PAUSE: Duration = Duration::from_secs(1);

/// The watches of a stream that begin after the revision that was here.
#[derive(Default)]
pub(super) struct Suspects {
    /// Those that came after the present question.
    waiting: Vec<i64>,
    /// Those that the present question is about.
    asked: Vec<i64>,
    question: Option<BoxFuture<'static, Result<i64, Status>>>,
    /// What comes before the next question.
    pause: Duration,
}

impl Suspects {
    /// The answer to the present question.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<i64, Status>> {
        match &mut self.question {
            Some(question) => question.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl WatchSession {
    /// Looks at a new watch from `start`, created at `revision`.
    pub(super) fn suspect(&mut self, id: i64, start: i64, revision: i64) {
        if self.core.config.cancel_impossible_watches && self.core.upstream.is_some() && start > revision + 1 {
            self.suspects.waiting.push(id);
            self.ask_about_suspects();
        }
    }

    fn ask_about_suspects(&mut self) {
        let Some(upstream) = self.core.upstream.clone() else {
            return;
        };
        if self.suspects.question.is_none() && !self.suspects.waiting.is_empty() {
            self.suspects.asked = std::mem::take(&mut self.suspects.waiting);
            let pause = std::mem::take(&mut self.suspects.pause);
            self.suspects.question = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                upstream.index().await
            }));
            self.bell.look_again();
        }
    }

    /// Cancels the watches that begin after everything that upstream has.
    pub(super) fn judge_suspects(&mut self, told: Result<i64, Status>) {
        self.suspects.question = None;
        let asked = std::mem::take(&mut self.suspects.asked);
        match told {
            // Upstream is away: nothing is known.
            Err(_) => {
                self.suspects.waiting.extend(asked);
                self.suspects.pause = PAUSE;
            }
            Ok(last) => {
                for watch_id in asked {
                    if self.watchers.get(&watch_id).is_some_and(|entry| entry.start > last + 1) {
                        self.watchers.remove(&watch_id);
                        self.ended(watch_id);
                        let head = WatchHead {
                            watch_id,
                            canceled: true,
                            compact_revision: self.core.store.floor().max(1),
                            ..WatchHead::default()
                        };
                        // As with every compaction, the header has no revision.
                        self.answer(0, head, Cause::EveryChange);
                    }
                }
            }
        }
        self.suspects.waiting.retain(|id| self.watchers.contains_key(id));
        self.ask_about_suspects();
    }
}
