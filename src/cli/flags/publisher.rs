//! Flags of the publisher.

use super::kubernetes::{ApiArgs, ApiTimeoutArgs};
use super::{boolean, duration};
use crate::app::ObjectSource;
use crate::clustermesh::publisher::{Options, ServiceMode};
use crate::k8s::api::ApiConfig;
use crate::model::cluster::ClusterInfo;
use crate::scope::Watcher;
use anyhow::bail;
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::time::Duration;

/// The source of objects, and what is published of them.
#[derive(Args, Debug)]
#[command(next_help_heading = "Publisher")]
pub struct PublisherArgs {
    /// Directory of Kubernetes manifests (.yaml, .yml, .json) to publish instead of the objects of a Kubernetes API.
    /// Changes of its files are followed. The kinds that are published: Namespace, Service, EndpointSlice, CiliumNode,
    /// CiliumIdentity, CiliumEndpoint, CiliumEndpointSlice, ServiceExport.
    #[arg(long, env = "CILIUM_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    /// URL of the Kubernetes API server; http is assumed. Deprecated in favour of --k8s-api-server-urls.
    #[arg(
        long,
        env = "CILIUM_K8S_API_SERVER",
        default_value = "",
        hide = true,
        value_name = "URL"
    )]
    k8s_api_server: String,
    /// Connect to a Kubernetes API. Without it, --manifests is required.
    #[arg(long, env = "CILIUM_ENABLE_K8S", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub enable_k8s: bool,
    #[command(flatten)]
    timeouts: ApiTimeoutArgs,
    /// Time to wait at start for Cilium's CustomResourceDefinitions. The process exits if they are still missing.
    #[arg(long, env = "CILIUM_CRD_WAIT_TIMEOUT", default_value = "5m0s", value_parser = duration,
          value_name = "DURATION")]
    crd_wait_timeout: Duration,
    /// Publish only services whose label service.kubernetes.io/service-proxy-name has this value. Empty: only
    /// services without the label.
    #[arg(long, env = "CILIUM_K8S_SERVICE_PROXY_NAME", default_value = "", value_name = "NAME")]
    k8s_service_proxy_name: String,
    /// Read pod addresses from CiliumEndpointSlices instead of CiliumEndpoints. Use the same value as in Cilium's agents.
    #[arg(long, env = "CILIUM_ENABLE_CILIUM_ENDPOINT_SLICE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    enable_cilium_endpoint_slice: bool,
    /// Publish the ServiceExports of the Multi-Cluster Services API.
    #[arg(long, env = "CILIUM_CLUSTERMESH_ENABLE_MCS_API", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    clustermesh_enable_mcs_api: bool,
    /// Treat namespaces without the annotation clustermesh.cilium.io/global as global. Only objects of global
    /// namespaces are published.
    #[arg(long, env = "CILIUM_CLUSTERMESH_DEFAULT_GLOBAL_NAMESPACE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    clustermesh_default_global_namespace: bool,
    /// Interval of the probe key, by which the mirrors of other clusters measure how long a commit takes to arrive. 0 writes
    /// no probe: mirrors then know an upper bound only, by the heartbeat.
    #[arg(long, env = "CILIUM_PROPAGATION_PROBE_INTERVAL", default_value = "1s", value_parser = duration,
          value_name = "DURATION")]
    propagation_probe_interval: Duration,
}

impl PublisherArgs {
    /// Configures the publisher.
    pub fn options(&self, cluster: ClusterInfo, mode: ServiceMode, scope: Option<Watcher>) -> Options {
        Options {
            cluster,
            default_global_namespace: self.clustermesh_default_global_namespace,
            endpoint_slices: self.enable_cilium_endpoint_slice,
            service_exports: self.clustermesh_enable_mcs_api,
            service_mode: mode,
            probe_interval: self.propagation_probe_interval,
            scope,
        }
    }

    /// Whether a source of objects is named, beside the service account of the pod.
    pub fn names_a_source(&self) -> bool {
        self.manifests.is_some() || self.api.names_one() || !self.k8s_api_server.is_empty()
    }

    /// Chooses the source of objects.
    pub fn source(&self) -> anyhow::Result<ObjectSource> {
        if let Some(directory) = &self.manifests {
            return Ok(ObjectSource::Manifests(directory.clone()));
        }
        if !self.enable_k8s {
            bail!(
                "Kubernetes client not configured, cannot continue: with --enable-k8s=false, set --manifests to a \
                 directory"
            );
        }
        let mut config = self.timeouts.apply(self.api.config());
        match &*self.k8s_api_server {
            "" => {}
            url if url.contains("://") => config.urls = vec![url.to_owned()],
            url => config.urls = vec![format!("http://{url}")],
        }
        Ok(ObjectSource::Api(ApiConfig {
            service_proxy_name: self.k8s_service_proxy_name.clone(),
            crd_wait: self.crd_wait_timeout,
            ..config
        }))
    }
}

/// The form of global services in the store, for publisher and mirror.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global services")]
pub struct ServiceArgs {
    /// Form of global services in the store: prefer-legacy and prefer-endpointslice write both legacy services and
    /// EndpointSlices, only-endpointslice writes EndpointSlices alone.
    #[arg(long, env = "CILIUM_CLUSTERMESH_SERVICE_V2", default_value = "prefer-legacy", value_parser = service_mode,
          value_name = "MODE")]
    pub clustermesh_service_v2: ServiceMode,
}

fn service_mode(text: &str) -> Result<ServiceMode, String> {
    match text {
        "prefer-legacy" => Ok(ServiceMode::PreferLegacy),
        "prefer-endpointslice" => Ok(ServiceMode::PreferEndpointSlice),
        "only-endpointslice" => Ok(ServiceMode::OnlyEndpointSlice),
        _ => Err(format!(
            "{text:?} is not one of prefer-legacy, prefer-endpointslice, only-endpointslice"
        )),
    }
}
