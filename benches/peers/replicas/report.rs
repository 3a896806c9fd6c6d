//! The figures of replicas as a table in Markdown, and as JSON with the values of all rounds.

use super::{Bench, Figure, Scenario, Target};
use crate::report::{digits, measure, replace_marked};
use crate::results::{Machine, find_or_add, median};
use crate::scenarios::Scale;
use anyhow::Context;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// The document that shows the table of a whole run.
const DOCUMENT: &str = "docs/replicas.md";
/// The lines of the document between which the table is.
const MARKS: (&str, &str) = ("<!-- make bench-replicas writes from here -->\n", "<!-- to here -->\n");

/// The values of all rounds.
#[derive(Debug, Serialize)]
struct Row {
    scenario: &'static str,
    title: &'static str,
    figure: &'static str,
    unit: &'static str,
    /// Of clients of etcd.
    direct: Vec<f64>,
    /// Of clients of a replica.
    replica: Vec<f64>,
    #[serde(skip)]
    target: Target,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    machine: Machine,
    is_quick: bool,
    upstream: String,
    replica: String,
    connections: usize,
    agents: usize,
    keys: usize,
    rows: Vec<Row>,
    /// Scenarios that failed, and why.
    pub failures: Vec<(&'static str, String)>,
}

impl Results {
    pub fn new(machine: Machine, bench: &Bench<'_>) -> Self {
        Self {
            machine,
            is_quick: bench.scale == Scale::Quick,
            upstream: bench.upstream.name.clone(),
            replica: bench.ours.name.clone(),
            connections: bench.connections(),
            agents: bench.agents(),
            keys: bench.keys(),
            rows: vec![],
            failures: vec![],
        }
    }

    pub fn add(&mut self, scenario: &Scenario, figures: Vec<Figure>) {
        for figure in figures {
            let is_row = |row: &Row| (row.scenario, row.figure) == (scenario.name, figure.name);
            let row = find_or_add(&mut self.rows, is_row, || Row {
                scenario: scenario.name,
                title: scenario.title,
                figure: figure.name,
                unit: figure.unit,
                direct: vec![],
                replica: vec![],
                target: figure.target,
            });
            row.direct.extend(figure.direct);
            row.replica.extend(figure.replica);
        }
    }

    pub fn fail(&mut self, scenario: &'static str, why: &str) {
        self.failures.push((scenario, why.to_owned()));
    }

    /// All figures as a table in Markdown.
    pub fn table(&self) -> String {
        let mut out = format!(
            "| Scenario | Figure | At {} | At a replica | Target | |\n|---|---|---:|---:|---:|---|\n",
            self.upstream
        );
        let mut last = "";
        for row in &self.rows {
            let title = match std::mem::replace(&mut last, row.scenario) == row.scenario {
                true => String::new(),
                false => format!("{} (`{}`)", row.title, row.scenario),
            };
            let shown = |values: &[f64]| median(values).map_or("–".to_owned(), |value| measure(value, row.unit));
            let (target, met) = row.judged();
            let (figure, direct, replica) = (row.figure, shown(&row.direct), shown(&row.replica));
            let _ = writeln!(out, "| {title} | {figure} | {direct} | {replica} | {target} | {met} |");
        }
        out
    }

    /// Writes the table and the values, and a whole run into the document.
    pub fn write(&self, dir: &Path, is_whole: bool) -> anyhow::Result<()> {
        let write = |file: &str, text: String| {
            let path = dir.join(file);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        write("replicas.md", self.page())?;
        write("replicas.json", serde_json::to_string_pretty(self)? + "\n")?;
        if is_whole && self.failures.is_empty() {
            let text = format!("{}\n{}\n", self.origin(), self.table());
            replace_marked(Path::new(DOCUMENT), MARKS, &text)?;
        }
        Ok(())
    }

    /// Where and when the figures were measured.
    fn origin(&self) -> String {
        let machine = &self.machine;
        format!(
            "{} as replica of {} with one member and its data in memory, on {}, on {} CPUs of {}, Linux {}. Values are medians of \
             the rounds.\n",
            self.replica, self.upstream, machine.date, machine.cpus, machine.cpu, machine.kernel
        )
    }

    fn page(&self) -> String {
        let mut out = format!(
            "# Replicas beside {}\n\n{}The rounds are in [replicas.json](replicas.json). [The explanation of the \
             scenarios](../README.md#replicas-make-bench-replicas) says how to read the numbers. There were {} connections in \
             `replicas-agents`, {} agents in `replicas-lone` and `replicas-loss`, and {} keys in `replicas-agents` and \
             `replicas-start`.\n\n",
            self.upstream,
            self.origin(),
            digits(self.connections as f64),
            digits(self.agents as f64),
            digits(self.keys as f64),
        );
        if self.is_quick {
            out += "**A quick run**: short measurements with small numbers. The numbers say that the scenarios run, and no more.\n\n";
        }
        out += &self.table();
        if !self.failures.is_empty() {
            out += "\n## Failures\n\n";
            for (scenario, why) in &self.failures {
                let _ = writeln!(out, "- `{scenario}`: {why}");
            }
        }
        out
    }
}

impl Row {
    /// The target, and whether the replica meets it.
    fn judged(&self) -> (String, &'static str) {
        let target = match self.target {
            Target::None => return (String::new(), ""),
            Target::AtMost(most) => format!("≤ {}", measure(most, self.unit)),
            Target::AtLeast(least) => format!("≥ {}", measure(least, self.unit)),
        };
        let met = median(&self.replica).and_then(|value| self.target.is_met(value));
        let met = match met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        (target, met)
    }
}
