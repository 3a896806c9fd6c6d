//! `mcsapi-coredns-cfg`: configures CoreDNS for the Multi-Cluster Services API, once.

use super::flags::{ApiArgs, boolean};
use super::ignored::IgnoredFlags;
use crate::coredns::Domains;
use crate::coredns::apply::{Done, Names, apply};
use crate::k8s::api::ApiConfig;
use anyhow::ensure;
use clap::{ArgAction, Args};

/// Flags of the original's Kubernetes client that have no meaning for a handful of requests.
pub const IGNORED: IgnoredFlags = IgnoredFlags {
    boolean: &["enable-k8s-api-discovery"],
    with_value: &[
        "k8s-client-burst",
        "k8s-client-connection-keep-alive",
        "k8s-client-connection-timeout",
        "k8s-client-qps",
        "k8s-heartbeat-timeout",
    ],
};

/// Flags of `mcsapi-coredns-cfg`.
#[derive(Args, Debug)]
pub struct CorednsArgs {
    /// Name of the Deployment of CoreDNS, which is restarted after a change.
    #[arg(
        long,
        env = "CILIUM_COREDNS_DEPLOYMENT_NAME",
        default_value = "coredns",
        value_name = "NAME"
    )]
    coredns_deployment_name: String,
    /// Name of the ConfigMap with CoreDNS's Corefile.
    #[arg(
        long,
        env = "CILIUM_COREDNS_CONFIGMAP_NAME",
        default_value = "coredns",
        value_name = "NAME"
    )]
    coredns_configmap_name: String,
    /// Namespace of CoreDNS's Deployment and ConfigMap.
    #[arg(
        long,
        env = "CILIUM_COREDNS_NAMESPACE",
        default_value = "kube-system",
        value_name = "NAMESPACE"
    )]
    coredns_namespace: String,
    /// DNS domain of the cluster.
    #[arg(
        long,
        env = "CILIUM_COREDNS_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    coredns_cluster_domain: String,
    /// DNS domain of services that are exported to the mesh.
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

const URLS_HELP: &str = "URLs of the Kubernetes API servers, the first of which is used; https is assumed";

/// The address of the Kubernetes API.
#[derive(Args, Debug)]
#[command(mut_arg("k8s_api_server_urls", |arg| arg.help(URLS_HELP)))]
struct K8sArgs {
    /// Connect to the Kubernetes API. Must be true.
    #[arg(long, env = "CILIUM_ENABLE_K8S", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    enable_k8s: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl K8sArgs {
    fn config(self) -> anyhow::Result<ApiConfig> {
        ensure!(
            self.enable_k8s,
            "cannot configure CoreDNS with --enable-k8s=false: the Corefile is in a ConfigMap of the Kubernetes API"
        );
        Ok(self.api.config())
    }
}

impl CorednsArgs {
    /// Changes the Corefile and restarts CoreDNS, unless the Corefile mentions the clusterset domain already.
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
            Done::Nothing => tracing::info!("the Corefile already mentions the clusterset domain; nothing was changed"),
            Done::Changed => tracing::info!("CoreDNS restarts with the changed Corefile"),
        }
        Ok(())
    }
}
