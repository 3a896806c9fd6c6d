//! Renews credentials that the API refuses: the configuration is read again, a credential plugin runs again, and the
//! refused request is sent once more. A plugin may give a token that is refused before it expires, or that states no
//! expiry, and files of certificates are replaced.

use super::{Settings, Stack};
use crate::util::backoff::Backoff;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use kube::client::{Body, DynBody};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tower::{BoxError, Service, ServiceExt};

/// The first and the longest time between two renewals that do not help.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A service with credentials that are renewed. Clones share the credentials.
#[derive(Clone)]
pub(super) struct Renewal(Arc<Shared>);

struct Shared {
    current: Mutex<Arc<Generation>>,
    /// Held during a renewal, so that requests that are refused at the same time cause one.
    pace: tokio::sync::Mutex<Pace>,
    settings: Settings,
}

/// The layers with the credentials of one renewal.
struct Generation {
    stack: Stack,
    /// Whether the API has accepted the credentials.
    is_accepted: AtomicBool,
}

/// When the next renewal may begin.
struct Pace {
    backoff: Backoff,
    not_before: Instant,
}

// === impl Renewal ===

impl Renewal {
    pub(super) fn new(stack: Stack, settings: Settings) -> Self {
        Self(Arc::new(Shared {
            current: Mutex::new(Generation::new(stack)),
            pace: tokio::sync::Mutex::new(Pace {
                backoff: Backoff::new(WAITS.0, WAITS.1),
                not_before: Instant::now(),
            }),
            settings,
        }))
    }
}

impl Service<Request<Body>> for Renewal {
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let again = copy(&request);
            let generation = Arc::clone(&shared.current.lock());
            let answer = generation.send(request).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            match (shared.renewed(&generation).await, again) {
                (Some(renewed), Some(again)) => renewed.send(again).await,
                _ => Ok(answer),
            }
        })
    }
}

impl Shared {
    /// Credentials newer than `refused`; `None` if the last renewal is too recent or failed.
    async fn renewed(&self, refused: &Arc<Generation>) -> Option<Arc<Generation>> {
        let mut pace = self.pace.lock().await;
        let current = Arc::clone(&self.current.lock());
        if !Arc::ptr_eq(&current, refused) {
            return Some(current);
        }
        if refused.is_accepted.load(Ordering::Relaxed) {
            pace.backoff.reset();
        } else if Instant::now() < pace.not_before {
            return None;
        }
        let renewed = self.settings.stack().await;
        pace.not_before = Instant::now() + pace.backoff.next_wait();
        match renewed {
            Ok((stack, _)) => {
                tracing::info!("the Kubernetes API refused the credentials; they were read again");
                let renewed = Generation::new(stack);
                *self.current.lock() = Arc::clone(&renewed);
                Some(renewed)
            }
            Err(error) => {
                tracing::warn!(%error, "the Kubernetes API refuses the credentials, and they cannot be read again");
                None
            }
        }
    }
}

impl Generation {
    fn new(stack: Stack) -> Arc<Self> {
        Arc::new(Self {
            stack,
            is_accepted: AtomicBool::new(false),
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Box<DynBody>>, BoxError> {
        let answer = self.stack.clone().oneshot(request).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            self.is_accepted.store(true, Ordering::Relaxed);
        }
        Ok(answer)
    }
}

/// A copy of a request, unless its body is a stream.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}
