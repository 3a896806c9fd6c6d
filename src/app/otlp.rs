//! Sends spans to an OpenTelemetry collector, over OTLP.
//!
//! The ids of traces follow from revisions ([`trace`]), so spans are handed to the exporter of OpenTelemetry's SDK whole, past
//! the parts of the SDK that make ids and choose what is sampled.

use crate::util::lifecycle::Lifecycle;
use crate::util::trace::{self, Place, Sink, Span, Value};
use anyhow::Context;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Spans that may wait to be sent. Further ones are lost, and counted in the log.
const WAITING: usize = 8192;
/// Spans in one request.
const BATCH: usize = 512;
/// The longest wait before a span is sent.
const EVERY: Duration = Duration::from_secs(1);
/// Limit for a request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Limit for the last request, when the process ends.
const LAST: Duration = Duration::from_secs(2);
/// A failure that repeats is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Where spans go, and of whom they are.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// The URL of the collector.
    pub endpoint: String,
    /// The share of all writes that are traced.
    pub share: f64,
    /// The name of the program, unless `OTEL_SERVICE_NAME` says otherwise.
    pub service: String,
    /// The name of this process.
    pub instance: String,
}

/// The queue of spans.
struct Queue {
    sender: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
}

impl Sink for Queue {
    fn take(&self, span: Span) {
        if self.sender.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl OtlpConfig {
    /// Begins tracing, until the lifecycle stops.
    pub fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&self.endpoint);
        let mut exporter = exporter
            .with_timeout(DEADLINE)
            .build()
            .with_context(|| format!("cannot send traces to {}", self.endpoint))?;
        let resource = Resource::builder()
            .with_service_name(self.service)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", self.instance),
            ])
            .build();
        exporter.set_resource(&resource);
        let (sender, spans) = mpsc::channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let queue = Queue {
            sender,
            lost: Arc::clone(&lost),
        };
        trace::start(Box::new(queue), self.share);
        tracing::info!(endpoint = self.endpoint, share = self.share, "tracing writes");
        let sending = Sending {
            exporter,
            endpoint: self.endpoint,
            lost,
            logged: None,
        };
        let stop = life.stop_token().clone();
        life.spawn_part("traces", async move {
            sending.run(spans, stop.cancelled_owned()).await;
        });
        Ok(())
    }
}

struct Sending {
    exporter: SpanExporter,
    endpoint: String,
    lost: Arc<AtomicU64>,
    /// When a failure was logged last.
    logged: Option<Instant>,
}

impl Sending {
    async fn run(mut self, mut spans: mpsc::Receiver<Span>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = spans.recv_many(&mut batch, BATCH) => {}
            }
            // Spans of one write come together.
            let more = async {
                loop {
                    let room = BATCH - batch.len();
                    if room == 0 || spans.recv_many(&mut batch, room).await == 0 {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(EVERY, more).await;
            self.send(&mut batch).await;
        }
        spans.close();
        while spans.recv_many(&mut batch, WAITING).await > 0 {}
        let _ = tokio::time::timeout(LAST, self.send(&mut batch)).await;
    }

    async fn send(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let sent = self.exporter.export(batch.drain(..).map(data).collect()).await;
        if sent.is_err() {
            self.lost.fetch_add(count, Ordering::Relaxed);
        }
        let may_log = self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if may_log && self.lost.load(Ordering::Relaxed) > 0 {
            self.logged = Some(Instant::now());
            let spans = self.lost.swap(0, Ordering::Relaxed);
            let error = sent
                .err()
                .map_or_else(|| "too many at once".to_owned(), |error| error.to_string());
            tracing::warn!(
                endpoint = self.endpoint,
                error,
                spans,
                "spans were lost: the collector did not take them"
            );
        }
    }
}

/// A span as the exporter takes it.
fn data(span: Span) -> SpanData {
    let Span {
        trace,
        name,
        place,
        start,
        end,
        attributes,
        links,
    } = span;
    let context = |trace: trace::Trace, id: u64| {
        let (trace, id) = (TraceId::from(trace.id()), SpanId::from(id));
        SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE)
    };
    let root = trace.root();
    let (id, parent) = match place {
        Place::Root => (root, SpanId::INVALID),
        Place::Child => (rand::random::<u64>() | 1, SpanId::from(root)),
    };
    let value = |(key, value): (&'static str, Value)| match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Number(number) => KeyValue::new(key, number),
    };
    let mut linked = SpanLinks::default();
    linked.links = links
        .into_iter()
        .map(|to| Link::with_context(context(to, to.root())))
        .collect();
    SpanData {
        span_context: context(trace, id),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: start,
        end_time: end.max(start),
        attributes: attributes.into_iter().map(value).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: linked,
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("isthmus").build(),
    }
}
