//! Figures that are looked up when somebody asks for them.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use std::fmt;

/// Labels of one series.
pub type Labels = Vec<(&'static str, String)>;

/// Where a collector writes its figures. A family without series is left out; one without labels has one series.
pub struct Page<'a>(pub DescriptorEncoder<'a>);

impl Page<'_> {
    fn family<T>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        series: Vec<(Labels, T)>,
        metric: impl Fn(T) -> Box<dyn EncodeMetric>,
    ) -> fmt::Result {
        if series.is_empty() {
            return Ok(());
        }
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

    /// Writes gauges.
    pub fn gauges(&mut self, name: &str, help: &str, series: Vec<(Labels, f64)>) -> fmt::Result {
        let kind = (name, help, MetricType::Gauge);
        self.family(kind, series, |value| Box::new(ConstGauge::new(value)))
    }

    /// Writes counters; `_total` is added to the name.
    pub fn counters(&mut self, name: &str, help: &str, series: Vec<(Labels, u64)>) -> fmt::Result {
        let kind = (name, help, MetricType::Counter);
        self.family(kind, series, |value| Box::new(ConstCounter::new(value)))
    }

    /// Writes histograms.
    pub fn histograms(&mut self, name: &str, help: &str, series: Vec<(Labels, Histogram)>) -> fmt::Result {
        let kind = (name, help, MetricType::Histogram);
        self.family(kind, series, |value| Box::new(value))
    }
}

/// Shows the figures of this process, as Prometheus' client libraries name them.
#[derive(Debug)]
pub struct OfProcess;

impl Collector for OfProcess {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut page, process) = (Page(encoder), Process::now());
        for (name, help, n) in [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                process.resident_bytes,
            ),
            ("process_open_fds", "Files open", process.open_fds),
            ("process_max_fds", "Files that may be open", process.max_fds),
        ] {
            page.gauges(name, help, vec![(vec![], n as f64)])?;
        }
        let cpu = ConstCounter::new(process.cpu_seconds);
        let encoder = page
            .0
            .encode_descriptor("process_cpu_seconds", "CPU time", None, MetricType::Counter)?;
        cpu.encode(encoder)
    }
}

/// What the kernel says of this process; zeros where it says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Resident memory.
    pub resident_bytes: i64,
    /// CPU time used.
    pub cpu_seconds: f64,
    /// Files open.
    pub open_fds: i64,
    /// Files that may be open.
    pub max_fds: i64,
}

impl Process {
    /// Looks now.
    pub fn now() -> Self {
        const TICKS_PER_SECOND: f64 = 100.0;
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok()).unwrap_or_default();
        let (status, stat, limits) = (read("status"), read("stat"), read("limits"));
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        // The command, in parentheses, may hold spaces: count from its end.
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
