//! The figures of all rounds, and where they were measured.

use crate::scenarios::{Figure, Kind, Scale, Scenario};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Where and when.
#[derive(Debug, Deserialize, Serialize)]
pub struct Machine {
    pub date: String,
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
}

/// One figure of a scenario, for all servers.
#[derive(Debug, Deserialize, Serialize)]
pub struct Row {
    pub scenario: String,
    pub title: String,
    pub figure: String,
    pub kind: Kind,
    pub unit: String,
    /// The values of the rounds, for each server.
    pub values: Vec<Vec<f64>>,
    /// The line of the last round, for each server; empty for most figures.
    pub points: Vec<Vec<(f64, f64)>>,
    /// What grows along the line.
    pub x: String,
}

/// A measurement that failed.
#[derive(Debug, Deserialize, Serialize)]
struct Failure {
    scenario: String,
    server: usize,
    why: String,
}

/// Everything that was measured.
#[derive(Debug, Deserialize, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub is_quick: bool,
    /// The first is the one that others are compared with.
    pub servers: Vec<String>,
    pub rows: Vec<Row>,
    /// The scenarios that were measured again later, and when.
    #[serde(default)]
    pub again: BTreeMap<String, String>,
    failures: Vec<Failure>,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map(|model| model.trim_start_matches([' ', '\t', ':']).to_owned());
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            cpu: model.unwrap_or_else(|| format!("a CPU of {}", std::env::consts::ARCH)),
            cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Row {
    /// The median of a server's rounds.
    pub fn median(&self, server: usize) -> Option<f64> {
        median(self.values.get(server)?)
    }

    /// How many times better a server is than the first one.
    pub fn ratio(&self, server: usize) -> Option<f64> {
        let (first, other) = (self.median(0)?, self.median(server)?);
        let ratio = match self.kind {
            Kind::Count => return None,
            Kind::Rate => other / first,
            Kind::Cpu | Kind::Latency | Kind::Memory => first / other,
        };
        (server > 0 && ratio.is_finite()).then_some(ratio)
    }
}

impl Results {
    pub fn new(machine: Machine, scale: Scale, servers: impl Iterator<Item = String>) -> Self {
        Self {
            machine,
            is_quick: scale == Scale::Quick,
            servers: servers.collect(),
            rows: vec![],
            again: BTreeMap::new(),
            failures: vec![],
        }
    }

    /// The results of an earlier run in `dir`.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("results.json");
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} has no results", file.display()))
    }

    /// The results of an earlier run in `dir`, of the same extent, servers and machine as these.
    pub fn earlier(&self, dir: &Path) -> anyhow::Result<Self> {
        let earlier = Self::read(dir)?;
        let conditions = |of: &Self| {
            let machine = &of.machine;
            let machine = (machine.cpu.clone(), machine.cpus, machine.kernel.clone());
            (of.servers.clone(), of.is_quick, machine)
        };
        if conditions(&earlier) != conditions(self) {
            bail!(
                "the results in {} are of other servers ({}), of another machine ({}, Linux {}), or of a run with --quick",
                dir.display(),
                earlier.servers.join(", "),
                earlier.machine.cpu,
                earlier.machine.kernel
            );
        }
        Ok(earlier)
    }

    /// Puts the figures of `scenarios` that did not fail into the place of those that `earlier` results have.
    pub fn put_into(self, mut earlier: Self, scenarios: &[&Scenario]) -> Self {
        for scenario in scenarios {
            if self.failures.iter().any(|failure| failure.scenario == scenario.name) {
                continue;
            }
            earlier.rows.retain(|row| row.scenario != scenario.name);
            earlier.failures.retain(|failure| failure.scenario != scenario.name);
            let date = self.machine.date.clone();
            earlier.again.insert(scenario.name.to_owned(), date);
        }
        let replaced = self.rows.into_iter();
        let replaced = replaced.filter(|row| !earlier.rows.iter().any(|kept| kept.scenario == row.scenario));
        let replaced: Vec<_> = replaced.collect();
        earlier.rows.extend(replaced);
        earlier
    }

    /// Puts the rows into the order of the scenarios, and drops those of scenarios that do not exist any more.
    pub fn sort(&mut self, scenarios: &[Scenario]) {
        let at = |name: &str| scenarios.iter().position(|scenario| scenario.name == name);
        self.rows.retain(|row| at(&row.scenario).is_some());
        self.rows.sort_by_key(|row| at(&row.scenario));
    }

    /// Adds the figures of one round of one server.
    pub fn add(&mut self, scenario: &Scenario, server: usize, figures: Vec<Figure>) {
        for figure in figures {
            let count = self.servers.len();
            let is_row = |row: &Row| row.scenario == scenario.name && row.figure == figure.name;
            let row = find_or_add(&mut self.rows, is_row, || Row {
                scenario: scenario.name.to_owned(),
                title: scenario.title.to_owned(),
                figure: figure.name.clone(),
                kind: figure.kind,
                unit: figure.unit,
                values: vec![vec![]; count],
                points: vec![vec![]; count],
                x: figure.x,
            });
            row.values[server].push(figure.value);
            row.points[server] = figure.points;
        }
    }

    pub fn fail(&mut self, scenario: &Scenario, server: usize, why: &str) {
        self.failures.push(Failure {
            scenario: scenario.name.to_owned(),
            server,
            why: why.to_owned(),
        });
    }

    /// The scenario, the server and the reason of each failure.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.failures.iter().map(|failure| {
            let server = self.servers[failure.server].as_str();
            (failure.scenario.as_str(), server, failure.why.as_str())
        })
    }
}

/// The first row that `is_row` accepts; without one, `new` makes it and it becomes the last.
pub fn find_or_add<R>(rows: &mut Vec<R>, is_row: impl Fn(&R) -> bool, new: impl FnOnce() -> R) -> &mut R {
    let at = rows.iter().position(is_row).unwrap_or_else(|| {
        rows.push(new());
        rows.len() - 1
    });
    &mut rows[at]
}

/// The value in the middle; `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_owned();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
