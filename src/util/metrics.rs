//! Metrics whose values are computed at each scrape, and the metrics of this process.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::fmt;

/// The format of a page of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    OpenMetrics,
}

/// The labels of one series.
pub type Labels = Vec<(&'static str, String)>;

/// The page that a collector writes its metrics to. A family without series is left out; a family whose first series
/// has no labels consists of that series only.
pub struct Page<'a>(pub DescriptorEncoder<'a>);

#[cfg(test)]
thread_local! {
    /// Whether pages of this thread show families without series.
    static DESCRIBES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
fn describes() -> bool {
    DESCRIBES.get()
}

#[cfg(not(test))]
const fn describes() -> bool {
    false
}

/// The name, the type and the help text of all families of `registries`, in order of their names. A [`Family`] that a
/// registry holds without series is left out; one that a collector writes is there.
///
/// [`Family`]: prometheus_client::metrics::family::Family
#[cfg(test)]
pub fn describe<'a>(registries: impl IntoIterator<Item = &'a Registry>) -> Vec<(String, String, String)> {
    DESCRIBES.set(true);
    let page = Format::Text.page(registries);
    DESCRIBES.set(false);
    let page = page.unwrap_or_default();
    let mut families = std::collections::BTreeMap::<&str, (&str, &str)>::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        let (mark, what, name, text) = (words.next(), words.next(), words.next(), words.next());
        let (Some("#"), Some(name), Some(text)) = (mark, name, text) else {
            continue;
        };
        let family = families.entry(name).or_default();
        match what {
            Some("TYPE") => family.0 = text,
            Some("HELP") => family.1 = text,
            _ => {}
        }
    }
    let owned = |(name, (kind, help)): (&str, (&str, &str))| (name.to_owned(), kind.to_owned(), help.to_owned());
    families.into_iter().map(owned).collect()
}

/// The head of a family.
struct Descriptor<'a> {
    name: &'a str,
    help: &'a str,
    kind: MetricType,
}

impl Format {
    /// The format that a request with these values of the header `Accept` is answered in.
    pub fn accepted<'a>(mut values: impl Iterator<Item = &'a str>) -> Self {
        match values.any(|value| value.contains("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The page of everything in `registries`.
    pub fn page<'a>(self, registries: impl IntoIterator<Item = &'a Registry>) -> Result<String, fmt::Error> {
        let mut body = String::new();
        for registry in registries {
            text::encode_registry(&mut body, registry)?;
        }
        match self {
            Self::OpenMetrics => text::encode_eof(&mut body)?,
            Self::Text => body = as_text(&body),
        }
        Ok(body)
    }
}

/// Turns OpenMetrics into the text format 0.0.4, which names a counter's family like its samples, with `_total`, and has
/// no units. A scraper of that format would not know that the samples are counters.
fn as_text(open_metrics: &str) -> String {
    let lines: Vec<_> = open_metrics.lines().collect();
    let counters: HashSet<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut page = String::with_capacity(open_metrics.len());
    for line in lines {
        let mut words = line.splitn(4, ' ');
        let head = (words.next(), words.next(), words.next());
        match head {
            (Some("#"), Some("UNIT"), _) => continue,
            (Some("#"), Some(what), Some(name)) if counters.contains(name) => {
                let rest = words.next().unwrap_or_default();
                page += &format!("# {what} {name}_total {rest}");
            }
            _ => page += line,
        }
        page.push('\n');
    }
    page
}

impl Page<'_> {
    fn family<T>(
        &mut self,
        family: Descriptor<'_>,
        series: Vec<(Labels, T)>,
        metric: impl Fn(T) -> Box<dyn EncodeMetric>,
    ) -> fmt::Result {
        if series.is_empty() && !describes() {
            return Ok(());
        }
        let Descriptor { name, help, kind } = family;
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        let mut series = series.into_iter().peekable();
        if let Some((_, only)) = series.next_if(|(labels, _)| labels.is_empty()) {
            return metric(only).encode(family);
        }
        for (labels, value) in series {
            metric(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub fn gauges(&mut self, name: &str, help: &str, series: Vec<(Labels, f64)>) -> fmt::Result {
        let kind = MetricType::Gauge;
        self.family(Descriptor { name, help, kind }, series, |value| {
            Box::new(ConstGauge::new(value))
        })
    }

    /// Writes counters. The encoder appends `_total` to the name.
    pub fn counters(&mut self, name: &str, help: &str, series: Vec<(Labels, u64)>) -> fmt::Result {
        let kind = MetricType::Counter;
        self.family(Descriptor { name, help, kind }, series, |value| {
            Box::new(ConstCounter::new(value))
        })
    }

    pub fn histograms(&mut self, name: &str, help: &str, series: Vec<(Labels, Histogram)>) -> fmt::Result {
        let kind = MetricType::Histogram;
        self.family(Descriptor { name, help, kind }, series, |value| Box::new(value))
    }
}

/// Collects the version of this program, for joins and for a look at an upgrade.
#[derive(Debug)]
pub struct BuildInfo;

impl Collector for BuildInfo {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("arch", super::arch().to_owned()),
        ];
        let help = "1, with the version of Isthmus and the architecture of the machine in the labels";
        Page(encoder).gauges("isthmus_build_info", help, vec![(labels, 1.0)])
    }
}

/// Collects the metrics of this process, under the names of Prometheus' client libraries.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut page, process) = (Page(encoder), Process::now());
        for (name, help, n) in [
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                process.resident_bytes,
            ),
            ("process_open_fds", "Number of open file descriptors", process.open_fds),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                process.max_fds,
            ),
        ] {
            page.gauges(name, help, vec![(vec![], n as f64)])?;
        }
        let cpu = ConstCounter::new(process.cpu_seconds);
        let encoder = page.0.encode_descriptor(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            None,
            MetricType::Counter,
        )?;
        cpu.encode(encoder)
    }
}

/// Resources used by this process, read from `/proc`; zero if unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub resident_bytes: i64,
    /// User and system time.
    pub cpu_seconds: f64,
    pub open_fds: i64,
    pub max_fds: i64,
}

impl Process {
    /// Reads the current values.
    pub fn now() -> Self {
        const TICKS_PER_SECOND: f64 = 100.0;
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok()).unwrap_or_default();
        let (status, stat, limits) = (read("status"), read("stat"), read("limits"));
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        // The second field, the command in parentheses, may contain spaces, so fields are counted after it.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = number(fields.get(11).copied()) + number(fields.get(12).copied());
        let files = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
        Self {
            resident_bytes: number(resident.and_then(|r| r.split_whitespace().next())) << 10,
            cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
            open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as i64),
            max_fds: number(files.and_then(|f| f.split_whitespace().next())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn a_counter_has_its_type_in_both_formats() {
        let (mut one, mut two) = (Registry::default(), Registry::default());
        let counter: prometheus_client::metrics::counter::Counter = Default::default();
        one.register("lists", "Lists begun, in total", counter);
        two.register("keys", "Keys counter", Gauge::<i64>::default());
        let page = |format: Format| format.page([&one, &two]).unwrap();
        assert_eq!(
            page(Format::Text),
            "# HELP lists_total Lists begun, in total.\n# TYPE lists_total counter\nlists_total 0\n\
             # HELP keys Keys counter.\n# TYPE keys gauge\nkeys 0\n"
        );
        let open = page(Format::OpenMetrics);
        assert!(
            open.contains("# TYPE lists counter\nlists_total 0\n") && open.ends_with("# EOF\n"),
            "{open}"
        );
        assert_eq!(Format::accepted(["text/html"].into_iter()), Format::Text);
        let both = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4";
        assert_eq!(Format::accepted([both].into_iter()), Format::OpenMetrics);
    }
}
