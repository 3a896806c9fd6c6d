//! What a run has found. Outcomes of several machines can be added up.

use super::error::Error;
use super::histogram::{Histogram, Measure};
use super::plan::Plan;
use super::process::{CPU_MIN, Cost};
use super::tally::{Tally, now_nanos};
use super::verify::Findings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

/// The version of the format.
const FORMAT: u32 = 1;
/// Growth of a process that says nothing about what it holds.
const GROWTH_MIN: u64 = 2 << 20;

/// The phases of a run whose slow readers are there in its middle.
pub const WITHOUT_SLOW_READERS: &str = "without slow readers";
pub const WITH_SLOW_READERS: &str = "with slow readers";
pub const AFTER_SLOW_READERS: &str = "after slow readers";

/// Everything about one run, or about several that were added up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub format: u32,
    /// Runs that were added up.
    pub runs: usize,
    pub began: String,
    pub endpoints: Vec<String>,
    pub plan: Plan,
    /// All connections and keys of the runs.
    pub connections: u64,
    pub keys: u64,
    /// The operator ended the run early.
    pub interrupted: bool,
    pub counts: Counts,
    pub findings: Findings,
    pub errors: BTreeMap<String, u64>,
    pub histograms: BTreeMap<Measure, Histogram>,
    pub phases: Vec<PhaseCosts>,
    pub seconds: Vec<Second>,
    /// What was written and could not be removed.
    pub left_behind: Vec<String>,
    /// The random numbers of the runs that were added up.
    #[serde(default)]
    pub members: Vec<u32>,
    /// The cluster id of the store at the beginning; 0 if it is not known.
    #[serde(default)]
    pub store: u64,
    /// Changes that the rate asked for while agents watched.
    #[serde(default)]
    pub planned_changes: u64,
    /// What happened when, for plots.
    #[serde(default)]
    pub marks: Vec<Mark>,
    /// The server's process had been in use before the run, so that its growth is less than what was added.
    #[serde(default)]
    pub is_server_used: bool,
    /// Cores of the testers' machines.
    #[serde(default)]
    pub tester_cores: usize,
}

/// Something that happened during a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub text: String,
}

impl Mark {
    /// Marks this moment.
    pub fn now(text: impl Into<String>) -> Self {
        Self {
            at_ms: now_nanos() / 1_000_000,
            text: text.into(),
        }
    }
}

/// The counters at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub connects: u64,
    pub disconnects: u64,
    #[serde(default)]
    pub failed_connects: u64,
    #[serde(default)]
    pub storm_closed: u64,
    pub synced: u64,
    pub listed: u64,
    pub delivered: u64,
    pub foreign: u64,
    pub heartbeats: u64,
    pub messages: u64,
    pub received_bytes: u64,
    pub written: u64,
    #[serde(default)]
    pub early: u64,
    #[serde(default)]
    pub skipped: u64,
    #[serde(default)]
    pub changes: u64,
    pub rewritten: u64,
    pub pings: u64,
    pub relists: u64,
    pub verified: u64,
    pub behind: u64,
    #[serde(default)]
    pub unanswered: u64,
    pub stalled: u64,
    pub stalled_closed: u64,
}

/// What one phase cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseCosts {
    pub name: String,
    pub secs: f64,
    /// Keys written, connections made, or events delivered: what the phase is for.
    pub operations: u64,
    pub unit: String,
    pub written: u64,
    /// The server's process, if it runs on this machine.
    pub server: Option<Spent>,
    pub tester: Spent,
    /// From commit to delivery; of phases that are to be compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Histogram>,
}

/// What a process spent in a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    pub cpu_secs: f64,
    pub rss_before: u64,
    pub rss_after: u64,
    /// Memory that the process had before the phase and gave back.
    #[serde(default)]
    pub given_back: u64,
    /// Restarts of the process in the phase.
    #[serde(default)]
    pub restarts: u32,
    /// The most memory of the process at any second of the phase; 0 if the phase was shorter.
    #[serde(default)]
    pub rss_most: u64,
}

/// One second of a run, for plots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since 1970.
    pub at: u64,
    pub live: i64,
    pub delivered: u64,
    pub written: u64,
    pub synced: u64,
    /// From commit to delivery in microseconds.
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
    /// Cores that were busy.
    pub server_cpu: f64,
    pub server_rss: u64,
    pub tester_cpu: f64,
}

impl Counts {
    pub fn of(tally: &Tally) -> Self {
        Self {
            connects: tally.connects.get(),
            disconnects: tally.disconnects.get(),
            failed_connects: tally.failed_connects.get(),
            storm_closed: tally.storm_closed.get(),
            synced: tally.synced.get(),
            listed: tally.listed.get(),
            delivered: tally.delivered.get(),
            foreign: tally.foreign.get(),
            heartbeats: tally.heartbeats.get(),
            messages: tally.messages.get(),
            received_bytes: tally.received_bytes.get(),
            written: tally.written.get(),
            early: tally.early.get(),
            skipped: tally.skipped.get(),
            changes: tally.changes.get(),
            rewritten: tally.rewritten.get(),
            pings: tally.pings.get(),
            relists: tally.relists.get(),
            verified: tally.verified.get(),
            behind: tally.behind.get(),
            unanswered: tally.unanswered.get(),
            stalled: tally.stalled.get(),
            stalled_closed: tally.stalled_closed.get(),
        }
    }

    fn add(&mut self, other: &Self) {
        for (sum, n) in [
            (&mut self.connects, other.connects),
            (&mut self.disconnects, other.disconnects),
            (&mut self.failed_connects, other.failed_connects),
            (&mut self.storm_closed, other.storm_closed),
            (&mut self.synced, other.synced),
            (&mut self.listed, other.listed),
            (&mut self.delivered, other.delivered),
            (&mut self.foreign, other.foreign),
            (&mut self.heartbeats, other.heartbeats),
            (&mut self.messages, other.messages),
            (&mut self.received_bytes, other.received_bytes),
            (&mut self.written, other.written),
            (&mut self.early, other.early),
            (&mut self.skipped, other.skipped),
            (&mut self.changes, other.changes),
            (&mut self.rewritten, other.rewritten),
            (&mut self.pings, other.pings),
            (&mut self.relists, other.relists),
            (&mut self.verified, other.verified),
            (&mut self.behind, other.behind),
            (&mut self.unanswered, other.unanswered),
            (&mut self.stalled, other.stalled),
            (&mut self.stalled_closed, other.stalled_closed),
        ] {
            *sum += n;
        }
    }
}

impl Spent {
    pub fn between(before: Cost, after: Cost) -> Self {
        Self {
            cpu_secs: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
            rss_before: before.rss,
            rss_after: after.rss,
            given_back: before.peak.saturating_sub(before.rss),
            restarts: after.restarts - before.restarts,
            rss_most: 0,
        }
    }

    /// By how much the memory grew; `None` if that says nothing.
    pub fn grown(&self) -> Option<u64> {
        let grown = self.rss_after.checked_sub(self.rss_before)?;
        (self.restarts == 0 && grown >= GROWTH_MIN).then_some(grown)
    }

    /// The CPU time, unless the kernel's ticks are too coarse for it.
    pub fn known_cpu(&self) -> Option<f64> {
        (self.cpu_secs >= CPU_MIN.as_secs_f64()).then_some(self.cpu_secs)
    }
}

impl Outcome {
    /// An outcome without figures yet.
    pub fn new(plan: &Plan, endpoints: &[String]) -> Self {
        Self {
            format: FORMAT,
            runs: 1,
            began: crate::model::keys::timestamp(),
            endpoints: endpoints.to_vec(),
            plan: plan.clone(),
            connections: plan.connections() as u64,
            keys: if plan.read_only { 0 } else { plan.total_keys() },
            interrupted: false,
            counts: Counts::default(),
            findings: Findings::default(),
            errors: BTreeMap::new(),
            histograms: BTreeMap::new(),
            phases: vec![],
            seconds: vec![],
            left_behind: vec![],
            members: vec![plan.run],
            store: 0,
            planned_changes: 0,
            marks: vec![],
            is_server_used: false,
            tester_cores: std::thread::available_parallelism().map_or(0, usize::from),
        }
    }

    /// Takes the final counters over.
    pub fn close(&mut self, tally: &Tally) {
        self.counts = Counts::of(tally);
        self.findings = tally.findings();
        self.errors = tally.errors();
    }

    /// Adds the outcome of a run of the same time on another machine.
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.connections += other.connections;
        self.keys += other.keys;
        self.interrupted |= other.interrupted;
        self.counts.add(&other.counts);
        self.findings += other.findings;
        self.left_behind.extend(other.left_behind);
        self.members.extend(other.members);
        self.planned_changes += other.planned_changes;
        self.is_server_used |= other.is_server_used;
        self.tester_cores += other.tester_cores;
        self.marks.extend(other.marks);
        self.marks.sort_by_key(|mark| mark.at_ms);
        for endpoint in other.endpoints {
            if !self.endpoints.contains(&endpoint) {
                self.endpoints.push(endpoint);
            }
        }
        for (error, n) in other.errors {
            *self.errors.entry(error).or_default() += n;
        }
        for (measure, histogram) in other.histograms {
            self.histograms.entry(measure).or_default().add(&histogram);
        }
        for phase in other.phases {
            match self.phases.iter_mut().find(|own| own.name == phase.name) {
                Some(own) => own.add(&phase),
                None => self.phases.push(phase),
            }
        }
        let mut seconds: BTreeMap<u64, Second> = self.seconds.iter().map(|second| (second.at, *second)).collect();
        for second in other.seconds {
            seconds
                .entry(second.at)
                .and_modify(|own| own.add(&second))
                .or_insert(second);
        }
        self.seconds = seconds.into_values().collect();
    }

    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |why: String| Error::File {
            path: path.to_owned(),
            why,
        };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let mut outcome: Self = match serde_json::from_str(&text) {
            Ok(outcome) => outcome,
            Err(error) => match serde_json::from_str::<Printed>(&text) {
                Ok(printed) => printed.result,
                Err(_) => {
                    return Err(fail(format!(
                        "not a result of `loadtest --output` or `--json`: {error}"
                    )));
                }
            },
        };
        if outcome.members.is_empty() {
            outcome.members.push(outcome.plan.run);
        }
        match outcome.format {
            FORMAT => Ok(outcome),
            other => Err(fail(format!(
                "format {other} is of another version of this program, which reads format {FORMAT}"
            ))),
        }
    }
}

/// What `--json` prints: figures, and the result that they are computed from.
#[derive(Deserialize)]
struct Printed {
    result: Outcome,
}

impl PhaseCosts {
    fn add(&mut self, other: &Self) {
        self.secs = self.secs.max(other.secs);
        self.operations += other.operations;
        self.written += other.written;
        self.tester.cpu_secs += other.tester.cpu_secs;
        self.tester.rss_before += other.tester.rss_before;
        self.tester.rss_after += other.tester.rss_after;
        if let (Some(own), Some(other)) = (&mut self.delivery, &other.delivery) {
            own.add(other);
        }
        // Only the machine of the server has its costs.
        self.server = self.server.or(other.server);
    }
}

impl Second {
    /// Adds the same second of another machine. Quantiles cannot be added: the larger ones stay.
    fn add(&mut self, other: &Self) {
        self.live += other.live;
        self.delivered += other.delivered;
        self.written += other.written;
        self.synced += other.synced;
        self.p50 = self.p50.max(other.p50);
        self.p99 = self.p99.max(other.p99);
        self.max = self.max.max(other.max);
        self.server_cpu = self.server_cpu.max(other.server_cpu);
        self.server_rss = self.server_rss.max(other.server_rss);
        self.tester_cpu += other.tester_cpu;
    }
}

/// Agents that are in sync now.
pub fn live(tally: &Tally) -> i64 {
    tally.live.load(Relaxed)
}
