//! `etcdinit`: prepares a data directory for a later start of `etcd`, without network access; or the users of an etcd that runs.

use super::flags::{boolean, duration};
use crate::app::etcdinit;
use crate::model::cluster::ClusterName;
use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The field `subsys` of all log lines, as in Cilium.
const SUBSYS: &str = "etcdinit";

/// Flags of `etcdinit`.
#[derive(Args, Debug)]
pub struct EtcdinitArgs {
    /// Data directory to prepare. Must exist; a store in it, of this program or of etcd, is removed.
    #[arg(
        long,
        env = "CILIUM_ETCD_DATA_DIR",
        default_value = "/var/run/etcd",
        value_name = "DIR"
    )]
    etcd_data_dir: PathBuf,
    /// File of an etcd client (endpoints, TLS files) that names an etcd that runs: its users and roles are prepared instead of
    /// a data directory, and authentication is turned on. What is there already stays. The client's certificate must have the
    /// common name root once authentication is on.
    #[arg(long, env = "CILIUM_ETCD_CONFIG", value_name = "FILE")]
    etcd_config: Option<PathBuf>,
    /// Accepted without effect: every prepared store gets random ids.
    #[arg(
        long,
        env = "CILIUM_ETCD_INITIAL_CLUSTER_TOKEN",
        default_value = "clustermesh-apiserver",
        value_name = "TOKEN"
    )]
    etcd_initial_cluster_token: String,
    /// Accepted without effect: --name of `etcd` is the member name.
    #[arg(
        long,
        env = "CILIUM_ETCD_CLUSTER_NAME",
        default_value = "clustermesh-apiserver",
        value_name = "NAME"
    )]
    etcd_cluster_name: String,
    /// Name of the Cilium cluster, for its users admin-NAME and local-NAME.
    #[arg(long, env = "CILIUM_CLUSTER_NAME", default_value = "default", value_name = "NAME")]
    cluster_name: String,
    /// Longest time for preparing the directory, or for waiting for the etcd.
    #[arg(long, env = "CILIUM_TIMEOUT", default_value = "2m", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
    /// Log at level debug instead of info.
    #[arg(long, env = "CILIUM_DEBUG", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub debug: bool,
}

impl EtcdinitArgs {
    /// Prepares the directory, or the etcd.
    pub fn run(self) -> anyhow::Result<()> {
        self.log();
        let cluster = match &*self.cluster_name {
            "" => None,
            name => Some(ClusterName::new(name).with_context(|| format!("--cluster-name={name}"))?),
        };
        match &self.etcd_config {
            Some(file) => self.prepare_running(file, cluster.as_ref()),
            None => self.prepare_directory(cluster),
        }
    }

    fn prepare_running(&self, file: &Path, cluster: Option<&ClusterName>) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let prepared = runtime.block_on(etcdinit::prepare_running(file, cluster, self.timeout));
        // Does not wait for a DNS lookup on a blocking thread.
        runtime.shutdown_background();
        prepared.with_context(|| format!("--etcd-config={}", file.display()))?;
        tracing::info!(
            subsys = SUBSYS,
            etcd_config = %file.display(),
            cluster_name = self.cluster_name,
            "etcd init completed"
        );
        Ok(())
    }

    fn prepare_directory(self, cluster: Option<ClusterName>) -> anyhow::Result<()> {
        let Self {
            etcd_data_dir,
            cluster_name,
            timeout,
            ..
        } = self;
        let late = || {
            let (directory, time) = (etcd_data_dir.display(), go_duration(timeout));
            format!(
                "--etcd-data-dir={directory} was not prepared within --timeout={time}: the disk may be stuck, or the timeout too short"
            )
        };
        if timeout.is_zero() {
            bail!(late());
        }
        let (tell, told) = mpsc::channel();
        let directory = etcd_data_dir.clone();
        // On a thread of its own, since a call that hangs on a broken disk cannot be cancelled.
        std::thread::spawn(move || {
            let prepared = etcdinit::prepare(&directory, cluster.as_ref());
            let _ = tell.send(prepared.with_context(|| format!("--etcd-data-dir={}", directory.display())));
        });
        let identity = told.recv_timeout(timeout).with_context(late)??;
        tracing::info!(
            subsys = SUBSYS,
            data_dir = %etcd_data_dir.display(),
            cluster_name,
            etcd_cluster_id = %format_args!("{:x}", identity.cluster_id),
            member_id = %format_args!("{:x}", identity.member_id),
            "etcd init completed"
        );
        Ok(())
    }

    /// Logs the settings in the order of their names, and the version, as Cilium does.
    fn log(&self) {
        for (name, value) in [
            ("cluster-name", self.cluster_name.clone()),
            ("debug", self.debug.to_string()),
            ("etcd-cluster-name", self.etcd_cluster_name.clone()),
            ("etcd-data-dir", self.etcd_data_dir.display().to_string()),
            ("etcd-initial-cluster-token", self.etcd_initial_cluster_token.clone()),
            ("timeout", go_duration(self.timeout)),
        ] {
            tracing::info!(subsys = SUBSYS, "  --{name}='{value}'");
        }
        tracing::info!(
            subsys = SUBSYS,
            version = env!("CARGO_PKG_VERSION"),
            "Isthmus ClusterMesh etcd init"
        );
    }
}

/// A duration as Go prints it: `2m0s`.
fn go_duration(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    let secs = (duration - Duration::from_secs(minutes * 60)).as_secs_f64();
    match (minutes / 60, minutes % 60) {
        (0, 0) if duration.is_zero() => "0s".to_owned(),
        // Rust writes durations below a minute as Go does.
        (0, 0) => format!("{duration:?}"),
        (0, minutes) => format!("{minutes}m{secs}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_in_go() {
        for text in ["0s", "2m0s", "1h0m0s", "25h1m1.5s", "1.5s", "100ms", "59.25s"] {
            assert_eq!(go_duration(duration(text).unwrap()), text);
        }
    }
}
