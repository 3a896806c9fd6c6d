//! The report as one HTML page with everything in it, for readers who have nothing but the page. It loads nothing from
//! elsewhere.

use super::plot::{Line, Plot, Scale, escaped};
use super::{Summary, duration, grouped, prose};
use crate::loadtest::histogram::{Histogram, Measure};
use crate::loadtest::outcome::{Outcome, Second};
use std::fmt::Write as _;

/// Colours that colour-blind readers can tell apart (Okabe and Ito), lighter on a dark page.
const STYLE: &str = ":root{color-scheme:light dark;--text:#222;--soft:#5c5c5c;--line:#ddd;--back:#fff;--box:#f5f5f5;--good:#00734f;\
    --bad:#b30000;--c0:#0072b2;--c1:#c24e00;--c2:#00805c;--c3:#a8507f}\
    @media(prefers-color-scheme:dark){:root{--text:#e4e4e4;--soft:#a5a5a5;--line:#3c3c3c;--back:#171717;--box:#232323;--good:#4fd1a5;\
    --bad:#ff8577;--c0:#56b4e9;--c1:#f0933a;--c2:#35c795;--c3:#e39fc5}}\
    body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:1.5em auto;padding:0 1em;color:var(--text);background:var(--back)}\
    h1{font-size:1.4em;margin-bottom:.3em}h2{font-size:1.1em;margin-top:2em}p.note,ul.notes{color:var(--soft)}\
    .scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}\
    td,th{padding:.3em .6em;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;font-variant-numeric:tabular-nums;\
    white-space:nowrap}td:first-child,th:first-child{text-align:left;white-space:normal;min-width:11em}th{font-weight:600}\
    small{display:block;color:var(--soft);line-height:1.35}.verdict{font-weight:600}.passed{color:var(--good)}.failed{color:var(--bad)}\
    .cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13em,1fr));gap:.8em;margin:1em 0}\
    .card{background:var(--box);border-radius:6px;padding:.7em .9em}.card b{display:block;font-size:1.35em;font-weight:600}\
    .plot{overflow-x:auto;margin:1em 0}svg{display:block;width:100%;min-width:600px;height:auto}\
    svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .t{font-weight:600;fill:var(--text)}svg .g{stroke:var(--line)}\
    svg line.m{stroke:var(--soft);stroke-dasharray:3 3}svg text.m{fill:var(--text)}\
    svg polyline{fill:none;stroke-width:1.5;stroke-linecap:round}\
    .c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}\
    svg .l0{fill:var(--c0)}svg .l1{fill:var(--c1)}svg .l2{fill:var(--c2)}svg .l3{fill:var(--c3)}\
    pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--box);padding:1em;font-size:12px}";

/// The page.
pub fn page(outcome: &Outcome) -> String {
    let summary = Summary::of(outcome);
    let title = escaped(&format!("Load test {}", summary.scenario));
    let class = if summary.passed && !summary.interrupted {
        "passed"
    } else {
        "failed"
    };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p class=\"verdict {class}\">{}</p>\n",
        escaped(&summary.verdict()),
    );
    cards(&mut out, outcome, &summary);
    list(&mut out, "notes", &summary.warnings);
    heading(&mut out, "What was tested");
    list(&mut out, "", &prose::settings(outcome));
    out += &format!(
        "<p class=\"note\">Every agent verified every event that it received, by numbers in the values. {} connections and {} keys \
         in {} run(s).</p>\n",
        grouped(summary.connections),
        grouped(summary.keys),
        summary.runs
    );
    latencies(&mut out, outcome, &summary);
    heading(&mut out, "Phases and their cost");
    note(&mut out, PHASES);
    table(&mut out, &summary.phase_rows());
    if let Some(rows) = summary.compared_rows() {
        heading(&mut out, "Beside readers that stopped reading");
        note(&mut out, COMPARED);
        table(&mut out, &rows);
    }
    out += &plots_of_load(outcome);
    heading(&mut out, "Counts");
    let counts = summary.counts().into_iter().map(|count| Row {
        title: count.title.to_owned(),
        meaning: count.meaning,
        cells: vec![count.value],
    });
    explained(&mut out, &["count", ""], counts);
    errors(&mut out, &summary);
    let plan = serde_json::to_string_pretty(&outcome.plan).unwrap_or_default();
    let _ = write!(
        out,
        "<h2>All settings</h2>\n<details><summary>as JSON</summary><pre>{}</pre></details>\n</body></html>\n",
        escaped(&plan)
    );
    out
}

const PHASES: &str = "In fill, writers write all keys; in connect, agents connect, list and watch; in live, writers change keys and \
    agents follow, with the storms in between. CPU is the CPU time of one operation: a key in fill, a connection in connect and in \
    storms, an event that an agent received in live (which contains the storms). Cores are the cores that the process kept busy. RSS is \
    its memory at the end of the phase. A dash stands for a figure that is not known, or that less than a tenth of a second of CPU time \
    would be too coarse for. Server figures need the server on the tester's machine.";

const COMPARED: &str = "The deliveries to the other agents in each third of the time in which they watched, and the memory of the \
    server: at the end of the third, and the most at any second of it.";

const LATENCIES: &str =
    "p99 is the time that 99 of 100 did not exceed. Times are those of the tester, and contain its own delay.";

/// A line of a table whose first cell is explained.
struct Row {
    title: String,
    meaning: &'static str,
    cells: Vec<String>,
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "<h2>{}</h2>", escaped(text));
}

fn note(out: &mut String, text: &str) {
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escaped(text));
}

fn list(out: &mut String, class: &str, items: &[String]) {
    if !items.is_empty() {
        let items: String = items.iter().map(|item| format!("<li>{}</li>", escaped(item))).collect();
        let _ = writeln!(out, "<ul class=\"{class}\">{items}</ul>");
    }
}

/// The figures that most readers look for.
fn cards(out: &mut String, outcome: &Outcome, summary: &Summary) {
    let at = |measure: Measure, quantile: f64| {
        let histogram = outcome.histograms.get(&measure).filter(|h| h.count() > 0)?;
        Some(duration(histogram.at(quantile).as_secs_f64() * 1000.0))
    };
    let findings = &summary.findings;
    let wrong = findings.missing + findings.duplicate + findings.reordered + findings.wrong_state;
    let cards = [
        (at(Measure::CommitToDelivery, 0.99), "p99 from commit to delivery"),
        (
            at(Measure::Recovery, 0.99),
            "p99 from the loss of a connection to in sync",
        ),
        (at(Measure::Recovery, 1.0), "longest time out of sync"),
        (Some(grouped(summary.counts.disconnects)), "connections lost"),
        (
            Some(grouped(wrong)),
            "events missing, repeated or misplaced, and wrong states",
        ),
    ];
    let cards = cards.into_iter().filter_map(|(value, title)| Some((value?, title)));
    let cards: String = cards
        .map(|(value, title)| format!("<div class=\"card\"><b>{}</b>{}</div>", escaped(&value), escaped(title)))
        .collect();
    let _ = writeln!(out, "<div class=\"cards\">{cards}</div>");
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    *out += "<div class=\"scroll\"><table>";
    for (at, row) in rows.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        let cells = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        let _ = writeln!(out, "<tr>{}</tr>", cells.collect::<String>());
    }
    *out += "</table></div>\n";
}

fn explained(out: &mut String, header: &[&str], rows: impl Iterator<Item = Row>) {
    let header: String = header
        .iter()
        .map(|cell| format!("<th>{}</th>", escaped(cell)))
        .collect();
    let _ = writeln!(out, "<div class=\"scroll\"><table><tr>{header}</tr>");
    for row in rows {
        let cells: String = row
            .cells
            .iter()
            .map(|cell| format!("<td>{}</td>", escaped(cell)))
            .collect();
        let (title, meaning) = (escaped(&row.title), escaped(row.meaning));
        let _ = writeln!(out, "<tr><td>{title}<small>{meaning}</small></td>{cells}</tr>");
    }
    *out += "</table></div>\n";
}

fn latencies(out: &mut String, outcome: &Outcome, summary: &Summary) {
    heading(out, "Latency");
    note(out, LATENCIES);
    let rows = summary.latency_rows();
    let header: Vec<&str> = rows[0].iter().map(String::as_str).collect();
    let meaning = |title: &str| {
        let measure = outcome.histograms.keys().find(|measure| measure.title() == title);
        measure.map_or("", |measure| measure.meaning())
    };
    let explained_rows = rows.iter().skip(1).map(|row| Row {
        title: row[0].clone(),
        meaning: meaning(&row[0]),
        cells: row[1..].to_vec(),
    });
    explained(out, &header, explained_rows);
    *out += &plots_of_latency(outcome);
}

fn errors(out: &mut String, summary: &Summary) {
    if summary.errors.is_empty() {
        return;
    }
    heading(out, "Errors");
    let header = vec!["error".to_owned(), "times".to_owned()];
    let errors = summary.errors.iter().map(|(error, n)| vec![error.clone(), grouped(*n)]);
    table(out, &std::iter::once(header).chain(errors).collect::<Vec<_>>());
}

/// A line of one figure of each second.
fn over_time<'a>(seconds: &[Second], name: &'a str, figure: impl Fn(&Second) -> f64) -> Line<'a> {
    let began = seconds.first().map_or(0, |second| second.at);
    let points = seconds
        .iter()
        .map(|second| ((second.at - began) as f64, figure(second)));
    Line {
        name,
        points: points.collect(),
    }
}

/// What happened, in seconds since the first sample.
fn marks(outcome: &Outcome) -> Vec<(f64, String)> {
    let began = outcome.seconds.first().map_or(0.0, |second| second.at as f64);
    let marks = outcome.marks.iter();
    marks
        // The first sample is taken after a second.
        .map(|mark| ((mark.at_ms as f64 / 1000.0 - began).max(0.0), mark.text.clone()))
        .collect()
}

/// Minutes and seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

fn plots_of_latency(outcome: &Outcome) -> String {
    let (seconds, marks) = (&outcome.seconds, marks(outcome));
    let ms = |micros: u64| micros as f64 / 1000.0;
    let by_time = Plot {
        title: "Latency of deliveries by second",
        unit: "milliseconds",
        x_title: "minutes:seconds",
        scale: Scale::Logarithmic,
        x_steps: 4,
        x_label: &clock,
        lines: vec![
            over_time(seconds, "p50", |second| ms(second.p50)),
            over_time(seconds, "p99", |second| ms(second.p99)),
            over_time(seconds, "max", |second| ms(second.max)),
        ],
        marks: &marks,
    };
    let measures = [
        Measure::CommitToDelivery,
        Measure::Recovery,
        Measure::HeartbeatSpread,
        Measure::Put,
    ];
    let lines = measures.iter().filter_map(|measure| {
        Some(Line {
            name: measure.title(),
            points: distribution(outcome.histograms.get(measure)?),
        })
    });
    let lines: Vec<_> = lines.collect();
    let last = |line: &Line<'_>| line.points.last().map_or(0.0, |(x, _)| *x);
    // Every step of the x axis is one nine more.
    let by_quantile = Plot {
        title: "Latency by quantile",
        unit: "milliseconds",
        x_title: "share that was at least as fast",
        scale: Scale::Logarithmic,
        x_steps: lines.iter().map(last).fold(1.0, f64::max) as u32,
        x_label: &|x| match x {
            x if x < 0.1 => "0 %".to_owned(),
            x => format!("{} %", ((1.0 - 10f64.powf(-x)) * 1e7).round() / 1e5),
        },
        lines,
        marks: &[],
    };
    by_time.svg() + &by_quantile.svg()
}

/// The durations of a histogram at ever higher quantiles, up to the last one that it has enough values for.
fn distribution(histogram: &Histogram) -> Vec<(f64, f64)> {
    let nines = (histogram.count().max(1) as f64).log10().floor().clamp(1.0, 6.0);
    let steps = 60;
    let xs = (0..=steps).map(|step| nines * f64::from(step) / f64::from(steps));
    xs.map(|x| (x, histogram.at(1.0 - 10f64.powf(-x)).as_secs_f64() * 1000.0))
        .collect()
}

fn plots_of_load(outcome: &Outcome) -> String {
    let (seconds, marks) = (&outcome.seconds, marks(outcome));
    let plot = |title, unit, scale, lines| {
        Plot {
            title,
            unit,
            x_title: "minutes:seconds",
            scale,
            x_steps: 4,
            x_label: &clock,
            lines,
            marks: &marks,
        }
        .svg()
    };
    let live = vec![over_time(seconds, "connections", |second| second.live as f64)];
    let mut out = plot("Connections in sync", "number", Scale::Linear, live);
    let rates = vec![
        over_time(seconds, "events received", |second| second.delivered as f64),
        over_time(seconds, "keys written", |second| second.written as f64),
        over_time(seconds, "connections in sync", |second| second.synced as f64),
    ];
    out += &plot("Rates", "per second", Scale::Logarithmic, rates);
    let has_server = seconds.iter().any(|second| second.server_rss > 0);
    let mut cores = vec![over_time(seconds, "tester", |second| second.tester_cpu)];
    if has_server {
        cores.insert(0, over_time(seconds, "server", |second| second.server_cpu));
    }
    out += &plot("CPU", "cores", Scale::Linear, cores);
    if has_server {
        let mib = |second: &Second| second.server_rss as f64 / f64::from(1 << 20);
        let rss = vec![over_time(seconds, "server", mib)];
        out += &plot("Memory of the server", "MiB", Scale::Linear, rss);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;

    #[test]
    fn the_page_is_complete_and_loads_nothing() {
        let mut outcome = outcome();
        outcome.errors.insert("connect: <refused>".to_owned(), 7);
        outcome.findings.reordered = 1;
        let page = page(&outcome);
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        for part in [
            "FAILED: 1 events came out of order",
            "commit to delivery",
            "never less than the latency",
            "100 simulated nodes followed one remote cluster",
            "Latency by quantile",
            "Connections in sync",
            "storm 1",
            "Events that an agent received after later ones.",
            "connect: &lt;refused&gt;",
            "&quot;scenario&quot;: &quot;quick&quot;",
            "prefers-color-scheme:dark",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.matches("<svg").count() >= 4);
        for loads in ["<script", "<link", "src=", "url(", "@import", "http:"] {
            assert!(!page.contains(loads), "{loads}");
        }
        for tag in ["table", "tr", "svg", "h2", "div", "ul", "li", "small"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    /// Every figure is explained to readers who have nothing but the page.
    #[test]
    fn every_latency_and_every_count_has_an_explanation() {
        let mut outcome = outcome();
        let some = outcome.histograms[&Measure::CommitToDelivery].clone();
        for measure in Measure::ALL {
            outcome.histograms.insert(measure, some.clone());
        }
        let page = page(&outcome);
        for measure in Measure::ALL {
            assert!(page.contains(&*escaped(measure.meaning())), "{measure:?}");
        }
        assert!(!page.contains("<small></small>"));
    }

    #[test]
    fn a_distribution_ends_at_the_last_quantile_with_values() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|ms| histogram.record_nanos(ms * 1_000_000));
        let points = distribution(&histogram);
        let (last, most) = points[points.len() - 1];
        assert!(
            (last - 3.0).abs() < 1e-9 && (990.0..1010.0).contains(&most),
            "{last} {most}"
        );
        assert!(points.is_sorted_by(|a, b| a.1 <= b.1));
    }

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!([0.0, 61.4, 7322.0].map(clock), ["0:00", "1:01", "2:02:02"]);
    }
}
