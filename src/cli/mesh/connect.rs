//! `mesh connect`.

use super::super::flags::duration;
use super::{ChangeArgs, ClientArgs, ModeArgs};
use crate::mesh::connect::{Action, Request, connect};
use crate::mesh::endpoints::AddressType;
use crate::mesh::output::Output;
use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum};
use std::time::Duration;

/// The beginning of every error, as in Cilium's CLI.
const FAILED: &str = "Unable to connect cluster";

/// Flags of `mesh connect`.
#[derive(Args, Debug)]
pub struct ConnectArgs {
    /// Context of a cluster to connect to; a comma-separated list, or repeated.
    #[arg(long, value_delimiter = ',', required = true, value_name = "CONTEXT,...")]
    destination_context: Vec<String>,
    #[command(flatten)]
    mode: ModeArgs,
    /// Address of this cluster's store for the others, in place of the one that is found: HOST:PORT; a comma-separated
    /// list, or repeated. All addresses have the same port. Set to the address of a load balancer that Kubernetes does not
    /// know.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,...")]
    source_endpoint: Vec<String>,
    /// Address of a destination's store, as in --source-endpoint. With several destinations each address begins with the
    /// context and '=': hk=192.0.2.7:2379.
    #[arg(
        long,
        alias = "destination-endpoints",
        value_delimiter = ',',
        value_name = "[CONTEXT=]HOST:PORT,..."
    )]
    destination_endpoint: Vec<String>,
    /// Type of the addresses of nodes for Services of type NodePort: InternalIP, ExternalIP, or auto (the ExternalIPs of a
    /// node that has one). All addresses of the type of all Ready nodes are used, of the IP families of the Service.
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        hide_possible_values = true,
        value_name = "TYPE"
    )]
    node_address_type: NodeAddressType,
    /// Number of clusters that are changed at the same time. Set to 1 to change one after the other.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    parallel: u16,
    /// Connect clusters with different CAs: each cluster trusts the CAs of its peers, too. Needs --adopt where cert-manager,
    /// certgen or Helm writes what a cluster trusts.
    #[arg(long, alias = "allow-mismatching-ca", action = ArgAction::SetTrue)]
    share_ca: bool,
    /// Longest wait for the address of a load balancer.
    #[arg(long, default_value = "2m", value_parser = duration, value_name = "DURATION")]
    wait_duration: Duration,
    /// Connect although a check has failed.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// The values of --node-address-type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NodeAddressType {
    Auto,
    #[value(name = "InternalIP")]
    InternalIp,
    #[value(name = "ExternalIP")]
    ExternalIp,
}

impl ConnectArgs {
    /// Runs the subcommand.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        let contexts = self.client.contexts(&self.destination_context).await.context(FAILED)?;
        let request = Request {
            mode: self.mode.mode(),
            action: self.change.action(),
            source_endpoints: self.source_endpoint,
            destination_endpoints: self.destination_endpoint,
            nodes: match self.node_address_type {
                NodeAddressType::Auto => AddressType::Auto,
                NodeAddressType::InternalIp => AddressType::Internal,
                NodeAddressType::ExternalIp => AddressType::External,
            },
            parallel: self.parallel.into(),
            share_authorities: self.share_ca,
            force: self.force,
            adopt: self.change.adopt,
            patience: self.wait_duration,
        };
        let output = self.change.terminal();
        Box::pin(connect(&contexts, &request, &output)).await.context(FAILED)?;
        if request.action == Action::Apply {
            let source = &contexts[0].name;
            output.line(&format!(
                "   💡 '{program} status --context {source} --wait' shows when all nodes are connected"
            ));
        }
        Ok(())
    }
}
