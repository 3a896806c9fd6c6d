//! How it is with the source of objects: what is known, and what is wrong.

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

/// An error that has not come again for this long is over: a watch that fails is tried again sooner.
const OVER: Duration = Duration::from_secs(60);

/// Clones share the figures.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    kinds: BTreeMap<Kind, OfKind>,
    /// Set while the API does not answer the periodic probe.
    outage: Option<OngoingOutage>,
    /// Whether there is an API to ask.
    asked: bool,
    probes: (u64, u64),
}

#[derive(Debug, Default)]
struct OfKind {
    objects: usize,
    listed: bool,
    applied: u64,
    deleted: u64,
    lists: u64,
    failures: u64,
    failing: Option<Failing>,
}

/// Failures of one kind's lists and watches with no success in between.
#[derive(Debug)]
struct Failing {
    first: Instant,
    last: Instant,
    reason: String,
}

impl OfKind {
    /// The failures that are not over.
    fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref().filter(|failing| failing.last.elapsed() < OVER)
    }
}

impl Status {
    fn of(&self, kind: Kind, f: impl FnOnce(&mut OfKind)) {
        f(self.0.lock().kinds.entry(kind).or_default());
    }

    /// These will be followed.
    pub fn wanted(&self, kinds: &[Kind]) {
        kinds.iter().for_each(|kind| self.of(*kind, |_| {}));
    }

    /// Counts an event.
    pub fn happened(&self, event: &Event) {
        match event {
            Event::Apply(key, _) => self.of(key.kind, |k| k.applied += 1),
            Event::Delete(key) => self.of(key.kind, |k| k.deleted += 1),
            Event::Listed(kind) => self.of(*kind, |k| k.listed = true),
        }
    }

    /// So many objects of a kind are known.
    pub fn counted(&self, kind: Kind, objects: usize) {
        self.of(kind, |k| k.objects = objects);
    }

    /// All objects of a kind are listed once more.
    pub(super) fn lists(&self, kind: Kind) {
        self.of(kind, |k| k.lists += 1);
    }

    /// The API answers for a kind; returns for how long it did not.
    pub(super) fn works(&self, kind: Kind) -> Option<Duration> {
        let mut was = None;
        self.of(kind, |k| was = k.failing.take().map(|failing| failing.first.elapsed()));
        was
    }

    /// Following a kind failed; says whether that is news.
    pub(super) fn fails(&self, kind: Kind, why: String) -> bool {
        let mut news = false;
        self.of(kind, |k| {
            k.failures += 1;
            let now = Instant::now();
            news = k.failing().is_none_or(|failing| failing.reason != why);
            k.failing = Some(Failing {
                first: k.failing().map_or(now, |failing| failing.first),
                last: now,
                reason: why,
            });
        });
        news
    }

    /// The API was asked whether it is there.
    pub(super) fn probed(&self, answer: Result<(), String>) {
        let mut state = self.0.lock();
        state.asked = true;
        match answer {
            Ok(()) => {
                state.probes.0 += 1;
                if let Some(outage) = state.outage.take() {
                    tracing::info!(
                        secs = outage.since.elapsed().as_secs(),
                        "the Kubernetes API answers again"
                    );
                }
            }
            Err(why) => {
                state.probes.1 += 1;
                let since = state.outage.take().map_or_else(Instant::now, |outage| outage.since);
                state.outage = Some(OngoingOutage { since, reason: why });
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

    /// How the heartbeats of the API went: well, not well.
    pub fn probes(&self) -> (u64, u64) {
        self.0.lock().probes
    }
}

impl Collector for Status {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (state, mut page) = (self.0.lock(), Page(encoder));
        let label = |kind: Kind| ("resource", kind.name().to_owned());
        let gauges = |value: fn(&OfKind) -> f64| -> Vec<(Labels, f64)> {
            state
                .kinds
                .iter()
                .map(|(kind, k)| (vec![label(*kind)], value(k)))
                .collect()
        };
        let counters = |value: fn(&OfKind) -> u64| -> Vec<(Labels, u64)> {
            state
                .kinds
                .iter()
                .map(|(kind, k)| (vec![label(*kind)], value(k)))
                .collect()
        };
        page.gauges("kubernetes_objects", "Objects known", gauges(|k| k.objects as f64))?;
        let help = "Whether all objects have been listed once";
        page.gauges("kubernetes_listed", help, gauges(|k| f64::from(u8::from(k.listed))))?;
        let help = "For how long following has been failing; 0 while it works";
        let failing = gauges(|k| k.failing().map_or(0.0, |failing| failing.first.elapsed().as_secs_f64()));
        page.gauges("kubernetes_watch_trouble_seconds", help, failing)?;
        page.counters("kubernetes_lists", "Complete lists begun", counters(|k| k.lists))?;
        let help = "Lists and watches that failed";
        page.counters("kubernetes_watch_failures", help, counters(|k| k.failures))?;
        let mut events = vec![];
        for (kind, k) in &state.kinds {
            events.push((vec![label(*kind), ("action", "apply".to_owned())], k.applied));
            events.push((vec![label(*kind), ("action", "delete".to_owned())], k.deleted));
        }
        page.counters("kubernetes_events", "Changes of objects received", events)?;
        if state.asked {
            let up = f64::from(u8::from(state.outage.is_none()));
            page.gauges("kubernetes_up", "Whether the API answers", vec![(vec![], up)])?;
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
        assert!(status.fails(Kind::Node, "refused".to_owned()));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!status.fails(Kind::Node, "refused".to_owned()));
        let outage = status.outage().unwrap();
        assert_eq!(
            (outage.lasted.as_secs(), &*outage.reason),
            (10, "watching CiliumNode fails: refused")
        );
        tokio::time::advance(OVER).await;
        assert!(!status.has_outage());
        status.probed(Err("away".to_owned()));
        assert!(status.has_outage());
        status.probed(Ok(()));
        assert!(!status.has_outage());
    }
}
