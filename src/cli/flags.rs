//! Flag groups that several subcommands share, with Cilium's names, defaults and `CILIUM_` variables.

use crate::app::figures::{Figures, Groups, Needs};
use crate::app::{self, Source};
use crate::clustermesh::publisher::{Options, ServiceMode};
use crate::k8s::api::ApiConfig;
use crate::kvstore::client::KEEPALIVE;
use crate::kvstore::config::Source as EtcdSource;
use crate::kvstore::etcd;
use crate::kvstore::limiter::Limits;
use crate::kvstoremesh;
use crate::model::cluster::ClusterInfo;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A duration in Go's syntax, `15m0s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = kube::core::Duration::from_str(text).map_err(|e| format!("{text:?} is not a duration: {e}"))?;
    if parsed.is_negative() {
        return Err(format!("{text:?} is negative"));
    }
    Ok(parsed.into())
}

/// A boolean in Go's syntax.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not a boolean")),
    }
}

/// The cluster's identity.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// Name of the cluster: at most 32 lower case alphanumeric characters and '-'
    #[arg(long, env = "CILIUM_CLUSTER_NAME", default_value = "default")]
    cluster_name: String,
    /// Unique identifier of the cluster, from 1
    #[arg(long, env = "CILIUM_CLUSTER_ID", default_value_t = 0)]
    cluster_id: u32,
    /// How many clusters the mesh may have: 255 or 511
    #[arg(long, env = "CILIUM_MAX_CONNECTED_CLUSTERS", default_value_t = 255)]
    max_connected_clusters: u32,
}

impl ClusterArgs {
    /// The validated identity.
    pub fn info(&self) -> anyhow::Result<ClusterInfo> {
        Ok(ClusterInfo::new(
            &self.cluster_name,
            self.cluster_id,
            self.max_connected_clusters,
        )?)
    }
}

/// Logging.
#[derive(Args, Debug)]
pub struct LogArgs {
    /// Log at level debug
    #[arg(short = 'D', long, env = "CILIUM_DEBUG", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    pub debug: bool,
    /// Log options: level=LEVEL, format=text|text-ts|json|json-ts
    #[arg(long, env = "CILIUM_LOG_OPT", value_name = "K=V", value_delimiter = ',')]
    pub log_opt: Vec<String>,
}

/// What is published, and from where.
#[derive(Args, Debug)]
pub struct PublisherArgs {
    /// Take objects from a directory of manifests instead of a Kubernetes API
    #[arg(long, env = "CILIUM_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// kubeconfig file
    #[arg(long, env = "CILIUM_K8S_KUBECONFIG_PATH", default_value = "", value_name = "FILE")]
    k8s_kubeconfig_path: String,
    /// URLs of the Kubernetes API server
    #[arg(long, env = "CILIUM_K8S_API_SERVER_URLS", value_delimiter = ',', value_name = "URL")]
    k8s_api_server_urls: Vec<String>,
    /// URL of the Kubernetes API server; without a scheme http
    #[arg(
        long,
        env = "CILIUM_K8S_API_SERVER",
        default_value = "",
        hide = true,
        value_name = "URL"
    )]
    k8s_api_server: String,
    /// Use the Kubernetes API
    #[arg(long, env = "CILIUM_ENABLE_K8S", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    enable_k8s: bool,
    /// For a connection to the Kubernetes API to come up
    #[arg(long, env = "CILIUM_K8S_CLIENT_CONNECTION_TIMEOUT", default_value = "30s", value_parser = duration)]
    k8s_client_connection_timeout: Duration,
    /// How often the Kubernetes API is asked whether it is there, and how long for the answer; 0: never
    #[arg(long, env = "CILIUM_K8S_HEARTBEAT_TIMEOUT", default_value = "30s", value_parser = duration)]
    k8s_heartbeat_timeout: Duration,
    /// How long to wait for the definitions of Cilium's resources
    #[arg(long, env = "CILIUM_CRD_WAIT_TIMEOUT", default_value = "5m0s", value_parser = duration)]
    crd_wait_timeout: Duration,
    /// Only services with this proxy name
    #[arg(long, env = "CILIUM_K8S_SERVICE_PROXY_NAME", default_value = "")]
    k8s_service_proxy_name: String,
    /// Take addresses from CiliumEndpointSlices instead of CiliumEndpoints
    #[arg(long, env = "CILIUM_ENABLE_CILIUM_ENDPOINT_SLICE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    enable_cilium_endpoint_slice: bool,
    /// Publish MCS-API service exports
    #[arg(long, env = "CILIUM_CLUSTERMESH_ENABLE_MCS_API", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    clustermesh_enable_mcs_api: bool,
    /// Whether namespaces that do not say are global
    #[arg(long, env = "CILIUM_CLUSTERMESH_DEFAULT_GLOBAL_NAMESPACE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    clustermesh_default_global_namespace: bool,
}

impl PublisherArgs {
    /// What to publish.
    pub fn options(&self, cluster: ClusterInfo, mode: ServiceMode) -> Options {
        Options {
            cluster,
            default_global_namespace: self.clustermesh_default_global_namespace,
            endpoint_slices: self.enable_cilium_endpoint_slice,
            service_exports: self.clustermesh_enable_mcs_api,
            service_mode: mode,
        }
    }

    /// Where objects come from.
    pub fn source(&self) -> anyhow::Result<Source> {
        if let Some(directory) = &self.manifests {
            return Ok(Source::Manifests(directory.clone()));
        }
        if !self.enable_k8s {
            bail!("Kubernetes client not configured, cannot continue: --enable-k8s=false, and no --manifests");
        }
        let mut urls: Vec<String> = self
            .k8s_api_server_urls
            .iter()
            .flat_map(|u| u.split_whitespace())
            .map(str::to_owned)
            .collect();
        match &*self.k8s_api_server {
            "" => {}
            url if url.contains("://") => urls = vec![url.to_owned()],
            url => urls = vec![format!("http://{url}")],
        }
        Ok(Source::Api(ApiConfig {
            kubeconfig: (!self.k8s_kubeconfig_path.is_empty()).then(|| (&*self.k8s_kubeconfig_path).into()),
            urls,
            service_proxy_name: self.k8s_service_proxy_name.clone(),
            connect_timeout: self.k8s_client_connection_timeout,
            heartbeat: self.k8s_heartbeat_timeout,
            crd_wait: self.crd_wait_timeout,
        }))
    }
}

/// How services are exported and mirrored.
#[derive(Args, Debug)]
pub struct ServiceArgs {
    /// Which forms of a global service: prefer-legacy, prefer-endpointslice or only-endpointslice
    #[arg(long, env = "CILIUM_CLUSTERMESH_SERVICE_V2", default_value = "prefer-legacy", value_parser = service_mode)]
    pub clustermesh_service_v2: ServiceMode,
}

fn service_mode(text: &str) -> Result<ServiceMode, String> {
    match text {
        "prefer-legacy" => Ok(ServiceMode::PreferLegacy),
        "prefer-endpointslice" => Ok(ServiceMode::PreferEndpointSlice),
        "only-endpointslice" => Ok(ServiceMode::OnlyEndpointSlice),
        _ => Err(format!(
            "{text:?} is none of prefer-legacy, prefer-endpointslice, only-endpointslice"
        )),
    }
}

/// What is mirrored.
#[derive(Args, Debug)]
pub struct MeshArgs {
    /// Directory of the remote clusters' etcd client files, one for each cluster and named after it
    #[arg(long, env = "CILIUM_CLUSTERMESH_CONFIG", default_value = "", value_name = "DIR")]
    pub clustermesh_config: String,
    /// After this long without a remote cluster its services are revoked; 0: never
    #[arg(long, env = "CILIUM_CLUSTERMESH_CACHE_TTL", default_value = "0s", value_parser = duration)]
    clustermesh_cache_ttl: Duration,
    /// A cluster that is not connected to by then does not hold up readiness
    #[arg(long, env = "CILIUM_PER_CLUSTER_READY_TIMEOUT", default_value = "15s", value_parser = duration)]
    per_cluster_ready_timeout: Duration,
    /// Readiness waits no longer than this
    #[arg(long, env = "CILIUM_GLOBAL_READY_TIMEOUT", default_value = "10m", value_parser = duration)]
    global_ready_timeout: Duration,
    /// Keep the data of clusters that leave
    #[arg(long, env = "CILIUM_DISABLE_DRAIN_ON_DISCONNECTION", num_args = 0..=1, require_equals = true, hide = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    disable_drain_on_disconnection: bool,
    /// Most keys of one kind of one remote cluster; with more, that kind is not followed any further
    #[arg(
        long,
        env = "CILIUM_CLUSTERMESH_MAX_KEYS",
        default_value_t = 1_000_000,
        value_name = "N"
    )]
    clustermesh_max_keys: usize,
    /// Where to serve the status API
    #[arg(long, env = "CILIUM_API_SERVE_ADDR", default_value = "localhost:9889")]
    pub api_serve_addr: String,
}

impl MeshArgs {
    /// What to mirror; `None` without a directory.
    pub fn config(&self, cluster: ClusterInfo, mode: ServiceMode) -> Option<kvstoremesh::Config> {
        (!self.clustermesh_config.is_empty()).then(|| kvstoremesh::Config {
            cluster,
            directory: (&*self.clustermesh_config).into(),
            cache_ttl: self.clustermesh_cache_ttl,
            per_cluster_ready_timeout: self.per_cluster_ready_timeout,
            global_ready_timeout: self.global_ready_timeout,
            drain_grace: Duration::from_secs(180),
            // As long as the original's keys live without it.
            former_grace: Duration::from_secs(900),
            drain: !self.disable_drain_on_disconnection,
            keys_max: self.clustermesh_max_keys,
            remotes: Default::default(),
            legacy_services: mode != ServiceMode::OnlyEndpointSlice,
        })
    }
}

/// Health and metrics.
#[derive(Args, Debug)]
pub struct ObserveArgs {
    /// Port for /readyz, on all interfaces; 0: none
    #[arg(long, env = "CILIUM_HEALTH_PORT", default_value_t = 9880)]
    health_port: u16,
    /// Where to serve /metrics; nowhere without
    #[arg(long, env = "CILIUM_PROMETHEUS_SERVE_ADDR", default_value = "")]
    prometheus_serve_addr: String,
    /// Controllers whose runs are counted: names, all or none
    #[arg(long, env = "CILIUM_CONTROLLER_GROUP_METRICS", value_delimiter = ',')]
    controller_group_metrics: Vec<String>,
    /// What must be well to stay ready: store, kubernetes, both, or none
    #[arg(long, env = "CILIUM_READY_NEEDS", default_value = "store", value_parser = needs)]
    pub ready_needs: Needs,
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
            _ => return Err(format!("{part:?} is none of store, kubernetes, none")),
        }
    }
    Ok(needs)
}

impl ObserveArgs {
    /// Serves health and metrics; names of metrics begin with `prefix`.
    pub async fn start(&self, prefix: &str, ready: &Ready, life: &Lifecycle) -> anyhow::Result<Figures> {
        let figures = Figures::default();
        figures.follow(ready, life);
        if self.health_port != 0 {
            let started = app::start_health(&format!(":{}", self.health_port), ready.clone(), life).await;
            started.context("--health-port")?;
        }
        if !self.prometheus_serve_addr.is_empty() {
            let groups = Groups::new(&self.controller_group_metrics);
            let served = figures.serve(prefix, &self.prometheus_serve_addr, groups, life).await;
            served.context("--prometheus-serve-addr")?;
        }
        Ok(figures)
    }
}

/// Which etcd to write to.
#[derive(Args, Debug)]
pub struct KvstoreArgs {
    /// Kind of the store: only etcd
    #[arg(long, env = "CILIUM_KVSTORE", default_value = "etcd")]
    kvstore: String,
    /// etcd.config=FILE or etcd.address=ADDRESS, and limits; repeatable
    #[arg(long, env = "CILIUM_KVSTORE_OPT", value_name = "K=V")]
    kvstore_opt: Vec<String>,
    /// TTL of the leases that keys are attached to
    #[arg(long, env = "CILIUM_KVSTORE_LEASE_TTL", default_value = "15m0s", value_parser = duration)]
    kvstore_lease_ttl: Duration,
}

impl KvstoreArgs {
    /// The store and how to use it.
    pub fn config(&self) -> anyhow::Result<etcd::Config> {
        match &*self.kvstore {
            "etcd" => {}
            "" => bail!("KVStore client not configured, cannot continue"),
            other => bail!("--kvstore: unsupported key-value store {other:?}: only etcd is supported"),
        }
        let (mut config, mut address) = (None, None);
        let (mut limits, mut keepalive) = (Limits::default(), KEEPALIVE);
        let time = |key: &str, value: &str| duration(value).map_err(|e| anyhow::anyhow!("--kvstore-opt {key}: {e}"));
        for (key, value) in options(&self.kvstore_opt)? {
            match &*key {
                "etcd.config" => config = Some(value),
                "etcd.address" => address = Some(value),
                "etcd.qps" | "etcd.bootstrapQps" | "etcd.maxInflight" | "etcd.limit" => {
                    let number = value.parse::<u32>();
                    let number =
                        number.with_context(|| format!("--kvstore-opt {key}={value} is not a number from 0"))?;
                    match &*key {
                        "etcd.qps" => limits.qps = number,
                        "etcd.bootstrapQps" => limits.bootstrap_qps = Some(number).filter(|n| *n > 0),
                        "etcd.maxInflight" => limits.max_inflight = Some(number).filter(|n| *n > 0),
                        _ => limits.page = number.into(),
                    }
                }
                "etcd.keepaliveHeartbeat" => keepalive.interval = time(&key, &value)?,
                "etcd.keepaliveTimeout" => keepalive.timeout = time(&key, &value)?,
                _ => bail!(
                    "invalid kvstore configuration: {key:?} is none of etcd.address, etcd.config, etcd.qps, \
                     etcd.bootstrapQps, etcd.maxInflight, etcd.limit, etcd.keepaliveHeartbeat, etcd.keepaliveTimeout"
                ),
            }
        }
        let source = match (config, address) {
            (Some(file), _) => EtcdSource::File(file.into()),
            (None, Some(address)) => EtcdSource::Address(address),
            (None, None) => bail!("--kvstore-opt must have etcd.config or etcd.address"),
        };
        let ttl = self.kvstore_lease_ttl;
        if !(Duration::from_secs(25)..=Duration::from_secs(86_400)).contains(&ttl) {
            bail!("kvstore-lease-ttl does not lie in required range (25s - 24h0m0s)");
        }
        Ok(etcd::Config {
            source,
            lease_ttl: ttl,
            limits,
            keepalive,
        })
    }
}

/// Reads `k=v` lists, or a JSON object. A comma may be part of a value if what follows has no `=`.
fn options(given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut out: Vec<(String, String)> = vec![];
    for text in given {
        if text.starts_with('{') {
            let map: std::collections::BTreeMap<String, String> =
                serde_json::from_str(text).with_context(|| format!("{text:?} is not a JSON object of strings"))?;
            out.extend(map);
            continue;
        }
        for part in text.split(',').filter(|p| !p.is_empty()) {
            match (part.split_once('='), out.last_mut()) {
                (Some((key, value)), _) => out.push((key.to_owned(), value.to_owned())),
                (None, Some((_, value))) => *value += &format!(",{part}"),
                (None, None) => bail!("--kvstore-opt: {part:?} is not of the form key=value"),
            }
        }
    }
    Ok(out)
}

/// Flags of the original that mean nothing here: name, and whether they take a value.
pub type Ignored = (&'static str, bool);

/// Go-only flags of all of Cilium's daemons.
pub const IGNORED_BY_DAEMONS: &[Ignored] = &[
    ("enable-gops", false),
    ("gops-port", true),
    ("log-driver", true),
    ("pprof", false),
    ("pprof-address", true),
    ("pprof-block-profile-rate", true),
    ("pprof-mutex-profile-fraction", true),
    ("pprof-port", true),
    ("shell-sock-path", true),
    ("kvstore-max-consecutive-quorum-errors", true),
    ("clustermesh-mcs-api-install-crds", false),
    ("enable-k8s-api-discovery", false),
    ("k8s-client-burst", true),
    ("k8s-client-connection-keep-alive", true),
    ("k8s-client-qps", true),
];

/// Takes the ignored flags out of `args`; returns the remaining arguments and the names taken out.
pub fn strip(args: Vec<String>, ignored: &[Ignored]) -> (Vec<String>, Vec<String>) {
    let (mut rest, mut taken) = (vec![], vec![]);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let name = arg.strip_prefix("--").unwrap_or_default();
        let (name, inline) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
        match ignored.iter().find(|(n, _)| *n == name) {
            None => rest.push(arg),
            Some((_, takes_value)) => {
                taken.push(name.to_owned());
                if *takes_value && !inline {
                    args.next();
                }
            }
        }
    }
    (rest, taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_as_lists_or_json_and_keep_commas() {
        let read = |texts: &[&str]| options(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            read(&["a=1,b=2", "c=3"]).unwrap(),
            [pair("a", "1"), pair("b", "2"), pair("c", "3")]
        );
        assert_eq!(
            read(&["etcd.address=x:1,y:2,z=3"]).unwrap(),
            [pair("etcd.address", "x:1,y:2"), pair("z", "3")]
        );
        assert_eq!(read(&[r#"{"a":"1"}"#]).unwrap(), [pair("a", "1")]);
        assert!(read(&["nothing"]).is_err());
    }

    #[test]
    fn durations_and_booleans_are_gos() {
        assert_eq!(duration("15m0s"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("5 apples").is_err() && duration("-5s").is_err());
        assert_eq!((boolean("T"), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("yes").is_err());
    }

    #[test]
    fn ignored_flags_are_taken_out_with_their_values() {
        let args = ["x", "--gops-port", "1", "--pprof", "--gops-port=2", "--cluster-id=3"]
            .map(str::to_owned)
            .to_vec();
        let (rest, taken) = strip(args, IGNORED_BY_DAEMONS);
        assert_eq!(rest, ["x", "--cluster-id=3"]);
        assert_eq!(taken, ["gops-port", "pprof", "gops-port"]);
    }
}
