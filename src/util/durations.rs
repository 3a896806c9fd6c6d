//! Distributions of durations: sketches of the last minutes for people, and the buckets of a metric for machines.

use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Minutes that are remembered.
pub const MINUTES: u64 = 60;
/// Upper bounds of the buckets of the metric, in seconds.
const BOUNDS: [f64; 16] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The durations of something that happens now and then.
#[derive(Clone, Debug)]
pub struct Durations {
    minutes: VecDeque<(u64, Sketch)>,
    histogram: Histogram,
}

/// Counts by size, in steps of a twelfth of a doubling: six percent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sketch(BTreeMap<i16, u32>);

/// Figures of a stretch of time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub samples: u64,
}

/// The minute of a time.
pub fn minute(at: Duration) -> u64 {
    at.as_secs() / 60
}

// === impl Durations ===

impl Default for Durations {
    fn default() -> Self {
        Self {
            minutes: VecDeque::new(),
            histogram: Histogram::new(BOUNDS),
        }
    }
}

impl Durations {
    /// Adds a duration, in milliseconds, that ended at the time `at` since some fixed moment.
    pub fn add(&mut self, ms: f64, at: Duration) {
        self.histogram.observe(ms / 1000.0);
        let now = minute(at);
        if self.minutes.back().is_none_or(|(last, _)| *last != now) {
            self.minutes.push_back((now, Sketch::default()));
        }
        while self.minutes.front().is_some_and(|(first, _)| first + MINUTES <= now) {
            self.minutes.pop_front();
        }
        if let Some((_, sketch)) = self.minutes.back_mut() {
            sketch.add(ms);
        }
    }

    /// The figures of the last `minutes` before `now`; `None` without a duration in them.
    pub fn figures(&self, now: Duration, minutes: u64) -> Option<Quantiles> {
        let mut all = Sketch::default();
        for (_, sketch) in self.recent(now, minutes) {
            all.merge(sketch);
        }
        (all.samples() > 0).then(|| all.quantiles())
    }

    /// How many minutes ago, and the figures, of each of the last minutes that has a duration.
    pub fn by_minute(&self, now: Duration) -> impl Iterator<Item = (u32, Quantiles)> {
        let now_minute = minute(now);
        self.recent(now, MINUTES).map(move |(at, sketch)| {
            let ago = u32::try_from(now_minute.saturating_sub(*at)).unwrap_or(u32::MAX);
            (ago, sketch.quantiles())
        })
    }

    /// The buckets of all durations so far; `None` before the first.
    pub fn histogram(&self) -> Option<Histogram> {
        (!self.minutes.is_empty()).then(|| self.histogram.clone())
    }

    fn recent(&self, now: Duration, minutes: u64) -> impl Iterator<Item = &(u64, Sketch)> {
        let now = minute(now);
        self.minutes.iter().filter(move |(at, _)| at + minutes > now)
    }

    /// Minutes with a duration that are remembered.
    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.minutes.len()
    }
}

// === impl Sketch ===

impl Sketch {
    /// Steps in a doubling.
    const STEPS: f64 = 12.0;
    /// The least size that is told apart from zero, in milliseconds.
    const LEAST: f64 = 0.01;

    fn add(&mut self, ms: f64) {
        // The range of the logarithm fits by far.
        let step = (ms.max(Self::LEAST) / Self::LEAST).log2() * Self::STEPS;
        *self.0.entry(step.round() as i16).or_default() += 1;
    }

    fn merge(&mut self, other: &Self) {
        for (step, count) in &other.0 {
            *self.0.entry(*step).or_default() += count;
        }
    }

    fn samples(&self) -> u64 {
        self.0.values().map(|count| u64::from(*count)).sum()
    }

    fn quantiles(&self) -> Quantiles {
        Quantiles {
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
            max: self.quantile(1.0),
            samples: self.samples(),
        }
    }

    /// The size that the share `q` of all samples does not exceed.
    fn quantile(&self, q: f64) -> f64 {
        let wanted = (self.samples() as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (step, count) in &self.0 {
            seen += u64::from(*count);
            if seen >= wanted {
                return Self::LEAST * (f64::from(*step) / Self::STEPS).exp2();
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_six_percent() {
        let mut durations = Durations::default();
        assert!(durations.figures(Duration::ZERO, MINUTES).is_none() && durations.histogram().is_none());
        for ms in 1..=1000 {
            durations.add(f64::from(ms), Duration::from_secs(30));
        }
        let figures = durations.figures(Duration::from_secs(59), 1).unwrap();
        for (measured, real) in [(figures.p50, 500.0), (figures.p99, 990.0), (figures.max, 1000.0)] {
            assert!((measured / real - 1.0).abs() < 0.06, "{measured} for {real}");
        }
        assert_eq!(figures.samples, 1000);
        assert!(durations.figures(Duration::from_secs(60), 1).is_none());
    }
}
