//! Plots as SVG files that a light and a dark page can show: no background, and colours that both can carry.

use crate::report::{digits, measure, whole};
use crate::results::Row;
use std::fmt::Write as _;

const WIDTH: f64 = 880.0;
/// Where bars begin, and the length of the bar of the server that others are compared with.
const LEFT: f64 = 380.0;
const LENGTH: f64 = 240.0;
/// Bars are cut off here, in lengths of the compared one.
const MOST: f64 = 1.65;
const BAR: f64 = 11.0;
const GAP: f64 = 12.0;
/// The height of the title and the legend.
const TOP: f64 = 58.0;
/// The size of the picture of lines, and the space around the lines.
const HEIGHT: f64 = 300.0;
const AXIS: f64 = 60.0;
/// About the width of a character.
const CHARACTER: f64 = 7.0;
/// The colours of etcd, of another etcd, and of Isthmus, which comes last.
const PEERS: [&str; 2] = ["#7d8590", "#c08a3e"];
const OURS: &str = "#2f81f7";
/// The colour of text: a grey that is readable on white and on black.
const TEXT: &str = "#7d8590";

/// The colour of a server.
fn colour(servers: &[String], at: usize) -> &'static str {
    match servers[at].starts_with("etcd") {
        true => PEERS[at % PEERS.len()],
        false => OURS,
    }
}

fn begin(height: f64, title: &str, servers: &[String]) -> String {
    let title = escaped(title);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n\
         <text x=\"0\" y=\"18\" font-size=\"16\" font-weight=\"600\">{title}</text>\n"
    );
    let mut x = 0.0;
    for (at, server) in servers.iter().enumerate() {
        let colour = colour(servers, at);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"31\" width=\"11\" height=\"11\" fill=\"{colour}\"/><text x=\"{}\" y=\"41\">{}</text>",
            x + 16.0,
            escaped(server)
        );
        x += 40.0 + 7.0 * server.chars().count() as f64;
    }
    out
}

/// For each row a bar of each server, relative to the first server. Shorter is better.
pub fn bars(title: &str, servers: &[String], rows: &[&Row]) -> String {
    let group = BAR * servers.len() as f64 + GAP;
    let height = TOP + group * rows.len() as f64;
    let title = format!("{title}, relative to {}: shorter is better", servers[0]);
    let mut out = begin(height, &title, servers);
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + group * at as f64;
        let middle = y + BAR * servers.len() as f64 / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"0\" y=\"{:.1}\">{}</text><text x=\"0\" y=\"{:.1}\" font-size=\"11\" opacity=\"0.85\">{}</text>",
            middle - 2.0,
            escaped(&row.title),
            middle + 12.0,
            escaped(&row.figure)
        );
        let first = row.median(0).filter(|first| *first > 0.0);
        for server in 0..servers.len() {
            let colour = colour(servers, server);
            let Some(value) = row.median(server) else { continue };
            let top = y + BAR * server as f64;
            let share = first.map_or(1.0, |first| value / first);
            let length = LENGTH * share.clamp(0.003, MOST);
            let mark = if share > MOST { " …" } else { "" };
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{}{mark}</text>",
                BAR - 1.5,
                LEFT + length + 5.0,
                top + BAR - 2.5,
                measure(value, &row.unit)
            );
        }
    }
    out + "</svg>\n"
}

/// The most numbers below the axis of x.
const NUMBERS: usize = 10;
/// A larger ratio of the last x and the first one needs an axis of logarithms.
const LINEAR: f64 = 50.0;

/// A line for each server, from zero, or, over many magnitudes, along logarithms.
pub fn lines(title: &str, x_title: &str, servers: &[String], lines: &[Vec<(f64, f64)>]) -> String {
    let mut out = begin(HEIGHT, title, servers);
    let most = |of: fn(&(f64, f64)) -> f64| lines.iter().flatten().map(of).fold(1.0, f64::max);
    let (right, top) = (most(|point| point.0), round_up(most(|point| point.1)));
    let mut numbers: Vec<f64> = lines.iter().flatten().map(|point| point.0).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.dedup();
    let left = numbers.first().copied().unwrap_or_default();
    let is_wide = left > 0.0 && right / left > LINEAR;
    let x_at = |x: f64| {
        let share = match is_wide {
            true => (x / left).ln() / (right / left).ln(),
            false => x / right,
        };
        AXIS + share * (WIDTH - AXIS - 20.0)
    };
    let y_at = |y: f64| HEIGHT - AXIS / 2.0 - y / top * (HEIGHT - AXIS / 2.0 - TOP);
    for step in 0..=4 {
        let y = top * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{AXIS}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{TEXT}\" stroke-opacity=\"0.25\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - 20.0,
            y_at(y),
            y_at(y),
            AXIS - 8.0,
            y_at(y) + 4.0,
            tick(y)
        );
    }
    // From the right, where the last number has the unit. A number that has no room is left out.
    let mut room = WIDTH;
    for x in numbers.iter().rev().step_by(numbers.len().div_ceil(NUMBERS).max(1)) {
        let (text, at, anchor) = match *x >= right {
            true => (format!("{} {x_title}", tick(*x)), WIDTH, "end"),
            false => (tick(*x), x_at(*x), "middle"),
        };
        let width = CHARACTER * text.chars().count() as f64;
        let ends = if anchor == "end" { at } else { at + width / 2.0 };
        if ends > room {
            continue;
        }
        room = ends - width - CHARACTER;
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            HEIGHT - 12.0,
            escaped(&text)
        );
    }
    for (at, line) in lines.iter().enumerate() {
        let colour = colour(servers, at);
        let points: Vec<_> = line
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y)))
            .collect();
        for point in line.iter().filter(|_| line.len() <= NUMBERS) {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x_at(point.0),
                y_at(point.1)
            );
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
            points.join(" ")
        );
    }
    out + "</svg>\n"
}

/// A number at an axis.
fn tick(value: f64) -> String {
    match value.fract() {
        0.0 => whole(value),
        _ => digits(value),
    }
}

/// The next number whose quarters have few digits.
fn round_up(value: f64) -> f64 {
    let unit = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    unit * steps.into_iter().find(|step| unit * step >= value).unwrap_or(10.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
