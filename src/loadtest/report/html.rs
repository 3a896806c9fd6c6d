//! The report as one HTML page with everything in it: nothing is loaded from elsewhere.

use super::plot::{Line, Plot, Scale, escaped};
use super::{Summary, grouped};
use crate::loadtest::histogram::{Histogram, Measure};
use crate::loadtest::outcome::{Outcome, Second};
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
    h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;width:100%}\
    td,th{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:right;font-variant-numeric:tabular-nums}\
    td:first-child,th:first-child{text-align:left}th{font-weight:600}\
    .passed{color:#00734f}.failed{color:#b30000}svg{width:100%;height:auto;margin:1em 0}\
    svg text{font:11px system-ui,sans-serif;fill:#555}svg .t{font-weight:600;fill:#222}svg .g{stroke:#e4e4e4}\
    svg polyline{fill:none;stroke-width:1.5;stroke-linecap:round}pre{white-space:pre-wrap;background:#f6f6f6;padding:1em;font-size:12px}";

/// The page.
pub fn page(outcome: &Outcome) -> String {
    let summary = Summary::of(outcome);
    let title = format!("Load test {}", summary.scenario);
    let class = if summary.passed { "passed" } else { "failed" };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n\
         <p class=\"{class}\">{}</p>\n<p>{} connections, {} keys, {} run(s).</p>\n",
        escaped(&summary.verdict()),
        grouped(summary.connections),
        grouped(summary.keys),
        summary.runs,
        title = escaped(&title),
    );
    heading(&mut out, "Latency");
    table(&mut out, &summary.latency_rows());
    out += &plots_of_latency(outcome);
    heading(&mut out, "Phases");
    table(&mut out, &summary.phase_rows());
    out += &plots_of_load(&outcome.seconds);
    heading(&mut out, "Counts");
    let header = vec!["count".to_owned(), String::new()];
    table(&mut out, &[vec![header], summary.count_rows()].concat());
    if !summary.errors.is_empty() {
        heading(&mut out, "Errors");
        let header = vec!["error".to_owned(), "times".to_owned()];
        let errors = summary.errors.iter().map(|(error, n)| vec![error.clone(), grouped(*n)]);
        table(&mut out, &std::iter::once(header).chain(errors).collect::<Vec<_>>());
    }
    heading(&mut out, "Settings");
    let plan = serde_json::to_string_pretty(&outcome.plan).unwrap_or_default();
    let _ = write!(out, "<pre>{}</pre>\n</body></html>\n", escaped(&plan));
    out
}

fn heading(out: &mut String, text: &str) {
    let _ = writeln!(out, "<h2>{}</h2>", escaped(text));
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    *out += "<table>";
    for (at, row) in rows.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        let cells: String = row
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
            .collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    *out += "</table>\n";
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

fn plots_of_latency(outcome: &Outcome) -> String {
    let seconds = &outcome.seconds;
    let ms = |micros: u64| micros as f64 / 1000.0;
    let by_time = Plot {
        title: "Latency of deliveries by second",
        unit: "milliseconds",
        x_title: "seconds",
        scale: Scale::Logarithmic,
        x_steps: 4,
        x_label: &|x| format!("{x:.0}"),
        lines: vec![
            over_time(seconds, "p50", |second| ms(second.p50)),
            over_time(seconds, "p99", |second| ms(second.p99)),
            over_time(seconds, "max", |second| ms(second.max)),
        ],
    };
    let measures = [
        Measure::CommitToDelivery,
        Measure::SendToDelivery,
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
        x_title: "quantile",
        scale: Scale::Logarithmic,
        x_steps: lines.iter().map(last).fold(1.0, f64::max) as u32,
        x_label: &|x| match x {
            x if x < 0.1 => "0 %".to_owned(),
            x => format!("{} %", ((1.0 - 10f64.powf(-x)) * 1e7).round() / 1e5),
        },
        lines,
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

fn plots_of_load(seconds: &[Second]) -> String {
    let seconds_label: &dyn Fn(f64) -> String = &|x| format!("{x:.0}");
    let plot = |title, unit, scale, lines| Plot {
        title,
        unit,
        x_title: "seconds",
        scale,
        x_steps: 4,
        x_label: seconds_label,
        lines,
    };
    let has_server = seconds.iter().any(|second| second.server_rss > 0);
    let mut cores = vec![over_time(seconds, "tester", |second| second.tester_cpu)];
    if has_server {
        cores.insert(0, over_time(seconds, "server", |second| second.server_cpu));
    }
    let mut out = plot(
        "Rates",
        "per second",
        Scale::Logarithmic,
        vec![
            over_time(seconds, "events received", |second| second.delivered as f64),
            over_time(seconds, "keys written", |second| second.written as f64),
            over_time(seconds, "connections in sync", |second| second.synced as f64),
        ],
    )
    .svg();
    let live = vec![over_time(seconds, "connections", |second| second.live as f64)];
    out += &plot("Connections in sync", "number", Scale::Linear, live).svg();
    out += &plot("CPU", "cores", Scale::Linear, cores).svg();
    if has_server {
        let rss = vec![over_time(seconds, "server", |second| {
            second.server_rss as f64 / f64::from(1 << 20)
        })];
        out += &plot("Memory of the server", "MiB", Scale::Linear, rss).svg();
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
            "Latency by quantile",
            "Connections in sync",
            "connect: &lt;refused&gt;",
            "&quot;scenario&quot;: &quot;quick&quot;",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.matches("<svg").count() >= 4);
        for loads in ["<script", "<link", "src=", "url(", "@import", "http:"] {
            assert!(!page.contains(loads), "{loads}");
        }
        for tag in ["table", "tr", "svg", "h2"] {
            assert_eq!(
                page.matches(&format!("<{tag}")).count(),
                page.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
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
}
