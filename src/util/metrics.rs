//! Metrics whose values are computed at each scrape, and the metrics of this process.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use std::fmt;

/// The labels of one series.
pub type Labels = Vec<(&'static str, String)>;

/// The page that a collector writes its metrics to. A family without series is left out; a family whose first series
/// has no labels consists of that series only.
pub struct Page<'a>(pub DescriptorEncoder<'a>);

/// The head of a family.
struct Descriptor<'a> {
    name: &'a str,
    help: &'a str,
    kind: MetricType,
}

impl Page<'_> {
    fn family<T>(
        &mut self,
        family: Descriptor<'_>,
        series: Vec<(Labels, T)>,
        metric: impl Fn(T) -> Box<dyn EncodeMetric>,
    ) -> fmt::Result {
        if series.is_empty() {
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
