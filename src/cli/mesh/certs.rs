//! `mesh certs`.

use super::{ClientArgs, Document, Terminal};
use crate::cli::flags::duration;
use crate::cli::print;
use crate::mesh::apply;
use crate::mesh::certs::authority::{self, Restart};
use crate::mesh::certs::store::Store;
use crate::mesh::certs::{Inventory, cronjob, leaves};
use crate::mesh::context::Context;
use crate::mesh::output::Output;
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Flags of `mesh certs`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = false, subcommand_negates_reqs = true)]
pub struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,
    #[command(flatten)]
    show: ShowArgs,
}

/// Subcommands of `mesh certs`.
#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Show every certificate of one or more clusters with the days it has left
    Show(ShowArgs),
    /// Issue the certificates of clusters anew, or replace their CA, without an outage
    Rotate(Box<RotateArgs>),
    /// Let a CronJob issue certificates anew before they end
    Cronjob(Box<CronjobArgs>),
}

/// The clusters of a command.
#[derive(Args, Debug)]
struct ClusterArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Kubeconfig contexts of more clusters of the mesh.
    #[arg(long, value_delimiter = ',', value_name = "CONTEXT,...", action = clap::ArgAction::Append)]
    destination_context: Vec<String>,
}

/// Flags of `mesh certs show`.
#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    clusters: ClusterArgs,
    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Document::Summary, value_name = "FORMAT")]
    output: Document,
}

/// Flags of `mesh certs rotate`.
#[derive(Args, Debug)]
struct RotateArgs {
    #[command(flatten)]
    clusters: ClusterArgs,
    /// Replace the CA, too: all clusters that trust it must be given. Old and new CA are trusted together until every
    /// certificate has been issued anew, which takes some minutes.
    #[arg(long)]
    ca: bool,
    /// Issue only certificates that end within this time. By default, all are issued.
    #[arg(long, value_parser = duration, value_name = "DURATION", conflicts_with = "ca")]
    renew_before: Option<Duration>,
    /// Name or address to add to the server certificate, such as the host name of a load balancer; may be repeated.
    #[arg(long, value_name = "NAME", conflicts_with = "ca")]
    add_name: Vec<String>,
    /// Name of a connected cluster that is gone for good, and does not have to trust the new CA; may be repeated.
    #[arg(long, value_name = "CLUSTER", requires = "ca")]
    without: Vec<String>,
    /// Restart stores after a change of what they trust: auto restarts those that read their CAs at the start only, which
    /// are all but those of this program. In the pod of Cilium's chart, the image is recognized by its name, isthmus; set to
    /// never if you gave it another name.
    #[arg(long, value_enum, default_value_t = RestartFlag::Auto, value_name = "WHEN", requires = "ca")]
    restart: RestartFlag,
    /// Time between the steps, until all pods have read their Secrets: the kubelet's period of synchronisation and its
    /// cache, 90 seconds by default, and the minute after which mirrors read their files again.
    #[arg(long, default_value = "3m", value_parser = duration, value_name = "DURATION", requires = "ca")]
    rest: Duration,
    /// Write certificates that another tool, such as Helm, renders, too. The next run of that tool undoes the change.
    #[arg(long)]
    adopt: bool,
    /// Print what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RestartFlag {
    Auto,
    Always,
    Never,
}

/// Flags of `mesh certs cronjob`.
#[derive(Args, Debug)]
struct CronjobArgs {
    #[command(flatten)]
    clusters: ClusterArgs,
    /// Image of this program.
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Times of the CronJob, in the form of cron.
    #[arg(long, default_value = "0 3 * * 1", value_name = "SCHEDULE")]
    schedule: String,
    /// Time before the end of a certificate at which it is issued anew.
    #[arg(long, default_value = "2160h", value_parser = go_duration, value_name = "DURATION")]
    renew_before: String,
    /// Issue certificates that another tool, such as Helm, renders, too.
    #[arg(long)]
    adopt: bool,
    /// Print the objects as YAML, and change nothing.
    #[arg(long)]
    print: bool,
}

/// Checks a duration and keeps its text.
fn go_duration(text: &str) -> Result<String, String> {
    duration(text).map(|_| text.to_owned())
}

// === impl ClusterArgs ===

impl ClusterArgs {
    async fn contexts(&self) -> anyhow::Result<Vec<Context>> {
        self.client.contexts(&self.destination_context).await
    }
}

// === impl CertsArgs ===

impl CertsArgs {
    /// Runs the subcommand.
    pub async fn run(self, _program: &str) -> anyhow::Result<()> {
        match self.command {
            None => self.show.run().await,
            Some(CertsCommand::Show(args)) => args.run().await,
            Some(CertsCommand::Rotate(args)) => Box::pin(args.run()).await,
            Some(CertsCommand::Cronjob(args)) => args.run().await,
        }
    }
}

impl ShowArgs {
    async fn run(self) -> anyhow::Result<()> {
        let mut inventories = vec![];
        for context in self.clusters.contexts().await? {
            let facts = Store { context: &context }.facts_with_bundle().await?;
            inventories.push(Inventory::of(&facts, Timestamp::now()));
        }
        let summary = || {
            let blocks = inventories.iter().map(|one| one.lines().join("\n"));
            blocks.collect::<Vec<_>>().join("\n\n") + "\n"
        };
        let text = self.output.write(&inventories)?.unwrap_or_else(summary);
        print::answer(&text)?;
        let wrong: Vec<_> = inventories
            .iter()
            .filter(|one| one.is_wrong())
            .map(|one| one.cluster.as_str())
            .collect();
        if !wrong.is_empty() {
            bail!(
                "certificates of {} need attention: issue them anew with certs rotate",
                wrong.join(", ")
            );
        }
        Ok(())
    }
}

impl RotateArgs {
    async fn run(self) -> anyhow::Result<()> {
        let output = Terminal { to_stderr: false };
        let contexts = self.clusters.contexts().await?;
        if self.ca {
            let options = authority::Options {
                without: self.without.into_iter().collect(),
                restart: match self.restart {
                    RestartFlag::Auto => Restart::Auto,
                    RestartFlag::Always => Restart::Always,
                    RestartFlag::Never => Restart::Never,
                },
                rest: SignedDuration::try_from(self.rest).unwrap_or(SignedDuration::MAX),
                adopt: self.adopt,
                dry_run: self.dry_run,
            };
            return Ok(Box::pin(authority::rotate(&contexts, &options, &output)).await?);
        }
        let options = leaves::Options {
            before: self
                .renew_before
                .map(|before| SignedDuration::try_from(before).unwrap_or(SignedDuration::MAX)),
            names: self.add_name,
            adopt: self.adopt,
            dry_run: self.dry_run,
        };
        let mut issued = 0;
        for context in &contexts {
            issued += leaves::rotate(&Store { context }, &options, Timestamp::now(), &output).await?;
        }
        if issued > 0 && !options.dry_run {
            output.line(
                "✅ Running stores, mirrors and agents read the new certificates within two minutes, without a restart",
            );
        }
        Ok(())
    }
}

impl CronjobArgs {
    async fn run(self) -> anyhow::Result<()> {
        let options = cronjob::Options {
            namespace: self.clusters.client.namespace().to_owned(),
            image: self.image,
            schedule: self.schedule,
            renew_before: self.renew_before,
            adopt: self.adopt,
        };
        let objects = cronjob::objects(&options);
        if self.print {
            let documents: Result<Vec<_>, _> = objects.iter().map(serde_saphyr::to_string).collect();
            return print::answer(&documents?.join("---\n"));
        }
        let output = Terminal { to_stderr: false };
        for context in self.clusters.contexts().await? {
            apply::force(&context, &objects).await?;
            output.line(&format!(
                "✅ CronJob {}/{} in context {} issues certificates anew that end within {}",
                options.namespace,
                cronjob::NAME,
                context.name,
                options.renew_before
            ));
        }
        Ok(())
    }
}
