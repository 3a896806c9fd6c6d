//! The state of the source of objects, for metrics and readiness: counts per kind, and outages.

use super::events::Event;
use super::types::Kind;
use crate::util::metrics::{Labels, Page};
use crate::util::outage::{OngoingOutage, Outage};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A failure that has not been repeated for this long is over, since a failing watch is retried more often.
const OVER: Duration = Duration::from_secs(60);

/// Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    kinds: BTreeMap<Kind, KindStatus>,
    /// Set while the API does not answer the periodic probe.
    outage: Option<OngoingOutage>,
    /// Whether an API has been probed. A directory of manifests has none.
    has_api: bool,
    probes: Probes,
}

#[derive(Debug, Default)]
struct KindStatus {
    objects: usize,
    listed: bool,
    applied: u64,
    deleted: u64,
    lists: u64,
    failures: u64,
    failing: Option<Failing>,
}

/// Counts of probes of the API.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probes {
    pub succeeded: u64,
    pub failed: u64,
}

/// The relation of a failure to the failure before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The first failure, or a failure for another reason than before.
    News,
    /// A failure for the same reason as before.
    Repeated,
}

/// Failures of one kind's lists and watches with no success in between.
#[derive(Debug)]
struct Failing {
    first: Instant,
    last: Instant,
    reason: String,
}

impl KindStatus {
    /// The failures that are not over.
    fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref().filter(|failing| failing.last.elapsed() < OVER)
    }
}

impl Status {
    fn of(&self, kind: Kind, f: impl FnOnce(&mut KindStatus)) {
        f(self.0.lock().kinds.entry(kind).or_default());
    }

    /// Announces the kinds that will be watched, so that their metrics exist from the start.
    pub fn expect_kinds(&self, kinds: &[Kind]) {
        kinds.iter().for_each(|kind| self.of(*kind, |_| {}));
    }

    pub fn count_event(&self, event: &Event) {
        match event {
            Event::Apply(key, _) => self.of(key.kind, |k| k.applied += 1),
            Event::Delete(key) => self.of(key.kind, |k| k.deleted += 1),
            Event::Listed(kind) => self.of(*kind, |k| k.listed = true),
        }
    }

    /// Sets the number of objects of a kind.
    pub fn set_objects(&self, kind: Kind, objects: usize) {
        self.of(kind, |k| k.objects = objects);
    }

    pub(super) fn list_begins(&self, kind: Kind) {
        self.of(kind, |k| k.lists += 1);
    }

    /// A list or watch of a kind works. Returns how long it had failed.
    pub(super) fn succeeded(&self, kind: Kind) -> Option<Duration> {
        let mut outage = None;
        self.of(kind, |k| {
            outage = k.failing.take().map(|failing| failing.first.elapsed());
        });
        outage
    }

    /// A list or watch of a kind failed.
    pub(super) fn failed(&self, kind: Kind, reason: String) -> Failure {
        let mut failure = Failure::Repeated;
        self.of(kind, |k| {
            k.failures += 1;
            let now = Instant::now();
            let first = match k.failing() {
                Some(failing) => {
                    if failing.reason != reason {
                        failure = Failure::News;
                    }
                    failing.first
                }
                None => {
                    failure = Failure::News;
                    now
                }
            };
            k.failing = Some(Failing {
                first,
                last: now,
                reason,
            });
        });
        failure
    }

    /// Metrics of which every family is shown.
    #[cfg(test)]
    pub fn with_all_families() -> Self {
        let status = Self::default();
        status.probed(Ok(()));
        status
    }

    /// Records the outcome of a probe of the API; an error is the reason of an outage.
    pub(super) fn probed(&self, answer: Result<(), String>) {
        let mut state = self.0.lock();
        state.has_api = true;
        match answer {
            Ok(()) => {
                state.probes.succeeded += 1;
                if let Some(outage) = state.outage.take() {
                    tracing::info!(
                        secs = outage.since.elapsed().as_secs(),
                        "the Kubernetes API answers again"
                    );
                }
            }
            Err(reason) => {
                state.probes.failed += 1;
                let since = state.outage.take().map_or_else(Instant::now, |outage| outage.since);
                state.outage = Some(OngoingOutage { since, reason });
            }
        }
    }

    /// Whether the API does not answer, or lists or watches of any kind fail.
    pub fn has_outage(&self) -> bool {
        let state = self.0.lock();
        state.outage.is_some() || state.kinds.values().any(|k| k.failing().is_some())
    }

    /// The outage of the API, or else the longest failure of one kind.
    pub fn outage(&self) -> Option<Outage> {
        let state = self.0.lock();
        if let Some(outage) = &state.outage {
            return Some(outage.now());
        }
        let failing = state.kinds.iter().filter_map(|(kind, k)| Some((kind, k.failing()?)));
        let (kind, longest) = failing.max_by_key(|(_, failing)| std::cmp::Reverse(failing.first))?;
        Some(Outage {
            lasted: longest.first.elapsed(),
            reason: format!("watching {} fails: {}", kind.name(), longest.reason),
        })
    }

    /// Why the lists or watches of a kind fail.
    pub fn trouble(&self, kind: Kind) -> Option<String> {
        let state = self.0.lock();
        let failing = state.kinds.get(&kind)?.failing()?;
        Some(failing.reason.clone())
    }

    pub fn probes(&self) -> Probes {
        self.0.lock().probes
    }
}

impl Collector for Status {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (state, mut page) = (self.0.lock(), Page(encoder));
        let label = |kind: Kind| ("resource", kind.name().to_owned());
        let gauges = |value: fn(&KindStatus) -> f64| -> Vec<(Labels, f64)> {
            state
                .kinds
                .iter()
                .map(|(kind, k)| (vec![label(*kind)], value(k)))
                .collect()
        };
        let counters = |value: fn(&KindStatus) -> u64| -> Vec<(Labels, u64)> {
            state
                .kinds
                .iter()
                .map(|(kind, k)| (vec![label(*kind)], value(k)))
                .collect()
        };
        page.gauges(
            "kubernetes_objects",
            "Number of known objects",
            gauges(|k| k.objects as f64),
        )?;
        let help = "Whether a list of all objects has completed (1) or not (0)";
        page.gauges("kubernetes_listed", help, gauges(|k| f64::from(u8::from(k.listed))))?;
        let help = "Seconds since listing or watching began to fail; 0 while it works";
        let failing = gauges(|k| k.failing().map_or(0.0, |failing| failing.first.elapsed().as_secs_f64()));
        page.gauges("kubernetes_watch_trouble_seconds", help, failing)?;
        page.counters(
            "kubernetes_lists",
            "Number of complete lists begun",
            counters(|k| k.lists),
        )?;
        let help = "Number of lists and watches that failed";
        page.counters("kubernetes_watch_failures", help, counters(|k| k.failures))?;
        let mut events = vec![];
        for (kind, k) in &state.kinds {
            events.push((vec![label(*kind), ("action", "apply".to_owned())], k.applied));
            events.push((vec![label(*kind), ("action", "delete".to_owned())], k.deleted));
        }
        page.counters("kubernetes_events", "Number of changes of objects received", events)?;
        if state.has_api {
            let up = f64::from(u8::from(state.outage.is_none()));
            page.gauges(
                "kubernetes_up",
                "Whether the Kubernetes API answers (1) or not (0)",
                vec![(vec![], up)],
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_news_once_and_over_after_a_minute_without_another() {
        let status = Status::default();
        assert_eq!(status.failed(Kind::Node, "refused".to_owned()), Failure::News);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(status.failed(Kind::Node, "refused".to_owned()), Failure::Repeated);
        let outage = status.outage().unwrap();
        assert_eq!(
            (outage.lasted.as_secs(), &*outage.reason),
            (10, "watching CiliumNode fails: refused")
        );
        assert_eq!(status.trouble(Kind::Node).as_deref(), Some("refused"));
        assert_eq!(status.trouble(Kind::Service), None);
        tokio::time::advance(OVER).await;
        assert!(!status.has_outage());
        status.probed(Err("away".to_owned()));
        assert!(status.has_outage());
        status.probed(Ok(()));
        assert!(!status.has_outage());
    }
}
