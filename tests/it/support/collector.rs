//! An OpenTelemetry collector that keeps the spans that it gets.

use crate::support::eventually;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1;
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// The path of the only call of OTLP for traces.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// A span, with the name of the process that told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub service: String,
    pub instance: String,
    pub name: String,
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    /// Empty for the root of a trace.
    pub parent: Vec<u8>,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// The traces that it links to.
    pub links: Vec<Vec<u8>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let taken = Arc::clone(&spans);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&taken)));
            }
        });
        Self { address, spans }
    }

    /// The flags of a process that traces all writes.
    pub fn flags(&self) -> [String; 2] {
        [
            format!("--otlp-endpoint=http://{}", self.address),
            "--otlp-sample=1".to_owned(),
        ]
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().clone()
    }

    /// The spans of the trace of the first span that `is_wanted`, once `is_complete`.
    pub async fn trace(
        &self,
        what: &str,
        is_wanted: impl Fn(&Span) -> bool,
        is_complete: impl Fn(&[Span]) -> bool,
    ) -> Vec<Span> {
        eventually(what, async || {
            let all = self.spans();
            let wanted = all.iter().find(|span| is_wanted(span))?.trace.clone();
            let trace: Vec<_> = all.into_iter().filter(|span| span.trace == wanted).collect();
            is_complete(&trace).then_some(trace)
        })
        .await
    }
}

/// Serves one connection.
async fn serve(stream: TcpStream, spans: Arc<Mutex<Vec<Span>>>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let spans = Arc::clone(&spans);
        tokio::spawn(async move {
            assert_eq!(request.uri().path(), EXPORT);
            let mut body = request.into_body();
            let mut message = vec![];
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                message.extend_from_slice(&data);
            }
            // A byte that says whether the message is compressed, and four of its length.
            assert_eq!(message[0], 0, "the message is compressed");
            let request = ExportTraceServiceRequest::decode(&message[5..]).unwrap();
            spans.lock().extend(read(request));
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut answer = respond.send_response(head.body(()).unwrap(), false).unwrap();
            answer.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            answer.send_trailers(trailers).unwrap();
        });
    }
}

fn read(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = vec![];
    for of_process in request.resource_spans {
        let resource = attributes(of_process.resource.unwrap().attributes);
        let all = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(all.map(|span| of(&resource, span)));
    }
    spans
}

fn of(resource: &BTreeMap<String, String>, span: v1::Span) -> Span {
    Span {
        service: resource["service.name"].clone(),
        instance: resource["service.instance.id"].clone(),
        name: span.name,
        trace: span.trace_id,
        id: span.span_id,
        parent: span.parent_span_id,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        links: span.links.into_iter().map(|link| link.trace_id).collect(),
    }
}

fn attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|kv| (kv.key, text(kv.value))).collect()
}
