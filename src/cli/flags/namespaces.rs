//! Where a mirror finds the namespaces of its cluster.

use super::duration;
use crate::app::ObjectSource;
use crate::k8s::api::ApiConfig;
use crate::k8s::client::ProxyVariables;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The source of namespaces, for the rules of a scope file that ask whether a namespace exists.
#[derive(Args, Debug)]
#[command(next_help_heading = "Scope")]
pub struct NamespaceArgs {
    /// Directory of Kubernetes manifests whose Namespaces count as those of this cluster, instead of a Kubernetes API. Used
    /// only by a scope file with the condition `existing`.
    #[arg(long, env = "CILIUM_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Kubeconfig file with the address and credentials of the Kubernetes API. Overrides --k8s-api-server-urls; without
    /// both, the service account of the pod is used, which must be allowed to list and watch namespaces. Used only by a
    /// scope file with the condition `existing`.
    #[arg(long, env = "CILIUM_K8S_KUBECONFIG_PATH", default_value = "", value_name = "FILE")]
    k8s_kubeconfig_path: String,
    /// URLs of the Kubernetes API servers, one of which is used at a time; https is assumed. Used only by a scope file with
    /// the condition `existing`.
    #[arg(
        long,
        env = "CILIUM_K8S_API_SERVER_URLS",
        value_delimiter = ',',
        value_name = "URL,..."
    )]
    k8s_api_server_urls: Vec<String>,
    /// Timeout for connecting to the Kubernetes API; 0 for the client library's own.
    #[arg(long, env = "CILIUM_K8S_CLIENT_CONNECTION_TIMEOUT", default_value = "30s", value_parser = duration,
          value_name = "DURATION")]
    k8s_client_connection_timeout: Duration,
    /// Interval and timeout of the health probe of the Kubernetes API; 0 disables the probe.
    #[arg(long, env = "CILIUM_K8S_HEARTBEAT_TIMEOUT", default_value = "30s", value_parser = duration,
          value_name = "DURATION")]
    k8s_heartbeat_timeout: Duration,
}

impl NamespaceArgs {
    pub fn source(self) -> ObjectSource {
        if let Some(directory) = self.manifests {
            return ObjectSource::Manifests(directory);
        }
        ObjectSource::Api(ApiConfig {
            kubeconfig: (!self.k8s_kubeconfig_path.is_empty()).then(|| self.k8s_kubeconfig_path.into()),
            urls: self.k8s_api_server_urls,
            proxies: ProxyVariables::read(|name| std::env::var(name).ok()),
            connect_timeout: self.k8s_client_connection_timeout,
            heartbeat: self.k8s_heartbeat_timeout,
            ..ApiConfig::default()
        })
    }
}
