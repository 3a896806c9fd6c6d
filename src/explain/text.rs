//! The report as text for a terminal.

use super::report::{KindPart, Part, Report, Size};
use super::traps::Trap;
use crate::util::words::grouped;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What the words in parentheses mean, where a rule would stand.
const WORDS: [(&str, &str); 6] = [
    ("(default)", "no rule matches, so the default of the list decides"),
    ("(annotation)", "the annotation clustermesh.cilium.io/sync decides"),
    ("(region)", "the address is for clusters of another region"),
    ("(unused)", "no address that is kept has the identity"),
    ("(kind)", "the entry does not list this kind"),
    ("(limit)", "the cluster has as many keys as it may have"),
];

impl Report {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let against = match &self.against {
            Some(file) => format!("{file}, the present scope"),
            None => "no scope (everything is exported and imported)".to_owned(),
        };
        line(
            &mut out,
            format_args!("Scope file {}, compared with {against}.", self.scope),
        );
        if let Some(part) = &self.export {
            line(
                &mut out,
                format_args!("\nEXPORT: what {} shows to other clusters", part.cluster),
            );
            out += &part.text();
        }
        if !self.import.is_empty() {
            let examined: Vec<_> = self.import.iter().filter(|part| part.error.is_none()).collect();
            let sum = |of: fn(&KindPart) -> Size| {
                examined
                    .iter()
                    .map(|part| part.sum(of))
                    .fold(Size::default(), Size::plus)
            };
            let (all, kept) = (sum(|kind| kind.all), sum(|kind| kind.kept));
            let clusters = self.import.len();
            line(
                &mut out,
                format_args!(
                    "\nIMPORT: what this cluster takes from {clusters} remote {}",
                    plural(clusters, "cluster")
                ),
            );
            line(&mut out, format_args!("All clusters: {}.", of_all(kept, all)));
        }
        for part in &self.import {
            let region = part
                .region
                .as_ref()
                .map_or_else(|| "region unknown".to_owned(), |region| format!("region {region}"));
            let entry = match &part.entry {
                Some(entry) => format!("entry {entry:?}"),
                None => "no entry: everything is imported".to_owned(),
            };
            match part.error {
                Some(_) => line(&mut out, format_args!("\n{}", part.cluster)),
                None => line(&mut out, format_args!("\n{} ({region}, {entry})", part.cluster)),
            }
            out += &part.text();
        }
        out += &self.legend();
        self.warnings_text(&mut out);
        for note in &self.notes {
            line(&mut out, format_args!("\n{note}"));
        }
        out
    }

    fn warnings_text(&self, out: &mut String) {
        if self.warnings.is_empty() {
            line(out, format_args!("\nNo warnings."));
            return;
        }
        let n = self.warnings.len();
        line(out, format_args!("\n{n} {}", plural(n, "WARNING")));
        out.push_str(&warnings(&self.warnings));
    }

    /// Explains the words in parentheses that the tables have.
    fn legend(&self) -> String {
        let parts = self.export.iter().chain(&self.import);
        let rules = parts.flat_map(|part| &part.kinds).flat_map(|kind| &kind.rules);
        let used: BTreeSet<&str> = rules.map(|rule| &*rule.rule).collect();
        let mut legend = String::new();
        for (word, meaning) in WORDS.iter().filter(|(word, _)| used.contains(word)) {
            line(&mut legend, format_args!("{word}: {meaning}."));
        }
        match legend.is_empty() {
            true => legend,
            false => format!("\nInstead of the name of a rule:\n{legend}"),
        }
    }
}

/// Warnings as text.
pub fn warnings(traps: &[Trap]) -> String {
    let mut out = String::new();
    for (n, trap) in traps.iter().enumerate() {
        line(&mut out, format_args!("{}. {}: {}.", n + 1, trap.place, trap.problem));
        if !trap.examples.is_empty() {
            line(&mut out, format_args!("   For example: {}.", trap.examples.join("; ")));
        }
        line(&mut out, format_args!("   Remedy: {}.", trap.remedy));
    }
    out
}

impl Part {
    fn text(&self) -> String {
        let mut out = String::new();
        if let Some(error) = &self.error {
            line(&mut out, format_args!("Could not be read: {error}."));
            return out;
        }
        let (all, kept) = (self.sum(|kind| kind.all), self.sum(|kind| kind.kept));
        line(&mut out, format_args!("{}.", of_all(kept, all)));
        if self.kinds.is_empty() {
            return out;
        }
        let mut rows = vec![["KIND", "DECISION", "RULE", "KEYS", "BYTES", "EXAMPLES"].map(str::to_owned)];
        for kind in &self.kinds {
            for rule in &kind.rules {
                let Size { keys, bytes } = rule.keys.size;
                // Who keeps everything needs no examples.
                let examples = if kind.is_plain() {
                    String::new()
                } else {
                    rule.keys.examples.join(", ")
                };
                let decision = rule.decision.to_owned();
                rows.push([
                    kind.kind.to_owned(),
                    decision,
                    rule.rule.clone(),
                    grouped(keys),
                    size(bytes),
                    examples,
                ]);
            }
        }
        out += &table(&rows);
        for kind in &self.kinds {
            let changes = [
                ("added", &kind.added),
                ("removed", &kind.removed),
                ("given another value", &kind.changed),
            ];
            for (what, keys) in changes.into_iter().filter(|(_, keys)| keys.size.keys > 0) {
                let Size { keys: n, bytes } = keys.size;
                let n = grouped(n);
                line(
                    &mut out,
                    format_args!(
                        "{n} {} {what} ({}): {}",
                        kind.kind,
                        size(bytes),
                        keys.examples.join(", ")
                    ),
                );
            }
        }
        let is_same = |kind: &KindPart| kind.added.size.keys + kind.removed.size.keys + kind.changed.size.keys == 0;
        if self.kinds.iter().all(is_same) {
            line(&mut out, format_args!("Nothing changes."));
        }
        out
    }
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
        }
    }
}

fn of_all(kept: Size, all: Size) -> String {
    let (out_keys, out_bytes) = (all.keys - kept.keys, all.bytes - kept.bytes);
    format!(
        "{} of {} keys stay ({} of {}); {} keys with {} are not there",
        grouped(kept.keys),
        grouped(all.keys),
        size(kept.bytes),
        size(all.bytes),
        grouped(out_keys),
        size(out_bytes)
    )
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

fn plural(n: usize, word: &str) -> String {
    match (n, word.chars().all(char::is_uppercase)) {
        (1, _) => word.to_owned(),
        (_, true) => format!("{word}S"),
        (_, false) => format!("{word}s"),
    }
}

/// Aligned columns; numbers to the right.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                3 | 4 => format!("{cell:>width$}"),
                5 => cell.clone(),
                _ => format!("{cell:<width$}"),
            });
        let cells: Vec<_> = cells.collect();
        line(&mut out, format_args!("{}", cells.join("  ").trim_end()));
    }
    out
}

/// A number of bytes with two or three digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value < 9.95) {
        (0, _) => format!("{bytes} B"),
        (_, true) => format!("{value:.1} {}", UNITS[unit]),
        (_, false) => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_plurals_are_readable() {
        assert_eq!(
            [0, 999, 1000, 9_949, 12_345, 999_600].map(size),
            ["0 B", "999 B", "1.0 kB", "9.9 kB", "12 kB", "1.0 MB"]
        );
        assert_eq!(
            (plural(1, "cluster"), plural(2, "WARNING")),
            ("cluster".to_owned(), "WARNINGS".to_owned())
        );
    }
}
