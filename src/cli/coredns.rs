//! `mcsapi-coredns-cfg`: sets CoreDNS up for the MCS API, once.

use super::flags::{Ignored, boolean};
use crate::coredns::Domains;
use crate::coredns::apply::{Done, Names, apply};
use crate::k8s::api::ApiConfig;
use anyhow::ensure;
use clap::{ArgAction, Args};

/// Flags of the original's Kubernetes client that mean nothing for a handful of requests.
pub const IGNORED: &[Ignored] = &[
    ("enable-k8s-api-discovery", false),
    ("k8s-client-burst", true),
    ("k8s-client-connection-keep-alive", true),
    ("k8s-client-connection-timeout", true),
    ("k8s-client-qps", true),
    ("k8s-heartbeat-timeout", true),
];

/// Flags of `mcsapi-coredns-cfg`.
#[derive(Args, Debug)]
pub struct CorednsArgs {
    /// Deployment name of CoreDNS
    #[arg(
        long,
        env = "CILIUM_COREDNS_DEPLOYMENT_NAME",
        default_value = "coredns",
        value_name = "NAME"
    )]
    coredns_deployment_name: String,
    /// ConfigMap name of CoreDNS
    #[arg(
        long,
        env = "CILIUM_COREDNS_CONFIGMAP_NAME",
        default_value = "coredns",
        value_name = "NAME"
    )]
    coredns_configmap_name: String,
    /// Namespace of CoreDNS
    #[arg(
        long,
        env = "CILIUM_COREDNS_NAMESPACE",
        default_value = "kube-system",
        value_name = "NAMESPACE"
    )]
    coredns_namespace: String,
    /// Cluster domain of CoreDNS
    #[arg(
        long,
        env = "CILIUM_COREDNS_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    coredns_cluster_domain: String,
    /// Clusterset domain of CoreDNS
    #[arg(
        long,
        env = "CILIUM_COREDNS_CLUSTERSET_DOMAIN",
        default_value = "clusterset.local",
        value_name = "DOMAIN"
    )]
    coredns_clusterset_domain: String,
    #[command(flatten)]
    k8s: K8sArgs,
}

/// Where the Kubernetes API is.
#[derive(Args, Debug)]
struct K8sArgs {
    /// Talk to Kubernetes at all
    #[arg(long, env = "CILIUM_ENABLE_K8S", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    enable_k8s: bool,
    /// kubeconfig file
    #[arg(long, env = "CILIUM_K8S_KUBECONFIG_PATH", default_value = "", value_name = "FILE")]
    k8s_kubeconfig_path: String,
    /// URLs of the Kubernetes API server
    #[arg(long, env = "CILIUM_K8S_API_SERVER_URLS", value_delimiter = ',', value_name = "URL")]
    k8s_api_server_urls: Vec<String>,
}

impl K8sArgs {
    fn config(self) -> anyhow::Result<ApiConfig> {
        ensure!(
            self.enable_k8s,
            "the Kubernetes client is not enabled, so CoreDNS cannot be configured"
        );
        Ok(ApiConfig {
            kubeconfig: (!self.k8s_kubeconfig_path.is_empty()).then(|| self.k8s_kubeconfig_path.into()),
            urls: self.k8s_api_server_urls,
            ..ApiConfig::default()
        })
    }
}

impl CorednsArgs {
    /// Sets CoreDNS up, or finds that somebody has.
    pub fn run(self) -> anyhow::Result<()> {
        let api = self.k8s.config()?;
        let names = Names {
            namespace: self.coredns_namespace,
            config_map: self.coredns_configmap_name,
            deployment: self.coredns_deployment_name,
        };
        let domains = Domains {
            cluster: self.coredns_cluster_domain,
            clusterset: self.coredns_clusterset_domain,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(async { anyhow::Ok(apply(api.client(0).await?, &names, &domains).await?) });
        match done? {
            Done::Nothing => tracing::info!("CoreDNS seems to know the clusterset already: nothing was changed"),
            Done::Changed => tracing::info!("CoreDNS restarts with the changed Corefile"),
        }
        Ok(())
    }
}
