//! `mesh status`.

use super::{ClientArgs, Document, Terminal};
use crate::cli::flags::duration;
use crate::cli::print;
use crate::mesh::status::{self, Options, Report};
use anyhow::bail;
use clap::Args;
use std::time::Duration;

/// Flags of `mesh status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Wait until the cluster is ready and connected to all its peers, and say what is waited for. Requests that fail
    /// meanwhile are tried again.
    #[arg(long)]
    wait: bool,
    /// Time limit for the whole command, with and without --wait.
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "DURATION")]
    wait_duration: Duration,
    /// Time that each pod has for its answer. Raise the limit for slow connections to the Kubernetes API.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pod_timeout: Duration,
    /// Form of the answer: a summary for people, or a document with everything. With a document, progress goes to
    /// standard error.
    #[arg(short, long, value_enum, default_value = "summary", value_name = "FORM")]
    output: Document,
    #[command(flatten)]
    client: ClientArgs,
}

impl StatusArgs {
    /// Prints the status. Fails if something is wrong, whatever the form of the answer.
    pub async fn run(self, program: &str) -> anyhow::Result<()> {
        for (flag, time) in [("wait-duration", self.wait_duration), ("pod-timeout", self.pod_timeout)] {
            if time.is_zero() {
                bail!("--{flag} must be longer than 0s: it limits the time in which the Kubernetes API answers");
            }
        }
        let context = self.client.kubeconfigs()?.context(self.client.context()).await?;
        let options = Options {
            tool: program.to_owned(),
            wait: self.wait,
            limit: self.wait_duration,
            pod_timeout: self.pod_timeout,
        };
        let to_stderr = self.output != Document::Summary;
        let report = match Box::pin(status::run(&context, &options, &Terminal { to_stderr })).await {
            Ok(report) => report,
            Err(error) => Report::failed(&context, error.to_string()),
        };
        match self.output.write(&report)? {
            Some(document) => print::answer(&document)?,
            None => print::text(&report.summary())?,
        }
        match report.problem() {
            None => Ok(()),
            Some(problem) => bail!("{problem}"),
        }
    }
}
