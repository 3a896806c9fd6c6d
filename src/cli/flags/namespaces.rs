//! Where a mirror finds the namespaces of its cluster.

use super::kubernetes::{ApiArgs, ApiTimeoutArgs};
use crate::app::ObjectSource;
use clap::Args;
use std::path::PathBuf;

const KUBECONFIG_HELP: &str = "Kubeconfig file with the address and credentials of the Kubernetes API. Overrides \
    --k8s-api-server-urls; without both, the service account of the pod is used, which must be allowed to list and watch \
    namespaces. Used only by a scope file with the condition `existing`";
const URLS_HELP: &str = "URLs of the Kubernetes API servers, one of which is used at a time; https is assumed. Used only by a \
    scope file with the condition `existing`";

/// The source of namespaces, for the rules of a scope file that ask whether a namespace exists.
#[derive(Args, Debug)]
#[command(next_help_heading = "Scope")]
#[command(mut_arg("k8s_kubeconfig_path", |arg| arg.help(KUBECONFIG_HELP)))]
#[command(mut_arg("k8s_api_server_urls", |arg| arg.help(URLS_HELP)))]
pub struct NamespaceArgs {
    /// Directory of Kubernetes manifests whose Namespaces count as those of this cluster, instead of a Kubernetes API. Used
    /// only by a scope file with the condition `existing`.
    #[arg(long, env = "CILIUM_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    timeouts: ApiTimeoutArgs,
}

impl NamespaceArgs {
    /// The manifests, or else the Kubernetes API.
    pub fn source(self) -> ObjectSource {
        match self.manifests {
            Some(directory) => ObjectSource::Manifests(directory),
            None => ObjectSource::Api(self.timeouts.apply(self.api.config())),
        }
    }
}
