//! The ports on which a process reports about itself: readiness, metrics, and the mirror's status.

use crate::support::files::free_port;
use crate::support::{eventually, http};
use ::http::StatusCode;
use serde_json::Value;

/// The addresses at which a process reports. The process may not be listening yet, or no longer.
pub struct Admin {
    health: u16,
    metrics: u16,
    api: u16,
}

impl Admin {
    pub fn new() -> Self {
        Self {
            health: free_port(),
            metrics: free_port(),
            api: free_port(),
        }
    }

    pub fn health_flag(&self) -> String {
        format!("--health-port={}", self.health)
    }

    pub fn metrics_flag(&self) -> String {
        format!("--prometheus-serve-addr=127.0.0.1:{}", self.metrics)
    }

    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.metrics)
    }

    pub fn api_flag(&self) -> String {
        format!("--api-serve-addr={}", self.api_address())
    }

    /// The address of the mirror's status.
    pub fn api_address(&self) -> String {
        format!("127.0.0.1:{}", self.api)
    }

    /// The status code and the body of `/readyz`, with a query or without.
    pub async fn readyz(&self, query: &str) -> Option<http::Response> {
        http::get(&format!("http://127.0.0.1:{}/readyz{query}", self.health))
            .await
            .ok()
    }

    /// Whether the process says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let answer = self.readyz("").await;
        answer.is_some_and(|answer| answer.status == StatusCode::OK && answer.body == "Ready")
    }

    pub async fn ready(&self) {
        eventually("the process is ready", async || self.is_ready().await.then_some(())).await;
    }

    /// The status of each remote cluster.
    pub async fn clusters(&self) -> Vec<Value> {
        let answer = http::get(&format!("http://{}/v1/cluster", self.api_address())).await;
        answer
            .ok()
            .and_then(|answer| serde_json::from_str(&answer.body).ok())
            .unwrap_or_default()
    }

    /// The value of a series, by its name with labels.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let answer = http::get(&self.metrics_url()).await;
        let page = answer.ok()?.body;
        let mut lines = page.lines().filter_map(|line| line.rsplit_once(' '));
        lines.find(|(name, _)| *name == series)?.1.parse().ok()
    }
}
