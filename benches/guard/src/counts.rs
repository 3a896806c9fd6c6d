//! Counts of instructions: the committed file, callgrind's output, and the table of both.

use anyhow::{Context, bail};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::path::Path;

/// The committed counts of all architectures.
#[derive(Default)]
pub struct Counts(Map<String, Value>);

/// The comparison of counts.
pub struct Table {
    pub text: String,
    /// The cases that got worse, with their numbers.
    pub worse: Vec<String>,
    /// What to do if there was nothing to compare with.
    pub missing: Option<String>,
}

impl Counts {
    /// Reads the file; no counts if there is none.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        match serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))? {
            Value::Object(counts) => Ok(Self(counts)),
            _ => bail!("{} has no counts by architecture", file.display()),
        }
    }

    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// The count of a case on this architecture.
    fn of(&self, case: &str) -> Option<u64> {
        self.0.get(std::env::consts::ARCH)?.get(case)?.as_u64()
    }

    /// Replaces the counts of this architecture.
    pub fn replace(&mut self, counts: Vec<(String, u64)>) {
        let counts: Map<_, _> = counts.into_iter().map(|(case, n)| (case, n.into())).collect();
        self.0.insert(std::env::consts::ARCH.to_owned(), counts.into());
    }
}

/// The instructions that one of callgrind's files adds up to.
pub fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok()
}

/// Compares counts.
pub fn table(committed: &Counts, measured: &[(String, u64)], tolerance: f64) -> Table {
    let mut table = Table {
        text: format!(
            "{:<46}{:>14}{:>14}{:>9}\n",
            "instructions per operation", "committed", "now", "change"
        ),
        worse: vec![],
        missing: None,
    };
    for (case, now) in measured {
        let Some(before) = committed.of(case) else {
            let _ = writeln!(table.text, "{case:<46}{:>14}{now:>14}{:>9}", "-", "-");
            let arch = std::env::consts::ARCH;
            table.missing = Some(format!(
                "Some cases have no committed count for {arch} and were not compared: `make guard UPDATE=1` adds it."
            ));
            continue;
        };
        let change = *now as f64 / before as f64 - 1.0;
        let _ = writeln!(table.text, "{case:<46}{before:>14}{now:>14}{:>8.1}%", change * 100.0);
        if *now as f64 > before as f64 * (1.0 + tolerance) {
            table
                .worse
                .push(format!("{case}: {now} instead of {before} ({:+.1} %)", change * 100.0));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_above_the_tolerance_is_worse() {
        let mut committed = Counts::default();
        committed.replace(vec![("get".to_owned(), 1000), ("put".to_owned(), 1000)]);
        let measured = [("get", 1050), ("put", 1051), ("list", 7)].map(|(case, n)| (case.to_owned(), n));
        let table = table(&committed, &measured, 0.05);
        assert_eq!(table.worse, ["put: 1051 instead of 1000 (+5.1 %)"]);
        assert!(table.missing.is_some_and(|text| text.contains("UPDATE=1")));
        assert!(table.text.contains("5.0%"), "{}", table.text);
    }

    #[test]
    fn the_total_is_that_of_callgrind() {
        assert_eq!(total("events: Ir\nfn=x\n1 2\n\ntotals: 12345\n"), Some(12345));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn counts_survive_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("counts.json");
        assert!(Counts::read(&file).expect("no file is no count").of("get").is_none());
        let mut counts = Counts::default();
        counts.replace(vec![("get".to_owned(), 12)]);
        counts.write(&file).expect("the directory exists");
        assert_eq!(Counts::read(&file).expect("just written").of("get"), Some(12));
    }
}
