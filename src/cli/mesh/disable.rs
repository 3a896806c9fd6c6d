//! `mesh disable`.

use super::{ChangeArgs, ClientArgs};
use crate::mesh::disable::{Request, disable};
use anyhow::Context;
use clap::Args;

/// The beginning of every error, as in Cilium's CLI.
const FAILED: &str = "Unable to disable ClusterMesh";

/// Flags of `mesh disable`.
#[derive(Args, Debug)]
pub struct DisableArgs {
    /// Leave the certificates of the mesh, so that the cluster can be enabled again with the same ones.
    #[arg(long)]
    keep_certs: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    client: ClientArgs,
}

impl DisableArgs {
    /// Runs the subcommand.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        let context = self.client.one().await.context(FAILED)?;
        let request = Request {
            action: self.change.action(),
            keep_certificates: self.keep_certs,
            adopt: self.change.adopt,
        };
        disable(&context, &request, program, &self.change.terminal())
            .await
            .context(FAILED)
    }
}
