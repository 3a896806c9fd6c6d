//! How long commits of a remote cluster take to arrive here, without IO.
//!
//! The remote publisher writes a probe every second, with the time of its own clock. The difference between the clock here
//! at the arrival and that time is the *raw* figure: the propagation plus the difference of the two clocks.
//!
//! To take the clocks' difference out, the probe also has the time of a clock that is never set, and so has the arrival.
//! The difference of these two is the propagation plus a constant. Over the last ten minutes, the smallest difference is
//! that of a probe which was not held up by anything: its commit took the time of the shortest write, which the publisher
//! measures and says in the probe, and its way took half of the shortest round trip of a read on the same connection. So
//!
//! ```text
//! corrected = (difference − smallest difference) + shortest write + shortest round trip / 2
//! ```
//!
//! As for every measurement between two clocks, the way there and the way back count as equally long. A delay that is
//! always there, for ten minutes without a pause, and does not slow reads down is taken for a difference of the clocks.
//!
//! A remote cluster without probes has the heartbeat, whose value is the second of its write: the difference to the clock
//! here is an upper bound of the propagation, as good as the clocks agree.

use crate::model::probe::Probe;
use crate::util::durations::{Durations, MINUTES, minute};
use crate::util::minima::Minima;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The longest time that counts as a propagation: a day.
const LONGEST_MS: f64 = 86_400_000.0;

/// When something arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Since the start of this process, by a clock that is never set.
    pub(super) at: Duration,
    /// Microseconds since 1970.
    pub(super) unix_micros: i64,
}

/// How the figures were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Probe,
    /// An upper bound.
    Heartbeat,
}

/// Figures of a stretch of time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub method: Method,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// The last raw difference.
    pub raw: f64,
    pub samples: u64,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Propagation {
    /// The run of the publisher that the differences belong to.
    run: Option<u64>,
    /// The smallest difference in microseconds, and the shortest round trip, by minute.
    differences: Minima<i64>,
    round_trips: Minima<Duration>,
    measured: Durations,
    last_raw_ms: f64,
    /// The upper bounds by heartbeats, with their minutes.
    bounds: VecDeque<(u64, f64)>,
    /// The numbers of keys that the remote cluster says it has.
    announced: BTreeMap<String, u64>,
}

// === impl Propagation ===

impl Propagation {
    /// A probe arrived by a watch.
    pub(super) fn probe(&mut self, probe: &Probe, arrival: Arrival) {
        if self.run.replace(probe.run) != Some(probe.run) {
            self.differences = Minima::default();
        }
        self.announced.clone_from(&probe.keys);
        self.last_raw_ms = millis(arrival.unix_micros.saturating_sub(probe.unix_micros));
        let now = minute(arrival.at);
        let here = i64::try_from(arrival.at.as_micros()).unwrap_or(i64::MAX);
        let difference = here.saturating_sub(probe.run_micros);
        let smallest = self.differences.add(now, difference);
        let Some(shortest) = self.round_trips.smallest(now) else {
            // The first read has not been answered.
            return;
        };
        let write = i64::try_from(probe.write_micros.unwrap_or_default()).unwrap_or(i64::MAX);
        let behind = difference.saturating_sub(smallest).saturating_add(write);
        let corrected_ms = millis(behind) + shortest.as_secs_f64() * 500.0;
        // The remote cluster chooses the times: what nobody can have waited for says nothing.
        if corrected_ms <= LONGEST_MS {
            self.measured.add(corrected_ms, arrival.at);
        }
    }

    /// A read was answered after this time.
    pub(super) fn round_trip(&mut self, took: Duration, at: Duration) {
        self.round_trips.add(minute(at), took);
    }

    /// A heartbeat of this second arrived by a watch.
    pub(super) fn heartbeat(&mut self, unix_secs: i64, arrival: Arrival) {
        let raw = millis(arrival.unix_micros.saturating_sub(unix_secs.saturating_mul(1_000_000)));
        self.bounds.push_back((minute(arrival.at), raw));
        while self.bounds.len() as u64 > MINUTES {
            self.bounds.pop_front();
        }
    }

    /// The figures of the last `minutes` minutes, the present one included; `None` if nothing was measured.
    pub(super) fn figures(&self, now: Duration, minutes: u64) -> Option<Figures> {
        if let Some(measured) = self.measured.figures(now, minutes) {
            return Some(Figures {
                method: Method::Probe,
                p50: measured.p50,
                p99: measured.p99,
                max: measured.max,
                raw: self.last_raw_ms,
                samples: measured.samples,
            });
        }
        // Heartbeats come once a minute.
        let from = minute(now).saturating_sub(minutes);
        let mut bounds: Vec<_> = self
            .bounds
            .iter()
            .filter(|(minute, _)| *minute >= from)
            .map(|(_, ms)| *ms)
            .collect();
        let raw = *bounds.last()?;
        bounds.sort_by(f64::total_cmp);
        let at = |q: f64| bounds[((bounds.len() - 1) as f64 * q).round() as usize];
        Some(Figures {
            method: Method::Heartbeat,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
            raw,
            samples: bounds.len() as u64,
        })
    }

    /// p50 and p99 of each of the last 60 minutes that was measured, with how many minutes ago that was.
    pub fn by_minute(&self, now: Duration) -> Vec<(u32, f64, f64)> {
        let minutes = self.measured.by_minute(now);
        minutes.map(|(ago, figures)| (ago, figures.p50, figures.p99)).collect()
    }

    /// The shortest round trip of a read in the last minutes.
    pub fn shortest_round_trip(&self, now: Duration) -> Option<Duration> {
        self.round_trips.smallest(minute(now))
    }

    /// The number of keys of a scope that the remote cluster says it has.
    pub fn announced(&self, scope: &str) -> Option<u64> {
        self.announced.get(scope).copied()
    }

    /// The histogram of all probes, in seconds; `None` without a probe.
    pub(super) fn histogram(&self) -> Option<Histogram> {
        self.measured.histogram()
    }
}

fn millis(micros: i64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::minima::WINDOW;

    /// A remote cluster whose clocks differ from those here.
    struct Remote {
        run: u64,
        /// How long a commit takes, in microseconds.
        write: u64,
        /// Its clock minus ours, in microseconds.
        clock: i64,
    }

    /// A slow disk.
    const WRITE: u64 = 8000;
    const HOUR: i64 = 3_600_000_000;
    const START: i64 = 1_800_000_000_000_000;

    impl Remote {
        /// Writes a probe at `at` of our monotonic clock, which arrives `delay_micros` after its commit.
        fn write(&self, propagation: &mut Propagation, at: Duration, delay_micros: u64) {
            let micros = i64::try_from(at.as_micros()).unwrap();
            let probe = Probe {
                run: self.run,
                unix_micros: START + micros + self.clock,
                run_micros: micros + HOUR,
                write_micros: Some(self.write),
                keys: BTreeMap::new(),
            };
            let arrived = at + Duration::from_micros(self.write + delay_micros);
            let arrival = Arrival {
                at: arrived,
                unix_micros: START + i64::try_from(arrived.as_micros()).unwrap(),
            };
            propagation.probe(&probe, arrival);
        }
    }

    fn close(measured: f64, real_ms: f64) -> bool {
        (measured - real_ms).abs() <= f64::max(2.0, real_ms / 10.0)
    }

    #[test]
    fn delays_are_right_whatever_the_clocks_say() {
        for clock_secs in [-30, 0, 30] {
            for delay_ms in [5_u64, 50, 500] {
                let remote = Remote {
                    run: 1,
                    write: WRITE,
                    clock: clock_secs * 1_000_000,
                };
                let mut propagation = Propagation::default();
                let mut at = Duration::from_secs(1000);
                for second in 0..300 {
                    if second % 10 == 0 {
                        propagation.round_trip(Duration::from_millis(2 * delay_ms) + Duration::from_micros(300), at);
                    }
                    // Each commit takes up to two milliseconds more, and one in twenty a second more.
                    let more = 137 * (second % 15) + if second % 20 == 7 { 1_000_000 } else { 0 };
                    remote.write(&mut propagation, at, delay_ms * 1000 + more);
                    at += Duration::from_secs(1);
                }
                let figures = propagation.figures(at, 5).unwrap();
                let real = delay_ms as f64 + WRITE as f64 / 1000.0;
                assert!(
                    close(figures.p50, real + 1.0),
                    "{delay_ms} ms, {clock_secs} s: {figures:?}"
                );
                assert!(
                    close(figures.p99, real + 1001.0),
                    "{delay_ms} ms, {clock_secs} s: {figures:?}"
                );
                let raw = real - f64::from(i32::try_from(clock_secs).unwrap()) * 1000.0;
                assert!((figures.raw - raw).abs() < 3.0, "{figures:?}");
                assert_eq!(figures.method, Method::Probe);
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_and_a_publisher_that_restarts_change_no_figure() {
        let mut propagation = Propagation::default();
        let mut remote = Remote {
            run: 1,
            write: 0,
            clock: 0,
        };
        let mut at = Duration::from_secs(60);
        propagation.round_trip(Duration::from_millis(8), at);
        for second in 0..60 {
            if second == 20 {
                remote.clock = 5_000_000;
            }
            if second == 40 {
                remote.run = 2;
            }
            remote.write(&mut propagation, at, 4000);
            at += Duration::from_secs(1);
        }
        let figures = propagation.figures(at, 60).unwrap();
        assert!(close(figures.max, 4.0) && figures.samples == 60, "{figures:?}");
        assert_eq!(propagation.by_minute(at).len(), 1);
        assert_eq!(propagation.shortest_round_trip(at), Some(Duration::from_millis(8)));
    }

    #[test]
    fn times_that_nobody_can_have_waited_for_are_no_figures() {
        let mut propagation = Propagation::default();
        let at = Duration::from_secs(60);
        propagation.round_trip(Duration::from_millis(2), at);
        for (write, run_micros) in [(0, HOUR), (u64::MAX, HOUR + 1), (0, i64::MIN)] {
            let probe = Probe {
                run: 1,
                unix_micros: START,
                run_micros,
                write_micros: Some(write),
                keys: BTreeMap::new(),
            };
            let arrival = Arrival { at, unix_micros: START };
            propagation.probe(&probe, arrival);
        }
        let figures = propagation.figures(at, 5).unwrap();
        assert!(figures.samples == 1 && figures.max < 10.0, "{figures:?}");
    }

    #[test]
    fn old_minutes_are_forgotten() {
        let mut propagation = Propagation::default();
        let remote = Remote {
            run: 1,
            write: 0,
            clock: 0,
        };
        for minute in 0..200 {
            propagation.round_trip(Duration::from_millis(2), Duration::from_secs(60 * minute));
            remote.write(&mut propagation, Duration::from_secs(60 * minute), 1000);
        }
        let now = Duration::from_secs(60 * 199);
        assert_eq!(propagation.measured.remembered() as u64, MINUTES);
        assert_eq!(propagation.figures(now, MINUTES).unwrap().samples, MINUTES);
        assert_eq!(propagation.differences.remembered() as u64, WINDOW);
        assert!(propagation.figures(now + Duration::from_secs(3600), 1).is_none());
    }

    #[test]
    fn a_heartbeat_is_an_upper_bound() {
        let mut propagation = Propagation::default();
        assert_eq!(propagation.figures(Duration::ZERO, 60), None);
        let arrival = |secs: u64, micros: i64| Arrival {
            at: Duration::from_secs(secs),
            unix_micros: START + micros,
        };
        propagation.heartbeat(START / 1_000_000, arrival(10, 700_000));
        propagation.heartbeat(START / 1_000_000 + 60, arrival(70, 60_300_000));
        let figures = propagation.figures(Duration::from_secs(100), 60).unwrap();
        assert_eq!(
            (figures.method, figures.max, figures.raw),
            (Method::Heartbeat, 700.0, 300.0)
        );
    }
}
