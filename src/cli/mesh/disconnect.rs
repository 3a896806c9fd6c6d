//! `mesh disconnect`.

use super::{ChangeArgs, ClientArgs, ModeArgs};
use crate::mesh::disconnect::{Request, disconnect};
use anyhow::Context;
use clap::Args;

/// The beginning of every error, as in Cilium's CLI.
const FAILED: &str = "Unable to disconnect clusters";

/// Flags of `mesh disconnect`.
#[derive(Args, Debug)]
pub struct DisconnectArgs {
    /// Context of a cluster to disconnect from; a comma-separated list, or repeated.
    #[arg(long, value_delimiter = ',', value_name = "CONTEXT,...")]
    destination_context: Vec<String>,
    /// Name of a cluster to disconnect from without asking it, because it is dead or out of reach; a comma-separated
    /// list, or repeated.
    #[arg(long, value_delimiter = ',', value_name = "CLUSTER,...")]
    destination_name: Vec<String>,
    #[command(flatten)]
    mode: ModeArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    client: ClientArgs,
}

impl DisconnectArgs {
    /// Runs the subcommand.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        let contexts = self.client.contexts(&self.destination_context).await.context(FAILED)?;
        let request = Request {
            mode: self.mode.mode(),
            action: self.change.action(),
            names: self.destination_name,
            adopt: self.change.adopt,
        };
        disconnect(&contexts, &request, program, &self.change.terminal())
            .await
            .context(FAILED)
    }
}
