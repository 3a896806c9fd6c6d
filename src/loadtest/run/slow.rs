//! Slow readers in the middle of a run: the others are measured without, with, and after them.

use super::{Leader, Phase, Reads, Unit};
use crate::loadtest::outcome::{AFTER_SLOW_READERS, WITH_SLOW_READERS, WITHOUT_SLOW_READERS};
use crate::loadtest::plan::SlowReadersAt;
use crate::loadtest::sampler::Begun;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// The phases, in their order.
const PHASES: [&str; 3] = [WITHOUT_SLOW_READERS, WITH_SLOW_READERS, AFTER_SLOW_READERS];
/// How long slow readers may take to be in sync, and to leave.
const LIMIT: Duration = Duration::from_secs(60);

/// How far the comparison is.
pub(super) struct Comparison {
    /// The number of the phase under way.
    at: usize,
    begun: Begun,
    /// Leads the slow readers.
    phase: watch::Sender<Phase>,
    /// Ends with the last slow reader.
    readers: Option<mpsc::Receiver<()>>,
}

impl Leader<'_> {
    /// Begins the comparison, if there is to be one.
    pub(super) fn compared(&self) -> Option<Comparison> {
        let plan = &self.shared.plan;
        (plan.slow_readers > 0 && plan.slow_readers_at == SlowReadersAt::Middle).then(|| Comparison {
            at: 0,
            begun: self.sampler.begin_compared(),
            phase: watch::Sender::new(Phase::Live),
            readers: None,
        })
    }

    /// Goes on to the next phase if its time has come.
    pub(super) async fn compare(&mut self, comparison: &mut Option<Comparison>, elapsed: Duration) {
        let Some(comparison) = comparison else { return };
        let third = self.shared.plan.duration / PHASES.len() as u32;
        if comparison.at + 1 == PHASES.len() || elapsed < third * (comparison.at as u32 + 1) {
            return;
        }
        self.end_compared(comparison);
        comparison.at += 1;
        self.sampler.mark(PHASES[comparison.at]);
        match comparison.readers.take() {
            None => comparison.readers = Some(self.slow_readers(&comparison.phase).await),
            Some(mut readers) => {
                comparison.phase.send_replace(Phase::End);
                self.ended(&mut readers, LIMIT).await;
            }
        }
        comparison.begun = self.sampler.begin_compared();
    }

    /// Ends the last phase, and the slow readers if the run has ended early.
    pub(super) async fn end_comparison(&mut self, comparison: Option<Comparison>) {
        let Some(mut comparison) = comparison else { return };
        self.end_compared(&comparison);
        if let Some(mut readers) = comparison.readers.take() {
            comparison.phase.send_replace(Phase::End);
            self.ended(&mut readers, LIMIT).await;
        }
    }

    fn end_compared(&mut self, comparison: &Comparison) {
        let phase = self.sampler.end(&comparison.begun, PHASES[comparison.at], Unit::Event);
        self.outcome.phases.push(phase);
    }

    /// Starts the slow readers, and waits until all of them have stopped reading.
    async fn slow_readers(&self, phase: &watch::Sender<Phase>) -> mpsc::Receiver<()> {
        let (alive, ended) = mpsc::channel(1);
        let (first, count) = (self.shared.plan.connections(), self.shared.plan.slow_readers);
        self.spawn(first..first + count, Reads::UntilInSync, phase, &alive);
        let began = Instant::now();
        let stopped = &self.shared.tally.stalled;
        while stopped.get() < count as u64 && began.elapsed() < LIMIT && !self.is_stopped() {
            sleep(super::LOOK).await;
        }
        ended
    }
}
