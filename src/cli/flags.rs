//! Groups of flags that several subcommands share, with Cilium's names, defaults and `CILIUM_` variables, or etcdctl's names.
//!
//! Each group turns into the configuration of one room.

mod kubernetes;
mod kvstore;
mod mesh;
mod namespaces;
mod page;
mod publisher;
mod scope;
mod store;
mod traces;

pub use kubernetes::ApiArgs;
pub use kvstore::KvstoreArgs;
pub use mesh::MeshArgs;
pub use namespaces::NamespaceArgs;
pub use page::PageArgs;
pub use publisher::{PublisherArgs, ServiceArgs};
pub use scope::ScopeArgs;
pub use store::EndpointArgs;
pub use traces::{TraceArgs, VARIABLES as TRACE_VARIABLES};

use super::ignored::IgnoredFlags;
use crate::app;
use crate::app::metrics::{ControllerGroups, DaemonMetrics, Needs};
use crate::model::cluster::{self, ClusterInfo};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::{Context, anyhow};
use clap::{ArgAction, Args};
use std::str::FromStr;
use std::time::Duration;

/// Parses a duration in Go's syntax, such as `15m0s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    // The library takes an empty text for zero.
    let parsed = kube::core::Duration::from_str(text).ok().filter(|_| !text.is_empty());
    let parsed = parsed.ok_or_else(|| format!("{text:?} is not a duration such as 30s or 1h30m"))?;
    if parsed.is_negative() {
        return Err(format!("{text:?} is negative"));
    }
    Ok(parsed.into())
}

/// Parses a boolean in Go's syntax.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not a boolean")),
    }
}

/// The identity of this cluster in the mesh.
#[derive(Args, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Name of this cluster, unique in the mesh: at most 32 lower case letters, digits and '-'. Must be set: the
    /// default is refused.
    #[arg(long, env = "CILIUM_CLUSTER_NAME", default_value = "default", value_name = "NAME")]
    cluster_name: String,
    /// Numeric id of this cluster, unique in the mesh: 1 to the value of --max-connected-clusters. Must be set: the
    /// default is refused.
    #[arg(long, env = "CILIUM_CLUSTER_ID", default_value_t = 0, value_name = "ID")]
    cluster_id: u32,
    /// Largest number of clusters in the mesh: 255 or 511. Must be the same in all clusters of the mesh.
    #[arg(long, env = "CILIUM_MAX_CONNECTED_CLUSTERS", default_value_t = 255, value_name = "N")]
    max_connected_clusters: u32,
}

impl ClusterArgs {
    /// Validates the identity.
    pub fn info(&self) -> anyhow::Result<ClusterInfo> {
        let info = ClusterInfo::new(&self.cluster_name, self.cluster_id, self.max_connected_clusters);
        info.map_err(|error| {
            let most = self.max_connected_clusters;
            let remedy = match error {
                cluster::Error::IdZero => format!("set --cluster-id to a number from 1 to {most}, unique in the mesh"),
                cluster::Error::IdTooLarge { id: ..=511, max: 255 } => {
                    "--max-connected-clusters=511, in all clusters of the mesh, allows ids up to 511".to_owned()
                }
                cluster::Error::IdTooLarge { .. } => format!("set --cluster-id to a number from 1 to {most}"),
                cluster::Error::MaxConnected(_) => "use the value of the other clusters of the mesh".to_owned(),
                cluster::Error::Name { .. } | cluster::Error::DefaultName => {
                    "set --cluster-name to a name that is unique in the mesh".to_owned()
                }
            };
            anyhow!("{error}: {remedy}")
        })
    }
}

/// Logging.
#[derive(Args, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Log at level debug instead of info.
    #[arg(short = 'D', long, env = "CILIUM_DEBUG", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub debug: bool,
    /// Options of the log: level=debug|info|warn|error, format=text|text-ts|json|json-ts, writer=stdout|stderr.
    /// Defaults to level=info,format=text-ts,writer=stdout; the formats with -ts have time stamps.
    #[arg(long, env = "CILIUM_LOG_OPT", value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub log_opt: Vec<String>,
}

/// Health and metrics.
#[derive(Args, Debug)]
#[command(next_help_heading = "Health and metrics")]
pub struct ObserveArgs {
    /// Port of /readyz and /healthz on all interfaces, or HOST:PORT for one address, such as 127.0.0.1:9880; 0 disables
    /// both.
    #[arg(long, env = "CILIUM_HEALTH_PORT", default_value = "9880", value_parser = health_address,
          value_name = "[HOST:]PORT")]
    health_port: HealthAddress,
    /// Listen address of /metrics, for example :9962. Empty: no metrics.
    #[arg(
        long,
        env = "CILIUM_PROMETHEUS_SERVE_ADDR",
        default_value = "",
        value_name = "HOST:PORT"
    )]
    prometheus_serve_addr: String,
    /// Controllers whose runs are counted in the metric controllers_group_runs_total: their names, all, or none.
    /// Defaults to none.
    #[arg(
        long,
        env = "CILIUM_CONTROLLER_GROUP_METRICS",
        value_delimiter = ',',
        value_name = "NAME,..."
    )]
    controller_group_metrics: Vec<String>,
    /// Conditions that /readyz requires once the start is complete: store (writable), kubernetes (connected), both
    /// separated by a comma, or none.
    #[arg(long, env = "CILIUM_READY_NEEDS", default_value = "store", value_parser = needs, value_name = "CONDITION,...")]
    pub ready_needs: Needs,
}

/// The listen address of the health server; `None` for no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthAddress(Option<String>);

fn health_address(text: &str) -> Result<HealthAddress, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    match port.parse::<u16>() {
        Ok(0) => Ok(HealthAddress(None)),
        Ok(port) => Ok(HealthAddress(Some(format!("{host}:{port}")))),
        Err(_) => Err(format!("{text:?} is neither a port from 0 to 65535 nor HOST:PORT")),
    }
}

fn needs(text: &str) -> Result<Needs, String> {
    let mut needs = Needs {
        store: false,
        kubernetes: false,
    };
    for part in text.split(',').filter(|p| *p != "none") {
        match part {
            "store" => needs.store = true,
            "kubernetes" => needs.kubernetes = true,
            _ => return Err(format!("{part:?} is not one of store, kubernetes, none")),
        }
    }
    Ok(needs)
}

impl ObserveArgs {
    /// Starts serving health and metrics; `prefix` begins the names of metrics.
    pub async fn start(&self, prefix: &str, ready: &Ready, life: &Lifecycle) -> anyhow::Result<DaemonMetrics> {
        let metrics = DaemonMetrics::new(prefix);
        metrics.follow(ready, life);
        if let HealthAddress(Some(address)) = &self.health_port {
            let started = app::start_health(address, ready.clone(), life).await;
            started.context("--health-port")?;
        }
        if !self.prometheus_serve_addr.is_empty() {
            let groups = ControllerGroups::new(&self.controller_group_metrics);
            let served = metrics.serve(prefix, &self.prometheus_serve_addr, groups, life).await;
            served.context("--prometheus-serve-addr")?;
        }
        Ok(metrics)
    }
}

/// Flags of Cilium's daemons about Go's tools and Go's Kubernetes client.
pub const IGNORED_BY_DAEMONS: IgnoredFlags = IgnoredFlags {
    boolean: &[
        "enable-gops",
        "pprof",
        "clustermesh-mcs-api-install-crds",
        "enable-k8s-api-discovery",
    ],
    with_value: &[
        "gops-port",
        "log-driver",
        "pprof-address",
        "pprof-block-profile-rate",
        "pprof-mutex-profile-fraction",
        "pprof-port",
        "shell-sock-path",
        "kvstore-max-consecutive-quorum-errors",
        "k8s-client-burst",
        "k8s-client-connection-keep-alive",
        "k8s-client-qps",
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_served_at_a_port_or_an_address() {
        let at = |text: &str| health_address(text).map(|HealthAddress(address)| address);
        assert_eq!(at("9880"), Ok(Some(":9880".to_owned())));
        assert_eq!(at("127.0.0.1:9880"), Ok(Some("127.0.0.1:9880".to_owned())));
        assert_eq!(at("[::1]:9880"), Ok(Some("[::1]:9880".to_owned())));
        assert_eq!((at("0"), at("localhost:0")), (Ok(None), Ok(None)));
        assert!(at("localhost").is_err() && at("99999").is_err());
    }

    #[test]
    fn durations_and_booleans_are_gos() {
        assert_eq!(duration("15m0s"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("5 apples").is_err() && duration("-5s").is_err() && duration("").is_err());
        assert_eq!((boolean("T"), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("yes").is_err());
    }
}
