//! `mesh enable`.

use super::super::flags::{boolean, duration};
use super::{ChangeArgs, ClientArgs};
use crate::mesh::enable::{Request, enable};
use crate::mesh::manifests::Storage;
use crate::mesh::pki::AuthMode;
use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum};
use std::time::Duration;

/// The beginning of every error, as in Cilium's CLI.
const FAILED: &str = "Unable to enable ClusterMesh";

/// Flags of `mesh enable`.
#[derive(Args, Debug)]
pub struct EnableArgs {
    /// Type of the Service that other clusters reach the store by: LoadBalancer, NodePort or ClusterIP. Found for GKE, AKS
    /// and EKS; must be set elsewhere. Set to ClusterIP where other clusters route to Services of this cluster.
    #[arg(long, value_enum, hide_possible_values = true, value_name = "TYPE")]
    service_type: Option<ServiceType>,
    /// Port on every node for the type NodePort; 0 lets Kubernetes choose. Defaults to the port of the Service, or 32379.
    #[arg(long, value_name = "PORT")]
    node_port: Option<u16>,
    /// Mirror the keys of other clusters into this cluster's store, where the agents read them. Without a mirror each agent
    /// connects to the store of every other cluster. Defaults to what runs, or true.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean,
          action = ArgAction::Set)]
    enable_kvstoremesh: Option<bool>,
    /// Image of the store. Defaults to the image that runs, or that of this version.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Number of pods, each with a store of its own. Defaults to what runs, or 1.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16), value_name = "N")]
    replicas: Option<u32>,
    /// Place of the store's data: memory (of the process), emptydir (on the node, as long as the pod lives), persistent (on
    /// a persistent volume, with one replica). Defaults to what runs, or emptydir.
    #[arg(long, value_enum, hide_possible_values = true, value_name = "PLACE")]
    storage: Option<StorageKind>,
    /// Name of this cluster in the stores of others, once its certificate is issued: migration (remote, for every
    /// cluster) or cluster (remote-NAME). Values as of the chart's authMode.
    #[arg(
        long,
        value_enum,
        default_value = "migration",
        hide_possible_values = true,
        value_name = "MODE"
    )]
    auth_mode: AuthKind,
    /// More host names for the server certificate, once it is issued; a comma-separated list, or repeated. Set to the
    /// name of a load balancer that Kubernetes does not know.
    #[arg(long, value_delimiter = ',', value_name = "HOST,...")]
    server_name: Vec<String>,
    /// Wait until the store is ready.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = boolean, action = ArgAction::Set)]
    wait: bool,
    /// Longest wait for the store and for the address of a load balancer.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    wait_duration: Duration,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// The values of --service-type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServiceType {
    #[value(name = "LoadBalancer")]
    LoadBalancer,
    #[value(name = "NodePort")]
    NodePort,
    #[value(name = "ClusterIP")]
    ClusterIp,
}

/// The values of --storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StorageKind {
    Memory,
    #[value(name = "emptydir")]
    EmptyDir,
    Persistent,
}

/// The values of --auth-mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthKind {
    Migration,
    Cluster,
}

impl EnableArgs {
    /// Runs the subcommand.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        let storage = self.storage.map(|storage| match storage {
            StorageKind::Memory => Storage::Memory,
            StorageKind::EmptyDir => Storage::EmptyDir,
            StorageKind::Persistent => Storage::Persistent,
        });
        let context = self.client.one().await.context(FAILED)?;
        let kind = self.service_type.map(|kind| match kind {
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::NodePort => "NodePort",
            ServiceType::ClusterIp => "ClusterIP",
        });
        let request = Request {
            action: self.change.action(),
            service_type: kind.map(str::to_owned),
            node_port: self.node_port,
            image: self.image,
            replicas: self.replicas,
            storage,
            mirror: self.enable_kvstoremesh,
            auth_mode: match self.auth_mode {
                AuthKind::Migration => AuthMode::Shared,
                AuthKind::Cluster => AuthMode::PerCluster,
            },
            names: self.server_name,
            adopt: self.change.adopt,
            patience: self.wait.then_some(self.wait_duration),
        };
        Box::pin(enable(&context, &request, program, &self.change.terminal()))
            .await
            .context(FAILED)
    }
}
