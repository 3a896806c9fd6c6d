//! Looks at counters, histograms and processes once a second, and at the ends of phases.

use super::histogram::{Histogram, Measure};
use super::outcome::{Mark, PhaseCosts, Second, Spent, live};
use super::process::{Cost, Server};
use super::shared::Shared;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The loss of so many connections in a second is marked, if it is a tenth of those that are left.
const MANY: u64 = 3;

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
    /// Seconds that were sampled before.
    seconds: usize,
    /// What was measured before, if the deliveries of the phase are to be compared with those of others.
    delivery: Option<Histogram>,
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
    server: Option<Server>,
    samples: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    seconds: Vec<Second>,
    histograms: BTreeMap<Measure, Histogram>,
    marks: Vec<Mark>,
    last: Costs,
    counts: [u64; 3],
    disconnects: u64,
}

/// What the sampler has seen of a run.
pub struct Samples {
    pub seconds: Vec<Second>,
    pub histograms: BTreeMap<Measure, Histogram>,
    pub marks: Vec<Mark>,
}

impl Sampler {
    /// A sampler that also looks at the process of the server.
    pub fn new(shared: &Arc<Shared>, server: Option<Server>) -> Arc<Self> {
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
            server: self.server.as_ref().map(Server::cost),
            tester: Cost::of(std::process::id()).unwrap_or_default(),
        }
    }

    fn counts(&self) -> [u64; 3] {
        let tally = &self.shared.tally;
        [tally.delivered.get(), tally.written.get(), tally.synced.get()]
    }

    fn sample(&self, took: Duration) {
        let (costs, counts) = (self.costs(), self.counts());
        // Locked before anything is drained: what is between two places would be missing in the result.
        let mut samples = self.samples.lock();
        let drained = self.shared.tally.drain();
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
        let disconnects = self.shared.tally.disconnects.get();
        let lost = disconnects - samples.disconnects;
        samples.note(&costs, lost, second.live.max(0) as u64);
        samples.disconnects = disconnects;
        samples.seconds.push(second);
        (samples.last, samples.counts) = (costs, counts);
        for (measure, histogram) in drained {
            samples.histograms.entry(measure).or_default().add(&histogram);
        }
    }

    /// Notes for the plots that something happened now.
    pub fn mark(&self, text: impl Into<String>) {
        self.samples.lock().marks.push(Mark::now(text));
    }

    /// Whether the server's process was in use before the test; false if it is not known.
    pub fn is_server_used(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.cost().is_used())
    }

    /// Notes the beginning of a phase.
    pub fn begin(&self) -> Begun {
        Begun {
            at: Instant::now(),
            costs: self.costs(),
            counts: self.counts(),
            seconds: self.samples.lock().seconds.len(),
            delivery: None,
        }
    }

    /// Notes the beginning of a phase whose deliveries are to be compared with those of others.
    pub fn begin_compared(&self) -> Begun {
        Begun {
            delivery: Some(self.delivery()),
            ..self.begin()
        }
    }

    /// All deliveries so far.
    fn delivery(&self) -> Histogram {
        let mut samples = self.samples.lock();
        for (measure, histogram) in self.shared.tally.drain() {
            samples.histograms.entry(measure).or_default().add(&histogram);
        }
        let found = samples.histograms.get(&Measure::CommitToDelivery);
        found.cloned().unwrap_or_default()
    }

    /// What the phase since `begun` cost.
    pub fn end(&self, begun: &Begun, name: impl Into<String>, unit: Unit) -> PhaseCosts {
        let (costs, counts) = (self.costs(), self.counts());
        let of = |at: usize| counts[at] - begun.counts[at];
        let delivery = begun.delivery.as_ref().map(|before| {
            let mut delivery = self.delivery();
            delivery.subtract(before);
            delivery
        });
        let most = |spent: Spent| Spent {
            rss_most: self.most(begun.seconds),
            ..spent
        };
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
                .map(|(before, after)| most(Spent::between(before, after))),
            tester: Spent::between(begun.costs.tester, costs.tester),
            delivery,
        }
    }

    /// The most memory of the server in the seconds from number `first` on.
    fn most(&self, first: usize) -> u64 {
        let samples = self.samples.lock();
        let seconds = samples.seconds.iter().skip(first);
        seconds.map(|second| second.server_rss).max().unwrap_or_default()
    }

    /// All samples, when the run is over.
    pub fn take(&self) -> Samples {
        let mut samples = self.samples.lock();
        let mut taken = std::mem::take(&mut *samples);
        for (measure, histogram) in self.shared.tally.drain() {
            taken.histograms.entry(measure).or_default().add(&histogram);
        }
        Samples {
            seconds: taken.seconds,
            histograms: taken.histograms,
            marks: taken.marks,
        }
    }
}

impl Taken {
    /// Marks a restart of the server, and the loss of many connections in the last second.
    fn note(&mut self, costs: &Costs, lost: u64, left: u64) {
        let restarts = |costs: &Costs| costs.server.map_or(0, |cost| cost.restarts);
        if restarts(costs) > restarts(&self.last) {
            self.marks.push(Mark::now("server restarted"));
        }
        if lost >= MANY && lost * 10 >= left {
            self.marks.push(Mark::now(format!("{lost} connections lost")));
        }
    }
}
