//! Counts gRPC calls, their messages and their bytes. Replaces errors of the transport by grpc-go's texts.

use super::frames::Frames;
use super::metrics::{Method, Metrics, ReadOnlyTxn, TxnKind};
use super::own_body::OwnBody;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::metrics::counter::Counter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// A body whose messages and bytes are counted.
struct Counted {
    inner: Body,
    frames: Frames,
    bytes: Counter,
    direction: Direction,
}

/// The direction of a body, with the metrics that the body counts in.
enum Direction {
    Request(Arc<Method>),
    Response(Call),
}

/// A call, which ends when its answer ends or when the client disconnects.
struct Call {
    method: Arc<Method>,
    started: Instant,
    code: Option<Code>,
    kind: TxnKind,
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.method
            .handled(code, self.started.elapsed().as_secs_f64(), self.kind);
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(data) = frame.data_ref() {
                let mut messages = 0;
                this.frames.read(data, |_| messages += 1);
                this.bytes.inc_by(data.len() as u64);
                match &this.direction {
                    Direction::Request(method) => method.received(messages),
                    Direction::Response(call) => call.method.sent(messages),
                }
            } else if let (Some(trailers), Direction::Response(call)) = (frame.trailers_mut(), &mut this.direction) {
                call.code = code_of(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// The code in headers or trailers. The error for a message over the limit gets the code and the text of grpc-go.
fn code_of(headers: &mut HeaderMap) -> Option<Code> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    let status = tonic::Status::from_header_map(headers)?;
    let Some(rest) = status
        .message()
        .strip_prefix("Error, decoded message length too large: found ")
    else {
        return Some(code);
    };
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    let (found, limit) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    headers.insert("grpc-status", HeaderValue::from_static("8"));
    if let Ok(text) = HeaderValue::try_from(text.replace(' ', "%20")) {
        headers.insert("grpc-message", text);
    }
    Some(Code::ResourceExhausted)
}

/// The time that the client gives the call (gRPC over HTTP2: `Timeout` is up to eight digits and a unit).
pub(super) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The middleware of the gRPC services.
pub(super) async fn observe(metrics: &Metrics, request: Request, next: Next) -> Response {
    let Some(method) = metrics.method(request.uri().path()) else {
        return next.run(request).await;
    };
    method.started();
    let version = request.headers().get("client-api-version");
    metrics.request(&method, version.and_then(|v| v.to_str().ok()));
    let mut call = Call {
        method: Arc::clone(&method),
        started: Instant::now(),
        code: None,
        kind: TxnKind::Other,
    };
    let received = metrics.received_bytes.clone();
    let request = request.map(|inner| {
        Body::new(Counted {
            inner,
            frames: Frames::default(),
            bytes: received,
            direction: Direction::Request(method),
        })
    });
    let response = match deadline(request.headers()) {
        None => next.run(request).await,
        Some(time) => match tokio::time::timeout(time, next.run(request)).await {
            Ok(response) => response,
            // The client has given up. Its work ends here.
            Err(_) => tonic::Status::deadline_exceeded("context deadline exceeded").into_http(),
        },
    };
    let mut response = OwnBody::take(response);
    // An answer without a body has its status in the headers.
    call.code = code_of(response.headers_mut());
    if response.extensions().get::<ReadOnlyTxn>().is_some() {
        call.kind = TxnKind::ReadOnly;
    }
    let sent = metrics.sent_bytes.clone();
    response.map(|inner| {
        Body::new(Counted {
            inner,
            frames: Frames::default(),
            bytes: sent,
            direction: Direction::Response(call),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_a_unit() {
        let of = |text: &'static str| {
            deadline(&HeaderMap::from_iter([(
                "grpc-timeout".parse().unwrap(),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("20m"), Some(Duration::from_millis(20)));
        assert_eq!([of("5"), of("S"), of("123456789S"), of("5x"), of("")], [None; 5]);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_with_the_text_of_grpc_go() {
        let mut headers = HeaderMap::new();
        let text = "Error, decoded message length too large: found 2100000 bytes, the limit is: 2097152 bytes";
        headers.insert("grpc-status", HeaderValue::from_static("11"));
        headers.insert("grpc-message", HeaderValue::try_from(text).unwrap());
        assert_eq!(code_of(&mut headers), Some(Code::ResourceExhausted));
        let status = tonic::Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "grpc: received message larger than max (2100000 vs. 2097152)"
        );
    }
}
