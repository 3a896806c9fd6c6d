//! Looks at counters, histograms and processes once a second, and at the ends of phases.

use super::histogram::{Histogram, Measure};
use super::outcome::{PhaseCosts, Second, Spent, live};
use super::process::Cost;
use super::shared::Shared;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The costs of the server, if it runs here, and of the tester.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    server: Option<Cost>,
    tester: Cost,
}

/// The state at the beginning of a phase.
pub struct Begun {
    at: Instant,
    costs: Costs,
    counts: [u64; 3],
}

/// What the operations of a phase are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Key,
    Connection,
    Event,
}

/// Samples of a run.
pub struct Sampler {
    shared: Arc<Shared>,
    server: Option<u32>,
    samples: Mutex<Samples>,
}

#[derive(Default)]
struct Samples {
    seconds: Vec<Second>,
    histograms: BTreeMap<Measure, Histogram>,
    last: Costs,
    counts: [u64; 3],
}

impl Sampler {
    /// A sampler that also looks at the process `server`.
    pub fn new(shared: &Arc<Shared>, server: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            server,
            samples: Mutex::default(),
        })
    }

    /// Takes a sample every second, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last = ticks.tick().await;
        self.samples.lock().last = self.costs();
        loop {
            ticks.tick().await;
            self.sample(last.elapsed());
            last = Instant::now();
        }
    }

    fn costs(&self) -> Costs {
        Costs {
            server: self.server.and_then(Cost::of),
            tester: Cost::of(std::process::id()).unwrap_or_default(),
        }
    }

    fn counts(&self) -> [u64; 3] {
        let tally = &self.shared.tally;
        [tally.delivered.get(), tally.written.get(), tally.synced.get()]
    }

    fn sample(&self, took: Duration) {
        let (costs, counts) = (self.costs(), self.counts());
        let drained = self.shared.tally.drain();
        let mut samples = self.samples.lock();
        let secs = took.as_secs_f64().max(0.001);
        let busy = |now: Cost, before: Cost| now.cpu.saturating_sub(before.cpu).as_secs_f64() / secs;
        let delivery = drained
            .get(&Measure::CommitToDelivery)
            .or(drained.get(&Measure::HeartbeatSpread));
        let micros = |quantile: f64| delivery.map_or(0, |h| h.at(quantile).as_micros() as u64);
        let of = |at: usize| counts[at] - samples.counts[at];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = Second {
            at: now.as_secs(),
            live: live(&self.shared.tally),
            delivered: of(0),
            written: of(1),
            synced: of(2),
            p50: micros(0.5),
            p99: micros(0.99),
            max: delivery.map_or(0, |h| h.max().as_micros() as u64),
            server_cpu: costs
                .server
                .zip(samples.last.server)
                .map_or(0.0, |(now, before)| busy(now, before)),
            server_rss: costs.server.map_or(0, |cost| cost.rss),
            tester_cpu: busy(costs.tester, samples.last.tester),
        };
        samples.seconds.push(second);
        (samples.last, samples.counts) = (costs, counts);
        for (measure, histogram) in drained {
            samples.histograms.entry(measure).or_default().add(&histogram);
        }
    }

    /// Notes the beginning of a phase.
    pub fn begin(&self) -> Begun {
        Begun {
            at: Instant::now(),
            costs: self.costs(),
            counts: self.counts(),
        }
    }

    /// What the phase since `begun` cost.
    pub fn end(&self, begun: &Begun, name: impl Into<String>, unit: Unit) -> PhaseCosts {
        let (costs, counts) = (self.costs(), self.counts());
        let of = |at: usize| counts[at] - begun.counts[at];
        PhaseCosts {
            name: name.into(),
            secs: begun.at.elapsed().as_secs_f64(),
            operations: match unit {
                Unit::Event => of(0),
                Unit::Key => of(1),
                Unit::Connection => of(2),
            },
            unit: match unit {
                Unit::Event => "event",
                Unit::Key => "key",
                Unit::Connection => "connection",
            }
            .to_owned(),
            written: of(1),
            server: begun
                .costs
                .server
                .zip(costs.server)
                .map(|(before, after)| Spent::between(before, after)),
            tester: Spent::between(begun.costs.tester, costs.tester),
        }
    }

    /// All samples, when the run is over.
    pub fn take(&self) -> (Vec<Second>, BTreeMap<Measure, Histogram>) {
        let mut samples = std::mem::take(&mut *self.samples.lock());
        for (measure, histogram) in self.shared.tally.drain() {
            samples.histograms.entry(measure).or_default().add(&histogram);
        }
        (samples.seconds, samples.histograms)
    }
}
