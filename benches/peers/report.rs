//! The results as a table in Markdown, as plots, and as JSON with the values of all rounds.

use crate::plot;
use crate::results::{Results, Row};
use crate::scenarios::Kind;
use anyhow::Context;
use std::fmt::Write as _;
use std::path::Path;

/// The plots of bars: file, title, kind.
const BARS: [(&str, &str, Kind); 3] = [
    ("cpu.svg", "CPU time of the server", Kind::Cpu),
    ("latency.svg", "Latency", Kind::Latency),
    ("memory.svg", "Memory of the server", Kind::Memory),
];

/// The lines of README.md between which the summary of a whole run is.
const MARKS: (&str, &str) = ("<!-- make bench writes from here -->\n", "<!-- to here -->\n");

/// Writes a summary of a whole run into the README of the project.
pub fn summarize(results: &Results, readme: &Path, dir: &Path) -> anyhow::Result<()> {
    replace_marked(readme, MARKS, &summary(results, dir))
}

/// Replaces the text between two lines of a document.
pub fn replace_marked(document: &Path, marks: (&str, &str), with: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
    let found = text
        .split_once(marks.0)
        .and_then(|(before, rest)| Some((before, rest.split_once(marks.1)?.1)));
    let (before, after) = found.with_context(|| format!("{} has lost the lines for the table", document.display()))?;
    let text = format!("{before}{}{with}{}{after}", marks.0, marks.1);
    std::fs::write(document, text).with_context(|| format!("cannot write {}", document.display()))
}

/// The first figure of each scenario, of the first server and of Isthmus, which is the last.
fn summary(results: &Results, dir: &Path) -> String {
    let (servers, last) = (&results.servers, results.servers.len() - 1);
    let mut out = format!(
        "| Scenario | Figure | {} | {} | Ratio |\n|---|---|---:|---:|---:|\n",
        servers[0], servers[last]
    );
    let mut scenario = "";
    for row in &results.rows {
        if std::mem::replace(&mut scenario, &row.scenario) == row.scenario {
            continue;
        }
        let value = |at| row.median(at).map_or("–".to_owned(), |value| measure(value, &row.unit));
        let ratio = row
            .ratio(last)
            .map_or("–".to_owned(), |ratio| format!("{} ×", digits(ratio)));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {ratio} |",
            row.title,
            row.figure,
            value(0),
            value(last)
        );
    }
    out + &format!(
        "\n[All figures, with plots and the machine]({}/README.md)\n",
        dir.display()
    )
}

/// Writes all files into a directory.
pub fn write(results: &Results, dir: &Path) -> anyhow::Result<()> {
    let write = |file: &str, text: String| {
        let path = dir.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut images = vec![];
    for (file, title, kind) in BARS {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.kind == kind).collect();
        if !rows.is_empty() {
            write(file, plot::bars(title, &results.servers, &rows))?;
            images.push((file.to_owned(), title.to_owned()));
        }
    }
    for row in &results.rows {
        if row.points.iter().all(Vec::is_empty) {
            continue;
        }
        let title = format!("{}, {}: {}", row.figure, row.unit, row.title);
        let file = format!("{}-{}.svg", row.scenario, slug(&row.figure));
        write(&file, plot::lines(&title, &row.x, &results.servers, &row.points))?;
        images.push((file, title));
    }
    remove_stale(dir, &images)?;
    write("README.md", page(results, &images))?;
    write("results.json", serde_json::to_string_pretty(results)? + "\n")
}

/// Removes the plots that the page of an earlier run shows, and this one does not.
fn remove_stale(dir: &Path, images: &[(String, String)]) -> anyhow::Result<()> {
    let Ok(page) = std::fs::read_to_string(dir.join("README.md")) else {
        return Ok(());
    };
    let shown = page
        .lines()
        .filter_map(|line| line.strip_prefix("![")?.split_once("](")?.1.strip_suffix(')'));
    // Only names of this program: a page must not lead elsewhere.
    let shown = shown.filter(|file| file.strip_suffix(".svg").is_some_and(|name| slug(name) == name));
    for file in shown.filter(|file| images.iter().all(|(image, _)| image != file)) {
        let path = dir.join(file);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn page(results: &Results, images: &[(String, String)]) -> String {
    let machine = &results.machine;
    let mut out = format!(
        "# {}\n\n`make bench` wrote this page on {} on {} CPUs of {}, Linux {}. Server and loader had one core each, and all servers \
         ran in turns. Values are medians of the rounds, whose values are in [results.json](results.json). [The explanation of the \
         scenarios](../README.md) says how to read the numbers.\n\n",
        results.servers.join(", "),
        machine.date,
        machine.cpus,
        machine.cpu,
        machine.kernel
    );
    if results.is_quick {
        out += "**A quick run**: short measurements with small numbers. The numbers say that the scenarios run, and no more.\n\n";
    }
    for (file, title) in images {
        let _ = writeln!(out, "![{title}]({file})\n");
    }
    out += &table(results);
    if !results.again.is_empty() {
        let again = results
            .again
            .iter()
            .map(|(scenario, date)| format!("`{scenario}` ({date})"));
        let again: Vec<_> = again.collect();
        let _ = writeln!(
            out,
            "\nMeasured again later, all servers in turns: {}.",
            again.join(", ")
        );
    }
    let mut failures = results.failures().peekable();
    if failures.peek().is_some() {
        out += "\n## Failures\n\n";
        for (scenario, server, why) in failures {
            let _ = writeln!(out, "- `{scenario}`, {server}: {why}");
        }
    }
    out
}

/// All figures as a table in Markdown.
pub fn table(results: &Results) -> String {
    let servers = &results.servers;
    let compared = |at: usize| format!("{} against {}", servers[at], servers[0]);
    let mut header = vec!["Scenario".to_owned(), "Figure".to_owned()];
    header.extend(servers.iter().cloned());
    header.extend((1..servers.len()).map(compared));
    let mut out = format!(
        "| {} |\n|---|---|{}\n",
        header.join(" | "),
        "---:|".repeat(header.len() - 2)
    );
    let mut last = "";
    for row in &results.rows {
        let title = if row.scenario == last {
            String::new()
        } else {
            format!("{} (`{}`)", row.title, row.scenario)
        };
        last = &row.scenario;
        let mut cells = vec![title, row.figure.clone()];
        let value = |at| row.median(at).map_or("–".to_owned(), |value| measure(value, &row.unit));
        cells.extend((0..servers.len()).map(value));
        let ratio = |at| {
            row.ratio(at)
                .map_or("–".to_owned(), |ratio| format!("{} ×", digits(ratio)))
        };
        cells.extend((1..servers.len()).map(ratio));
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out
}

/// A name of a file: words of letters and digits.
fn slug(text: &str) -> String {
    let words = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

/// A value with its unit.
pub fn measure(value: f64, unit: &str) -> String {
    format!("{} {unit}", digits(value)).trim_end().to_owned()
}

/// A number with about three digits, and with a separator for thousands.
pub fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 0.1 => format!("{value:.3}"),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => whole(value),
    }
}

/// A number without decimals, and with a separator for thousands.
pub fn whole(value: f64) -> String {
    let whole = format!("{value:.0}");
    let parts: Vec<_> = whole.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    parts.join(",")
}
