//! Bodies that are made here in place of tonic's, which encodes each message as a whole and copies what others could share.

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use parking_lot::Mutex;
use std::sync::Arc;
use tonic::Status;

/// The body of a response, attached as an extension. The service answers with an empty body, which is replaced.
#[derive(Clone)]
pub(super) struct OwnBody(Arc<Mutex<Option<Body>>>);

impl OwnBody {
    /// A body with gRPC messages and trailers.
    ///
    /// Between frames of one message, the lower bound of its size hint is above 0: the body of an answer that has no end
    /// is cut off at the end of a message.
    pub(super) fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        Self(Arc::new(Mutex::new(Some(Body::new(body)))))
    }

    /// Gives a response the body that was attached to it, if any.
    pub(super) fn take(mut response: Response) -> Response {
        let attached = response.extensions_mut().remove::<Self>();
        match attached.and_then(|attached| attached.0.lock().take()) {
            Some(body) => response.map(|_| body),
            None => response,
        }
    }
}

/// The trailers of a call that ends with `status`.
pub(super) fn trailers(status: Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Details that no header can have.
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}
