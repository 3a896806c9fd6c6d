//! `mesh`: connects clusters, from the machine of an operator who has kubeconfig contexts.
//!
//! Each subcommand has a file with its flags. A program called `isthmus` has these subcommands at its top level, too.

mod certs;
mod connect;
mod disable;
mod disconnect;
mod enable;
mod preflight;
mod status;

use super::print;
use crate::k8s::client::ProxyVariables;
use crate::mesh::connect::{Action, Mode};
use crate::mesh::context::{Context, Kubeconfigs, Options};
use crate::mesh::output::Output;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The name of the subcommand.
pub const NAME: &str = "mesh";
/// The name of the program whose top level has the subcommands of `mesh`.
pub const PROGRAM: &str = "isthmus";

/// Subcommands of `mesh`.
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// Make a cluster ready for a mesh: store, certificates, Service
    Enable(Box<enable::EnableArgs>),
    /// Connect a cluster to one or more other clusters
    Connect(Box<connect::ConnectArgs>),
    /// Disconnect a cluster from other clusters, also from dead ones
    Disconnect(Box<disconnect::DisconnectArgs>),
    /// Remove from a cluster what enable and connect have made
    Disable(Box<disable::DisableArgs>),
    /// Show whether a cluster is connected, and the first broken hop otherwise
    Status(Box<status::StatusArgs>),
    /// Show and rotate the certificates of a mesh
    Certs(Box<certs::CertsArgs>),
    /// Check whether clusters can be connected, without changing anything
    Preflight(Box<preflight::PreflightArgs>),
}

/// Which clusters are meant, and who acts. All subcommands have these flags.
#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClientArgs {
    /// Kubeconfig context of the cluster. Defaults to the current context. The form FILE#CONTEXT names a context that
    /// several kubeconfig files define.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CONTEXT")]
    context: String,
    /// Kubeconfig file; may be repeated. The files are used for this cluster and for all destinations. Defaults to the
    /// files of KUBECONFIG, or ~/.kube/config.
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    kubeconfig: Vec<PathBuf>,
    /// Namespace of Cilium, in every cluster.
    #[arg(
        short,
        long,
        env = "CILIUM_NAMESPACE",
        default_value = "kube-system",
        value_name = "NAMESPACE"
    )]
    namespace: String,
    /// User to impersonate in every cluster.
    #[arg(long = "as", id = "as_user", value_name = "USER")]
    as_user: Option<String>,
    /// Group to impersonate; may be repeated.
    #[arg(long, value_name = "GROUP", action = clap::ArgAction::Append)]
    as_group: Vec<String>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// Lines for people
    Summary,
    /// A JSON document
    Json,
    /// A YAML document
    Yaml,
}

/// What is done with changes. All subcommands that change clusters have these flags.
#[derive(Args, Debug)]
#[command(next_help_heading = "Changes")]
pub struct ChangeArgs {
    /// Print the changes, and make none.
    #[arg(long, conflicts_with = "print")]
    dry_run: bool,
    /// Print what another tool would have to apply, and change nothing: values (of the Cilium chart) or manifests.
    #[arg(long, value_enum, hide_possible_values = true, value_name = "values|manifests")]
    print: Option<PrintKind>,
    /// Change objects that another tool, such as Helm, Argo CD, Flux or cert-manager, keeps, and take their fields over.
    #[arg(long)]
    adopt: bool,
}

/// The values of --print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrintKind {
    Values,
    Manifests,
}

/// Which of the clusters learn of each other, or forget each other. `connect` and `disconnect` have this flag.
#[derive(Args, Debug)]
pub struct ModeArgs {
    /// Pairs of clusters that are changed: bidirectional (this cluster and each destination, both sides), mesh (all
    /// clusters with each other), unicast (this cluster alone, and no destination).
    #[arg(
        long,
        value_enum,
        default_value = "bidirectional",
        hide_possible_values = true,
        value_name = "MODE"
    )]
    connection_mode: ConnectionMode,
}

/// The values of --connection-mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectionMode {
    Bidirectional,
    Mesh,
    Unicast,
}

/// The output of a command: lines on standard output, or on standard error where standard output has a document.
pub struct Terminal {
    /// Whether lines go to standard error.
    pub to_stderr: bool,
}

// === impl MeshCommand ===

impl MeshCommand {
    /// Runs the subcommand. `program` is what was typed before its name: `clustermesh-apiserver mesh`, or `isthmus`.
    pub fn run(self, program: &str) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let done = runtime.block_on(async {
            match self {
                Self::Enable(args) => Box::pin(args.run(program)).await,
                Self::Connect(args) => Box::pin(args.run(program)).await,
                Self::Disconnect(args) => Box::pin(args.run(program)).await,
                Self::Disable(args) => Box::pin(args.run(program)).await,
                Self::Status(args) => Box::pin(args.run(program)).await,
                Self::Certs(args) => Box::pin(args.run(program)).await,
                Self::Preflight(args) => Box::pin(args.run(program)).await,
            }
        });
        // Does not wait for a credential plugin or a DNS lookup on a blocking thread.
        runtime.shutdown_background();
        done
    }
}

// === impl ClientArgs ===

impl ClientArgs {
    /// The name of the context, unless the current one is meant.
    pub fn context(&self) -> Option<&str> {
        Some(&*self.context).filter(|name| !name.is_empty())
    }

    /// The namespace of Cilium.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster that is meant.
    pub async fn one(&self) -> anyhow::Result<Context> {
        Ok(self.kubeconfigs()?.context(self.context()).await?)
    }

    /// The cluster that is meant, and the destinations.
    pub async fn contexts(&self, destinations: &[String]) -> anyhow::Result<Vec<Context>> {
        let files = self.kubeconfigs()?;
        let mut contexts = vec![files.context(self.context()).await?];
        for name in destinations.iter().filter(|name| !name.is_empty()) {
            contexts.push(files.context(Some(name)).await?);
        }
        Ok(contexts)
    }

    /// Reads the kubeconfig files.
    pub fn kubeconfigs(&self) -> anyhow::Result<Kubeconfigs> {
        let variable = |name: &str| std::env::var(name).ok();
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        let options = Options {
            namespace: self.namespace.clone(),
            user: self.as_user.clone(),
            groups: self.as_group.clone(),
            proxies: ProxyVariables::read(variable),
        };
        let list = variable("KUBECONFIG").unwrap_or_default();
        Ok(Kubeconfigs::read(&self.kubeconfig, &list, home, options)?)
    }
}

// === impl Document ===

impl Document {
    /// Writes `answer` as a document; `None` for a summary.
    pub fn write(self, answer: &impl serde::Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Summary => None,
            Self::Json => Some(serde_json::to_string_pretty(answer)? + "\n"),
            Self::Yaml => Some(serde_saphyr::to_string(answer)?),
        })
    }
}

// === impl ChangeArgs ===

impl ChangeArgs {
    pub fn action(&self) -> Action {
        match self.print {
            Some(PrintKind::Values) => Action::PrintValues,
            Some(PrintKind::Manifests) => Action::PrintManifests,
            None if self.dry_run => Action::DryRun,
            None => Action::Apply,
        }
    }

    /// The output: a printed document has standard output for itself.
    pub fn terminal(&self) -> Terminal {
        Terminal {
            to_stderr: self.print.is_some(),
        }
    }
}

// === impl ModeArgs ===

impl ModeArgs {
    pub fn mode(&self) -> Mode {
        match self.connection_mode {
            ConnectionMode::Bidirectional => Mode::Bidirectional,
            ConnectionMode::Mesh => Mode::Mesh,
            ConnectionMode::Unicast => Mode::Unicast,
        }
    }
}

// === impl Terminal ===

impl Output for Terminal {
    fn line(&self, text: &str) {
        let text = format!("{text}\n");
        match self.to_stderr {
            true => super::logging::complain(&text),
            // A closed or full output does not end a command that changes clusters.
            false => drop(print::text(&text)),
        }
    }

    fn document(&self, text: &str) {
        drop(print::answer(text));
    }
}
