//! Where the Kubernetes API is, and how long to wait for it.

use super::duration;
use crate::k8s::api::ApiConfig;
use crate::k8s::client::ProxyVariables;
use clap::Args;
use std::time::Duration;

/// The address of the Kubernetes API. A subcommand that uses it for less says so with `mut_arg`.
#[derive(Args, Debug)]
pub struct ApiArgs {
    /// Kubeconfig file with the address and credentials of the Kubernetes API. Overrides --k8s-api-server-urls;
    /// without both, the service account of the pod is used.
    #[arg(long, env = "CILIUM_K8S_KUBECONFIG_PATH", default_value = "", value_name = "FILE")]
    k8s_kubeconfig_path: String,
    /// URLs of the Kubernetes API servers, one of which is used at a time; https is assumed.
    #[arg(
        long,
        env = "CILIUM_K8S_API_SERVER_URLS",
        value_delimiter = ',',
        value_name = "URL,..."
    )]
    k8s_api_server_urls: Vec<String>,
}

/// The patience with the Kubernetes API.
#[derive(Args, Debug)]
pub struct ApiTimeoutArgs {
    /// Timeout for connecting to the Kubernetes API; 0 for the client library's own.
    #[arg(long, env = "CILIUM_K8S_CLIENT_CONNECTION_TIMEOUT", default_value = "30s", value_parser = duration,
          value_name = "DURATION")]
    k8s_client_connection_timeout: Duration,
    /// Interval and timeout of the health probe of the Kubernetes API; 0 disables the probe.
    #[arg(long, env = "CILIUM_K8S_HEARTBEAT_TIMEOUT", default_value = "30s", value_parser = duration,
          value_name = "DURATION")]
    k8s_heartbeat_timeout: Duration,
}

impl ApiArgs {
    /// Whether an address is named. Without one, the service account of the pod is used.
    pub fn names_one(&self) -> bool {
        !self.k8s_kubeconfig_path.is_empty() || !self.k8s_api_server_urls.is_empty()
    }

    /// The Kubernetes API at this address, with the proxies of the environment and the default timeouts.
    pub fn config(&self) -> ApiConfig {
        let urls = self.k8s_api_server_urls.iter().flat_map(|urls| urls.split_whitespace());
        ApiConfig {
            kubeconfig: (!self.k8s_kubeconfig_path.is_empty()).then(|| (&*self.k8s_kubeconfig_path).into()),
            urls: urls.map(str::to_owned).collect(),
            proxies: ProxyVariables::read(|name| std::env::var(name).ok()),
            ..ApiConfig::default()
        }
    }
}

impl ApiTimeoutArgs {
    /// Sets the timeouts of `config`.
    pub fn apply(&self, config: ApiConfig) -> ApiConfig {
        ApiConfig {
            connect_timeout: self.k8s_client_connection_timeout,
            heartbeat: self.k8s_heartbeat_timeout,
            ..config
        }
    }
}
