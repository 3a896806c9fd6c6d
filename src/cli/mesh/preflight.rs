//! `mesh preflight`.

use super::{ClientArgs, Document, Terminal};
use crate::cli::flags::duration;
use crate::cli::print;
use crate::mesh::preflight::{self, Options};
use anyhow::bail;
use clap::Args;
use std::time::Duration;

/// Flags of `mesh preflight`.
#[derive(Args, Debug)]
pub struct PreflightArgs {
    /// Kubeconfig contexts of the clusters to connect to, separated by commas. Without any, the cluster is checked
    /// alone. All clusters are compared with each other.
    #[arg(long, value_delimiter = ',', value_name = "CONTEXT,...")]
    destination_context: Vec<String>,
    /// Connect from a node of each cluster to the Service and the nodes of the others, by executing bash in an agent's
    /// pod.
    #[arg(long)]
    probe: bool,
    /// Time that each pod has for its answer. Raise the limit for slow connections to the Kubernetes API.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pod_timeout: Duration,
    /// Form of the answer: a summary for people, or a document with everything.
    #[arg(short, long, value_enum, default_value = "summary", value_name = "FORM")]
    output: Document,
    #[command(flatten)]
    client: ClientArgs,
}

impl PreflightArgs {
    /// Prints the checks. Fails if one of them failed.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        let files = self.client.kubeconfigs()?;
        let mut contexts = vec![files.context(self.client.context()).await?];
        for name in &self.destination_context {
            contexts.push(files.context(Some(name)).await?);
        }
        let options = Options {
            tool: program.to_owned(),
            probe: self.probe,
            pod_timeout: self.pod_timeout,
        };
        let to_stderr = self.output != Document::Summary;
        let report = Box::pin(preflight::run(&contexts, &options, &Terminal { to_stderr })).await;
        match self.output.write(&report)? {
            Some(document) => print::answer(&document)?,
            None => print::text(&report.to_string())?,
        }
        match report.failed {
            0 => Ok(()),
            1 => bail!("1 check failed"),
            failed => bail!("{failed} checks failed"),
        }
    }
}
