//! Line plots as inline SVG.

use std::fmt::Write as _;

/// Size of a plot, in pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 240.0;
/// Space for labels at the left, the right, the top and the bottom.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;
/// The most points of a line. Longer series are thinned, and every maximum stays.
const POINTS_MAX: usize = 600;
/// The most powers of ten of a logarithmic axis.
const DECADES_MAX: f64 = 6.0;
/// Colours of lines, as classes of the page's style.
const COLOURS: usize = 4;
/// Rows of labels of marks, so that neighbours do not overlap, and the height of one.
const MARK_ROWS: usize = 4;
const MARK_ROW: f64 = 12.0;
/// The most marks of a plot.
const MARKS_MAX: usize = 40;

/// How values are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

/// A plot of lines over a common x.
pub struct Plot<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    pub x_title: &'a str,
    pub scale: Scale,
    /// Intervals between labels of the x axis.
    pub x_steps: u32,
    /// The label of an x.
    pub x_label: &'a dyn Fn(f64) -> String,
    pub lines: Vec<Line<'a>>,
    /// What happened at some x.
    pub marks: &'a [(f64, String)],
}

/// A line with its name.
pub struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Places points in the picture.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    scale: Scale,
}

impl Axes {
    /// Axes that contain all points; `None` if there is nothing to draw.
    fn of(plot: &Plot<'_>) -> Option<Self> {
        let points = || plot.lines.iter().flat_map(|line| &line.points);
        let ys = || points().map(|(_, y)| *y).filter(|y| plot.scale.has(*y));
        ys().next()?;
        let (least, most) = bounds(ys());
        let y = match plot.scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Logarithmic => {
                let top = (most * 1.001).log10().ceil();
                (
                    10f64.powf(least.log10().floor().max(top - DECADES_MAX)),
                    10f64.powf(top),
                )
            }
        };
        Some(Self {
            x: bounds(points().map(|(x, _)| *x)),
            y,
            scale: plot.scale,
        })
    }

    fn x_at(&self, x: f64) -> f64 {
        let (from, to) = self.x;
        LEFT + (x - from) / (to - from).max(f64::EPSILON) * (WIDTH - LEFT - RIGHT)
    }

    fn y_at(&self, y: f64) -> f64 {
        let (from, to) = self.y;
        let share = match self.scale {
            Scale::Linear => (y - from) / (to - from),
            Scale::Logarithmic => (y / from).log10() / (to / from).log10().max(f64::EPSILON),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    /// The parts of a line between points that cannot be drawn.
    fn paths(&self, points: &[(f64, f64)]) -> Vec<String> {
        let points = thinned(points);
        let parts = points
            .split(|(_, y)| !self.scale.has(*y))
            .filter(|part| !part.is_empty());
        let at = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", self.x_at(*x), self.y_at(*y));
        let path = |part: &[(f64, f64)]| {
            // A single point is drawn as a line of no length, which has round ends.
            let ends = part.iter().chain(part.first().filter(|_| part.len() == 1));
            ends.map(at).collect::<Vec<_>>().join(" ")
        };
        parts.map(path).collect()
    }
}

impl Scale {
    /// Whether a value has a place.
    fn has(self, y: f64) -> bool {
        y.is_finite() && (self == Self::Linear || y > 0.0)
    }
}

impl Plot<'_> {
    /// Draws the plot; an empty text without points.
    pub fn svg(&self) -> String {
        let Some(axes) = Axes::of(self) else {
            return String::new();
        };
        let title = escaped(self.title);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><text x=\"{LEFT}\" y=\"15\" \
             class=\"t\">{title}, {}</text>",
            escaped(self.unit)
        );
        self.draw_axes(&axes, &mut out);
        self.draw_marks(&axes, &mut out);
        self.draw_lines(&axes, &mut out);
        format!("<div class=\"plot\">{out}</svg></div>\n")
    }

    fn draw_marks(&self, axes: &Axes, out: &mut String) {
        let within = |x: f64| (axes.x.0..=axes.x.1).contains(&x);
        let marks = self.marks.iter().filter(|(x, _)| within(*x)).take(MARKS_MAX);
        for (row, (x, text)) in marks.enumerate() {
            let at = axes.x_at(*x);
            // The label is on the side with more space.
            let (side, anchor) = if at > WIDTH * 0.7 {
                (-4.0, "end")
            } else {
                (4.0, "start")
            };
            let _ = write!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\" class=\"m\"/><text x=\"{:.1}\" y=\"{}\" \
                 text-anchor=\"{anchor}\" class=\"m\">{}</text>",
                HEIGHT - BOTTOM,
                at + side,
                TOP + 10.0 + MARK_ROW * (row % MARK_ROWS) as f64,
                escaped(text)
            );
        }
    }

    fn draw_axes(&self, axes: &Axes, out: &mut String) {
        for y in ticks(axes.y.0, axes.y.1, self.scale) {
            let at = axes.y_at(y);
            let _ = write!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"g\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                number(y)
            );
        }
        let steps = self.x_steps.max(1);
        for step in 0..=steps {
            let x = axes.x.0 + (axes.x.1 - axes.x.0) * f64::from(step) / f64::from(steps);
            let anchor = match step {
                0 => "start",
                step if step == steps => "end",
                _ => "middle",
            };
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                axes.x_at(x),
                HEIGHT - 15.0,
                escaped(&(self.x_label)(x))
            );
        }
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 2.0,
            escaped(self.x_title)
        );
    }

    fn draw_lines(&self, axes: &Axes, out: &mut String) {
        let mut legend = WIDTH - RIGHT;
        for (at, line) in self.lines.iter().enumerate().rev() {
            let colour = at % COLOURS;
            for path in axes.paths(&line.points) {
                let _ = write!(out, "<polyline points=\"{path}\" class=\"c{colour}\"/>");
            }
            let _ = write!(
                out,
                "<text x=\"{legend:.0}\" y=\"15\" text-anchor=\"end\" class=\"l{colour}\">{}</text>",
                escaped(line.name)
            );
            legend -= 7.0 * (line.name.chars().count() as f64) + 16.0;
        }
    }
}

/// Text for HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| {
        (least.min(v), most.max(v))
    })
}

/// At most [`POINTS_MAX`] points: of neighbours, the highest.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(POINTS_MAX).max(1);
    let highest = |group: &[(f64, f64)]| group.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a });
    points.chunks(group).filter_map(highest).collect()
}

/// Round numbers between two values.
fn ticks(from: f64, to: f64, scale: Scale) -> Vec<f64> {
    if scale == Scale::Logarithmic {
        let decades = (from.log10().round() as i32)..=(to.log10().round() as i32);
        return decades.map(|decade| 10f64.powi(decade)).collect();
    }
    let rough = (to - from) / 4.0;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|n| n * decade)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let count = ((to - from) / step).floor() as u32;
    (0..=count).map(|n| from + step * f64::from(n)).collect()
}

/// A number with few digits.
fn number(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e4 => format!("{}k", n / 1e3),
        n => format!("{}", (n * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_lines_its_scale_and_escaped_names() {
        let plot = Plot {
            title: "a < b",
            unit: "ms",
            x_title: "s",
            scale: Scale::Logarithmic,
            x_steps: 4,
            x_label: &|x| format!("{x:.0}"),
            lines: vec![
                Line {
                    name: "p50",
                    points: vec![(0.0, 0.5), (10.0, 20.0), (15.0, 0.0), (20.0, 1.0)],
                },
                Line {
                    name: "p99",
                    points: vec![(0.0, 3.0), (10.0, 400.0)],
                },
            ],
            marks: &[(5.0, "storm <1>".to_owned()), (99.0, "outside".to_owned())],
        };
        let svg = plot.svg();
        assert!(svg.starts_with("<div class=\"plot\"><svg") && svg.trim_end().ends_with("</svg></div>"));
        assert!(svg.contains("storm &lt;1&gt;") && !svg.contains("outside"), "{svg}");
        // The zero has no place on a logarithmic scale, and makes a gap.
        assert_eq!(svg.matches("<polyline").count(), 3);
        assert!(svg.contains("points=\"848.0,"), "{svg}");
        for part in ["a &lt; b, ms", ">0.1<", ">1000<", ">p99<", ">20<"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        let empty = Plot { lines: vec![], ..plot };
        assert_eq!(empty.svg(), "");
    }

    #[test]
    fn long_series_keep_their_peaks() {
        let mut points: Vec<_> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        points[7777].1 = 99.0;
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS_MAX && thin.contains(&(7777.0, 99.0)));
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(ticks(0.0, 105.0, Scale::Linear), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(0.1, 100.0, Scale::Logarithmic), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!([0.001, 5.0, 20_000.0, 3e6].map(number), ["0.001", "5", "20k", "3M"]);
    }
}
