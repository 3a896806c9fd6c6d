//! `clustermesh-dbg` and `kvstoremesh-dbg`: the first tools for a broken connection.

use super::flags::duration;
use super::kvstoremesh;
use super::print::Visible;
use crate::troubleshoot::{self, Mesh};
use clap::error::Error as ClapError;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Commands of `clustermesh-dbg`.
#[derive(Debug, Subcommand)]
pub enum ClustermeshDbg {
    /// Troubleshoot connectivity towards the local etcd kvstore
    Troubleshoot(LocalArgs),
}

/// Flags of `clustermesh-dbg troubleshoot`.
#[derive(Args, Debug)]
pub struct LocalArgs {
    /// Path to the etcd client configuration of the local store.
    #[arg(long, default_value = "/var/lib/cilium/etcd-config.yaml", value_name = "FILE")]
    etcd_config: PathBuf,
    /// Timeout for all checks of one etcd.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Flags of `kvstoremesh-dbg troubleshoot`.
#[derive(Args, Debug)]
#[command(about = "Troubleshoot connectivity towards the local etcd kvstore and remote clusters")]
pub struct MeshArgs {
    /// Names of the clusters to check. Defaults to all.
    clusters: Vec<String>,
    #[command(flatten)]
    local: LocalArgs,
    /// Path to the directory of the remote clusters' etcd client configurations.
    #[arg(long, default_value = "/var/lib/cilium/clustermesh/", value_name = "DIR")]
    clustermesh_config: PathBuf,
    /// Check the local etcd, too.
    #[arg(long)]
    include_local: bool,
}

/// Commands of `kvstoremesh-dbg`.
#[derive(Debug)]
pub enum KvstoremeshDbg {
    /// Asks a running mirror.
    Ask(kvstoremesh::DbgArgs),
    /// Connects to the stores without a mirror.
    Troubleshoot(MeshArgs),
}

const TROUBLESHOOT: &str = "troubleshoot";

impl ClustermeshDbg {
    /// Prints the findings. Fails only where printing fails.
    pub fn run(self) -> anyhow::Result<()> {
        let Self::Troubleshoot(args) = self;
        printed(async |out| args.look(out).await)
    }
}

impl MeshArgs {
    /// Prints the findings. Fails only where printing fails.
    pub fn run(self) -> anyhow::Result<()> {
        let mesh = Mesh {
            directory: self.clustermesh_config,
            clusters: self.clusters,
            local: std::env::var("CLUSTER_NAME").ok(),
            timeout: self.local.timeout,
        };
        printed(async |out| {
            if self.include_local {
                self.local.look(out).await?;
                write!(out, "\n\n")?;
            }
            troubleshoot::mesh(&mesh, out).await
        })
    }
}

impl LocalArgs {
    async fn look(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "Local etcd kvstore:")?;
        troubleshoot::file(&self.etcd_config, self.timeout, out).await
    }
}

/// Runs `look`, which prints its findings one by one.
fn printed(look: impl AsyncFnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(look(&mut Visible(io::stdout())));
    // Does not wait for a DNS lookup on a blocking thread.
    runtime.shutdown_background();
    match done {
        // The reader, such as `head`, has closed the pipe.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

// === impl KvstoremeshDbg ===

impl FromArgMatches for KvstoremeshDbg {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        match matches.subcommand() {
            Some((TROUBLESHOOT, matches)) => Ok(Self::Troubleshoot(MeshArgs::from_arg_matches(matches)?)),
            _ => Ok(Self::Ask(kvstoremesh::DbgArgs::from_arg_matches(matches)?)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for KvstoremeshDbg {
    fn augment_args(command: Command) -> Command {
        kvstoremesh::DbgArgs::augment_args(command).subcommand(MeshArgs::augment_args(Command::new(TROUBLESHOOT)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
