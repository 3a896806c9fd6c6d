//! The clusters that a scope file is tried on.

use crate::app::ObjectSource;
use crate::cli::flags::{PublisherArgs, ServiceArgs, duration};
use crate::explain::Sources;
use crate::explain::objects::Source;
use crate::model::cluster::{ClusterInfo, ClusterName, DEFAULT_NAME};
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The name of this cluster in reports, if it is not given.
const NAMELESS: &str = "this-cluster";
/// Set in the pods of a cluster.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Where objects and keys are read. They are read once, and nothing is written.
#[derive(Args, Debug)]
pub struct SourceArgs {
    /// Name of this cluster. Used in the report, and to skip the cluster's own file in --clustermesh-config.
    #[arg(long, env = "CILIUM_CLUSTER_NAME", default_value = NAMELESS, value_name = "NAME")]
    cluster_name: String,
    /// Numeric id of this cluster, which is a part of some values.
    #[arg(long, env = "CILIUM_CLUSTER_ID", default_value_t = 0, value_name = "ID")]
    cluster_id: u32,
    #[command(flatten)]
    publisher: PublisherArgs,
    #[command(flatten)]
    service: ServiceArgs,
    /// Directory of etcd client configurations, one file for each remote cluster and named after that cluster, whose keys
    /// are read for the import.
    #[arg(long, env = "CILIUM_CLUSTERMESH_CONFIG", default_value = "", value_name = "DIR")]
    clustermesh_config: String,
    /// Snapshot of a store, of this program or of etcd: the keys of its cluster are taken for those of a remote cluster, and
    /// so are the keys that it mirrors.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// Limit for reading all objects of this cluster, and for the first answer of each remote cluster.
    #[arg(long, default_value = "1m", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
}

impl SourceArgs {
    pub fn sources(self) -> anyhow::Result<Sources> {
        let name = match &*self.cluster_name {
            "" | DEFAULT_NAME => NAMELESS,
            name => name,
        };
        let cluster = ClusterInfo {
            name: ClusterName::new(name).context("--cluster-name")?,
            id: self.cluster_id,
            max_connected: 255,
        };
        let remotes = (!self.clustermesh_config.is_empty()).then(|| PathBuf::from(&self.clustermesh_config));
        let has_other_source = remotes.is_some() || self.snapshot.is_some();
        let is_wanted = match self.publisher.names_a_source() {
            true => true,
            // Without any other source, the error of the missing one says what to do.
            false => !has_other_source || self.publisher.enable_k8s && std::env::var_os(IN_CLUSTER).is_some(),
        };
        let objects = match is_wanted {
            true => Some(match self.publisher.source()? {
                ObjectSource::Manifests(directory) => Source::Manifests(directory),
                ObjectSource::Api(config) => Source::Api(config),
            }),
            false => None,
        };
        Ok(Sources {
            options: self
                .publisher
                .options(cluster, self.service.clustermesh_service_v2, None),
            objects,
            remotes,
            snapshot: self.snapshot,
            timeout: self.timeout,
        })
    }
}
