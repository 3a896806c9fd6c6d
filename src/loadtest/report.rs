//! An outcome in figures: as a summary for JSON, and as a table for people. [`html`] draws it.

mod counts;
pub mod html;
mod plot;
mod prose;

use super::histogram::Histogram;
use super::outcome::{Counts, Outcome, PhaseCosts, Spent};
use super::verify::Findings;
use crate::util::words::grouped;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// The figures of an outcome.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub scenario: String,
    pub began: String,
    pub endpoints: Vec<String>,
    /// Runs that were added up.
    pub runs: usize,
    pub connections: u64,
    pub keys: u64,
    pub passed: bool,
    pub interrupted: bool,
    /// Why the store did not pass.
    pub faults: Vec<String>,
    /// What limits the meaning of the figures.
    pub warnings: Vec<String>,
    pub findings: Findings,
    pub counts: Counts,
    pub errors: BTreeMap<String, u64>,
    pub latencies: BTreeMap<&'static str, Quantiles>,
    pub phases: Vec<Phase>,
    /// Server memory that the connections of the phase `connect` and the keys of the phase `fill` took, in bytes; `None` if the
    /// growth of the process says nothing about it.
    pub server_bytes_per_connection: Option<f64>,
    pub server_bytes_per_key: Option<f64>,
    /// The process had been in use before, so that it may hold more than it grew.
    pub server_memory_is_lower_bound: bool,
    pub tester_bytes_per_connection: Option<f64>,
    pub left_behind: Vec<String>,
}

/// Durations in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p99_9_ms: f64,
    pub max_ms: f64,
}

/// A phase with what one operation cost.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub name: String,
    pub secs: f64,
    pub operations: u64,
    pub unit: String,
    pub per_sec: f64,
    pub written: u64,
    pub server: Option<Share>,
    pub tester: Share,
    /// From commit to delivery, of phases that are to be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Quantiles>,
}

/// What a process spent in a phase.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub cpu_secs: f64,
    /// Cores that the process kept busy; `None` if it used less than ten ticks of the kernel.
    pub cores: Option<f64>,
    /// CPU time of one operation; `None` without operations, or if the process used less than ten ticks of the kernel.
    pub cpu_us_per_operation: Option<f64>,
    pub rss_mib: f64,
    /// The most memory at any second of the phase; `None` if the phase was shorter, and for the tester.
    pub rss_most_mib: Option<f64>,
    /// Restarts of the process in the phase.
    pub restarts: u32,
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl From<&Histogram> for Quantiles {
    fn from(histogram: &Histogram) -> Self {
        let at = |quantile| millis(histogram.at(quantile));
        Self {
            count: histogram.count(),
            mean_ms: millis(histogram.mean()),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p99_9_ms: at(0.999),
            max_ms: millis(histogram.max()),
        }
    }
}

impl Phase {
    fn of(costs: &PhaseCosts) -> Self {
        let share = |spent: &Spent| Share {
            cpu_secs: spent.cpu_secs,
            cores: spent.known_cpu().map(|secs| secs / costs.secs.max(0.001)),
            cpu_us_per_operation: spent
                .known_cpu()
                .filter(|_| costs.operations > 0)
                .map(|secs| secs * 1e6 / costs.operations as f64),
            rss_mib: mib(spent.rss_after),
            rss_most_mib: (spent.rss_most > 0).then(|| mib(spent.rss_most)),
            restarts: spent.restarts,
        };
        Self {
            name: costs.name.clone(),
            secs: costs.secs,
            operations: costs.operations,
            unit: costs.unit.clone(),
            per_sec: costs.operations as f64 / costs.secs.max(0.001),
            written: costs.written,
            server: costs.server.as_ref().map(share),
            tester: share(&costs.tester),
            delivery: costs.delivery.as_ref().map(Quantiles::from),
        }
    }
}

impl Summary {
    pub fn of(outcome: &Outcome) -> Self {
        let faults = outcome.faults();
        let latencies = outcome.histograms.iter();
        let phase = |name: &str| outcome.phases.iter().find(|phase| phase.name == name);
        let each = |phase: Option<&PhaseCosts>, spent: fn(&PhaseCosts) -> Option<Spent>| {
            let phase = phase.filter(|phase| phase.operations > 0)?;
            Some(spent(phase)?.grown()? as f64 / phase.operations as f64)
        };
        Self {
            scenario: outcome.plan.scenario.clone(),
            began: outcome.began.clone(),
            endpoints: outcome.endpoints.clone(),
            runs: outcome.runs,
            connections: outcome.connections,
            keys: outcome.keys,
            passed: faults.is_empty(),
            interrupted: outcome.interrupted,
            faults,
            warnings: outcome.warnings(),
            findings: outcome.findings,
            counts: outcome.counts,
            errors: outcome.errors.clone(),
            latencies: latencies
                .map(|(measure, h)| (measure.title(), Quantiles::from(h)))
                .collect(),
            phases: outcome.phases.iter().map(Phase::of).collect(),
            server_bytes_per_connection: each(phase("connect"), |phase| phase.server),
            server_bytes_per_key: each(phase("fill"), |phase| phase.server),
            server_memory_is_lower_bound: outcome.has_old_memory(),
            tester_bytes_per_connection: each(phase("connect"), |phase| Some(phase.tester)),
            left_behind: outcome.left_behind.clone(),
        }
    }

    /// What an interrupted run says about the store.
    pub fn tested(&self) -> &'static str {
        match self.phases.iter().any(|phase| phase.name == "live") {
            true => "nothing was wrong until then",
            false => "nothing was tested",
        }
    }

    /// The verdict in one line.
    pub fn verdict(&self) -> String {
        let verdict = match (self.passed, self.interrupted) {
            (true, false) => "PASSED".to_owned(),
            (true, true) => format!("INTERRUPTED: {}", self.tested()),
            (false, true) => format!("INTERRUPTED: {}", self.faults.join("; ")),
            (false, false) => format!("FAILED: {}", self.faults.join("; ")),
        };
        format!(
            "{} against {}, {}: {verdict}",
            self.scenario,
            self.endpoints.join(", "),
            self.began
        )
    }

    /// The figures as JSON, with the result that they are computed from, so that the text can be added up.
    pub fn json(&self, outcome: &Outcome) -> serde_json::Result<String> {
        let figures = serde_json::to_string_pretty(self)?;
        let result = serde_json::to_string(outcome)?;
        Ok(format!(
            "{},\n  \"result\": {result}\n}}\n",
            figures.strip_suffix("\n}").unwrap_or(&figures)
        ))
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        let mut out = self.verdict() + "\n";
        let runs = if self.runs > 1 {
            format!(", {} runs added up", self.runs)
        } else {
            String::new()
        };
        let _ = writeln!(
            out,
            "{} connections, {} keys{runs}",
            grouped(self.connections),
            grouped(self.keys)
        );
        for warning in &self.warnings {
            let _ = writeln!(out, "note: {warning}");
        }
        out.push('\n');
        out += &aligned(&self.latency_rows());
        out.push('\n');
        out += &aligned(&self.phase_rows());
        out.push('\n');
        if let Some(rows) = self.compared_rows() {
            out += &aligned(&rows);
            out.push('\n');
        }
        let counts = self
            .counts()
            .into_iter()
            .map(|count| vec![count.title.to_owned(), count.value]);
        out += &aligned(&counts.collect::<Vec<_>>());
        for (error, n) in &self.errors {
            let _ = writeln!(out, "{n:>8} × {error}");
        }
        if !self.left_behind.is_empty() {
            let _ = writeln!(
                out,
                "\nThese keys remain until their lease ends; delete them with `etcdctl del --prefix`: {}",
                self.left_behind.join(", ")
            );
        }
        out
    }

    fn latency_rows(&self) -> Vec<Vec<String>> {
        let header = ["latency", "count", "p50", "p90", "p99", "p99.9", "max"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for (title, q) in &self.latencies {
            let times = [q.p50_ms, q.p90_ms, q.p99_ms, q.p99_9_ms, q.max_ms].map(duration);
            rows.push([&[(*title).to_owned(), grouped(q.count)][..], &times].concat());
        }
        rows
    }

    /// The phases that are to be compared, if there are any.
    fn compared_rows(&self) -> Option<Vec<Vec<String>>> {
        let header = [
            "commit to delivery",
            "events",
            "p50",
            "p99",
            "max",
            "server RSS",
            "at most",
        ];
        let compared = self.phases.iter().filter_map(|phase| Some((phase, phase.delivery?)));
        let rows = compared.map(|(phase, q)| {
            let memory = |mib: Option<f64>| mib.map_or("-".to_owned(), |mib| format!("{mib:.1} MiB"));
            let server = phase.server.as_ref();
            let times = [q.p50_ms, q.p99_ms, q.max_ms].map(duration);
            let first = [phase.name.clone(), grouped(q.count)];
            let last = [
                memory(server.map(|share| share.rss_mib)),
                memory(server.and_then(|share| share.rss_most_mib)),
            ];
            [&first[..], &times, &last].concat()
        });
        let rows: Vec<_> = rows.collect();
        (!rows.is_empty()).then(|| [vec![header.map(str::to_owned).to_vec()], rows].concat())
    }

    fn phase_rows(&self) -> Vec<Vec<String>> {
        let header = [
            "phase",
            "time",
            "operations",
            "per second",
            "server CPU",
            "cores",
            "RSS",
            "tester CPU",
            "cores",
            "RSS",
        ];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for phase in &self.phases {
            let share = |share: Option<&Share>| match share {
                Some(share) => [
                    share
                        .cpu_us_per_operation
                        .map_or("-".to_owned(), |us| duration(us / 1000.0)),
                    share.cores.map_or("-".to_owned(), |cores| format!("{cores:.2}")),
                    match share.rss_mib {
                        0.0 => "-".to_owned(),
                        mib => format!("{mib:.0} MiB"),
                    },
                ],
                None => ["-"; 3].map(str::to_owned),
            };
            let first = [
                phase.name.clone(),
                format!("{:.1} s", phase.secs),
                format!("{} {}s", grouped(phase.operations), phase.unit),
                format!("{:.0}", phase.per_sec),
            ];
            rows.push([&first[..], &share(phase.server.as_ref()), &share(Some(&phase.tester))].concat());
        }
        rows
    }
}

/// A duration with three digits and its unit.
fn duration(ms: f64) -> String {
    let (value, unit) = match ms {
        ms if ms <= 0.0 => return "0".to_owned(),
        ms if ms < 1.0 => (ms * 1000.0, "µs"),
        ms if ms < 1000.0 => (ms, "ms"),
        ms => (ms / 1000.0, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// Rows with their cells below each other: the first column to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |at: usize| {
        rows.iter()
            .filter_map(|row| row.get(at))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or_default()).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (cell, width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::loadtest::histogram::Measure;
    use crate::loadtest::outcome::{Mark, Second};
    use crate::loadtest::scenarios::Scenario;

    /// An outcome with a known figure everywhere.
    pub fn outcome() -> Outcome {
        let mut outcome = Outcome::new(&Scenario::Quick.plan(), &["https://127.0.0.1:2379".to_owned()]);
        let mut delivery = Histogram::default();
        (1..=1000).for_each(|us| delivery.record_nanos(us * 1000));
        outcome.histograms.insert(Measure::CommitToDelivery, delivery);
        let spent = |rss_after| Spent {
            cpu_secs: 2.0,
            rss_before: 1 << 20,
            rss_after,
            ..Spent::default()
        };
        outcome.phases = vec![PhaseCosts {
            name: "connect".to_owned(),
            secs: 4.0,
            operations: 100,
            unit: "connection".to_owned(),
            written: 0,
            server: Some(spent((1 << 20) + 3_000_000)),
            tester: spent((1 << 20) + 2_000_000),
            delivery: None,
        }];
        outcome.seconds = (0..30)
            .map(|at| Second {
                at: 1_800_000_000 + at,
                live: 100,
                delivered: 10 * at,
                p50: 100,
                p99: 900 + at,
                max: 1000 + at,
                ..Second::default()
            })
            .collect();
        outcome.marks.push(Mark {
            at_ms: 1_800_000_010_000,
            text: "storm 1".to_owned(),
        });
        outcome.counts.delivered = 12_345_678;
        outcome
    }

    #[test]
    fn the_table_shows_every_figure_with_its_unit() {
        let table = Summary::of(&outcome()).table();
        for part in [
            "quick against https://127.0.0.1:2379",
            "PASSED",
            "commit to delivery",
            "500 µs",
            "100 connections",
            "20.0 ms",
            "0.50",
            "12,345,678",
            "30,000",
        ] {
            assert!(table.contains(part), "{part:?} is not in:\n{table}");
        }
    }

    #[test]
    fn two_outcomes_add_up_and_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        std::fs::write(&path, serde_json::to_string(&outcome()).unwrap()).unwrap();
        let mut sum = Outcome::read(&path).unwrap();
        let mut other = outcome();
        other.findings.missing = 3;
        other.errors.insert("connect: refused".to_owned(), 2);
        sum.add(other);
        let summary = Summary::of(&sum);
        assert_eq!((summary.runs, summary.connections), (2, 200));
        assert_eq!(summary.latencies["commit to delivery"].count, 2000);
        assert!((summary.latencies["commit to delivery"].p99_ms - 0.99).abs() < 0.01);
        assert_eq!((sum.seconds.len(), sum.seconds[29].live), (30, 200));
        assert_eq!((sum.phases.len(), sum.phases[0].operations), (1, 200));
        assert!(!summary.passed && summary.verdict().contains("3 events never came"));
        assert_eq!(summary.errors["connect: refused"], 2);
        std::fs::write(&path, "{}").unwrap();
        let error = Outcome::read(&path).unwrap_err().to_string();
        assert!(error.contains("one.json") && error.contains("--output"), "{error}");
    }

    #[test]
    fn what_json_prints_can_be_added_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("printed.json");
        let outcome = outcome();
        std::fs::write(&path, Summary::of(&outcome).json(&outcome).unwrap()).unwrap();
        let read = Outcome::read(&path).unwrap();
        assert_eq!(Summary::of(&read).table(), Summary::of(&outcome).table());
    }

    #[test]
    fn figures_that_would_be_guesses_are_withheld() {
        let mut outcome = outcome();
        let server = outcome.phases[0].server.as_mut().unwrap();
        (server.cpu_secs, server.rss_after) = (0.09, server.rss_before + 4096);
        let summary = Summary::of(&outcome);
        let server = summary.phases[0].server.unwrap();
        assert_eq!((server.cpu_us_per_operation, server.cores), (None, None));
        assert_eq!(summary.server_bytes_per_connection, None);
        assert!(!summary.table().contains("server memory per connection"));
        outcome.phases[0].server.as_mut().unwrap().rss_after = 8 << 20;
        outcome.is_server_used = true;
        let table = Summary::of(&outcome).table();
        assert!(table.contains("≥ 73,400"), "{table}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        let texts = [0.0, 0.0123, 0.5, 1.234, 12.34, 123.4, 65_432.0].map(duration);
        assert_eq!(
            texts,
            ["0", "12.3 µs", "500 µs", "1.23 ms", "12.3 ms", "123 ms", "65.4 s"]
        );
    }
}
